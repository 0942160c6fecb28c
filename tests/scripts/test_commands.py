"""The whole path by the command lines: train, evaluate, predict, export, each on what the one before left."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO

from tests.support.commands import TINY, run_command, write_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run_dir(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    arguments = ["--preset", "shapes", "--train", data, "--train-images", data.parent]
    arguments += ["--val", data, "--val-images", data.parent, "--run-dir", folder]
    assert run_command("train", *arguments, *TINY) == 0
    return folder


def test_train_leaves_config_log_checkpoints_pictures_and_model(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    assert config["class_names"] == ["cat", "dog"] and config["num_classes"] == 2
    assert config["fpn"]["channels"] == 16
    steps = [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps] == [1, 2]
    assert all(np.isfinite(record["loss"]) for record in steps)
    for name in ("log.csv", "model.keras", "pictures/curves.png", "evaluation/evaluation.json", "checkpoints"):
        assert (run_dir / name).exists(), name
    assert len(list((run_dir / "evaluation" / "pictures").glob("*.png"))) == 4


def test_the_same_command_goes_on_where_it_ended(data, run_dir, capsys):
    arguments = ["--preset", "shapes", "--train", data, "--train-images", data.parent, "--run-dir", run_dir]
    more = [value.replace("training.steps=2", "training.steps=3") for value in TINY]
    assert run_command("train", *arguments, *more) == 0
    assert "trained for 3 steps" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_evaluate_writes_measures_results_and_pictures(data, run_dir, tmp_path, capsys):
    output = tmp_path / "results"
    arguments = ["--data", data, "--images", data.parent, "--output", output, "--pictures", 2]
    assert run_command("evaluate", run_dir, *arguments, "detections.score_threshold=0.0") == 0
    printed = capsys.readouterr().out
    assert "4 images, 8 objects" in printed and str(output / "results.json") in printed
    measures = json.loads((output / "evaluation.json").read_text())
    assert 0 <= measures["metrics"]["mask/AP50"] <= 1
    assert measures["per_class"]["dog"]["objects"] == 4
    results = json.loads((output / "results.json").read_text())
    # Threshold 0 finds something everywhere, and category ids are those of the file.
    assert {record["image_id"] for record in results} == {1, 2, 3, 4}
    assert {record["category_id"] for record in results} <= {3, 7}
    assert len(list((output / "pictures").glob("*.png"))) == 2


def test_results_for_the_server_need_no_annotations(data, run_dir, tmp_path, capsys):
    record = json.loads(data.read_text())
    record.pop("annotations")
    test = data.with_name("test.json")
    test.write_text(json.dumps(record))
    arguments = ["--data", test, "--images", data.parent, "--output", tmp_path, "--pictures", 1]
    assert run_command("evaluate", run_dir, *arguments) == 2
    assert "evaluate.py --test" in capsys.readouterr().err
    assert run_command("evaluate", run_dir, *arguments, "--test", "detections.score_threshold=0.0") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert f"{len(results)} objects found" in capsys.readouterr().out
    assert {record["image_id"] for record in results} == {1, 2, 3, 4}
    assert {record["category_id"] for record in results} <= {3, 7} and all("segmentation" in one for one in results)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1 and not (tmp_path / "evaluation.json").exists()
    assert run_command("evaluate", run_dir, "--shapes", 3, "--test") == 2


def test_evaluate_counts_as_many_detections_as_it_is_told(data, run_dir, tmp_path):
    arguments = ["--data", data, "--images", data.parent, "--output", tmp_path, "--pictures", 0]
    assert run_command("evaluate", run_dir, *arguments, "--max-detections", 3) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["max_detections"] == 3


def test_several_views_of_each_image(data, run_dir, tmp_path, capsys):
    views = ["--tta-scales", "48,64", "--tta-flip"]
    arguments = ["--data", data, "--images", data.parent, "--output", tmp_path, "--pictures", 0, *views]
    assert run_command("evaluate", run_dir, *arguments, "detections.score_threshold=0.0") == 0
    assert {record["image_id"] for record in json.loads((tmp_path / "results.json").read_text())} == {1, 2, 3, 4}
    image, found = data.parent / "1.png", tmp_path / "found"
    assert run_command("predict", run_dir, image, "--output", found, "--score", 0, *views) == 0
    assert len(json.loads((found / "detections.json").read_text())["annotations"]) == 8
    capsys.readouterr()
    assert run_command("predict", run_dir, image, "--output", found, "--tta-scales", "tall") == 2
    assert "--tta-scales tall" in capsys.readouterr().err


def test_predict_draws_and_writes_coco(data, run_dir, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for name in ("a.jpg", "more/a.png", "more/grey.png"):
        pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
        Image.fromarray(pixels[:, :, 0] if "grey" in name else pixels).save(photos / name)
    (photos / "notes.txt").write_text("no image")
    output = tmp_path / "found"
    assert (
        run_command("predict", run_dir / "model.keras", photos, data.parent / "1.png", "--output", output, "--score", 0)
        == 0
    )
    assert "a.jpg: " in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "1.png",
        "a.png",
        "a_2.png",
        "detections.json",
        "grey.png",
    ]
    coco = COCO(str(output / "detections.json"))
    assert len(coco.imgs) == 4 and len(coco.anns) > 0
    assert [category["name"] for category in coco.loadCats([1, 2])] == ["cat", "dog"]
    annotation = coco.loadAnns(coco.getAnnIds(imgIds=1))[0]
    assert coco.annToMask(annotation).shape == (50, 70)
    assert 0 <= annotation["score"] <= 1


def test_predict_leaves_the_images_themselves_alone(data, run_dir, tmp_path):
    photos = tmp_path / "photos"
    (photos / ".trash").mkdir(parents=True)
    before = (data.parent / "1.png").read_bytes()
    (photos / "1.png").write_bytes(before)
    # What macOS and other programs leave in folders is none of the images.
    (photos / "._1.png").write_bytes(b"no image")
    (photos / ".trash" / "old.png").write_bytes(b"no image")
    assert run_command("predict", run_dir, photos, "--output", photos, "--score", 0) == 0
    assert (photos / "1.png").read_bytes() == before
    assert (photos / "1_2.png").exists()
    assert [image["file_name"] for image in json.loads((photos / "detections.json").read_text())["images"]] == [
        str(photos / "1.png")
    ]


def test_predict_passes_over_bad_images_when_asked(data, run_dir, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    found = tmp_path / "found" / "detections.json"
    arguments = [run_dir, data.parent / "2.png", tmp_path / "bad.jpg", data.parent / "3.png"]
    arguments += ["--output", found.parent, "--no-pictures"]
    assert run_command("predict", *arguments) == 2
    assert "bad.jpg" in capsys.readouterr().err
    assert len(json.loads(found.read_text())["images"]) == 1  # what came before it is not lost
    assert run_command("predict", *arguments, "--skip-bad") == 0
    assert "skipped 1 bad record" in capsys.readouterr().out
    assert len(json.loads(found.read_text())["images"]) == 2


def test_export_writes_a_savedmodel(data, run_dir, tmp_path, capsys):
    assert run_command("export", run_dir, tmp_path / "served" / "1", "detections.score_threshold=0.0") == 0
    assert str(tmp_path / "served" / "1") in capsys.readouterr().out
    signatures = tf.saved_model.load(tmp_path / "served" / "1").signatures
    found = signatures["encoded"](encoded=tf.constant([(data.parent / "1.png").read_bytes()]))
    assert found["image_size"].numpy().tolist() == [[60, 80]]
    assert float(found["scores"][0, 0]) > 0
    assert signatures["class_names"]()["class_names"].numpy().tolist() == [b"cat", b"dog"]
