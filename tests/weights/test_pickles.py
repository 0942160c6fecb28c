"""Files of torch and of Detectron2: what they hold, whatever wrote them, and what is refused."""

import functools
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from mrcnn_tf.weights.pickles import checked_file, tensors_in, unpickle
from mrcnn_tf.weights.report import WeightsError
from mrcnn_tf.weights.sources import read_detectron2, read_tensors
from mrcnn_tf.weights.torch_files import read_torch
from tests.support.foreign_files import (
    Storage,
    Tensor,
    write_legacy_torch,
    write_python2,
    write_torch,
    write_zoo,
)

WRITERS = {"zip": write_torch, "stream": write_legacy_torch}


def some_tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "half": rng.normal(size=5).astype(np.float16),
        "double": rng.normal(size=(2, 2)),
        "num_batches_tracked": np.array(7),
        "int": rng.integers(-9, 9, 3).astype(np.int32),
        "byte": np.array([0, 255], np.uint8),
        "flags": np.array([True, False, True]),
        "nothing": np.zeros((0, 4), np.float32),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)


# === What is read ===


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_torch_tensors_come_back(write, tmp_path):
    assert_same(read_torch(write(tmp_path / "a.pth", OrderedDict(some_tensors()))), some_tensors())
    assert_same(read_tensors(tmp_path / "a.pth", "torchvision"), some_tensors())


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_state_dictionaries_within_are_found(write, key, tmp_path):
    inner = {f"module.{name}": value for name, value in some_tensors().items()}
    more = {"epoch": 3, "optimizer": {"state": {0: {"momentum": np.ones(3)}}, "groups": [{"lr": 0.1}]}, "note": None}
    assert_same(read_torch(write(tmp_path / "a.pth", {**more, key: inner})), some_tensors())


def test_a_prefix_that_some_names_have_is_theirs(tmp_path):
    tensors = {"module.a": np.ones(2), "b": np.ones(1)}
    assert list(read_torch(write_torch(tmp_path / "a.pth", tensors))) == ["module.a", "b"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_views_share_a_storage(write, tmp_path):
    values = np.arange(24, dtype=np.float32)
    shared = Storage(values)
    views = {
        "transposed": Tensor(shared, 0, (6, 4), (1, 6)),
        "part": Tensor(shared, 5, (2, 3), (6, 1)),
        "scalar": Tensor(shared, 23, (), ()),
        "bfloat": Tensor(Storage(np.array([0x3F80, 0xC000, 0x3E20], np.uint16), "BFloat16"), 1, (2,), (1,)),
    }
    found = read_torch(write(tmp_path / "a.pth", views))
    np.testing.assert_array_equal(found["transposed"], values.reshape(4, 6).T)
    np.testing.assert_array_equal(found["part"], [[5, 6, 7], [11, 12, 13]])
    assert found["scalar"] == 23 and found["scalar"].shape == ()
    np.testing.assert_array_equal(found["bfloat"], np.array([-2.0, 0.15625], np.float32))
    assert found["bfloat"].dtype == np.float32


def test_big_endian_and_unmarked_files(tmp_path):
    for order in ("big", None):
        found = read_torch(write_torch(tmp_path / "a.pth", some_tensors(), byteorder=order))
        for name, value in some_tensors().items():
            np.testing.assert_array_equal(found[name], value)


def test_compressed_entries(tmp_path):
    write_torch(tmp_path / "a.pth", some_tensors())
    with zipfile.ZipFile(tmp_path / "a.pth") as stored, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert_same(read_torch(tmp_path / "b.pth"), some_tensors())


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_pickles_of_every_protocol(protocol, tmp_path):
    tensors = {**some_tensors(), "swapped": np.arange(3, dtype=">f4"), "fortran": np.asfortranarray(np.eye(3)[:2])}
    tensors["number"] = np.float32(1.5)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "me", "matching_heuristics": True}, protocol))
    found = read_detectron2(path)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["number"].shape == () and list(found) == list(tensors)


def test_pickles_of_python_2(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"conv1_w": rng.normal(size=(64, 3, 7, 7)).astype(np.float32), "fc1000_b": np.arange(256.0)}
    assert_same(read_detectron2(write_python2(tmp_path / "R-50.pkl", tensors)), tensors)
    # The same as numpy itself understands it.
    with open(tmp_path / "R-50.pkl", "rb") as file:
        assert_same(pickle.load(file, encoding="latin1"), tensors)


