"""The size that an image gets before it enters the network (section 3.1: the shorter edge becomes 800 pixels).

The factor is min(shorter / min(h, w), longer / max(h, w)), and the new sides are rounded down. All of it is done in
integers, so that Python and TensorFlow agree to the pixel and the shorter edge is met exactly. (torchvision takes the
float32 factor instead, which can end one pixel lower where the exact product is whole.)
"""

from __future__ import annotations

import tensorflow as tf


def resized_size(height: int, width: int, shorter: int, longer: int) -> tuple[int, int, float]:
    """(new height, new width, factor) of an image of height x width pixels.

    Args:
        shorter: the wanted shorter edge in pixels.
        longer: what the longer edge may not exceed; where it would, it decides the factor.

    Raises:
        ValueError: a side or an edge below 1.
    """
    height, width, shorter, longer = int(height), int(width), int(shorter), int(longer)
    if min(height, width, shorter, longer) < 1:
        raise ValueError(f"sizes need at least one pixel, got {height} x {width}, edges {shorter} and {longer}")
    low, high = min(height, width), max(height, width)
    target, source = (shorter, low) if shorter * high <= longer * low else (longer, high)
    return max(1, height * target // source), max(1, width * target // source), target / source


def resized_size_tf(
    height: tf.Tensor, width: tf.Tensor, shorter: tf.Tensor | int, longer: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`resized_size` on tensors of integers: (int32, int32, float32), of the same shape as `height`."""
    height, width, shorter, longer = (tf.cast(value, tf.int64) for value in (height, width, shorter, longer))
    low, high = tf.minimum(height, width), tf.maximum(height, width)
    short_decides = shorter * high <= longer * low
    target = tf.where(short_decides, shorter, longer)
    source = tf.where(short_decides, low, high)
    new_height = tf.maximum(height * target // source, 1)
    new_width = tf.maximum(width * target // source, 1)
    factor = tf.cast(tf.cast(target, tf.float64) / tf.cast(source, tf.float64), tf.float32)
    return tf.cast(new_height, tf.int32), tf.cast(new_width, tf.int32), factor
