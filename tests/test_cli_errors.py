"""What a user can do wrong: each gives one line naming what is wrong where, and exit status 2 - no traceback."""

import json

import pytest

from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from tests.support.commands import TINY, run_command, write_coco

RLE_OF_ANOTHER_SIZE = {"size": [10, 10], "counts": [50, 50]}


def train(data, run_dir, *more) -> int:
    arguments = ["--preset", "shapes", "--train", data, "--train-images", data.parent, "--run-dir", run_dir]
    return run_command("train", *arguments, *TINY, *more)


def one_error(capsys) -> str:
    """The single line of what went wrong."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def change(path, member: str, index: int, **values) -> None:
    records = json.loads(path.read_text())
    records[member][index].update(values)
    path.write_text(json.dumps(records))


# What is changed in the json (member, index, values), and what the message has to name.
BAD_RECORDS = {
    "image missing": ("images", 2, {"file_name": "gone.png"}, ["image", "gone.png"]),
    "category unknown": ("annotations", 3, {"category_id": 99}, ["annotations[3]", "id 4", "99"]),
    "box of no area": ("annotations", 3, {"bbox": [5, 5, 0, 9]}, ["annotations[3]", "id 4", "no area"]),
    "polygon of two points": ("annotations", 3, {"segmentation": [[5, 5, 9, 9]]}, ["id 4", "2 points"]),
    "RLE of another size": ("annotations", 3, {"segmentation": RLE_OF_ANOTHER_SIZE}, ["id 4", "10 x 10", "60 x 80"]),
    "image of another size": ("images", 1, {"width": 81}, ["2.png", "60 x 80", "60 x 81"]),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_name_file_and_record(case, tmp_path, capsys):
    member, index, values, named = BAD_RECORDS[case]
    data = write_coco(tmp_path / "data")
    change(data, member, index, **values)
    assert train(data, tmp_path / "run") == 2
    message = one_error(capsys)
    for text in (*named, str(tmp_path / "data")):
        assert text in message


def test_image_cut_short(tmp_path, capsys):
    data = write_coco(tmp_path / "data")
    whole = (data.parent / "3.png").read_bytes()
    (data.parent / "3.png").write_bytes(whole[: len(whole) // 2])
    assert train(data, tmp_path / "run") == 2
    message = one_error(capsys)
    assert str(data.parent / "3.png") in message and "cut short" in message


@pytest.mark.parametrize("text", ['{"pictures": []}', "[1, 2]", "{", "", '{"images": 5}'])
def test_json_that_is_not_coco(text, tmp_path, capsys):
    data = tmp_path / "data.json"
    data.write_text(text)
    assert train(data, tmp_path / "run") == 2
    assert str(data) in one_error(capsys)


def test_no_annotation_at_all(tmp_path, capsys):
    data = write_coco(tmp_path / "data", annotations=[])
    assert train(data, tmp_path / "run") == 2
    message = one_error(capsys)
    assert str(data) in message and "no annotation at all" in message


def test_skip_bad_counts_them_and_goes_on(tmp_path, capsys):
    data = write_coco(tmp_path / "data", images=8)
    for number, (member, _, values, _) in enumerate(BAD_RECORDS.values()):
        # One of each kind, each in an image of its own.
        change(data, member, number if member == "images" else 2 * number, **values)
    whole = (data.parent / "8.png").read_bytes()
    (data.parent / "8.png").write_bytes(whole[: len(whole) // 2])
    # Four steps of two images: every image that is left is met.
    assert train(data, tmp_path / "run", "--skip-bad", "training.steps=4") == 0
    printed = capsys.readouterr().out
    assert "trained for 4 steps" in printed and "skipped 7 bad records:" in printed
    for kind in (*BAD_RECORDS, "image unreadable"):
        assert f"1 x {kind}" in printed.replace("polygon of too few points", "polygon of two points")


def test_a_class_count_that_does_not_fit_the_weights(tmp_path, capsys):
    weights = tmp_path / "three.weights.h5"
    names = ("a", "b", "c")
    MaskRCNN(preset("shapes", class_names=names, fpn__channels=16, rpn__channels=16)).save_weights(weights)
    data = write_coco(tmp_path / "data")
    assert train(data, tmp_path / "run", "--weights", weights) == 2
    message = one_error(capsys)
    assert str(weights) in message and "3" in message and "2" in message


@pytest.mark.parametrize("name", ["missing.h5", "cut.npz", "words.txt"])
def test_backbone_weights_that_cannot_be_read(name, tmp_path, capsys):
    if name != "missing.h5":
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    data = write_coco(tmp_path / "data")
    assert train(data, tmp_path / "run", "backbone.name=resnet50", "--backbone-weights", tmp_path / name) == 2
    assert str(tmp_path / name) in one_error(capsys)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("input.shorter_egde=64", "did you mean 'shorter_edge'"),
        ("inputs.shorter_edge=64", "did you mean 'input'"),
        ("training.momentum=2", "TrainingConfig.momentum = 2"),
        ("training.steps=many", "training.steps = 'many'"),
        ("num_classes=5", "num_classes"),
        ("bare", "section.field=value"),
        ("rpn.min_size=-1", "RPNConfig.min_size = -1"),
        ("training={1: 2}", "training"),
        ("data={[]: 1}", "'data' is a section"),
        ("branches=mask,keypoint", "Config.branches = ('mask', 'keypoint')"),
    ],
)
def test_unknown_and_unfitting_values(option, named, tmp_path, capsys):
    data = write_coco(tmp_path / "data")
    assert train(data, tmp_path / "run", option) == 2
    assert named in one_error(capsys)


def test_unknown_preset(tmp_path, capsys):
    assert run_command("train", "--preset", "mask_rcn_r50_fpn", "--shapes", 4, "--run-dir", tmp_path) == 2
    assert "did you mean 'mask_rcnn_r50_fpn'?" in one_error(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--train", "a.json", "--shapes", 4),
        ("--shapes", 0),
        ("--shapes", 4, "--preset", "shapes", "--config", "c.json"),
        ("--shapes", 4, "--val", "v.json"),
        ("--train", "a.json"),
        ("--train", "gone.json", "--train-images", "gone"),
        ("--shapes", 4, "--config", "gone.json"),
        ("--shapes", 4, "--devices", "x"),
        ("--shapes", 4, "--train-images", "images"),
        ("--train", "gone.json", "--train-images", "gone", "--val-images", "gone"),
        ("--train", "gone.json", "--train-images", "gone", "--val-losses"),
        ("--shapes", 4, "--preset", "shapes", "--val-losses"),  # whose evaluations are switched off
        ("--shapes", 4, "--reinitialize", "res5"),
        ("--shapes", 4, "--weights", "gone.keras", "--backbone-weights", "gone.h5"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, tmp_path, capsys):
    assert run_command("train", "--run-dir", tmp_path, *arguments) == 2
    assert len(one_error(capsys)) > len("error: ")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("binary.json", b"\xff\xfe\x00\x81", "no configuration"),
        ("empty.json", b"", "not valid json"),
        ("list.json", b"[1, 2]", "should be a dictionary"),
        ("coco.json", b'{"images": [], "annotations": []}', "unknown option 'images'"),
    ],
)
def test_a_configuration_that_is_none(name, content, named, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert run_command("train", "--shapes", 4, "--run-dir", tmp_path, "--config", tmp_path / name) == 2
    message = one_error(capsys)
    assert str(tmp_path / name) in message and named in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--shapes", 0), "--shapes 0"),
        (("--shapes", 4, "--batch-size", 0), "--batch-size 0"),
        (("--shapes", 4, "--max-detections", 0), "--max-detections 0"),
        (("--shapes", 4, "--pictures", -1), "--pictures -1"),
        (("--shapes", 4, "--images", "folder"), "--images"),
        (("--shapes", 4, "weights=coco"), "unknown option 'weights'"),
        (("--shapes", 4, "class_names=cat,dog,cow"), "cat, dog, cow"),
    ],
)
def test_evaluations_that_cannot_be(arguments, named, tmp_path, capsys):
    MaskRCNN(preset("shapes", fpn__channels=16, rpn__channels=16)).save_weights(tmp_path / "m.weights.h5")
    assert run_command("evaluate", tmp_path / "m.weights.h5", *arguments) == 2
    assert named in one_error(capsys)


@pytest.mark.parametrize("more", [("--batch-size", 0), ()])
def test_proposals_that_cannot_be(more, tmp_path, capsys):
    """No image at a time; a folder in the place of the file."""
    arguments = ("gone.keras", "--data", "gone.json", "--images", "gone", "--output", tmp_path, *more)
    assert run_command("save_proposals", *arguments) == 2
    assert ("--batch-size 0" if more else "is a folder") in one_error(capsys)


def test_no_such_option(tmp_path, capsys):
    assert run_command("train", "--run-dir", tmp_path, "--shape", 4, "--bach-size", 3) == 2
    assert "--bach-size" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["evaluate", "predict", "export"])
def test_no_model_there(script, tmp_path, capsys):
    needed = {"evaluate": ["--shapes", 4], "predict": [tmp_path, "--output", tmp_path], "export": [tmp_path / "out"]}
    (tmp_path / "image.png").write_bytes(b"")
    for model, named in ((tmp_path / "gone", "no such model"), (tmp_path, "not the folder of a training")):
        assert run_command(script, model, *needed[script]) == 2
        message = one_error(capsys)
        assert str(model) in message and named in message


def test_a_model_file_that_is_none(tmp_path, capsys):
    (tmp_path / "model.keras").write_bytes(b"no model")
    assert run_command("export", tmp_path / "model.keras", tmp_path / "out") == 2
    assert str(tmp_path / "model.keras") in one_error(capsys)


def test_evaluating_on_other_classes(tmp_path, capsys):
    data = write_coco(tmp_path / "data")
    names = ["cat", "mouse"]
    config = preset("shapes", num_classes=2, class_names=names, fpn__channels=16, rpn__channels=16)
    (tmp_path / "config.json").write_text(config.to_json())
    MaskRCNN(config).save_weights(tmp_path / "best.weights.h5")
    assert run_command("evaluate", tmp_path, "--data", data, "--images", data.parent) == 2
    message = one_error(capsys)
    assert "mouse" in message and str(data) in message


def test_nothing_to_predict(tmp_path, capsys):
    for source, named in ((tmp_path / "gone.jpg", "no such file"), (tmp_path, "no image in this folder")):
        assert run_command("predict", tmp_path, source, "--output", tmp_path / "found") == 2
        message = one_error(capsys)
        assert str(source) in message and named in message
