"""scripts/reproduce.py: what is trained, what is resumed, and what is written."""

import argparse
import importlib
import json
from types import SimpleNamespace

import keras
import pytest

import mrcnn_tf
from mrcnn_tf.evaluation.coco import load_results
from tests.support.cityscapes_folder import random_scene, write_scene
from tests.support.commands import run_command, write_coco
from tests.support.tiny import tiny_config


@pytest.fixture
def stand_ins(monkeypatch):
    """Trainings and measures that only say what they were asked for."""
    importlib.import_module("_jobs"), importlib.import_module("_proxy")
    calls = []

    def train(config, train_set, run_dir, **options):
        calls.append((run_dir.parts[-3:], config, options))
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "model.keras").write_text("a model")
        return SimpleNamespace(model=config, steps=config.training.steps)

    def report(model, dataset, folder, **options):
        value = 0.1 * len(model.roi.layer) + 0.001 * model.training.seed  # align 5, pool 4
        names = ("mask/AP", "mask/AP50", "mask/AP75", "box/AP", "box/AP50", "box/AP75")
        return SimpleNamespace(metrics={**dict.fromkeys(names, value), "mask/APs": float("nan")})

    monkeypatch.setattr(mrcnn_tf, "train", train)
    monkeypatch.setattr(mrcnn_tf, "evaluation_report", report)
    monkeypatch.setattr(importlib.import_module("_proxy"), "start", lambda config, folder, steps, path: path)
    return calls


def test_finished_rows_are_kept_and_the_same_network_is_trained_once(stand_ins, tmp_path, capsys):
    command = ["2c", "--proxy", "--run-dir", tmp_path, "--seeds", "0,1"]
    assert run_command("reproduce", *command, "--rows", "roipool,roialign") == 0
    assert [call[0] for call in stand_ins] == [
        ("2c", row, f"seed{seed}") for seed in (0, 1) for row in ("roipool", "roialign")
    ]
    assert stand_ins[-1][1].training.seed == 1 and stand_ins[-1][1].backbone.name == "resnet18"
    stored = json.loads((tmp_path / "2c" / "roipool" / "seed1" / "result.json").read_text())
    assert stored["metrics"]["mask/AP75"] == pytest.approx(0.401) and stored["metrics"]["mask/APs"] is None
    assert stored["command"].endswith(f"--run-dir {tmp_path.name} --seeds 0,1 --rows roipool,roialign")
    assert not (tmp_path / "2c" / "roipool" / "seed1" / "model.keras").exists()
    text = (tmp_path / "2c.md").read_text()
    assert "| RoIAlign, average | 30.3 | 50.0 ± 0.1 |" in text and str(tmp_path) not in text
    assert "RoIAlign (average) above RoIPool, mask AP75 (paper +5.1): +10.0 ± 0.0, above zero with 2 of 2 seeds" in text

    # Once more, with all rows: three are new; of table 2b only two, the third being table 2c's.
    assert run_command("reproduce", *command) == 0
    assert sorted(call[0][1] for call in stand_ins[4:]) == sorted(["roiwarp_max", "roiwarp", "roialign_max"] * 2)
    assert run_command("reproduce", "2b", *command[1:]) == 0
    assert [call[0][1] for call in stand_ins[10:]] == ["softmax", "agnostic"] * 2
    assert "2b/sigmoid seed 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "2b/sigmoid/seed0/result.json").read_text())["same_as"] == "2c/roialign"


def test_a_stopped_row_is_the_only_one_trained_again(stand_ins, tmp_path, monkeypatch):
    train = mrcnn_tf.train

    def stopped(config, train_set, run_dir, **options):
        if run_dir.parts[-2] == "fcn":
            raise SystemExit(130)
        return train(config, train_set, run_dir=run_dir, **options)

    command = ["2e", "--proxy", "--run-dir", tmp_path, "--seeds", "0"]
    monkeypatch.setattr(mrcnn_tf, "train", stopped)
    assert run_command("reproduce", *command) == 130
    assert "| FCN | 33.6 | – |" in (tmp_path / "2e.md").read_text()
    monkeypatch.setattr(mrcnn_tf, "train", train)
    assert run_command("reproduce", *command) == 0
    assert [call[0][1] for call in stand_ins] == ["mlp", "mlp3", "fcn"]


