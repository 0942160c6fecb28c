"""Masks: training targets from the crops that ground truth travels in, and pasting of predictions.

Shape letters: P regions, C crops of side S, M mask side, D detections, H W the image. Boxes in the pixels of one image.
"""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops

# Sampling points per cell and side of a mask target; 2 x 2 as RoIAlign takes.
_SAMPLES = 2


def mask_targets(
    crops: tf.Tensor,
    crop_index: tf.Tensor,
    gt_boxes: tf.Tensor,
    rois: tf.Tensor,
    side: int,
) -> tf.Tensor:
    """What the mask branch should answer for each region (section 3: the intersection of RoI and ground truth mask).

    Args:
        crops: [C, S, S] uint8, 0..255 coverage of an object inside its own box.
        crop_index: [P] int32, the crop of each region.
        gt_boxes: [P, 4], the box that the region's crop fills.
        rois: [P, 4], the regions, in the same pixels.
        side: cells of the target along each axis (M).

    Returns:
        [P, M, M] float32 of 0 and 1: 1 where the object covers at least half of the cell, by the mean of 2 x 2
        bilinear samples of its crop; nothing is outside the crop.
    """
    crop_side = tf.cast(tf.shape(crops)[1], tf.float32)
    # One pixel of nothing around each crop, so that coverage fades out at the box as it does at inner borders.
    padded = tf.pad(crops, [[0, 0], [1, 1], [1, 1]])[..., None]
    height, width = box_ops.sides(gt_boxes)
    extent = tf.maximum(tf.stack([height, width, height, width], axis=-1), 1e-6)
    origin = tf.concat([gt_boxes[:, :2], gt_boxes[:, :2]], axis=-1)
    relative = (rois - origin) / extent * crop_side  # in the crop's continuous pixels
    half_step = (relative[:, 2:] - relative[:, :2]) / (2 * side * _SAMPLES)
    # -0.5: continuous pixels to pixel centres; +1: the padding.
    first = relative[:, :2] + half_step + 0.5
    last = relative[:, 2:] - half_step + 0.5
    normalised = tf.concat([first, last], axis=-1) / (crop_side + 1)
    sampled = tf.image.crop_and_resize(padded, normalised, crop_index, [side * _SAMPLES, side * _SAMPLES])
    coverage = tf.reduce_mean(tf.reshape(sampled, [-1, side, _SAMPLES, side, _SAMPLES]), axis=[2, 4])
    return tf.cast(coverage >= 127.5, tf.float32)


def paste_masks(masks: tf.Tensor, boxes: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """Masks resized to their boxes and laid on the image (section 3.1, inference); cut the result at .5.

    Pixel centre p samples the mask bilinearly at (p + .5 - y1) / (y2 - y1) * M - .5, with nothing outside the mask,
    which is Detectron2's definition. Bilinear weights are separable, so this is two matrix products.

    Args:
        masks: [D, M, M] in [0, 1]. boxes: [D, 4] in the image's pixels. height, width: the image's.

    Returns:
        [D, H, W] float32; nothing at all for a box without area.
    """
    side = masks.shape[1]
    rows = _bilinear_weights(boxes[:, 0], boxes[:, 2], height, side)
    columns = _bilinear_weights(boxes[:, 1], boxes[:, 3], width, side)
    return tf.matmul(tf.matmul(rows, masks), columns, transpose_b=True)


def torchvision_boxes(boxes: tf.Tensor, side: int) -> tf.Tensor:
    """What torchvision makes of boxes [..., 4] before it stretches masks of `side` cells over them.

    It grows a box by one cell on every side, cuts the corners of that to integers and counts the last pixel in;
    `pasting.torchvision_boxes` is the same in numpy. Empty boxes stay as they are.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    middle, half = (high + low) * 0.5, (high - low) * 0.5 * ((side + 2) / side)
    # A cast to integers cuts towards zero.
    first, last = (tf.cast(tf.cast(value, tf.int32), tf.float32) for value in (middle - half, middle + half))
    extent = tf.maximum(last - first + 1.0, 1.0)
    cell = extent / (side + 2)
    real = tf.reduce_all(high > low, axis=-1, keepdims=True)
    return tf.where(real, tf.concat([first + cell, first + extent - cell], axis=-1), boxes)


def _bilinear_weights(low: tf.Tensor, high: tf.Tensor, length: tf.Tensor | int, side: int) -> tf.Tensor:
    """Weights [D, length, M] of the M mask cells between `low` and `high` [D] at each of `length` pixels."""
    pixels = tf.cast(tf.range(length), tf.float32) + 0.5
    extent = high - low
    relative = (pixels[None] - low[:, None]) / tf.maximum(extent, 1e-6)[:, None] * side - 0.5
    cells = tf.range(side, dtype=tf.float32)
    weights = tf.maximum(1.0 - tf.abs(relative[..., None] - cells), 0.0)
    return tf.where((extent > 0.0)[:, None, None], weights, 0.0)
