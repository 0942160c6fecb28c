"""Convolution, norm and activation as one layer.

Shape letters: B images, H W pixels, C channels in, F filters.

A norm that uses stored statistics is one scale and one offset per filter. Folding them into the
kernel gives the same function with one pass over the feature map less, forwards and backwards, and
lets TensorFlow fuse convolution, bias, addition and ReLU; the stored weights stay those of the norm.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.layers.grouped_conv import grouped_conv2d
from mrcnn_tf.layers.sync_norm import SyncBatchNormalization

NORM_GROUPS = 32  # Group normalisation's own default (Wu and He 2018)


def make_norm(kind: str, epsilon: float, dtype=None) -> keras.layers.Layer:
    """The norm layer of a `kind` of `BackboneConfig.norm`, of the dtype policy `dtype`.

    "frozen" is a batch norm that is never trained: neither its statistics nor its scale and shift.
    """
    if kind == "group":
        return keras.layers.GroupNormalization(groups=NORM_GROUPS, epsilon=epsilon, dtype=dtype, name="norm")
    layer = SyncBatchNormalization if kind == "sync_batch" else keras.layers.BatchNormalization
    norm = layer(momentum=0.9, epsilon=epsilon, dtype=dtype, name="norm")
    norm.trainable = kind != "frozen"
    return norm


@keras.saving.register_keras_serializable("mrcnn_tf")
class ConvNorm(keras.layers.Layer):
    """[B, H, W, C] -> [B, H', W', F]: convolution without bias, norm, optional ReLU.

    The padding is `dilation * (kernel_size // 2)` on every side (not TensorFlow's "same", which is
    lopsided for even sizes at stride 2), as in the networks whose weights are loaded here. With
    `groups` the channels fall into that many groups, each with its own filters: the kernel is
    [kernel_size, kernel_size, C / groups, F].

    Raises:
        ValueError: a dilation above 1 with a stride above 1.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        norm: str = "frozen",
        epsilon: float = 1e-5,
        activation: str | None = "relu",
        groups: int = 1,
        dilation: int = 1,
        kernel_initializer=None,
        **kwargs,
    ):
        if dilation > 1 and strides > 1:
            raise ValueError(f"a dilation {dilation} needs stride 1, not {strides}")
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.norm_kind = norm
        self.epsilon = epsilon
        self.activation = activation
        self.groups = groups
        self.dilation = dilation
        # Fan-out keeps the variance of the gradients (He et al. 2015), the usual start of residual networks.
        self.kernel_initializer = keras.initializers.get(kernel_initializer) or keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        )
        self.norm = make_norm(norm, epsilon, self.dtype_policy)

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, input_shape[-1] // self.groups, self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer)
        self.norm.build((None, None, None, self.filters))
        self.built = True

    def call(self, inputs, training=None):
        if self.norm_kind == "group" or (training and self._trains_statistics):
            outputs = self.norm(self._convolve(inputs, self.kernel), training=training)
        else:
            scale, offset = self._scale_and_offset(inputs.dtype)
            outputs = self._add(self._convolve(inputs, self.kernel * scale), offset)
        return tf.nn.relu(outputs) if self.activation == "relu" else outputs

    @property
    def _trains_statistics(self) -> bool:
        return self.norm_kind != "frozen" and self.norm.trainable

    def _convolve(self, inputs, kernel):
        kernel = tf.cast(kernel, inputs.dtype)
        if self.dilation > 1:
            return self._convolve_dilated(inputs, kernel)
        if self._pad == 0 or (self.strides == 1 and self.kernel_size % 2):
            # By a name where there is one: gradients with a written-out padding miss the fast kernels.
            return self._convolve_plainly(inputs, kernel, "SAME" if self._pad else "VALID")
        padding = [[0, 0], [self._pad, self._pad], [self._pad, self._pad], [0, 0]]
        if self.groups > 1:
            return self._convolve_plainly(tf.pad(inputs, padding), kernel, "VALID")
        return tf.nn.conv2d(inputs, kernel, self.strides, padding)

    def _convolve_plainly(self, inputs, kernel, padding: str):
        if self.groups > 1:
            return grouped_conv2d(inputs, kernel, self.strides, padding)
        return tf.nn.conv2d(inputs, kernel, self.strides, padding)

    def _convolve_dilated(self, inputs, kernel):
        """Stride 1. A CPU without oneDNN has no gradient of a dilated convolution, hence the other way around.

        Every `dilation`-th row and column make a map of their own, on which the convolution is a plain one.
        """
        step, pad = self.dilation, self._pad
        if tf.config.get_visible_devices("GPU"):
            padding = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
            return tf.nn.conv2d(inputs, kernel, 1, padding, dilations=step)
        rest = -(tf.shape(inputs)[1:3] + 2 * pad) % step  # makes the sides multiples of the dilation
        padding = tf.stack([tf.fill([2], pad), pad + rest], axis=1)
        crops = tf.stack([tf.zeros_like(rest), rest], axis=1)
        maps = tf.space_to_batch(inputs, [step, step], padding)
        return tf.batch_to_space(self._convolve_plainly(maps, kernel, "VALID"), [step, step], crops)

    def _add(self, outputs, offset):
        if self.groups == 1:
            return tf.nn.bias_add(outputs, offset)
        # The reshape keeps TensorFlow from fusing the two (`grouped_conv2d`).
        flat = tf.nn.bias_add(tf.reshape(outputs, [-1, self.filters]), offset)
        return tf.reshape(flat, tf.shape(outputs))

    @property
    def _pad(self) -> int:
        return self.dilation * (self.kernel_size // 2)

    def _scale_and_offset(self, dtype):
        norm = self.norm
        gamma, beta, mean, variance = (
            tf.cast(tf.convert_to_tensor(weight), tf.float32)
            for weight in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        )
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        return tf.cast(scale, self.compute_dtype), tf.cast(beta - mean * scale, dtype)

    def compute_output_shape(self, input_shape):
        def side(length):
            if length is None:
                return None
            extent = self.dilation * (self.kernel_size - 1) + 1
            return (length + 2 * self._pad - extent) // self.strides + 1

        return (input_shape[0], side(input_shape[1]), side(input_shape[2]), self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "norm": self.norm_kind,
            "epsilon": self.epsilon,
            "activation": self.activation,
            "groups": self.groups,
            "dilation": self.dilation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
