"""The folded convolution and norm against a convolution and a norm written apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.conv_norm import ConvNorm


def filled(layer, shape, seed=0):
    """`layer`, built for inputs of `shape`, with random statistics."""
    layer.build(shape)
    rng = np.random.default_rng(seed)
    layer.kernel.assign(rng.normal(size=layer.kernel.shape) * 0.2)
    norm = layer.norm
    norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
    norm.beta.assign(rng.normal(size=norm.beta.shape))
    if hasattr(norm, "moving_mean"):
        norm.moving_mean.assign(rng.normal(size=norm.gamma.shape))
        norm.moving_variance.assign(rng.uniform(0.5, 2, norm.gamma.shape))
    return layer


def convolved(layer, x):
    """The convolution alone, by sums over shifted copies of the padded input."""
    size, stride, apart = layer.kernel_size, layer.strides, layer.dilation
    pad = apart * (size // 2)
    # The filters of a group see that group's channels: a dense kernel with zeros elsewhere.
    blocks = np.split(layer.kernel.numpy(), layer.groups, axis=-1)
    kernel = np.zeros((size, size, x.shape[-1], layer.filters))
    for group, block in enumerate(blocks):
        _, _, channels, filters = block.shape
        kernel[:, :, group * channels : (group + 1) * channels, group * filters : (group + 1) * filters] = block
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    height, width = ((length + 2 * pad - apart * (size - 1) - 1) // stride + 1 for length in x.shape[1:3])
    output = np.zeros((x.shape[0], height, width, layer.filters))
    for i in range(size):
        for j in range(size):
            rows = slice(i * apart, i * apart + stride * (height - 1) + 1, stride)
            columns = slice(j * apart, j * apart + stride * (width - 1) + 1, stride)
            output += padded[:, rows, columns] @ kernel[i, j]
    return output


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("norm", ["frozen", "batch", "sync_batch"])
def test_equals_convolution_then_norm(size, stride, norm):
    x = np.random.default_rng(1).normal(size=(2, 10, 13, 3)).astype("float32")
    layer = filled(ConvNorm(5, size, stride, norm=norm, epsilon=1e-3, activation=None), x.shape)
    statistics = layer.norm
    expected = (convolved(layer, x) - statistics.moving_mean.numpy()) / np.sqrt(
        statistics.moving_variance.numpy() + 1e-3
    ) * statistics.gamma.numpy() + statistics.beta.numpy()
    output = layer(x, training=False).numpy()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    assert output.shape == layer.compute_output_shape(x.shape)


@pytest.mark.parametrize(
    ("size", "stride", "groups", "dilation"), [(3, 1, 4, 1), (3, 2, 4, 1), (3, 1, 1, 2), (3, 1, 2, 3)]
)
def test_groups_and_dilation(size, stride, groups, dilation):
    x = np.random.default_rng(1).normal(size=(2, 10, 13, 8)).astype("float32")
    layer = ConvNorm(12, size, stride, epsilon=1e-3, activation=None, groups=groups, dilation=dilation)
    filled(layer, x.shape)
    assert layer.kernel.shape == (size, size, 8 // groups, 12)
    norm = layer.norm
    expected = (convolved(layer, x) - norm.moving_mean.numpy()) / np.sqrt(norm.moving_variance.numpy() + 1e-3)
    expected = expected * norm.gamma.numpy() + norm.beta.numpy()
    output = tf.function(layer)(x).numpy()
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    assert output.shape == layer.compute_output_shape(x.shape)


def test_dilation_needs_stride_1():
    with pytest.raises(ValueError, match="dilation 2 needs stride 1, not 2"):
        ConvNorm(4, 3, 2, dilation=2)


def test_relu():
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 3)).astype("float32")
    plain, relu = (filled(ConvNorm(4, 3, activation=kind), x.shape) for kind in (None, "relu"))
    np.testing.assert_allclose(relu(x), np.maximum(plain(x), 0), atol=1e-6)


def test_a_frozen_norm_uses_its_statistics_in_training_too():
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype("float32")
    layer = filled(ConvNorm(4, 3, norm="frozen"), x.shape)
    before = layer.norm.moving_mean.numpy()
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.norm.moving_mean.numpy(), before)
    assert [weight.name for weight in layer.trainable_weights] == ["kernel"]


def test_a_trained_norm_uses_the_batch_and_moves_its_statistics():
    x = np.random.default_rng(1).normal(size=(4, 6, 6, 3)).astype("float32")
    layer = filled(ConvNorm(4, 3, norm="batch", epsilon=1e-3, activation=None), x.shape)
    raw = convolved(layer, x)
    old = layer.norm.moving_mean.numpy()
    output = layer(x, training=True).numpy()
    normal = (raw - raw.mean((0, 1, 2))) / np.sqrt(raw.var((0, 1, 2)) + 1e-3)
    np.testing.assert_allclose(output, normal * layer.norm.gamma.numpy() + layer.norm.beta.numpy(), atol=1e-4)
    np.testing.assert_allclose(layer.norm.moving_mean.numpy(), 0.9 * old + 0.1 * raw.mean((0, 1, 2)), atol=1e-5)


def test_group_norm_needs_no_other_image():
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 3)).astype("float32")
    layer = filled(ConvNorm(64, 3, norm="group"), x.shape)
    np.testing.assert_allclose(layer(x, training=True)[:1], layer(x[:1], training=True), atol=1e-5)


def test_gradient_of_the_kernel_through_the_folded_scale():
    x = np.random.default_rng(1).normal(size=(1, 5, 5, 2)).astype("float32")
    layer = filled(ConvNorm(3, 3, activation=None), x.shape)
    weights = np.random.default_rng(2).normal(size=(1, 5, 5, 3)).astype("float32")
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(x) * weights)
    gradient = tape.gradient(value, layer.kernel).numpy()
    scale = layer.norm.gamma.numpy() / np.sqrt(layer.norm.moving_variance.numpy() + layer.epsilon)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    for i in range(3):
        for j in range(3):
            expected = np.einsum("bhwc,bhwf->cf", padded[:, i : i + 5, j : j + 5], weights * scale)
            np.testing.assert_allclose(gradient[i, j], expected, rtol=1e-4, atol=1e-4)


def test_config_round_trip():
    layer = ConvNorm(4, 3, norm="group", epsilon=1e-4, activation=None, groups=2, dilation=3, name="one")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()
