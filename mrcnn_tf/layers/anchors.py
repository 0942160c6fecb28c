"""Anchors of all pyramid levels, and other boxes as anchors that were shrunk want them.

Shape letters: B images, L levels, A anchors at one position, H_l W_l the map of a level, N_l = H_l * W_l * A, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import anchors as anchor_ops
from mrcnn_tf.layers.base import Float32Layer, spec


@keras.saving.register_keras_serializable("mrcnn_tf")
class Anchors(Float32Layer):
    """One list of anchors per level, for the maps of whatever size comes (section 3; FPN section 4.1).

    Args:
        sizes: for each level, the square roots of its anchors' areas in pixels.
        ratios: height / width, the same on every level.
        offset: shift of the centres as a share of the stride.
        rounded: whole-pixel corners, as torchvision has them.
        strides: pixels of the input per cell, for each level.
        stride_rule: "level" places the centres `strides` apart; "image" the image's side // the map's side, as
            torchvision does. The image's sides are those of the first map times its stride.
        shrink: pixels taken off the lower and the right side of every anchor.

    Call arguments:
        features: list of L maps [B, H_l, W_l, C]; only their sizes matter.

    Returns:
        List of L tensors [N_l, 4], float32 [y1, x1, y2, x2] in pixels, position by position.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        offset: float = 0.0,
        rounded: bool = False,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        stride_rule: str = "level",
        shrink: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sizes = tuple(tuple(float(size) for size in level) for level in sizes)
        self.ratios = tuple(float(ratio) for ratio in ratios)
        self.offset = float(offset)
        self.rounded = bool(rounded)
        self.strides = tuple(int(stride) for stride in strides)
        self.stride_rule = stride_rule
        self.shrink = float(shrink)
        if len(self.sizes) != len(self.strides):
            raise ValueError(f"{len(self.sizes)} levels of anchor sizes do not fit {len(self.strides)} strides")

    def call(self, features: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        anchors = []
        image = tuple(side * self.strides[0] for side in _sides(features[0]))
        for feature, stride, sizes in zip(features, self.strides, self.sizes, strict=True):
            cell = anchor_ops.cell_anchors(sizes, self.ratios, self.rounded, self.shrink)
            sides = _sides(feature)
            if self.stride_rule == "image":
                stride = tuple(pixels // cells for pixels, cells in zip(image, sides))
            anchors.append(anchor_ops.grid_anchors(sides, stride, cell, self.offset))
        return anchors

    def compute_output_spec(self, features):
        specs = []
        for feature, sizes in zip(features, self.sizes):
            known = None not in feature.shape[1:3]
            per_position = len(sizes) * len(self.ratios)
            specs.append(spec(feature.shape[1] * feature.shape[2] * per_position if known else None, 4))
        return specs

    def get_config(self) -> dict:
        names = ("sizes", "ratios", "offset", "rounded", "strides", "stride_rule", "shrink")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("mrcnn_tf")
class MoveFarCorner(Float32Layer):
    """The lower and right sides of boxes moved outwards by so many pixels, or inwards (`AnchorConfig.shrink`).

    Between anchors of which one pixel was taken and the final detections, a box ends on its last pixel; outside, where
    that pixel ends. Matterport's weights were trained so.

    Args:
        pixels: outwards; negative ones inwards, but no more than half of a box.

    Call arguments:
        boxes: [B, N, 4] in pixels; empty ones stay as they are.
    """

    def __init__(self, pixels: float, **kwargs):
        super().__init__(**kwargs)
        self.pixels = float(pixels)

    def call(self, boxes: tf.Tensor) -> tf.Tensor:
        near, far = boxes[..., :2], boxes[..., 2:]
        moved = tf.maximum(far + self.pixels, (near + far) / 2)
        real = tf.reduce_all(far > near, axis=-1, keepdims=True)
        return tf.concat([near, tf.where(real, moved, far)], axis=-1)

    def compute_output_spec(self, boxes):
        return spec(*boxes.shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "pixels": self.pixels}


def _sides(feature: tf.Tensor) -> tuple:
    """Height and width of a map, as integers where they are known, else as tensors."""
    return tuple(feature.shape[i] or tf.shape(feature)[i] for i in (1, 2))
