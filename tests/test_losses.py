import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import losses


def ratio(pair):
    return float(pair[0] / pair[1])


def sigmoid_loss(logit, target):
    return max(logit, 0) - logit * target + np.log1p(np.exp(-abs(logit)))


# === Against torchvision ===


def test_class_loss_equals_torchvision(recorded):
    pair = losses.box_class_loss(recorded["loss_class_logits"], recorded["loss_labels"].astype(np.int32))
    assert ratio(pair) == pytest.approx(float(recorded["loss_class"]), rel=1e-5)
    assert float(pair[1]) == 48


def test_box_loss_equals_torchvision(recorded):
    deltas = recorded["loss_box_deltas"].reshape(48, 11, 4)[:, 1:, [1, 0, 3, 2]]
    targets = recorded["loss_box_targets"][:, [1, 0, 3, 2]]
    pair = losses.box_delta_loss(deltas, targets, recorded["loss_labels"].astype(np.int32), 1 / 9)
    assert ratio(pair) == pytest.approx(float(recorded["loss_box"]), rel=1e-5)


def test_mask_loss_equals_torchvision(recorded):
    logits = recorded["loss_mask_logits"].astype(np.float32).transpose(0, 2, 3, 1)[..., 1:]
    # torchvision took the recorded labels as those of the ground truth, and looked them up through the matching.
    classes = recorded["loss_mask_labels"][recorded["mask_target_gt_index"]].astype(np.int32)
    pair = losses.mask_loss(tf.constant(logits), recorded["mask_target_28"], classes)
    assert ratio(pair) == pytest.approx(float(recorded["loss_mask"]), rel=1e-5)
    assert float(pair[1]) == 40


def test_keypoint_loss_equals_torchvision(recorded):
    # torchvision took the recorded heat maps as the predictions and the targets of the same boxes.
    logits = recorded["keypoint_heatmaps"].astype(np.float32).transpose(0, 2, 3, 1)
    index, valid = recorded["keypoint_target_index"].astype(np.int32), recorded["keypoint_target_valid"]
    pair = losses.keypoint_loss(tf.constant(logits), index, valid.astype(np.float32))
    assert ratio(pair) == pytest.approx(float(recorded["loss_keypoint"]), rel=1e-5)
    assert float(pair[1]) == valid.sum()


# === By hand ===


def test_smooth_l1_by_hand():
    x = tf.constant([-2.0, -0.5, 0.0, 0.25, 1.0])
    np.testing.assert_allclose(losses.smooth_l1(x, 0), [2, 0.5, 0, 0.25, 1])
    np.testing.assert_allclose(losses.smooth_l1(x, 1.0), [1.5, 0.125, 0, 0.03125, 0.5])
    np.testing.assert_allclose(losses.smooth_l1(x, 0.5), [1.75, 0.25, 0, 0.0625, 0.75])


def test_objectness_by_hand():
    total, count = losses.rpn_objectness_loss(tf.constant([[2.0, -1.0, 5.0]]), tf.constant([[1, 0, -1]]))
    assert float(total) == pytest.approx(sigmoid_loss(2, 1) + sigmoid_loss(-1, 0), rel=1e-6)
    assert float(count) == 2


