"""The Cityscapes sample on a made folder: a tiny network from tiny COCO weights, resumed, measured, written."""

import json
import runpy

import numpy as np
import pytest

import mrcnn_tf
from mrcnn_tf import coco_names
from tests.support.cityscapes_folder import random_scene, write_image, write_scene
from tests.support.commands import ROOT, TINY, run_sample

VALUES = (*TINY, "backbone.name=resnet18", "input.longer_edge=107")


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            write_scene(tmp_path / "data", split, f"bonn_{number:06d}_000019", random_scene(number))
    write_image(tmp_path / "data", "test", "berlin_000000_000019", (96, 160))
    return tmp_path


def coco_weights(path):
    """Weights of such a network, as if it had been trained on COCO."""
    sizes = {
        **{"input": {"shorter_edge": 64, "longer_edge": 107}, "backbone": {"name": "resnet18"}},
        **{"fpn": {"channels": 16}, "rpn": {"channels": 16}, "box_head": {"fc": (16,)}},
        "mask_head": {"convs": (8,), "deconv": 8},
    }
    config = mrcnn_tf.preset("mask_rcnn_r18_fpn", class_names=coco_names.CLASSES, num_classes=80, **sizes)
    mrcnn_tf.weights.save_weights(mrcnn_tf.MaskRCNN(config), path)
    return path


def test_from_coco_to_the_server(folder, capsys, caplog):
    weights = coco_weights(folder / "coco.weights.h5")
    run = folder / "run"
    arguments = ["--data", folder / "data", "--coco", weights, "--run-dir", run, "--test", "--val-images", 1, *VALUES]
    assert run_sample("cityscapes/train.py", *arguments) == 0
    printed = capsys.readouterr().out
    assert "train: 3 images" in printed and "measured as Cityscapes' benchmark does" in printed
    assert "of the 8 classes 7 are taken over, rider are new" in caplog.text
    for name in ("evaluation.json", "cityscapes.json", "server-val/bonn_000000_000019_pred.txt"):
        assert (run / "evaluation" / name).is_file()
    assert (run / "evaluation" / "server-test" / "berlin_000000_000019_pred.txt").is_file()
    assert not (run / "evaluation" / "server-val" / "bonn_000001_000019_pred.txt").exists()
    assert json.loads((run / "evaluation" / "cityscapes.json").read_text())["images"] == 1
    config = json.loads((run / "config.json").read_text())
    assert config["class_names"][1] == "rider" and config["training"]["learning_rate"] == 0.01
    assert config["training"]["steps"] == 2


def test_a_stopped_training_needs_no_coco_weights(tmp_path):
    sample = runpy.run_path(str(ROOT / "samples" / "cityscapes" / "train.py"))
    overrides = sample["parse_overrides"](list(VALUES))
    assert overrides["box_head.fc"] == [16] and overrides["backbone.name"] == "resnet18"
    weights = coco_weights(tmp_path / "coco.weights.h5")
    config, start = sample["start_from_coco"](str(weights), tmp_path / "run", False, overrides)
    _, again = sample["start_from_coco"](str(weights), tmp_path / "again", False, overrides)
    for one, other in zip(mrcnn_tf.load(start).weights, mrcnn_tf.load(again).weights):  # riders are the seed's
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    weights.unlink()
    with pytest.raises(mrcnn_tf.ConfigError, match="coco.weights.h5, not other.h5; give that, --fresh"):
        sample["start_from_coco"]("other.h5", tmp_path / "run", False, overrides)
    assert sample["start_from_coco"](str(weights), tmp_path / "run", False, overrides) == (config, start)
    with pytest.raises(mrcnn_tf.WeightsError, match="no such weights file"):
        sample["start_from_coco"](str(weights), tmp_path / "run", True, overrides)
    assert sample["parse_overrides"](["input.shorter_edge=512,640"]) == {"input.shorter_edge": [512, 640]}
    with pytest.raises(mrcnn_tf.ConfigError, match="section.field=value"):
        sample["parse_overrides"](["512"])


def test_what_is_missing_is_told(tmp_path, capsys):
    for arguments, words in (
        (["--data", tmp_path], "unpack leftImg8bit_trainvaltest.zip"),
        (["--data", tmp_path / "none"], "there is no such folder"),
    ):
        assert run_sample("cityscapes/train.py", *arguments, "--run-dir", tmp_path / "run") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and str(tmp_path) in line and words in line
