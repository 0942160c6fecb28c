"""The region proposal network's head, shared by all pyramid levels (section 3; Ren et al. 2015).

Shape letters: B images, H W cells of a level, C channels, A anchors per cell, N = H * W * A.
"""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("mrcnn_tf")
class RPNHead(keras.layers.Layer):
    """Each level's map [B, H, W, C] -> per level objectness logits [B, N] and box deltas [B, N, 4], float32.

    Before both stand `convs` 3x3 convolutions of `channels` with ReLU. Anchors run position by position, then over
    the A of one position. Both outputs of a level come from one matrix product: each reads the whole feature map,
    and on a CPU that reading is the cost.
    """

    def __init__(self, channels: int, anchors: int, convs: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.anchors = anchors
        self.conv_names = tuple("conv" if number == 1 else f"conv{number}" for number in range(1, convs + 1))
        normal = keras.initializers.RandomNormal(stddev=0.01)
        for name in self.conv_names:
            # One object gives equal shapes equal values, hence a new one for every further convolution.
            start = normal if name == "conv" else keras.initializers.RandomNormal(stddev=0.01)
            conv = keras.layers.Conv2D(
                channels, 3, padding="same", activation="relu", kernel_initializer=start, name=name
            )
            setattr(self, name, conv)  # not a list: files of weights are ordered by attributes
        self.objectness = keras.layers.Conv2D(anchors, 1, kernel_initializer=normal, name="objectness")
        self.deltas = keras.layers.Conv2D(4 * anchors, 1, kernel_initializer=normal, name="deltas")

    @property
    def convs(self) -> list[keras.layers.Layer]:
        """The convolutions in their order."""
        return [getattr(self, name) for name in self.conv_names]

    def build(self, features_shape):
        hidden = (*features_shape[0][:-1], self.channels)
        for number, conv in enumerate(self.convs):
            conv.build(hidden if number else features_shape[0])
        self.objectness.build(hidden)
        self.deltas.build(hidden)
        self.built = True

    def call(self, features):
        kernel = tf.concat([self.objectness.kernel, self.deltas.kernel], axis=-1)
        bias = tf.concat([self.objectness.bias, self.deltas.bias], axis=-1)
        logits, deltas = [], []
        for feature in features:
            hidden = feature
            for conv in self.convs:
                hidden = conv(hidden)
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
        return {
            **super().get_config(),
            "channels": self.channels,
            "anchors": self.anchors,
            "convs": len(self.conv_names),
        }
