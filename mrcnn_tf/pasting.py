"""Masks of detections on the image: from an M x M crop to pixels, and from pixels to COCO's RLE. numpy only.

Shape letters: H W pixels of the image, M mask side, h w sides of the patch that a mask touches.

A predicted mask is a grid of M x M cells stretched over its box (section 3, mask representation: "resized to the RoI
size, and binarized at a threshold of 0.5"). A pixel takes the value of the bilinear interpolation at its centre, cells
outside of the grid counting as zero; `geometry.masks.paste_masks` is the same on tensors. Everything here works on the
patch under the box alone: the cost grows with the area of the objects, not with the image times their number.
"""

from __future__ import annotations

import math

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.data.masks import rle_counts


def axis_weights(low: float, high: float, cells: int, size: int) -> tuple[int, np.ndarray]:
    """The bilinear weights of one axis of a box, for the pixels that the stretched grid reaches.

    Pixel p maps to the grid coordinate (p + .5 - low) / (high - low) * cells - .5, so the grid reaches half a cell
    past the box before its value is zero.

    Returns:
        The first pixel reached and the weights [pixels, cells] float32; no pixel at all where the box has no
        length, is not finite or lies outside of [0, size).
    """
    length = float(high) - float(low)
    if not (math.isfinite(length) and length > 0):
        return 0, np.zeros((0, cells), np.float32)
    reach = 0.5 * length / cells
    first = max(0, math.ceil(low - reach - 0.5))
    last = min(size, math.floor(high + reach - 0.5) + 1)
    pixels = np.arange(first, max(first, last))
    coordinates = (pixels + 0.5 - low) / length * cells - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(coordinates[:, None] - np.arange(cells)))
    return min(first, size), weights.astype(np.float32)


def torchvision_boxes(boxes: np.ndarray, side: int) -> np.ndarray:
    """What torchvision makes of boxes [N, 4] before it stretches masks of `side` cells over them, [N, 4] float32.

    It grows a box by one cell on every side, cuts the corners of that to integers and counts the last pixel in.
    """
    boxes = np.asarray(boxes, np.float32)
    low, high = boxes[:, :2], boxes[:, 2:]
    middle, half = (high + low) * np.float32(0.5), (high - low) * np.float32(0.5) * np.float32((side + 2) / side)
    first, last = np.trunc(middle - half), np.trunc(middle + half)
    extent = np.maximum(last - first + 1, 1)
    cell = extent / (side + 2)
    return np.concatenate([first + cell, first + extent - cell], axis=1)


def paste_patch(crop: np.ndarray, box: np.ndarray, height: int, width: int) -> tuple[int, int, np.ndarray]:
    """The probabilities of one mask on the pixels under its box.

    Args:
        crop: [M, M] probabilities (any float type).
        box: [4] y1, x1, y2, x2 in pixels of the image.

    Returns:
        top, left and the patch [h, w] float32: image[top:top+h, left:left+w] is what the mask covers.
    """
    top, rows = axis_weights(box[0], box[2], crop.shape[0], height)
    left, columns = axis_weights(box[1], box[3], crop.shape[1], width)
    return top, left, rows @ crop.astype(np.float32) @ columns.T


def paste_mask(crop: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5) -> np.ndarray:
    """One mask on the whole image: bool [H, W], true where the probability is `threshold` or more."""
    top, left, patch = paste_patch(crop, box, height, width)
    mask = np.zeros((height, width), bool)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch >= threshold
    return mask


def run_lengths(patch: np.ndarray, top: int, left: int, height: int, width: int) -> list[int]:
    """COCO's run lengths of an image [H, W] that is empty but for `patch` (bool [h, w]) at (top, left).

    Runs go down the columns and begin with zeros: lengths of zeros, ones, zeros, ones, ...
    """
    rows, columns = patch.shape
    padded = np.zeros((columns, rows + 2), bool)
    padded[:, 1:-1] = patch.T
    column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
    edges = (left + column) * height + top + row  # start, end, start, end, ... of the runs of ones
    if rows == height and len(edges):
        # A run that leaves a column at the bottom and enters the next at the top is one run.
        joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
        edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    bounds = np.concatenate([[0], edges, [height * width]])
    lengths = np.diff(bounds).tolist()
    return lengths[:-1] if lengths[-1] == 0 and len(lengths) > 1 else lengths


def encode_patch(patch: np.ndarray, top: int, left: int, height: int, width: int) -> dict:
    """COCO's compressed RLE {"size": [H, W], "counts": bytes} of `patch` (bool [h, w]) at (top, left)."""
    lengths = run_lengths(patch, top, left, height, width)
    return coco_mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def encode_mask(mask: np.ndarray) -> dict:
    """COCO's compressed RLE of one mask [H, W]."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def encode_crops(crops: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5) -> list[dict]:
    """Pastes crops [N, M, M] into their boxes [N, 4] and encodes them, without a full image in between."""
    rles = []
    for crop, box in zip(crops, boxes, strict=True):
        top, left, patch = paste_patch(crop, box, height, width)
        rles.append(encode_patch(patch >= threshold, top, left, height, width))
    return rles


def compress(segmentation: dict | list, height: int, width: int) -> dict:
    """Any COCO segmentation (polygons, uncompressed RLE, RLE with str or bytes counts) as compressed RLE with bytes.

    Raises:
        ValueError: an RLE of another size than `height` x `width`, or whose counts are for another number of pixels
            (pycocotools would read on behind them, in whatever lies there), or no COCO segmentation at all.
    """
    if isinstance(segmentation, list):
        if not segmentation or not all(np.ndim(ring) == 1 and len(ring) >= 6 for ring in segmentation):
            raise ValueError(f"no COCO segmentation (polygons of 3 points or more): {segmentation!r:.80}")
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError(f"no COCO segmentation (list of polygons, or size and counts): {segmentation!r:.80}")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"an RLE of size {list(segmentation['size'])} on an image of {height} x {width}")
    counts = segmentation["counts"]
    try:
        covered = sum(counts) if isinstance(counts, list) else int(rle_counts(_bytes(counts)).sum())
    except (TypeError, ValueError) as error:
        raise ValueError(f"an RLE whose counts cannot be read ({error})") from error
    if covered != height * width or (isinstance(counts, list) and min(counts) < 0):
        raise ValueError(f"an RLE whose counts cover {covered} pixels, on an image of {height} x {width}")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": _bytes(counts)}


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts


def box_of(segmentation: dict | list, height: int, width: int) -> list[float]:
    """x, y, width, height of the box around any COCO segmentation; raises as `compress` does."""
    return coco_mask.toBbox(compress(segmentation, height, width)).tolist()


def decode(rle: dict) -> np.ndarray:
    """The mask [H, W] bool of a compressed RLE."""
    return coco_mask.decode(rle).astype(bool)
