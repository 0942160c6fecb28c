"""The 3x3 convolutions with which the branches on RoI features begin.

Shape letters: N RoIs, S side of the pooled feature, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mrcnn_tf.layers.conv_norm import ConvNorm


def he_normal() -> keras.initializers.Initializer:
    """He's normal of the fan-out, the start of the branches' convolutions (Detectron2's MSRA fill)."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


def relu_convs(widths: Sequence[int], prefix: str, norm: str = "none", epsilon: float = 1e-5) -> list:
    """3x3 convolutions with ReLU, [N, S, S, C] -> [N, S, S, width], named `prefix` and a number from 1.

    They have a bias where `norm` is "none", and else that norm in its place.
    """
    names = [f"{prefix}{number}" for number in range(1, len(widths) + 1)]
    if norm != "none":
        return [ConvNorm(width, 3, norm=norm, epsilon=epsilon, name=name) for width, name in zip(widths, names)]
    return [
        keras.layers.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer=he_normal(), name=name)
        for width, name in zip(widths, names)
    ]
