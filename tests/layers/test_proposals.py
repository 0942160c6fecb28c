from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import nms as nms_ops
from mrcnn_tf.layers.anchors import Anchors
from mrcnn_tf.layers.proposals import Proposals


def anchors_of(shapes, rounded=False):
    sizes = ((32,), (64,), (128,), (256,), (512,))
    return Anchors(sizes, (0.5, 1, 2), rounded=rounded)([tf.zeros([1, height, width, 1]) for height, width in shapes])


@pytest.mark.parametrize("source, rounded, min_size", [("torchvision", True, 1e-3), ("detectron2", False, 0.0)])
def test_equals_recorded_models(yx, source, rounded, min_size):
    with np.load(Path(__file__).resolve().parents[1] / "reference" / "proposals.npz") as arrays:
        recorded = {name.split("/")[1]: arrays[name] for name in arrays.files if name.startswith(source)}
    logits, deltas, shapes = [], [], []
    for level in range(5):
        logit = recorded[f"rpn_logits_{level}"]  # [A, H, W]
        height, width = logit.shape[1:]
        delta = yx(recorded[f"rpn_deltas_{level}"].reshape(3, 4, height, width).transpose(2, 3, 0, 1))
        logits.append(logit.transpose(1, 2, 0).reshape(1, -1))
        deltas.append(delta.reshape(1, -1, 4))
        shapes.append((height, width))
    layer = Proposals(pre_nms_test=1000, post_nms_test=1000, min_size=min_size)
    boxes, scores = layer(logits, deltas, anchors_of(shapes, rounded), recorded["image_size"][None].astype(np.int32))
    boxes, scores, expected = boxes[0].numpy(), scores[0].numpy(), yx(recorded["proposals_xyxy"])
    assert (np.diff(scores) <= 0).all()
    # torchvision sorts by the sigmoid, in which two neighbours can be equal: then they may change places.
    away = np.abs(boxes - expected).max(axis=1) > 1e-3
    assert away.sum() <= 4
    rest = {tuple(np.round(box, 2)) for box in boxes[away]}
    assert rest == {tuple(np.round(box, 2)) for box in expected[away]}
    np.testing.assert_allclose(boxes[~away], expected[~away], atol=1e-4)
    if "proposal_logits" in recorded:
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-recorded["proposal_logits"])), atol=1e-6)


def slow_proposals(logits, deltas, anchors, size, pre_nms, post_nms, iou):
    """One image, level by level, with the single-image NMS."""
    boxes, scores = [], []
    for logit, delta, anchor in zip(logits, deltas, anchors):
        order = np.argsort(-logit, kind="stable")[:pre_nms]
        box = box_ops.clip(box_ops.decode(delta[order], anchor.numpy()[order]), size).numpy()
        real = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        box, score = box[real], logit[order][real]
        kept = nms_ops.nms(box, score, iou).numpy()
        boxes.append(box[kept])
        scores.append(score[kept])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    order = np.argsort(-scores, kind="stable")[:post_nms]
    return boxes[order], scores[order]