def test_rpn_box_by_hand():
    deltas = tf.constant([[[1.0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9]]])
    targets = tf.constant([[[0.0, 0, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    total, count = losses.rpn_box_loss(deltas, targets, tf.constant([[1, 0, -1]]), 0.0)
    assert (float(total), float(count)) == (1.5, 2)


def test_class_loss_by_hand():
    logits = tf.math.log(tf.constant([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05]]))
    total, count = losses.box_class_loss(logits, tf.constant([0, 1, -1]))
    assert float(total) == pytest.approx(-np.log(0.5) - np.log(0.8), rel=1e-6)
    assert float(count) == 2


def test_box_loss_takes_the_deltas_of_the_true_class_only():
    deltas = np.full((4, 2, 4), 100, np.float32)
    deltas[0, 1] = [1, 2, 0, 0]
    deltas[1, 0] = [0, 0, 0.5, 0]
    total, count = losses.box_delta_loss(tf.constant(deltas), tf.zeros([4, 4]), tf.constant([2, 1, 0, -1]), 0.0)
    assert (float(total), float(count)) == (3.5, 3)


def test_mask_loss_is_the_mean_over_pixels_of_the_own_mask():
    logits = np.full((3, 2, 2, 3), 50, np.float32)
    logits[0, ..., 2] = [[0, 1], [-1, 2]]
    targets = np.zeros((3, 2, 2), np.float32)
    targets[0] = [[1, 1], [0, 0]]
    total, count = losses.mask_loss(tf.constant(logits), targets, tf.constant([3, 0, 0]))
    expected = np.mean([sigmoid_loss(0, 1), sigmoid_loss(1, 1), sigmoid_loss(-1, 0), sigmoid_loss(2, 0)])
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(count) == 1


def test_mask_gradient_reaches_the_own_mask_only():
    logits = tf.Variable(tf.random.stateless_normal([2, 4, 4, 3], [1, 2]))
    with tf.GradientTape() as tape:
        total, _ = losses.mask_loss(logits, tf.ones([2, 4, 4]), tf.constant([2, 0]))
    gradient = tf.convert_to_tensor(tape.gradient(total, logits)).numpy()
    assert (gradient[0, ..., 1] < 0).all()
    gradient[0, ..., 1] = 0
    assert not gradient.any()


def test_keypoint_loss_by_hand():
    logits = np.full((2, 2, 2, 3), 50, np.float32)
    logits[0, ..., 1] = np.log([[0.5, 0.25], [0.125, 0.125]])
    logits[1, ..., 2] = [[0, 0], [0, 0]]
    index = tf.constant([[0, 2, 0], [3, 3, 3]])
    valid = tf.constant([[0.0, 1, 0], [0, 0, 1]])
    total, count = losses.keypoint_loss(tf.constant(logits), index, valid)
    assert float(total) == pytest.approx(np.log(8) + np.log(4), rel=1e-6)
    assert float(count) == 2


def test_keypoint_gradient_is_softmax_less_target_on_valid_maps_only():
    logits = tf.Variable(tf.random.stateless_normal([2, 3, 4, 2], [1, 2]))
    with tf.GradientTape() as tape:
        total, _ = losses.keypoint_loss(logits, tf.constant([[7, 0], [1, 11]]), tf.constant([[1.0, 0], [0, 1]]))
    gradient = tf.convert_to_tensor(tape.gradient(total, logits)).numpy().reshape(2, 12, 2)
    flat = logits.numpy().reshape(2, 12, 2)
    for roi, keypoint, cell in ((0, 0, 7), (1, 1, 11)):
        share = np.exp(flat[roi, :, keypoint]) / np.exp(flat[roi, :, keypoint]).sum()
        np.testing.assert_allclose(gradient[roi, :, keypoint], share - np.eye(12)[cell], atol=1e-6)
    assert not gradient[0, :, 1].any() and not gradient[1, :, 0].any()


def test_keypoint_loss_without_keypoints():
    for rois in (0, 2):
        logits = tf.Variable(tf.fill([rois, 4, 4, 3], np.inf))
        with tf.GradientTape() as tape:
            total, count = losses.keypoint_loss(logits, tf.zeros([rois, 3], tf.int32), tf.zeros([rois, 3]))
        assert (float(total), float(count)) == (0, 0)
        assert not np.any(tf.convert_to_tensor(tape.gradient(total, logits)))


# === Nothing to learn from, and parts that must not matter ===


def test_nothing_sampled():
    none = tf.fill([1, 3], -1)
    assert [float(v) for v in losses.rpn_objectness_loss(tf.zeros([1, 3]), none)] == [0, 0]
    assert [float(v) for v in losses.rpn_box_loss(tf.ones([1, 3, 4]), tf.zeros([1, 3, 4]), none, 0.1)] == [0, 0]
    assert [float(v) for v in losses.box_class_loss(tf.zeros([3, 5]), none[0])] == [0, 0]
    assert [float(v) for v in losses.box_delta_loss(tf.ones([3, 4, 4]), tf.zeros([3, 4]), none[0], 1.0)] == [0, 0]
    assert [
        float(v) for v in losses.mask_loss(tf.ones([2, 4, 4, 3]), tf.zeros([2, 4, 4]), tf.zeros([2], tf.int32))
    ] == [0, 0]
    assert [
        float(v) for v in losses.mask_loss(tf.ones([0, 4, 4, 3]), tf.zeros([0, 4, 4]), tf.zeros([0], tf.int32))
    ] == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_sampled_touches_neither_loss_nor_gradient(bad):
    logits = tf.Variable([[1.0, bad]])
    deltas = tf.Variable([[[1.0, 1, 1, 1], [bad, bad, bad, bad]]])
    scores = tf.Variable([[1.0, 2.0], [bad, bad]])
    labels = tf.constant([[1, -1]])
    with tf.GradientTape() as tape:
        total = losses.rpn_objectness_loss(logits, labels)[0]
        total += losses.rpn_box_loss(deltas, tf.zeros([1, 2, 4]), labels, 0.5)[0]
        total += losses.box_class_loss(scores, labels[0])[0]
    assert np.isfinite(float(total))
    for gradient in tape.gradient(total, [logits, deltas, scores]):
        assert np.isfinite(gradient.numpy()).all()


def test_half_precision_predictions_are_summed_in_float32():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 5000)).astype(np.float32)
    labels = tf.constant(rng.integers(0, 2, (1, 5000)).astype(np.int32))
    exact = float(losses.rpn_objectness_loss(tf.constant(logits), labels)[0])
    rounded = losses.rpn_objectness_loss(tf.cast(logits, tf.bfloat16), labels)[0]
    assert rounded.dtype == tf.float32
    assert float(rounded) == pytest.approx(exact, rel=1e-3)


def test_shares_of_two_replicas_add_up():
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.standard_normal((6, 4, 4, 3)).astype(np.float32))
    targets = tf.constant(rng.integers(0, 2, (6, 4, 4)).astype(np.float32))
    classes = tf.constant([1, 0, 3, 2, 2, 0])
    whole = losses.mask_loss(logits, targets, classes)
    parts = [losses.mask_loss(logits[s], targets[s], classes[s]) for s in (slice(0, 1), slice(1, 6))]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)


def test_softmax_mask_by_hand():
    # Two pixels a side, two classes and the background; the second RoI does not count.
    logits = np.zeros((2, 2, 2, 3), np.float32)
    logits[0, 0, 0] = [1.0, 2.0, 3.0]
    targets = np.zeros((2, 2, 2), np.float32)
    targets[0, 0, 0] = 1.0
    total, count = losses.softmax_mask_loss(tf.constant(logits), tf.constant(targets), tf.constant([2, 0]))
    own = -np.log(np.exp(3) / (np.exp(1) + np.exp(2) + np.exp(3)))
    assert float(total) == pytest.approx((own + 3 * np.log(3)) / 4, rel=1e-6)
    assert float(count) == 1
