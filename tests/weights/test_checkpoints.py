"""Every public checkpoint against tables of names and shapes that were written down independently.

Tensors here are numbers, one value each and all different: what is asked is which tensor becomes which weight, and that
no tensor and no weight is forgotten. What the layouts compute is proved in test_assign.py and test_reference_models.py.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from mrcnn_tf import presets, weights
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from mrcnn_tf.weights.guess import guess
from mrcnn_tf.weights.report import WeightsError
from tests.support import checkpoint_tables as tables

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
DETECTORS = [name for name in presets.checkpoints() if not name.startswith("matterport/")]
PROVED = {  # presets whose checkpoint's names and shapes were recorded from the real model
    "torchvision/maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn_spec.json",
    "torchvision/keypointrcnn_resnet50_fpn": "keypointrcnn_resnet50_fpn_spec.json",
    **{
        f"detectron2/{name}": f"detectron2_{name}_spec.json"
        for name in (
            "mask_rcnn_R_50_C4",
            "mask_rcnn_R_50_DC5",
            "mask_rcnn_R_50_FPN",
            "mask_rcnn_X_101_32x8d_FPN",
            "keypoint_rcnn_R_50_FPN",
        )
    },
}
CAFFE2 = ("resnet50", "resnet101", "resnext101_32x8d")
KERAS = ("resnet50", "resnet101", "resnet152")


def rows_of(name, config):
    if name.startswith("torchvision/"):
        return tables.torchvision_rows(config, second=name.endswith("_v2"))
    return tables.detectron2_rows(config)


def small(name, **changes):
    """The preset with thin dense layers, which are the larger part of the memory and of the time."""
    config = preset(name, **changes)
    return config.replace(box_head__fc=(8,) * len(config.box_head.fc))


def case(name, **changes):
    """A model that is a list of weights, the rows of its table, and its tensors."""
    config = small(name, **changes)
    rows = rows_of(name, config)
    extras = tables.counters(rows) if name.startswith("torchvision/") else {}
    return tables.Model(config, rows), rows, tables.numbered(tables.spec(rows, **extras))


def assert_all_set(model, rows, tensors):
    ranges = {variable.path: variable.range for variable in model.weights}
    for row in rows:
        value = tensors[row.name].reshape(-1)[0]
        assert ranges[row.path] == (value, value), row.path


@pytest.mark.parametrize("name", PROVED)
def test_tables_are_those_of_the_real_models(name):
    recorded = {key: tuple(shape) for key, shape in json.loads((REFERENCE / PROVED[name]).read_text()).items()}
    rows = rows_of(name, preset(name))
    assert tables.spec(rows, **(tables.counters(rows) if name.startswith("torchvision/") else {})) == recorded


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(name):
    model, rows, tensors = case(name)
    report = weights.assign(model, tensors, name.split("/")[0])
    assert report.complete and report.missing == report.left == report.unused == report.reinitialized == []
    assert report.loaded == [row.path for row in rows]
    assert_all_set(model, rows, tensors)
    whole = [tensor for tensor in report.left_out if tensor in tensors]
    assert len(tensors) == len(report.loaded) + len(whole)
    assert {report.reasons[tensor] for tensor in whole} <= {"a count of training steps"}
    parts = {text.split("[")[0] for text in report.left_out if text not in tensors}
    background = {row.name for row in rows if row.path.startswith(("box_deltas", "mask_logits"))}
    assert parts == (background if name.startswith("torchvision/") else set())


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_recognised(name):
    model, rows, tensors = case(name)
    found = guess(tensors, name.split("/")[0])
    assert found.preset == name and found.config() == model.config
    without_counters = {key: value for key, value in tensors.items() if not key.endswith("tracked")}
    frozen = name.startswith("torchvision/")  # as the published files of the first versions are
    assert guess(without_counters, name.split("/")[0]).config().backbone.norm_epsilon == (0 if frozen else 1e-5)


@pytest.mark.parametrize("classes", [1, 80, 90, 1000])
@pytest.mark.parametrize("name", ["torchvision/maskrcnn_resnet50_fpn_v2", "detectron2/mask_rcnn_R_50_C4"])
def test_any_number_of_classes(name, classes):
    model, rows, tensors = case(name, num_classes=classes)
    report = weights.assign(model, tensors, name.split("/")[0])
    assert report.complete and len(report.loaded) == len(rows)
    found = guess(tensors, name.split("/")[0]).config()
    assert found.num_classes == classes
    assert found.class_names == (preset(name).class_names if classes == preset(name).num_classes else ())


@pytest.mark.parametrize("name", ["torchvision/maskrcnn_resnet50_fpn", "detectron2/mask_rcnn_R_50_FPN"])
def test_other_classes_are_an_error_unless_their_layers_are_skipped(name):
    source = name.split("/")[0]
    _, rows, tensors = case(name)
    theirs = preset(name).num_classes
    model = tables.Model(small(name, num_classes=7), rows_of(name, small(name, num_classes=7)))
    with pytest.raises(WeightsError) as caught:
        weights.assign(model, tensors, source)
    text = str(caught.value)
    assert f"of a model of {theirs} classes (its num_classes is 7)" in text
    assert "skip=('box_classes', 'box_deltas', 'mask_logits',) would leave these layers as drawn" in text
    assert all(variable.range is None for variable in model.weights)
    layers = ("box_classes", "box_deltas", "mask_logits")
    report = weights.assign(model, tensors, source, skip=layers)
    assert report.reinitialized == list(layers) and report.complete
    untouched = [variable.path for variable in model.weights if variable.range is None]
    assert untouched == [f"{layer}/{weight}" for layer in layers for weight in ("kernel", "bias")]
    assert len(report.loaded) + len(untouched) == len(model.weights)
    left = {row.name: row.path.split("/")[0] for row in rows if row.path.startswith(layers)}
    assert {name: report.reasons[name] for name in left} == {
        name: f"of {layer}, which stays as drawn" for name, layer in left.items()
    }


def test_other_keypoints_are_an_error_unless_their_layer_is_skipped():
    name = "torchvision/keypointrcnn_resnet50_fpn"
    model, rows, tensors = case(name)
    deconvolution = "roi_heads.keypoint_predictor.kps_score_lowres"
    tensors[f"{deconvolution}.weight"] = np.zeros((512, 5, 4, 4), np.float32)
    tensors[f"{deconvolution}.bias"] = np.zeros(5, np.float32)
    with pytest.raises(WeightsError, match=r"of 5 keypoints \(its keypoint_head.names has 17\); skip=\('keypoint_deco"):
        weights.assign(model, tensors, "torchvision")
    assert weights.assign(model, tensors, "torchvision", skip=["keypoint_deconv"]).complete
    found = guess(tensors, "torchvision").config()
    assert found.keypoint_head.names == tuple(f"keypoint {number}" for number in range(1, 6))


def test_a_layer_to_skip_has_to_be_there():
    model, _, tensors = case("detectron2/faster_rcnn_R_50_FPN")
    for source in ("detectron2", "torchvision", "keras", "matterport"):
        with pytest.raises(WeightsError, match="has no layer called mask_logits"):
            weights.assign(model, tensors, source, skip=["mask_logits"])


# === ImageNet ===


def start(network, **changes):
    """A model to start from an ImageNet network, and the layers that such a network has nothing for."""
    config = small("torchvision/maskrcnn_resnet50_fpn", backbone__name=network, **changes)
    rows = tables.torchvision_rows(config)
    layers = list(dict.fromkeys(row.path.split("/")[0] for row in rows))
    return tables.Model(config, rows), [name for name in layers if name != "stem" and not name.startswith("res")]


def other_conventions(source, network):
    """The values that differ from torchvision's where an ImageNet network comes from somewhere else."""
    values = guess(tables.IMAGENET[source](network), source).config()
    return {"input": values.to_dict()["input"], "backbone": values.to_dict()["backbone"]}


