import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import nms as nms_ops
from mrcnn_tf.layers.detections import DetectBoxes, SelectMasks

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def log_probabilities(*rows):
    return np.log(np.array([rows], np.float32) + 1e-12)


def test_by_hand():
    proposals = np.array([[[0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 70, 70], [0, 0, 0, 0]]], np.float32)
    logits = log_probabilities([0.1, 0.8, 0.1], [0.1, 0.6, 0.3], [0.35, 0.05, 0.6], [0.0, 0.5, 0.5])
    deltas = np.zeros((1, 4, 2, 4), np.float32)
    deltas[0, 2, 1] = [0, 5, 0, 0]  # half a width to the right, for the second class
    layer = DetectBoxes(score_threshold=0.2, nms_iou=0.5, max_per_image=5)
    boxes, classes, scores = (v[0].numpy() for v in layer(logits, deltas, proposals, np.array([[100, 75]], np.int32)))
    # The second box is suppressed in class 1 by the first, but is the only one of class 2 there; the padded
    # proposal gives nothing; the third is cut at the image.
    np.testing.assert_array_equal(classes, [1, 2, 2, 0, 0])
    np.testing.assert_allclose(scores, [0.8, 0.6, 0.3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(boxes[:3], [[0, 0, 10, 10], [50, 60, 70, 75], [0, 1, 10, 11]], atol=1e-5)
    assert not boxes[3:].any()


def test_one_class_per_box_by_hand():
    proposals = np.array([[[0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 70, 70], [20, 20, 30, 30]]], np.float32)
    logits = log_probabilities([0.1, 0.6, 0.3], [0.15, 0.35, 0.5], [0.4, 0.35, 0.25], [0.5, 0.5, 0.0])
    deltas = np.zeros((1, 4, 2, 4), np.float32)
    deltas[0, 0, 0] = [5, 0, 0, 0]  # half a height down, for the class that wins
    deltas[0, 1, 0] = [5, 0, 0, 0]  # for the class that loses
    layer = DetectBoxes(score_threshold=0.2, nms_iou=0.5, max_per_image=5, one_class_per_box=True)
    boxes, classes, scores = (v[0].numpy() for v in layer(logits, deltas, proposals, np.array([[100, 75]], np.int32)))
    # The background wins the third, and the fourth by standing before its equal.
    np.testing.assert_array_equal(classes, [1, 2, 0, 0, 0])
    np.testing.assert_allclose(scores, [0.6, 0.5, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(boxes[:2], [[5, 0, 15, 10], [0, 1, 10, 11]], atol=1e-5)


def slow_detections(logits, deltas, proposals, size, threshold, iou, number, one_class=False):
    """One image, with the single-image NMS by class."""
    scores = tf.nn.softmax(logits).numpy()
    if one_class:
        scores = np.where(scores == scores.max(axis=1, keepdims=True), scores, 0)
    scores = scores[:, 1:]
    boxes = box_ops.clip(box_ops.decode(deltas, proposals[:, None], WEIGHTS), size).numpy()
    rows, columns = np.where((scores > threshold) & (box_ops.area(boxes).numpy() > 0))
    kept = nms_ops.nms_by_class(boxes[rows, columns], scores[rows, columns], columns, iou, number).numpy()
    rows, columns = rows[kept], columns[kept]
    return boxes[rows, columns], columns + 1, scores[rows, columns]


def random_inputs(batch=2, number=60, classes=5, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (batch, number, 2))
    proposals = np.concatenate([low, low + rng.uniform(10, 50, (batch, number, 2))], axis=-1).astype(np.float32)
    proposals[:, -5:] = 0
    logits = (spread * rng.standard_normal((batch, number, classes + 1))).astype(np.float32)
    deltas = rng.standard_normal((batch, number, classes, 4)).astype(np.float32)
    return logits, deltas, proposals, np.array([[80, 90], [100, 60]][:batch], np.int32)


@pytest.mark.parametrize("one_class", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_is_what_the_slow_form_says(threshold, one_class):
    logits, deltas, proposals, sizes = random_inputs()
    layer = DetectBoxes(threshold, 0.5, max_per_image=40, one_class_per_box=one_class)
    boxes, classes, scores = layer(logits, deltas, proposals, sizes)
    for image in range(2):
        one = (value[image] for value in (logits, deltas, proposals, sizes))
        expected = slow_detections(*one, threshold, 0.5, 40, one_class)
        found = len(expected[1])
        assert found > 5
        np.testing.assert_allclose(scores[image, :found], expected[2], atol=1e-6)
        np.testing.assert_array_equal(classes[image, :found], expected[1])
        np.testing.assert_allclose(boxes[image, :found], expected[0], atol=1e-4)
        assert not classes[image, found:].numpy().any() and not scores[image, found:].numpy().any()


def test_nothing_above_the_threshold():
    logits, deltas, proposals, sizes = random_inputs()
    logits[..., 0] = 100
    boxes, classes, scores = DetectBoxes(0.05, max_per_image=7)(logits, deltas, proposals, sizes)
    assert boxes.shape == (2, 7, 4) and classes.shape == (2, 7) and scores.shape == (2, 7)
    assert not boxes.numpy().any() and not classes.numpy().any() and not scores.numpy().any()


def test_one_class_and_more_places_than_candidates():
    logits, deltas, proposals, sizes = random_inputs(1, 8, 1)
    boxes, classes, _ = DetectBoxes(0.0, 0.99, max_per_image=100)(logits, deltas, proposals, sizes)
    assert boxes.shape == (1, 100, 4)
    assert set(classes[0].numpy()) == {0, 1} and (classes[0].numpy() > 0).sum() == 3


@pytest.mark.parametrize("one_class", [False, True])
def test_numbers_that_are_none_give_nothing(one_class):
    logits, deltas, proposals, sizes = random_inputs(1)
    logits[0, 0], deltas[0, 1] = np.nan, np.nan
    boxes, _, scores = DetectBoxes(0.0, max_per_image=1000, one_class_per_box=one_class)(
        logits, deltas, proposals, sizes
    )
    assert np.isfinite(boxes.numpy()).all() and np.isfinite(scores.numpy()).all()


@pytest.mark.parametrize("one_class", [False, True])
def test_unknown_sizes_in_a_functional_model(one_class):
    inputs = [
        keras.Input((None, 6)),
        keras.Input((None, 5, 4)),
        keras.Input((None, 4)),
        keras.Input((2,), dtype="int32"),
    ]
    layer = DetectBoxes(max_per_image=9, one_class_per_box=one_class)
    model = keras.Model(inputs, layer(*inputs))
    specs = [((None, 9, 4), "float32"), ((None, 9), "int32"), ((None, 9), "float32")]
    assert [(output.shape, output.dtype) for output in model.outputs] == specs
    values = [tf.constant(value) for value in random_inputs()]
    for result, expected in zip(model(values), layer(*values)):
        np.testing.assert_allclose(result, expected, atol=1e-4)


def test_select_masks_takes_the_own_class():
    logits = np.arange(2 * 2 * 2 * 3, dtype=np.float32).reshape(2, 2, 2, 3) / 10
    logits = np.concatenate([logits, logits[:1]])
    masks = SelectMasks()(logits, np.array([3, 1, 0], np.int32)).numpy()
    np.testing.assert_allclose(masks[0], 1 / (1 + np.exp(-logits[0, ..., 2])), rtol=1e-6)
    np.testing.assert_allclose(masks[1], 1 / (1 + np.exp(-logits[1, ..., 0])), rtol=1e-6)
    assert not masks[2].any()


def test_select_masks_of_none():
    assert SelectMasks()(np.zeros((0, 28, 28, 3), np.float32), np.zeros(0, np.int32)).shape == (0, 28, 28)


def test_select_masks_in_a_functional_model():
    logits, classes = keras.Input((28, 28, 3)), keras.Input((), dtype="int32")
    model = keras.Model([logits, classes], SelectMasks()(logits, classes))
    assert model.output.shape == (None, 28, 28)
    np.testing.assert_allclose(model([tf.zeros([2, 28, 28, 3]), tf.constant([1, 3])]), 0.5)


@pytest.mark.parametrize("layer", [DetectBoxes(0.1, 0.2, 3, (4, 5, 6, 7), True, name="d"), SelectMasks(name="s")])
def test_config_round_trip(layer):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_a_single_mask_serves_all_classes():
    logits = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
    masks = SelectMasks()(logits, np.array([1, 7, 0], np.int32)).numpy()
    np.testing.assert_allclose(masks[:2], 1 / (1 + np.exp(-logits[:2, ..., 0])), rtol=1e-6)
    np.testing.assert_array_equal(masks[2], 0)


def test_softmax_masks_share_each_pixel_with_the_background():
    logits = np.random.default_rng(0).normal(size=(3, 2, 2, 4)).astype(np.float32)
    masks = SelectMasks("softmax")(logits, np.array([1, 3, 0], np.int32)).numpy()
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(masks[0], shares[0, ..., 1], rtol=1e-5)
    np.testing.assert_allclose(masks[1], shares[1, ..., 3], rtol=1e-5)
    np.testing.assert_array_equal(masks[2], 0)
    layer = SelectMasks.from_config(SelectMasks("softmax").get_config())
    np.testing.assert_array_equal(layer(logits, np.array([1, 3, 0], np.int32)), masks)


def test_small_boxes_go_before_the_choice_or_after_it():
    # Three proposals of one class: the best is moved out of the image, the second is half a pixel high.
    proposals = np.array([[[0, 0, 4, 4], [5, 0, 5.5, 9], [2, 2, 8, 8], [0, 0, 0, 0]]], np.float32)
    deltas = np.zeros((1, 4, 1, 4), np.float32)
    deltas[0, 0, 0, 0] = -100.0
    logits = np.array([[[0, 4], [0, 3], [0, 2], [0, 9]]], np.float32)

    def boxes(**values):
        layer = DetectBoxes(max_per_image=2, **values)
        found, classes, scores = layer(logits, deltas, proposals, np.array([[10, 10]], np.int32))
        assert np.all(np.diff(scores) <= 0)
        return found.numpy()[0, classes.numpy()[0] > 0].tolist()

    thin, large = [5, 0, 5.5, 9], [2, 2, 8, 8]
    assert boxes() == [thin, large]
    assert boxes(min_size=1.0) == [large]
    assert boxes(min_size=0.5) == [thin, large]
    assert boxes(drop_small="after") == [thin]
    assert boxes(drop_small="after", min_size=1.0) == []
