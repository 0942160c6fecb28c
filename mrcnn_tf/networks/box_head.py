"""The box branch on RoI features: class scores and per-class box deltas (figure 3).

Shape letters: N RoIs, S side of the pooled feature, C channels, K classes.
"""

from __future__ import annotations

import keras

from mrcnn_tf.config import BoxHeadConfig
from mrcnn_tf.networks.convs import relu_convs


class BoxHead:
    """The layers of the box branch; calling it twice shares the weights.

    Call: RoI features [N, S, S, C] -> class logits [N, K + 1] (0 is background), deltas [N, K, 4], float32.

    Args:
        config: widths of the convolutions and of the fully connected layers.
        num_classes: K.
        pool_mean: the features are those of res5 (figure 3, left): their mean over the cells takes the place of all
            convolutions and fully connected layers.
        epsilon: that of the convolutions' norms.
    """

    def __init__(self, config: BoxHeadConfig, num_classes: int, pool_mean: bool = False, epsilon: float = 1e-5):
        if pool_mean:
            self.layers = [keras.layers.GlobalAveragePooling2D(name="box_mean")]
        else:
            self.layers = [
                *relu_convs(config.convs, "box_conv", config.norm, epsilon),
                keras.layers.Flatten(name="box_flatten"),
                *(
                    keras.layers.Dense(width, activation="relu", name=f"box_fc{number}")
                    for number, width in enumerate(config.fc, start=1)
                ),
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
        x = features
        for layer in self.layers:
            x = layer(x)
        return self.classes(x), self.per_class(self.deltas(x))
