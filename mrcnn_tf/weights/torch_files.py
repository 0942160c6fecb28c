"""Reads the tensors of a file that torch.save wrote, without torch.

Relied on, of the format. Since torch 1.6 the file is a zip: `<folder>/data.pkl` is a pickle in which a storage is a
persistent identity ("storage", its class, key, device, elements), its bytes are `<folder>/data/<key>`, uncompressed,
and `<folder>/byteorder` may say "big". Before, it was one stream: the pickles of a magic number, the format's version,
facts about the machine, the structure, and the list of keys, then each storage in that order, its number of elements
(int64) first. A tensor is a call of `torch._utils._rebuild_tensor_v2` with storage, offset, size and stride, all in
elements.

The bytes stay in the file, which is mapped into memory: a tensor is a view until somebody copies it. The checksums of
the zip are not checked, because torch writes none where it is told so.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf.weights.pickles import Call, Node, checked_file, tensors_in, unpickle
from mrcnn_tf.weights.report import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
ZIP = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes before the name in a zip's local header
_DTYPES = {
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "BFloat16": "bfloat16",  # read as uint16
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


class _Storage:
    """The bytes of tensors: which, and of what."""

    __slots__ = ("dtype", "key", "length", "start", "values")

    def __init__(self, dtype: str, key: str, length: int, start: int = 0, values: dict | None = None):
        self.dtype, self.key, self.length, self.start, self.values = dtype, key, length, start, values

    def __setstate__(self, state):
        raise ValueError("a storage with a state of its own")

    def numpy(self) -> np.ndarray:
        """All elements [length], float32 for bfloat16."""
        whole = self.values.get(self.key)
        if whole is None or self.start < 0 or self.start + self.length > len(whole):
            raise ValueError(f"the storage '{self.key}' is not there, or less than {self.length} elements long")
        return whole[self.start : self.start + self.length]


class _Tensor(Node):
    """A view of a storage: offset, size and stride in elements."""

    __slots__ = ("_offset", "_size", "_storage", "_stride")

    def __init__(self, storage, offset, size, stride, *rest):
        self._storage, self._offset, self._size, self._stride = storage, offset, size, stride

    def __setstate__(self, state):
        raise ValueError("a tensor with a state of its own")

    def array(self) -> np.ndarray:
        if not isinstance(self._storage, _Storage):
            raise ValueError("a tensor without a storage")
        numbers = (self._offset, *self._size, *self._stride)
        if len(self._size) != len(self._stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"a tensor of the size {self._size}, stride {self._stride}")
        values, size = self._storage.numpy(), tuple(self._size)
        elements = int(np.prod(size, dtype=object))
        last = self._offset + sum((side - 1) * step for side, step in zip(size, self._stride))
        if elements and (last >= len(values) or elements > len(values)):
            raise ValueError(f"a tensor of the size {size} is larger than its storage of {len(values)} elements")
        if not elements:
            return np.zeros(size, values.dtype)
        step = values.itemsize
        view = np.lib.stride_tricks.as_strided(values[self._offset :], size, [step * n for n in self._stride])
        return _widened(view) if self._storage.dtype == "bfloat16" else view


def _widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, the upper half of a float32, as that."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _known() -> dict:
    table = {("torch", f"{name}Storage"): Call(lambda dtype=dtype: dtype) for name, dtype in _DTYPES.items()}
    table["torch._utils", "_rebuild_tensor"] = table["torch._utils", "_rebuild_tensor_v2"] = Call(_Tensor)
    table["torch._utils", "_rebuild_parameter"] = Call(lambda tensor, *rest: tensor)
    table["torch", "Size"] = Call(tuple)
    return table


_KNOWN = _known()


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a checkpoint of torch (.pth, .pt): views of the file, in their own dtypes (bfloat16 as float32).

    What stands under "model" or "state_dict" is taken out, and the prefix "module." removed.

    Raises:
        WeightsError: no such file, one that is no checkpoint of torch or is cut short, one without tensors by name, or
            one that asks for anything but tensors and plain containers.
    """
    path = checked_file(path)
    with open(path, "rb") as file:
        start = file.read(len(ZIP))
        contents = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if start == ZIP:
            return tensors_in(_read_zip(path, contents), path)
        file.seek(0)
        return tensors_in(_read_stream(path, file, contents), path)


