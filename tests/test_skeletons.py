"""Keypoints in pictures: which are drawn, where, and in which colours."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mrcnn_tf import visualize
from mrcnn_tf.coco_names import KEYPOINTS, SKELETON
from mrcnn_tf.config import KeypointHeadConfig
from mrcnn_tf.detections import Detections
from mrcnn_tf.skeletons import LEFT, RIGHT, Skeleton

NAMES = ("nose", "left_hand", "right_hand")
SKELETON_OF_THREE = Skeleton(NAMES, ((0, 1), (1, 2)))
# y, x: the nose at the top, the hands at the bottom.
POINTS = np.array([[[2, 8, 5], [10, 3, 5], [10, 13, 5]]], np.float32)
ALONE = {"boxes": False, "labels": False, "scale": 20}


def one(points=POINTS):
    return Detections([[0, 0, 12, 16]], [1], [0.9], ("person",), (12, 16), keypoints=points)


def drawn(points=POINTS, **options):
    picture = visualize.draw_detections(
        np.zeros((12, 16, 3), np.uint8), one(points), **{"skeleton": SKELETON_OF_THREE, **ALONE, **options}
    )
    return picture.astype(float)


def assert_colour(picture, y, x, colour, atol=3):
    np.testing.assert_allclose(picture[int(20 * y), int(20 * x)], 255 * np.array(to_rgb(colour)), atol=atol)


def test_dots_lie_on_the_keypoints_in_the_colours_of_their_sides():
    picture, own = drawn(), visualize.COLOURS[0]
    for (y, x, _), colour in zip(POINTS[0], (own, LEFT, RIGHT)):
        assert_colour(picture, y, x, colour)
    # Lines between the sides, or between a side and the middle, have the object's own colour.
    for y, x in ((6, 5.5), (10, 8)):
        assert_colour(picture, y, x, own)
    assert picture[120, 210].sum() == 0  # the nose and the right hand are not joined
    assert drawn(keypoints=False).sum() == 0


def test_a_line_on_one_side_has_its_colour():
    arm = Skeleton(("left_shoulder", "left_hand", "nose"), ((0, 1),))
    assert_colour(drawn(skeleton=arm), 6, 5.5, LEFT)


def test_unsure_keypoints_and_their_lines_are_left_out():
    points = POINTS.copy()
    points[0, 1, 2] = 1.5
    for options, seen in (({}, True), ({"min_keypoint": 1.5}, False), ({"min_keypoint": 1.4}, True)):
        picture = drawn(points, **options)
        for y, x in ((10, 3), (6, 5.5), (10, 8)):
            assert (picture[int(20 * y), int(20 * x)].sum() > 0) == seen
        assert_colour(picture, 10, 13, RIGHT)
    points[0, 1, 2] = 0.0
    assert drawn(points)[200, 60].sum() == 0


def test_ground_truth_shows_what_is_labelled_whatever_the_threshold():
    points = POINTS.copy()
    points[0, :, 2] = (2, 1, 0)
    box = np.array([[0, 0, 12, 16]], np.float32)
    example = SimpleNamespace(
        boxes=box, classes=np.array([1]), crowd=np.array([False]), segmentations=(), size=(12, 16), keypoints=points
    )
    image = np.zeros((12, 16, 3), np.uint8)
    options = {**ALONE, "skeleton": SKELETON_OF_THREE}
    truth = visualize.draw_ground_truth(image, example, ("person",), **options)
    assert truth[200, 60].sum() > 0 and truth[200, 260].sum() == 0
    prediction = visualize.draw_detections(image, one(), min_keypoint=9.0, **options)
    assert prediction.sum() == 0
    both = visualize.side_by_side(image, example, one(), min_keypoint=9.0, **options)
    np.testing.assert_array_equal(both[-12 - 240 : -12, 12:332], truth)
    np.testing.assert_array_equal(both[-12 - 240 : -12, 344:664], prediction)


def test_which_skeleton_is_drawn():
    assert Skeleton.of_count(17) == Skeleton(KEYPOINTS, SKELETON) == Skeleton.of(KeypointHeadConfig())
    assert Skeleton.of_count(3) == Skeleton(("", "", ""))
    dataset = SimpleNamespace(keypoint_names=NAMES, skeleton=((0, 1),))
    assert Skeleton.of(dataset) == Skeleton(NAMES, ((0, 1),))
    # Without a skeleton three keypoints are dots in the object's colour.
    picture = drawn(skeleton=None)
    assert_colour(picture, 10, 3, visualize.COLOURS[0])
    assert picture[120, 110].sum() == 0
    with pytest.raises(ValueError, match="a skeleton of 17 keypoints for objects that have 3"):
        drawn(skeleton=Skeleton.of_count(17))


def test_the_dots_of_a_small_object_are_small():
    def covered(box):
        found = Detections([box], [1], [0.9], ("person",), (40, 40), keypoints=[[[20, 20, 5]]])
        picture = visualize.draw_detections(np.zeros((40, 40, 3), np.uint8), found, scale=20, boxes=False, labels=False)
        return (picture.sum(axis=2) > 0).sum()

    assert 5 < covered([19, 19, 21, 21]) < covered([0, 0, 40, 40]) / 2
