"""The tensors of a file of another implementation, in that one's own names and layout: {name: array}."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mrcnn_tf.weights import keras_applications
from mrcnn_tf.weights.matterport_files import read_matterport
from mrcnn_tf.weights.pickles import checked_file, tensors_in, unpickle
from mrcnn_tf.weights.report import WeightsError
from mrcnn_tf.weights.torch_files import MAGIC, ZIP, read_torch

HDF5 = b"\x89HDF"
SUFFIXES = {
    "torchvision": (".pth", ".pt"),
    "detectron2": (".pkl", ".pth"),
    "keras": (".h5", ".npz"),
    "matterport": (".h5",),
}


def read_tensors(path: str | Path, source: str) -> dict[str, np.ndarray]:
    """{name: array} of a file, as `weights.assign` takes it.

    Args:
        path: the file: for torchvision what torch.save wrote (.pth); for Detectron2 a .pkl of its model zoo or a .pth;
            for Keras applications an .h5 or .npz; for Matterport an .h5. Its contents count, not its name.
        source: "torchvision", "detectron2", "keras" or "matterport".

    Raises:
        WeightsError: an unknown source, no such file, one of another kind, one that is cut short, or one that asks for
            anything but arrays and plain containers.
    """
    if source not in SUFFIXES:
        raise WeightsError(f"unknown source '{source}'; known are {', '.join(SUFFIXES)}")
    path = checked_file(path)
    _check_kind(path, source)
    if source == "torchvision":
        return read_torch(path)
    if source == "detectron2":
        return read_detectron2(path)
    if source == "keras":
        return keras_applications.read_tensors(path)
    return read_matterport(path)


def read_detectron2(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a file of Detectron2's model zoo (.pkl), one that it saved itself (.pth), or one of Caffe2's.

    Relied on, of the format: a .pkl of the zoo is a pickle {"model": {name: array}, "__author__": ...,
    "matching_heuristics": True}; the ImageNet files under ImageNetPretrained/MSRA and /FAIR were pickled by Python 2
    and are {name: array} without more, in Caffe2's names, in which an underscore stands for today's point.

    Raises:
        WeightsError: as `read_tensors`.
    """
    path = checked_file(path)
    with open(path, "rb") as file:
        start = file.read(len(ZIP))
        file.seek(0)
        found = None if start == ZIP else unpickle(file, path)
    # What torch.save wrote before it made zips starts with a pickle, too.
    return read_torch(path) if start == ZIP or found == MAGIC else tensors_in(found, path)


def _check_kind(path: Path, source: str) -> None:
    """An h5 file is no pickle and a zip of torch no h5: told as such, whatever the file is called."""
    with open(path, "rb") as file:
        start = file.read(4)
    wants_h5 = source in ("keras", "matterport")
    if (start == HDF5) != wants_h5 and not (source == "keras" and path.suffix == ".npz"):
        kind = "an .h5 file" if start == HDF5 else "no .h5 file"
        raise WeightsError(
            f"{path}: is {kind}, but weights of {source} come as {' or '.join(SUFFIXES[source])}; name the right source"
        )
