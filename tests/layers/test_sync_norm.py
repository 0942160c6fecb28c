"""The synchronised norm on one device, and on eight logical ones against a norm of the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.conv_norm import ConvNorm, make_norm
from mrcnn_tf.layers.sync_norm import SyncBatchNormalization, synchronized_norm

ROOT = Path(__file__).resolve().parents[2]


def normalized(x, gamma, beta, epsilon):
    """Outputs, mean and variance, in float64."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta, mean, variance


def test_values_and_gradients_are_those_of_a_batch_norm():
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.normal(2.0, 3.0, size=(3, 4, 5, 6)), rng.uniform(0.5, 2, 6), rng.normal(size=6)
    weights = rng.normal(size=x.shape)
    given = [tf.constant(value, tf.float32) for value in (x, gamma, beta)]
    with tf.GradientTape() as tape:
        tape.watch(given)
        outputs = synchronized_norm(*given, 1e-3)
        total = tf.reduce_sum(outputs[0] * tf.constant(weights, tf.float32))
    for value, expected in zip(outputs, normalized(x, gamma, beta, 1e-3)):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    # The reference's gradient, by TensorFlow from the plain formula in float64.
    exact = [tf.constant(value) for value in (x, gamma, beta)]
    with tf.GradientTape() as reference:
        reference.watch(exact)
        mean, variance = tf.nn.moments(exact[0], [0, 1, 2])
        plain = (exact[0] - mean) / tf.sqrt(variance + 1e-3) * exact[1] + exact[2]
        exact_total = tf.reduce_sum(plain * weights)
    for value, expected in zip(tape.gradient(total, given), reference.gradient(exact_total, exact)):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_a_variance_that_is_small_beside_the_mean_keeps_its_digits():
    x = np.random.default_rng(0).normal(100.0, 0.01, size=(4, 16, 16, 2)).astype("float32")
    _, _, variance = synchronized_norm(tf.constant(x), tf.ones(2), tf.zeros(2), 0.0)
    exact = x.astype("float64").var((0, 1, 2))
    np.testing.assert_allclose(variance, exact, rtol=1e-3)
    one_pass = np.mean(np.square(x), (0, 1, 2), dtype="float32") - np.square(x.mean((0, 1, 2), dtype="float32"))
    assert (np.abs(one_pass / exact - 1) > 0.1).all()  # as Keras takes it


def test_the_weights_and_the_moving_statistics_are_keras_own():
    ours, theirs = make_norm("sync_batch", 1e-3), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    x = np.random.default_rng(0).normal(1.0, 2.0, size=(4, 5, 6, 3)).astype("float32")
    for layer in (ours, theirs):
        layer(x, training=True)
    assert [weight.name for weight in ours.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    for weight, expected in zip(ours.weights, theirs.weights):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-5)
    np.testing.assert_allclose(ours(x, training=False), theirs(x, training=False), atol=1e-5)


def test_a_norm_that_is_not_trained_uses_its_statistics():
    layer = SyncBatchNormalization(epsilon=1e-3)
    x = np.random.default_rng(0).normal(1.0, 2.0, size=(4, 5, 6, 3)).astype("float32")
    layer.build(x.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(x, training=True), x / np.sqrt(1 + 1e-3), rtol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(3))


def test_mixed_precision_keeps_the_statistics_in_float32():
    layer = ConvNorm(4, 1, norm="sync_batch", activation=None, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).normal(size=(8, 9, 9, 4)).astype("float32")
    layer.build(x.shape)
    layer.kernel.assign(np.eye(4, dtype="float32").reshape(1, 1, 4, 4))
    rounded = tf.cast(tf.cast(x, tf.bfloat16), tf.float32).numpy()
    assert layer(x, training=True).dtype == tf.bfloat16
    np.testing.assert_allclose(layer.norm.moving_variance, 0.9 + 0.1 * rounded.var((0, 1, 2)), rtol=1e-5)


def test_config_round_trip():
    layer = SyncBatchNormalization(momentum=0.8, epsilon=1e-4, name="norm")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert isinstance(again, SyncBatchNormalization) and again.get_config() == layer.get_config()


REPLICAS = """
import json
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 8)
from mrcnn_tf.layers.sync_norm import SyncBatchNormalization
rng = np.random.default_rng(0)
x, weights = (rng.normal(size=(17, 3, 4, 5)).astype("float32") for _ in range(2))
x += np.arange(17, dtype="float32").reshape(17, 1, 1, 1) + 10  # every replica has another mean
cuts = [0, 1, 3, 6, 8, 10, 12, 14, 17]  # and some another number of images

def step(strategy, parts):
    with strategy.scope():
        layer = SyncBatchNormalization(epsilon=1e-3)
        layer.build((None, None, None, 5))
        layer.gamma.assign(np.linspace(0.5, 2, 5))
    def on_replica(x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=True)
            total = tf.reduce_sum(outputs * weights)
        return outputs, *tape.gradient(total, [x, layer.gamma.value, layer.beta.value])
    def values(array):
        pieces = [tf.constant(array[a:b]) for a, b in parts]
        return strategy.experimental_distribute_values_from_function(
            lambda context: pieces[context.replica_id_in_sync_group])
    results = tf.function(lambda *given: strategy.run(on_replica, given))(values(x), values(weights))
    results = [np.concatenate([np.ravel(v) for v in strategy.experimental_local_results(r)])
               for r in results]
    shape = (-1, 5)
    gamma, beta = (r.reshape(shape).sum(0) for r in results[2:])
    return [results[0], results[1], gamma, beta, layer.moving_mean.numpy(), layer.moving_variance.numpy()]

one = step(tf.distribute.MirroredStrategy(["CPU:0"]), [(0, 17)])
many = step(tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(8)]), list(zip(cuts[:-1], cuts[1:])))
print(json.dumps([float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(one, many)]))
"""


@pytest.fixture(scope="module")
def errors():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", REPLICAS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("outputs", "inputs", "gamma", "beta", "moving_mean", "moving_variance")
    return dict(zip(names, json.loads(done.stdout.splitlines()[-1])))


@pytest.mark.parametrize("name", ["outputs", "inputs", "gamma", "beta", "moving_mean", "moving_variance"])
def test_eight_replicas_of_unequal_batches_are_the_whole_batch(errors, name):
    """Outputs, the gradients of inputs, gamma and beta (added up over the replicas), and the moving statistics."""
    assert errors[name] < 1e-5
