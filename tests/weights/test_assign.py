"""Setting weights from other names and layouts: every place of every class, and what does not fit."""

import keras
import numpy as np
import pytest

from mrcnn_tf import weights
from mrcnn_tf.model import MaskRCNN
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
        _, outputs = names.rows(weight.path, config.num_classes, 3) or (None, None)
        shape = torch_shape(weight.path, tuple(weight.shape), config.box_head.pool, outputs)
        tensors[names.tensor_name(weight.path)] = rng.normal(size=shape).astype(np.float32)
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


@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_each_class_finds_its_place(classes, model):
    model = model if classes == 3 else built(classes)
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
        assert torchvision.modern_name(old[name]) == name == torchvision.modern_name(name)
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
    assert "num_classes is 3" in text and "fc6" not in text
    assert all((weight.numpy() == old).all() for weight, old in zip(model.weights, before))


def test_a_source_that_is_unknown_or_another(model):
    with pytest.raises(WeightsError, match="unknown source 'caffe'; known are torchvision, detectron2"):
        weights.assign(model, {}, "caffe")
    with pytest.raises(WeightsError, match="no tensors of a Mask R-CNN with FPN of torchvision: they have only"):
        weights.assign(model, tensors_for(model, "detectron2"), "torchvision")


def test_conventions_of_the_source_that_the_configuration_breaks(model):
    # The shapes preset: RGB, its own means, stride in the 1x1 convolution, the half-pixel shift.
    report = weights.assign(model, tensors_for(model, "torchvision"), "torchvision")
    broken = {warning.split(" ")[0] for warning in report.warnings}
    assert {"input.mean", "backbone.stride_in", "roi.half_pixel", "anchors.rounded", "anchors.stride_rule"} == broken
    assert not report.complete


def test_frozen_norms_of_torchvision_are_doubted(model):
    tensors = tensors_for(model, "torchvision")
    del tensors["backbone.body.bn1.num_batches_tracked"]
    report = weights.assign(model, tensors, "torchvision")
    assert any("norm_epsilon" in warning and "needs 0" in warning for warning in report.warnings)