NETWORKS = [
    *(("torchvision", network) for network in tables.NETWORKS),
    *(("detectron2", network) for network in CAFFE2),
    *(("keras", network) for network in KERAS),
]


@pytest.mark.parametrize(("source", "network"), NETWORKS)
def test_imagenet_networks(source, network):
    tensors = tables.IMAGENET[source](network)
    model, heads = start(network, **other_conventions(source, network))
    report = weights.assign(model, tensors, source)
    backbone = [variable for variable in model.weights if variable.path.startswith(("stem", "res"))]
    assert report.complete and report.missing == report.unused == []
    assert sorted(report.loaded) == sorted(variable.path for variable in backbone)
    assert report.left == heads and all(variable.range is None for variable in model.weights[len(backbone) :])
    assert "nothing in the source is for them" in report.summary()
    assert set(report.reasons) == set(report.left_out)
    if source == "torchvision":
        assert_all_set(model, tables.imagenet_rows(network), tensors)
        assert len(tensors) == len(report.loaded) + len(report.left_out)
        assert [name for name in report.left_out if "num_batches" not in name] == ["fc.weight", "fc.bias"]
    elif source == "detectron2":
        assert_all_set(model, tables.caffe2_rows(network), tensors)
        assert len(report.left_out) == 5 and report.reasons["conv1_w_momentum"] == "left over from training"
        assert report.reasons["conv1_b"] == "a bias that Detectron2 does not use either"
        assert len(tensors) == len(report.loaded) * 3 // 5 + 5
        assert f"{2 * len(backbone) // 5} weights are statistics that had been folded" in report.summary()
    else:
        assert report.left_out == ["predictions/kernel", "predictions/bias"]
        statistics = [row for row in tables.keras_rows(network) if not row.path.endswith("moving_mean")]
        assert_all_set(model, statistics, tensors)
        stem = {variable.path: variable.range for variable in model.weights}["stem/norm/moving_mean"]
        mean = tensors["conv1_bn/moving_mean"][0] - tensors["conv1_conv/bias"][0]
        assert stem == (mean, mean)


