"""The keypoint branch on RoI features: one heat map per keypoint (section 5).

Shape letters: N RoIs, S side of the pooled feature, C channels, J keypoints.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.config import KeypointHeadConfig
from mrcnn_tf.networks.convs import he_normal, relu_convs


@keras.saving.register_keras_serializable("mrcnn_tf")
class Deconv4x4(keras.layers.Layer):
    """The 4 x 4 deconvolution of stride 2 with a bias: [N, S, S, C] -> [N, 2 S, 2 S, filters].

    `kernel` is [4, 4, filters, C]; one cell is cut off each side, as with a padding of 1 in PyTorch.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        shape = (4, 4, self.filters, input_shape[-1])
        # The fan-out in this layout counts the C channels, as Detectron2's does in its own.
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=he_normal())
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        self.built = True

    def call(self, inputs):
        count, height, width, _ = tf.unstack(tf.shape(inputs))
        shape = tf.stack([count, 2 * height, 2 * width, self.filters])
        x = tf.nn.conv2d_transpose(inputs, tf.cast(self.kernel, inputs.dtype), shape, 2, "SAME")
        return tf.ensure_shape(
            tf.nn.bias_add(x, tf.cast(self.bias, inputs.dtype)), self.compute_output_shape(inputs.shape)
        )

    def compute_output_shape(self, input_shape):
        doubled = [None if side is None else 2 * side for side in input_shape[1:3]]
        return (input_shape[0], *doubled, self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("mrcnn_tf")
class UpsampleBilinear(keras.layers.Layer):
    """[N, S, S, J] -> [N, 2 S, 2 S, J] float32: bilinear between the cells' centres, constant past the outer ones."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, inputs):
        resized = tf.image.resize(inputs, 2 * tf.shape(inputs)[1:3], method="bilinear", antialias=False)
        return tf.ensure_shape(resized, self.compute_output_shape(inputs.shape))

    def compute_output_shape(self, input_shape):
        doubled = [None if side is None else 2 * side for side in input_shape[1:3]]
        return (input_shape[0], *doubled, input_shape[3])


class KeypointHead:
    """The layers of the keypoint branch; calling it twice shares the weights.

    The deconvolution is 4 x 4 and gives the J maps at once, as in the published code; section 5 only likens the head to
    that of masks, whose deconvolution is 2 x 2 with a ReLU.

    Call: RoI features [N, S, S, C] -> logits of the heat maps [N, 4 S, 4 S, J], float32.
    """

    def __init__(self, config: KeypointHeadConfig):
        self.layers = [
            *relu_convs(config.convs, "keypoint_conv"),
            Deconv4x4(len(config.names), name="keypoint_deconv"),
            UpsampleBilinear(name="keypoint_upsample"),
        ]

    def __call__(self, features: keras.KerasTensor) -> keras.KerasTensor:
        x = features
        for layer in self.layers:
            x = layer(x)
        return x
