import json
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest

import mrcnn_tf
from mrcnn_tf import atomic, untrained
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import compare
from mrcnn_tf.weights.files import is_own, load_weights, read_header, save_weights
from mrcnn_tf.weights.report import WeightsError, WeightsReport


def small(classes=3, width=4, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(width, name="box_fc1")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(classes + 1, name="box_classes")(x))
    model.config = SimpleNamespace(num_classes=classes)
    return model


def configured(classes=3, width=4, seed=0, **changes):
    """The small model with a configuration that says of it what a Mask R-CNN's says."""
    model = small(classes, width, seed)
    model.config = preset("shapes", num_classes=classes, box_head__fc=(width,), **changes)
    return model


def assert_same_weights(first, second):
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# === The own format ===


def test_own_format_has_stable_names_and_says_what_it_is(tmp_path):
    model = configured(class_names=("a", "b", "c"))
    untrained.mark(model, ["box_classes"])
    save_weights(model, tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5") as file:
        assert {name: file[name].shape for name in ("box_fc1/kernel", "box_fc1/bias")} == {
            "box_fc1/kernel": (5, 4),
            "box_fc1/bias": (4,),
        }
        np.testing.assert_array_equal(file["box_classes/kernel"], model.get_layer("box_classes").kernel)
        assert file["box_classes/kernel"].dtype == np.float32
        values = dict(file.attrs)
    assert (values["format"], values["format_version"]) == ("mrcnn_tf", 1)
    assert values["package_version"] == mrcnn_tf.__version__
    assert json.loads(values["class_names"]) == ["a", "b", "c"]
    header = read_header(tmp_path / "m.weights.h5")
    assert header.config == model.config and header.anew_layers == ("box_classes",)
    assert is_own(tmp_path / "m.weights.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["m.weights.h5"]


def test_own_weights_come_back_with_what_was_started_anew(tmp_path):
    source, target = configured(seed=1), configured(seed=2)
    untrained.mark(source, ["box_classes"])
    save_weights(source, tmp_path / "m.weights.h5")
    load_weights(target, tmp_path / "m.weights.h5")
    assert_same_weights(source, target)
    assert target.anew_layers == ("box_classes",)
    untrained.clear(source)
    save_weights(source, tmp_path / "m.weights.h5")
    load_weights(target, tmp_path / "m.weights.h5")
    assert target.anew_layers == ()


def test_many_long_class_names_fit_into_the_file(tmp_path):
    names = tuple(f"a class of many with a rather long name, number {number}" for number in range(3000))
    save_weights(configured(3000, class_names=names), tmp_path / "m.weights.h5")
    assert read_header(tmp_path / "m.weights.h5").config.class_names == names


def test_own_weights_of_another_model_say_what_differs(tmp_path):
    save_weights(configured(3, 4), tmp_path / "m.weights.h5")
    target = configured(5, 8, seed=2, backbone__name="resnet34", class_names=())
    before = target.get_weights()
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / "m.weights.h5")
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'm.weights.h5'}: the weights do not fit the model: num_classes is 3 there, 5 here; "
        "backbone.name is 'resnet18' there, 'resnet34' here; box_head.fc is (4,) there, (8,) here",
        "  of another shape: box_classes/bias (4,) there, (6,) here, box_classes/kernel (4, 4) there, (8, 6) here, "
        "box_fc1/bias (4,) there, (8,) here, box_fc1/kernel (5, 4) there, (5, 8) here",
    ]
    for old, new in zip(before, target.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_own_weights_with_other_layers(tmp_path):
    source = configured()
    save_weights(source, tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "a") as file:
        del file["box_fc1/bias"]
        for number in range(8):
            file[f"keypoint_conv{number}/kernel"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as caught:
        load_weights(source, tmp_path / "m.weights.h5")
    lines = str(caught.value).splitlines()
    assert lines[1] == "  the model has, but the file has not: box_fc1/bias"
    assert lines[2].startswith("  the file has, but the model has not: keypoint_conv0/kernel, ")
    assert lines[2].endswith("keypoint_conv5/kernel, ... and 2 more") and len(lines) == 3


def test_a_newer_format_is_refused(tmp_path):
    save_weights(configured(), tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "a") as file:
        file.attrs["format_version"] = 2
        file.attrs["package_version"] = "7.0"
    with pytest.raises(WeightsError, match=r"format 2, written by mrcnn_tf 7.0, is newer .* up to 1; update the pack"):
        load_weights(configured(), tmp_path / "m.weights.h5")


def test_a_configuration_of_another_version_does_not_hinder_weights_that_fit(tmp_path):
    source, target = configured(seed=1), configured(seed=2)
    save_weights(source, tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "a") as file:
        file.attrs["config"] = json.dumps({"future": 1})
    load_weights(target, tmp_path / "m.weights.h5")
    assert_same_weights(source, target)
    with pytest.raises(WeightsError, match=r"its configuration cannot be read \(unknown option 'future'"):
        load_weights(configured(5, class_names=()), tmp_path / "m.weights.h5")


def test_weights_that_fit_in_shape_alone_are_told(tmp_path, caplog):
    save_weights(configured(class_names=("a", "b", "c")), tmp_path / "m.weights.h5")
    other = {"input__channel_order": "bgr", "roi__half_pixel": False, "backbone__norm_epsilon": 1.001e-5}
    load_weights(configured(class_names=("b", "a", "c"), **other), tmp_path / "m.weights.h5")
    assert "input.channel_order is 'bgr', but they were trained with 'rgb'" in caplog.text
    assert "roi.half_pixel is False, but they were trained with True" in caplog.text
    assert "the classes are b, a, c, but theirs are a, b, c" in caplog.text and "norm_epsilon" not in caplog.text


def test_a_full_disk_is_told_by_name_and_leaves_the_file_that_was_there(tmp_path):
    """HDF5 itself, which closes its file again and again, would take the process with it."""
    resource = pytest.importorskip("resource", reason="limits of a process are told otherwise here")
    path = tmp_path / "m.weights.h5"
    save_weights(configured(seed=1), path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
        with pytest.raises(OSError) as caught:
            save_weights(configured(seed=2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m.weights.h5"
    source = configured(seed=1)
    save_weights(source, path)

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(atomic, "flush_to_disk", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(configured(seed=2), path)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["m.weights.h5"]
    target = configured(seed=3)
    load_weights(target, path)
    assert_same_weights(source, target)
    with pytest.raises(WeightsError, match="a name that ends in .weights.h5"):
        save_weights(source, tmp_path / "m.h5")


def test_shapes_depend_on_these_values():
    base = preset("mask_rcnn_r50_fpn")
    changed = base.replace(
        num_classes=3, backbone__norm="batch", rpn__convs=2, fpn__norm="batch", anchors__ratios=(0.5, 1.0)
    )
    assert compare.shapes(base, changed) == [
        ("num_classes", 80, 3),
        ("anchors at each position", 3, 2),
        ("rpn.convs", 1, 2),
        ("fpn.norm", "none", "batch"),
    ]
    people = base.replace(branches=("keypoints",))
    assert [name for name, *_ in compare.shapes(base, people)] == [
        "branches",
        "mask_head.fc",
        "mask_head.activation",
        "mask_head.class_agnostic",
        "mask_head.convs",
        "mask_head.deconv",
        "mask_head.norm",
        "keypoint_head.convs",
        "keypoints",
    ]


# === What Keras writes ===


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_weights_come_back(tmp_path, name):
    source, target = small(seed=1), small(seed=2)
    source.save_weights(tmp_path / name) if name.endswith("h5") else source.save(tmp_path / name)
    untrained.mark(target, ["box_fc1"])
    assert read_header(tmp_path / name) is None and not is_own(tmp_path / name)
    load_weights(target, tmp_path / name)
    assert_same_weights(target, source)
    assert target.anew_layers == ()


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_other_number_of_classes(tmp_path, name):
    small(3).save_weights(tmp_path / name) if name.endswith("h5") else small(3).save(tmp_path / name)
    with pytest.raises(WeightsError, match="of a model of 3 classes, this one has 5") as caught:
        load_weights(small(5), tmp_path / name)
    assert "box_classes has [(4, 4), (4,)] there, [(4, 6), (6,)] here" in str(caught.value)


def test_other_width_names_the_layers(tmp_path):
    small(width=4).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(WeightsError, match=r"do not fit the model\n  box_fc1 has \[\(5, 4\), \(4,\)\] there"):
        load_weights(small(width=8), tmp_path / "m.weights.h5")


def test_other_layers(tmp_path):
    inputs = keras.Input((5,))
    keras.Model(inputs, keras.layers.Conv1D(2, 1)(keras.layers.Reshape((5, 1))(inputs))).save_weights(
        tmp_path / "m.weights.h5"
    )
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_weights(small(), tmp_path / "m.weights.h5")


def test_unusable_files(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(small(), tmp_path / "none.weights.h5")
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match="read from .weights.h5 and .keras"):
        load_weights(small(), tmp_path / "weights.npz")
    for name in ("m.keras", "m.weights.h5"):
        small().save(tmp_path / name) if name == "m.keras" else small().save_weights(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
        with pytest.raises(WeightsError, match="cannot be read"):
            load_weights(small(), tmp_path / name)


def test_summary_lists_the_first_names_and_counts_the_rest():
    report = WeightsReport("w.npz", loaded=["a/kernel"], missing=[f"x{i}/kernel" for i in range(45)], left=["y"])
    lines = report.summary().splitlines()
    assert lines[0] == "weights from w.npz: 1 tensors loaded"
    assert lines[1] == "NOT FOUND IN THE FILE: 45 tensors"
    assert lines[2] == "    x0/kernel" and lines[41] == "    x39/kernel" and lines[42] == "    ... and 5 more"
    assert lines[43:] == ["LEFT AT RANDOM VALUES for that reason: 1 layers", "    y"]
    assert not report.complete and WeightsReport("w", loaded=["a"]).complete