def test_results_of_other_settings_are_not_mixed(stand_ins, tmp_path, capsys):
    command = ["2e", "--proxy", "--run-dir", tmp_path, "--seeds", "0", "--rows", "fcn"]
    assert run_command("reproduce", *command, "--steps", "20", "training.momentum=0.8") == 0
    config = stand_ins[0][1]
    assert (config.training.steps, config.training.decay_steps, config.training.momentum) == (20, (15,), 0.8)
    assert run_command("reproduce", *command, "--steps", "30") == 2
    assert "config.training.steps was 20, now 30" in capsys.readouterr().err and len(stand_ins) == 1
    # Other images a step are another training too.
    command += ["--steps", "20", "training.momentum=0.8"]
    other = [
        (["--batch-size", 4], "batch_size was None, now 4"),
        (["--devices", 2], "devices was None"),
        (["--proxy-data", "outlines"], "class_names"),
    ]
    for more, what in other:
        assert run_command("reproduce", *command, *more) == 2
        assert what in capsys.readouterr().err
    assert run_command("reproduce", *command) == 0 and len(stand_ins) == 1


def test_a_result_of_an_earlier_version_has_the_defaults_of_later_fields(stand_ins, tmp_path):
    command = ["2b", "--proxy", "--run-dir", tmp_path, "--seeds", "0", "--rows", "sigmoid"]
    assert run_command("reproduce", *command) == 0
    path = tmp_path / "2b" / "sigmoid" / "seed0" / "result.json"
    stored = json.loads(path.read_text())
    del stored["identity"]["config"]["data"]["crop"]
    path.write_text(json.dumps(stored))
    assert run_command("reproduce", *command) == 0
    assert run_command("reproduce", "2c", *command[1:-1], "roialign") == 0 and len(stand_ins) == 1


def test_full_size_rows_take_the_given_weights_and_classes(stand_ins, tmp_path):
    data = write_coco(tmp_path / "data")
    command = [
        "2a",
        "--rows",
        "r50_fpn",
        "--run-dir",
        tmp_path / "runs",
        "--train",
        data,
        "--train-images",
        data.parent,
    ]
    command += ["--val", data, "--val-images", data.parent, "--backbone-weights", "resnet50=weights/resnet50.h5"]
    assert run_command("reproduce", *command) == 0
    place, config, options = stand_ins[0]
    assert place == ("2a", "r50_fpn", "seed0") and options["backbone_weights"] == "weights/resnet50.h5"
    assert config.class_names == ("cat", "dog") and config.training.steps == 160_000
    assert (tmp_path / "runs/2a/r50_fpn/seed0/model.keras").exists()
    assert "ImageNet, resnet50.h5." in (tmp_path / "runs/2a.md").read_text()


def test_cocos_box_without_height_can_be_skipped(stand_ins, tmp_path, capsys):
    """One of COCO's training images has such a box."""
    data = write_coco(tmp_path / "data")
    records = json.loads(data.read_text())
    records["annotations"][0]["bbox"] = [20.5, 30.25, 1.03, 0.0]
    data.write_text(json.dumps(records))
    command = ["2e", "--rows", "fcn", "--run-dir", tmp_path / "runs", "--train", data, "--train-images", data.parent]
    command += ["--val", data, "--val-images", data.parent, "--backbone-weights", "resnet50=a.h5"]
    assert run_command("reproduce", *command) == 2
    assert "[20.5, 30.25, 1.03, 0.0] has no area" in capsys.readouterr().err and not stand_ins
    assert run_command("reproduce", *command, "--skip-bad") == 0 and len(stand_ins) == 1
    assert "box of no area" in capsys.readouterr().out


def test_validation_images_have_the_classes_of_the_training_images(tmp_path):
    train = write_coco(tmp_path / "train")
    val = write_coco(tmp_path / "val", categories=[{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}])
    files = {"train": train, "train_images": train.parent, "val": val, "val_images": val.parent}
    arguments = argparse.Namespace(proxy=False, skip_bad=False, **files)
    train_set, val_set, _ = importlib.import_module("_jobs")._datasets(
        importlib.import_module("_paper_tables").TABLES["2e"], arguments
    )
    assert train_set.class_names == val_set.class_names == ("cat", "dog") and val_set.category_ids == (7, 3)


