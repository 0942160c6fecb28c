"""ResNeXt, and the maps of the features other than the pyramid."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import BackboneConfig
from mrcnn_tf.networks.resnet import Res5, resnet

# Convolutions, norm scales and shifts of the published classifiers (torchvision), less their last dense layer.
PUBLISHED = {
    "resnext50_32x4d": 25_028_904 - 2_049_000,
    "resnext101_32x8d": 88_791_336 - 2_049_000,
    "resnext101_64x4d": 83_455_272 - 2_049_000,
}


def backbone(**values):
    image = keras.Input((None, None, 3))
    maps = resnet(image, BackboneConfig(**values))
    return keras.Model(image, maps if len(maps) > 1 else maps[0])


def fill(model, seed=0):
    """Random norms, small enough at the end of a block to keep the network's values bounded."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if hasattr(layer, "norm_kind"):
            norm, count = layer.norm, layer.filters
            high = 0.5 if layer.activation is None else 1.0
            norm.gamma.assign(rng.uniform(0.3, high, count))
            norm.beta.assign(0.1 * rng.normal(size=count))
            norm.moving_mean.assign(0.1 * rng.normal(size=count))
            norm.moving_variance.assign(rng.uniform(0.5, 2, count))


def copy(source, target):
    """Sets every weight of `target` to that of the same name in `source`."""
    values = {weight.path: weight for weight in source.weights}
    for weight in target.weights:
        weight.assign(values[weight.path])


def image(height, width):
    return np.random.default_rng(1).normal(size=(1, height, width, 3)).astype("float32")


@pytest.mark.parametrize("name", PUBLISHED)
def test_resnext_has_the_published_number_of_weights(name):
    model = backbone(name=name, norm="batch", frozen_stages=0)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == PUBLISHED[name]


def test_widths_and_groups_of_resnext():
    model = backbone(name="resnext50_32x4d", stride_in="3x3")
    for stage, width in ((2, 128), (5, 1024)):
        layer = model.get_layer(f"res{stage}_block1_conv2")
        assert layer.kernel.shape == (3, 3, width // 32, width)
        assert layer.strides == (1 if stage == 2 else 2)
    assert [output.shape[-1] for output in model.outputs] == [256, 512, 1024, 2048]


@pytest.mark.parametrize("place", ["1x1", "3x3"])
def test_c4_with_res5_of_stride_2_is_c5(place):
    whole = backbone(name="resnet50", features="c5", stride_in=place)
    fill(whole)
    config = BackboneConfig(name="resnet50", features="c4", stride_in=place)
    entry = keras.Input((None, None, 3))
    parts = keras.Model(entry, Res5(config, stride=2)(resnet(entry, config)[0]))
    copy(whole, parts)
    x = image(64, 96)
    assert whole(x).shape == (1, 2, 3, 2048)
    np.testing.assert_allclose(parts(x), whole(x), rtol=1e-4, atol=1e-4)


def test_dilated_c5_has_the_values_of_c5_at_every_second_cell():
    """Where a stride would have skipped cells, a dilation of 2 skips them, if the 1x1 convolution has the stride."""
    plain = backbone(name="resnet50", features="c5", stride_in="1x1")
    fill(plain)
    dilated = backbone(name="resnet50", features="dc5", stride_in="1x1")
    copy(plain, dilated)
    x = image(96, 128)
    assert dilated(x).shape == (1, 6, 8, 2048)
    np.testing.assert_allclose(dilated(x)[:, ::2, ::2], plain(x), rtol=1e-4, atol=1e-4)


def test_res5_of_stride_1_keeps_the_side_and_shares_its_weights():
    head = Res5(BackboneConfig(name="resnet50", features="c4"), stride=1)
    boxes, masks = keras.Input((7, 7, 1024)), keras.Input((14, 14, 1024))
    first, second = keras.Model(boxes, head(boxes)), keras.Model(masks, head(masks))
    assert first.output.shape[1:] == (7, 7, 2048) and second.output.shape[1:] == (14, 14, 2048)
    assert {id(weight) for weight in first.weights} == {id(weight) for weight in second.weights}
    assert {weight.path.split("_")[0] for weight in first.weights} == {"res5"}


@pytest.mark.parametrize(("stages", "trained"), [(4, True), (5, False)])
def test_res5_as_a_head_is_frozen_with_its_stage(stages, trained):
    head = Res5(BackboneConfig(name="resnet18", features="c4", norm="batch", frozen_stages=stages), stride=1)
    features = keras.Input((7, 7, 256))
    assert bool(keras.Model(features, head(features)).trainable_weights) == trained


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("side", [30, 32])
def test_where_the_first_pooling_pads(padding, side):
    model = backbone(name="resnet18", pool_padding=padding)
    pooled = keras.Model(model.input, [model.get_layer("stem").output, model.get_layer("stem_pool").output])
    stem, values = pooled(image(side, side))
    places = [[0, 0], [1, 1], [1, 1], [0, 0]] if padding == "symmetric" else "SAME"
    np.testing.assert_array_equal(values, tf.nn.max_pool2d(stem, 3, 2, places))
