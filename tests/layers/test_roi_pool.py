import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.layers.roi_align import RoIAlign, assign_levels
from mrcnn_tf.layers.roi_pool import RoICrop, RoIPool, RoIWarp, make_roi_layer

KINDS = ("align", "pool", "warp", "crop")
FIRST = np.zeros(8, np.int32)  # the first image


def round_half_away(value):
    return int(np.sign(value) * np.floor(abs(value) + 0.5))


def whole_cells(box, stride):
    """First row and column of a box in cells, and how many of them it spans."""
    y1, x1, y2, x2 = (round_half_away(side / stride) for side in box.astype(np.float64))
    return y1, x1, max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)


def pool_slowly(feature, box, stride, size):
    """RoIPool of one box, loop by loop, and the cell [S, S, C] (row * W + column, -1 none) of each maximum."""
    height, width, channels = feature.shape
    top, left, rows, columns = whole_cells(box, stride)
    pooled, cell = np.zeros((size, size, channels), np.float32), np.full((size, size, channels), -1)
    bin_height, bin_width = np.float32(rows) / np.float32(size), np.float32(columns) / np.float32(size)
    for i in range(size):
        for j in range(size):
            y1 = max(top + int(np.floor(np.float32(i) * bin_height)), 0)
            y2 = min(top + int(np.ceil(np.float32(i + 1) * bin_height)), height)
            x1 = max(left + int(np.floor(np.float32(j) * bin_width)), 0)
            x2 = min(left + int(np.ceil(np.float32(j + 1) * bin_width)), width)
            if y2 <= y1 or x2 <= x1:
                continue
            for c in range(channels):
                part = feature[y1:y2, x1:x2, c]
                y, x = np.unravel_index(np.argmax(part), part.shape)
                pooled[i, j, c], cell[i, j, c] = part[y, x], (y1 + y) * width + x1 + x
    return pooled, cell


