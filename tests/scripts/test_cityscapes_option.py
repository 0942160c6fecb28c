"""--cityscapes of the command lines: which images and which preset it takes."""

import numpy as np
import pytest

import mrcnn_tf
from mrcnn_tf.data.proposals import write_proposals
from tests.support.cityscapes_folder import random_scene, write_scene
from tests.support.commands import run_command


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            write_scene(tmp_path / "data", split, f"bonn_{number:06d}_000019", random_scene(number, (32, 48)))
    return tmp_path / "data"


@pytest.fixture
def given(monkeypatch):
    """What a command hands over, which is then not done: {function: its positional arguments}."""
    calls = {}

    def stop_at(name):
        def instead(*arguments, **options):
            calls[name] = arguments
            raise mrcnn_tf.DataError("far enough")

        return instead

    for name in ("train", "evaluation_report", "save_proposals"):
        monkeypatch.setattr(mrcnn_tf, name, stop_at(name))
    return calls


def test_train_takes_both_splits_and_the_preset(root, tmp_path, given, capsys):
    assert run_command("train", "--cityscapes", root, "--run-dir", tmp_path / "run", "training.steps=7") == 2
    assert "error: far enough" in capsys.readouterr().err
    config, train_set, val_set, _ = given["train"]
    assert config == mrcnn_tf.preset("cityscapes", training__steps=7)
    assert (train_set.name, len(train_set)) == (f"Cityscapes train ({root})", 2)
    assert (val_set.name, len(val_set)) == (f"Cityscapes val ({root})", 1)


def test_train_takes_another_preset(root, tmp_path, given):
    run_command("train", "--cityscapes", root, "--preset", "mask_rcnn_r101_fpn", "--run-dir", tmp_path / "run")
    config = given["train"][0]
    assert config.backbone.name == "resnet101" and config.class_names == tuple(given["train"][1].class_names)


def test_train_takes_proposals_of_both_splits(root, tmp_path, given):
    ids = {split: mrcnn_tf.read_cityscapes(root, split).image_ids for split in ("train", "val")}
    for split, images in ids.items():
        box, score = np.array([[1, 2, 20, 30]], np.float32), np.ones(1, np.float32)
        write_proposals(tmp_path / f"{split}.h5", [(int(image_id), box, score) for image_id in images], split)
    files = ("--proposals", tmp_path / "train.h5", "--val-proposals", tmp_path / "val.h5")
    run_command("train", "--cityscapes", root, "--run-dir", tmp_path / "run", *files, "training.parts=heads")
    _, train_set, val_set, _ = given["train"]
    assert (train_set.proposals.identity, val_set.proposals.identity) == ("train", "val")
    assert val_set.name == f"Cityscapes val ({root})" and val_set.image_ids.tolist() == ids["val"].tolist()
    boxes, scores = val_set.proposals.of(int(val_set.image_ids[0]))
    assert boxes.tolist() == [[1, 2, 20, 30]] and scores.tolist() == [1]


def test_proposals_without_validation_images_are_refused(tmp_path, capsys):
    images = ("--train", "train.json", "--train-images", tmp_path, "--val-proposals", "val.h5")
    assert run_command("train", *images, "--run-dir", tmp_path / "run") == 2
    assert "--val-proposals are those of validation images" in capsys.readouterr().err


def test_evaluate_takes_the_validation_images(root, tmp_path, given, monkeypatch):
    class Model:
        config = mrcnn_tf.preset("cityscapes")

    monkeypatch.setattr(mrcnn_tf, "load", lambda path, **values: Model)
    run_command("evaluate", tmp_path, "--cityscapes", root)
    model, dataset, folder = given["evaluation_report"]
    assert model is Model and dataset.name == f"Cityscapes val ({root})" and folder == tmp_path / "evaluation"


def test_proposals_of_a_split(root, tmp_path, given, monkeypatch, capsys):
    monkeypatch.setattr(mrcnn_tf, "load", lambda path, **values: "a model")
    command = ("save_proposals", tmp_path, "--output", tmp_path / "train.h5", "--cityscapes", root)
    assert run_command(*command, "--split", "train") == 2
    model, dataset, path, _ = given["save_proposals"]
    assert (model, dataset.name, len(dataset), path) == (
        "a model",
        f"Cityscapes train ({root})",
        2,
        f"{tmp_path}/train.h5",
    )
    assert run_command(*command) == 2 and "--split train or val belong together" in capsys.readouterr().err
    assert run_command(*command[:4]) == 2 and "give either --data JSON" in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--shapes", 4), ("--val", "val.json"), ("--classes", "car"), ("--train", "a.json")])
def test_what_does_not_go_together(more, tmp_path, capsys):
    assert run_command("train", "--cityscapes", tmp_path, "--run-dir", tmp_path / "run", *more) == 2
    assert "--cityscapes" in capsys.readouterr().err


def test_a_wrong_folder_is_told(root, tmp_path, capsys):
    assert run_command("train", "--cityscapes", root / "gtFine", "--run-dir", tmp_path / "run") == 2
    assert capsys.readouterr().err.strip().endswith(f"give {root} instead")
