"""`mrcnn_tf.load`: presets with public weights, files of trainings, other classes. All at tiny size."""

import json
import logging

import h5py
import keras
import numpy as np
import pytest

import mrcnn_tf
from mrcnn_tf import loading, untrained, weights
from mrcnn_tf.config import ConfigError
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import compare, detectron2, download, torchvision, zoo
from mrcnn_tf.weights.report import WeightsError
from mrcnn_tf.weights.torch_layout import torch_shape
from tests.support.foreign_files import write_torch, write_zoo
from tests.support.tiny import tiny_config

SOURCES = {"torchvision": torchvision, "detectron2": detectron2}
# What makes a network of a preset small.
SMALL = {
    "input": {"shorter_edge": 64, "longer_edge": 96},
    "backbone": {"name": "resnet18"},
    "fpn": {"channels": 16},
    "rpn": {"channels": 16, "post_nms_test": 20},
    "box_head": {"fc": (32, 32)},
    "mask_head": {"convs": (16,), "deconv": 16},
    "detections": {"max_per_image": 8},
}
CLASS_LAYERS = ("box_classes", "box_deltas", "mask_logits")


def tensors_of(model, source, seed=0):
    """Random tensors of all names and shapes that `source` would have for this model, norms frozen."""
    rng = np.random.default_rng(seed)
    names, tensors = SOURCES[source], {}
    for weight in model.weights:
        _, outputs = names.rows(weight.path, model.config) or (None, None)
        shape = torch_shape(weight.path, tuple(weight.shape), model.config.box_head.pool, outputs)
        tensors[names.tensor_name(weight.path, model.config)] = rng.normal(size=shape).astype(np.float32)
    return tensors


