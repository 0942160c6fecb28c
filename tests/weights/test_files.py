from types import SimpleNamespace

import keras
import numpy as np
import pytest

from mrcnn_tf.weights.files import load_weights
from mrcnn_tf.weights.report import WeightsError, WeightsReport


def small(classes=3, width=4, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(width, name="box_fc1")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(classes + 1, name="box_classes")(x))
    model.config = SimpleNamespace(num_classes=classes)
    return model


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_weights_come_back(tmp_path, name):
    source, target = small(seed=1), small(seed=2)
    source.save_weights(tmp_path / name) if name.endswith("h5") else source.save(tmp_path / name)
    load_weights(target, tmp_path / name)
    for ours, theirs in zip(target.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


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
