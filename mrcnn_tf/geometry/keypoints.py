"""Keypoints: where a region's heat maps put them, and the one-hot targets the heat maps learn from (section 5).

Shape letters: D detections, N regions, S side of a heat map, J keypoints, H W a detection's box in whole pixels.
"""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops

# The cubic's slope at distance 1, as in torch's bicubic interpolation; it decides which pixel wins.
_CUBIC_SLOPE = -0.75


def decode_heatmaps(heatmaps: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """The best pixel of each heat map stretched over its box: torchvision's and Detectron2's decoding.

    A map is resized bicubically to the box's size rounded up to whole pixels; the largest value's pixel, carried back
    to the box's real size, is the keypoint, and that value its score.

    Args:
        heatmaps: [D, S, S, J], logits. boxes: [D, 4] in pixels.

    Returns:
        [D, J, 3] float32 (y, x, score); zeros for a box without area. One detection is resized at a time, so the
        memory is a few times that of the largest resized map, 4 J H W bytes.
    """
    keypoints = heatmaps.shape[-1]
    heatmaps, boxes = tf.cast(heatmaps, tf.float32), tf.cast(boxes, tf.float32)

    def nothing():
        return tf.zeros([keypoints, 3])

    def decode_one(values):
        heatmap, box = values
        return tf.cond(box_ops.area(box) > 0.0, lambda: _decode(heatmap, box), nothing)

    form = tf.TensorSpec([keypoints, 3], tf.float32)
    return tf.map_fn(decode_one, (heatmaps, boxes), fn_output_signature=form, parallel_iterations=1)


def heatmap_targets(keypoints: tf.Tensor, rois: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The cell of the heat map that each keypoint lies in (section 5: one-hot masks).

    Args:
        keypoints: [N, J, 3] (y, x in pixels, visibility). rois: [N, 4] in the same pixels. side: S.

    Returns:
        index [N, J] int32, row * S + column, 0 where not valid; valid [N, J] float32, 1 for a labelled keypoint inside
        the region: the paper speaks of visible ones, and its code counts those that are hidden but labelled too. A
        keypoint on the far border belongs to the last cell.
    """
    place = keypoints[..., :2]
    low, high = rois[:, None, :2], rois[:, None, 2:]
    inside = tf.reduce_all((place >= low) & (place <= high) & (high > low), axis=-1)
    valid = inside & (keypoints[..., 2] > 0)
    extent = tf.where(high > low, high - low, 1.0)
    relative = tf.where(valid[..., None], (place - low) * (side / extent), 0.0)
    cell = tf.minimum(tf.cast(tf.floor(relative), tf.int32), side - 1)
    return cell[..., 0] * side + cell[..., 1], tf.cast(valid, tf.float32)


def _decode(heatmap: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """[J, 3] (y, x, score) of one detection's heat maps [S, S, J] and its box [4]."""
    sides = tf.maximum(box[2:] - box[:2], 1.0)
    pixels = tf.cast(tf.math.ceil(sides), tf.int32)
    resized = _resize(_resize(heatmap, 1, pixels[1]), 0, pixels[0])  # [H, W, J]
    # The first row that holds the largest value, then its first column: the same pixel as over the flat map.
    row = tf.argmax(tf.reduce_max(resized, axis=1), axis=0, output_type=tf.int32)
    line = tf.linalg.diag_part(tf.transpose(tf.gather(resized, row), [1, 0, 2]))  # [W, J]: map j's row[j]
    column = tf.argmax(line, axis=0, output_type=tf.int32)
    place = (tf.cast(tf.stack([row, column], axis=-1), tf.float32) + 0.5) * (sides / tf.cast(pixels, tf.float32))
    return tf.concat([place + box[:2], tf.reduce_max(line, axis=0)[:, None]], axis=-1)


def _resize(maps: tf.Tensor, axis: int, length: tf.Tensor) -> tf.Tensor:
    """`maps` [.., .., J] with `axis` (0 or 1) resized to `length` bicubically; cells repeat past the border.

    A sum of four taps and not a matrix product, which GPUs round to the 10 bits of TF32: enough to move the maximum.
    """
    side = maps.shape[axis]
    position = (tf.cast(tf.range(length), tf.float32) + 0.5) * (float(side) / tf.cast(length, tf.float32)) - 0.5
    before = tf.floor(position)
    total = 0.0
    for tap in (-1.0, 0.0, 1.0, 2.0):
        cell = tf.clip_by_value(tf.cast(before + tap, tf.int32), 0, side - 1)
        weight = _cubic(tf.abs(position - before - tap))
        total += tf.gather(maps, cell, axis=axis) * tf.reshape(weight, [-1, 1, 1] if axis == 0 else [1, -1, 1])
    return total


def _cubic(distance: tf.Tensor) -> tf.Tensor:
    """Cubic convolution's kernel at distances from 0 to 2."""
    a, d = _CUBIC_SLOPE, distance
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    return tf.where(d <= 1.0, near, far)
