"""The image as the backbone's weights expect it.

Shape letters: B images, H W the batch's common size, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.layers.base import spec


@keras.saving.register_keras_serializable("mrcnn_tf")
class Normalize(keras.layers.Layer):
    """Channel order, mean and scale; everything outside the real image becomes 0, as zero padding of convolutions is.

    Args:
        mean, std: one value per channel, in the network's channel order.
        channel_order: "rgb", or "bgr" to reverse the channels first.
        size_divisor: the output's sides are padded up to a multiple of it.

    Call arguments:
        image: [B, H, W, C], 0..255, any type; channels as RGB.
        image_size: [B, 2] int32, the (height, width) in pixels that is real.

    Returns:
        [B, H', W', C] in the compute type of the global policy.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        channel_order: str = "rgb",
        size_divisor: int = 32,
        **kwargs,
    ):
        # Under mixed precision the pixels must not be rounded before the mean is taken off.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.channel_order = channel_order
        self.size_divisor = int(size_divisor)

    def call(self, image: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
        image = tf.cast(image, tf.float32)
        if self.channel_order == "bgr":
            image = tf.reverse(image, axis=[-1])
        shape = tf.shape(image)
        # One long row of values instead of pixels of few channels, along which vector instructions have no hold.
        rows = tf.reshape(image, [shape[0], shape[1], shape[2] * shape[3]])
        rows = rows - tf.tile(tf.constant(self.mean), shape[2:3])
        if set(self.std) != {1.0}:
            rows = rows / tf.tile(tf.constant(self.std), shape[2:3])
        real_y = tf.range(shape[1])[None] < image_size[:, :1]
        real_x = tf.repeat(tf.range(shape[2])[None] < image_size[:, 1:], shape[3], axis=1)
        rows = rows * tf.cast(real_y[:, :, None] & real_x[:, None, :], tf.float32)
        image = tf.ensure_shape(tf.reshape(rows, shape), image.shape)
        missing = -shape[1:3] % self.size_divisor
        image = tf.pad(image, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        return tf.cast(image, self.compute_dtype)

    def compute_output_spec(self, image, image_size):
        batch, height, width, channels = image.shape
        height, width = (side if side is None else side + -side % self.size_divisor for side in (height, width))
        return spec(batch, height, width, channels, dtype=self.compute_dtype)

    def get_config(self) -> dict:
        own = {"mean": self.mean, "std": self.std, "channel_order": self.channel_order}
        return {**super().get_config(), **own, "size_divisor": self.size_divisor}
