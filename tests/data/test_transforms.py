"""Resize, padding, flip and scale jitter."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrcnn_tf.coco_names import KEYPOINTS
from mrcnn_tf.config import DataConfig, InputConfig
from mrcnn_tf.data.transforms import (
    draw_view,
    fit_image,
    flip_boxes,
    flip_crops,
    flip_keypoints,
    mirrored_keypoints,
    prepare_image,
    scale_boxes,
    scale_keypoints,
)

BOXES = hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 500, width=32))


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, border pixels repeated, no antialiasing; one output pixel at a time."""
    out = np.zeros((height, width, image.shape[2]))
    for row in range(height):
        y = np.clip((row + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
        for column in range(width):
            x = np.clip((column + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            top, left = int(y), int(x)
            low, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[low, left] * (1 - x + left) + image[low, right] * (x - left)
            out[row, column] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_fit_image(dtype):
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(dtype)
    fitted = fit_image(image, 20, 33, 32)
    assert fitted.dtype == tf.float32 and fitted.shape == (32, 64, 3)
    np.testing.assert_allclose(fitted[:20, :33], bilinear(image.astype(float), 20, 33), atol=1e-3)
    assert not np.any(fitted[20:]) and not np.any(fitted[:, 33:])
    smaller = fit_image(image, 5, 7, 32)
    np.testing.assert_allclose(smaller[:5, :7], bilinear(image.astype(float), 5, 7), atol=1e-3)


def test_fit_image_of_the_same_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 2)).astype(np.uint8)
    np.testing.assert_array_equal(fit_image(image, 32, 64, 32), image)


def test_prepare_image():
    config = InputConfig(shorter_edge=(400, 320), longer_edge=500)
    image, size = prepare_image(np.zeros((100, 150, 3), np.uint8), config)
    assert size.numpy().tolist() == [320, 480] and image.shape == (320, 480, 3)
    image, size = prepare_image(np.zeros((100, 150, 3), np.uint8), config, shorter=400)
    assert size.numpy().tolist() == [333, 500] and image.shape == (352, 512, 3)  # the longer edge decides


def test_prepare_image_in_a_graph_takes_any_size():
    config = InputConfig(shorter_edge=(64,), longer_edge=100)
    function = tf.function(
        lambda image: prepare_image(image, config), input_signature=[tf.TensorSpec([None, None, 3], tf.float32)]
    )
    for height, width in ((30, 40), (200, 50), (64, 64)):
        image = np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.float32)
        fitted, size = function(image)
        eager, eager_size = prepare_image(image, config)
        np.testing.assert_array_equal(size, eager_size)
        np.testing.assert_allclose(fitted, eager, atol=1e-4)


def test_flip_boxes():
    flipped = flip_boxes(np.array([[1, 2, 3, 10]], np.float32), 40)
    assert flipped.tolist() == [[1, 30, 3, 38]]


@given(BOXES, st.integers(1, 2000))
def test_flipping_twice_changes_nothing(boxes, width):
    np.testing.assert_allclose(flip_boxes(flip_boxes(boxes, width), width), boxes, atol=1e-3)
    sides = flip_boxes(boxes, width)
    np.testing.assert_allclose(sides[:, 3] - sides[:, 1], boxes[:, 3] - boxes[:, 1], atol=1e-3)


def test_flip_crops():
    crops = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    assert flip_crops(crops).tolist() == [[[1, 0], [3, 2]], [[5, 4], [7, 6]]]


def test_left_and_right_keypoints_change_places():
    assert mirrored_keypoints(("nose", "left_eye", "tail", "right_eye")).tolist() == [0, 3, 2, 1]
    # One of a pair alone stays, and so does what is not the name of a side.
    assert mirrored_keypoints(("left_eye", "right_ear", "left", "leftmost", "left_")).tolist() == [0, 1, 2, 3, 4]
    swapped = [KEYPOINTS[place] for place in mirrored_keypoints(KEYPOINTS)]
    assert swapped[:5] == ["nose", "right_eye", "left_eye", "right_ear", "left_ear"]
    assert all(
        other.replace("right", "left") == name.replace("right", "left") for name, other in zip(KEYPOINTS, swapped)
    )
    assert sum(name != other for name, other in zip(KEYPOINTS, swapped)) == 16


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(("Left Eye", "Right Eye"), ("eye_left", "eye_right"), ("eye-l", "eye-r"), ("L_Eye", "R_Eye")),
        *(("leftEye", "rightEye"), ("EyeLeft", "EyeRight"), ("LEFT_EYE", "RIGHT_EYE"), ("left", "right")),
        ("front left paw", "front right paw"),
    ],
)
def test_sides_in_other_spellings(left, right):
    assert mirrored_keypoints(("nose", left, "tail", right)).tolist() == [0, 3, 2, 1]
    assert mirrored_keypoints((right, left)).tolist() == [1, 0]


def test_words_that_only_look_like_sides():
    names = ("leftmost", "rightmost", "cleft", "cright", "leg", "reg", "ear", "eal", "bright", "bleft", "LEG", "REG2")
    assert mirrored_keypoints(names).tolist() == list(range(len(names)))


def test_flip_keypoints():
    order = mirrored_keypoints(("nose", "left_eye", "right_eye"))
    # A nose in the middle, the left eye (x 30) hidden, no right eye.
    keypoints = np.array([[[5, 20, 2], [4, 30, 1], [0, 0, 0]]], np.float32)
    assert flip_keypoints(keypoints, 40, order).tolist() == [[[5, 20, 2], [0, 0, 0], [4, 10, 1]]]
    assert keypoints[0, 1].tolist() == [4, 30, 1]
    np.testing.assert_array_equal(flip_keypoints(flip_keypoints(keypoints, 40, order), 40, order), keypoints)


def test_scale_keypoints():
    scaled = scale_keypoints(np.array([[[5, 20, 2], [0, 0, 0]]], np.float32), (10, 40), (20, 100))
    assert scaled.tolist() == [[[10, 50, 2], [0, 0, 0]]] and scaled.dtype == np.float32


@given(BOXES, st.tuples(st.integers(1, 900), st.integers(1, 900)), st.tuples(st.integers(1, 900), st.integers(1, 900)))
def test_scale_boxes(boxes, size, new_size):
    scaled = scale_boxes(boxes, size, new_size)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[:, [0, 2]], boxes[:, [0, 2]] * new_size[0] / size[0], rtol=1e-5)
    np.testing.assert_allclose(scaled[:, [1, 3]], boxes[:, [1, 3]] * new_size[1] / size[1], rtol=1e-5)


def test_views():
    edges = InputConfig(shorter_edge=(100, 200), longer_edge=400)
    views = [draw_view(np.random.default_rng(i), edges, DataConfig()) for i in range(400)]
    assert {view.shorter for view in views} == {100, 200}
    assert 150 < sum(view.flip for view in views) < 250
    assert 150 < sum(view.shorter == 100 for view in views) < 250
    still = [draw_view(np.random.default_rng(i), edges, DataConfig(flip=False)) for i in range(50)]
    assert not any(view.flip for view in still)
    assert [view.shorter for view in still] == [view.shorter for view in views[:50]]
    jittered = [draw_view(np.random.default_rng(i), edges, DataConfig(scale_jitter=(0.5, 1.0))) for i in range(200)]
    assert min(view.shorter for view in jittered) < 60 and max(view.shorter for view in jittered) > 180
    assert all(0.5 * v.shorter <= j.shorter <= v.shorter for v, j in zip(views, jittered))
