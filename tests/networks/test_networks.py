"""Backbone, pyramid, RPN head and mask head: shapes at every stride, counts, and what is trained."""

import keras
import numpy as np
import pytest

from mrcnn_tf.config import BackboneConfig, FPNConfig, MaskHeadConfig
from mrcnn_tf.networks.fpn import AddUpsampled, fpn
from mrcnn_tf.networks.mask_head import Deconv2x2, MaskHead
from mrcnn_tf.networks.resnet import resnet
from mrcnn_tf.networks.rpn import RPNHead


def backbone(**values):
    image = keras.Input((None, None, 3))
    return keras.Model(image, resnet(image, BackboneConfig(**values)))


# Convolutions, norm scales and shifts of the published classifiers (torchvision), less their last dense layer.
PUBLISHED = {"resnet18": 11_689_512 - 513_000, "resnet34": 21_797_672 - 513_000, "resnet50": 25_557_032 - 2_049_000}


@pytest.mark.parametrize("name", PUBLISHED)
def test_backbone_has_the_published_number_of_weights(name):
    model = backbone(name=name, norm="batch", frozen_stages=0)
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == PUBLISHED[name]


def test_strides_and_channels():
    shapes = [feature.shape for feature in backbone(name="resnet50")(np.zeros((1, 64, 96, 3), "float32"))]
    assert shapes == [(1, 16, 24, 256), (1, 8, 12, 512), (1, 4, 6, 1024), (1, 2, 3, 2048)]


@pytest.mark.parametrize(("stages", "first"), [(0, "stem"), (1, "res2_block1_conv1"), (2, "res3_block1_conv1")])
def test_frozen_stages(stages, first):
    model = backbone(name="resnet18", frozen_stages=stages)
    trained = [layer.name for layer in model.layers if layer.trainable_weights]
    assert trained[0] == first
    assert all(weight.name == "kernel" for weight in model.trainable_weights)  # frozen norms train nothing


def test_stride_in_the_1x1_or_the_3x3():
    for place, strides in (("1x1", (2, 1)), ("3x3", (1, 2))):
        model = backbone(name="resnet50", stride_in=place)
        layers = [model.get_layer(f"res3_block1_conv{number}") for number in (1, 2)]
        assert tuple(layer.strides for layer in layers) == strides


def test_adding_the_upsampled_level():
    top = np.arange(6, dtype="float32").reshape(1, 2, 3, 1)
    lateral = np.random.default_rng(0).normal(size=(1, 4, 6, 1)).astype("float32")
    expected = lateral + top.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(AddUpsampled()(lateral, top), expected)


def test_pyramid_shapes_and_p6():
    maps = [keras.Input((None, None, channels)) for channels in (8, 16, 32, 64)]
    model = keras.Model(maps, fpn(maps, FPNConfig(channels=4)))
    values = [np.random.rand(1, 32 // 2**i, 48 // 2**i, 8 * 2**i).astype("float32") for i in range(4)]
    outputs = model(values)
    assert [tuple(output.shape[1:3]) for output in outputs] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    np.testing.assert_array_equal(outputs[4], outputs[3][:, ::2, ::2])


def test_rpn_head_orders_anchors_by_position_then_kind():
    head = RPNHead(4, 3)
    features = [np.random.rand(2, 5, 7, 4).astype("float32"), np.random.rand(2, 3, 4, 4).astype("float32")]
    logits, deltas = head(features)
    assert [value.shape for value in logits] == [(2, 105), (2, 36)]
    hidden = head.convs[0](features[0])
    np.testing.assert_allclose(logits[0].numpy().reshape(2, 5, 7, 3), head.objectness(hidden), atol=1e-6)
    np.testing.assert_allclose(deltas[0].numpy().reshape(2, 5, 7, 12), head.deltas(hidden), atol=1e-6)


def test_deconv_equals_keras_transposed_convolution():
    x = np.random.default_rng(0).normal(size=(3, 5, 5, 6)).astype("float32")
    ours = Deconv2x2(4)
    ours(x)
    reference = keras.layers.Conv2DTranspose(4, 2, strides=2, activation="relu")
    reference.build(x.shape)
    assert reference.kernel.shape == ours.kernel.shape
    reference.kernel.assign(ours.kernel)
    bias = np.random.default_rng(1).normal(size=4)
    for layer in (ours, reference):
        layer.bias.assign(bias)
    np.testing.assert_allclose(ours(x), reference(x), atol=1e-5)


@pytest.mark.parametrize("rois", [1, 7])  # the graphs never ask for none
def test_mask_head_takes_any_number_of_rois(rois):
    features = keras.Input((14, 14, 8))
    model = keras.Model(features, MaskHead(MaskHeadConfig(convs=(8,), deconv=8), 5)(features))
    assert model(np.zeros((rois, 14, 14, 8), "float32")).shape == (rois, 28, 28, 5)
