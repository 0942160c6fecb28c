"""RoIAlign on a feature pyramid.

Shape letters: B images, H_l W_l the map of a level, C channels, N regions, S side of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import crops
from mrcnn_tf.layers.base import Float32Layer, spec


@keras.saving.register_keras_serializable("mrcnn_tf")
class RoIAlign(Float32Layer):
    """Small maps of fixed size under regions of any size, without quantisation (section 3, RoIAlign).

    Every cell of the output is the mean of `samples` x `samples` bilinear samples. Each region is read from one level
    of the pyramid, by its size (equation 1 of the FPN paper).

    Args:
        size: S. samples: sampling points per cell and side.
        half_pixel: cell (i, j) of a map has its centre at (i + .5, j + .5) strides. Without it (the first torchvision
            checkpoints) the centre is at (i, j), and regions are widened to at least one cell.
        canonical_size, canonical_level: a region of that size in pixels belongs to that level.
        strides: pixels per cell of the given levels, each twice the one before.

    Call arguments:
        features: list of maps [B, H_l, W_l, C], level P2 first. boxes: [N, 4] in pixels.
        image_index: [N] int32, the image of each box.

    Returns:
        [N, S, S, C] float32, in the order of the boxes.
    """

    def __init__(
        self,
        size: int,
        samples: int = 2,
        half_pixel: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = int(size)
        self.samples = int(samples)
        self.half_pixel = bool(half_pixel)
        self.canonical_size = float(canonical_size)
        self.canonical_level = int(canonical_level)
        self.strides = tuple(int(stride) for stride in strides)

    def call(self, features: Sequence[tf.Tensor], boxes: tf.Tensor, image_index: tf.Tensor) -> tf.Tensor:
        boxes = tf.stop_gradient(boxes)
        image_index = tf.cast(image_index, tf.int32)
        if len(features) == 1:
            return self._align(features[0], boxes, image_index, self.strides[0])
        level = assign_levels(boxes, len(features), self.strides[0], self.canonical_size, self.canonical_level)
        pooled, places = [], []
        for i, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            place = tf.cast(tf.where(tf.equal(level, i))[:, 0], tf.int32)
            own_boxes, own_images = tf.gather(boxes, place), tf.gather(image_index, place)
            pooled.append(self._align(feature, own_boxes, own_images, stride))
            places.append(place)
        pooled = tf.dynamic_stitch(places, pooled)
        return tf.ensure_shape(pooled, [None, self.size, self.size, features[0].shape[-1]])

    def _align(self, feature, boxes, image_index, stride):
        """[n, S, S, C] of the n boxes [n, 4] that lie on this map [B, H, W, C]."""
        low, high = boxes[:, :2] / stride, boxes[:, 2:] / stride
        if self.half_pixel:
            low, high = low - 0.5, high - 0.5
        else:
            high = low + tf.maximum(high - low, 1.0)
        grid = self.size * self.samples
        half_step = (high - low) / (2 * grid)
        # Values are held for one cell beyond the border and 0 further out: the cell is added to the map.
        feature = tf.pad(tf.cast(feature, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")
        last_cell = tf.cast(tf.shape(feature)[1:3] - 1, tf.float32)
        corners = tf.concat([(low + half_step + 1.0) / last_cell, (high - half_step + 1.0) / last_cell], axis=-1)
        return crops.crop_and_average(feature, corners, image_index, self.size, self.samples)

    def compute_output_spec(self, features, boxes, image_index):
        return spec(boxes.shape[0], self.size, self.size, features[0].shape[-1])

    def get_config(self) -> dict:
        names = ("size", "samples", "half_pixel", "canonical_size", "canonical_level", "strides")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def assign_levels(
    boxes: tf.Tensor, levels: int, finest_stride: int, canonical_size: float, canonical_level: int
) -> tf.Tensor:
    """Which of `levels` maps each box [N, 4] is read from, [N] int32, 0 the finest (equation 1 of the FPN paper).

    k = floor(canonical_level + log2(sqrt(area) / canonical_size)), cut to the maps there are; level k has stride 2^k.
    """
    finest = finest_stride.bit_length() - 1
    size = tf.sqrt(box_ops.area(boxes))
    # Comparing sizes needs no logarithm of an empty box. The factor is torchvision's tolerance of 1e-6 levels, without
    # which a box of exactly the canonical size would depend on rounding.
    limits = [canonical_size * 2.0 ** (finest + i - canonical_level - 1e-6) for i in range(1, levels)]
    return tf.reduce_sum(tf.cast(size[:, None] >= tf.constant(limits)[None], tf.int32), axis=-1)
