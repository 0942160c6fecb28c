"""Batch normalisation whose statistics are those of the batches of all replicas together.

Shape letters: B images of this replica, H W pixels, C channels.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.custom_gradient import custom_gradient
from mrcnn_tf.replicas import sum_over_replicas

AXES = [0, 1, 2]


@keras.saving.register_keras_serializable("mrcnn_tf")
class SyncBatchNormalization(keras.layers.BatchNormalization):
    """[B, H, W, C] -> [B, H, W, C]: Keras' batch normalisation, over all replicas when it trains.

    Keras' `synchronized=True` takes the variance as E[x^2] - E[x]^2 in float32, which loses the digits of a variance
    that is small beside the mean. Here a second sum over the replicas adds up the squared distances to the common
    mean. A step on many replicas is that on one, but for rounding.
    """

    def call(self, inputs, training=None, mask=None):
        if not training or not self.trainable:
            return super().call(inputs, training=False)
        gamma, beta = (tf.cast(tf.convert_to_tensor(weight), tf.float32) for weight in (self.gamma, self.beta))
        outputs, mean, variance = synchronized_norm(tf.cast(inputs, tf.float32), gamma, beta, self.epsilon)
        for stored, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            stored.assign(stored * self.momentum + tf.stop_gradient(new) * (1.0 - self.momentum))
        return tf.cast(outputs, self.compute_dtype)


def synchronized_norm(
    inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalised inputs [B, H, W, C], and the mean and variance [C] over all replicas; all float32.

    Gradients pass through the inputs, not through the mean and the variance that are given back.
    """

    @custom_gradient
    def normalize(inputs, gamma, beta):
        channels = inputs.shape[-1]
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        # The number of values takes the place of one more channel: one exchange instead of two.
        sums = sum_over_replicas(tf.concat([tf.reduce_sum(inputs, AXES), [count]], axis=0))
        total = sums[-1]
        mean = sums[:-1] / total
        distances = inputs - mean
        variance = sum_over_replicas(tf.reduce_sum(tf.square(distances), AXES)) / total
        inverse = tf.math.rsqrt(variance + epsilon)

        def gradient(upstream, *of_statistics):
            """(Ioffe and Szegedy 2015), with the sums taken over the replicas."""
            of_gamma = tf.reduce_sum(upstream * distances, AXES) * inverse
            of_beta = tf.reduce_sum(upstream, AXES)
            common = sum_over_replicas(tf.concat([of_gamma, of_beta], axis=0)) / total
            scale, slope = gamma * inverse, gamma * inverse * inverse * common[:channels]
            of_inputs = scale * upstream - (slope * distances + scale * common[channels:])
            return of_inputs, of_gamma, of_beta

        return (distances * (gamma * inverse) + beta, mean, variance), gradient

    return normalize(inputs, gamma, beta)
