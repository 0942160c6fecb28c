"""Test-time augmentation: one view is plain prediction, mirrored images have mirrored answers, averages by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from mrcnn_tf.augmented import Augmentation, _View, mean_heatmaps, mean_masks, predict_augmented
from mrcnn_tf.config import ConfigError, InputConfig
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.evaluation.detect import detect
from mrcnn_tf.model import MaskRCNN
from tests.support.tiny import calm, tiny_config

NAMES = ("left_end", "right_end", "middle")
POINTS = {"keypoint_head": {"pool": 4, "convs": (8,), "names": NAMES, "skeleton": ((0, 1),)}}


def build(**changes):
    keras.utils.set_random_seed(1)
    model = MaskRCNN(tiny_config(**changes))
    calm(model)
    return model


@pytest.fixture(scope="module")
def model():
    return build(branches=("mask", "keypoints"), **POINTS)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((70, 93), (50, 41))]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_array_equal(one.classes, other.classes)
        # Two compilations of one network: sums may be grouped otherwise, the last bit of a float32 may differ.
        for name in ("boxes", "scores", "mask_crops", "keypoints"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


def test_one_view_is_plain_prediction(model, pictures):
    same(predict_augmented(model, pictures, (64,), flip=False), model.predict_images(pictures))


def test_one_view_is_plain_prediction_with_shrunk_boxes_and_boxes_alone(pictures):
    model = build(branches=(), anchors={"shrink": 1.0})
    found = predict_augmented(model, pictures, (64,), flip=False)
    for one, other in zip(found, model.predict_images(pictures), strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
        assert one.mask_crops is None and one.keypoints is None


def test_a_mirrored_image_has_the_mirrored_answer(model, pictures):
    width = pictures[0].shape[1]
    found = predict_augmented(model, pictures[:1], (48, 64))[0]
    mirrored = predict_augmented(model, [pictures[0][:, ::-1]], (48, 64))[0]
    assert len(found) == len(mirrored) == 8
    np.testing.assert_allclose(mirrored.scores, found.scores, atol=1e-5)
    np.testing.assert_array_equal(mirrored.classes, found.classes)
    expected = np.stack([found.boxes[:, 0], width - found.boxes[:, 3], found.boxes[:, 2], width - found.boxes[:, 1]], 1)
    np.testing.assert_allclose(mirrored.boxes, expected, atol=1e-2)
    np.testing.assert_allclose(mirrored.mask_crops, found.mask_crops[:, :, ::-1], atol=2e-3)
    # Left and right change places; a maximum of nearly flat maps may fall on a neighbouring pixel.
    np.testing.assert_allclose(mirrored.keypoints[:, [1, 0, 2], 2], found.keypoints[..., 2], atol=1e-3)
    places = width - mirrored.keypoints[:, [1, 0, 2], 1]
    assert np.mean(np.abs(places - found.keypoints[..., 1]) < 1e-2) > 0.8


def test_boxes_of_all_views_compete(model, pictures):
    """What is found at either scale alone, put together and thinned by the NMS that the model has."""
    views = [predict_augmented(model, pictures[:1], (edge,), flip=False)[0] for edge in (48, 64)]
    boxes, classes, scores = (np.concatenate([getattr(view, name) for view in views]) for name in FOUND)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if classes[other] == classes[index]]
        if all(overlap(boxes[index], boxes[other]) <= model.config.detections.nms_iou for other in rivals):
            kept.append(index)
    found = predict_augmented(model, pictures[:1], (48, 64), flip=False)[0]
    np.testing.assert_array_equal(found.scores, scores[kept[:8]])
    np.testing.assert_array_equal(found.boxes, boxes[kept[:8]])


FOUND = ("boxes", "classes", "scores")


def overlap(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    common = sides[0] * sides[1]
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def test_masks_and_keypoints_are_means_over_the_views(model, pictures):
    """The stand-in's answers are known: masks of the shorter edge / 100 that a mirrored view has darker on the left."""
    from mrcnn_tf import augmented

    def find(inputs):
        edge = float(min(inputs["image_size"][0].numpy()))
        box = tf.constant([[[0.0, 0.0, edge / 2, edge / 2]] + [[0.0] * 4] * 7])
        outputs = {"boxes": box, "inner": box, "classes": [[2] + [0] * 7], "scores": [[edge / 100] + [0.0] * 7]}
        return {name: tf.constant(value) for name, value in outputs.items()} | {"maps": [tf.constant(edge)]}

    def describe(inputs):
        edge, boxes, _ = inputs
        is_mirrored = float(boxes[0, 0, 1]) > 0  # the box on the left of the plain view
        masks = np.full((1, 8, 28, 28), float(edge) / 100, np.float32)
        heatmaps = np.zeros((8, 16, 16, 3), np.float32)
        if is_mirrored:
            masks[..., :14] = 0
        heatmaps[0, 4, 0, 0] = 4.0  # the left end, at the first column, seen by both kinds of views
        return {"masks": tf.constant(masks), "heatmaps": tf.constant(heatmaps)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmented, "_functions", lambda _: (find, describe))
        found = predict_augmented(model, [np.zeros((100, 100, 3), np.uint8)], (40, 80))[0]
    # Each view finds its upper left quarter; that of the largest plain view has the best score, and the mirrored
    # views' is another object, the upper right quarter.
    np.testing.assert_allclose(found.boxes, [[0, 0, 50, 50], [0, 50, 50, 100]])
    np.testing.assert_allclose(found.scores, [0.8, 0.8])
    # The box on the left: plain views give .4 and .8 everywhere, mirrored ones the same without what was left.
    left = np.full((28, 28), (0.4 + 0.8) / 4 * 2)
    left[:, 14:] = (0.4 + 0.8) / 4
    np.testing.assert_allclose(found.mask_crops[0], left, atol=1e-3)
    # The plain views saw the left end at the box's left; the mirrored ones' is the right end at its right.
    assert found.keypoints[0, 0, 1] < 4 and found.keypoints[0, 1, 1] > 46
    np.testing.assert_allclose(found.keypoints[0, :2, 2], 2.0, atol=0.3)


