"""The feature pyramid network (Lin et al. 2017; section 3, network architecture).

Shape letters: B images, H W pixels, C channels.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.config import FPNConfig
from mrcnn_tf.layers.conv_norm import ConvNorm

STRIDES = (4, 8, 16, 32, 64)  # of P2..P6


@keras.saving.register_keras_serializable("mrcnn_tf")
class AddUpsampled(keras.layers.Layer):
    """lateral [B, 2H, 2W, C] plus top [B, H, W, C] with every cell doubled along both sides."""

    def call(self, lateral, top):
        shape = tf.shape(top)
        return lateral + tf.image.resize(top, 2 * shape[1:3], method="nearest")

    def compute_output_shape(self, lateral_shape, top_shape):
        return lateral_shape


def fpn(features: list[keras.KerasTensor], config: FPNConfig, epsilon: float = 1e-5) -> list[keras.KerasTensor]:
    """P2..P6 [B, H / stride, W / stride, channels] of C2..C5; P6 is every second cell of P5.

    `epsilon` is that of the norms, where `config.norm` asks for some.
    """
    lateral, output = [], []
    for level, feature in zip(range(2, 6), features):
        lateral.append(_conv(config, epsilon, 1, f"fpn_lateral{level}")(feature))
    for index in (2, 1, 0):
        lateral[index] = AddUpsampled(name=f"fpn_add{index + 2}")(lateral[index], lateral[index + 1])
    for level, feature in zip(range(2, 6), lateral):
        output.append(_conv(config, epsilon, 3, f"fpn_output{level}")(feature))
    output.append(keras.layers.MaxPooling2D(1, strides=2, name="fpn_p6")(output[-1]))
    return output


def _conv(config: FPNConfig, epsilon: float, size: int, name: str) -> keras.layers.Layer:
    # Xavier's uniform as in the reference implementations: no ReLU follows these convolutions.
    start = {"kernel_initializer": "glorot_uniform", "name": name}
    if config.norm == "none":
        return keras.layers.Conv2D(config.channels, size, padding="same", **start)
    return ConvNorm(config.channels, size, norm=config.norm, epsilon=epsilon, activation=None, **start)
