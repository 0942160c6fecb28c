"""scripts/convert_weights.py: what it writes, what it says, and what it refuses."""

import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import mrcnn_tf
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from tests.reference.seeded_weights import state_dict
from tests.support import checkpoint_tables as tables
from tests.support.commands import ROOT, run_command
from tests.support.foreign_files import write_torch, write_zoo

NAME = "torchvision/maskrcnn_resnet50_fpn"
THIN = {"fpn.channels": 16, "rpn.channels": 16, "box_head.fc": (24, 24), "mask_head.convs": (16,) * 4}
SIZES = {"num_classes": 3, "class_names": (), "backbone.name": "resnet18", **THIN, "mask_head.deconv": 8}


def convert(*arguments):
    try:
        return run_command("convert_weights", *arguments)
    finally:
        logging.getLogger("mrcnn_tf").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Mask R-CNN of torchvision with thin branches, as its users train them; (file, tensors)."""
    shapes = tables.spec(tables.torchvision_rows(preset(NAME, backbone__name="resnet18", num_classes=3)))
    thin = {256: 16, 1024: 24, 12544: 16 * 49}
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        if not name.startswith("backbone.body"):
            into = 256 if "inner_blocks" in name else None  # what comes from the backbone is as wide as that
            shape = tuple(side if place == 1 and into else thin.get(side, side) for place, side in enumerate(shape))
        if "mask_predictor" in name:
            shape = (4, 8, 1, 1) if shape == (4, 16, 1, 1) else (16, 8, 2, 2) if shape == (16, 16, 2, 2) else shape
            shape = (8,) if name.endswith("conv5_mask.bias") else shape
        tensors[name] = np.random.default_rng(number).normal(size=shape).astype(np.float32)
    tensors |= {f"{name[:-12]}num_batches_tracked": np.array(7) for name in shapes if name.endswith("running_mean")}
    return write_torch(tmp_path_factory.mktemp("torch") / "mine.pth", {"model": tensors, "epoch": 3}), tensors


def test_a_detector_is_recognised_and_converted(checkpoint, tmp_path, capsys):
    path, tensors = checkpoint
    out = tmp_path / "mine.weights.h5"
    assert convert("torchvision", path, out) == 0
    printed = capsys.readouterr().out
    assert f"mine.pth: {len(tensors)} tensors" in printed and f"network: {NAME}" in printed
    assert "with backbone.name=resnet18" in printed and "with num_classes=3" in printed
    assert "with mask_head.deconv=8" in printed and str(out) in printed and "NOT FOUND" not in printed
    model = mrcnn_tf.load(out)
    assert model.config == preset(NAME).replace(**SIZES) and model.anew_layers == ()
    expected = MaskRCNN(model.config)
    mrcnn_tf.weights.assign(expected, tensors, "torchvision")
    for found, right in zip(model.weights, expected.weights):
        np.testing.assert_array_equal(found, right)


def test_another_class_count_starts_the_class_layers_anew(checkpoint, tmp_path, capsys):
    path, tensors = checkpoint
    out = tmp_path / "mine.weights.h5"
    assert convert("torchvision", path, out, "--num-classes", 5, "detections.score_threshold=0.3") == 0
    assert "drawn anew as asked: 3 layers" in capsys.readouterr().out
    model = mrcnn_tf.load(out)
    assert model.config.num_classes == 5 and model.config.detections.score_threshold == 0.3
    assert model.anew_layers == ("box_classes", "box_deltas", "mask_logits")
    kernel = model.get_layer("box_fc2").kernel.numpy()
    np.testing.assert_array_equal(kernel, tensors["roi_heads.box_head.fc7.weight"].T)


def test_imagenet_weights_start_a_preset(tmp_path, capsys):
    rows = tables.imagenet_rows("resnet18")
    tensors = {name: np.ones(shape, np.float32) for name, shape in tables.spec(rows).items()}
    path = write_torch(tmp_path / "resnet18-f37072fd.pth", {**tensors, "fc.weight": np.ones((10, 512), np.float32)})
    out = tmp_path / "start.weights.h5"
    thin = ("fpn.channels=16", "rpn.channels=16", "box_head.fc=[8]", "mask_head.convs=[8]", "mask_head.deconv=8")
    arguments = ("--preset", "shapes", "--num-classes", 2, *thin)
    assert convert("torchvision", path, out, *arguments) == 0
    printed = capsys.readouterr().out
    assert "left as drawn, nothing in the source is for them" in printed and "fc.weight (the classifier" in printed
    model = mrcnn_tf.load(out)
    assert model.config.num_classes == 2 and model.config.backbone.stride_in == "3x3"
    assert model.config.input.mean == preset(NAME).input.mean
    assert "box_classes" in model.anew_layers and "stem" not in model.anew_layers
    assert float(keras.ops.min(model.get_layer("stem").kernel)) == 1


def test_incomplete_weights_are_written_only_if_asked_for(checkpoint, tmp_path, capsys):
    _, tensors = checkpoint
    rest = {name: value for name, value in tensors.items() if "fpn.layer_blocks.3.0.bias" not in name}
    path = write_torch(tmp_path / "part.pth", {**rest, "my.head": np.ones(3)})
    out = tmp_path / "part.weights.h5"
    assert convert("torchvision", path, out) == 2
    shown = capsys.readouterr()
    assert "1 weights are missing and 2 tensors left over" in shown.err and "--partial" in shown.err
    assert "my.head" in shown.out and "fpn_output5" in shown.out and not out.exists()
    assert convert("torchvision", path, out, "--partial") == 0
    assert mrcnn_tf.load(out).anew_layers == ("fpn_output5",)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("contents", "source", "out", "message"),
    [
        (pickle.dumps({"model": {"a": Hostile()}}), "detectron2", "o.weights.h5", "asks for 'posix.system'"),
        (pickle.dumps({"model": {"a": np.ones(2)}}), "detectron2", "o.weights.h5", "no network known of detectron2"),
        (b"<html>", "torchvision", "o.weights.h5", "is a web page"),
        (b"", "torchvision", "o.weights.h5", "the file is empty"),
        (None, "keras", "o.weights.h5", "there is no such weights file"),
        (b"x", "keras", "o.weights.h5", "name the right source"),
        (b"x", "keras", "o.h5", "has to end in .weights.h5"),
        (b"x", "keras", "gone/o.weights.h5", "there is no such folder"),
    ],
)
def test_what_cannot_be_converted_is_told_in_one_line(contents, source, out, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if contents is not None:
        (tmp_path / "weights.bin").write_bytes(contents)
    assert convert(source, tmp_path / "weights.bin", tmp_path / out) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and str(tmp_path) in errors[0]
    assert not (tmp_path / out).exists() and not (tmp_path / "pwned").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "spec", "write"),
    [
        ("torchvision", "maskrcnn_resnet50_fpn_spec.json", write_torch),
        ("detectron2", "detectron2_mask_rcnn_R_50_FPN_spec.json", write_zoo),
    ],
)
def test_a_full_size_checkpoint_costs_little(source, spec, write, tmp_path):
    path = write(tmp_path / "whole.bin", state_dict(ROOT / "tests" / "reference" / spec))
    assert path.stat().st_size > 170e6
    out = tmp_path / "whole.weights.h5"
    command = [sys.executable, str(Path(ROOT) / "scripts" / "convert_weights.py"), source, str(path), str(out)]
    process = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.returncode == 0 and out.stat().st_size > 170e6
    (gigabytes,) = re.findall(r"converted in [\d.]+ s, with ([\d.]+) GB of memory at most", process.stdout)
    assert 0.17 < float(gigabytes) < 1.5