def test_full_size_rows_follow_the_conventions_of_fetched_weights(stand_ins, tmp_path, monkeypatch):
    loads, draws = [], []

    def load(name, weights=None, class_names=None, **changes):
        loads.append((str(name), weights))
        draws.append(float(keras.random.uniform(())))
        return SimpleNamespace(
            config=mrcnn_tf.preset("mask_rcnn_r50_fpn", num_classes=2, input={"channel_order": "rgb"})
        )

    monkeypatch.setattr(mrcnn_tf, "load", load)
    monkeypatch.setattr(mrcnn_tf.weights, "save_weights", lambda model, path: path.write_text("weights"))
    data = write_coco(tmp_path / "data")
    command = ["2e", "--rows", "fcn", "--steps", 16, "--run-dir", tmp_path / "runs", "--seeds", 3]
    command += ["--train", data, "--train-images", data.parent, "--val", data, "--val-images", data.parent]
    assert run_command("reproduce", *command) == 0
    assert loads == [("mask_rcnn_r50_fpn", "imagenet")]
    _, config, options = stand_ins[0]
    assert config.input.channel_order == "rgb" and (config.training.steps, config.training.seed) == (16, 3)
    assert options["initial_weights"].name == "start.weights.h5"
    # What these weights lack is drawn from the row's seed.
    keras.utils.set_random_seed(3)
    assert draws == [float(keras.random.uniform(()))]


def test_a_begun_training_is_not_finished_with_other_settings(stand_ins, tmp_path, monkeypatch, capsys):
    data, train = write_coco(tmp_path / "data"), mrcnn_tf.train
    command = ["2e", "--rows", "fcn", "--run-dir", tmp_path / "runs", "--train", data, "--train-images", data.parent]
    command += ["--val", data, "--val-images", data.parent, "--backbone-weights"]

    def stopped(*arguments, **options):
        raise SystemExit(130)

    monkeypatch.setattr(mrcnn_tf, "train", stopped)
    assert run_command("reproduce", *command, "resnet50=a.h5", "input.shorter_edge=512") == 130
    monkeypatch.setattr(mrcnn_tf, "train", train)
    for changes, what in (
        (["resnet50=b.h5", "input.shorter_edge=512"], "weights was 'ImageNet, a.h5', now 'ImageNet, b.h5'"),
        (["resnet50=a.h5"], "config.input.shorter_edge was [512], now [800]"),
    ):
        assert run_command("reproduce", *command, *changes) == 2
        error = capsys.readouterr().err
        assert what in error and "begun.json is of other settings" in error and not stand_ins
    assert run_command("reproduce", *command, "resnet50=a.h5", "input.shorter_edge=512") == 0 and len(stand_ins) == 1


def model_of(config):
    return SimpleNamespace(config=config, roi=config.roi, training=config.training)


