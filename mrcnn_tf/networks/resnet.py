"""Residual networks (He et al. 2016) as backbones: C2..C5 of an image.

Shape letters: B images, H W pixels, C channels.
"""

from __future__ import annotations

import keras

from mrcnn_tf.config import BackboneConfig
from mrcnn_tf.layers.conv_norm import ConvNorm

# Blocks of conv2..conv5, and whether a block is a bottleneck (1x1, 3x3, 1x1) or basic (3x3, 3x3).
DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
STAGES = (2, 3, 4, 5)


def resnet(images: keras.KerasTensor, config: BackboneConfig) -> list[keras.KerasTensor]:
    """C2, C3, C4, C5 of normalised images [B, H, W, C], at strides 4, 8, 16, 32.

    Layers are called `stem`, `res{stage}_block{number}_conv{1, 2, 3}` and `..._shortcut`; those of
    the first `config.frozen_stages` stages are not trained.
    """
    blocks, bottleneck = DEPTHS[config.name]
    x = _conv(config, 1, "stem", 64, 7, 2)(images)
    x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)  # after a ReLU zero is the least value
    x = keras.layers.MaxPooling2D(3, strides=2, padding="valid", name="stem_pool")(x)
    features = []
    for stage, count in zip(STAGES, blocks):
        for number in range(1, count + 1):
            stride = 2 if stage > 2 and number == 1 else 1
            build = _bottleneck if bottleneck else _basic
            x = build(x, config, stage, f"res{stage}_block{number}", stride)
        features.append(x)
    return features


def _conv(config: BackboneConfig, stage: int, name: str, filters: int, size: int, stride: int, activation="relu"):
    layer = ConvNorm(
        filters, size, stride, norm=config.norm, epsilon=config.norm_epsilon, activation=activation, name=name
    )
    layer.trainable = stage > config.frozen_stages
    if config.norm == "frozen":
        layer.norm.trainable = False  # a trainable parent would set it to True again
    return layer


def _bottleneck(x, config: BackboneConfig, stage: int, name: str, stride: int):
    filters = 64 * 2 ** (stage - 2)
    first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride)
    y = _conv(config, stage, f"{name}_conv1", filters, 1, first)(x)
    y = _conv(config, stage, f"{name}_conv2", filters, 3, second)(y)
    y = _conv(config, stage, f"{name}_conv3", 4 * filters, 1, 1, None)(y)
    return _join(x, y, config, stage, name, stride)


def _basic(x, config: BackboneConfig, stage: int, name: str, stride: int):
    filters = 64 * 2 ** (stage - 2)
    y = _conv(config, stage, f"{name}_conv1", filters, 3, stride)(x)
    y = _conv(config, stage, f"{name}_conv2", filters, 3, 1, None)(y)
    return _join(x, y, config, stage, name, stride)


def _join(x, y, config: BackboneConfig, stage: int, name: str, stride: int):
    """The sum of a block's branch `y` and its input `x`, which is projected where the shapes differ."""
    filters = y.shape[-1]
    if stride != 1 or x.shape[-1] != filters:
        x = _conv(config, stage, f"{name}_shortcut", filters, 1, stride, None)(x)
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_out")(y)
