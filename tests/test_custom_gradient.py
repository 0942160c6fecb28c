"""Own gradients: right wherever they are asked for, and gone with the graphs that they were traced in."""

import weakref
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import mrcnn_tf
from mrcnn_tf import custom_gradient as own
from mrcnn_tf.layers.roi_align import RoIAlign
from mrcnn_tf.layers.roi_pool import RoIPool
from tests.support.garbage import collect
from tests.support.tiny import calm, random_batch, tiny_config


@own.custom_gradient
def cube(value):
    """x^3 with ten times its gradient, which no other rule would give."""
    return value**3, lambda upstream: 10.0 * upstream * 3.0 * value**2


def table():
    return own.ops.gradient_registry._registry


def tape_inside(value):
    @tf.function
    def gradient(value):
        with tf.GradientTape() as tape:
            tape.watch(value)
            result = cube(value)
        return result, tape.gradient(result, value)

    return gradient(value)


def tape_outside(value):
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = tf.function(cube)(value)
    return result, tape.gradient(result, value)


def eager(value):
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = cube(value)
    return result, tape.gradient(result, value)


def in_a_loop(value):
    """Once around only, so that the numbers are the same."""

    @tf.function
    def gradient(value):
        with tf.GradientTape() as tape:
            tape.watch(value)
            _, result = tf.while_loop(lambda turn, _: turn < 1, lambda turn, x: (turn + 1, cube(x)), (0, value))
        return result, tape.gradient(result, value)

    return gradient(value)


@pytest.mark.parametrize("way", [eager, tape_inside, tape_outside, in_a_loop])
def test_the_gradient_is_the_own_one(way):
    result, gradient = way(tf.constant([1.0, -2.0]))
    np.testing.assert_allclose(result, [1.0, -8.0])
    np.testing.assert_allclose(gradient, [30.0, 120.0])


@pytest.mark.parametrize("way", [eager, tape_inside, tape_outside, in_a_loop])
def test_nothing_is_left_behind(way):
    way(tf.constant(1.0))
    collect()
    before = set(table())
    way(tf.constant(1.0))
    collect()
    assert set(table()) == before


def test_a_graph_lives_as_long_as_its_function():
    function = tf.function(cube).get_concrete_function(tf.TensorSpec([], tf.float32))
    graph = weakref.ref(function.graph)
    collect()
    with tf.GradientTape() as tape:
        value = tf.constant(2.0)
        tape.watch(value)
        result = function(value)
    assert float(tape.gradient(result, value)) == 120.0
    del function, tape, result
    collect()
    assert graph() is None


def test_a_tensorflow_of_other_insides_only_keeps_more(monkeypatch):
    monkeypatch.setattr(own, "ops", SimpleNamespace())
    _, gradient = tape_inside(tf.constant([1.0, -2.0]))
    np.testing.assert_allclose(gradient, [30.0, 120.0])


def test_forward_only_has_the_same_results():
    with own.forward_only():
        graph = tf.function(cube).get_concrete_function(tf.TensorSpec([], tf.float32)).graph
        assert float(cube(tf.constant(-2.0))) == -8.0
    assert "IdentityN" not in {operation.type for operation in graph.get_operations()}
    assert float(eager(tf.constant(2.0))[1]) == 120.0


def used(optimizer, work):
    """A tiny model that `work` was done with, weakly."""
    config = tiny_config()
    model = mrcnn_tf.MaskRCNN(config)
    calm(model)
    model.compile(**({"optimizer": optimizer} if optimizer else {"global_batch": 2}))
    work(model, tf.data.Dataset.from_tensors(random_batch(2)))
    return weakref.ref(model)


def everything(folder):
    def work(model, data):
        model.fit(data, epochs=1, verbose=0)
        model.predict(data, verbose=0)
        served = tf.saved_model.load(mrcnn_tf.export(model, folder / "served"))
        served.signatures["serving_default"](images=tf.zeros([1, 40, 40, 3], tf.uint8))

    return work


def fit(model, data):
    model.fit(data, epochs=1, verbose=0)


@pytest.mark.parametrize("optimizer", [None, "sgd"], ids=["own optimizer", "Keras' optimizer"])
def test_a_model_that_was_used_leaves_nothing(optimizer, tmp_path):
    """Keras' optimisers add up gradients over the replicas, were it only one, by an own gradient of TensorFlow's."""
    before = set(table())
    model = used(optimizer, fit if optimizer else everything(tmp_path))
    keras.backend.clear_session()
    collect()
    assert model() is None
    assert set(table()) - before == set()


def test_other_roi_layers_leave_nothing():
    feature = tf.random.stateless_normal([1, 16, 16, 4], [0, 0])
    boxes, images = tf.constant([[4.0, 4.0, 40.0, 50.0]]), tf.constant([0])
    layers = [RoIAlign(7, strides=(4,)), RoIAlign(7, samples=0, strides=(4,)), RoIPool(7, strides=(4,))]

    def gradients(layer):
        @tf.function
        def gradient(feature):
            with tf.GradientTape() as tape:
                tape.watch(feature)
                total = tf.reduce_sum(layer([feature], boxes, images))
            return tape.gradient(total, feature)

        return gradient(feature)

    before = set(table())
    for layer in layers:
        assert np.abs(gradients(layer)).sum() > 0
    collect()
    assert set(table()) - before == set()
