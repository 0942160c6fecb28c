"""Setting weights from other names and layouts: every place of every class, and what does not fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import weights
from mrcnn_tf.geometry.anchors import cell_anchors
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.networks.keypoint_head import Deconv4x4
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import detectron2, torchvision
from mrcnn_tf.weights.report import WeightsError
from mrcnn_tf.weights.torch_layout import from_torch, swapped_boxes, torch_shape
from tests.support.tiny import tiny_config

SOURCES = {"torchvision": torchvision, "detectron2": detectron2}
LOGITS, DELTAS, MASKS = (
    {
        "torchvision": f"roi_heads.{head}",
        "detectron2": f"roi_heads.{other}",
    }
    for head, other in (
        ("box_predictor.cls_score", "box_predictor.cls_score"),
        ("box_predictor.bbox_pred", "box_predictor.bbox_pred"),
        ("mask_predictor.mask_fcn_logits", "mask_head.predictor"),
    )
)


def built(classes=3):
    keras.utils.set_random_seed(0)
    return MaskRCNN(tiny_config(num_classes=classes, class_names=(), **{"box_head.fc": (32, 32)}))


def tensors_for(model, source, seed=0):
    """Random tensors of all names and shapes that `source` would have for this model."""
    rng = np.random.default_rng(seed)
    names, config = SOURCES[source], model.config
    tensors = {}
    for weight in model.weights:
        _, outputs = names.rows(weight.path, config) or (None, None)
        shape = torch_shape(weight.path, tuple(weight.shape), config.box_head.pool, outputs)
        tensors[names.tensor_name(weight.path, config)] = rng.normal(size=shape).astype(np.float32)
    if source == "torchvision":
        tensors["backbone.body.bn1.num_batches_tracked"] = np.array(7)
    return tensors


@pytest.fixture(scope="module")
def model():
    return built()


def test_boxes_are_reordered_and_the_background_skipped():
    rows, outputs = swapped_boxes(2, skip=1)
    assert rows.tolist() == [5, 4, 7, 6, 9, 8, 11, 10] and outputs == 12


def test_layouts_compute_the_same():
    rng = np.random.default_rng(0)
    # A dense layer on a map of 3 channels and 2 x 2 positions, which torch flattens channel by channel.
    pooled, tensor = rng.normal(size=(2, 2, 3)), rng.normal(size=(5, 12)).astype(np.float32)
    kernel = from_torch("box_fc1/kernel", tensor, 2)
    np.testing.assert_allclose(pooled.reshape(-1) @ kernel, tensor @ pooled.transpose(2, 0, 1).reshape(-1), rtol=1e-5)
    assert from_torch("box_fc2/kernel", tensor, 2)[7, 3] == tensor[3, 7]
    tensor = rng.normal(size=(4, 3, 2, 2))
    assert from_torch("stem/kernel", tensor, 7)[1, 0, 2, 3] == np.float32(tensor[3, 2, 1, 0])
    assert torch_shape("mask_deconv/kernel", (2, 2, 8, 16), 7) == (16, 8, 2, 2)
    assert from_torch("mask_deconv/kernel", tensor, 7).shape == (2, 2, 3, 4)
    assert torch_shape("keypoint_deconv/kernel", (4, 4, 17, 512), 7) == (512, 17, 4, 4)
    assert torch_shape("res2_block1_conv2/kernel", (3, 3, 8, 256), 7) == (256, 8, 3, 3)  # 32 groups of 8


def test_deconvolutions_compute_the_same():
    # torch: input cell (i, j) of channel c adds x times weight[c, o, u, v] to output cell (2 i + u - 1, 2 j + v - 1).
    rng = np.random.default_rng(0)
    x, tensor = rng.normal(size=(3, 2, 5)).astype(np.float32), rng.normal(size=(5, 4, 4, 4)).astype(np.float32)
    expected = np.zeros((8, 6, 4))
    for i, j, u, v in np.ndindex(3, 2, 4, 4):
        expected[2 * i + u, 2 * j + v] += x[i, j] @ tensor[:, :, u, v]
    layer = Deconv4x4(4)
    layer.build((None, None, None, 5))
    layer.kernel.assign(from_torch("keypoint_deconv/kernel", tensor, 7))
    np.testing.assert_allclose(layer(x[None])[0], expected[1:-1, 1:-1], atol=1e-5)


def test_convolutions_in_groups_compute_the_same():
    # torch: outputs of group g see the inputs of group g alone; weight[o, i] counts i within the group.
    rng = np.random.default_rng(0)
    x, tensor = rng.normal(size=(6,)).astype(np.float32), rng.normal(size=(8, 3, 1, 1)).astype(np.float32)
    expected = [tensor[o, :, 0, 0] @ x[3 * (o // 4) : 3 * (o // 4) + 3] for o in range(8)]
    found = tf.nn.conv2d(x[None, None, None], from_torch("res2_block1_conv2/kernel", tensor, 7), 1, "VALID")
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("features", ["C4", "DC5"])
def test_anchors_of_several_sizes_change_their_order(features):
    config = preset(f"detectron2/mask_rcnn_R_50_{features}").replace(num_classes=1, class_names=())
    # Detectron2's cell: for each size, each ratio (height / width).
    theirs = [(size * ratio**0.5, size / ratio**0.5) for size in (32, 64, 128, 256, 512) for ratio in (0.5, 1, 2)]
    ours = cell_anchors(config.anchors.sizes[0], config.anchors.ratios)
    rows, outputs = detectron2.rows("rpn/objectness/bias", config)
    assert outputs == 15
    np.testing.assert_allclose(np.array(theirs)[rows], ours[:, 2:] - ours[:, :2], rtol=1e-6)
    rows, outputs = detectron2.rows("rpn/deltas/kernel", config)
    order = [3 * size + ratio for ratio in range(3) for size in range(5)]  # the number there of each anchor here
    assert rows.reshape(15, 4).tolist() == [[4 * n + 1, 4 * n, 4 * n + 3, 4 * n + 2] for n in order]
    assert rows[:4].tolist() == [1, 0, 3, 2] and rows[4:8].tolist() == [13, 12, 15, 14] and outputs == 60
    # On a pyramid each map has one size, and nothing changes.
    assert detectron2.rows("rpn/objectness/bias", preset("detectron2/mask_rcnn_R_50_FPN"))[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("classes", [1, 80, 90, 1000])
def test_each_class_finds_its_place(classes):
    model = built(classes)
    last = classes - 1
    for source in SOURCES:
        tensors = tensors_for(model, source)
        report = weights.assign(model, tensors, source)
        assert sorted(report.loaded) == sorted(weight.path for weight in model.weights)
        assert report.missing == report.unused == []
        logits, deltas, masks = (tensors[f"{names[source]}.weight"] for names in (LOGITS, DELTAS, MASKS))
        shift = 1 if source == "torchvision" else 0  # the first output is the background's
        background = 0 if source == "torchvision" else classes
        kernel = model.get_layer("box_classes").kernel.numpy()
        np.testing.assert_array_equal(kernel[:, 0], logits[background])
        np.testing.assert_array_equal(kernel[:, classes], logits[last + shift])
        kernel = model.get_layer("box_deltas").kernel.numpy()
        dx, dy, dw, dh = deltas[4 * (last + shift) : 4 * (last + shift) + 4]
        np.testing.assert_array_equal(kernel[:, 4 * last :].T, [dy, dx, dh, dw])
        np.testing.assert_array_equal(
            model.get_layer("mask_logits").kernel[0, 0, :, last], masks[last + shift, :, 0, 0]
        )


def test_every_weight_is_set_from_another_tensor(model):
    for source in SOURCES:
        weights.assign(model, tensors_for(model, source, seed=1), source)
        before = [weight.numpy() for weight in model.weights]
        weights.assign(model, tensors_for(model, source, seed=2), source)
        assert all((weight.numpy() != old).all() for weight, old in zip(model.weights, before))


def test_names_that_torchvisions_published_files_have(model):
    tensors = tensors_for(model, "torchvision")
    old = {
        "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.weight",
        "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn.layer_blocks.3.bias",
        "rpn.head.conv.0.0.weight": "rpn.head.conv.weight",
        "roi_heads.mask_head.0.0.bias": "roi_heads.mask_head.mask_fcn1.bias",
    }
    for name in old:
        assert torchvision.modern_name(old[name], model.config) == name == torchvision.modern_name(name, model.config)
    report = weights.assign(model, {old.get(name, name): value for name, value in tensors.items()}, "torchvision")
    assert report.missing == report.unused == []
    np.testing.assert_array_equal(model.get_layer("mask_conv1").bias, tensors["roi_heads.mask_head.0.0.bias"])


def test_a_missing_tensor_leaves_its_layer_and_is_told(model):
    tensors = tensors_for(model, "detectron2", seed=3)
    name = "backbone.bottom_up.res2.0.conv1.norm.running_var"
    layer = model.get_layer("res2_block1_conv1")
    before = [weight.numpy() for weight in layer.weights]
    del tensors[name]
    report = weights.assign(model, {**tensors, "roi_heads.keypoint_head.conv_fcn1.weight": np.zeros(3)}, "detectron2")
    assert report.missing == [f"{name} (for res2_block1_conv1/norm/moving_variance)"]
    assert report.left == ["res2_block1_conv1"] and not report.complete
    assert all((weight.numpy() == old).all() for weight, old in zip(layer.weights, before))
    assert len(report.loaded) == len(model.weights) - len(before)
    assert sorted(report.unused) == sorted(
        [name.replace("norm.running_var", rest) for rest in ("weight", "norm.weight", "norm.bias", "norm.running_mean")]
        + ["roi_heads.keypoint_head.conv_fcn1.weight"]
    )
    assert "5 tensors are of no part of the model" in report.warnings
    assert "NOT FOUND IN THE FILE: 1 tensors" in report.summary()


def test_shapes_that_do_not_fit_set_nothing(model):
    tensors = tensors_for(model, "torchvision", seed=4)
    before = [weight.numpy() for weight in model.weights]
    name = LOGITS["torchvision"]
    wrong = {
        **tensors,
        f"{name}.weight": np.zeros((91, 32), np.float32),
        f"{name}.bias": np.zeros(91, np.float32),
        "backbone.body.conv1.weight": np.zeros((64, 1, 7, 7), np.float32),
    }
    with pytest.raises(WeightsError) as caught:
        weights.assign(model, wrong, "torchvision")
    text = str(caught.value)
    assert f"{name}.weight has the shape (91, 32), but box_classes/kernel (32, 4) needs (4, 32)" in text
    assert "backbone.body.conv1.weight has the shape (64, 1, 7, 7), but stem/kernel (7, 7, 3, 64)" in text
    assert "of a model of 90 classes (its num_classes is 3)" in text and "fc6" not in text
    assert all((weight.numpy() == old).all() for weight, old in zip(model.weights, before))


def test_a_source_that_is_unknown_or_another(model):
    with pytest.raises(
        WeightsError, match="unknown source 'caffe'; known are torchvision, detectron2, matterport, keras"
    ):
        weights.assign(model, {}, "caffe")
    with pytest.raises(
        WeightsError, match="no tensors of this network of torchvision: of those that the model needs 6 are"
    ):
        weights.assign(model, tensors_for(model, "detectron2"), "torchvision")


def test_conventions_of_the_source_that_the_configuration_breaks(model):
    # The shapes preset: RGB, its own means, stride in the 1x1 convolution, the half-pixel shift.
    report = weights.assign(model, tensors_for(model, "torchvision"), "torchvision")
    broken = {warning.split(" ")[0] for warning in report.warnings}
    settings = {"input.mean", "input.std", "backbone.stride_in", "roi.half_pixel"}
    assert settings | {"anchors.rounded", "anchors.stride_rule"} == broken
    assert not report.complete


def test_frozen_norms_of_torchvision_are_doubted(model):
    tensors = tensors_for(model, "torchvision")
    del tensors["backbone.body.bn1.num_batches_tracked"]
    report = weights.assign(model, tensors, "torchvision")
    assert any("norm_epsilon" in warning and "need 0" in warning for warning in report.warnings)
