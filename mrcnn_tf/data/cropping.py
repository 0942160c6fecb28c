"""Large-scale jitter (Ghiasi et al. 2021, section 3): what of a resized image is shown on a canvas, and of its objects.

Shape letters: H W pixels, C channels, G objects, K objects that are left, J keypoints.

The image is scaled to fit the canvas times a factor. Where it is then larger than the canvas, a random part of it is
shown; where it is smaller, the canvas is filled up with zeros at the bottom and right. An object of which only a part
is shown gets the box of that part's mask; one of which nothing is shown is left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mrcnn_tf.data.masks import object_pixels
from mrcnn_tf.data.schema import Example

# Less than half a pixel of the canvas at its edge holds no pixel's middle: such a rest is nothing, unless it is a whole
# pixel of an image that is scaled down.
_LEAST = 0.5
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Part:
    """What is shown of an image that was brought to another size; all in pixels of that size.

    Attributes:
        size: (height, width) of the whole image after the resize.
        corner: (top, left) of the part.
        shown: (height, width) of the part.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    shown: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the image is left out."""
        return self.size == self.shown

    def scale(self, original_size: tuple[int, int]) -> np.ndarray:
        """[2] float64: (y, x) factors from the original image, of this (height, width), to the resized one."""
        return np.array(self.size, np.float64) / original_size

    def window(self, original_size: tuple[int, int], flip: bool) -> np.ndarray:
        """[4] float64 y1, x1, y2, x2: the part in the original image, as it was before it was mirrored by `flip`."""
        corner = np.array(self.corner, np.float64)
        y1, x1, y2, x2 = np.concatenate([corner, corner + self.shown]) / np.tile(self.scale(original_size), 2)
        width = original_size[1]
        return np.array([y1, width - x2, y2, width - x1] if flip else [y1, x1, y2, x2])


def random_part(
    size: tuple[int, int], canvas: tuple[int, int], factor: float, place: tuple[float, float] = (0.0, 0.0)
) -> Part:
    """The part of an image of `size` (height, width) that a canvas shows.

    Args:
        canvas: (height, width).
        factor: the image is scaled, its aspect kept, to fit (height, width) of the canvas times this.
        place: where the part lies, for each axis from 0 (the first that is possible) to 1 (the last).
    """
    scale = min(canvas[0] * factor / size[0], canvas[1] * factor / size[1])
    whole = [max(1, round(side * scale)) for side in size]
    shown = [min(side, most) for side, most in zip(whole, canvas)]
    corner = [round((side - part) * share) for side, part, share in zip(whole, shown, place)]
    return Part(tuple(whole), tuple(corner), tuple(shown))


def fit_part(image: tf.Tensor, part: Part, canvas: tuple[int, int]) -> tf.Tensor:
    """[H, W, C] of any number type to the canvas's height and width, float32; what is beside the part is 0.

    The pixels are those of `fit_image`, but only those of the part are made.
    """
    scale = part.scale(image.shape[:2]).astype(np.float32)
    shown = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=part.shown,
        scale=scale,
        translation=-np.array(part.corner, np.float32),
        kernel_type="triangle",
        antialias=False,
    )[0]
    return tf.pad(shown, [[0, canvas[0] - part.shown[0]], [0, canvas[1] - part.shown[1]], [0, 0]])


def move_boxes(boxes: np.ndarray, part: Part) -> np.ndarray:
    """[G, 4] boxes in the resized image to the part of it, cut at its edges; those beside it become empty."""
    if part.is_whole:
        return boxes
    moved = boxes - np.tile(np.array(part.corner, boxes.dtype), 2)
    return np.clip(moved, 0, np.tile(np.array(part.shown, boxes.dtype), 2))


def move_keypoints(keypoints: np.ndarray, part: Part) -> np.ndarray:
    """[G, J, 3] (y, x, visibility) in the resized image to the part of it; those beside it become unlabelled zeros."""
    if part.is_whole:
        return keypoints
    moved = keypoints - np.array([*part.corner, 0], keypoints.dtype)
    seen = keypoints[..., 2] > 0
    seen &= ((moved[..., :2] >= 0) & (moved[..., :2] <= part.shown)).all(axis=-1)
    return moved * seen[..., None]


def cut_example(example: Example, part: Part, flip: bool) -> Example:
    """The example with those objects, and that much of their boxes, that the part shows.

    Boxes stay in pixels of the original image, and an object that is shown whole keeps its box as it is. That of
    another is clipped and then drawn tight around what is left of the mask; a side that the mask reaches as before
    stays where it was. Crowds are cut in the same way.

    Args:
        flip: whether the image was mirrored before the part was taken from it.
    """
    if part.is_whole:
        return example
    window, scale = part.window(example.size, flip), part.scale(example.size)
    rows, boxes, areas = [], [], []
    for row in range(len(example)):
        left = _left(example, row, window, scale)
        if left is not None:
            rows.append(row)
            boxes.append(left[0])
            areas.append(example.areas[row] * left[1])
    rows = np.array(rows, np.int64)
    return dataclasses.replace(
        example,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=example.classes[rows],
        crowd=example.crowd[rows],
        areas=np.array(areas, np.float32),
        segmentations=tuple(example.segmentations[row] for row in rows),
        keypoints=None if example.keypoints is None else example.keypoints[rows],
    )


def _left(example: Example, row: int, window: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The box of what the window shows of an object, and which share of its area that is; None where it is nothing."""
    box = example.boxes[row].astype(np.float64)
    clipped = np.concatenate([np.maximum(box[:2], window[:2]), np.minimum(box[2:], window[2:])])
    if np.array_equal(clipped, box):
        return box, 1.0
    if (clipped[2:] <= clipped[:2]).any():
        return None
    pixels, corner = object_pixels(example, row)
    whole = _extent(pixels, corner)
    if whole is None:  # too thin for any pixel
        tight, share = clipped, np.prod(clipped[2:] - clipped[:2]) / np.prod(box[2:] - box[:2])
    else:
        shares = [_shares(pixels.shape[axis], corner[axis], window[axis::2]) for axis in (0, 1)]
        seen = [(own * factor >= _LEAST - _ROUNDING) | (own >= 1 - _ROUNDING) for own, factor in zip(shares, scale)]
        extent = _extent(pixels * np.outer(*seen), corner)
        if extent is None:
            return None
        tight = np.concatenate([np.maximum(extent[:2], clipped[:2]), np.minimum(extent[2:], clipped[2:])])
        tight = np.where(extent == whole, clipped, tight)
        share = float(shares[0] @ pixels @ shares[1]) / pixels.sum()
    least = np.minimum(_LEAST, np.minimum(1, box[2:] - box[:2]) * scale) - _ROUNDING
    return (tight, share) if ((tight[2:] - tight[:2]) * scale >= least).all() else None


def _shares(count: int, first: int, span: np.ndarray) -> np.ndarray:
    """[count] how much, 0 to 1, of each of the pixels first, first + 1, ... lies within `span` (low, high)."""
    starts = first + np.arange(count)
    return (np.minimum(starts + 1, span[1]) - np.maximum(starts, span[0])).clip(0, 1)


def _extent(pixels: np.ndarray, corner: tuple[int, int]) -> np.ndarray | None:
    """[4] y1, x1, y2, x2 around the pixels that are not 0, of an image with this (top, left); None without any."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if len(rows) == 0:
        return None
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float64) + np.tile(corner, 2)
