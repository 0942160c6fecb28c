import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import nms as nms_ops


def greedy(boxes, scores, iou):
    """NMS as it is told: take the best, strike out what it covers, go on."""
    overlap = box_ops.iou(boxes, boxes).numpy()
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [other for other in left if overlap[best, other] <= iou]
    return kept


def some_boxes(rng, count):
    low, side = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 60, (count, 2))
    return np.concatenate([low, low + side], axis=1).astype(np.float32), rng.permutation(count).astype(np.float32)


def test_nms_equals_torchvision(recorded, yx):
    kept = nms_ops.nms(yx(recorded["nms_boxes_xyxy"]), recorded["nms_scores"], 0.7)
    np.testing.assert_array_equal(kept, recorded["nms_keep_07"])


def test_nms_by_class_equals_torchvision(recorded, yx):
    boxes, scores = yx(recorded["nms_boxes_xyxy"]), recorded["nms_scores"]
    kept = nms_ops.nms_by_class(boxes, scores, recorded["nms_classes"], 0.5)
    np.testing.assert_array_equal(kept, recorded["nms_keep_05_by_class"])
    few = nms_ops.nms_by_class(boxes, scores, recorded["nms_classes"], 0.5, max_boxes=10)
    np.testing.assert_array_equal(few, recorded["nms_keep_05_by_class"][:10])


def test_exact_threshold_stays():
    # IoU of the two is exactly 1/3 in numbers that float32 holds: 50 of 150.
    boxes = tf.constant([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]])
    np.testing.assert_array_equal(nms_ops.nms(boxes, tf.constant([1.0, 2.0]), 0.34), [1, 0])
    np.testing.assert_array_equal(nms_ops.nms(boxes, tf.constant([1.0, 2.0]), 0.33), [1])


def test_equal_scores_go_by_index():
    boxes = tf.tile(tf.constant([[0.0, 0.0, 10.0, 10.0]]), [3, 1])
    np.testing.assert_array_equal(nms_ops.nms(boxes, tf.ones(3), 0.5), [0])


def test_no_boxes():
    assert nms_ops.nms(tf.zeros([0, 4]), tf.zeros([0]), 0.5).shape == (0,)
    assert nms_ops.nms_by_class(tf.zeros([0, 4]), tf.zeros([0]), tf.zeros([0], tf.int32), 0.5).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.7]))
def test_nms_is_greedy(count, seed, iou):
    boxes, scores = some_boxes(np.random.default_rng(seed), count)
    np.testing.assert_array_equal(nms_ops.nms(boxes, scores, iou), greedy(boxes, scores, iou))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_nms_by_class_is_nms_within_each_class(count, seed):
    rng = np.random.default_rng(seed)
    boxes, scores = some_boxes(rng, count)
    classes = rng.integers(0, 4, count)
    kept = nms_ops.nms_by_class(boxes, scores, classes, 0.5).numpy()
    assert (np.diff(scores[kept]) < 0).all()
    for k in range(4):
        members = np.flatnonzero(classes == k)
        expected = members[greedy(boxes[members], scores[members], 0.5)] if members.size else []
        assert set(kept[classes[kept] == k]) == set(expected)
