"""Matterport's files and tensors: what becomes of each, and what does not fit."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.weights import matterport
from mrcnn_tf.weights.matterport import assign_matterport, count_classes, guess_depth, read_matterport
from mrcnn_tf.weights.matterport_files import plain_name
from mrcnn_tf.weights.report import WeightsError
from tests.support import matterport_network as theirs
from tests.support.matterport_network import CLASSES, config


@pytest.fixture(scope="module")
def tensors():
    return theirs.random_tensors()


# === The pieces ===


def test_a_folded_norm_by_hand():
    # y = 2 (x w + b - 1) / sqrt(3.999 + .001) + 5 = x w + b + 4.
    values = {"gamma": [2.0], "beta": [5.0], "moving_mean": [1.0], "moving_variance": [3.999]}
    norm = {name: np.array(value) for name, value in values.items()}
    kernel, bias = matterport.fold_norm(np.array([[3.0]]), np.array([0.25]), **norm)
    np.testing.assert_allclose((kernel[0, 0], bias[0]), (3.0, 4.25))


def test_two_scores_of_an_anchor_become_one():
    scores = np.array([0.5, 2.0, -1.0, -3.0])  # background, object; background, object
    ones = matterport.foreground_over_background(scores)
    np.testing.assert_allclose(ones, [1.5, -2.0])
    np.testing.assert_allclose(1 / (1 + np.exp(-ones)), tf.nn.softmax(scores.reshape(2, 2))[:, 1])


@dataclass
class Weight:
    """What the conversion needs of a weight of a model."""

    path: str
    shape: tuple
    value: np.ndarray = field(default=None, repr=False)

    def assign(self, value):
        assert value.shape == self.shape and value.dtype == np.float32
        self.value = value


HEAD_SHAPES = {
    "box_fc1": (49 * 4, 8),
    "box_fc2": (8, 8),
    "rpn/conv": (3, 3, 4, 6),
    "rpn/objectness": (1, 1, 6, 2),
    "rpn/deltas": (1, 1, 6, 8),
    "mask_conv1": (3, 3, 4, 5),
    "mask_deconv": (2, 2, 7, 5),
}


def thin(classes, **changes):
    """A model of heads alone, and random tensors for it."""
    own = {**HEAD_SHAPES, "box_classes": (8, classes + 1), "box_deltas": (8, 4 * classes)}
    own["mask_logits"] = (1, 1, 7, classes)
    biases = {layer: (shape[2] if layer == "mask_deconv" else shape[-1],) for layer, shape in own.items()}
    weights = [Weight(f"{layer}/kernel", shape) for layer, shape in own.items()]
    weights += [Weight(f"{layer}/bias", shape) for layer, shape in biases.items()]
    kernels = {
        "mrcnn_class_conv1": (7, 7, 4, 8),
        "mrcnn_class_conv2": (1, 1, 8, 8),
        "mrcnn_class_logits": (8, classes + 1),
        "mrcnn_bbox_fc": (8, 4 * classes + 4),
        "rpn_conv_shared": (3, 3, 4, 6),
        "rpn_class_raw": (1, 1, 6, 4),
        "rpn_bbox_pred": (1, 1, 6, 8),
        "mrcnn_mask_conv1": (3, 3, 4, 5),
        "mrcnn_mask_deconv": (2, 2, 7, 5),
        "mrcnn_mask": (1, 1, 7, classes + 1),
    }
    random = np.random.default_rng(classes)
    shapes = {f"{layer}/kernel": shape for layer, shape in kernels.items()}
    shapes |= {f"{layer}/bias": (7 if "deconv" in layer else shape[-1],) for layer, shape in kernels.items()}
    for layer in ("mrcnn_class_conv1", "mrcnn_class_conv2", "mrcnn_mask_conv1"):
        norm = layer.replace("conv", "bn")
        shapes |= {
            f"{norm}/{name}": (kernels[layer][-1],) for name in ("gamma", "beta", "moving_mean", "moving_variance")
        }
    tensors = {name: random.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    values = {"num_classes": classes, "class_names": (), **changes}
    return SimpleNamespace(config=config(**values), weights=weights), tensors


def value(model, path):
    return next(weight.value for weight in model.weights if weight.path == path)


@pytest.mark.parametrize("classes", [1, 80, 90, 1000])
def test_each_class_finds_its_place(classes):
    model, tensors = thin(classes)
    assert count_classes(tensors) == classes
    report = assign_matterport(model, tensors)
    assert report.complete and report.unused == [] and len(report.loaded) == len(model.weights)
    np.testing.assert_array_equal(value(model, "box_classes/kernel"), tensors["mrcnn_class_logits/kernel"])
    np.testing.assert_array_equal(value(model, "box_deltas/kernel")[:, -4:], tensors["mrcnn_bbox_fc/kernel"][:, -4:])
    np.testing.assert_array_equal(value(model, "box_deltas/bias")[:4], tensors["mrcnn_bbox_fc/bias"][4:8])
    np.testing.assert_array_equal(value(model, "mask_logits/kernel")[..., 0], tensors["mrcnn_mask/kernel"][..., 1])
    np.testing.assert_array_equal(value(model, "mask_logits/bias")[-1], tensors["mrcnn_mask/bias"][-1])


def test_cells_and_units_of_the_thin_heads():
    model, tensors = thin(2)
    assign_matterport(model, tensors)
    pooled = np.random.default_rng(0).normal(size=(1, 7, 7, 4)).astype(np.float32)
    scale = tensors["mrcnn_class_bn1/gamma"] / np.sqrt(tensors["mrcnn_class_bn1/moving_variance"] + 1e-3)
    convolved = np.einsum("nhwc,hwcf->nf", pooled, tensors["mrcnn_class_conv1/kernel"]) * scale
    np.testing.assert_allclose(pooled.reshape(1, -1) @ value(model, "box_fc1/kernel"), convolved, rtol=1e-4)
    deltas = value(model, "rpn/deltas/bias") / tensors["rpn_bbox_pred/bias"]
    np.testing.assert_allclose(deltas, [0.1, 0.1, 0.2, 0.2] * 2, rtol=1e-6)
    raw = tensors["rpn_class_raw/kernel"]
    np.testing.assert_allclose(value(model, "rpn/objectness/kernel")[..., 1], raw[..., 3] - raw[..., 2], atol=1e-6)


# === What does not fit ===


def test_another_number_of_classes_is_told_and_sets_nothing():
    model, _ = thin(2)
    with pytest.raises(WeightsError, match="they are of 80 classes and the background, its num_classes is 2") as caught:
        assign_matterport(model, thin(80)[1])
    assert "mrcnn_bbox_fc/kernel has the shape (8, 324), but box_deltas needs (8, 12)" in str(caught.value)
    assert "mrcnn_mask/bias has the shape (81,), but mask_logits needs (3,)" in str(caught.value)
    assert all(weight.value is None for weight in model.weights)


def test_skipped_layers_stay_as_drawn():
    model, _ = thin(2)
    skip = ("box_classes", "box_deltas", "mask_logits")
    report = assign_matterport(model, thin(80)[1], skip=skip)
    assert sorted(report.reinitialized) == sorted(skip) and report.complete and report.unused == []
    assert {weight.path.split("/")[0] for weight in model.weights if weight.value is None} == set(skip)
    assert "mrcnn_bbox_fc/kernel (box_deltas stays as drawn)" in report.left_out and len(report.left_out) == 6
    with pytest.raises(WeightsError, match="the model has no layer called box_clases"):
        assign_matterport(model, thin(2)[1], skip=["box_clases"])


def test_a_missing_tensor_leaves_its_layer_and_is_told():
    model, tensors = thin(2)
    del tensors["mrcnn_class_bn2/beta"], tensors["rpn_bbox_pred/bias"]
    model.weights.append(Weight("mask_conv2/norm/gamma", (5,)))
    report = assign_matterport(model, {**tensors, "anchors/Variable": np.zeros(3), "more/kernel": np.zeros(2)})
    assert sorted(report.missing) == [
        "mrcnn_class_bn2/beta (for box_fc2)",
        "no tensor (for mask_conv2/norm/gamma)",
        "rpn_bbox_pred/bias (for rpn/deltas)",
    ]
    assert report.left == ["box_fc2", "rpn", "mask_conv2"] and not report.complete  # the whole of the RPN
    left = {weight.path for weight in model.weights if weight.value is None}
    assert {path.split("/")[0] for path in left} == {"box_fc2", "rpn", "mask_conv2"} and len(left) == 9
    assert "anchors/Variable" in report.left_out
    assert "more/kernel" in report.unused and "mrcnn_class_bn2/gamma" in report.unused


def test_tensors_of_something_else():
    model, _ = thin(2)
    with pytest.raises(WeightsError, match="no tensors of Matterport's Mask_RCNN: only 0 of the 20 weights"):
        assign_matterport(model, {"roi_heads.box_head.fc6.weight": np.zeros(3)})
    with pytest.raises(WeightsError, match="is there twice, the second time as rpn_model/rpn_class_raw/bias:0"):
        assign_matterport(model, {"rpn_class_raw/bias": 0, "rpn_model/rpn_class_raw/bias:0": 0})


def test_depth_and_number_of_classes_are_read_from_the_tensors(tensors):
    assert guess_depth(tensors) == "resnet50" and count_classes(tensors) == CLASSES
    deeper = theirs.shapes(80, ((2, 3), (3, 4), (4, 23), (5, 3)))
    names = [f"{layer}/bias" for layer in deeper]
    assert "res4w_branch2c/bias" in names and guess_depth(names) == "resnet101"
    with pytest.raises(WeightsError, match="has 1 blocks; ResNet-50 has 6 there and ResNet-101 23"):
        guess_depth(["res4a_branch2a/kernel"])
    with pytest.raises(WeightsError, match="none of mrcnn_class_logits, mrcnn_bbox_fc, mrcnn_mask"):
        count_classes({"conv1/bias": np.zeros(3)})
    with pytest.raises(WeightsError, match="different numbers of classes: mrcnn_class_logits 2, mrcnn_mask 3"):
        count_classes({"mrcnn_class_logits/bias": np.zeros(3), "mrcnn_mask/bias": np.zeros(4)})


def test_another_depth():
    model, tensors = thin(2, backbone__name="resnet50")
    blocks = {f"res4{letter}_branch2a/kernel": np.zeros(1) for letter in "abcdefghijklmnopqrstuvw"}
    with pytest.raises(WeightsError, match="are of a resnet101, but the model's backbone.name is resnet50"):
        assign_matterport(model, {**tensors, **blocks})


def test_conventions_are_compared():
    model, tensors = thin(2)
    assert assign_matterport(model, tensors).warnings == []
    model.config = Config(num_classes=2)
    warnings = assign_matterport(model, tensors).warnings
    expected = {"input.channel_order", "input.mean", "backbone.norm_epsilon", "backbone.pool_padding"}
    expected |= {"anchors.ratios", "anchors.shrink", "roi.layer", "roi.canonical_size"}
    assert {warning.split(" ")[0] for warning in warnings} == expected


# === Files ===

SOME = (
    "conv1",
    "bn_conv1",
    "res2a_branch2b",
    "bn2a_branch2b",
    "fpn_c5p5",
    "rpn_class_raw",
    "mrcnn_class_bn1",
    "mrcnn_mask",
)


@pytest.mark.parametrize("layout", [{}, {"group": "model_weights"}, {"suffix": "_1"}])
def test_files_in_the_layout_of_keras_2(layout, tensors, tmp_path):
    some = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] in SOME and tensor.size < 1e5}
    path = theirs.write_h5(tmp_path / "mask_rcnn.h5", some, **layout)
    with h5py.File(path, "a") as file:
        file["optimizer_weights/training/SGD/conv1/kernel/momentum:0"] = np.zeros(1) if "group" in layout else 0
        if "group" not in layout:
            del file["optimizer_weights"]
    found = read_matterport(path)
    assert sorted(found) == sorted(some)
    assert all((found[name] == tensor).all() for name, tensor in some.items())


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("mrcnn_class_conv1/mrcnn_class_conv1/kernel:0", "mrcnn_class_conv1/kernel"),
        ("rpn_model/rpn_bbox_pred/bias:0", "rpn_bbox_pred/bias"),
        ("rpn_model/rpn_bbox_pred_2/bias:0", "rpn_bbox_pred/bias"),
        ("mask_rcnn/mrcnn_mask_bn4/batch_normalization_3/moving_variance:0", "mrcnn_mask_bn4/moving_variance"),
        ("res4w_branch2c/res4w_branch2c_1/kernel:0", "res4w_branch2c/kernel"),
        ("anchors/anchors/Variable:0", "anchors/Variable"),
        ("bn_conv1/gamma", "bn_conv1/gamma"),
        ("predictions/predictions/kernel:0", "predictions/kernel"),
    ],
)
def test_names(name, plain):
    assert plain_name(name) == plain


def test_unusable_files(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_matterport(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("no hdf5")
    with pytest.raises(WeightsError, match="cannot be read .* cut short, or no .h5 file"):
        read_matterport(tmp_path / "text.h5")
    theirs.write_h5(tmp_path / "other.h5", {"predictions/kernel": np.zeros(3)})
    with pytest.raises(WeightsError, match="none of the 1 tensors in it belongs to Matterport's Mask_RCNN"):
        read_matterport(tmp_path / "other.h5")
    path = theirs.write_h5(tmp_path / "twice.h5", {"conv1/kernel": np.zeros(3)})
    with h5py.File(path, "a") as file:
        file["conv1/conv1_1/kernel:0"] = np.zeros(3)
    with pytest.raises(WeightsError, match="has conv1/kernel twice, the second time as conv1/conv1"):
        read_matterport(path)
