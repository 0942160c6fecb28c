"""The type that a model's layers compute in; weights, boxes, scores and losses are float32 in any case."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Models made within compute in `name`, one of `mrcnn_tf.config.PRECISIONS`; what is made elsewhere does not.

    A layer keeps the policy that it was made under, so this is all that a training needs. A file of the trained model
    makes a new one when it is loaded, under the policy of whoever loads it: float32 where nothing else was set.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
