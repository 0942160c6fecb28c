"""What holds for all layers: boxes are never rounded, files reload them, replicas agree with one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.anchors import Anchors
from mrcnn_tf.layers.detection_targets import DetectionTargets
from mrcnn_tf.layers.detections import DetectBoxes, SelectMasks
from mrcnn_tf.layers.normalize import Normalize
from mrcnn_tf.layers.proposals import Proposals
from mrcnn_tf.layers.roi_align import RoIAlign
from mrcnn_tf.layers.rpn_targets import RPNTargets

LAYERS = [
    Anchors([(8,), (16,), (32,), (64,), (128,)], (1,)),
    DetectBoxes(),
    DetectionTargets(),
    Normalize((1,), (1,)),
    Proposals(),
    RoIAlign(7),
    RPNTargets(),
    SelectMasks(),
]


@pytest.fixture
def half_precision():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy(before)


def test_boxes_are_not_rounded_under_half_precision(half_precision):
    box = np.array([[[1001.25, 1003.5, 1101.75, 1203.125]]], np.float32)
    boxes, _, _ = DetectBoxes(0.1, max_per_image=1)(
        tf.constant([[[0.0, 5.0]]], tf.bfloat16), tf.zeros([1, 1, 1, 4], tf.bfloat16), box, np.array([[2000, 2000]])
    )
    np.testing.assert_allclose(boxes, box, atol=1e-3)
    boxes, _ = Proposals(post_nms_test=1)(
        [tf.zeros([1, 1], tf.bfloat16)],
        [tf.zeros([1, 1, 4], tf.bfloat16)],
        [tf.constant(box[0])],
        np.array([[2000, 2000]]),
    )
    np.testing.assert_allclose(boxes, box, atol=1e-3)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_keras_finds_each_layer_by_its_registered_name(layer):
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"].startswith("mrcnn_tf>")
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer) and again.get_config() == layer.get_config()


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_no_layer_has_weights(layer):
    assert not layer.weights


def test_under_a_strategy_each_replica_gives_what_one_device_gives():
    """MirroredStrategy on the one CPU there is: the layers trace and run inside `strategy.run`."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    anchors = Anchors([(8,), (16,), (32,), (64,), (128,)], (1,))
    features = [tf.random.stateless_normal([1, 64 // s, 64 // s, 3], [s, 1]) for s in (4, 8, 16, 32, 64)]
    targets = RPNTargets(anchors_per_image=8)
    proposals, align = Proposals(post_nms_test=10), RoIAlign(3)
    truth = (
        tf.constant([[[5.0, 5, 30, 30]]]),
        tf.constant([[1]]),
        tf.constant([[0]], tf.uint8),
        tf.constant([[64, 64]]),
        tf.constant([[1, 2]]),
    )

    def step():
        boxes_of_levels = anchors(features)
        labels, _ = targets(boxes_of_levels, *truth)
        logits = [tf.reshape(feature[..., 0], [1, -1]) for feature in features]
        deltas = [tf.zeros([1, tf.shape(logit)[1], 4]) for logit in logits]
        boxes, _ = proposals(logits, deltas, boxes_of_levels, truth[3])
        return labels, boxes, align(features[:4], boxes[0], tf.zeros([10], tf.int32))

    distributed = tf.function(lambda: strategy.run(step))()
    for result, expected in zip(distributed, step()):
        np.testing.assert_allclose(result, expected, atol=1e-5)
