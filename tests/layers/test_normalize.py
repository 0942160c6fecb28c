import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.layers.normalize import Normalize


def test_order_mean_and_scale():
    image = np.broadcast_to(np.array([10, 20, 30], np.float32), (1, 32, 32, 3))
    size = np.array([[32, 32]], np.int32)
    bgr = Normalize((1, 2, 3), (1, 1, 1), "bgr")(image, size).numpy()
    np.testing.assert_array_equal(bgr[0, 0, 0], [29, 18, 7])
    rgb = Normalize((1, 2, 3), (1, 2, 3), "rgb")(image, size).numpy()
    np.testing.assert_array_equal(rgb[0, 5, 7], [9, 9, 9])


def test_padding_is_zero_and_sides_fit_the_divisor():
    image = np.full((2, 40, 70, 1), 100, np.uint8)
    size = np.array([[40, 70], [10, 20]], np.int32)
    output = Normalize((50,), (1,), size_divisor=32)(image, size).numpy()
    assert output.shape == (2, 64, 96, 1)
    assert (output[0, :40, :70] == 50).all() and output[0].sum() == 50 * 40 * 70
    assert (output[1, :10, :20] == 50).all() and output[1].sum() == 50 * 10 * 20


def test_four_channels_unknown_sizes_in_a_functional_model():
    image, size = keras.Input((None, None, 4)), keras.Input((2,), dtype="int32")
    model = keras.Model([image, size], Normalize((0,) * 4, (1,) * 4, "bgr")(image, size))
    assert model.output.shape == (None, None, None, 4)
    output = model([np.ones((3, 33, 65, 4), np.float32), np.array([[33, 65]] * 3, np.int32)])
    assert output.shape == (3, 64, 96, 4)


def test_half_precision_rounds_after_the_mean():
    layer = Normalize((200.0,), (1.0,), dtype="mixed_bfloat16")
    output = layer(np.full((1, 32, 32, 1), 201.25, np.float32), np.array([[32, 32]], np.int32))
    assert output.dtype == tf.bfloat16
    assert float(output[0, 0, 0, 0]) == 1.25


def test_config_round_trip():
    layer = Normalize((1, 2, 3), (4, 5, 6), "bgr", 64, name="n")
    again = Normalize.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.mean, again.channel_order, again.size_divisor) == ((1, 2, 3), "bgr", 64)
