"""The command lines with models that have keypoints in the place of masks, or boxes alone."""

import json

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import Config
from tests.support.commands import TINY, rectangle, run_command, write_coco

NAMES = ["nose", "left_hand", "right_hand"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two rectangles an image: a "cat" without keypoints and a "dog" with three, one of them hidden."""
    path = write_coco(tmp_path_factory.mktemp("data"), images=2)
    records = json.loads(path.read_text())
    records["categories"][1] |= {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    for image in (1, 2):
        dog = next(a for a in records["annotations"] if a["image_id"] == image and a["category_id"] == 7)
        dog |= {"keypoints": [50, 15, 2, 45, 40, 1, 0, 0, 0], "num_keypoints": 2}
    path.write_text(json.dumps(records))
    return path


def train(data, folder, *more) -> int:
    arguments = ["--preset", "shapes", "--train", data, "--train-images", data.parent, "--val", data]
    arguments += ["--val-images", data.parent, "--run-dir", folder, "training.evaluate_every=1"]
    return run_command("train", *arguments, *TINY, "detections.score_threshold=0.0", *more)


@pytest.mark.slow
def test_keypoints_from_training_to_export(data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train(data, run_dir, "--classes", "dog", "--", "branches=keypoints", "keypoint_head.convs=[8]") == 0
    printed = capsys.readouterr().out
    assert "keypoints AP" in printed and "mask" not in printed.split("2 images, 2 objects")[1].split("made:")[0]
    config = Config.from_json((run_dir / "config.json").read_text())
    # Classes, names and lines are those of the file.
    assert (config.class_names, config.keypoint_head.names) == (("dog",), tuple(NAMES))
    assert config.keypoint_head.skeleton == ((0, 1), (0, 2))
    header = (run_dir / "log.csv").read_text().splitlines()[0].split(",")
    assert "keypoint_loss" in header and "mask_loss" not in header
    assert header[-4:] == ["val_box_AP", "val_box_AP50", "val_keypoints_AP", "val_keypoints_AP50"]
    assert (run_dir / "best.weights.h5").exists()
    results = json.loads((run_dir / "evaluation" / "keypoints.json").read_text())
    assert len(results[0]["keypoints"]) == 9 and "bbox" not in results[0] and {r["category_id"] for r in results} == {7}

    found = tmp_path / "found"
    assert run_command("predict", run_dir, data.parent / "1.png", "--output", found, "--score", 0) == 0
    written = json.loads((found / "detections.json").read_text())
    assert written["categories"] == [{"id": 1, "name": "dog", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}]
    record = written["annotations"][0]
    assert record["num_keypoints"] == 3 and len(record["keypoints"]) == 9 and "segmentation" not in record
    assert (found / "1.png").stat().st_size > 1000

    assert run_command("export", run_dir, tmp_path / "served") == 0
    capsys.readouterr()
    assert run_command("export", run_dir, tmp_path / "served", "--paste-masks") == 2
    assert "no mask branch" in capsys.readouterr().err
    answer = tf.saved_model.load(tmp_path / "served").signatures["serving_default"](
        images=np.zeros((1, 60, 80, 3), np.uint8)
    )
    assert answer["keypoints"].shape == (1, 8, 3, 3) and "masks" not in answer


@pytest.mark.slow
def test_boxes_alone_of_a_file_of_boxes(tmp_path, capsys):
    boxes = [rectangle(number, number, 3, 5, 10, 30, 40) for number in (1, 2)]
    for box in boxes:
        del box["segmentation"]
    data = write_coco(tmp_path / "data", images=2, annotations=boxes)
    assert train(data, tmp_path / "run", "branches=[]") == 0
    printed = capsys.readouterr().out
    assert "box AP" in printed and "mask AP" not in printed
    arguments = ["--data", data, "--images", data.parent, "--output", tmp_path / "again", "--pictures", 1]
    assert run_command("evaluate", tmp_path / "run", *arguments) == 0
    metrics = json.loads((tmp_path / "again" / "evaluation.json").read_text())["metrics"]
    assert "box/AP" in metrics and not any(name.startswith(("mask", "keypoints")) for name in metrics)
    assert not (tmp_path / "again" / "keypoints.json").exists()
    arguments = ["--output", tmp_path / "found", "--score", 0]
    assert run_command("predict", tmp_path / "run", data.parent / "1.png", *arguments) == 0


def test_keypoints_that_are_not_the_models(data, tmp_path, capsys):
    names = ("keypoint_head.names=['a','b']", "keypoint_head.skeleton=[]")
    assert train(data, tmp_path / "run", "--classes", "dog", "--", "branches=keypoints", *names) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "has 3 keypoints (nose, left_hand, right_hand), the model 2 keypoints (a, b)" in message
    assert str(data) in message


def test_classes_are_of_a_json(tmp_path, capsys):
    assert run_command("train", "--run-dir", tmp_path, "--shapes", 4, "--classes", "circle") == 2
    assert "--classes" in capsys.readouterr().err
