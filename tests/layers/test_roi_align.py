import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.layers.roi_align import RoIAlign, assign_levels


def axis_weights(low, high, cells, size, samples):
    """Weights [size * samples, cells] of one axis: bilinear, held for one cell past the border, 0 beyond."""
    points = low + (np.arange(size * samples) + 0.5) / (size * samples) * (high - low)
    weights = np.zeros((size * samples, cells))
    for row, point in enumerate(points):
        if -1 <= point <= cells:
            point = min(max(point, 0), cells - 1)
            first = min(int(point), max(cells - 2, 0))
            weights[row, first] += 1 - (point - first)
            weights[row, min(first + 1, cells - 1)] += point - first
    return weights


def align_slowly(feature, box, stride, size, samples, half_pixel, reduce=np.mean):
    """RoIAlign of one box, in float64, as section 3 tells it."""
    box = box.astype(np.float64) / stride - (0.5 if half_pixel else 0.0)
    low, high = box[:2], box[2:]
    if not half_pixel:
        high = np.maximum(high, low + 1)
    rows = axis_weights(low[0], high[0], feature.shape[0], size, samples)
    columns = axis_weights(low[1], high[1], feature.shape[1], size, samples)
    sampled = np.einsum("ph,hwc,qw->pqc", rows, feature.astype(np.float64), columns)
    return reduce(sampled.reshape(size, samples, size, samples, -1), axis=(1, 3))


@pytest.mark.parametrize(
    "name, size, half_pixel", [("7_unaligned", 7, False), ("7_aligned", 7, True), ("14_aligned", 14, True)]
)
def test_equals_torchvision(recorded, yx, name, size, half_pixel):
    feature = recorded["roi_features_nchw"].transpose(0, 2, 3, 1)
    boxes, images = yx(recorded["roi_rois_batchindex_xyxy"][:, 1:]), recorded["roi_rois_batchindex_xyxy"][:, 0]
    pooled = RoIAlign(size, half_pixel=half_pixel, strides=(16,))([feature], boxes, images.astype(np.int32)).numpy()
    expected = recorded[f"roi_align_{name}"].transpose(0, 2, 3, 1)
    # Both round coordinates of up to 31 cells, torchvision as far from the exact value as this: relative to the map.
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5 * np.abs(feature).max())
    exact = [align_slowly(feature[int(i)], box, 16, size, 2, half_pixel) for i, box in zip(images, boxes)]
    np.testing.assert_allclose(pooled, exact, rtol=0, atol=1e-5)


def test_pyramid_equals_torchvision(recorded, yx):
    features = [recorded[f"pyramid_p{level}_nchw"].transpose(0, 2, 3, 1) for level in (2, 3, 4, 5)]
    boxes = yx(recorded["pyramid_boxes_xyxy"])
    pooled = RoIAlign(7, half_pixel=False)(features, boxes, np.zeros(len(boxes), np.int32)).numpy()
    expected = recorded["pyramid_pooled"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5 * np.abs(features[0]).max())


def test_levels_equal_torchvision(recorded, yx):
    levels = assign_levels(yx(recorded["level_boxes_xyxy"]), 4, 4, 224.0, 4).numpy()
    np.testing.assert_array_equal(levels + 2, recorded["level_of_box"])


def test_levels_at_the_limits():
    sides = np.array([0, 1, 111.99, 112, 223.9, 224, 447, 448, 5000], np.float32)
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    np.testing.assert_array_equal(assign_levels(boxes, 4, 4, 224.0, 4), [0, 0, 0, 1, 1, 2, 2, 3, 3])
    # The paper's nuclei: half the canonical size sends every box one level up.
    np.testing.assert_array_equal(assign_levels(boxes, 4, 4, 112.0, 4), [0, 0, 1, 2, 2, 3, 3, 3, 3])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3, 7]),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.sampled_from(["mean", "max"]),
)
def test_is_what_the_slow_form_says(seed, height, width, size, samples, half_pixel, reduce):
    rng = np.random.default_rng(seed)
    feature = rng.standard_normal((2, height, width, 3)).astype(np.float32)
    low, side = rng.uniform(-30, 60, (5, 2)), rng.uniform(0, 90, (5, 2))
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    images = rng.integers(0, 2, 5).astype(np.int32)
    pooled = RoIAlign(size, samples, half_pixel, strides=(8,), reduce=reduce)([feature], boxes, images).numpy()
    form = getattr(np, reduce)
    exact = [align_slowly(feature[i], box, 8, size, samples, half_pixel, form) for i, box in zip(images, boxes)]
    # Samples within rounding of one cell past the border may count as inside or outside.
    assert np.mean(np.abs(pooled - exact) > 1e-4) < 0.02


def test_one_pixel_object_reads_its_own_cell():
    feature = np.zeros((1, 8, 8, 1), np.float32)
    feature[0, 3, 5] = 7
    box = np.array([[13.5, 21.5, 14.5, 22.5]], np.float32)  # a pixel around the centre of cell (3, 5) of stride 4
    pooled = RoIAlign(7, strides=(4,))([feature], box, np.zeros(1, np.int32)).numpy()
    assert pooled[0, 3, 3, 0] == pytest.approx(7, rel=0.1)
    assert pooled.min() > 4


