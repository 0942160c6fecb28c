"""RoIAlign with samples=0: each region's own numbers of rows and columns of samples, as Detectron2 takes them."""

from math import ceil, floor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import mrcnn_tf
from mrcnn_tf.config import ConfigError
from mrcnn_tf.export import export
from mrcnn_tf.geometry import adaptive_crops
from mrcnn_tf.layers.roi_align import RoIAlign, assign_levels
from mrcnn_tf.layers.roi_pool import make_roi_layer
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.training.precision import precision
from tests.support.tiny import calm, random_batch, tiny_config

STRIDE = 8


def samples_of(low, high, size):
    """Along one side: the positions of the samples of each bin, a list for each; `low` and `high` in cells."""
    count = max(ceil((high - low) / size), 0)
    return [[low + (i * count + k + 0.5) * (high - low) / (size * count) for k in range(count)] for i in range(size)]


def taps(position, length):
    """The cells that a sample reads along one side and their weights: held for a cell past the border, 0 beyond."""
    if position < -1 or position > length:
        return []
    position = min(max(position, 0.0), length - 1.0)
    first = floor(position)
    return [(first, 1 - (position - first)), (min(first + 1, length - 1), position - first)]


def align_slowly(feature, box, size, half_pixel, reduce, upstream=None):
    """RoIAlign of one box by loops in float64, [S, S, C]; and its gradient [H, W, C] for `upstream` [S, S, C]."""
    y1, x1, y2, x2 = (value / STRIDE - (0.5 if half_pixel else 0.0) for value in box.astype(np.float64))
    if not half_pixel:
        y2, x2 = max(y2, y1 + 1), max(x2, x1 + 1)
    height, width, channels = feature.shape
    pooled, gradient = np.zeros((size, size, channels)), np.zeros(feature.shape)
    for i, rows in enumerate(samples_of(y1, y2, size)):
        for j, columns in enumerate(samples_of(x1, x2, size)):
            reads = [
                [(y, x, wy * wx) for y, wy in taps(row, height) for x, wx in taps(column, width)]
                for row in rows
                for column in columns
            ]
            if not reads:
                continue
            values = [sum((weight * feature[y, x] for y, x, weight in read), np.zeros(channels)) for read in reads]
            if reduce == "mean":
                pooled[i, j] = np.mean(values, axis=0)
                shares = np.full((len(reads), channels), 1 / len(reads))
            else:
                pooled[i, j] = np.max(values, axis=0)
                largest = np.array(values) == pooled[i, j]
                shares = largest / largest.sum(axis=0)
            if upstream is not None:
                for read, share in zip(reads, shares, strict=True):
                    for y, x, weight in read:
                        gradient[y, x] += weight * share * upstream[i, j]
    return pooled, gradient


def pooled_and_gradient(layer, feature, boxes, images, upstream):
    feature = tf.constant(feature)
    with tf.GradientTape() as tape:
        tape.watch(feature)
        pooled = layer([feature], tf.constant(boxes), tf.constant(images))
    return pooled.numpy(), tape.gradient(pooled, feature, tf.constant(upstream)).numpy()


def check(feature, boxes, images, size, half_pixel, reduce):
    boxes, images = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(images, np.int32)
    shape = (len(boxes), size, size, feature.shape[-1])
    upstream = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    layer = RoIAlign(size, 0, half_pixel, strides=(STRIDE,), reduce=reduce)
    pooled, gradient = pooled_and_gradient(layer, feature, boxes, images, upstream)
    expected, expected_gradient = np.zeros(shape), np.zeros(feature.shape)
    for n, (box, image) in enumerate(zip(boxes, images, strict=True)):
        expected[n], own = align_slowly(feature[image], box, size, half_pixel, reduce, upstream[n])
        expected_gradient[image] += own
    np.testing.assert_allclose(pooled, expected, atol=2e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


def random_map(seed, images, height, width, channels=3):
    return np.random.default_rng(seed).standard_normal((images, height, width, channels)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 6),
    st.sampled_from([1, 3, 7]),
    st.booleans(),
    st.sampled_from(["mean", "max"]),
)
def test_values_and_gradient_are_what_the_loops_say(seed, height, width, number, size, half_pixel, reduce):
    # Corners on odd 64ths of a pixel, out to past the border: no sample lies where rounding would decide what it reads.
    rng = np.random.default_rng(seed)
    low, side = rng.integers(-2000, 4000, (number, 2)), rng.integers(0, 6000, (number, 2))
    boxes = np.concatenate([low * 2 + 1, (low + side) * 2 + 1], axis=1) / 128
    check(random_map(seed, 2, height, width), boxes, rng.integers(0, 2, number), size, half_pixel, reduce)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("half_pixel", [True, False])
