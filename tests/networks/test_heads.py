"""The branches with norms, with other numbers of layers, on res5, and the keypoint branch."""

import keras
import numpy as np
import pytest

from mrcnn_tf.config import BoxHeadConfig, FPNConfig, KeypointHeadConfig, MaskHeadConfig
from mrcnn_tf.networks.box_head import BoxHead
from mrcnn_tf.networks.fpn import fpn
from mrcnn_tf.networks.keypoint_head import Deconv4x4, KeypointHead, UpsampleBilinear
from mrcnn_tf.networks.mask_head import MaskHead
from mrcnn_tf.networks.rpn import RPNHead


def paths(model):
    return {weight.path for weight in model.weights}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_pyramid_with_a_norm_in_place_of_the_bias():
    maps = [keras.Input((None, None, channels)) for channels in (8, 16, 32, 64)]
    plain = keras.Model(maps, fpn(maps, FPNConfig(channels=4)))
    normed = keras.Model(maps, fpn(maps, FPNConfig(channels=4, norm="frozen"), epsilon=1e-3))
    assert paths(normed) == {
        f"fpn_{kind}{level}/{weight}"
        for kind in ("lateral", "output")
        for level in range(2, 6)
        for weight in ("kernel", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance")
    }
    for layer in normed.layers:
        if layer.weights:
            twin = plain.get_layer(layer.name)
            twin.bias.assign(noise(4, seed=1))
            layer.kernel.assign(twin.kernel)
            layer.norm.beta.assign(twin.bias)
            layer.norm.moving_variance.assign(np.full(4, 1 - 1e-3))
    values = [noise(1, 32 // 2**i, 48 // 2**i, 8 * 2**i) for i in range(4)]
    for ours, expected in zip(normed(values), plain(values)):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_rpn_head_with_two_convolutions_on_one_map():
    head = RPNHead(4, 3, convs=2, name="rpn")
    feature = noise(2, 5, 7, 4)
    (logits,), (deltas,) = head([feature])
    layers = ("conv", "conv2", "objectness", "deltas")
    assert {weight.path for weight in head.weights} == {f"rpn/{x}/{y}" for x in layers for y in ("kernel", "bias")}
    assert np.abs(head.conv.kernel.numpy() - head.conv2.kernel.numpy()).max() > 1e-3  # each its own start
    hidden = head.conv2(head.conv(feature))
    np.testing.assert_allclose(logits.numpy().reshape(2, 5, 7, 3), head.objectness(hidden), atol=1e-6)
    np.testing.assert_allclose(deltas.numpy().reshape(2, 5, 7, 12), head.deltas(hidden), atol=1e-6)
    assert RPNHead.from_config(head.get_config()).get_config() == head.get_config()


def test_box_head_on_res5_is_the_mean_and_two_matrix_products():
    features = keras.Input((4, 4, 6))
    head = BoxHead(BoxHeadConfig(convs=(8,)), 3, pool_mean=True)
    model = keras.Model(features, head(features))
    assert paths(model) == {f"box_{layer}/{kind}" for layer in ("classes", "deltas") for kind in ("kernel", "bias")}
    x = noise(5, 4, 4, 6)
    logits, deltas = model(x)
    mean = x.mean((1, 2))
    np.testing.assert_allclose(logits, mean @ head.classes.kernel.numpy(), atol=1e-6)
    np.testing.assert_allclose(deltas, (mean @ head.deltas.kernel.numpy()).reshape(5, 3, 4), atol=1e-6)


@pytest.mark.parametrize(("norm", "kinds"), [("none", {"kernel", "bias"}), ("group", {"kernel", "gamma", "beta"})])
def test_convolutions_of_the_heads(norm, kinds):
    features = keras.Input((7, 7, 8))
    box = keras.Model(features, BoxHead(BoxHeadConfig(convs=(32, 32), fc=(16,), norm=norm), 3)(features))
    mask = keras.Model(features, MaskHead(MaskHeadConfig(convs=(32,), deconv=8, norm=norm), 3)(features))
    for model, names in ((box, {"box_conv1", "box_conv2"}), (mask, {"mask_conv1"})):
        convs = {path for path in paths(model) if "conv" in path and "deconv" not in path}
        assert {path.split("/")[0] for path in convs} == names
        assert {path.split("/")[-1] for path in convs} == kinds
    x = noise(2, 7, 7, 8)
    hidden = keras.Model(box.input, box.get_layer("box_conv2").output)(x)
    assert hidden.shape == (2, 7, 7, 32) and np.min(hidden) == 0
    assert box(x)[1].shape == (2, 3, 4) and mask(x).shape == (2, 14, 14, 3)


def test_mask_head_without_convolutions():
    features = keras.Input((7, 7, 8))
    model = keras.Model(features, MaskHead(MaskHeadConfig(convs=(), deconv=4), 3)(features))
    assert {path.split("/")[0] for path in paths(model)} == {"mask_deconv", "mask_logits"}
    assert model(noise(2, 7, 7, 8)).shape == (2, 14, 14, 3)


def test_heads_give_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        features = keras.Input((7, 7, 8))
        for head in (
            BoxHead(BoxHeadConfig(fc=(8,)), 3),
            BoxHead(BoxHeadConfig(), 3, pool_mean=True),
            MaskHead(MaskHeadConfig(convs=(8,), deconv=8), 3),
            KeypointHead(KeypointHeadConfig(convs=(8,))),
        ):
            outputs = keras.tree.flatten(head(features))
            assert all(output.dtype == "float32" for output in outputs)
            values = keras.tree.flatten(keras.Model(features, outputs)(noise(1, 7, 7, 8)))
            assert all(value.dtype == "float32" for value in values)
        layer = RPNHead(4, 3)
        assert all(value.dtype == "float32" for values in layer([noise(1, 5, 5, 4)]) for value in values)
    finally:
        keras.config.set_dtype_policy("float32")


def test_keypoint_deconvolution_adds_each_cell_times_the_kernel():
    layer = Deconv4x4(3)
    x = noise(2, 5, 6, 4)
    layer.build(x.shape)
    layer.bias.assign(noise(3, seed=1))
    kernel = layer.kernel.numpy()
    expected = np.zeros((2, 12, 14, 3))  # one cell more on every side, cut off below
    for row in range(5):
        for column in range(6):
            patch = np.einsum("nc,abjc->nabj", x[:, row, column], kernel)
            expected[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += patch
    expected = expected[:, 1:-1, 1:-1] + layer.bias.numpy()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert layer.compute_output_shape(x.shape) == (2, 10, 12, 3)


def test_heat_maps_are_doubled_between_the_centres():
    """Output cell i has its centre at (i + .5) / 2 - .5 of the input, clamped to its first and last cell."""
    x = noise(1, 4, 5, 2)

    def weights(count):
        places = np.clip((np.arange(2 * count) + 0.5) / 2 - 0.5, 0, count - 1)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count)))

    expected = np.einsum("yh,xw,bhwj->byxj", weights(4), weights(5), x)
    np.testing.assert_allclose(UpsampleBilinear()(x), expected, atol=1e-6)


def test_keypoint_head():
    features = keras.Input((14, 14, 256))
    model = keras.Model(features, KeypointHead(KeypointHeadConfig())(features))
    assert model.output.shape == (None, 56, 56, 17)
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    assert shapes["keypoint_conv1/kernel"] == (3, 3, 256, 512)
    assert shapes["keypoint_conv8/kernel"] == (3, 3, 512, 512)
    assert shapes["keypoint_deconv/kernel"] == (4, 4, 17, 512) and shapes["keypoint_deconv/bias"] == (17,)
    deviation = model.get_layer("keypoint_deconv").kernel.numpy().std()
    assert deviation == pytest.approx((2 / (512 * 16)) ** 0.5, rel=0.02)  # Detectron2's start
    convs = [model.get_layer(f"keypoint_conv{number}").kernel.numpy() for number in (2, 3)]
    assert np.abs(convs[0] - convs[1]).max() > 1e-3
    assert model(noise(2, 14, 14, 256)).shape == (2, 56, 56, 17)


def test_the_mask_branches_of_the_papers_comparisons():
    features = keras.Input((6, 6, 8))

    def shapes(side=28, **values):
        model = keras.Model(features, MaskHead(MaskHeadConfig(**values), 5, side=side)(features))
        return model.output.shape, {weight.path: tuple(weight.shape) for weight in model.weights}

    output, weights = shapes(convs=(4,), deconv=4, class_agnostic=True)
    assert output == (None, 12, 12, 1) and weights["mask_logits/kernel"] == (1, 1, 4, 1)
    output, weights = shapes(convs=(4,), deconv=4, activation="softmax")
    assert output == (None, 12, 12, 6) and weights["mask_logits/kernel"] == (1, 1, 4, 6)
    output, weights = shapes(side=12, fc=(16, 24))
    assert output == (None, 12, 12, 5)
    assert weights == {
        "mask_fc1/kernel": (6 * 6 * 8, 16),
        "mask_fc1/bias": (16,),
        "mask_fc2/kernel": (16, 24),
        "mask_fc2/bias": (24,),
        "mask_logits/kernel": (24, 12 * 12 * 5),
        "mask_logits/bias": (12 * 12 * 5,),
    }