def random_inputs(batch, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    anchors = anchors_of(shapes)
    logits = [rng.standard_normal((batch, 3 * h * w)).astype(np.float32) for h, w in shapes]
    deltas = [(0.3 * rng.standard_normal((batch, 3 * h * w, 4))).astype(np.float32) for h, w in shapes]
    return logits, deltas, anchors


@pytest.mark.parametrize("training", [False, True])
def test_is_what_the_slow_form_says(training):
    logits, deltas, anchors = random_inputs(3)
    sizes = np.array([[64, 96], [40, 96], [64, 33]], np.int32)
    layer = Proposals(pre_nms_train=200, pre_nms_test=100, post_nms_train=150, post_nms_test=60, nms_iou=0.6)
    boxes, scores = layer(logits, deltas, anchors, sizes, training=training)
    pre, post = (200, 150) if training else (100, 60)
    assert boxes.shape == (3, post, 4) and scores.shape == (3, post)
    for image in range(3):
        one = [level[image] for level in logits], [level[image] for level in deltas]
        expected, logit = slow_proposals(*one, anchors, sizes[image], pre, post, 0.6)
        found = len(expected)
        assert found > 20
        np.testing.assert_allclose(boxes[image, :found], expected, atol=1e-4)
        np.testing.assert_allclose(scores[image, :found], 1 / (1 + np.exp(-logit)), atol=1e-6)
        assert not boxes[image, found:].numpy().any() and not scores[image, found:].numpy().any()
        assert (boxes[image].numpy() <= np.tile(sizes[image], 2)).all() and (boxes[image].numpy() >= 0).all()


def test_small_boxes_are_dropped():
    anchors = [tf.constant([[0.0, 0, 10, 10], [20, 20, 22, 40], [50, 50, 60, 60], [100, 100, 120, 120]])]
    logits = [np.array([[1.0, 4.0, 2.0, 3.0]], np.float32)]
    layer = Proposals(post_nms_test=4, min_size=2.0)
    boxes, scores = layer(logits, [np.zeros((1, 4, 4), np.float32)], anchors, np.array([[90, 90]], np.int32))
    # The second is 2 pixels tall, the fourth lies outside the image; very unlikely proposals stay.
    np.testing.assert_allclose(boxes[0], [[50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert (scores[0].numpy() > 0).tolist() == [True, True, False, False]


def test_strange_predictions_do_no_harm():
    logits, deltas, anchors = random_inputs(1)
    logits[0][0, 5], logits[0][0, 6], deltas[0][0, 7] = np.nan, -80.0, np.nan
    deltas[0][0, 8], logits[0][0, 7:9] = 1e6, 50.0
    boxes, scores = Proposals()(logits, deltas, anchors, np.array([[64, 96]], np.int32))
    assert np.isfinite(boxes.numpy()).all() and np.isfinite(scores.numpy()).all()


def test_no_gradient_flows_through():
    logits, deltas, anchors = random_inputs(1)
    watched = [tf.Variable(level) for level in deltas]
    with tf.GradientTape() as tape:
        boxes, _ = Proposals(post_nms_test=20)(
            logits, [v + 0.0 for v in watched], anchors, np.array([[64, 96]], np.int32)
        )
        total = tf.reduce_sum(boxes)
    assert tape.gradient(total, watched) == [None] * 5


def test_unknown_sizes_in_a_functional_model():
    logits = [keras.Input((None,)) for _ in range(5)]
    deltas = [keras.Input((None, 4)) for _ in range(5)]
    features = [keras.Input((None, None, 1)) for _ in range(5)]
    size = keras.Input((2,), dtype="int32")
    anchors = Anchors(((32,), (64,), (128,), (256,), (512,)), (0.5, 1, 2))(features)
    layer = Proposals(post_nms_train=70, post_nms_test=30)
    outputs = [layer(logits, deltas, anchors, size, training=training) for training in (False, True)]
    model = keras.Model([logits, deltas, features, size], outputs)
    assert [output.shape for output in tf.nest.flatten(model.output)] == [
        (None, 30, 4),
        (None, 30),
        (None, 70, 4),
        (None, 70),
    ]
    some_logits, some_deltas, some_anchors = random_inputs(2)
    maps = [tf.zeros([2, *shape, 1]) for shape in [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]]
    sizes = tf.constant([[64, 96], [64, 90]])
    results = model(tf.nest.map_structure(tf.constant, [some_logits, some_deltas, maps, sizes]))
    for training, result in zip((False, True), results):
        expected = layer(some_logits, some_deltas, some_anchors, sizes, training=training)
        np.testing.assert_allclose(result[0], expected[0], atol=1e-4)


def test_config_round_trip():
    layer = Proposals(1, 2, 3, 4, 0.5, 6.0, name="p")
    again = Proposals.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.pre_nms_test, again.post_nms_train, again.min_size) == (2, 3, 6.0)
