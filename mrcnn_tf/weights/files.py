"""Weights of whole models in files: the package's own `.weights.h5`, and what Keras writes.

The own format has one dataset for each weight under its path in the model ("stem/kernel",
"res2_block1_conv1/norm/gamma"), names that stay the same whatever order a model is built in, and attributes: `format`,
`format_version`, `config` (json), `class_names` (json), `package_version` and `anew_layers` (json; see
`mrcnn_tf.untrained`).
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from mrcnn_tf import untrained
from mrcnn_tf.atomic import write_atomically
from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.weights import compare
from mrcnn_tf.weights.report import WeightsError, reading

logger = logging.getLogger("mrcnn_tf")

FORMAT, FORMAT_VERSION = "mrcnn_tf", 1
ENDINGS = (".weights.h5", ".keras")
CLASS_LAYER = "box_classes"  # its bias has one entry per class and one for the background


@dataclass(frozen=True)
class Header:
    """What a file of the own format says of itself.

    Attributes:
        config: the configuration of the model, None where this version of the package cannot read it.
        problem: why it cannot.
        anew_layers: layers that had been started anew and not been trained.
        package_version: of the package that wrote it.
    """

    config: Config | None
    problem: str
    anew_layers: tuple[str, ...]
    package_version: str


def save_weights(model: Any, path: str | Path) -> None:
    """Writes the weights of a `MaskRCNN` to a `.weights.h5` file, which is whole or not there.

    Args:
        model: the model; what `load_weights` needs to tell what fits, its configuration, goes into the file too.
        path: the file, ending in `.weights.h5`; a file that is there already is replaced.

    Raises:
        WeightsError: another ending.
    """
    from mrcnn_tf import __version__

    path = Path(path)
    if not path.name.endswith(".weights.h5"):
        raise WeightsError(f"{path}: weights are saved under a name that ends in .weights.h5")

    def write(name: Path) -> None:
        # In memory first: where HDF5 itself meets a full disk, it may take the process with it.
        whole = io.BytesIO()
        with h5py.File(whole, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["package_version"] = __version__
            file.attrs["config"] = model.config.to_json()
            file.attrs["class_names"] = json.dumps(model.config.class_names)
            file.attrs["anew_layers"] = json.dumps(getattr(model, "anew_layers", ()))
            for weight in model.weights:
                file[weight.path] = weight.numpy()
        name.write_bytes(whole.getbuffer())

    write_atomically(path, write)


def load_weights(model: Any, path: str | Path) -> None:
    """Sets all weights of `model` from a `.weights.h5` or `.keras` file of a model of the same form.

    Raises:
        WeightsError: no such file, it cannot be read, it is of a newer format, or it does not fit: which values of
            the configuration differ, which layers, and their shapes.
    """
    path = Path(path)
    header = read_header(path)
    if header is not None:
        _load_own(model, path, header)
        return
    with reading(path):
        stored = _keras_shapes(path)
    _check_keras_shapes(model, stored, path)
    # Keras would load the optimiser as well: its momenta, and the step from which a schedule goes on.
    optimizer, model.optimizer = getattr(model, "optimizer", None), None
    try:
        with reading(path):
            _load_keras(model, path)
    finally:
        model.optimizer = optimizer
    untrained.mark(model, _keras_mark(path))


def _load_keras(model: Any, path: Path) -> None:
    try:
        model.load_weights(path)
    except ValueError as error:
        raise WeightsError(f"{path} does not fit the model: {error}") from error


def read_header(path: str | Path) -> Header | None:
    """What a weights file says of itself; None where Keras wrote it, which says nothing.

    Raises:
        WeightsError: no such file, another kind of file, it cannot be read, or it is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    if not path.name.endswith(ENDINGS):
        raise WeightsError(f"{path}: weights of a whole model are read from .weights.h5 and .keras files")
    if path.suffix == ".keras":
        return None
    with reading(path), h5py.File(path) as file:
        values = dict(file.attrs)
        if values.get("format") != FORMAT:
            return None
        version = int(values["format_version"])
        if version > FORMAT_VERSION:
            raise WeightsError(
                f"{path}: format {version}, written by mrcnn_tf {values.get('package_version', '')}, is newer than "
                f"this mrcnn_tf, which reads up to {FORMAT_VERSION}; update the package (pip install -U mrcnn_tf)"
            )
        config, problem = _read_config(values["config"])
        anew = tuple(json.loads(values["anew_layers"]))
        return Header(config, problem, anew, str(values["package_version"]))


