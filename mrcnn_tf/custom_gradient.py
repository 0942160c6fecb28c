"""Gradients of one's own in graphs that are forgotten with their models."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops  # what it is for, and that it may change, is said in `held_by_the_graph`

_HELD = "_mrcnn_tf_gradients"
_forward_only = contextvars.ContextVar("forward_only", default=False)


def custom_gradient(function: Callable) -> Callable:
    """`tf.custom_gradient` that does not keep every graph in which it was traced; see `held_by_the_graph`.

    Args:
        function: of tensors; returns its results, and a function from their gradients to those of its arguments.

    Returns:
        The function of tensors that returns the results, and has that gradient.
    """
    with_gradient = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*tensors: tf.Tensor) -> Any:
        if _forward_only.get():
            return function(*tensors)[0]
        with held_by_the_graph():
            return with_gradient(*tensors)

    return call


@contextlib.contextmanager
def forward_only() -> Iterator[None]:
    """What is traced within has the same results and no gradient of its own, for graphs that only ever predict.

    Whoever loads a SavedModel in Python would enter its gradients into the table of `held_by_the_graph`.
    """
    token = _forward_only.set(True)
    try:
        yield
    finally:
        _forward_only.reset(token)


@contextlib.contextmanager
def held_by_the_graph() -> Iterator[None]:
    """Gradients that functions get within are held by the graph that is being traced, and go when it goes.

    TensorFlow enters the gradient of each `tf.custom_gradient` in a graph (sums over replicas have one too) into a
    table of the whole process and never takes it out. The gradient holds tensors, they hold their graph, and with it
    go the compiled kernels and their memory: hundreds of megabytes for each full-size model that was trained and
    thrown away. What is left in the table here is a reference that keeps nothing alive. The table is no public part:
    where a TensorFlow has another, all works, and the memory grows as it does without this.
    """
    table = getattr(getattr(ops, "gradient_registry", None), "_registry", None)
    if tf.executing_eagerly() or not isinstance(table, dict):
        yield
        return
    before = set(table)
    yield
    graph = tf.compat.v1.get_default_graph()
    for name in set(table) - before:
        entry = table[name]
        if not isinstance(entry, dict) or not callable(entry.get("type")) or getattr(entry["type"], _HELD, False):
            continue
        if not hasattr(graph, _HELD):
            setattr(graph, _HELD, {})
        getattr(graph, _HELD)[name] = entry["type"]
        entry["type"] = _gradient_of(weakref.ref(graph), name)
        weakref.finalize(graph, table.pop, name, None).atexit = False


def _gradient_of(graph: weakref.ref, name: str) -> Callable:
    def gradient(op: tf.Operation, *upstream: tf.Tensor) -> Any:
        # Whoever asks has an operation of the graph, so it is there.
        return getattr(graph(), _HELD)[name](op, *upstream)

    setattr(gradient, _HELD, True)
    return gradient