@pytest.mark.parametrize(("source", "network"), NETWORKS)
def test_imagenet_networks_are_recognised(source, network):
    found = guess(tables.IMAGENET[source](network), source)
    config = found.config()
    assert config.backbone.name == network and "/" not in found.preset
    order = "rgb" if source == "torchvision" else "bgr"
    # The stride: torchvision's and Facebook's ResNeXt have it in the 3x3 convolution.
    stride = "3x3" if source == "torchvision" or network.startswith("resnext") else "1x1"
    assert (config.input.channel_order, config.backbone.stride_in) == (order, stride)
    std = {"torchvision": (58.395, 57.12, 57.375), "detectron2": (57.375, 57.12, 58.395), "keras": (1.0,) * 3}[source]
    assert config.input.std == (std if source != "detectron2" or network.startswith("resnext") else (1.0,) * 3)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1.001e-5, 1e-3])
def test_norms_without_statistics_are_their_scale_and_shift_exactly(epsilon):
    model, _ = start("resnet50", **other_conventions("detectron2", "resnet50"))
    model = tables.Model(model.config.replace(backbone__norm_epsilon=epsilon), tables.torchvision_rows(model.config))
    weights.assign(model, tables.caffe2_imagenet("resnet50"), "detectron2")
    ranges = {variable.path: variable.range for variable in model.weights}
    assert ranges["res3_block2_conv1/norm/moving_mean"] == (0, 0)
    (variance, same) = ranges["res3_block2_conv1/norm/moving_variance"]
    assert variance == same and np.float32(variance) + np.float32(epsilon) == np.float32(1)


@pytest.mark.parametrize("features", ["C4", "DC5"])
def test_imagenet_networks_for_other_features(features):
    name = f"detectron2/mask_rcnn_R_50_{features}"
    model, rows, _ = case(name)
    for source in ("detectron2", "torchvision"):
        report = weights.assign(model, tables.IMAGENET[source]("resnet50"), source)
        backbone = [row.path for row in rows if row.path.startswith(("stem", "res"))]
        assert report.loaded == backbone and report.missing == []
        assert "res5_block1_conv1" not in report.left and "rpn" in report.left


