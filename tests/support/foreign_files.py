"""Writes the weights files of other implementations without them: torch.save's two formats, and Detectron2's pickles.

Arrays stand for tensors. What torch's classes would ask for when pickled is written by stand-ins of the same names.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

STORAGES = {"f4": "Float", "f2": "Half", "f8": "Double", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool"}


class Storage:
    """The bytes of tensors; `dtype` is torch's name of it."""

    def __init__(self, values: np.ndarray, dtype: str | None = None):
        values = np.ascontiguousarray(values)
        self.values, self.dtype = values.reshape(-1), dtype or STORAGES[values.dtype.str[1:]]


class Tensor:
    """A view of a storage, sizes and strides in elements."""

    def __init__(self, storage: Storage, offset: int, size: tuple, stride: tuple):
        self.parts = (storage, offset, tuple(size), tuple(stride))


def tensor(values: np.ndarray) -> Tensor:
    """A contiguous tensor of its own."""
    values = np.asarray(values)
    return Tensor(Storage(values), 0, values.shape, [n // values.itemsize for n in values.strides])


def _module(name: str, **contents) -> None:
    module = sys.modules.setdefault(name, types.ModuleType(name))
    for key, value in contents.items():
        value.__module__, value.__qualname__ = name, key
        setattr(module, key, value)


def _storage_class(name: str):
    return type(f"{name}Storage", (), {})


class _Stand:
    """Stand-ins for torch's names while something is pickled; the pickle refers to them, nothing is called."""

    def __enter__(self):
        self.before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
        for name in self.before:
            sys.modules[name] = types.ModuleType(name)
        self.classes = {name: _storage_class(name) for name in (*STORAGES.values(), "BFloat16", "Short", "Char")}
        _module("torch", **{f"{name}Storage": cls for name, cls in self.classes.items()})

        def _rebuild_tensor_v2(*arguments):
            raise AssertionError("never called")

        _module("torch._utils", _rebuild_tensor_v2=_rebuild_tensor_v2)
        self.rebuild = _rebuild_tensor_v2
        return self

    def __exit__(self, *error):
        for name, module in self.before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Pickler(pickle.Pickler):
    def __init__(self, stream, stand: _Stand, legacy: bool):
        super().__init__(stream, protocol=2)
        self.stand, self.legacy = stand, legacy
        self.storages: list[Storage] = []

    def persistent_id(self, item):
        if not isinstance(item, Storage):
            return None
        if item not in self.storages:
            self.storages.append(item)
        identity = ("storage", self.stand.classes[item.dtype], str(self.storages.index(item)), "cpu", len(item.values))
        return (*identity, None) if self.legacy else identity

    def reducer_override(self, item):
        if isinstance(item, Tensor):
            return self.stand.rebuild, (*item.parts, False, OrderedDict())
        return NotImplemented


def _tensors(value):
    if isinstance(value, dict):
        return type(value)((key, _tensors(item)) for key, item in value.items())
    return tensor(value) if isinstance(value, np.ndarray) else value


def _pickled(value, legacy: bool) -> tuple[bytes, list[Storage]]:
    stream = io.BytesIO()
    with _Stand() as stand:
        pickler = _Pickler(stream, stand, legacy)
        pickler.dump(_tensors(value))
    return stream.getvalue(), pickler.storages


def write_torch(path: Path, value, byteorder: str | None = "little", data: bytes | None = None) -> Path:
    """What torch.save has written since 1.6; `data` in the place of the pickle of `value`."""
    pickled, storages = _pickled(value, legacy=False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", data or pickled)
        if byteorder:
            archive.writestr(f"{path.stem}/byteorder", byteorder)
        for number, storage in enumerate(storages):
            values = storage.values.byteswap() if byteorder == "big" else storage.values
            with archive.open(f"{path.stem}/data/{number}", "w") as entry:
                entry.write(values.data.cast("B") if len(values) else b"")
        archive.writestr(f"{path.stem}/version", "3\n")
    return path


def write_legacy_torch(path: Path, value) -> Path:
    """What torch.save wrote before 1.6: pickles, then the storages."""
    pickled, storages = _pickled(value, legacy=True)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, machine):
            file.write(pickle.dumps(head, protocol=2))
        file.write(pickled)
        file.write(pickle.dumps([str(number) for number in range(len(storages))], protocol=2))
        for storage in storages:
            file.write(struct.pack("<q", len(storage.values)) + storage.values.tobytes())
    return path


def write_zoo(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A .pkl of Detectron2's model zoo."""
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "A Zoo", "matching_heuristics": True}))
    return path


def write_python2(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A pickle as Python 2 wrote it: the bytes of arrays are strings (of latin-1 when read today)."""
    short = lambda data: b"T" + struct.pack("<i", len(data)) + data  # BINSTRING  # noqa: E731
    parts = [b"\x80\x02}("]
    for name, value in tensors.items():
        value = np.ascontiguousarray(value)
        dtype = b"cnumpy\ndtype\n" + short(value.dtype.str[1:].encode()) + b"K\x00K\x01\x87R(K\x03" + short(b"<")
        dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in value.shape) + b"t"
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        array += b"(K\x01" + shape + dtype + b"\x89" + short(value.tobytes()) + b"tb"
        parts.append(short(name.encode()) + array)
    path.write_bytes(b"".join(parts) + b"u.")
    return path
