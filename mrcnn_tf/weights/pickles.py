"""Reads pickles that hold arrays, without running what is in them.

A pickle is a program: it may ask for any function of any module and call it. Here it gets dictionaries, lists, tuples,
strings, bytes and numbers, and a dozen names that build numpy arrays; whatever else it asks for is refused by name,
before anything is called. What stands behind those names is not numpy's own: stand-ins check what they are given, so
that a file which is wrong on purpose reaches neither numpy's memory nor this module's state.

Relied on, of the format: numpy pickles an array as a call of `_reconstruct` and a state (version, shape, dtype, Fortran
order, bytes), or of `_frombuffer` (protocol 5); a dtype as a call with its short name and a state with its byte order;
Python 2 wrote bytes as strings, which read as latin-1 give the bytes back.
"""

from __future__ import annotations

import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mrcnn_tf.weights.report import WeightsError

Globals = Mapping[tuple[str, str], Any]
REMEDY = "save its tensors alone where it was made, as with torch.save(model.state_dict(), path)"
_NUMBERS = "biuf"  # the kinds of dtypes that weights have
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head")
_POINTER = b"version https://git-lfs"


class Node(ABC):
    """A place in an unpickled structure that holds an array."""

    __slots__ = ()

    @abstractmethod
    def array(self) -> np.ndarray:
        """The array, which may be a view of the file; raises ValueError if what the file says about it is wrong."""


class Call:
    """A callable for pickles, which they cannot alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setattr__(self, name, value):
        raise ValueError("it changes a function")

    def __setstate__(self, state):
        raise ValueError("it changes a function")


class _Table(dict):
    """An OrderedDict's stand-in; attributes, as torch puts on its state dictionaries, are dropped."""

    __slots__ = ()

    def __setstate__(self, state):
        """Takes no attributes."""


class _DType:
    """A dtype as a pickle describes it: its name first, its byte order later."""

    __slots__ = ("name", "order")

    def __init__(self, name, *rest):
        self.name, self.order = name, "|"

    def __setstate__(self, state):
        _, order, *structure = state[:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure):
            raise ValueError("an array of structures")
        self.order = order

    def numpy(self) -> np.dtype:
        dtype = np.dtype(self.name) if isinstance(self.name, str) and len(self.name) <= 3 else None
        if dtype is None or dtype.kind not in _NUMBERS:
            raise ValueError(f"an array of '{self.name}', not of numbers")
        return dtype.newbyteorder(self.order)


class _Array(Node):
    """A numpy array; empty until its state comes."""

    __slots__ = ("_value",)

    def __init__(self, *ignored):
        self._value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self._value = _from_bytes(data, dtype, shape, "F" if fortran else "C")

    def array(self) -> np.ndarray:
        if self._value is None:
            raise ValueError("an array without contents")
        return self._value


def _filled(data, dtype, shape, order="C") -> _Array:
    node = _Array()
    node._value = _from_bytes(data, dtype, shape, order)
    return node


def _from_bytes(data, dtype, shape, order) -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(data, (bytes, bytearray, str)):
        raise ValueError("an array of objects")
    if order not in ("C", "F") or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"an array of the shape {shape}")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.numpy()).reshape(tuple(shape), order=order)


def _encode(text, encoding) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"text in the encoding '{encoding}'")
    return text.encode("latin-1")


def _arrays() -> dict:
    table = {
        ("collections", "OrderedDict"): Call(_Table),
        ("numpy", "ndarray"): Call(_Array),
        ("numpy", "dtype"): Call(_DType),
        ("_codecs", "encode"): Call(_encode),
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = Call(_Array)
        table[f"{core}.multiarray", "scalar"] = Call(lambda dtype, data: _filled(data, dtype, ()))
        table[f"{core}.numeric", "_frombuffer"] = Call(_filled)
    for builtins in ("builtins", "__builtin__"):
        table[builtins, "bytes"] = table[builtins, "bytearray"] = Call(lambda *data: _as_bytes(*data))
    return table


def _as_bytes(data=b"", encoding="latin1") -> bytes:
    if isinstance(data, bytes):
        return data
    if not isinstance(data, str):
        raise ValueError("bytes made of something else")
    return _encode(data, encoding)


ARRAYS: Globals = _arrays()


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, path, known: Globals, persistent: Callable | None):
        super().__init__(stream, encoding="latin-1")
        self._path, self._known, self._persistent = path, known, persistent

    def find_class(self, module, name):
        found = self._known.get((module, name))
        if found is None:
            raise WeightsError(
                f"{self._path}: refused, because it asks for '{module}.{name}'; weights are read from arrays and plain "
                f"containers only. If you trust the file, {REMEDY}"
            )
        return found

    def persistent_load(self, identity):
        if self._persistent is None:
            raise ValueError("it refers to something outside of itself")
        return self._persistent(identity)


def unpickle(
    stream: BinaryIO | bytes,
    path: str | Path,
    known: Globals | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The structure in the next pickle of `stream`: plain containers, strings, numbers, a `Node` per array.

    Args:
        stream: an open file at the pickle's start, or the pickle.
        path: the file's name, for messages.
        known: {(module, name): `Call`} that a pickle may ask for beside `ARRAYS`.
        persistent: what an object outside of the pickle is, by its identity.

    Raises:
        WeightsError: it asks for anything else, or cannot be read.
    """
    stream = io.BytesIO(stream) if isinstance(stream, (bytes, memoryview)) else stream
    try:
        return _Unpickler(stream, path, {**ARRAYS, **(known or {})}, persistent).load()
    except WeightsError:
        raise
    except Exception as error:  # what a broken pickle raises is anything at all
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(
            f"{path}: cannot be read ({reason}); the file is cut short or not a file of weights"
        ) from error


def tensors_in(value: Any, path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of the state dictionary in what was unpickled.

    It may be the whole, or stand under "model", "state_dict" or "blobs"; the prefix "module." that torch's parallel
    models have is removed.

    Raises:
        WeightsError: there is none.
    """
    while isinstance(value, dict) and not any(isinstance(item, Node) for item in value.values()):
        inner = next((value[key] for key in ("model", "state_dict", "blobs") if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    nodes = {}
    if isinstance(value, dict):
        nodes = {name: node for name, node in value.items() if isinstance(name, str) and isinstance(node, Node)}
    if not nodes:
        raise WeightsError(f"{path}: holds no tensors by name; a state dictionary is needed: {REMEDY}")
    if all(name.startswith("module.") for name in nodes):
        nodes = {name.removeprefix("module."): node for name, node in nodes.items()}
    try:
        return {name: node.array() for name, node in nodes.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); the file is cut short or damaged") from error


def checked_file(path: str | Path) -> Path:
    """The path of a file that is there and may hold weights.

    Raises:
        WeightsError: nothing there, a folder, an empty file, or what a failed download leaves: a web page and so on.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder; name the file of weights in it")
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError(f"{path}: the file is empty; download it again")
    if start.lstrip().lower().startswith(_WEB_PAGE):
        raise WeightsError(f"{path}: is a web page, not weights; download the file itself, not the page that shows it")
    if start.startswith(_POINTER):
        raise WeightsError(f"{path}: is a pointer of git-lfs, not weights; fetch the file with 'git lfs pull'")
    return path
