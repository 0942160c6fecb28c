"""RoIAlign, and what all RoI layers share: the feature pyramid and the order of the regions.

Shape letters: B images, H_l W_l the map of a level, C channels, N regions of all images, n those of one level, S side
of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import crops
from mrcnn_tf.geometry.adaptive_crops import crop_adaptively
from mrcnn_tf.layers.base import Float32Layer, spec


class RoILayer(Float32Layer):
    """Small maps of fixed size under regions of any size: each region is read from one level of the pyramid.

    The level follows from the region's size (equation 1 of the FPN paper). A subclass says in `pool_level` how regions
    are read from one map. No gradient reaches the boxes.

    Args:
        size: S.
        canonical_size, canonical_level: a region of that size in pixels belongs to that level.
        strides: pixels per cell of the given levels, each twice the one before; a single one for a single map.

    Call arguments:
        features: list of maps [B, H_l, W_l, C], finest level first. boxes: [N, 4] in pixels.
        image_index: [N] int32, the image of each box.

    Returns:
        [N, S, S, C] float32, in the order of the boxes.
    """

    def __init__(
        self,
        size: int,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = int(size)
        self.canonical_size = float(canonical_size)
        self.canonical_level = int(canonical_level)
        self.strides = tuple(int(stride) for stride in strides)

    def pool_level(self, feature: tf.Tensor, boxes: tf.Tensor, image_index: tf.Tensor, stride: int) -> tf.Tensor:
        """[n, S, S, C] of the n boxes [n, 4] that lie on this map [B, H, W, C], both float32."""
        raise NotImplementedError

    def call(self, features: Sequence[tf.Tensor], boxes: tf.Tensor, image_index: tf.Tensor) -> tf.Tensor:
        boxes = tf.stop_gradient(boxes)
        image_index = tf.cast(image_index, tf.int32)
        if len(features) == 1:
            return self._level(features[0], boxes, image_index, self.strides[0])
        level = assign_levels(boxes, len(features), self.strides[0], self.canonical_size, self.canonical_level)
        pooled, places = [], []
        for i, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            place = tf.cast(tf.where(tf.equal(level, i))[:, 0], tf.int32)
            own_boxes, own_images = tf.gather(boxes, place), tf.gather(image_index, place)
            pooled.append(self._level(feature, own_boxes, own_images, stride))
            places.append(place)
        return tf.dynamic_stitch(places, pooled)

    def _level(self, feature, boxes, image_index, stride):
        pooled = self.pool_level(tf.cast(feature, tf.float32), boxes, image_index, stride)
        return tf.ensure_shape(pooled, [None, self.size, self.size, feature.shape[-1]])

    def compute_output_spec(self, features, boxes, image_index):
        return spec(boxes.shape[0], self.size, self.size, features[0].shape[-1])

    def get_config(self) -> dict:
        names = ("size", "canonical_size", "canonical_level", "strides")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("mrcnn_tf")
class RoIAlign(RoILayer):
    """RoI features without any quantisation (section 3, RoIAlign).

    Every cell of the output is the mean, or the maximum, of `samples` x `samples` bilinear samples.

    Args:
        size: S. samples: sampling points per cell and side. 0 gives each region its own numbers of rows and columns, so
            that samples are at most one cell of the map apart: Detectron2's sampling_ratio 0. A region without height
            or width then has no samples and gives 0.
        half_pixel: cell (i, j) of a map has its centre at (i + .5, j + .5) strides. Without it (the first torchvision
            checkpoints) the centre is at (i, j), and regions are widened to at least one cell.
        reduce: "mean" or "max", how the samples of a cell become one (table 2c finds both equally good).
        canonical_size, canonical_level, strides: as of every `RoILayer`, whose call it has too.
    """

    def __init__(
        self,
        size: int,
        samples: int = 2,
        half_pixel: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32),
        reduce: str = "mean",
        **kwargs,
    ):
        super().__init__(size, canonical_size, canonical_level, strides, **kwargs)
        self.samples = int(samples)
        if self.samples < 0:
            raise ValueError(f"samples={samples}: at least 0, which means as many as the region needs")
        self.half_pixel = bool(half_pixel)
        if reduce not in ("mean", "max"):
            raise ValueError(f"reduce={reduce!r}: 'mean' or 'max'")
        self.reduce = reduce

    def extent(self, boxes: tf.Tensor, stride: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The corners [n, 2] between which boxes [n, 4] are sampled, where cell (i, j) has its centre at (i, j)."""
        low, high = boxes[:, :2] / stride, boxes[:, 2:] / stride
        if self.half_pixel:
            return low - 0.5, high - 0.5
        return low, low + tf.maximum(high - low, 1.0)

    def pool_level(self, feature: tf.Tensor, boxes: tf.Tensor, image_index: tf.Tensor, stride: int) -> tf.Tensor:
        low, high = self.extent(boxes, stride)
        if self.samples == 0:
            return self._pool_adaptively(feature, low, high, image_index)
        grid = self.size * self.samples
        half_step = (high - low) / (2 * grid)
        feature = _with_border(feature)
        last_cell = tf.cast(tf.shape(feature)[1:3] - 1, tf.float32)
        corners = tf.concat([(low + half_step + 1.0) / last_cell, (high - half_step + 1.0) / last_cell], axis=-1)
        if self.reduce == "mean":
            return crops.crop_and_average(feature, corners, image_index, self.size, self.samples)
        sampled = crops.crop_and_average(feature, corners, image_index, grid, 1)
        # Not by max_pool2d, whose gradient fails for a level without boxes.
        bins = [-1, self.size, self.samples, self.size, self.samples, sampled.shape[-1]]
        return tf.reduce_max(tf.reshape(sampled, bins), axis=(2, 4))

    def _pool_adaptively(self, feature, low, high, image_index):
        # Divided in float64 and rounded, since graphs turn a division into a product: 7 cells in 7 bins must not
        # become two samples each.
        cells = tf.cast(tf.cast(high - low, tf.float64) / self.size, tf.float32)
        # No map has bins of so many cells; and what is not a number fails both comparisons.
        sane = (cells > 0.0) & (cells < 2.0**15)
        counts = tf.cast(tf.where(sane, tf.math.ceil(cells), 0.0), tf.int64)
        step = (high - low) / tf.cast(self.size * tf.maximum(counts, 1), tf.float32)
        return crop_adaptively(_with_border(feature), low + 1.0, step, counts, image_index, self.size, self.reduce)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "samples": self.samples,
            "half_pixel": self.half_pixel,
            "reduce": self.reduce,
        }


def _with_border(feature: tf.Tensor) -> tf.Tensor:
    """A map with one cell more on each side: values are held so far beyond the border, and 0 further out."""
    return tf.pad(feature, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")


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
