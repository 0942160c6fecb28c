"""Anchors: the reference boxes of the region proposal network (section 3, and FPN section 4.1).

Shape letters: A anchors at one position, H W a feature map, N = H * W * A anchors of one level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(
    sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False, shrink: float = 0.0
) -> np.ndarray:
    """The anchors [A, 4] of one position, float32 pixels around (0, 0): every ratio with every size, ratios outermost.

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: height / width.
        rounded: round the corners to whole pixels, half to even, as torchvision does.
        shrink: pixels that the lower and the right side are moved inwards at the end, as Matterport's boxes, whose
            far corner is the last pixel inside, need it.
    """
    ratio = np.sqrt(np.asarray(ratios, np.float32))
    size = np.asarray(sizes, np.float32)
    heights = (ratio[:, None] * size[None, :]).reshape(-1)
    widths = ((np.float32(1.0) / ratio)[:, None] * size[None, :]).reshape(-1)
    cell = np.stack([-heights, -widths, heights, widths], axis=1) / np.float32(2.0)
    cell = np.round(cell) if rounded else cell
    return cell - np.array([0.0, 0.0, shrink, shrink], np.float32)


def grid_anchors(
    feature_shape: tuple[tf.Tensor | int, tf.Tensor | int],
    stride: float | tuple[tf.Tensor | int, tf.Tensor | int],
    cell: np.ndarray | tf.Tensor,
    offset: float = 0.0,
) -> tf.Tensor:
    """Anchors [H * W * A, 4] of a whole feature map, row by row, the A of one position side by side.

    Args:
        feature_shape: (H, W), integers or scalar tensors.
        stride: pixels of the network's input per cell of the map, one number or (along y, along x).
        cell: `cell_anchors` [A, 4].
        offset: shifts every centre by this share of a stride.
    """
    height, width = feature_shape
    stride_y, stride_x = stride if isinstance(stride, tuple) else (stride, stride)
    y = (tf.cast(tf.range(height), tf.float32) + offset) * tf.cast(stride_y, tf.float32)
    x = (tf.cast(tf.range(width), tf.float32) + offset) * tf.cast(stride_x, tf.float32)
    y, x = tf.meshgrid(y, x, indexing="ij")
    centres = tf.reshape(tf.stack([y, x, y, x], axis=-1), [-1, 1, 4])
    return tf.reshape(centres + tf.constant(cell, tf.float32)[None], [-1, 4])