# === Since torch 1.6: a zip ===


def _read_zip(path: Path, contents: memoryview) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: _entry(archive, entry, contents) for entry in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); the file is cut short: download it again") from error
    name = next((name for name in entries if name.endswith("data.pkl") and name.count("/") <= 1), None)
    if name is None:
        raise WeightsError(f"{path}: is a zip, but not one that torch.save wrote (it has no data.pkl)")
    folder = name.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise WeightsError(f"{path}: is a TorchScript program, not a file of weights; save model.state_dict() instead")
    order = ">" if bytes(entries.get(f"{folder}byteorder", b"")) == b"big" else "<"
    values: dict[str, np.ndarray] = {}

    def persistent(identity):
        storage = _storage(identity, values)
        data = entries.get(f"{folder}data/{storage.key}")
        if data is not None:
            values[storage.key] = _elements(data, storage.dtype, order)
        return storage

    return unpickle(bytes(entries[name]), path, _KNOWN, persistent)


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, contents: memoryview) -> memoryview | bytes:
    """An entry's bytes: a view of the file where they are stored as they are, as torch does."""
    if entry.compress_type != zipfile.ZIP_STORED:
        return archive.read(entry)
    header = entry.header_offset
    name_length, extra_length = struct.unpack("<HH", contents[header + 26 : header + _LOCAL_HEADER])
    start = header + _LOCAL_HEADER + name_length + extra_length
    if contents[header : header + 4] != ZIP or start + entry.file_size > len(contents):
        raise zipfile.BadZipFile(f"no contents of {entry.filename}")
    return contents[start : start + entry.file_size]


def _storage(identity: Any, values: dict) -> _Storage:
    kind, dtype, key, _, length, *view = identity
    dtype = dtype() if isinstance(dtype, Call) else None
    if kind != "storage" or dtype not in _DTYPES.values() or type(length) is not int or length < 0:
        raise ValueError(f"an object outside of the pickle that is no storage: {kind}")
    if view and view[0] is not None:  # a part of another one; only in the old format
        _, start, length = view[0]
        return _Storage(dtype, str(key), length, start, values)
    return _Storage(dtype, str(key), length, 0, values)


def _elements(data: memoryview | bytes, dtype: str, order: str) -> np.ndarray:
    dtype = np.dtype("u2" if dtype == "bfloat16" else dtype).newbyteorder(order)
    return np.frombuffer(data, dtype, len(data) // dtype.itemsize)


# === Before: pickles and storages one after another ===


def _read_stream(path: Path, file, contents: memoryview) -> Any:
    if unpickle(file, path) != MAGIC:
        raise WeightsError(f"{path}: is a pickle, but not one that torch.save wrote; is it of another source?")
    unpickle(file, path)  # the format's version
    machine = unpickle(file, path)
    order = ">" if isinstance(machine, dict) and machine.get("little_endian") is False else "<"
    values: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}

    def persistent(identity):
        storage = _storage(identity, values)
        dtypes[storage.key] = storage.dtype
        return storage

    structure = unpickle(file, path, _KNOWN, persistent)
    keys = unpickle(file, path)
    position = file.tell()
    for key in keys if isinstance(keys, list) else ():
        dtype = dtypes.get(key)
        if dtype is None:
            raise WeightsError(f"{path}: cannot be read (the storage '{key}' is of no tensor); the file is damaged")
        size = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        elements = int.from_bytes(contents[position : position + 8], "little" if order == "<" else "big", signed=True)
        position += 8
        if elements < 0 or position + elements * size > len(contents):
            raise WeightsError(f"{path}: is cut short: the file ends in the storage '{key}'; download it again")
        values[key] = _elements(contents[position : position + elements * size], dtype, order)
        position += elements * size
    return structure