def test_tiny_huge_flat_and_far_boxes(half_pixel, reduce):
    boxes = [
        [20.1, 30.2, 20.3, 30.4],  # a fraction of a cell
        [-700.3, -900.7, 800.9, 1000.1],  # much more than the map
        [10.3, 5.1, 14.7, 70.9],  # one row of samples in a bin, several columns
        [3.3, 21.1, 71.7, 23.9],
        [30.3, 20.1, 30.3, 60.7],  # no height
        [30.3, 20.1, 50.3, 20.1],  # no width
        [30.3, 20.1, 30.3, 20.1],  # neither
        [50.3, 60.1, 30.3, 20.1],  # upside down
        [0, 0, 0, 0],  # padding
        [500.3, 500.1, 540.7, 560.9],  # outside of everything
        [-30.3, 40.1, 20.7, 120.9],  # past two borders
    ]
    check(random_map(3, 2, 9, 11), boxes, [0, 1] * 5 + [0], 3, half_pixel, reduce)


def test_a_region_without_samples_is_zero_with_the_half_pixel_shift_alone():
    feature, flat = np.full((1, 9, 9, 2), 4, np.float32), np.array([[16, 20, 16, 40]], np.float32)
    for half_pixel, expected in ((True, 0.0), (False, 4.0)):
        pooled = RoIAlign(3, 0, half_pixel, strides=(STRIDE,))([feature], flat, np.zeros(1, np.int32))
        np.testing.assert_allclose(pooled, expected)