@pytest.mark.parametrize("write", [write_torch, write_legacy_torch, write_zoo])
def test_detectron2_writes_in_three_ways(write, tmp_path):
    path = write(
        tmp_path / "a.pth", some_tensors() if write is write_zoo else {"model": some_tensors(), "iteration": 9}
    )
    assert_same(read_tensors(path, "detectron2"), some_tensors())


def test_plain_structures():
    value = {"a": [1, 2.5, (None, True)], "b": b"\x00\xff", 3: "text", "big": 2**80, "o": OrderedDict(x=1)}
    for protocol in range(6):
        assert unpickle(pickle.dumps(value, protocol), "f") == value


# === What is refused ===


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Sets:
    """Pickled as a call whose result is given a state."""

    def __init__(self, function, arguments, state):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


HOSTILE = {
    "system": (Calls(os.system, "touch pwned"), "posix.system"),
    "eval": (Calls(eval, "open('pwned', 'w')"), "builtins.eval"),
    "exec": (Calls(exec, "open('pwned', 'w')"), "builtins.exec"),
    "getattr": (Calls(getattr, {}, "clear"), "builtins.getattr"),
    "import": (Calls(__import__, "os"), "builtins.__import__"),
    "numpy's load": (Calls(np.load, "pwned"), "numpy.load"),
    "numpy's fromfile": (Calls(np.fromfile, "/etc/passwd"), "numpy.fromfile"),
    "a class made": (Calls(type, "C", (), {}), "builtins.type"),
    "nested": ({"model": {"a": [np.ones(2), (Calls(OrderedDict, Calls(eval, "1")),)]}}, "builtins.eval"),
    "in a name": ({Calls(os.getcwd): 1}, "posix.getcwd"),
    "partial": (functools.partial(os.system, "touch pwned"), "functools.partial"),
}
RAW = {
    "copyreg": (b"ccopyreg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR.", "copyreg._reconstructor"),
    "copy_reg": (b"ccopy_reg\n_reconstructor\n.", "copy_reg._reconstructor"),
    "copyreg's extensions": (b"ccopyreg\nadd_extension\n(S'posix'\nS'system'\nK\x01tR.", "copyreg.add_extension"),
    "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0ecore.numeric.f\x93.", "numpy.core.numeric.f"),
    "a way through ndarray": (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray.__class__"),
    "old instance": (b"(S'touch pwned'\niposix\nsystem\n.", "posix.system"),
    "old object": (b"(cposix\nsystem\nS'touch pwned'\no.", "posix.system"),
    "this package": (b"cmrcnn_tf.weights.pickles\npickle.loads\n.", "mrcnn_tf.weights.pickles.pickle.loads"),
    "torch's loader": (b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.", "torch.storage._load_from_bytes"),
}


def hostile_pickles():
    for name, (value, asked) in HOSTILE.items():
        yield pytest.param(pickle.dumps(value), asked, id=name)
        yield pytest.param(pickle.dumps(value, 2), asked.replace("builtins", "__builtin__"), id=f"{name}, protocol 2")
    for name, (data, asked) in RAW.items():
        yield pytest.param(data, asked, id=name)


@pytest.mark.parametrize("container", ["pkl", "zip"])
@pytest.mark.parametrize(("data", "asked"), hostile_pickles())
def test_anything_else_is_refused_by_name(data, asked, container, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"hostile.{container}"
    if container == "pkl":
        path.write_bytes(data)
    else:
        write_torch(path, {}, data=data)
    with pytest.raises(WeightsError) as caught:
        read_detectron2(path)
    assert str(path) in str(caught.value) and f"asks for '{asked}" in str(caught.value)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)
    assert not (tmp_path / "pwned").exists()


DTYPE = b"cnumpy\ndtype\n(S'f4'\ntR"
BROKEN = {
    "a function is altered": b"cnumpy\ndtype\nN}S'__defaults__'\nNs\x86b.",
    "a function's attributes": b"ccollections\nOrderedDict\n}S'a'\nK\x01sb.",
    "an array of objects": pickle.dumps({"a": np.array([{}, 1], object)}),
    "an array of structures": pickle.dumps({"a": np.zeros(2, [("x", "f4")])}),
    "an array of text": pickle.dumps({"a": np.array(["x"])}),
    "an array of complex numbers": pickle.dumps({"a": np.zeros(2, complex)}),
    "more elements than bytes": pickle.dumps({"a": np.zeros(3, np.float32)}, 4).replace(b"K\x03\x85", b"K\x09\x85", 1),
    "bytes of another encoding": b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
    "something outside": b"Pfile\n.",
    "no end": b"\x80\x04}",
    "no pickle": b"\x00\x01\x02 not a pickle at all",
    "an extension": b"\x80\x02\x82\x07.",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_pickles_are_told(data, tmp_path):
    path = tmp_path / "broken.pkl"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"broken.pkl: cannot be read \(") as caught:
        read_detectron2(path)
    assert "cut short" in str(caught.value)


def test_stand_ins_stay_as_they_are(tmp_path):
    for data in (b"cnumpy\ndtype\nN}S'_function'\nK\x01s\x86b.", b"cnumpy\nndarray\n}b."):
        with pytest.raises(WeightsError):
            unpickle(data, "f")
    assert_same(read_detectron2(write_zoo(tmp_path / "a.pkl", some_tensors())), some_tensors())
    state = unpickle(pickle.dumps(Sets(OrderedDict, ([("a", 1)],), {"items": 5})), "f")
    assert list(state.items()) == [("a", 1)]  # attributes, as torch sets on state dictionaries, are dropped


HOSTILE_TENSORS = {
    "past the end": (0, (5,), (1,)),
    "before the start": (-1, (2,), (1,)),
    "negative stride": (3, (2,), (-1,)),
    "strides past the end": (0, (2, 2), (3, 1)),
    "negative size": (0, (-1,), (1,)),
    "enormous": (0, (2**40, 2**40), (0, 0)),
    "sizes that are no numbers": (0, ("4",), (1,)),
    "sizes without strides": (0, (2, 2), (1,)),
    "no sizes": (0, (), (1,)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("parts", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_tensors_do_not_reach_past_their_storage(write, parts, tmp_path):
    path = write(tmp_path / "a.pth", {"a": Tensor(Storage(np.zeros(4, np.float32)), *parts)})
    with pytest.raises(WeightsError, match=r"a.pth: cannot be read \(a tensor of the size"):
        read_torch(path)


@pytest.mark.parametrize("length", [8, 600, -400])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_files_that_are_cut_short(write, length, tmp_path):
    path = write(tmp_path / "a.pth", {"a": np.zeros(1000, np.float32), "b": np.zeros(9)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match="a.pth: .*cut short"):
        read_torch(path)


def test_a_storage_that_is_missing(tmp_path):
    write_torch(tmp_path / "a.pth", {"a": np.zeros(1000, np.float32)})
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as part:
        part.writestr("b/data.pkl", whole.read("a/data.pkl"))
    with pytest.raises(WeightsError, match="the storage '0' is not there"):
        read_torch(tmp_path / "b.pth")


OTHER_FILES = {
    "empty": (b"", "the file is empty; download it again"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page, not weights"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs"),
    "text": (b"Not found", "cannot be read"),
}


@pytest.mark.parametrize("source", ["torchvision", "detectron2", "keras", "matterport"])
@pytest.mark.parametrize("case", OTHER_FILES)
def test_files_that_are_no_weights(case, source, tmp_path):
    contents, message = OTHER_FILES[case]
    path = tmp_path / "weights.pth"
    path.write_bytes(contents)
    with pytest.raises(WeightsError) as caught:
        read_tensors(path, source)
    wrong_kind = case == "text" and source in ("keras", "matterport")
    assert str(path) in str(caught.value) and ("is no .h5 file" if wrong_kind else message) in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="gone.pth: there is no such weights file"):
        checked_file(tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match="is a folder; name the file"):
        read_torch(tmp_path)
    with pytest.raises(WeightsError, match="unknown source 'caffe'; known are torchvision, detectron2"):
        read_tensors(tmp_path, "caffe")


def test_files_of_another_kind(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(WeightsError, match="is a zip, but not one that torch.save wrote"):
        read_torch(tmp_path / "a.npz")
    write_zoo(tmp_path / "a.pkl", some_tensors())
    with pytest.raises(WeightsError, match="is a pickle, but not one that torch.save wrote; is it of another source"):
        read_torch(tmp_path / "a.pkl")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"program/{name}", pickle.dumps(()))
    with pytest.raises(WeightsError, match="is a TorchScript program"):
        read_torch(tmp_path / "program.pt")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(WeightsError, match=r"is an .h5 file, but weights of torchvision come as .pth or .pt"):
        read_tensors(tmp_path / "a.h5", "torchvision")


def test_pickles_without_tensors(tmp_path):
    for value in ({}, {"model": {}}, [1, 2], {"model": {"a": 1}}, {"state_dict": {"model": 3}}):
        with pytest.raises(WeightsError, match="a.pkl: holds no tensors by name"):
            tensors_in(unpickle(pickle.dumps(value), "a.pkl"), "a.pkl")
