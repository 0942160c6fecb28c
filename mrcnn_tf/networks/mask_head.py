"""The mask branch on RoI features: one mask per class (figure 3), and what the paper compares with.

Shape letters: N RoIs, S side of the pooled feature, M = 2 S, C channels, K classes.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.config import MaskHeadConfig
from mrcnn_tf.networks.convs import he_normal, relu_convs


@keras.saving.register_keras_serializable("mrcnn_tf")
class Deconv2x2(keras.layers.Layer):
    """The 2 x 2 deconvolution of stride 2 with ReLU: [N, S, S, C] -> [N, 2 S, 2 S, filters].

    Its windows do not overlap, so it is one matrix product and a rearrangement, which is several
    times faster on a CPU than the transposed convolution. `kernel` keeps the transposed
    convolution's layout [2, 2, filters, C].
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        shape = (2, 2, self.filters, input_shape[-1])
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=_deconv_start(input_shape[-1]))
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        self.built = True

    def call(self, inputs):
        channels = inputs.shape[-1]
        weights = tf.transpose(tf.cast(self.kernel, inputs.dtype), [3, 0, 1, 2])  # [C, 2, 2, filters]
        weights = tf.reshape(weights, [1, 1, channels, 4 * self.filters])
        bias = tf.tile(tf.cast(self.bias, inputs.dtype), [4])
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(inputs, weights, 1, "VALID"), bias))
        return tf.nn.depth_to_space(x, 2)

    def compute_output_shape(self, input_shape):
        doubled = [None if side is None else 2 * side for side in input_shape[1:3]]
        return (input_shape[0], *doubled, self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def _deconv_start(channels: int) -> keras.initializers.Initializer:
    """He's normal for a fan-in of `channels`: each output cell sees exactly one input cell."""
    return keras.initializers.RandomNormal(stddev=(2.0 / channels) ** 0.5)


class MaskHead:
    """The layers of the mask branch; calling it twice shares the weights.

    Call: RoI features [N, S, S, C] -> mask logits [N, M, M, L], float32. L is K with one sigmoid a class, 1 with one
    mask for all classes, and K + 1 with a softmax, where output 0 is the background.

    Args:
        config: what it is made of: convolutions and a deconvolution, or the layers of a perceptron.
        num_classes: K. epsilon: that of the convolutions' norms. side: M of a perceptron's masks.
    """

    def __init__(self, config: MaskHeadConfig, num_classes: int, epsilon: float = 1e-5, side: int = 28):
        outputs = 1 if config.class_agnostic else num_classes + (config.activation == "softmax")
        small = keras.initializers.RandomNormal(stddev=0.001)
        if config.fc:
            self.layers = [
                keras.layers.Flatten(name="mask_flatten"),
                *(
                    keras.layers.Dense(
                        width, activation="relu", kernel_initializer=he_normal(), name=f"mask_fc{number}"
                    )
                    for number, width in enumerate(config.fc, start=1)
                ),
                keras.layers.Dense(side * side * outputs, kernel_initializer=small, name="mask_logits"),
                keras.layers.Reshape((side, side, outputs), name="mask_logits_per_pixel"),
            ]
        else:
            self.layers = [
                *relu_convs(config.convs, "mask_conv", config.norm, epsilon),
                Deconv2x2(config.deconv, name="mask_deconv"),
                keras.layers.Conv2D(outputs, 1, kernel_initializer=small, name="mask_logits"),
            ]
        # Mixed precision ends here; a float32 `mask_logits` would turn its large input into float32.
        self.layers.append(keras.layers.Activation("linear", dtype="float32", name="mask_logits_float32"))

    def __call__(self, features: keras.KerasTensor) -> keras.KerasTensor:
        x = features
        for layer in self.layers:
            x = layer(x)
        return x
