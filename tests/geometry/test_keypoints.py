import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry.keypoints import decode_heatmaps, heatmap_targets


def cubic(distance):
    """The cubic convolution kernel with slope -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic(heatmap, height, width):
    """`heatmap` [S, S] resized, tap by tap, in float64."""

    def weights(length, side):
        matrix = np.zeros((length, side))
        for pixel in range(length):
            position = (pixel + 0.5) * side / length - 0.5
            first = int(np.floor(position))
            for cell in range(first - 1, first + 3):
                matrix[pixel, min(max(cell, 0), side - 1)] += cubic(position - cell)
        return matrix

    side = len(heatmap)
    return weights(height, side) @ heatmap.astype(np.float64) @ weights(width, side).T


def decode_slowly(heatmap, box):
    """(y, x, score) of one map [S, S] in one box, and the resized map."""
    sides = np.maximum(box[2:] - box[:2], 1)
    pixels = np.ceil(sides).astype(int)
    resized = bicubic(heatmap, *pixels)
    best = np.array(np.unravel_index(np.argmax(resized), resized.shape))
    y, x = (best + 0.5) * sides / pixels + box[:2]
    return np.array([y, x, resized.max()])


def targets_slowly(keypoints, roi, side):
    cells = []
    for y, x, visible in keypoints:
        if not visible or not (roi[0] <= y <= roi[2] and roi[1] <= x <= roi[3]):
            cells.append((0, 0))
            continue
        row = side - 1 if y == roi[2] else int((y - roi[0]) * side / (roi[2] - roi[0]))
        column = side - 1 if x == roi[3] else int((x - roi[1]) * side / (roi[3] - roi[1]))
        cells.append((row * side + column, 1))
    return np.array(cells).T


# === Heat maps to keypoints ===


def test_decoding_equals_torchvision(recorded, yx):
    heatmaps = recorded["keypoint_heatmaps"].astype(np.float32).transpose(0, 2, 3, 1)
    decoded = decode_heatmaps(heatmaps, yx(recorded["keypoint_boxes_xyxy"])).numpy()
    expected = recorded["keypoint_decoded_xyv"]
    assert (expected[..., 2] == 1).all()  # torchvision calls everything visible, and gives the scores apart
    np.testing.assert_allclose(decoded[..., [1, 0]], expected[..., :2], rtol=1e-6)
    np.testing.assert_allclose(decoded[..., 2], recorded["keypoint_scores"], rtol=1e-5)


def test_decoding_is_what_the_slow_form_says():
    rng = np.random.default_rng(0)
    heatmaps = rng.standard_normal((4, 7, 7, 3)).astype(np.float32)
    boxes = np.array([[0, 0, 7, 7], [-3.5, 20, 0.25, 60.5], [5, 5, 5.3, 5.2], [10, 900, 60, 903]], np.float32)
    decoded = decode_heatmaps(heatmaps, boxes).numpy()
    for d in range(4):
        for j in range(3):
            np.testing.assert_allclose(decoded[d, j], decode_slowly(heatmaps[d, ..., j], boxes[d]), rtol=1e-5)


def test_box_of_the_maps_own_size_reads_the_map():
    heatmap = np.zeros((1, 4, 4, 2), np.float32)
    heatmap[0, 1, 2, 0], heatmap[0, 3, 0, 1] = 5, 7
    decoded = decode_heatmaps(heatmap, [[100.0, 200, 104, 204]]).numpy()
    np.testing.assert_allclose(decoded[0], [[101.5, 202.5, 5], [103.5, 200.5, 7]], rtol=1e-6)


def test_box_below_a_pixel_is_one_pixel_with_the_middle_of_the_map():
    heatmap = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    decoded = decode_heatmaps(heatmap, [[10.0, 20, 10.25, 20.5]]).numpy()
    np.testing.assert_allclose(decoded[0, 0], [10.5, 20.5, 7.5], rtol=1e-6)


def test_equal_values_give_the_first_pixel():
    np.testing.assert_allclose(decode_heatmaps(tf.zeros([1, 4, 4, 1]), [[0.0, 0, 8, 8]])[0, 0], [0.5, 0.5, 0])


def test_empty_boxes_and_none_at_all():
    heatmaps = np.full((3, 4, 4, 5), np.nan, np.float32)
    boxes = np.array([[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 5, 5]], np.float32)
    np.testing.assert_array_equal(decode_heatmaps(heatmaps, boxes), np.zeros((3, 5, 3)))
    assert decode_heatmaps(heatmaps[:0], boxes[:0]).shape == (0, 5, 3)


def test_decoding_half_precision_maps_and_box_of_an_image():
    rng = np.random.default_rng(1)
    heatmaps = tf.cast(rng.standard_normal((1, 56, 56, 2)), tf.bfloat16)
    boxes = np.array([[0, 0, 800, 1300]], np.float32)
    decoded = decode_heatmaps(heatmaps, boxes)
    assert decoded.dtype == tf.float32
    exact = decode_slowly(tf.cast(heatmaps, tf.float32).numpy()[0, ..., 1], boxes[0])
    np.testing.assert_allclose(decoded[0, 1], exact, rtol=1e-5)


def test_decoding_survives_export(tmp_path):
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 2]), tf.TensorSpec([None, 4])])
        def decode(self, heatmaps, boxes):
            return decode_heatmaps(heatmaps, boxes)

    tf.saved_model.save(Module(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    rng = np.random.default_rng(2)
    for count in (0, 1, 3):
        heatmaps = rng.standard_normal((count, 8, 8, 2)).astype(np.float32)
        boxes = np.tile(np.array([[1.5, 2, 30, 20]], np.float32), (count, 1))
        again = loaded.decode(tf.constant(heatmaps), tf.constant(boxes))
        assert again.shape == (count, 2, 3)
        np.testing.assert_allclose(again, decode_heatmaps(heatmaps, boxes), rtol=1e-6)


# === Keypoints to cells ===


def test_targets_equal_torchvision(recorded, yx):
    keypoints = recorded["keypoint_target_gt_xyv"][..., [1, 0, 2]]
    index, valid = heatmap_targets(keypoints, yx(recorded["keypoint_boxes_xyxy"]), 56)
    np.testing.assert_array_equal(index, recorded["keypoint_target_index"])
    np.testing.assert_array_equal(valid, recorded["keypoint_target_valid"])


def test_targets_by_hand():
    roi = np.array([[10, 20, 18, 24]], np.float32)  # cells of 2 x 1 pixels
    keypoints = [
        [10, 20, 2],  # the first cell's corner
        [11.9, 20.9, 1],  # still the first cell
        [12, 23.5, 2],  # row 1, column 3
        [18, 24, 2],  # the far corner belongs to the last cell
        [14, 24, 1],  # so does a point on the far side
        [14, 22, 0],  # labelled as not there
        [18.1, 22, 2],  # below
        [14, 19.9, 2],  # left
    ]
    index, valid = heatmap_targets(np.array([keypoints], np.float32), roi, 4)
    np.testing.assert_array_equal(index, [[0, 0, 7, 15, 11, 0, 0, 0]])
    np.testing.assert_array_equal(valid, [[1, 1, 1, 1, 1, 0, 0, 0]])
    assert (index.dtype, valid.dtype) == (tf.int32, tf.float32)


def test_empty_regions_have_no_valid_keypoint():
    rois = np.array([[5, 5, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5]], np.float32)
    index, valid = heatmap_targets(np.full((3, 2, 3), 5, np.float32), rois, 8)
    assert not index.numpy().any() and not valid.numpy().any()
    assert heatmap_targets(np.zeros((0, 2, 3), np.float32), rois[:0], 8)[0].shape == (0, 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 56]))
def test_targets_are_what_the_slow_form_says(seed, side):
    rng = np.random.default_rng(seed)
    # Whole pixels: many points on borders and none whose cell depends on rounding.
    low = rng.integers(0, 50, 2)
    extent = side * 2 ** rng.integers(0, 4, 2)
    roi = np.concatenate([low, low + extent]).astype(np.float32)
    keypoints = np.stack(
        [*(rng.integers(low[i] - 2, low[i] + extent[i] + 3, 30) for i in (0, 1)), rng.integers(0, 3, 30)], axis=1
    ).astype(np.float32)
    index, valid = heatmap_targets(keypoints[None], roi[None], side)
    expected = targets_slowly(keypoints, roi, side)
    np.testing.assert_array_equal(np.stack([index[0], valid[0]]), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 14, 56]))
def test_keypoint_comes_back_within_a_cell(seed, side):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-50, 500, (3, 2))
    # At least a pixel for each cell: the resize takes four taps, which miss cells where several share a pixel.
    sides = side * np.exp(rng.uniform(0, np.log(8), (3, 2)))
    boxes = np.concatenate([low, low + sides], axis=1).astype(np.float32)
    share = rng.uniform(0, 1, (3, 5, 2))
    place = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = np.concatenate([place, np.full((3, 5, 1), 2)], axis=-1).astype(np.float32)
    index, valid = heatmap_targets(keypoints, boxes, side)
    # A point on the border may round to the outside.
    assert valid.numpy().sum() >= 14
    heatmaps = tf.transpose(tf.reshape(tf.one_hot(index, side * side), [3, 5, side, side]), [0, 2, 3, 1])
    decoded = decode_heatmaps(heatmaps, boxes).numpy()
    limit = (sides / side)[:, None]
    off = np.abs(decoded[..., :2] - keypoints[..., :2])
    assert (off <= limit + 1e-3)[valid.numpy() > 0].all()


@pytest.mark.parametrize("far", [1e6, -1e6])
def test_far_points_do_not_overflow(far):
    keypoints = np.array([[[far, far, 2]]], np.float32)
    index, valid = heatmap_targets(keypoints, np.array([[0, 0, 1e-3, 1e-3]], np.float32), 56)
    assert (int(index[0, 0]), float(valid[0, 0])) == (0, 0)
