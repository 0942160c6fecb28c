"""A file of another implementation, and the network that its tensors are of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mrcnn_tf import untrained
from mrcnn_tf.config import Config
from mrcnn_tf.weights import compare, detectron2, torchvision, zoo
from mrcnn_tf.weights.assign import assign
from mrcnn_tf.weights.guess import BACKBONE_CONVENTIONS, guess
from mrcnn_tf.weights.keras_applications import read_npz
from mrcnn_tf.weights.report import WeightsError, reading
from mrcnn_tf.weights.sources import read_tensors

logger = logging.getLogger("mrcnn_tf")

ENDINGS = (".pth", ".pt", ".pkl", ".h5", ".npz")
_STATE_DICTIONARIES = {"torchvision": torchvision, "detectron2": detectron2}


@dataclass(frozen=True)
class PublicFile:
    """Tensors of a file, and the network they are of.

    Attributes:
        path: the file.
        source: whose names and layout they have.
        tensors: {name: array}.
        config: the network's configuration, with the source's conventions.
        is_backbone: whether it is a backbone alone; nothing else of `config` counts then.
    """

    path: Path
    source: str
    tensors: dict[str, np.ndarray]
    config: Config
    is_backbone: bool

    def fill(self, model: Any, skip: Sequence[str] = ()) -> None:
        """Sets `model` to the tensors, save the layers `skip`; what is left as drawn is marked as started anew."""
        report = assign(model, self.tensors, self.source, skip)
        loaded = {path.split("/")[0] for path in report.loaded}
        untrained.mark(model, [layer for layer in untrained.layer_names(model) if layer not in loaded])

    def followed_by(self, config: Config) -> Config:
        """`config` with the conventions that the weights were trained with; tells which values that changes."""
        names = BACKBONE_CONVENTIONS if self.is_backbone else compare.CONVENTIONS
        return following(config, self.config, names, self.path.name)


def following(config: Config, trained: Config, names: Any, what: str) -> Config:
    """`config` with the values called `names` of the configuration that weights were trained with."""
    followed = config.replace(**{name: compare.value(trained, name) for name in names})
    changed = [f"{name} is {theirs!r} for {ours!r}" for name, ours, theirs in compare.conventions(config, followed)]
    if changed:
        logger.info("the model follows the conventions of %s: %s", what, "; ".join(changed))
    return followed


def read_public(path: str | Path, preset_name: str = "") -> PublicFile:
    """The tensors of a public file, or of one in such a format.

    Args:
        path: a .pth, .pkl, .h5 or .npz file.
        preset_name: the preset it is read for, whose beginning says whose file it is where the file does not.

    Raises:
        WeightsError: no such file, another kind of file, one that cannot be read, or tensors of no known network.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    if path.suffix not in ENDINGS:
        raise WeightsError(f"{path}: is no weights file by its name; public ones end in {', '.join(ENDINGS)}")
    source = guess_source(path, preset_name)
    tensors = _read(path, source)
    try:
        config = guess(tensors, source).config()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    names = _STATE_DICTIONARIES.get(source)
    is_backbone = source == "keras" if names is None else names.is_backbone(tensors)
    return PublicFile(path, source, tensors, config, is_backbone)


def _read(path: Path, source: str) -> dict[str, np.ndarray]:
    if path.suffix != ".npz" or source == "keras":
        return read_tensors(path, source)
    return read_npz(path)  # any source's tensors, as someone else took them out of their file


def guess_source(path: Path, preset_name: str = "") -> str:
    """Whose file it is: by the table of public checkpoints, its kind, the preset it is read for, its tensors' names."""
    checkpoint = zoo.by_file(path)
    if checkpoint is not None:
        return checkpoint.source
    if path.suffix == ".pkl":
        return "detectron2"
    if path.suffix in (".h5", ".npz"):
        return zoo.source_of(_names_in(path))
    prefix = preset_name.split("/")[0]
    return prefix if prefix in _STATE_DICTIONARIES else zoo.source_of(read_tensors(path, "torchvision"))


def _names_in(path: Path) -> list[str]:
    if path.suffix == ".npz":
        return list(read_npz(path))
    names: list[str] = []
    with reading(path), h5py.File(path) as file:
        file.visit(lambda name: names.append(str(name)))  # bytes where they are no text
    return names
