"""What the layers without weights share: boxes, scores and targets stay float32 under every precision policy."""

from __future__ import annotations

import keras


class Float32Layer(keras.layers.Layer):
    """A layer that neither rounds its inputs to the global policy's type nor computes in it.

    Half precision cannot tell neighbouring pixels apart above 2048 (bfloat16: 256).
    """

    def __init__(self, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)


def spec(*shape: int | None, dtype: str = "float32") -> keras.KerasTensor:
    """A symbolic output of a layer."""
    return keras.KerasTensor(shape, dtype=dtype)
