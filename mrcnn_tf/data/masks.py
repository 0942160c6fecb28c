"""Masks of COCO segmentations: whole ones, and crops of each object's own box.

Shape letters: G objects, H W pixels of the original image, S cells along a side of a crop.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_tf.data.schema import Example


def rle(segmentation: list | dict, height: int, width: int) -> dict:
    """The segmentation as one compressed RLE; the polygons of an object are united."""
    if isinstance(segmentation, dict):
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def rle_counts(counts: bytes) -> np.ndarray:
    """Run lengths of COCO's compressed counts, alternately outside and inside of the object.

    A run is written in groups of five bits with a continuation bit, lowest first, as the difference
    to the run two before it (from the fourth run on).

    Raises:
        ValueError: bytes that are no such string.
    """
    raw = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if len(raw) == 0 or raw.min() < 0 or raw.max() > 63 or raw[-1] & 32:
        raise ValueError("not a compressed RLE string")
    ends = np.flatnonzero((raw & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 8:
        raise ValueError("a run of more than 40 bits")
    runs = np.add.reduceat((raw & 31) << (5 * place), starts)
    runs -= np.where(raw[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    if runs.min() < 0:
        raise ValueError("a run of negative length")
    return runs


def full_masks(example: Example) -> np.ndarray:
    """[G, H, W] bool: the objects' masks, as the COCO tools draw them."""
    height, width = example.size
    masks = np.zeros((len(example), height, width), bool)
    for row, segmentation in enumerate(example.segmentations):
        masks[row] = coco_mask.decode(rle(segmentation, height, width))
    return masks


def mask_crops(example: Example, side: int = 112) -> np.ndarray:
    """[G, S, S] uint8: how much (0..255) of each cell of an object's box is object.

    Cell j of a box from y1 to y2 has its middle at y1 + (j + .5) / S * (y2 - y1). The mask is drawn in
    the pixels of the original image, as for the evaluation, and resampled bilinearly.
    """
    crops = np.zeros((len(example), side, side), np.uint8)
    for row, segmentation in enumerate(example.segmentations):
        box = tuple(float(value) for value in example.boxes[row])
        window = _window(box, example.size)
        top, left, bottom, right = window
        pixels = _drawn(segmentation, window)
        # Corners that float32 moved a hair past the image's edge are refused by the resize.
        region = (box[1] - left, box[0] - top, min(box[3], right) - left, min(box[2], bottom) - top)
        image = Image.fromarray(pixels * np.uint8(255))
        crops[row] = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=region))
        if not isinstance(segmentation, dict) and not crops[row].any():
            crops[row] = _drawn_fine(segmentation, box, side)
    return crops


def object_pixels(example: Example, row: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask of one object in the whole pixels that its box touches, as the COCO tools draw it.

    Returns:
        [h, w] uint8 0 or 1, and the (top, left) of its first pixel in the original image.
    """
    y1, x1, y2, x2 = (float(value) for value in example.boxes[row])
    top, left = max(int(np.floor(y1)), 0), max(int(np.floor(x1)), 0)
    window = (top, left, min(int(np.ceil(y2)), example.size[0]), min(int(np.ceil(x2)), example.size[1]))
    return _drawn(example.segmentations[row], window), (top, left)


def _window(box: tuple, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the whole pixels that the box touches, and of one more on each side.

    The one more lets the resampling see what lies beside the box.
    """
    y1, x1, y2, x2 = box
    top, left = max(int(np.floor(y1)) - 1, 0), max(int(np.floor(x1)) - 1, 0)
    return top, left, min(int(np.ceil(y2)) + 1, size[0]), min(int(np.ceil(x2)) + 1, size[1])


def _drawn(segmentation: list | dict, window: tuple[int, int, int, int]) -> np.ndarray:
    """The window's (top, left, bottom, right) part of the mask, uint8 0 or 1."""
    return (_drawn_rle if isinstance(segmentation, dict) else _drawn_polygons)(segmentation, window)


def _drawn_rle(segmentation: dict, window: tuple[int, int, int, int]) -> np.ndarray:
    """The window's part of the mask, uint8 0 or 1; only the window's columns are unrolled."""
    top, left, bottom, right = window
    height = segmentation["size"][0]
    counts = segmentation["counts"]
    ends = np.cumsum(rle_counts(counts.encode("ascii") if isinstance(counts, str) else counts))
    runs = np.diff(ends.clip(left * height, right * height), prepend=left * height)
    columns = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs).reshape(right - left, height)
    return np.ascontiguousarray(columns.T[top:bottom])


def _drawn_polygons(segmentation: list, window: tuple[int, int, int, int]) -> np.ndarray:
    """The window's part of the mask, uint8 0 or 1."""
    top, left, bottom, right = window
    moved = [(np.reshape(ring, (-1, 2)) - (left, top)).reshape(-1).tolist() for ring in segmentation]
    return np.ascontiguousarray(coco_mask.decode(rle(moved, bottom - top, right - left)))


def _drawn_fine(segmentation: list, box: tuple, side: int) -> np.ndarray:
    """Polygons drawn in the cells of the crop: for objects so thin that they cover no pixel's middle."""
    y1, x1, y2, x2 = box
    scale = (side / (x2 - x1), side / (y2 - y1))
    moved = [((np.reshape(ring, (-1, 2)) - (x1, y1)) * scale).reshape(-1).tolist() for ring in segmentation]
    return coco_mask.decode(rle(moved, side, side)) * np.uint8(255)
