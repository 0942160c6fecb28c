"""The samples: each in a minute with a few steps, and in full (slow) with what they have to reach."""

import json
from pathlib import Path

import pytest

import mrcnn_tf
from tests.support.commands import rectangle, run_sample, write_coco


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


@pytest.mark.slow
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


@pytest.mark.parametrize("sample", ["shapes/shapes.py", "nucleus/nucleus.py"])
def test_samples_tell_of_folders_that_cannot_be_used(sample, tmp_path, monkeypatch, capsys):
    """With another training in it, or a file."""
    data = write_coco(tmp_path / "train")
    (tmp_path / "instances_train.json").write_bytes(data.read_bytes())
    (tmp_path / "instances_val.json").write_bytes(data.read_bytes())
    data.parent.joinpath("../val").symlink_to(data.parent)
    arguments = [] if sample.startswith("shapes") else ["--data", tmp_path]
    for error in (mrcnn_tf.CheckpointError("is of another training"), FileExistsError(17, "File exists", "runs")):

        def train(*_, error=error, **__):
            raise error

        monkeypatch.setattr(mrcnn_tf, "train", train)
        assert run_sample(sample, *arguments, "--run-dir", tmp_path / "run") == 2
        assert capsys.readouterr().err.strip().endswith(f"error: {error}")


@pytest.mark.parametrize(
    ("sample", "name"), [("coco/overfit.py", "instances"), ("keypoints/overfit.py", "person_keypoints")]
)
def test_samples_take_the_whole_of_coco(sample, name, tmp_path, monkeypatch, capsys):
    """Which has an object whose box has no height."""
    person = {"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}
    for split in ("train2017", "val2017"):
        objects = [rectangle(number, 1, 1, 5 * number, 10, 30, 40) for number in (1, 2)]
        objects = [one | {"keypoints": [20, 20, 2], "num_keypoints": 1} for one in objects]
        if split == "train2017":
            objects[0]["bbox"] = [20.5, 30.25, 1.03, 0.0]
        data = write_coco(tmp_path / split, annotations=objects, categories=[person])
        (tmp_path / "annotations").mkdir(exist_ok=True)
        data.rename(tmp_path / "annotations" / f"{name}_{split}.json")

    def train(config, dataset, **options):
        raise mrcnn_tf.ConfigError(f"{dataset.object_counts().sum()} objects")

    monkeypatch.setattr(mrcnn_tf, "train", train)
    assert run_sample(sample, "--data", tmp_path, "--run-dir", tmp_path / "run") == 2
    told = capsys.readouterr()
    assert told.err.strip().endswith("error: 1 objects") and "box of no area" in told.out


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


@pytest.mark.slow
def test_keypoints_of_persons_are_learnt_by_heart(coco_mini, backbone_weights, tmp_path):
    arguments = ["--data", coco_mini, "--weights", backbone_weights, "--run-dir", tmp_path]
    assert run_sample("keypoints/overfit.py", *arguments) == 0
    reached = metrics(tmp_path / "evaluation-train")
    assert reached["keypoints/AP"] >= 0.5 and reached["box/AP50"] >= 0.5
    assert json.loads((tmp_path / "evaluation-val" / "evaluation.json").read_text())["images"] == 79
