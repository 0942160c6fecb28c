"""Weights of whole models, as `model.save_weights` and `model.save` write them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py

from mrcnn_tf.weights.report import WeightsError

CLASS_LAYER = "box_classes"  # its bias has one entry per class and one for the background


def load_weights(model, path: str | Path) -> None:
    """Sets all weights of `model` from a `.weights.h5` or `.keras` file of a model of the same form.

    Raises:
        WeightsError: no such file, it cannot be read, or it does not fit: which layers, and their shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    if not path.name.endswith((".weights.h5", ".keras")):
        raise WeightsError(f"{path}: weights of a whole model are read from .weights.h5 and .keras files")
    try:
        stored = _stored_shapes(path)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); the file may be cut short") from error
    _check_shapes(model, stored, path)
    try:
        model.load_weights(path)
    except ValueError as error:
        raise WeightsError(f"{path} does not fit the model: {error}") from error


def _stored_shapes(path: Path) -> dict[str, list[tuple[int, ...]]]:
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


def _check_shapes(model, stored: dict, path: Path) -> None:
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
