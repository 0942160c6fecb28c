"""RPN and heads trained apart by the command lines: a file of proposals in between, and the four steps."""

import json

import pytest

import mrcnn_tf
from tests.support.commands import TINY, run_command, write_coco

SMALL = (*TINY, "branches=[]", "training.steps=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data"), images=2)


def test_heads_on_the_proposals_of_an_rpn(data, tmp_path, capsys):
    arguments = ["--preset", "shapes", "--train", data, "--train-images", data.parent]
    assert run_command("train", *arguments, "--run-dir", tmp_path / "rpn", *SMALL, "training.parts=rpn") == 0
    heads = [*arguments, "--run-dir", tmp_path / "heads", *SMALL, "training.parts=heads"]
    assert run_command("train", *heads) == 2
    assert "comes without proposals" in capsys.readouterr().err
    file = tmp_path / "found.h5"
    images = ["--data", data, "--images", data.parent]
    assert run_command("save_proposals", tmp_path / "rpn", *images, "--output", file) == 0
    assert str(file) in capsys.readouterr().out
    assert run_command("train", *heads, "--proposals", file) == 0
    wanted = [*images, "--pictures", 0, "--proposals", file, "--output", tmp_path / "out"]
    assert run_command("evaluate", tmp_path / "heads", *wanted, "detections.score_threshold=0.0") == 0
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 16


def test_four_steps(data, tmp_path, capsys, monkeypatch):
    """The steps themselves are tested in training/test_alternating.py."""
    asked = {}

    def train_alternating(config, train_set, val_set, run_dir, **options):
        asked.update(options, config=config, sets=(train_set, val_set), run_dir=run_dir)
        return mrcnn_tf.AlternatingResult(None, run_dir, {"1-rpn": {}, "2-heads": {}})

    monkeypatch.setattr(mrcnn_tf, "train_alternating", train_alternating)
    arguments = ["--preset", "shapes", "--train", data, "--train-images", data.parent, "--run-dir", tmp_path / "run"]
    assert run_command("train_alternating", *arguments, *SMALL, "--batch-size", 4, "--fresh") == 0
    assert "1-rpn, 2-heads" in capsys.readouterr().out
    assert asked["config"].class_names == ("cat", "dog") and asked["config"].training.steps == 1
    assert len(asked["sets"][0]) == 2 and asked["sets"][1] is None
    assert asked["run_dir"] == tmp_path / "run" and asked["batch_size"] == 4 and asked["resume"] is False