def is_own(path: str | Path) -> bool:
    """Whether a file is one of the own format, of whatever version."""
    try:
        with h5py.File(path) as file:
            return file.attrs.get("format") == FORMAT
    except Exception:  # no .h5 file, or a damaged one
        return False


def _read_config(text: str) -> tuple[Config | None, str]:
    try:
        return Config.from_json(text), ""
    except ConfigError as error:
        return None, str(error)


# === The own format ===


def _load_own(model: Any, path: Path, header: Header) -> None:
    weights = {weight.path: weight for weight in model.weights}
    with reading(path), h5py.File(path) as file:
        stored = _own_shapes(file)
        _check_own(model, weights, stored, header, path)
        for name, weight in weights.items():
            weight.assign(file[name][()])
    _tell_other_conventions(getattr(model, "config", None), header.config, path)
    untrained.mark(model, header.anew_layers)


def _own_shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            shapes[name] = tuple(item.shape)

    file.visititems(visit)
    return shapes


def _check_own(model: Any, weights: dict, stored: dict, header: Header, path: Path) -> None:
    here = {name: tuple(weight.shape) for name, weight in weights.items()}
    if here == stored:
        return
    values, lines = [], []
    config = getattr(model, "config", None)
    if isinstance(config, Config) and header.config is not None:
        values = [
            f"{name} is {then!r} there, {now!r} here" for name, then, now in compare.shapes(header.config, config)
        ]
    elif header.config is None:
        values = [f"its configuration cannot be read ({header.problem})"]
    lines += _listed("the model has, but the file has not", sorted(here.keys() - stored.keys()))
    lines += _listed("the file has, but the model has not", sorted(stored.keys() - here.keys()))
    both = sorted(here.keys() & stored.keys())
    other = [f"{name} {stored[name]} there, {here[name]} here" for name in both if stored[name] != here[name]]
    lines += _listed("of another shape", other)
    first = ": " * bool(values) + "; ".join(values)  # on the first line, which is all that a command line shows
    raise WeightsError(f"{path}: the weights do not fit the model{first}\n  " + "\n  ".join(lines))


def _listed(title: str, names: list[str], most: int = 6) -> list[str]:
    if not names:
        return []
    more = f", ... and {len(names) - most} more" if len(names) > most else ""
    return [f"{title}: {', '.join(names[:most])}{more}"]


def _tell_other_conventions(config: Any, stored: Config | None, path: Path) -> None:
    """Logs what fits in shape but not in meaning."""
    if not isinstance(config, Config) or stored is None:
        return
    different = compare.conventions(stored, config)
    other = [f"{name} is {now!r}, but they were trained with {then!r}" for name, then, now in different]
    if config.class_names and stored.class_names and config.class_names != stored.class_names:
        other.append(f"the classes are {_few(config.class_names)}, but theirs are {_few(stored.class_names)}")
    if other:
        logger.warning("%s: the weights fit the model's shapes only:\n  %s", path, "\n  ".join(other))


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8)


# === What Keras writes ===


def _keras_shapes(path: Path) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of each layer's own variables, by the layer's name."""
    source: Path | io.BytesIO = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def visit(name, item):
        if name.startswith("layers/") and name.endswith("/vars") and len(item):
            layer = str(item.attrs.get("name", ""))
            shapes[layer] = [item[key].shape for key in sorted(item, key=int)]

    with h5py.File(source) as file:
        file.visititems(visit)
    return shapes


def _check_keras_shapes(model: Any, stored: dict, path: Path) -> None:
    wrong = []
    for layer in model.layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        # Layers that hold others have their variables in several groups; Keras checks those itself.
        if len(stored.get(layer.name, ())) == len(shapes) and stored.get(layer.name, shapes) != shapes:
            wrong.append(f"{layer.name} has {stored[layer.name]} there, {shapes} here")
    if not wrong:
        return
    hint = ""
    config = getattr(model, "config", None)
    if config is not None and CLASS_LAYER in stored:
        classes = stored[CLASS_LAYER][-1][0] - 1
        if classes != config.num_classes:
            hint = f": they are of a model of {classes} classes, this one has {config.num_classes}"
    raise WeightsError(f"{path}: the weights do not fit the model{hint}\n  " + "\n  ".join(wrong))


def _keras_mark(path: Path) -> tuple[str, ...]:
    """The layers that a `.keras` file's model had started anew."""
    if path.suffix != ".keras":
        return ()
    with reading(path), zipfile.ZipFile(path) as archive:
        return tuple(json.loads(archive.read("config.json"))["config"].get("anew_layers", ()))