def bilinear(feature, y, x, slack):
    """The map [H, W, C] at (y, x) in cell centres: held for one cell (and `slack`) past the border, 0 beyond."""
    height, width = feature.shape[:2]
    if not (-1 - slack <= y <= height + slack and -1 - slack <= x <= width + slack):
        return np.zeros(feature.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[top, left] * (1 - x + left) + feature[top, right] * (x - left)
    lower = feature[bottom, left] * (1 - x + left) + feature[bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def warp_slowly(feature, box, stride, size, samples, reduce, slack):
    """RoIWarp of one box: bilinear samples spread over the whole cells that RoIPool would read."""
    top, left, rows, columns = whole_cells(box, stride)
    grid = size * samples
    points = [
        [
            bilinear(feature, top + (p + 0.5) / grid * rows - 0.5, left + (q + 0.5) / grid * columns - 0.5, slack)
            for q in range(grid)
        ]
        for p in range(grid)
    ]
    return reduce(np.array(points).reshape(size, samples, size, samples, -1), axis=(1, 3))


def random_case(seed, height, width, channels=3, count=5, stride=8):
    """A map of distinct values on two images; boxes from below a cell to far larger than the map, partly outside."""
    rng = np.random.default_rng(seed)
    feature = rng.permutation(2 * height * width * channels).reshape(2, height, width, channels).astype(np.float32)
    low = rng.uniform(-4 * stride, stride * max(height, width), (count, 2))
    side = np.exp(rng.uniform(np.log(0.1), np.log(stride * 40), (count, 2)))
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    return feature - feature.size / 2, boxes, rng.integers(0, 2, count).astype(np.int32)


def pool_with_gradient(feature, boxes, images, weights, size, stride=8, wrap=lambda function: function):
    layer = RoIPool(size, strides=(stride,))

    @wrap
    def run(feature):
        with tf.GradientTape() as tape:
            tape.watch(feature)
            pooled = layer([feature], boxes, images)
            total = tf.reduce_sum(pooled * weights)
        return pooled, tape.gradient(total, feature)

    return (value.numpy() for value in run(tf.constant(feature)))


# === RoIPool ===


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_pool_equals_torchvision(recorded, yx, wrap):
    feature = recorded["roi_features_nchw"].transpose(0, 2, 3, 1)
    rois = recorded["roi_rois_batchindex_xyxy"]
    layer = RoIPool(7, strides=(16,))
    pooled = wrap(lambda *values: layer([values[0]], *values[1:]))(feature, yx(rois[:, 1:]), rois[:, 0].astype(int))
    np.testing.assert_array_equal(pooled, recorded["roi_pool_7"].transpose(0, 2, 3, 1))


def test_pool_by_hand():
    feature = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
    boxes = np.array([[0, 0, 48, 80], [14, 30, 26, 42], [16, 32, 16, 32], [500, 500, 600, 600]], np.float32)
    pooled = RoIPool(2, strides=(16,))([feature], boxes, np.zeros(4, np.int32)).numpy()[..., 0]
    np.testing.assert_array_equal(pooled[0], [[8, 11], [20, 23]])  # the whole map, 2 x 3 cells for each bin
    # 14 / 16 and 30 / 16 round to row 1 and column 2, 26 / 16 and 42 / 16 to 2 and 3.
    np.testing.assert_array_equal(pooled[1], [[8, 9], [14, 15]])
    np.testing.assert_array_equal(pooled[2], np.full((2, 2), 8))  # an empty box reads one cell
    np.testing.assert_array_equal(pooled[3], np.zeros((2, 2)))  # outside the map


def test_pool_rounds_halves_away_from_zero():
    feature = np.arange(6, dtype=np.float32).reshape(1, 1, 6, 1)
    boxes = np.array([[0, 2, 0, 2], [0, 6, 0, 6], [0, 10, 0, 10], [0, -2, 0, -2]], np.float32)
    pooled = RoIPool(1, strides=(4,))([feature], boxes, np.zeros(4, np.int32))
    np.testing.assert_array_equal(pooled[:, 0, 0, 0], [1, 2, 3, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 35), st.integers(1, 35), st.sampled_from([1, 2, 7]))
def test_pool_and_its_gradient_are_what_the_slow_form_says(seed, height, width, size):
    feature, boxes, images = random_case(seed, height, width)
    weights = np.random.default_rng(seed).standard_normal((5, size, size, 3)).astype(np.float32)
    pooled, gradient = pool_with_gradient(feature, boxes, images, weights, size)
    expected = np.zeros_like(feature)
    for n, image in enumerate(images):
        slow, cell = pool_slowly(feature[image], boxes[n], 8, size)
        np.testing.assert_array_equal(pooled[n], slow)
        for i, j, c in np.argwhere(cell >= 0):
            expected[image].reshape(-1, 3)[cell[i, j, c], c] += weights[n, i, j, c]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_pool_gradient_by_finite_differences(wrap):
    feature, boxes, images = random_case(3, 6, 5, channels=1, count=8)
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 1)).astype(np.float32)
    pooled, gradient = pool_with_gradient(feature, boxes, images, weights, 3, wrap=wrap)
    layer = RoIPool(3, strides=(8,))
    for place in np.ndindex(feature.shape):
        raised = feature.copy()
        raised[place] += 0.5  # distinct whole numbers: no maximum changes its place
        change = np.sum((layer([raised], boxes, images).numpy() - pooled) * weights) / 0.5
        assert gradient[place] == pytest.approx(change, abs=1e-4)


def test_pool_gradient_of_equal_values_goes_to_one_of_them():
    boxes = np.array([[0, 0, 39, 39], [3, 9, 20, 31]], np.float32)
    ones = np.ones((2, 3, 3, 2), np.float32)
    pooled, gradient = pool_with_gradient(np.zeros((1, 5, 5, 2), np.float32), boxes, FIRST[:2], ones, 3)
    assert not pooled.any()
    assert gradient.sum() == 2 * 3 * 3 * 2
    np.testing.assert_array_equal(gradient, np.round(gradient))


def test_pool_passes_nan_on():
    feature = np.zeros((1, 8, 8, 1), np.float32)
    feature[0, 2, 5] = np.nan
    pooled = RoIPool(2, strides=(1,))([feature], np.array([[0, 0, 7, 7]], np.float32), FIRST[:1]).numpy()[0, ..., 0]
    np.testing.assert_array_equal(np.isnan(pooled), [[False, True], [False, False]])


