"""Files that are damaged or of another kind: whatever h5py, zipfile and numpy make of them, a `WeightsError` comes."""

import json
import zipfile

import h5py
import numpy as np
import pytest

from mrcnn_tf.presets import preset
from mrcnn_tf.weights import public
from mrcnn_tf.weights.files import load_weights, read_header
from mrcnn_tf.weights.keras_applications import read_tensors
from mrcnn_tf.weights.matterport_files import read_matterport
from mrcnn_tf.weights.report import WeightsError
from tests.support.matterport_network import write_h5
from tests.weights.test_files import small

KERNEL = np.ones((3, 3, 4, 8), np.float32)


def own(path):
    with h5py.File(path, "w") as file:
        values = {"format": "mrcnn_tf", "format_version": 1, "package_version": "0", "anew_layers": "[]"}
        file.attrs.update(values, config=preset("shapes").to_json(), class_names=json.dumps([]))
        file["stem/kernel"] = KERNEL


WRITERS = {
    "keras.h5": lambda path: write_h5(path, {"conv1_conv/kernel": KERNEL, "conv1_bn/gamma": KERNEL[0, 0, 0]}),
    "matterport.h5": lambda path: write_h5(path, {"conv1/kernel": KERNEL, "mrcnn_mask/kernel": KERNEL}),
    "whole.npz": lambda path: np.savez(path, **{"conv1_conv/kernel": KERNEL}),
    "small.npz": lambda path: np.savez_compressed(path, **{"conv1_conv/kernel": KERNEL}),
    "own.weights.h5": own,
}
READERS = {
    "keras.h5": (read_tensors, public.read_public),
    "matterport.h5": (read_matterport, public.read_public),
    "whole.npz": (read_tensors, public.read_public),
    "small.npz": (read_tensors, public.read_public),
    "own.weights.h5": (read_header,),
}


@pytest.mark.parametrize("name", WRITERS)
def test_any_damage_is_told_with_the_name_of_the_file(tmp_path, name):
    WRITERS[name](tmp_path / name)
    whole, rng, told = (tmp_path / name).read_bytes(), np.random.default_rng(0), 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for place in rng.integers(len(whole), size=1 + number % 8):
                damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        for read in READERS[name]:
            try:
                read(tmp_path / name)
            except WeightsError as error:
                told += 1
                assert str(tmp_path / name) in str(error)
    assert told > 100


def other_kinds(folder):
    """Files that are whole, but hold something else than their names say."""
    with h5py.File(folder / "root.h5", "w") as file:
        file["values"] = np.zeros(3)
    with h5py.File(folder / "group.h5", "w") as file:
        file["model_weights"] = np.zeros(3)
    with h5py.File(folder / "vars.h5", "w") as file:
        file["layers/dense/vars/first"] = np.zeros(3)
    (folder / "text.npz").write_bytes(b"no archive at all")
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").rename(folder / "array.npz")
    np.savez(folder / "objects.npz", values=np.array([{}], object))
    with zipfile.ZipFile(folder / "zip.npz", "w") as archive:
        archive.writestr("notes.txt", "text")
    return sorted(path.name for path in folder.iterdir())


def test_files_of_other_kinds(tmp_path):
    model = small()
    for name in other_kinds(tmp_path):
        with pytest.raises(WeightsError, match=name):
            public.read_public(tmp_path / name)
        try:
            assert not any(key.startswith("conv") for key in read_tensors(tmp_path / name))  # told by who takes them
        except WeightsError as error:
            assert name in str(error)
        if name.endswith(".h5"):
            with pytest.raises(WeightsError, match=name):
                read_matterport(tmp_path / name)
            weights = (tmp_path / name).rename(tmp_path / name.replace(".h5", ".weights.h5"))
            with pytest.raises(WeightsError, match=weights.name):
                load_weights(model, weights)
