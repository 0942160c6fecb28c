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
        y1, x1, y2, x2 = (float(value) for value in example.boxes[row])
        pixels, top, left = _box_pixels(segmentation, example.size, (y1, x1, y2, x2))
        # Float corners that float32 moved a hair past the image's edge are refused by the resize.
        region = (x1 - left, y1 - top, min(x2 - left, pixels.shape[1]), min(y2 - top, pixels.shape[0]))
        image = Image.fromarray(pixels)
        crops[row] = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=region))
    return crops


def _box_pixels(segmentation: list | dict, size: tuple[int, int], box: tuple) -> tuple[np.ndarray, int, int]:
    """The mask (0 or 255) of the whole pixels that the box touches, and its top and left in the image.

    One pixel more is drawn on each side, so that the resampling sees what lies beside the box.
    """
    y1, x1, y2, x2 = box
    top, left = max(int(np.floor(y1)) - 1, 0), max(int(np.floor(x1)) - 1, 0)
    bottom, right = min(int(np.ceil(y2)) + 1, size[0]), min(int(np.ceil(x2)) + 1, size[1])
    if isinstance(segmentation, dict):
        mask = coco_mask.decode(segmentation)[top:bottom, left:right]
    else:
        # Polygons are drawn inside the box's window only: much less work for small objects.
        shift = (left, top)
        moved = [(np.reshape(ring, (-1, 2)) - shift).reshape(-1).tolist() for ring in segmentation]
        mask = coco_mask.decode(rle(moved, bottom - top, right - left))
    return np.ascontiguousarray(mask) * np.uint8(255), top, left
