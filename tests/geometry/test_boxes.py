import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mrcnn_tf.geometry import boxes as box_ops

RPN_WEIGHTS, ROI_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)


@st.composite
def box_arrays(draw, min_count=1, max_count=6, min_side=0.0):
    """[N, 4] boxes within some 2000 pixels, as the networks see them."""
    count = draw(st.integers(min_count, max_count))
    corner = st.floats(-500, 1500, width=32, allow_subnormal=False)
    side = st.floats(min_side, 1000, width=32, allow_subnormal=False)
    low = draw(hnp.arrays(np.float32, (count, 2), elements=corner))
    sides = draw(hnp.arrays(np.float32, (count, 2), elements=side))
    return np.concatenate([low, low + sides], axis=1).astype(np.float32)


def iou_of_pair(a, b):
    """Written for clarity, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union > 0 else 0.0


def test_area_by_hand():
    boxes = [[0, 0, 2, 3], [5, 5, 5, 9], [4, 4, 2, 2], [-1, -1, 0.5, 1]]
    np.testing.assert_array_equal(box_ops.area(tf.constant(boxes, tf.float32)), [6, 0, 0, 3])


def test_iou_by_hand():
    first = tf.constant([[0, 0, 10, 10], [0, 0, 0, 0]], tf.float32)
    second = tf.constant([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [10, 0, 20, 10], [0, 0, 0, 0]], tf.float32)
    expected = [[1, 1 / 3, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(box_ops.iou(first, second), expected, atol=1e-7)


def test_iou_equals_torchvision(recorded, yx):
    overlap = box_ops.iou(yx(recorded["match_gt_xyxy"]), yx(recorded["nms_boxes_xyxy"]))
    np.testing.assert_allclose(overlap, recorded["iou_gt_by_box"], atol=1e-6)


def test_iou_of_batches_is_that_of_each_image():
    rng = np.random.default_rng(0)
    low, side = rng.uniform(0, 50, (3, 7, 2)), rng.uniform(1, 40, (3, 7, 2))
    boxes = np.concatenate([low, low + side], axis=-1).astype(np.float32)
    together = box_ops.iou(boxes[:, :4], boxes[:, 4:]).numpy()
    assert together.shape == (3, 4, 3)
    for image in range(3):
        np.testing.assert_array_equal(together[image], box_ops.iou(boxes[image, :4], boxes[image, 4:]))


def test_iou_with_no_boxes():
    assert box_ops.iou(tf.zeros([0, 4]), tf.zeros([3, 4])).shape == (0, 3)
    assert box_ops.iou(tf.zeros([3, 4]), tf.zeros([0, 4])).shape == (3, 0)


def test_intersection_over_first_by_hand():
    small = tf.constant([[0, 0, 2, 2], [0, 0, 4, 4], [1, 1, 1, 1]], tf.float32)
    crowd = tf.constant([[0, 0, 100, 2]], tf.float32)
    np.testing.assert_allclose(box_ops.intersection_over_first(small, crowd), [[1.0], [0.5], [0.0]])


@pytest.mark.parametrize("kind, weights", [("rpn", RPN_WEIGHTS), ("roi", ROI_WEIGHTS)])
def test_coder_equals_torchvision(recorded, yx, kind, weights):
    proposals, references = yx(recorded["coder_proposals_xyxy"]), yx(recorded["coder_reference_xyxy"])
    deltas = box_ops.encode(references, proposals, weights)
    np.testing.assert_allclose(deltas, yx(recorded[f"coder_{kind}_deltas"]), rtol=1e-5, atol=1e-5)
    decoded = box_ops.decode(yx(recorded[f"coder_{kind}_random_deltas"]), proposals, weights)
    np.testing.assert_allclose(decoded, yx(recorded[f"coder_{kind}_decoded_xyxy"]), rtol=1e-5, atol=1e-5)


def test_encode_by_hand():
    # Twice as tall, same width, moved by half the reference's height and a quarter of its width.
    deltas = box_ops.encode(tf.constant([[5.0, 5.0, 25.0, 25.0]]), tf.constant([[5.0, 0.0, 15.0, 20.0]]), ROI_WEIGHTS)
    np.testing.assert_allclose(deltas, [[5.0, 2.5, 5 * np.log(2.0), 0.0]], atol=1e-6)


def test_encode_of_padding_is_finite():
    empty, box = tf.zeros([1, 4]), tf.constant([[0.0, 0.0, 10.0, 10.0]])
    for deltas in (box_ops.encode(empty, box), box_ops.encode(box, empty), box_ops.encode(empty, empty)):
        assert np.isfinite(deltas.numpy()).all()


def test_decode_cuts_enormous_scales():
    decoded = box_ops.decode(tf.constant([[0.0, 0.0, 1e4, 1e4]]), tf.constant([[0.0, 0.0, 16.0, 16.0]])).numpy()
    np.testing.assert_allclose(decoded, [[-492.0, -492.0, 508.0, 508.0]], rtol=1e-5)


def test_decode_broadcasts_over_classes():
    rng = np.random.default_rng(1)
    deltas = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    boxes = np.array([0, 0, 20, 30], np.float32) + rng.uniform(0, 5, (2, 5, 1, 1)).astype(np.float32)
    together = box_ops.decode(deltas, boxes, ROI_WEIGHTS).numpy()
    for k in range(3):
        np.testing.assert_allclose(together[:, :, k], box_ops.decode(deltas[:, :, k], boxes[:, :, 0], ROI_WEIGHTS))


def test_clip_per_image():
    boxes = tf.constant([[[-5.0, -5.0, 50.0, 50.0]], [[-5.0, 30.0, 50.0, 90.0]]])
    clipped = box_ops.clip(boxes, tf.constant([[20, 40], [60, 70]]))
    np.testing.assert_array_equal(clipped, [[[0, 0, 20, 40]], [[0, 30, 50, 70]]])


def test_scale_by_axis():
    boxes = tf.constant([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(box_ops.scale(boxes, [2.0, 10.0]), [[2, 20, 6, 40]])


@settings(max_examples=60, deadline=None)
@given(box_arrays(), box_arrays())
def test_iou_is_what_the_clear_form_says(first, second):
    overlap = box_ops.iou(first, second).numpy()
    expected = [[iou_of_pair(a, b) for b in second] for a in first]
    # Coordinates of up to 2500 pixels in float32 leave the sides of tiny boxes uncertain.
    big = np.minimum(box_ops.area(first).numpy()[:, None], box_ops.area(second).numpy()[None]) > 1.0
    np.testing.assert_allclose(overlap[big], np.array(expected)[big], rtol=1e-2, atol=1e-3)
    assert (overlap >= 0).all() and (overlap <= 1 + 1e-6).all()
    np.testing.assert_allclose(overlap, box_ops.iou(second, first).numpy().T, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(box_arrays(min_side=1.0), st.sampled_from([RPN_WEIGHTS, ROI_WEIGHTS]), st.integers(0, 2**31))
def test_decode_inverts_encode(references, weights, seed):
    rng = np.random.default_rng(seed)
    height, width = references[:, 2] - references[:, 0], references[:, 3] - references[:, 1]
    sides = np.stack([height, width], axis=1) * rng.uniform(0.1, 10, (len(references), 2))
    centre = 0.5 * (references[:, :2] + references[:, 2:]) + rng.uniform(-2, 2, sides.shape) * sides
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).astype(np.float32)
    restored = box_ops.decode(box_ops.encode(boxes, references, weights), references, weights)
    np.testing.assert_allclose(restored, boxes, atol=1e-2, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(box_arrays(), st.integers(1, 800), st.integers(1, 800))
def test_clip_stays_inside_and_is_idempotent(boxes, height, width):
    size = tf.constant([height, width])
    clipped = box_ops.clip(boxes, size).numpy()
    assert (clipped >= 0).all() and (clipped[:, [0, 2]] <= height).all() and (clipped[:, [1, 3]] <= width).all()
    np.testing.assert_array_equal(box_ops.clip(clipped, size), clipped)
    inside = (boxes >= 0).all(1) & (boxes[:, 2] <= height) & (boxes[:, 3] <= width)
    np.testing.assert_array_equal(clipped[inside], boxes[inside])