def test_what_is_not_a_number_leaves_the_other_boxes_alone():
    feature = random_map(1, 1, 9, 9)
    boxes = np.array([[10, 10, 60, 60], [np.nan] * 4, [0, 0, np.inf, np.inf], [5, 7, 60, 44]], np.float32)
    layer = RoIAlign(3, 0, strides=(STRIDE,))
    pooled = layer([feature], boxes, np.zeros(4, np.int32)).numpy()
    np.testing.assert_array_equal(pooled[[0, 3]], layer([feature], boxes[[0, 3]], np.zeros(2, np.int32)))
    assert not np.any(pooled[1:3])


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_equals_a_fixed_number_where_all_boxes_ask_for_it(samples, half_pixel, reduce):
    rng = np.random.default_rng(samples)
    side = rng.uniform(samples - 0.9, samples - 0.1, (40, 2)) * 7 * STRIDE
    low = rng.uniform(-20, 60, (40, 2))
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    feature, images = random_map(2, 2, 20, 24), rng.integers(0, 2, 40).astype(np.int32)
    upstream = rng.standard_normal((40, 7, 7, 3)).astype(np.float32)
    for own, fixed in zip(
        *(
            pooled_and_gradient(
                RoIAlign(7, number, half_pixel, strides=(STRIDE,), reduce=reduce), feature, boxes, images, upstream
            )
            for number in (0, samples)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(own, fixed, atol=2e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_whole_cells_take_one_sample_each(compiled):
    """Boxes of exactly k S cells have k samples a bin and side, which lie on the centres of the cells."""
    feature = random_map(4, 1, 28, 28, 1)
    for size in (5, 7, 14):
        for k in range(1, 28 // size + 1):
            box = np.array([[0, 0, k * size * STRIDE, k * size * STRIDE]], np.float32)
            layer = RoIAlign(size, 0, strides=(STRIDE,))
            call = tf.function(layer) if compiled else layer
            pooled = call([tf.constant(feature)], tf.constant(box), tf.zeros([1], tf.int32))[0, ..., 0]
            block = feature[0, : k * size, : k * size, 0].reshape(size, k, size, k)
            np.testing.assert_allclose(pooled, block.mean(axis=(1, 3)), atol=1e-5)


def pyramid(images=2, channels=4):
    return [tf.constant(random_map(i, images, 64 // 2**i, 80 // 2**i, channels)) for i in range(4)]


def proposals(number, seed=0):
    rng = np.random.default_rng(seed)
    low, side = rng.uniform(-10, 200, (number, 2)), np.exp(rng.uniform(1, 6, (number, 2)))
    return np.concatenate([low, np.minimum(low + side, 330)], axis=1).astype(np.float32)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_levels_chunks_and_graphs_change_nothing(monkeypatch, reduce):
    """Each box alone gives what all of them give together, in chunks of any size, in a graph and outside."""
    features, boxes = pyramid(), proposals(30)
    images = (np.arange(30) % 2).astype(np.int32)
    assert set(assign_levels(boxes, 4, 4, 112.0, 4).numpy()) == {0, 1, 2, 3}
    layer = RoIAlign(3, 0, canonical_size=112.0, reduce=reduce)
    upstream = tf.random.stateless_normal([30, 3, 3, 4], [1, 2])

    def together():
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = layer(features, tf.constant(boxes), tf.constant(images))
        return [pooled, *tape.gradient(pooled, features, upstream)]

    expected = [value.numpy() for value in together()]
    alone = [layer(features, boxes[n : n + 1], images[n : n + 1])[0] for n in range(30)]
    np.testing.assert_allclose(expected[0], alone, atol=1e-6)
    for samples in (20, 200):  # a box in each chunk, and chunks without any; several in each
        monkeypatch.setattr(adaptive_crops, "_CHUNK_VALUES", samples * 68)
        for value, whole in zip(tf.function(together)(), expected, strict=True):
            np.testing.assert_allclose(value, whole, atol=2e-5)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_the_gradient_loses_nothing_and_repeats_itself(reduce):
    # Hundreds of boxes on the same cells: sums that threads lose would show.
    feature, rng = random_map(0, 1, 24, 28, 64), np.random.default_rng(1)
    low = rng.uniform(0, 80, (300, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 140, (300, 2))], axis=1).astype(np.float32)
    upstream = rng.standard_normal((300, 7, 7, 64)).astype(np.float32)
    layer, images = RoIAlign(7, 0, strides=(STRIDE,), reduce=reduce), np.zeros(300, np.int32)
    whole = pooled_and_gradient(layer, feature, boxes, images, upstream)[1]
    apart = np.zeros(feature.shape)
    for n in range(0, 300, 10):
        some = slice(n, n + 10)
        apart += pooled_and_gradient(layer, feature, boxes[some], images[some], upstream[some])[1]
    assert np.linalg.norm(whole - apart) < 1e-5 * np.linalg.norm(apart)
    np.testing.assert_array_equal(whole, pooled_and_gradient(layer, feature, boxes, images, upstream)[1])


@pytest.mark.parametrize("kind", ["align", "warp", "pool", "crop"])
@pytest.mark.parametrize("number", [0, 1])
def test_every_layer_takes_it_and_none_or_one_box(kind, number):
    features, layer = pyramid(), make_roi_layer(kind, 5, samples=0)
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = layer(features, tf.fill([number, 4], 30.0) * [0, 0, 1, 1], tf.zeros([number], tf.int32))
    assert pooled.shape == (number, 5, 5, 4)
    total = sum(float(tf.reduce_sum(gradient)) for gradient in tape.gradient(pooled, features))
    assert total == pytest.approx(number * 5 * 5 * 4, rel=1e-4)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_half_precision_maps_give_float32():
    features = [tf.cast(feature, tf.bfloat16) for feature in pyramid()]
    layer, images = RoIAlign(7, 0), np.array([0, 1, 1])
    pooled = layer(features, proposals(3), images)
    assert pooled.dtype == tf.float32
    expected = layer([tf.cast(feature, tf.float32) for feature in features], proposals(3), images)
    np.testing.assert_array_equal(pooled, expected)


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match=r"RoIConfig\.samples"):
        tiny_config(roi__samples=-1)
    with pytest.raises(ValueError, match="samples=-1"):
        RoIAlign(7, -1)


@pytest.mark.parametrize("name", [pytest.param("float32", marks=pytest.mark.slow), "mixed_bfloat16"])
def test_a_model_learns_returns_and_is_exported(tmp_path, name):
    with precision(name):
        model = MaskRCNN(tiny_config(roi__samples=0, training__precision=name))
    calm(model)
    model.compile()
    batch = random_batch(2)
    batch["image"] = tf.round(batch["image"])
    before = {weight.path: weight.numpy() for weight in model.trainable_weights}
    logs = tf.function(model.train_step)(batch)
    assert all(np.isfinite(float(value)) for value in logs.values())
    moved = {weight.path for weight in model.trainable_weights if np.any(weight.numpy() != before[weight.path])}
    assert {"box_classes/kernel", "mask_logits/kernel", "fpn_output2/kernel"} <= moved
    found = model.predict_step(batch)
    if name != "float32":
        return
    mrcnn_tf.weights.save_weights(model, tmp_path / "tiny.weights.h5")
    again = mrcnn_tf.load(tmp_path / "tiny.weights.h5")
    assert again.config.roi.samples == 0
    export(again, tmp_path / "exported")
    serve = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_default"]
    served = serve(images=tf.cast(batch["image"], tf.uint8))
    for key in ("scores", "boxes"):
        np.testing.assert_allclose(served[key], found[key], rtol=1e-4, atol=1e-3, err_msg=key)
