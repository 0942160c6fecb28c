"""The box branch on RoI features: class scores and per-class box deltas (figure 3, right).

Shape letters: N RoIs, S side of the pooled feature, C channels, K classes.
"""

from __future__ import annotations

import keras

from mrcnn_tf.config import BoxHeadConfig


class BoxHead:
    """The layers of the box branch; calling it twice shares the weights.

    Call: RoI features [N, S, S, C] -> class logits [N, K + 1] (0 is background), deltas [N, K, 4].
    """

    def __init__(self, config: BoxHeadConfig, num_classes: int):
        self.flatten = keras.layers.Flatten(name="box_flatten")
        self.fc = [
            keras.layers.Dense(width, activation="relu", name=f"box_fc{number}")
            for number, width in enumerate(config.fc, start=1)
        ]
        self.classes = keras.layers.Dense(
            num_classes + 1,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype="float32",
            name="box_classes",
        )
        self.deltas = keras.layers.Dense(
            4 * num_classes,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
            dtype="float32",
            name="box_deltas",
        )
        self.per_class = keras.layers.Reshape((num_classes, 4), dtype="float32", name="box_deltas_per_class")

    def __call__(self, features: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        x = self.flatten(features)
        for layer in self.fc:
            x = layer(x)
        return self.classes(x), self.per_class(self.deltas(x))
