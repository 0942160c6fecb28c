import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.geometry.keypoints import decode_heatmaps
from mrcnn_tf.layers.keypoints import DecodeKeypoints, KeypointTargets


def sampled():
    """Two images, three RoIs each, two objects each with two keypoints."""
    rois = np.array(
        [[[0, 0, 8, 8], [20, 20, 28, 28], [0, 0, 4, 4]], [[0, 0, 16, 16], [40, 40, 48, 48], [0, 0, 0, 0]]], np.float32
    )
    classes = np.array([[1, 1, 0], [1, 1, -1]], np.int32)
    matched = np.array([[0, 1, 0], [1, 0, 0]], np.int32)
    keypoints = np.zeros((2, 2, 2, 3), np.float32)
    keypoints[0, 0] = [[1, 7, 2], [6, 2, 1]]
    keypoints[0, 1] = [[24, 24, 0], [30, 24, 2]]  # one not visible, one outside
    keypoints[1, 0] = [[48, 47, 2], [0, 0, 0]]
    keypoints[1, 1] = [[15, 1, 2], [17, 3, 2]]
    return rois, classes, matched, keypoints


def test_targets_of_the_rois_with_keypoints():
    targets = KeypointTargets(4)(*sampled())
    np.testing.assert_array_equal(targets["rois"], [[0, 0, 8, 8], [0, 0, 16, 16], [40, 40, 48, 48]])
    np.testing.assert_array_equal(targets["image_index"], [0, 1, 1])
    np.testing.assert_array_equal(targets["index"], [[3, 13], [12, 0], [15, 0]])
    np.testing.assert_array_equal(targets["valid"], [[1, 1], [1, 0], [1, 0]])


def test_without_anything_to_learn_one_empty_roi_stands_in():
    rois, classes, matched, keypoints = sampled()
    for none in ((classes * 0, keypoints), (classes, keypoints * [1, 1, 0])):
        targets = KeypointTargets(4)(rois, none[0], matched, none[1].astype(np.float32))
        np.testing.assert_array_equal(targets["rois"], np.zeros((1, 4)))
        np.testing.assert_array_equal(targets["image_index"], [0])
        np.testing.assert_array_equal(targets["index"], [[0, 0]])
        np.testing.assert_array_equal(targets["valid"], [[0, 0]])


def test_targets_in_a_functional_model():
    inputs = [keras.Input((3, 4)), keras.Input((3,), dtype="int32"), keras.Input((3,), dtype="int32")]
    inputs.append(keras.Input((None, 2, 3)))
    model = keras.Model(inputs, KeypointTargets(4)(*inputs))
    assert {name: (output.shape, output.dtype) for name, output in model.output.items()} == {
        "rois": ((None, 4), "float32"),
        "image_index": ((None,), "int32"),
        "index": ((None, 2), "int32"),
        "valid": ((None, 2), "float32"),
    }
    answer = tf.function(model)([tf.constant(value) for value in sampled()])
    np.testing.assert_array_equal(answer["index"], [[3, 13], [12, 0], [15, 0]])


def test_decoding_leaves_padding_at_zero():
    rng = np.random.default_rng(0)
    heatmaps = rng.standard_normal((3, 6, 6, 2)).astype(np.float32)
    boxes = np.array([[1, 2, 30, 40], [5, 5, 25, 9], [3, 3, 9, 9]], np.float32)
    keypoints = DecodeKeypoints()(heatmaps, boxes, np.array([1, 0, 2], np.int32)).numpy()
    assert not keypoints[1].any()
    np.testing.assert_array_equal(keypoints[[0, 2]], decode_heatmaps(heatmaps[[0, 2]], boxes[[0, 2]]))


def test_decoding_in_a_functional_model():
    inputs = [keras.Input((6, 6, 2)), keras.Input((4,)), keras.Input((), dtype="int32")]
    model = keras.Model(inputs, DecodeKeypoints()(*inputs))
    assert model.output.shape == (None, 2, 3)
    heatmap = np.zeros((1, 6, 6, 2), np.float32)
    heatmap[0, 2, 3] = [4, 5]
    values = [heatmap, np.array([[10, 10, 16, 16]], np.float32), np.array([1], np.int32)]
    np.testing.assert_allclose(
        model([tf.constant(value) for value in values])[0], [[12.5, 13.5, 4], [12.5, 13.5, 5]], rtol=1e-6
    )


def test_config_round_trip():
    layer = KeypointTargets(28, name="t")
    again = KeypointTargets.from_config(layer.get_config())
    assert (again.side, again.name) == (28, "t")
    assert DecodeKeypoints.from_config(DecodeKeypoints(name="d").get_config()).name == "d"