def test_pool_of_one_box_does_not_depend_on_the_others():
    feature, boxes, images = random_case(1, 30, 20, channels=16, count=64)
    layer = RoIPool(7, strides=(8,))
    together = layer([feature], boxes, images).numpy()
    for n in range(0, 64, 9):
        alone = layer([feature[..., :3]], boxes[n : n + 1], images[n : n + 1]).numpy()[0]
        np.testing.assert_array_equal(together[n, ..., :3], alone)


def test_pool_survives_export(tmp_path):
    layer = RoIPool(7, strides=(8,))

    class Module(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, 3]),
                tf.TensorSpec([None, 4]),
                tf.TensorSpec([None], tf.int32),
            ]
        )
        def pool(self, feature, boxes, images):
            return layer([feature], boxes, images)

    tf.saved_model.save(Module(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for values in (random_case(0, 9, 40), random_case(1, 3, 2)):
        again = loaded.pool(*(tf.constant(value) for value in values))
        np.testing.assert_array_equal(again, layer([values[0]], *values[1:]))


# === RoIWarp ===


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from(["mean", "max"]),
)
def test_warp_is_what_the_slow_form_says(seed, height, width, size, samples, reduce):
    feature, boxes, images = random_case(seed, height, width)
    pooled = RoIWarp(size, samples, strides=(8,), reduce=reduce)([feature], boxes, images).numpy()
    form = getattr(np, reduce)
    # Whole cells put many samples exactly one cell past the border, where rounding decides whether they count.
    less, more = (
        np.array([warp_slowly(feature[i], box, 8, size, samples, form, slack) for i, box in zip(images, boxes)])
        for slack in (-1e-3, 1e-3)
    )
    certain = less == more
    np.testing.assert_allclose(pooled[certain], less[certain], atol=1e-4 * feature.size)


def test_warp_by_hand():
    feature = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
    # Rows 1 and 2, columns 2 and 3, in bins of one cell, whose samples are the cells' centres or a quarter off them.
    box = np.array([[14, 30, 26, 42]], np.float32)
    for samples, reduce, shift in ((1, "mean", 0), (2, "mean", 0), (2, "max", 0.25 * 6 + 0.25)):
        pooled = RoIWarp(2, samples, strides=(16,), reduce=reduce)([feature], box, FIRST[:1])[0, ..., 0]
        np.testing.assert_allclose(pooled, np.array([[8, 9], [14, 15]]) + shift, rtol=1e-6)


def test_shifts_below_half_a_cell_move_align_but_not_warp_and_pool():
    feature = np.random.default_rng(0).standard_normal((1, 20, 20, 2)).astype(np.float32)
    boxes = np.array([[33, 49, 113, 161]], np.float32)
    for kind, moves in (("align", True), ("crop", True), ("warp", False), ("pool", False)):
        layer = make_roi_layer(kind, 7, strides=(16,))
        off = np.abs(layer([feature], boxes + 3, FIRST[:1]) - layer([feature], boxes, FIRST[:1])).max()
        assert (off > 0.05) == moves, kind
        assert moves or off == 0


# === Cropping by the corners ===


def ramp(height, width):
    """A map [1, H, W, 2] whose value at each place is the place."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns], axis=-1)[None].astype(np.float32)


def test_crop_puts_the_outer_samples_on_the_corners():
    # 5 x 9 cells of stride 4: pixels 0 and 19 (35) are the centres of the first and the last row (column).
    boxes = np.array([[0, 0, 19, 35], [4.75, 7, 9.5, 28]], np.float32)
    pooled = RoICrop(3, strides=(4,))([ramp(5, 9)], boxes, FIRST[:2]).numpy()
    for n, (rows, columns) in enumerate((([0, 2, 4], [0, 4, 8]), ([1, 1.5, 2], [1.6, 4, 6.4]))):
        np.testing.assert_allclose(pooled[n, :, 0, 0], rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(pooled[n, 0, :, 1], columns, rtol=1e-5, atol=1e-5)


def test_crop_cuts_regions_to_the_image():
    boxes = np.array([[-10, 5, 20, 36], [0, 5, 19, 35]], np.float32)
    pooled = RoICrop(7, strides=(4,))([ramp(5, 9)], boxes, FIRST[:2]).numpy()
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-5)


def test_crop_of_one_sample_reads_the_middle():
    pooled = RoICrop(1, strides=(4,))([ramp(5, 9)], np.array([[0, 7, 19, 28]], np.float32), FIRST[:1])
    np.testing.assert_allclose(pooled[0, 0, 0], [2, 4], rtol=1e-5)


# === What they share ===


def random_pyramid(batch=2, channels=4):
    rng = np.random.default_rng(0)
    shapes = [(64 // 2**i, 80 // 2**i) for i in range(4)]
    return [tf.constant(rng.standard_normal((batch, *shape, channels)).astype(np.float32)) for shape in shapes]


def random_boxes(count, seed=1):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 100, (count, 2))
    return np.concatenate([low, low + np.exp(rng.uniform(3, 6.5, (count, 1)))], axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_pyramid_reads_each_box_from_its_level_in_order(kind):
    features, boxes = random_pyramid(), random_boxes(30)
    images = (np.arange(30) % 2).astype(np.int32)
    together = make_roi_layer(kind, 5)(features, boxes, images).numpy()
    levels = assign_levels(boxes, 4, 4, 224.0, 4).numpy()
    assert len(set(levels)) > 2
    for i, level in enumerate(levels):
        single = make_roi_layer(kind, 5, strides=(4 * 2**level,))
        alone = single([features[level]], boxes[i : i + 1], images[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("strides", [(16,), (4, 8, 16, 32)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes(kind, strides):
    features = random_pyramid()[: len(strides)]
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = make_roi_layer(kind, 7, strides)(features, tf.zeros([0, 4]), tf.zeros([0], tf.int32))
    assert pooled.shape == (0, 7, 7, 4)
    assert not any(np.any(gradient) for gradient in tape.gradient(pooled, features))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_sizes_in_a_functional_model(kind):
    inputs = [keras.Input((None, None, 4)) for _ in range(4)]
    boxes, images = keras.Input((4,)), keras.Input((), dtype="int32")
    layer = make_roi_layer(kind, 5, reduce="max")
    model = keras.Model([inputs, boxes, images], layer(inputs, boxes, images))
    assert model.output.shape == (None, 5, 5, 4)
    features, some = random_pyramid(), random_boxes(6)
    index = np.array([0, 1, 0, 1, 1, 1], np.int32)
    answer = tf.function(model)([features, tf.constant(some), tf.constant(index)])
    np.testing.assert_allclose(answer, layer(features, some, index), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_maps_give_float32(kind):
    features = [tf.cast(feature, tf.bfloat16) for feature in random_pyramid()]
    layer, boxes, images = make_roi_layer(kind, 7), random_boxes(3), np.array([0, 1, 1])
    pooled = layer(features, boxes, images)
    assert pooled.dtype == tf.float32
    np.testing.assert_array_equal(pooled, layer([tf.cast(f, tf.float32) for f in features], boxes, images))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_boxes(kind):
    features, boxes = random_pyramid(), tf.constant(random_boxes(5))
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        pooled = make_roi_layer(kind, 3)(features, boxes, np.zeros(5, np.int32))
    assert tape.gradient(pooled, boxes) is None


def test_layers_by_their_kinds_and_config_round_trip():
    kinds = {"align": RoIAlign, "pool": RoIPool, "warp": RoIWarp, "crop": RoICrop}
    for kind, expected in kinds.items():
        layer = make_roi_layer(
            kind,
            14,
            (8, 16),
            samples=3,
            reduce="max",
            half_pixel=False,
            canonical_size=112,
            canonical_level=3,
            name="r",
        )
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert type(again) is expected
        assert again.get_config() == layer.get_config()
        assert (again.size, again.strides, again.canonical_size, again.canonical_level) == (14, (8, 16), 112.0, 3)
        if kind in ("align", "warp"):
            assert (again.samples, again.reduce) == (3, "max")
    assert make_roi_layer("align", 7, half_pixel=False).half_pixel is False


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'align', 'pool', 'warp' or 'crop'"):
        make_roi_layer("pyramid", 7)
