"""The grouped convolution and its own gradient against a dense convolution with zeros between the groups."""

import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.conv_norm import ConvNorm
from mrcnn_tf.layers.grouped_conv import block_kernels, from_block_kernels, grouped_conv2d, groups_per_block

ROOT = Path(__file__).resolve().parents[2]


def dense_kernel(kernel, groups):
    """[k, k, C / G, F] -> [k, k, C, F] with zeros between the groups."""
    size, _, channels, filters = kernel.shape
    each = filters // groups
    dense = np.zeros((size, size, channels * groups, filters), kernel.dtype)
    for group in range(groups):
        part = slice(group * each, (group + 1) * each)
        dense[:, :, group * channels : (group + 1) * channels, part] = kernel[..., part]
    return dense


def within_groups(dense, groups):
    size, _, channels, filters = dense.shape
    blocks = dense.reshape(size, size, groups, channels // groups, groups, filters // groups)
    within = np.stack([blocks[:, :, group, :, group] for group in range(groups)], axis=3)
    return within.reshape(size, size, channels // groups, filters)


def with_gradients(convolve, inputs, kernel, weights):
    """Outputs of `convolve`, and the gradients of their sum with `weights`."""

    @tf.function
    def run(inputs, kernel):
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = convolve(inputs, kernel)
            total = tf.reduce_sum(outputs * weights)
        return outputs, *tape.gradient(total, [inputs, kernel])

    return [value.numpy() for value in run(tf.constant(inputs), tf.constant(kernel))]


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (1, "VALID"), (2, "VALID"), (2, "SAME")])
@pytest.mark.parametrize(
    ("groups", "channels", "filters"), [(1, 6, 5), (4, 1, 3), (3, 5, 2), (32, 4, 4), (6, 8, 4), (2, 32, 32), (2, 40, 3)]
)
def test_equals_the_dense_convolution(groups, channels, filters, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 10, groups * channels))
    kernel = rng.normal(size=(3, 3, channels, groups * filters))

    def dense(inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, stride, padding)

    shape = dense(x, dense_kernel(kernel, groups)).shape
    weights = rng.normal(size=shape)
    ours = with_gradients(lambda *given: grouped_conv2d(*given, stride, padding), x, kernel, weights)
    expected = with_gradients(dense, x, dense_kernel(kernel, groups), weights)
    expected[2] = within_groups(expected[2], groups)
    for value, reference in zip(ours, expected):
        assert value.shape == reference.shape
        np.testing.assert_allclose(value, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("groups", "channels", "count"),
    [(32, 4, 8), (64, 4, 8), (32, 8, 4), (32, 32, 1), (32, 64, 1), (6, 2, 6), (5, 7, 1)],
)
def test_blocks_of_groups(groups, channels, count):
    assert groups_per_block(groups, channels) == count
    kernel = np.random.default_rng(0).normal(size=(3, 3, channels, 2 * groups))
    blocks = block_kernels(tf.constant(kernel), groups)
    assert len(blocks) == groups // count
    first = dense_kernel(kernel, groups)[:, :, : count * channels, : count * 2]
    np.testing.assert_array_equal(blocks[0], first)
    np.testing.assert_array_equal(from_block_kernels(blocks, groups, channels), kernel)


def test_mixed_precision_trains():
    layer = ConvNorm(32, 3, groups=8, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 32)).astype("float32")
    with tf.GradientTape() as tape:
        outputs = layer(x)
        total = tf.reduce_sum(tf.cast(outputs, tf.float32))
    gradient = tape.gradient(total, layer.kernel)
    assert outputs.dtype == tf.bfloat16 and gradient.dtype == tf.float32
    exact = ConvNorm(32, 3, groups=8)
    exact.build(x.shape)
    exact.kernel.assign(layer.kernel)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), exact(x), rtol=0.05, atol=0.05)


def test_an_exported_layer_gives_the_same(tmp_path):
    entry = keras.Input((None, None, 16))
    model = keras.Model(entry, ConvNorm(32, 3, groups=4)(entry))
    x = np.random.default_rng(0).normal(size=(1, 9, 7, 16)).astype("float32")
    model.export(tmp_path / "saved", verbose=False)
    again = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(again.serve(x), model(x), rtol=1e-5, atol=1e-5)


def test_the_gradient_takes_no_longer_than_a_dense_one():
    """Through XLA it takes hundreds of times as long; ten is for a busy machine."""
    rng = np.random.default_rng(0)
    x, weights = (tf.constant(rng.normal(size=(1, 40, 40, 256)), tf.float32) for _ in range(2))

    def seconds(channels):
        kernel = tf.constant(rng.normal(size=(3, 3, channels, 256)), tf.float32)

        @tf.function
        def run():
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                total = tf.reduce_sum(weights * grouped_conv2d(x, kernel, 1, "SAME"))
            return tape.gradient(total, [x, kernel])

        times = []
        for _ in range(4):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(8) < 10 * seconds(256)


WITHOUT_ONEDNN = """
import numpy as np, tensorflow as tf
from mrcnn_tf.layers.conv_norm import ConvNorm
x = tf.random.stateless_normal([1, 9, 8, 16], [0, 0])
for stride, dilation in ((1, 1), (2, 1), (1, 2)):
    layer = ConvNorm(16, 3, stride, groups=4, dilation=dilation)
    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
        return outputs, *tape.gradient(outputs, [x, layer.kernel])
    layer.build(x.shape)
    inference = tf.function(layer)(x)
    outputs, *gradients = run(x)
    assert np.allclose(outputs, inference, atol=1e-5) and np.max(outputs) > 0
    assert all(np.max(np.abs(gradient)) > 0 for gradient in gradients)
print("done")
"""


def test_runs_without_onednn():
    """TensorFlow's plain CPU kernels refuse a fused bias, gradients of groups and gradients of a dilation."""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", WITHOUT_ONEDNN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]
