"""Residual networks as backbones: ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017).

Shape letters: B images, H W pixels, C channels, N RoIs, S side of the pooled feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras

from mrcnn_tf.config import BackboneConfig
from mrcnn_tf.layers.conv_norm import ConvNorm


@dataclass(frozen=True)
class Design:
    """Blocks of res2..res5; whether a block is a bottleneck (1x1, 3x3, 1x1) or basic (3x3, 3x3); its width.

    A bottleneck's width in res2 is `groups` * `group_width` channels and doubles with each stage; its 3x3
    convolution works on `groups` groups of channels apart.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64


DESIGNS = {
    "resnet18": Design((2, 2, 2, 2), bottleneck=False),
    "resnet34": Design((3, 4, 6, 3), bottleneck=False),
    "resnet50": Design((3, 4, 6, 3)),
    "resnet101": Design((3, 4, 23, 3)),
    "resnet152": Design((3, 8, 36, 3)),
    "resnext50_32x4d": Design((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Design((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Design((3, 4, 23, 3), groups=64, group_width=4),
}
STAGES = (2, 3, 4, 5)


def resnet(images: keras.KerasTensor, config: BackboneConfig) -> list[keras.KerasTensor]:
    """The feature maps of normalised images [B, H, W, C] that `config.features` asks for (table 2a).

    "fpn": C2, C3, C4, C5 at strides 4, 8, 16, 32. "c4": [C4] at stride 16; res5 is a head then (`Res5`). "c5": [C5]
    at stride 32. "dc5": [C5] at stride 16, where res5 keeps the resolution and its 3x3 convolutions have dilation 2.

    Layers are called `stem`, `res{stage}_block{number}_conv{1, 2, 3}` and `..._shortcut`; those of
    the first `config.frozen_stages` stages are not trained.
    """
    x = _conv(config, 1, "stem", 64, 7, 2)(images)
    if config.pool_padding == "symmetric":
        x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)  # after a ReLU zero is the least value
    padding = "valid" if config.pool_padding == "symmetric" else "same"
    x = keras.layers.MaxPooling2D(3, strides=2, padding=padding, name="stem_pool")(x)
    maps = {}
    for stage in STAGES if config.features != "c4" else STAGES[:-1]:
        dilated = stage == 5 and config.features == "dc5"
        stride = 1 if stage == 2 or dilated else 2
        for block in _stage(config, stage, stride, dilation=2 if dilated else 1):
            x = block(x)
        maps[stage] = x
    return list(maps.values()) if config.features == "fpn" else [x]


class Res5:
    """res5 as the head of the features "c4" (figure 3, left); calling it again shares the weights.

    Call: RoI features [N, S, S, C] -> [N, S / stride, S / stride, 2 C], rounded up. Its layers are called as those of a
    backbone's res5 are. The paper gives the first block stride 1 on S = 7, Detectron2 stride 2 on S = 14.
    """

    def __init__(self, config: BackboneConfig, stride: int):
        self.blocks = _stage(config, 5, stride)

    def __call__(self, features: keras.KerasTensor) -> keras.KerasTensor:
        for block in self.blocks:
            features = block(features)
        return features


class _Block:
    """The layers of one residual block; `stride` is that of the whole block."""

    def __init__(self, config: BackboneConfig, stage: int, number: int, stride: int, dilation: int):
        design = DESIGNS[config.name]
        name = f"res{stage}_block{number}"
        width = design.groups * design.group_width * 2 ** (stage - 2)
        filters = (256 if design.bottleneck else 64) * 2 ** (stage - 2)
        if design.bottleneck:
            first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride)
            self.convs = [
                _conv(config, stage, f"{name}_conv1", width, 1, first),
                _conv(config, stage, f"{name}_conv2", width, 3, second, groups=design.groups, dilation=dilation),
                _conv(config, stage, f"{name}_conv3", filters, 1, 1, activation=None),
            ]
        else:
            self.convs = [
                _conv(config, stage, f"{name}_conv1", filters, 3, stride, dilation=dilation),
                _conv(config, stage, f"{name}_conv2", filters, 3, 1, dilation=dilation, activation=None),
            ]
        # Only a stage's first block changes the shape; that of res2's basic blocks is the stem's.
        changes = number == 1 and (design.bottleneck or stage > 2)
        self.shortcut = (
            _conv(config, stage, f"{name}_shortcut", filters, 1, stride, activation=None) if changes else None
        )
        self.add = keras.layers.Add(name=f"{name}_add")
        self.out = keras.layers.ReLU(name=f"{name}_out")

    def __call__(self, x: keras.KerasTensor) -> keras.KerasTensor:
        y = x
        for conv in self.convs:
            y = conv(y)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return self.out(self.add([y, x]))


def _stage(config: BackboneConfig, stage: int, stride: int, dilation: int = 1) -> list[_Block]:
    """The blocks of a stage, the first of which has the stride."""
    count = DESIGNS[config.name].blocks[stage - 2]
    return [_Block(config, stage, number, stride if number == 1 else 1, dilation) for number in range(1, count + 1)]


def _conv(config: BackboneConfig, stage: int, name: str, filters: int, size: int, stride: int, **kwargs) -> ConvNorm:
    layer = ConvNorm(filters, size, stride, norm=config.norm, epsilon=config.norm_epsilon, name=name, **kwargs)
    layer.trainable = stage > config.frozen_stages
    if config.norm == "frozen":
        layer.norm.trainable = False  # a trainable parent would set it to True again
    return layer