def small_preset(name, **changes):
    return preset(name, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{source: a file of that source with a small network of its own model}, as published ones are called."""
    folder = tmp_path_factory.mktemp("public")
    ours = MaskRCNN(small_preset("torchvision/maskrcnn_resnet50_fpn"))
    theirs = MaskRCNN(small_preset("detectron2/mask_rcnn_R_50_FPN"))
    return {
        "torchvision": write_torch(folder / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", tensors_of(ours, "torchvision")),
        "detectron2": write_zoo(folder / "model_final_f10217.pkl", tensors_of(theirs, "detectron2")),
    }


@pytest.fixture(scope="module")
def wholes(files):
    """{source: the package's own preset with all weights of that source's file}."""
    return {source: mrcnn_tf.load("mask_rcnn_r50_fpn", weights=path, **SMALL) for source, path in files.items()}


@pytest.fixture
def trained():
    """A small model with random weights everywhere."""
    keras.utils.set_random_seed(0)
    model = MaskRCNN(tiny_config())
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.0, weight.shape))
    return model


def weights_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def assert_same(first, second, but=()):
    """The same weights, save those of some layers."""
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.split("/")[0] not in but:
            np.testing.assert_array_equal(value, second[name], err_msg=name)


# === Presets with public files ===


def test_a_source_preset_with_its_file(files, wholes, caplog):
    model = mrcnn_tf.load("torchvision/maskrcnn_resnet50_fpn", weights=files["torchvision"], **SMALL)
    assert model.anew_layers == () and "start anew" not in caplog.text
    config = model.config
    assert config.num_classes == 90 and config.class_names[:2] == ("person", "bicycle")
    assert config.backbone.norm_epsilon == 0.0  # the published file's norms were frozen from the start
    assert config.input.shorter_edge == (64,)
    tensors = tensors_of(model, "torchvision")  # the same numbers once more
    expected = tensors["roi_heads.box_predictor.cls_score.bias"]
    np.testing.assert_array_equal(model.get_layer("box_classes").bias, expected)
    assert_same(model, wholes["torchvision"])


def test_an_own_preset_follows_the_conventions_of_the_weights(files, caplog):
    caplog.set_level(logging.INFO, "mrcnn_tf")
    model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights=str(files["torchvision"]), **SMALL)
    right = small_preset("torchvision/maskrcnn_resnet50_fpn", backbone={"name": "resnet18", "norm_epsilon": 0.0})
    assert compare.conventions(model.config, right) == [] and compare.shapes(model.config, right) == []
    assert model.config.input == right.input and model.config.class_names == right.class_names
    assert "the model follows the conventions of maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth: " in caplog.text
    assert "backbone.stride_in is '3x3' for '1x1'" in caplog.text and "roi.half_pixel is False for True" in caplog.text


def test_what_the_caller_says_comes_before_the_conventions(files):
    small = {**SMALL, "roi": {"half_pixel": True}}
    model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights=files["torchvision"], **small)
    assert model.config.roi.half_pixel is True and model.config.backbone.stride_in == "3x3"


def test_coco_is_fetched_and_checked(files, tmp_path, monkeypatch):
    seen = []

    def fetch(url, name, check):
        seen.append((url, name, check))
        return files["detectron2"]

    monkeypatch.setattr(loading, "fetch", fetch)
    monkeypatch.setattr(zoo, "_is_network", lambda *_: True)  # nobody has published a small one
    model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights="coco", **SMALL)
    assert model.anew_layers == () and model.config.num_classes == 80 and model.config.class_names[0] == "person"
    (url, name, check), *_ = seen
    assert url.endswith("/137849600/model_final_f10217.pkl") and name == "model_final_f10217.pkl"
    assert check == "md5:f10217"
    mrcnn_tf.load("mask_rcnn_r50_fpn", weights="detectron2/mask_rcnn_R_50_FPN_1x", **SMALL)
    assert seen[1][1] == "model_final_a54504.pkl"


def test_without_a_network_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(download.FOLDER, str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(WeightsError) as caught:
        mrcnn_tf.load("mask_rcnn_r50_fpn", weights="coco")
    text = str(caught.value)
    assert "model_final_f10217.pkl" in text and str(tmp_path) in text and "weights=PATH" in text


def test_a_public_file_alone_is_known_by_its_name(files):
    model = mrcnn_tf.load(files["torchvision"], **SMALL)
    assert model.config.num_classes == 90 and model.config.input.channel_order == "rgb"


@pytest.mark.parametrize("classes", [1, 80, 90, 1000])
def test_other_numbers_of_classes_start_their_layers_anew(files, wholes, classes, caplog):
    for source, whole in wholes.items():
        known = whole.config.num_classes
        caplog.clear()
        model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights=files[source], num_classes=classes, **SMALL)
        assert model.config.num_classes == classes
        anew = () if classes == known else CLASS_LAYERS
        assert model.anew_layers == anew
        assert caplog.text.count("box_classes, box_deltas, mask_logits start anew") == bool(anew)
        assert model.config.replace(num_classes=known, class_names=whole.config.class_names) == whole.config
        assert_same(whole, model, but=CLASS_LAYERS)


def test_classes_by_name(files, wholes):
    names = ("rider", "person", "my bike")
    for source, whole in wholes.items():
        places = [whole.config.class_names.index(name) + 1 for name in ("person", "bicycle")]
        model = mrcnn_tf.load(
            "mask_rcnn_r50_fpn",
            weights=files[source],
            class_names=names,
            class_map={"person": "person", "my bike": "bicycle"},
            **SMALL,
        )
        assert model.config.num_classes == 3 and model.config.class_names == names
        old, new = (one.get_layer("box_classes").kernel.numpy() for one in (whole, model))
        np.testing.assert_array_equal(new[:, [0, 2, 3]], old[:, [0, *places]])
        assert model.anew_layers == CLASS_LAYERS
    with pytest.raises(WeightsError, match="'persn' is no class of the weights; did you mean 'person'"):
        mrcnn_tf.load("mask_rcnn_r50_fpn", weights=files["detectron2"], class_map={"a": "persn"}, **SMALL)


def test_a_file_of_other_classes_gives_a_model_of_these(tmp_path):
    config = small_preset("torchvision/maskrcnn_resnet50_fpn", num_classes=5)
    path = write_torch(tmp_path / "mine.pth", tensors_of(MaskRCNN(config), "torchvision"))
    for name in ("torchvision/maskrcnn_resnet50_fpn", "mask_rcnn_r50_fpn"):
        model = mrcnn_tf.load(name, weights=path, **SMALL)
        assert model.config.num_classes == 5 and model.config.class_names == () and model.anew_layers == ()
    # A preset for classes of its own keeps them.
    model = mrcnn_tf.load("nucleus", weights=path, **SMALL)
    assert model.config.class_names == ("nucleus",) and model.anew_layers == CLASS_LAYERS


def test_tensors_in_an_npz_file(tmp_path, wholes):
    config = small_preset("detectron2/mask_rcnn_R_50_FPN")
    np.savez(tmp_path / "mine.npz", **tensors_of(MaskRCNN(config), "detectron2"))
    model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights=tmp_path / "mine.npz", **SMALL)
    assert_same(model, wholes["detectron2"])


def test_a_network_of_another_kind_says_what_differs(files):
    with pytest.raises(WeightsError) as caught:
        mrcnn_tf.load("mask_rcnn_r50_fpn", weights=files["detectron2"], **{**SMALL, "fpn": {"channels": 24}})
    assert "fpn.channels is 16 there, 24 here" in str(caught.value)


def test_another_branch_starts_anew(files, caplog):
    small = {**SMALL, "branches": ("mask", "keypoints"), "keypoint_head": {"convs": (8,)}}
    model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights=files["detectron2"], **small)
    assert model.anew_layers == ("keypoint_conv1", "keypoint_deconv")
    assert "the weights have no branch for keypoints" in caplog.text
    model = mrcnn_tf.load("mask_rcnn_r50_fpn", weights=files["detectron2"], **{**SMALL, "branches": ()})
    assert model.anew_layers == () and model.config.branches == ()


# === Presets with a backbone, or with nothing ===


def test_imagenet_weights_leave_the_rest_to_be_trained(tmp_path, monkeypatch, caplog):
    rng = np.random.default_rng(0)
    whole = tensors_of(MaskRCNN(small_preset("torchvision/maskrcnn_resnet50_fpn")), "torchvision")
    start = "backbone.body."
    tensors = {name.removeprefix(start): value for name, value in whole.items() if name.startswith(start)}
    tensors.update({"fc.weight": rng.normal(size=(10, 512)), "fc.bias": rng.normal(size=10)})
    path = write_torch(tmp_path / "resnet18-f37072fd.pth", tensors)
    monkeypatch.setattr(loading, "fetch", lambda url, name, check: path if name == path.name else None)
    caplog.set_level(logging.INFO, "mrcnn_tf")
    model = mrcnn_tf.load("mask_rcnn_r18_fpn", weights="imagenet", num_classes=2, **SMALL)
    assert model.config.num_classes == 2
    assert model.config.input.channel_order == "rgb" and model.config.input.std == (58.395, 57.12, 57.375)
    assert "the model follows the conventions of resnet18-f37072fd.pth" in caplog.text
    np.testing.assert_array_equal(model.get_layer("stem").kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))
    assert "stem" not in model.anew_layers and not any(name.startswith("res") for name in model.anew_layers)
    assert {"fpn_lateral2", "rpn", "box_fc1", *CLASS_LAYERS} <= set(model.anew_layers)
    with pytest.raises(ConfigError, match="is a backbone without"):
        mrcnn_tf.load("mask_rcnn_r18_fpn", weights=path, class_map={"a": "b"}, **SMALL)


def test_no_weights_at_all(caplog):
    model = mrcnn_tf.load("torchvision/maskrcnn_resnet50_fpn", weights=None, num_classes=4, **SMALL)
    assert model.config == small_preset("torchvision/maskrcnn_resnet50_fpn", num_classes=4)
    assert list(model.anew_layers) == sorted(untrained.layer_names(model)) and caplog.text == ""
    report = weights.assign(model, tensors_of(model, "torchvision"), "torchvision", skip=("box_classes", "rpn"))
    assert report.missing == [] and model.anew_layers == ("box_classes", "rpn")
    with pytest.raises(ConfigError, match="there are none with weights=None"):
        mrcnn_tf.load("mask_rcnn_r18_fpn", class_map={"a": "b"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cocoo", "weights are 'coco', 'imagenet', a file, .* did you mean 'coco'"),
        ("gone/model.pth", "gone/model.pth: there is no such weights file"),
        ("words.txt", "is no weights file by its name"),
        ("cut.pth", "cut.pth"),
        ("cut.npz", "cut.npz: cannot be read"),
        ("cut.h5", "cut.h5: cannot be read"),
        ("cut.weights.h5", "cut.weights.h5: cannot be read"),
        ("cut.keras", "cut.keras: cannot be loaded"),
    ],
)
def test_weights_that_are_no_use(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("words.txt", "cut.pth", "cut.npz", "cut.h5", "cut.weights.h5", "cut.keras"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match=message):
        mrcnn_tf.load("mask_rcnn_r50_fpn", weights=given)


# === Trainings of one's own ===


def test_weights_alone_build_their_model(trained, tmp_path):
    trained.save_weights(tmp_path / "x.weights.h5")
    model = mrcnn_tf.load(tmp_path / "x.weights.h5")
    assert model.config == trained.config and model.anew_layers == ()
    assert_same(model, trained)
    model = mrcnn_tf.load(tmp_path / "x.weights.h5", detections__score_threshold=0.5)
    assert model.config == trained.config.replace(detections__score_threshold=0.5)
    assert_same(model, trained)


def test_files_of_earlier_versions_still_load(trained, tmp_path):
    keras.Model.save_weights(trained, tmp_path / "best.weights.h5")
    (tmp_path / "config.json").write_text(trained.config.to_json())
    for path in (tmp_path, tmp_path / "best.weights.h5"):
        model = mrcnn_tf.load(path)
        assert model.config == trained.config
        assert_same(model, trained)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="does not say what model it is of"):
        mrcnn_tf.load(tmp_path / "best.weights.h5")
    changes = {name: value for name, value in trained.config.to_dict().items() if isinstance(value, dict)}
    assert_same(mrcnn_tf.load("shapes", weights=tmp_path / "best.weights.h5", **changes), trained)


def test_whole_models(trained, tmp_path):
    trained.compile(global_batch=2)
    trained.save(tmp_path / "model.keras")
    again = mrcnn_tf.load(tmp_path)
    assert again.config == trained.config and again.compiled
    assert_same(again, trained)
    model = mrcnn_tf.load(tmp_path / "model.keras", input={"shorter_edge": 80})
    assert model.config.input.shorter_edge == (80,)
    assert_same(model, trained)
    with pytest.raises(WeightsError, match=r"box_head.fc is \(32,\) there, \(16,\) here"):
        mrcnn_tf.load(tmp_path / "model.keras", box_head__fc=(16,))


@pytest.mark.parametrize("name", ["model.keras", "best.weights.h5"])
def test_trained_models_for_other_classes(trained, tmp_path, name, caplog):
    trained.save(tmp_path / name) if name.endswith("keras") else trained.save_weights(tmp_path / name)
    model = mrcnn_tf.load(tmp_path, num_classes=5)
    assert model.config.num_classes == 5 and model.config.class_names == ()
    assert model.anew_layers == CLASS_LAYERS and "the weights are of 3 classes, the model has 5" in caplog.text
    assert_same(trained, model, but=CLASS_LAYERS)
    model = mrcnn_tf.load(tmp_path, class_map={"triangle": "triangle", "disc": "circle"})
    assert model.config.class_names == ("triangle", "disc") and model.anew_layers == ()
    kernel = trained.get_layer("box_classes").kernel.numpy()
    np.testing.assert_array_equal(model.get_layer("box_classes").kernel, kernel[:, [0, 3, 1]])
    renamed = mrcnn_tf.load(tmp_path, class_names=("x", "y", "z"))
    assert renamed.config.class_names == ("x", "y", "z") and renamed.anew_layers == ()
    assert_same(renamed, trained)


def test_a_preset_takes_weights_of_a_training(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mrcnn_tf")
    trained.save_weights(tmp_path / "best.weights.h5")
    sections = ("fpn", "rpn", "box_head", "mask_head")
    small = {name: trained.config.to_dict()[name] for name in sections}
    model = mrcnn_tf.load("mask_rcnn_r18_fpn", weights=tmp_path, **small)
    assert model.config.class_names == trained.config.class_names
    assert model.config.input.channel_order == "rgb" and "follows the conventions of best.weights.h5" in caplog.text
    assert_same(model, trained)


def test_what_cannot_be_loaded(tmp_path, trained):
    with pytest.raises(WeightsError, match="there is no such model; give a training's folder.*mask_rcnn_r50_fpn"):
        mrcnn_tf.load(tmp_path / "gone")
    with pytest.raises(WeightsError, match="it is not the folder of a training"):
        mrcnn_tf.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="has not come to an end"):
        mrcnn_tf.load(tmp_path)
    with pytest.raises(ConfigError, match="weights= is for a preset"):
        mrcnn_tf.load(tmp_path, weights="coco")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match="is a Sequential, not a MaskRCNN"):
        mrcnn_tf.load(tmp_path / "other.keras")
    trained.save_weights(tmp_path / "x.weights.h5")
    with h5py.File(tmp_path / "x.weights.h5", "a") as file:
        file.attrs["config"] = json.dumps({"future": 1})
    with pytest.raises(WeightsError, match="its configuration is not of this version of mrcnn_tf .unknown option"):
        mrcnn_tf.load(tmp_path / "x.weights.h5")


def test_a_folder_called_like_a_preset_is_a_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    trained.save_weights(tmp_path / "shapes" / "best.weights.h5")
    assert_same(mrcnn_tf.load("shapes"), trained)


def test_a_single_class_name_is_one_class():
    model = mrcnn_tf.load("shapes", class_names="cell", **SMALL)
    assert model.config.class_names == ("cell",) and model.config.num_classes == 1
    with pytest.raises(ConfigError, match=r"class_map = \['cell'\]: should be a dictionary"):
        mrcnn_tf.load("shapes", class_map=["cell"])