def test_statistics_that_are_there_are_taken():
    tensors = tables.caffe2_imagenet("resnet50")
    norms = [name for name in tensors if name.endswith("_bn_s")]
    for name in norms:
        tensors[name.replace("bn_s", "bn_rm")] = tensors[name] + 0.25
        tensors[name.replace("bn_s", "bn_riv")] = tensors[name] + 0.5
    model, _ = start("resnet50", **other_conventions("detectron2", "resnet50"))
    report = weights.assign(model, tensors, "detectron2")
    assert report.complete and "folded" not in report.summary()
    found = {variable.path: variable.range for variable in model.weights}["stem/norm/moving_variance"]
    assert found == (tensors["res_conv1_bn_s"][0] + 0.5,) * 2
    del tensors["res4_1_branch2b_bn_rm"]  # one of the two alone is a file that is not whole
    report = weights.assign(model, tensors, "detectron2")
    assert report.left[-1] == "res4_block2_conv2" or "res4_block2_conv2" in report.left
    assert len(report.missing) == 1 and not report.complete


def test_names_of_detectron2_without_its_prefix():
    """As its tool for converting torchvision's ResNets writes them."""
    model, rows, tensors = case("detectron2/mask_rcnn_R_50_FPN")
    plain = {name.removeprefix("backbone.bottom_up."): value for name, value in tensors.items() if "bottom_up" in name}
    plain["stem.fc.weight"] = np.zeros((1000, 2048))
    report = weights.assign(model, plain, "detectron2")
    assert report.missing == report.unused == [] and report.left_out == ["stem.fc.weight"]
    assert_all_set(model, [row for row in rows if row.path.startswith(("stem", "res"))], tensors)


@pytest.mark.parametrize("layout", ["old", "h5"])
def test_older_names_of_keras(layout):
    tensors = tables.keras_imagenet("resnet50")
    parts = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}

    def old(name):
        layer, tensor = name.split("/")
        if layout == "h5":
            return f"{layer}/{layer}/{tensor}:0"
        if layer == "predictions":
            return f"fc1000/{tensor}"
        if layer.startswith("conv1_"):
            return f"{'conv1' if layer.endswith('conv') else 'bn_conv1'}/{tensor}"
        stage, block, part, kind = layer.replace("conv", "", 1).replace("block", "").split("_")
        return f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_branch{parts[part]}/{tensor}"

    model, _ = start("resnet50", **other_conventions("keras", "resnet50"))
    report = weights.assign(model, {old(name): value for name, value in tensors.items()}, "keras")
    assert report.complete and report.unused == [] and len(report.loaded) == 53 * 5
    assert report.left_out == [old("predictions/kernel"), old("predictions/bias")]


def test_keras_skips_layers():
    model, heads = start("resnet50", **other_conventions("keras", "resnet50"))
    report = weights.assign(model, tables.keras_imagenet("resnet50"), "keras", skip=("stem", "box_classes"))
    assert report.reinitialized == ["stem", "box_classes"] and "box_classes" not in report.left
    assert len(report.loaded) == 52 * 5 and "conv1_conv/kernel" in report.unused


# === What does not fit ===


