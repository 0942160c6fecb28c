"""A model's inference graph as one traced function for images of all sizes.

Shape letters: B images, H W pixels of the network's input, C channels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mrcnn_tf import untrained

# One traced function per model, for as long as the model lives: tracing again takes seconds.
_FUNCTIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def inference_function(model: Any) -> Callable[[dict], dict]:
    """The function {"image": [B, H, W, C] float32, "image_size": [B, 2] int32} -> the outputs of `model`.

    Calling a model directly runs it operation by operation; `predict` traces anew for every image size.

    Args:
        model: a MaskRCNN, or any Keras model with `config` that answers such inputs.
    """
    untrained.warn_once(model)
    if model not in _FUNCTIONS:
        reference = weakref.ref(model)  # the function must not keep alive what it is filed under
        signature = {
            "image": tf.TensorSpec([None, None, None, model.config.input.channels], tf.float32),
            "image_size": tf.TensorSpec([None, 2], tf.int32),
        }
        _FUNCTIONS[model] = tf.function(lambda inputs: reference()(inputs, training=False), input_signature=[signature])
    return _FUNCTIONS[model]
