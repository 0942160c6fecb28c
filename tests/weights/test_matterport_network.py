"""The model computes what Matterport's network does, which tests/support/matterport_network.py has once more."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.weights.matterport import assign_matterport
from tests.support import matterport_network as theirs
from tests.support.matterport_network import CLASSES, SIDE, config
from tests.support.tiny import random_batch, tiny_config

ROIS, DETECTIONS, THRESHOLD = 200, 20, 0.3


@pytest.fixture(scope="module")
def tensors():
    tensors = theirs.random_tensors(CLASSES, seed=2)
    tensors["mrcnn_class_logits/bias"][0] += 4  # so that every class wins somewhere, the background too
    return tensors


@pytest.fixture(scope="module")
def model():
    numbers = {"rpn.post_nms_test": ROIS, "detections.max_per_image": DETECTIONS}
    return MaskRCNN(config(**{"detections.score_threshold": THRESHOLD, **numbers}))


@pytest.fixture(scope="module")
def report(model, tensors):
    return assign_matterport(model, tensors)


@pytest.fixture(scope="module")
def network(tensors):
    return theirs.Network(tensors)


@pytest.fixture(scope="module")
def image():
    smooth = np.random.default_rng(1).uniform(0, 255, (1, 12, 12, 3)).astype(np.float32)
    return tf.image.resize(smooth, [SIDE, SIDE])


@pytest.fixture(scope="module")
def features(network, image):
    return network.features(image)


@pytest.fixture(scope="module")
def ours(model, report, image):
    """Our features and RPN outputs, each level's by itself."""
    stage = keras.Model(model.inputs, [model.stages["rpn"][0], *model.stages["rpn"][1]])
    return stage([image, tf.constant([[SIDE, SIDE]])])


@pytest.fixture(scope="module")
def rois():
    """Boxes [200, 4] in pixels, of all levels; the first ones lie at the borders."""
    random = np.random.default_rng(3)
    low = random.uniform(0, 100, (ROIS, 2))
    boxes = np.concatenate([low, low + random.uniform(5, 90, (ROIS, 2))], axis=1)
    boxes[:3] = [0, 0, SIDE - 1, SIDE - 1], [100, 90, SIDE - 1, 189.5], [0, 100.5, 30, SIDE - 1]
    assert set(theirs.levels(normalised(boxes), SIDE)) == {2, 3, 4}
    return boxes.astype(np.float32)


def normalised(boxes):
    return (boxes / (SIDE - 1)).astype(np.float32)


def difference(first, second):
    """The largest difference, relative to the largest value."""
    first, second = np.asarray(first), np.asarray(second)
    assert first.shape == second.shape
    return np.abs(first - second).max() / np.abs(second).max()


# === The same answers ===


def test_features(ours, features):
    assert len(ours[0]) == len(features) == 5
    for mine, other in zip(ours[0], features):
        assert difference(mine, other) < 1e-4
        assert float(tf.math.reduce_std(other)) > 0.1


def test_proposal_network(ours, network, features):
    probabilities, deltas = network.rpn(features)
    _, logits, own_deltas, anchors = ours
    objects = probabilities[..., 1].numpy()
    assert 0.02 < objects.std() < 0.48  # neither all alike nor all certain
    assert difference(tf.sigmoid(tf.concat(logits, 1)), objects) < 1e-4
    assert difference(tf.concat(own_deltas, 1), deltas * theirs.UNITS) < 1e-4
    their_anchors = theirs.normalised_anchors(SIDE)
    np.testing.assert_allclose(tf.concat(anchors, 0), their_anchors * (SIDE - 1), atol=1e-3)
    boxes = box_ops.decode(tf.concat(own_deltas, 1), tf.concat(anchors, 0))
    assert difference(boxes, theirs.moved(their_anchors, deltas) * (SIDE - 1)) < 1e-4


def test_box_branch(model, report, network, features, rois):
    probabilities, deltas = network.box_branch(theirs.crops(features, normalised(rois), 7, SIDE))
    head = keras.Model(model.stages["box_align"][0], model.stages["box_head"][1])
    logits, own_deltas = head([features[:4], tf.constant(rois[None])])
    assert difference(tf.nn.softmax(logits)[0], probabilities) < 1e-4
    assert difference(own_deltas[0], deltas[:, 1:]) < 1e-4  # the background's box is left out
    found = box_ops.decode(own_deltas[0], rois[:, None], model.config.box_head.delta_weights)
    assert difference(found, theirs.moved(normalised(rois)[:, None], deltas[:, 1:]) * (SIDE - 1)) < 1e-4


def test_mask_branch(model, report, network, features, rois):
    boxes = rois[:DETECTIONS]
    masks = network.mask_branch(theirs.crops(features, normalised(boxes), 14, SIDE))
    branch = keras.Model(model.stages["mask_align"][0], model.stages["mask_head"][1])
    assert difference(tf.sigmoid(branch([features[:4], tf.constant(boxes[None])])), masks[..., 1:]) < 1e-4


