"""The region proposal network's head, shared by all pyramid levels (section 3; Ren et al. 2015).

Shape letters: B images, H W cells of a level, C channels, A anchors per cell, N = H * W * A.
"""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("mrcnn_tf")
class RPNHead(keras.layers.Layer):
    """P2..P6 [B, H, W, C] -> per level objectness logits [B, N] and box deltas [B, N, 4].

    Anchors run position by position, then over the A of one position. Both outputs of a level come
    from one matrix product: each reads the whole feature map, and on a CPU that reading is the cost.
    """

    def __init__(self, channels: int, anchors: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.anchors = anchors
        normal = keras.initializers.RandomNormal(stddev=0.01)
        self.conv = keras.layers.Conv2D(
            channels, 3, padding="same", activation="relu", kernel_initializer=normal, name="conv"
        )
        self.objectness = keras.layers.Conv2D(anchors, 1, kernel_initializer=normal, name="objectness")
        self.deltas = keras.layers.Conv2D(4 * anchors, 1, kernel_initializer=normal, name="deltas")

    def build(self, features_shape):
        self.conv.build(features_shape[0])
        hidden = (*features_shape[0][:-1], self.channels)
        self.objectness.build(hidden)
        self.deltas.build(hidden)
        self.built = True

    def call(self, features):
        kernel = tf.concat([self.objectness.kernel, self.deltas.kernel], axis=-1)
        bias = tf.concat([self.objectness.bias, self.deltas.bias], axis=-1)
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            both = tf.nn.conv2d(hidden, tf.cast(kernel, hidden.dtype), 1, "VALID")
            both = tf.cast(tf.nn.bias_add(both, tf.cast(bias, hidden.dtype)), tf.float32)
            batch = tf.shape(both)[0]
            logits.append(tf.reshape(both[..., : self.anchors], [batch, -1]))
            deltas.append(tf.reshape(both[..., self.anchors :], [batch, -1, 4]))
        return logits, deltas

    def compute_output_spec(self, features):
        batch = features[0].shape[0]
        logits = [keras.KerasTensor((batch, None), "float32") for _ in features]
        deltas = [keras.KerasTensor((batch, None, 4), "float32") for _ in features]
        return logits, deltas

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "anchors": self.anchors}
