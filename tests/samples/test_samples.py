"""The samples: each in a minute with a few steps, and in full (slow) with what they have to reach."""

import json
from pathlib import Path

import pytest

from tests.support.commands import run_sample


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


def test_shapes_in_a_few_steps(tmp_path, capsys):
    arguments = ["--run-dir", tmp_path / "run", "--steps", 2, "--images", 4]
    assert run_sample("shapes/shapes.py", *arguments) == 0
    printed = capsys.readouterr().out
    for name in ("picture.png", "pictures/curves.png", "evaluation/evaluation.json", "model.keras"):
        assert (tmp_path / "run" / name).is_file() and str(tmp_path / "run" / name) in printed
    assert (tmp_path / "run" / "saved_model" / "saved_model.pb").is_file()
    # Nothing is learnt in two steps: with a minimum the same command fails, without training again.
    assert run_sample("shapes/shapes.py", *arguments, "--minimum-ap50", 0.8) == 1
    captured = capsys.readouterr()
    assert "the training was complete: 2 steps" in captured.out
    assert captured.err.splitlines()[-1].startswith("error: an AP50 below 0.80")


@pytest.mark.slow
def test_nucleus_in_a_few_steps(nuclei, backbone_weights, tmp_path, capsys):
    arguments = ["--data", nuclei, "--weights", backbone_weights, "--run-dir", tmp_path / "run"]
    assert run_sample("nucleus/nucleus.py", *arguments, "--steps", 1, "--val-images", 2) == 0
    printed = capsys.readouterr().out
    assert "training: 1 steps in" in printed and "mask AP" in printed
    assert "drawn anew as asked" in (tmp_path / "run" / "weights.txt").read_text()
    measures = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert measures["images"] == 2 and measures["max_detections"] == 200


def test_samples_say_what_is_missing(tmp_path, capsys):
    for sample in ("nucleus/nucleus.py", "coco/overfit.py", "keypoints/overfit.py"):
        assert run_sample(sample, "--data", tmp_path, "--run-dir", tmp_path / "run") == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("error: ") and str(tmp_path) in lines[-1]


@pytest.mark.slow
def test_shapes_reach_their_measures(tmp_path):
    assert run_sample("shapes/shapes.py", "--run-dir", tmp_path, "--minimum-ap50", 0.8) == 0
    reached = metrics(tmp_path / "evaluation")
    assert reached["box/AP50"] >= 0.8 and reached["mask/AP50"] >= 0.8


@pytest.mark.slow
def test_nucleus_reaches_its_measures(nuclei, backbone_weights, tmp_path):
    arguments = ["--data", nuclei, "--weights", backbone_weights, "--run-dir", tmp_path]
    assert run_sample("nucleus/nucleus.py", *arguments) == 0
    reached = metrics(tmp_path / "evaluation")
    assert reached["mask/AP"] >= 0.45 and reached["mask/AP50"] >= 0.80 and reached["box/AP"] >= 0.47


@pytest.mark.slow
def test_coco_images_are_learnt_by_heart(coco_mini, backbone_weights, tmp_path):
    arguments = ["--data", coco_mini, "--weights", backbone_weights, "--run-dir", tmp_path]
    assert run_sample("coco/overfit.py", *arguments) == 0
    reached = metrics(tmp_path / "evaluation-train")
    assert reached["box/AP50"] >= 0.5 and reached["mask/AP50"] >= 0.4
    assert json.loads((tmp_path / "evaluation-val" / "evaluation.json").read_text())["images"] == 79


@pytest.mark.long
def test_keypoints_of_persons_are_learnt_by_heart(coco_mini, backbone_weights, tmp_path):
    arguments = ["--data", coco_mini, "--weights", backbone_weights, "--run-dir", tmp_path]
    assert run_sample("keypoints/overfit.py", *arguments) == 0
    reached = metrics(tmp_path / "evaluation-train")
    assert reached["keypoints/AP"] >= 0.5 and reached["box/AP50"] >= 0.5
    assert json.loads((tmp_path / "evaluation-val" / "evaluation.json").read_text())["images"] == 79
