import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.layers.anchors import Anchors, MoveFarCorner

SIZES = ((32,), (64,), (128,), (256,), (512,))


def test_equals_torchvision(recorded, yx):
    features = [tf.zeros([1, height, width, 2]) for height, width in recorded["anchors_feature_sizes"]]
    anchors = Anchors(SIZES, (0.5, 1, 2), rounded=True)(features)
    assert [level.shape[0] for level in anchors] == [int(3 * h * w) for h, w in recorded["anchors_feature_sizes"]]
    np.testing.assert_array_equal(np.concatenate(anchors), yx(recorded["anchors_xyxy"]))


def test_strides_by_the_image_as_torchvision_has_them():
    # A padded image of 224 x 320 has maps of 56 x 80, 28 x 40, 14 x 20, 7 x 10 and 4 x 5: 224 // 4 is 56, not 64.
    shapes = [(56, 80), (28, 40), (14, 20), (7, 10), (4, 5)]
    features = [tf.zeros([1, *shape, 2]) for shape in shapes]
    by_level, by_image = (Anchors(SIZES, (1,), stride_rule=rule)(features) for rule in ("level", "image"))
    for ours, theirs in zip(by_image[:4], by_level[:4]):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(by_image[4][-1], [3 * 56 - 256, 4 * 64 - 256, 3 * 56 + 256, 4 * 64 + 256])
    np.testing.assert_array_equal(by_level[4][-1], [3 * 64 - 256, 4 * 64 - 256, 3 * 64 + 256, 4 * 64 + 256])


def test_shrunk_as_matterports_with_inclusive_corners():
    features = [tf.zeros([1, side, side, 1]) for side in (8, 4, 2, 1, 1)]
    whole, shrunk = (Anchors(SIZES, (2, 1, 0.5), shrink=shrink)(features) for shrink in (0.0, 1.0))
    for ours, theirs in zip(shrunk, whole):
        np.testing.assert_allclose(ours, theirs - [0, 0, 1, 1])
    # Widths by ratios of .5, 1, 2, as they count; the position is (1, 0) on the second level.
    tall, square, wide = shrunk[1].numpy().reshape(4, 4, 3, 4)[1, 0]
    side = 64 * 2**0.5 / 2
    np.testing.assert_allclose(tall, [8 - side, -side / 2, 8 + side - 1, side / 2 - 1], rtol=1e-6)
    np.testing.assert_allclose(square, [8 - 32, -32, 8 + 31, 31])
    np.testing.assert_allclose(wide, [8 - side / 2, -side, 8 + side / 2 - 1, side - 1], rtol=1e-6)


def test_unknown_sizes_in_a_functional_model():
    features = [keras.Input((None, None, 8)) for _ in SIZES]
    layer = Anchors([(size[0], 2 * size[0]) for size in SIZES], (0.5, 1, 2), offset=0.5)
    model = keras.Model(features, layer(features))
    assert [output.shape for output in model.outputs] == [(None, 4)] * 5
    for side in (2, 3):
        maps = [np.zeros((2, side, 5, 8), np.float32)] * 5
        for graph, eager in zip(model(maps), layer(maps)):
            assert graph.shape == (side * 5 * 6, 4)
            np.testing.assert_array_equal(graph, eager)
        # The first position's anchors stand around half a stride.
        np.testing.assert_allclose((graph.numpy()[:6, :2] + graph.numpy()[:6, 2:]) / 2, 32)


def test_stay_float32_under_half_precision():
    features = [tf.zeros([1, 200, 300, 1], tf.bfloat16)] + [tf.zeros([1, 1, 1, 1], tf.bfloat16)] * 4
    anchors = Anchors(SIZES, (1,), dtype="mixed_bfloat16")(features)
    assert anchors[0].dtype == tf.float32
    np.testing.assert_array_equal(anchors[0][-1], [199 * 4 - 16, 299 * 4 - 16, 199 * 4 + 16, 299 * 4 + 16])


def test_levels_and_strides_must_fit():
    with pytest.raises(ValueError, match="4 levels of anchor sizes do not fit 5 strides"):
        Anchors(SIZES[:4], (1,))


def test_config_round_trip():
    layer = Anchors(SIZES, (0.5, 2), offset=0.5, rounded=True, stride_rule="image", shrink=1, name="a")
    again = Anchors.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.stride_rule == "image" and again.rounded and again.offset == 0.5 and again.ratios == (0.5, 2.0)
    assert again.shrink == 1.0


def test_far_corners_move_and_empty_boxes_stay():
    boxes = np.array([[[1, 2, 5, 4.5], [3, 3, 4.5, 9], [0, 0, 0, 0]]], np.float32)
    inwards = MoveFarCorner(-1)(boxes).numpy()
    np.testing.assert_array_equal(inwards, [[[1, 2, 4, 3.5], [3, 3, 3.75, 8], [0, 0, 0, 0]]])  # at most by half
    outwards = MoveFarCorner(1)(inwards).numpy()
    np.testing.assert_array_equal(outwards, [[[1, 2, 5, 4.5], [3, 3, 4.75, 9], [0, 0, 0, 0]]])
    symbolic = keras.Input((None, 4))
    model = keras.Model(symbolic, MoveFarCorner(-1)(symbolic))
    assert model.output.shape == (None, None, 4)
    np.testing.assert_array_equal(model(boxes), inwards)
    layer = MoveFarCorner(2.5, name="m")
    assert MoveFarCorner.from_config(layer.get_config()).get_config() == layer.get_config()