def test_constant_map_stays_constant_inside_the_image():
    features = [tf.fill([1, 64 // 2**i, 64 // 2**i, 2], 3.0) for i in range(4)]
    boxes = np.array([[0, 0, 256, 256], [0, 0, 4, 4], [10, 20, 100, 30], [255, 255, 256, 256]], np.float32)
    images = np.zeros(4, np.int32)
    np.testing.assert_allclose(RoIAlign(7)(features, boxes, images), 3.0, rtol=1e-6)
    # Without the half-pixel shift the last box is widened to a cell that reaches out of the map, where all is 0.
    pooled = RoIAlign(7, half_pixel=False)(features, boxes, images).numpy()
    np.testing.assert_allclose(pooled[:3], 3.0, rtol=1e-6)
    assert pooled[3].min() == 0


def random_pyramid(batch=2, channels=4):
    rng = np.random.default_rng(0)
    shapes = [(64 // 2**i, 80 // 2**i) for i in range(4)]
    return [tf.constant(rng.standard_normal((batch, *shape, channels)).astype(np.float32)) for shape in shapes]


def random_boxes(count, seed=1):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 100, (count, 2))
    return np.concatenate([low, low + np.exp(rng.uniform(3, 6.5, (count, 1)))], axis=1).astype(np.float32)


def test_order_and_images_are_kept():
    features, boxes = random_pyramid(), random_boxes(30)
    images = (np.arange(30) % 2).astype(np.int32)
    layer = RoIAlign(3)
    together = layer(features, boxes, images).numpy()
    assert len(set(assign_levels(boxes, 4, 4, 224.0, 4).numpy())) > 2
    for i in range(30):
        single = layer(
            [f[images[i] : images[i] + 1] for f in features], boxes[i : i + 1], np.zeros(1, np.int32)
        ).numpy()[0]
        np.testing.assert_allclose(together[i], single, atol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(count, reduce):
    features = random_pyramid()
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = RoIAlign(7, reduce=reduce)(features, random_boxes(count).reshape(-1, 4), np.zeros(count, np.int32))
    assert pooled.shape == (count, 7, 7, 4)
    assert sum(float(tf.reduce_sum(gradient)) for gradient in tape.gradient(pooled, features)) == pytest.approx(
        count * 7 * 7 * 4, rel=1e-4
    )


def test_maximum_of_samples_by_hand():
    feature = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    box = np.array([[0, 0, 4, 4]], np.float32)
    # Two samples per cell and side lie on the centres of the cells.
    for reduce, expected in (("max", [[5, 7], [13, 15]]), ("mean", [[2.5, 4.5], [10.5, 12.5]])):
        pooled = RoIAlign(2, strides=(1,), reduce=reduce)([feature], box, np.zeros(1, np.int32))
        np.testing.assert_allclose(pooled[0, ..., 0], expected, rtol=1e-6)


def test_gradient_of_the_maximum_goes_to_its_samples():
    feature = tf.constant(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1))
    with tf.GradientTape() as tape:
        tape.watch(feature)
        pooled = RoIAlign(2, strides=(1,), reduce="max")(
            [feature], tf.constant([[0.0, 0, 4, 4]]), np.zeros(1, np.int32)
        )
        total = tf.reduce_sum(pooled * tf.constant([[1.0, 2], [3, 4]])[None, ..., None])
    expected = np.zeros((4, 4))
    expected[1::2, 1::2] = [[1, 2], [3, 4]]
    np.testing.assert_allclose(tape.gradient(total, feature)[0, ..., 0], expected, atol=1e-5)


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'mean' or 'max'"):
        RoIAlign(7, reduce="median")


def test_unknown_sizes_in_a_functional_model():
    inputs = [keras.Input((None, None, 4)) for _ in range(4)]
    boxes, images = keras.Input((4,)), keras.Input((), dtype="int32")
    model = keras.Model([inputs, boxes, images], RoIAlign(5)(inputs, boxes, images))
    assert model.output.shape == (None, 5, 5, 4)
    features, some = random_pyramid(), random_boxes(6)
    index = np.array([0, 1, 0, 1, 1, 1], np.int32)
    np.testing.assert_allclose(
        model([features, tf.constant(some), tf.constant(index)]), RoIAlign(5)(features, some, index), atol=1e-5
    )


def test_gradient_is_the_transpose_of_the_forward_pass():
    features, boxes, images = random_pyramid(1), random_boxes(12), np.zeros(12, np.int32)
    weights = tf.random.stateless_normal([12, 3, 3, 4], [1, 2])
    layer = RoIAlign(3)
    with tf.GradientTape() as tape:
        tape.watch(features)
        total = tf.reduce_sum(layer(features, boxes, images) * weights)
    gradients = tape.gradient(total, features)
    # RoIAlign is linear in the map: the gradient of <weights, pooled> with respect to it gives <gradient, map> = total.
    recovered = sum(float(tf.reduce_sum(g * f)) for g, f in zip(gradients, features))
    assert recovered == pytest.approx(float(total), rel=1e-3)
    # And one element by hand: a single cell raised by 1.
    cell = np.zeros((1, 64, 80, 1), np.float32)
    cell[0, 20, 30] = 1
    raised = [features[0] + cell, *features[1:]]
    change = tf.reduce_sum(layer(raised, boxes, images) * weights) - total
    assert float(change) == pytest.approx(float(tf.reduce_sum(gradients[0][0, 20, 30])), abs=1e-3)


def test_half_precision_maps_give_float32():
    features = [tf.cast(feature, tf.bfloat16) for feature in random_pyramid()]
    pooled = RoIAlign(7)(features, random_boxes(3), np.array([0, 1, 1]))
    assert pooled.dtype == tf.float32
    expected = RoIAlign(7)([tf.cast(feature, tf.float32) for feature in features], random_boxes(3), np.array([0, 1, 1]))
    np.testing.assert_array_equal(pooled, expected)


def test_config_round_trip():
    layer = RoIAlign(14, 3, False, 112.0, 3, (8, 16), "max", name="r")
    again = RoIAlign.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.size, again.samples, again.half_pixel, again.strides) == (14, 3, False, (8, 16))
    assert again.reduce == "max"