def expected_detections(network, features, rois):
    """Their last stage: the likeliest class, a least score, NMS class by class, boxes cut to the first and last pixel.

    Returns labels [D], scores [D] and boxes [D, 4] in pixels, the last one inside, best first.
    """
    values = network.box_branch(theirs.crops(features, normalised(rois), 7, SIDE))
    probabilities, deltas = (value.numpy() for value in values)
    best = probabilities.argmax(axis=1)
    refined = np.clip(theirs.moved(normalised(rois), deltas[np.arange(ROIS), best]), 0, 1)
    chosen = []
    for label in range(1, CLASSES + 1):
        place = np.flatnonzero((best == label) & (probabilities[:, label] >= THRESHOLD))
        kept = tf.image.non_max_suppression(refined[place], probabilities[place, label], DETECTIONS, 0.3)
        chosen += [(probabilities[i, label], label, i) for i in place[kept.numpy()]]
    chosen = sorted(chosen, reverse=True)[:DETECTIONS]
    assert 0 in best and len({label for _, label, _ in chosen}) > 1
    scores, labels, places = (np.array(column) for column in zip(*chosen))
    return labels, scores, refined[places] * (SIDE - 1)


def test_detections(model, report, network, features, rois):
    labels, scores, boxes = expected_detections(network, features, rois)
    head = keras.Model(model.stages["box_align"][0], model.stages["box_head"][1])
    layer, last_pixel = model.get_layer("detect_boxes"), np.array([[SIDE - 1, SIDE - 1]], np.int32)
    found, classes, own_scores = layer(*head([features[:4], tf.constant(rois[None])]), rois[None], last_pixel)
    number = len(labels)
    np.testing.assert_array_equal(classes[0, :number], labels)
    np.testing.assert_allclose(own_scores[0, :number], scores, atol=1e-4)
    np.testing.assert_allclose(found[0, :number], boxes, atol=0.02)
    assert not classes[0, number:].numpy().any()


def test_from_the_image_to_detections_and_masks(model, report, network, features, image):
    """All but the choice of proposals, which there is one of all levels together."""
    whole = keras.Model(model.inputs, [model.stages["proposals"][1], model.output])
    proposals, found = whole([image, tf.constant([[SIDE, SIDE]])])
    proposals = proposals[0].numpy()
    assert (proposals[:, 2:] > proposals[:, :2]).all() and proposals.max() == SIDE - 1  # cut to the last pixel
    labels, scores, boxes = expected_detections(network, features, proposals)
    number = len(labels)
    np.testing.assert_array_equal(found["classes"][0, :number], labels)
    np.testing.assert_allclose(found["scores"][0, :number], scores, atol=1e-4)
    # A box of pixels ends where its last pixel ends.
    np.testing.assert_allclose(found["boxes"][0, :number], boxes + [0, 0, 1, 1], atol=0.02)
    masks = network.mask_branch(theirs.crops(features, normalised(boxes), 14, SIDE)).numpy()
    own = masks[np.arange(number), :, :, labels]
    np.testing.assert_allclose(found["masks"][0, :number], own, atol=1e-3)


def test_targets_of_boxes_that_end_on_their_last_pixel():
    """A trained model moves its anchors to objects as Matterport's does: both lose the pixel."""
    model = MaskRCNN(tiny_config(**{"anchors.shrink": 1.0, "anchors.ratios": (1.0,)}))
    batch = random_batch(1, objects=2)
    boxes = np.array([[[24, 24, 40, 40], [0, 0, 0, 0]]], np.float32)  # the anchor of 16 pixels at (32, 32)
    batch.update(boxes=tf.constant(boxes), classes=tf.constant([[2, 0]]), seed=tf.zeros((1, 2), tf.int32))
    found = model.training_graph({name: batch[name] for name in model.training_graph.input})
    labels, targets = found["rpn_labels"][0].numpy(), found["rpn_targets"][0].numpy()
    own = 16 * 16 + 4 * 8 + 4  # after the anchors of stride 4, the row and the column of stride 8
    assert labels[own] == 1
    np.testing.assert_array_equal(targets[own], np.zeros(4))
    # The object itself is among the sampled RoIs, and is the mask of itself.
    sampled = found["roi_classes"][0].numpy() == 2
    assert (np.abs(found["roi_targets"][0].numpy()[sampled]).max(axis=1) < 1e-5).any()


# === The report ===


def test_every_tensor_and_every_weight_is_accounted_for(model, tensors, report):
    assert sorted(report.loaded) == sorted(weight.path for weight in model.weights)
    assert report.missing == report.left == report.unused == report.warnings == report.reinitialized == []
    assert report.complete
    background = "(the background's, which nothing uses)"
    assert sorted(report.left_out) == [
        f"mrcnn_bbox_fc/bias[..., 0:4] {background}",
        f"mrcnn_bbox_fc/kernel[..., 0:4] {background}",
        f"mrcnn_mask/bias[..., 0:1] {background}",
        f"mrcnn_mask/kernel[..., 0:1] {background}",
    ]