def test_means_by_hand():
    masks = [np.array([[[1.0, 0.0], [0.5, 0.0]]]), np.array([[[0.0, 0.5], [0.0, 0.0]]])]
    np.testing.assert_allclose(mean_masks(masks, [False, True]), [[[0.75, 0.0], [0.25, 0.0]]])
    plain, mirrored = np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3))
    plain[0, 0, 0] = [4.0, 0.0, 2.0]
    mirrored[0, 0, 1] = [0.0, 2.0, 6.0]  # the mirror's right end is the left one, its right column the left one
    mean = mean_heatmaps([plain, mirrored], [False, True], np.array([1, 0, 2]))
    np.testing.assert_allclose(mean[0, 0, 0], [3.0, 0.0, 4.0])
    assert np.abs(mean).sum() == 7.0


def test_boxes_go_into_a_view_and_back():
    image = np.zeros((50, 100, 3), np.uint8)
    view = _View(image, InputConfig(shorter_edge=(100,), longer_edge=1000), mirrored=True)
    np.testing.assert_allclose(view.boxes_of(np.array([[5.0, 10.0, 25.0, 40.0]]), 1.0), [[10, 120, 49, 179]])


def test_the_views():
    config = InputConfig(shorter_edge=(600, 800), longer_edge=1333)
    views = [(view.shorter_edge, view.longer_edge, flip) for view, flip in Augmentation().views(config)]
    assert [edge for edge, _, _ in views] == [(600,), (600,), (800,), (800,), (1000,), (1000,)]
    assert [longer for _, longer, flip in views if flip] == [999, 1333, 1666]
    assert [flip for *_, flip in Augmentation((400, 500), flip=False).views(config)] == [False, False]
    for wrong in ((0,), (400, 400)):
        with pytest.raises(ConfigError, match="shorter_edges"):
            Augmentation(wrong)


def test_nothing_found_is_no_error(pictures):
    model = build(branches=("mask", "keypoints"), detections={"score_threshold": 0.99}, **POINTS)
    found = predict_augmented(model, pictures[:1])[0]
    assert len(found) == 0 and found.mask_crops.shape == (0, 28, 28) and found.keypoints.shape == (0, 3, 3)


def test_a_data_set(model):
    dataset = shapes(2, seed=3)
    found = detect(model, dataset, progress=False, augmentation=Augmentation((64,), flip=False))
    expected = detect(model, dataset, progress=False)
    assert found.keys() == expected.keys()
    for image_id, detections in expected.items():
        np.testing.assert_allclose(found[image_id].boxes, detections.boxes, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[image_id].classes, detections.classes)
        masks = [np.stack([coco_mask.decode(r) for r in one.segmentations]) for one in (found[image_id], detections)]
        assert (masks[0] != masks[1]).sum() <= 1  # a pixel may lie on the threshold
