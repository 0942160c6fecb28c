"""Boxes: areas, overlaps, the box coder, clipping.

Shape letters: N, M boxes; `...` any leading dimensions. A box is float32 [y1, x1, y2, x2] in continuous pixels
(pixel i spans [i, i + 1)), so height = y2 - y1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

# The largest growth of a side that a delta may ask for: 1000 pixels from the 16 of the finest stride.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)
# Keeps logarithms and quotients of padded (empty) boxes finite; far below a pixel, so no real box notices.
_TINY = 1e-6


def sides(boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Heights and widths [...] in pixels of `boxes` [..., 4]."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas [...] in square pixels of `boxes` [..., 4]; 0 where a side is not positive."""
    height, width = sides(boxes)
    return tf.maximum(height, 0.0) * tf.maximum(width, 0.0)


def intersection(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Shared area [..., N, M] in square pixels of each box of `first` [..., N, 4] with each of `second` [..., M, 4]."""
    y1, x1, y2, x2 = (first[..., :, None, i] for i in range(4))
    v1, u1, v2, u2 = (second[..., None, :, i] for i in range(4))
    height = tf.maximum(tf.minimum(y2, v2) - tf.maximum(y1, v1), 0.0)
    width = tf.maximum(tf.minimum(x2, u2) - tf.maximum(x1, u1), 0.0)
    return height * width


def iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Intersection over union [..., N, M] in [0, 1]; 0 where both boxes are empty.

    `first` is [..., N, 4], `second` [..., M, 4], with the same leading dimensions. The longer list is best the
    second: the innermost dimension is the one that vector instructions run along.
    """
    shared = intersection(first, second)
    union = area(first)[..., :, None] + area(second)[..., None, :] - shared
    return tf.math.divide_no_nan(shared, union)


def intersection_over_first(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Share [..., N, M] of each box of `first` [..., N, 4] that each box of `second` [..., M, 4] covers.

    The measure for crowds, whose boxes are far larger than the objects inside; 0 for an empty first box.
    """
    return tf.math.divide_no_nan(intersection(first, second), area(first)[..., :, None])


def encode(boxes: tf.Tensor, references: tf.Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> tf.Tensor:
    """Deltas [..., 4] (dy, dx, dh, dw) that lead from `references` [..., 4] to `boxes` [..., 4].

    Centre shifts are in units of the reference's sides, scales are logarithms; each is multiplied by its weight
    (the parameterisation of Faster R-CNN that section 3 takes over). Empty boxes give finite, meaningless numbers.
    """
    height, width = (tf.maximum(side, _TINY) for side in sides(boxes))
    ref_height, ref_width = (tf.maximum(side, _TINY) for side in sides(references))
    dy = (boxes[..., 0] + 0.5 * height - (references[..., 0] + 0.5 * ref_height)) / ref_height
    dx = (boxes[..., 1] + 0.5 * width - (references[..., 1] + 0.5 * ref_width)) / ref_width
    deltas = tf.stack([dy, dx, tf.math.log(height / ref_height), tf.math.log(width / ref_width)], axis=-1)
    return deltas * tf.constant(list(weights), deltas.dtype)


def decode(
    deltas: tf.Tensor,
    references: tf.Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    max_log: float = MAX_LOG_SCALE,
) -> tf.Tensor:
    """Boxes [..., 4] that `deltas` [..., 4] make of `references` (broadcast against them): the inverse of `encode`.

    The logarithmic scales are cut at `max_log`, so that no early prediction overflows.
    """
    height, width = sides(references)
    dy, dx, dh, dw = (deltas[..., i] / weights[i] if weights[i] != 1 else deltas[..., i] for i in range(4))
    centre_y = references[..., 0] + 0.5 * height + dy * height
    centre_x = references[..., 1] + 0.5 * width + dx * width
    half_height = 0.5 * tf.exp(tf.minimum(dh, max_log)) * height
    half_width = 0.5 * tf.exp(tf.minimum(dw, max_log)) * width
    corners = [centre_y - half_height, centre_x - half_width, centre_y + half_height, centre_x + half_width]
    return tf.stack(corners, axis=-1)


def clip(boxes: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
    """`boxes` [..., N, 4] cut to their images; `image_size` [..., 2] is (height, width) in pixels."""
    size = tf.cast(image_size, boxes.dtype)
    limits = tf.concat([size, size], axis=-1)[..., None, :]
    return tf.clip_by_value(boxes, 0.0, limits)


def scale(boxes: tf.Tensor, factors: tf.Tensor | Sequence[float]) -> tf.Tensor:
    """`boxes` [..., 4] with y multiplied by factors[..., 0] and x by factors[..., 1] (broadcast against the boxes)."""
    factors = tf.cast(factors, boxes.dtype)
    return boxes * tf.concat([factors, factors], axis=-1)
