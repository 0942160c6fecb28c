"""Getting a trained model back: from a training's folder, or from a single file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.weights.files import load_weights
from mrcnn_tf.weights.report import WeightsError

BEST, LAST, CONFIG = "best.weights.h5", "model.keras", "config.json"


def load_run(path: str | os.PathLike, **changes: Any) -> MaskRCNN:
    """The model of a training, ready to evaluate, predict, export or train on.

    Args:
        path: the folder of a training (its `best.weights.h5` where there is one, else its `model.keras`), a
            `.keras` file, or a `.weights.h5` file with a `config.json` beside it.
        changes: as `Config.replace` takes them, of values that no weight depends on:
            `detections__score_threshold=0.5`, `input__shorter_edge=600`.

    Raises:
        WeightsError: nothing to load there, or a file that cannot be read or does not fit.
        ConfigError: a change that is unknown, or that the weights do not fit any more.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_of_run(path)
    elif not path.exists():
        raise WeightsError(f"{path}: there is no such model; give a training's folder or a .keras file")
    if path.suffix == ".keras":
        model = _load_keras(path)
        return _changed(model, changes) if changes else model
    config_path = path.with_name(CONFIG)
    if path.suffix != ".h5" or not config_path.is_file():
        raise WeightsError(f"{path}: a training's folder, a .keras file or weights (.h5) beside a {CONFIG} is needed")
    model = MaskRCNN(Config.from_json(config_path.read_text(encoding="utf-8")).replace(**changes))
    load_weights(model, path)
    return model


def _file_of_run(folder: Path) -> Path:
    for name in (BEST, LAST):
        if (folder / name).is_file():
            return folder / name
    if (folder / CONFIG).is_file():
        remedy = "its training has not come to an end: start it again with the same command"
    else:
        remedy = "it is not the folder of a training"
    raise WeightsError(f"{folder}: holds neither {BEST} nor {LAST}; {remedy}")


def _load_keras(path: Path) -> MaskRCNN:
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # what is wrong with a file comes in a dozen classes
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: cannot be loaded ({reason}); is the file whole, and of mrcnn_tf?") from error
    if not isinstance(model, MaskRCNN):
        raise WeightsError(f"{path}: is a {type(model).__name__}, not a MaskRCNN")
    return model


def _changed(model: MaskRCNN, changes: dict[str, Any]) -> MaskRCNN:
    """The model with other settings and the same weights."""
    changed = MaskRCNN(model.config.replace(**changes))
    if [weight.shape for weight in changed.weights] != [weight.shape for weight in model.weights]:
        raise ConfigError(f"the weights do not fit any more after changing {', '.join(changes)}")
    changed.set_weights(model.get_weights())
    return changed