def test_a_given_model_is_measured_only(stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(mrcnn_tf, "load", lambda path: model_of(mrcnn_tf.preset("shapes")))
    given = tmp_path / "some" / "where" / "first"
    given.mkdir(parents=True)
    command = ["2e", "--proxy", "--run-dir", tmp_path, "--rows", "fcn", "--seeds", 0]
    assert run_command("reproduce", *command, "--checkpoint", f"fcn={given}") == 0
    assert stand_ins == []
    text = (tmp_path / "2e.md").read_text()
    assert "| FCN | 33.6 | 50.0 |" in text and "the trained model first" in text and "some/where" not in text


def test_a_given_model_is_measured_by_its_own_classes(stand_ins, tmp_path, monkeypatch, capsys):
    data, fewer, measured = write_coco(tmp_path / "data"), write_coco(tmp_path / "fewer", images=2), []
    report = mrcnn_tf.evaluation_report
    monkeypatch.setattr(
        mrcnn_tf, "evaluation_report", lambda model, val, *more, **o: measured.append(val) or report(model, val, *more)
    )

    def command(model, path, *overrides, names=("dog", "cat"), run="runs"):
        config = mrcnn_tf.preset("shapes", num_classes=len(names), class_names=names)
        monkeypatch.setattr(mrcnn_tf, "load", lambda name, **changes: model_of(config.replace(**changes)))
        (tmp_path / model).parent.mkdir(exist_ok=True)
        (tmp_path / model).touch()
        given = ["--checkpoint", f"fcn={tmp_path / model}", "--val", path, "--val-images", path.parent]
        return run_command("reproduce", "2e", "--rows", "fcn", "--run-dir", tmp_path / run, *given, *overrides)

    assert command("a/model.keras", data) == 0 and measured[0].class_names == ("dog", "cat")
    # Another model, other images or another way to measure is another result; the same again is not made twice.
    assert command("a/model.keras", data) == 0 and len(measured) == 1
    capsys.readouterr()
    for arguments, what in (
        (("b/model.keras", data), "b/model.keras'"),
        (("a/model.keras", fewer), "data was '4 validation images', now '2 validation images'"),
        (("a/model.keras", data, "input.shorter_edge=64"), "overrides.input.shorter_edge was None, now 64"),
    ):
        assert command(*arguments) == 2
        assert what in capsys.readouterr().err
    # Classes that the data have not.
    assert command("a/model.keras", data, names=("dog", "bird"), run="other") == 2
    assert "has no category 'bird'" in capsys.readouterr().err and len(measured) == 1


def test_a_given_model_of_other_classes_is_refused(stand_ins, tmp_path, monkeypatch, capsys):
    config = mrcnn_tf.preset("mask_rcnn_r50_fpn")
    monkeypatch.setattr(mrcnn_tf, "load", lambda path: model_of(config))
    (tmp_path / "a").mkdir()
    command = ["5", "--proxy", "--run-dir", tmp_path, "--rows", "masks", "--seeds", 0]
    assert run_command("reproduce", *command, "--checkpoint", f"masks={tmp_path / 'a'}") == 2
    assert "/a: the model knows 80 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2f"], "there is no table '2f'"),
        (["2b", "--rows", "sigmoid,fcn"], "--rows fcn: no such row; there are agnostic, sigmoid, softmax"),
        (["2b", "--seeds", "one"], "--seeds one"),
        (["7"], "needs --cityscapes"),
        (["2b"], "needs --train and --train-images"),
        (["2b", "--proxy", "--checkpoint", "sigmoid"], "should be NAME=FILE"),
        (["2b", "--proxy", "--checkpoint", "fcn=a"], "--checkpoint fcn=a: no such row; there are agnostic, sigmoid"),
        (["2b", "--proxy", "--checkpoint", "sigmoid=gone.keras"], "there is no such file"),
        (["2b", "--proxy", "--steps", "0"], "--steps 0: should be at least 1"),
        (["2e", "--proxy-data", "outlines"], "--proxy-data is for --proxy"),
        (["2e,5", "--proxy", "--proxy-data", "outlines"], "tables 1, 2a to 2e and 3"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(arguments, message, tmp_path, capsys):
    assert run_command("reproduce", *arguments, "--run-dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_persons_are_trained_on_images_with_labelled_keypoints(tmp_path):
    jobs = importlib.import_module("_jobs")
    people = {"id": 1, "name": "person", "keypoints": ["nose", "tail"], "skeleton": []}
    path = write_coco(tmp_path)
    records = json.loads(path.read_text())
    for record in records["annotations"]:
        record["category_id"] = 1
        record["keypoints"] = [10, 20, 2, 0, 0, 0] if record["image_id"] in (2, 4) else [0] * 6
        record["num_keypoints"] = record["image_id"] in (2, 4)
    path.write_text(json.dumps({**records, "categories": [people]}))
    assert jobs._persons(str(path), str(tmp_path), False).image_ids.tolist() == [2, 4]
    arguments = argparse.Namespace(proxy=False, val=str(path), val_images=str(tmp_path), skip_bad=False)
    table = importlib.import_module("_paper_tables").TABLES["5"]
    assert len(jobs.validation(table, arguments)[0]) == 4


@pytest.mark.slow
def test_cityscapes_is_measured_as_its_benchmark_does(tmp_path):
    names = mrcnn_tf.preset("cityscapes").class_names
    mrcnn_tf.MaskRCNN(tiny_config(num_classes=8, class_names=names)).save(tmp_path / "model.keras")
    for number in range(2):
        write_scene(tmp_path / "data", "val", f"bonn_{number:06d}_000019", random_scene(number))
    command = ["7", "--rows", "fine", "--cityscapes", tmp_path / "data", "--run-dir", tmp_path / "runs"]
    assert run_command("reproduce", *command, "--checkpoint", f"fine={tmp_path / 'model.keras'}") == 0
    stored = json.loads((tmp_path / "runs" / "7" / "fine" / "seed0" / "result.json").read_text())["metrics"]
    val_set = mrcnn_tf.read_cityscapes(tmp_path / "data", "val")
    found = load_results(tmp_path / "runs" / "7" / "fine" / "seed0" / "evaluation" / "results.json", val_set)
    expected = mrcnn_tf.evaluate_cityscapes(val_set, found)
    assert stored["benchmark/AP50"] == expected.metrics["AP50"] and "mask/AP" in stored
    assert stored["benchmark/AP/car"] == expected.per_class["car"]["AP"]
    assert stored["benchmark/AP/motorcycle"] is None  # there is none
