"""The benchmark: the arithmetic it counts, and its report on a small model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_arithmetic_of_the_full_model(benchmark):
    """538 GFLOP are those of R50-FPN at 800 x 1344 with 91 classes, 1000 proposals and 100 detections.

    With the stride in the 3x3, as torchvision has it; in the 1x1 a ResNet-50 has a little less to do.
    """
    model = MaskRCNN(preset("mask_rcnn_r50_fpn", num_classes=90, backbone__stride_in="3x3"))
    signature = {"image": tf.TensorSpec((1, 800, 1344, 3), tf.float32), "image_size": tf.TensorSpec((1, 2), tf.int32)}
    function = tf.function(lambda data: model(data, training=False), input_signature=[signature])
    operations = benchmark.arithmetic(function.get_concrete_function().graph, model.config, 1)
    assert operations / 1e9 == pytest.approx(538, rel=0.01)


def test_the_arithmetic_of_keypoints(benchmark):
    """What the keypoint branch adds for 20 detections: eight convolutions, and a deconvolution of 16 taps a cell."""
    config = preset("shapes", num_classes=1, detections__max_per_image=20)
    signature = {"image": tf.TensorSpec((1, 64, 96, 3), tf.float32), "image_size": tf.TensorSpec((1, 2), tf.int32)}
    operations = []
    for branches in ((), ("keypoints",)):
        model = MaskRCNN(config.replace(branches=branches, keypoint_head={"convs": (32, 16)}))
        function = tf.function(lambda data: model(data, training=False), input_signature=[signature])  # noqa: B023
        operations.append(benchmark.arithmetic(function.get_concrete_function().graph, model.config, 1))
    expected = 2 * 20 * 14 * 14 * (9 * 128 * 32 + 9 * 32 * 16 + 16 * 16 * 17)
    assert operations[1] - operations[0] == pytest.approx(expected)


def test_a_training_step_of_every_branch(benchmark):
    arguments = SimpleNamespace(preset="shapes", classes=1, repeats=1)
    small = {"branches": ("mask", "keypoints"), "keypoint_head": {"convs": (8,)}, "roi": {"rois_per_image": 8}}
    model = MaskRCNN(preset("shapes", num_classes=1, **small))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "build_model", lambda _: model)
        patch.setattr(benchmark, "matrix_rate", lambda: 1e9)
        report = benchmark.training(arguments, 64, 96, 1)
    assert report["seconds_per_step"] > 0 and report["positive_rois_per_image"] >= 1


@pytest.mark.slow
def test_the_report():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--preset", "shapes", "--classes", "3"]
    command += ["--sizes", "64x96", "--batches", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cases = {case["part"]: case for case in json.loads(done.stdout)["cases"]}
    assert set(cases) == {"inference", "training", "pipeline"}
    inference = cases["inference"]
    assert (inference["height"], inference["width"], inference["batch"]) == (64, 96, 2)
    assert inference["seconds_per_image"] == pytest.approx(inference["seconds_per_batch"] / 2, abs=1e-3)
    assert {"backbone", "fpn", "rpn", "proposals", "box_head", "detections", "mask_head", "rest"} <= set(
        inference["stages_seconds"]
    )
    assert 0 < inference["efficiency"] < 1.5 and 0.1 < inference["peak_memory_gb"] < 8
    assert cases["training"]["seconds_per_step"] > 0
    assert cases["pipeline"]["images_per_second"] > 0