def test_another_backbone_is_an_error():
    model, _, _ = case("detectron2/mask_rcnn_R_50_FPN")
    _, _, deeper = case("detectron2/mask_rcnn_R_101_FPN")
    with pytest.raises(WeightsError, match="are of a resnet101, but the model's backbone.name is resnet50"):
        weights.assign(model, deeper, "detectron2")
    deep = tables.Model(small("detectron2/mask_rcnn_R_101_FPN"), [])
    deep.weights = case("detectron2/mask_rcnn_R_101_FPN")[0].weights
    with pytest.raises(WeightsError, match="are of a resnet50, but the model's backbone.name is resnet101"):
        weights.assign(deep, case("detectron2/mask_rcnn_R_50_FPN")[2], "detectron2")
    model, _ = start("resnet50")
    with pytest.raises(WeightsError, match="are of a resnext50_32x4d, but the model's backbone.name is resnet50"):
        weights.assign(model, tables.torchvision_imagenet("resnext50_32x4d"), "torchvision")
    with pytest.raises(WeightsError, match="ResNeXt, which Keras applications has no weights for"):
        weights.assign(start("resnext50_32x4d")[0], tables.keras_imagenet("resnet50"), "keras")


def test_other_features_say_which_preset_fits():
    model, _, _ = case("detectron2/mask_rcnn_R_50_FPN")
    _, _, tensors = case("detectron2/mask_rcnn_R_50_C4")
    with pytest.raises(
        WeightsError, match=r"293 are not; they look like those of a detectron2/mask_rcnn_R_50_C4 \(res"
    ):
        weights.assign(model, tensors, "detectron2")
    with pytest.raises(WeightsError, match=r"is it the right source\?"):
        weights.assign(model, {"backbone.x": np.zeros(1)}, "detectron2")


def test_the_second_version_does_not_fit_the_first():
    model, _, _ = case("torchvision/maskrcnn_resnet50_fpn")
    _, _, tensors = case("torchvision/maskrcnn_resnet50_fpn_v2")
    report = weights.assign(model, tensors, "torchvision")
    assert not report.complete and {"fpn_lateral2", "box_fc1", "mask_conv4"} <= set(report.left)
    assert "rpn.head.conv.1.0.weight" in report.unused


def test_a_branch_that_the_model_has_not_is_told_loudly():
    model, _, _ = case("detectron2/faster_rcnn_R_50_FPN")
    _, _, tensors = case("detectron2/mask_rcnn_R_50_FPN")
    report = weights.assign(model, tensors, "detectron2")
    assert len(report.unused) == 12 and all(name.startswith("roi_heads.mask_head") for name in report.unused)
    assert not report.complete and "12 tensors are of no part of the model" in report.summary()


def test_group_norms_take_no_batch_norms():
    name = "torchvision/maskrcnn_resnet50_fpn"
    config, rows = small(name, backbone__norm="group"), case(name)[1]
    model = tables.Model(config, [row for row in rows if "moving" not in row.path])
    report = weights.assign(model, case(name)[2], "torchvision")
    assert "the model has group norms" in report.summary() and report.unused == report.missing == []
    assert [layer for layer in report.left if not layer.endswith("/norm")] == [] and len(report.left) == 53
    assert sum("norm" in path for path in report.loaded) == 0 and "stem/kernel" in report.loaded


def test_two_names_of_the_same_tensor():
    model, _, tensors = case("torchvision/maskrcnn_resnet50_fpn")
    tensors["rpn.head.conv.bias"] = np.zeros(256)
    with pytest.raises(WeightsError, match="the same one: rpn.head.conv.0.0.bias and rpn.head.conv.bias"):
        weights.assign(model, tensors, "torchvision")


@pytest.mark.parametrize("source", ["torchvision", "detectron2", "keras"])
def test_tensors_of_no_known_network(source):
    with pytest.raises(WeightsError, match=f"of no network known of {source}"):
        guess({"backbone.x": np.zeros(1)}, source)
    with pytest.raises(WeightsError, match="unknown source 'x'"):
        guess({}, "x")


# === The models themselves ===


def assert_model_is_as_its_table(name):
    keras.utils.clear_session()
    model = MaskRCNN(small(name))
    table = {row.path: row.shape for row in rows_of(name, model.config)}
    assert {weight.path: tuple(weight.shape) for weight in model.weights} == table


def test_the_second_version_is_as_its_table():
    assert_model_is_as_its_table("torchvision/maskrcnn_resnet50_fpn_v2")


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_models_are_as_their_tables(name):
    assert_model_is_as_its_table(name)
