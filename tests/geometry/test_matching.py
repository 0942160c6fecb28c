import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry import matching


def recorded_form(matched, labels):
    """torchvision's single array: the object, -1 below the low threshold, -2 between the two."""
    matched, labels = matched.numpy(), labels.numpy()
    return np.where(labels == 1, matched, np.where(labels == 0, -1, -2))


def test_rpn_matching_equals_torchvision(recorded):
    overlap = recorded["iou_gt_by_box"]
    result = matching.match_anchors(overlap, tf.ones(len(overlap), tf.bool), 0.7, 0.3, low_quality=True)
    np.testing.assert_array_equal(recorded_form(*result), recorded["match_rpn_07_03_lowquality"])


def test_roi_matching_equals_torchvision(recorded):
    result = matching.match_anchors(recorded["iou_gt_by_box"], None, 0.5, 0.5, low_quality=False)
    np.testing.assert_array_equal(recorded_form(*result), recorded["match_roi_05"])


def test_thresholds_by_hand():
    overlap = tf.constant([[0.7, 0.69, 0.3, 0.29, 0.0], [0.1, 0.7, 0.2, 0.0, 0.0]])
    matched, labels = matching.match_anchors(overlap, None, 0.7, 0.3, low_quality=False)
    np.testing.assert_array_equal(labels, [1, 1, -1, 0, 0])
    np.testing.assert_array_equal(matched.numpy()[:3], [0, 1, 0])


def test_low_quality_takes_all_equals_and_keeps_the_anchors_own_best():
    overlap = tf.constant([[0.2, 0.2, 0.1, 0.0], [0.0, 0.6, 0.8, 0.0]])
    matched, labels = matching.match_anchors(overlap, None, 0.7, 0.3, low_quality=True)
    np.testing.assert_array_equal(labels, [1, 1, 1, 0])
    # Anchor 1 is the first object's best, yet overlaps the second more: Faster R-CNN gives it to the second.
    np.testing.assert_array_equal(matched.numpy()[:3], [0, 1, 1])


def test_object_that_nothing_touches_has_no_anchor():
    _, labels = matching.match_anchors(tf.zeros([1, 4]), None, 0.7, 0.3, low_quality=True)
    np.testing.assert_array_equal(labels, [0, 0, 0, 0])


def test_invalid_rows_match_nothing():
    overlap = tf.constant([[0.9, 0.9], [0.0, 0.8]])
    matched, labels = matching.match_anchors(overlap, tf.constant([False, True]), 0.7, 0.3)
    np.testing.assert_array_equal(labels, [0, 1])
    assert matched.numpy()[1] == 1


@pytest.mark.parametrize(
    "positives, negatives, expected", [(50, 50, (4, 4)), (1, 50, (1, 7)), (50, 2, (4, 2)), (0, 3, (0, 3))]
)
def test_sample_sizes(positives, negatives, expected):
    labels = np.array([1] * positives + [0] * negatives + [-1] * 5, np.int32)
    noise = np.random.default_rng(0).uniform(size=labels.size).astype(np.float32)
    sampled = matching.sample_labels(labels, noise, 8, 0.5).numpy()
    assert ((sampled == 1).sum(), (sampled == 0).sum()) == expected
    kept = sampled >= 0
    np.testing.assert_array_equal(sampled[kept], labels[kept])


def test_sample_keeps_the_largest_noise():
    labels = np.array([1, 1, 1, 0, 0, 0, -1], np.int32)
    noise = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.0, 1.0], np.float32)
    np.testing.assert_array_equal(matching.sample_labels(labels, noise, 4, 0.5), [-1, 1, 1, 0, 0, -1, -1])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=60),
    st.integers(1, 40),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_sample_never_exceeds_its_budget_nor_wastes_it(labels, count, fraction):
    labels = np.array(labels, np.int32)
    noise = np.random.default_rng(len(labels)).uniform(size=labels.size).astype(np.float32)
    sampled = matching.sample_labels(labels, noise, count, fraction).numpy()
    positives = min((labels == 1).sum(), int(count * fraction))
    assert (sampled == 1).sum() == positives
    assert (sampled == 0).sum() == min((labels == 0).sum(), count - positives)


def test_noise_is_uniform_and_depends_on_every_word():
    keys = tf.range(100_000)[:, None]
    noise = matching.uniform_noise(tf.constant([3, 4]), keys).numpy()
    assert noise.min() >= 0 and noise.max() < 1
    counts = np.histogram(noise, bins=20, range=(0, 1))[0]
    # 5000 each with a standard deviation of 69; 6 of them.
    assert np.abs(counts - 5000).max() < 414
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
    for seed in ([4, 3], [3, 5], [4, 4], [3, -4]):
        other = matching.uniform_noise(tf.constant(seed), keys).numpy()
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.02


def test_noise_of_floats_and_batches():
    boxes = tf.random.stateless_uniform([50, 4], [1, 2]) * 100
    seeds = tf.constant([[1, 2], [1, 2], [7, 2]])
    together = matching.uniform_noise(seeds, tf.tile(boxes[None], [3, 1, 1])).numpy()
    np.testing.assert_array_equal(together[0], together[1])
    assert (together[0] != together[2]).mean() > 0.99
    np.testing.assert_array_equal(together[2], matching.uniform_noise(seeds[2], boxes))
    # An item's number is its own: others before it or after it change nothing.
    np.testing.assert_array_equal(matching.uniform_noise(seeds[2], boxes[10:20]), together[2][10:20])
    moved = boxes.numpy()
    moved[:, 3] += 1
    assert (matching.uniform_noise(seeds[2], tf.constant(moved)).numpy() != together[2]).mean() > 0.99
