"""Getting a model: of a training of one's own, or of a preset with weights that someone has published."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from mrcnn_tf import presets, untrained
from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.weights import compare, zoo
from mrcnn_tf.weights.download import fetch
from mrcnn_tf.weights.files import load_weights, read_header
from mrcnn_tf.weights.public import ENDINGS, PublicFile, following, read_public
from mrcnn_tf.weights.report import WeightsError
from mrcnn_tf.weights.transfer import layers_to_start_anew, transfer, warn_anew

BEST, LAST, CONFIG = "best.weights.h5", "model.keras", "config.json"
DATASETS = ("coco", "imagenet")


@dataclass(frozen=True)
class _Classes:
    """What the caller wants of the classes; None where nothing was said."""

    count: int | None
    names: tuple[str, ...] | None
    map: Mapping[str, str] | None

    @property
    def asked_for(self) -> bool:
        return not (self.count is None and self.names is None and self.map is None)

    def of(self, config: Config) -> Config:
        """`config` with these classes."""
        count, names = self.count, self.names
        if names is None and self.map is not None and count in (None, len(self.map)):
            names = tuple(self.map)
        if names is not None:
            return config.replace(num_classes=len(names) if count is None else count, class_names=names)
        if count is None or count == config.num_classes:
            return config
        return config.replace(num_classes=count, class_names=())


@dataclass(frozen=True)
class _Found:
    """Weights at hand.

    Attributes:
        config: the network that they are of; None where their file does not say it.
        fill: sets a model of that network to them.
        model: such a model, where there is one already.
        fill_but: sets a model to them, save the layers that are named.
    """

    config: Config | None
    fill: Callable[[MaskRCNN], None] | None = None
    model: MaskRCNN | None = None
    fill_but: Callable[[MaskRCNN, list[str]], None] | None = None


def load(
    name_or_path: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    **changes: Any,
) -> MaskRCNN:
    """A model with its weights, ready to evaluate, predict, export or train on.

    Other classes than those of the weights are what a model is fine-tuned for: the layers that depend on them start
    anew, are named in a warning, and the model warns when it predicts before it was trained.

    Args:
        name_or_path: the folder of a training (its `best.weights.h5` where there is one, else its `model.keras`), a
            `.keras` or `.weights.h5` file, a public file by its published name; or the name of a preset, the
            package's own ("mask_rcnn_r50_fpn") or one with the conventions of another implementation
            ("torchvision/maskrcnn_resnet50_fpn").
        weights: for a preset: "coco" (a whole model) or "imagenet" (the backbone), fetched once and kept; the name of
            a public checkpoint (`mrcnn_tf.weights.zoo.names()`); a file of any of these kinds, or a training's folder;
            None leaves all layers as they are drawn. The model follows the conventions of the weights.
        num_classes: the classes without the background, where it is not those of the weights.
        class_names: their names.
        class_map: {class of the model: class of the weights}: what the weights know of these classes is taken over.
        changes: as `Config.replace` takes them: `detections__score_threshold=0.5`, `input={"shorter_edge": 600}`.

    Raises:
        WeightsError: nothing to load there, a file that cannot be had, cannot be read or does not fit (what differs).
        ConfigError: a change that is unknown, or arguments that do not go together.
    """
    if class_map is not None and not isinstance(class_map, Mapping):
        raise ConfigError(f"class_map = {class_map!r}: should be a dictionary, {{class of the model: class there}}")
    names = (class_names,) if isinstance(class_names, str) else class_names  # not one class for each letter
    classes = _Classes(num_classes, None if names is None else tuple(names), class_map)
    if _is_preset(name_or_path, weights):
        return _of_preset(str(name_or_path), weights, classes, changes)
    if weights is not None:
        raise ConfigError(f"weights= is for a preset, which {os.fspath(name_or_path)!r} is not: {_presets()}")
    path = Path(name_or_path)
    if path.is_dir():
        path = _file_of_run(path)
    elif not path.exists():
        hint = f"give a training's folder, a .keras file, or a preset ({_presets()})"
        raise WeightsError(f"{path}: there is no such model; {hint}")
    checkpoint = zoo.by_file(path)
    if checkpoint is not None and checkpoint.preset:
        return _of_preset(checkpoint.preset, path, classes, changes)
    found = _own(path)
    if found is None or found.config is None:
        raise WeightsError(
            f"{path}: does not say what model it is of; a training's folder, a .keras file, weights beside a {CONFIG}, "
            f"or a preset with weights={path.name!r} is needed"
        )
    if found.model is not None and not changes and not classes.asked_for:
        return found.model
    return _filled(found, classes.of(found.config).replace(**changes), class_map)


# === Presets ===


def _is_preset(name: str | os.PathLike, weights: Any) -> bool:
    known = name in presets.names() or name in presets.checkpoints()
    return known and (weights is not None or not Path(name).exists())


def _presets() -> str:
    return f"{', '.join(presets.names())}, or one of mrcnn_tf.presets.checkpoints()"


def _of_preset(name: str, weights: Any, classes: _Classes, changes: dict[str, Any]) -> MaskRCNN:
    config = presets.preset(name)
    if weights is None:
        if classes.map is not None:
            raise ConfigError("class_map takes classes over from weights: there are none with weights=None")
        model = MaskRCNN(classes.of(config).replace(**changes))
        untrained.mark(model, untrained.layer_names(model))
        return model
    path = _weights_file(weights, name, config.replace(**changes))
    found = _own(path)
    if found is None:
        return _of_public(name, config, read_public(path, name), classes, changes)
    if found.config is None:  # what Keras wrote, alone: it has to fit as it is
        return _filled(_Found(classes.of(config).replace(**changes), found.fill), None, classes.map)
    config = following(config, found.config, compare.CONVENTIONS, path.name)
    config = _with_classes_of(found.config, config, name)
    return _filled(found, classes.of(config).replace(**changes), classes.map)


def _weights_file(weights: str | os.PathLike, name: str, config: Config) -> Path:
    """The file that `weights` means, fetched if it has to be."""
    path = Path(weights)
    if path.is_dir():
        return _file_of_run(path)
    if path.exists():
        return path
    checkpoint = zoo.find(name, config, str(weights)) if weights in DATASETS else zoo.by_name(str(weights))
    if checkpoint is None:
        raise WeightsError(
            f"{path}: there is no such weights file; weights are 'coco', 'imagenet', a file, or the name of a public "
            f"checkpoint{zoo.nearest(str(weights))}"
        )
    return fetch(checkpoint.url, checkpoint.file_name, checkpoint.check)


def _of_public(name: str, config: Config, file: PublicFile, classes: _Classes, changes: dict[str, Any]) -> MaskRCNN:
    config = file.followed_by(config)
    if file.is_backbone:
        if classes.map is not None:
            raise ConfigError(f"class_map takes classes over from weights, but {file.path.name} is a backbone without")
        return _filled(_Found(classes.of(config).replace(**changes), file.fill), None, None)
    config = _with_classes_of(file.config, config, name)
    found = _Found(file.config, file.fill, fill_but=file.fill)
    return _filled(found, classes.of(config).replace(**changes), classes.map)


def _with_classes_of(trained: Config, config: Config, name: str) -> Config:
    """`config` with the classes of the weights, unless the preset is for classes of its own (nuclei, say)."""
    if config.class_names and name in presets.names():
        return config
    return config.replace(num_classes=trained.num_classes, class_names=trained.class_names)


# === Files of the package's own ===


def _file_of_run(folder: Path) -> Path:
    for name in (BEST, LAST):
        if (folder / name).is_file():
            return folder / name
    if (folder / CONFIG).is_file():
        remedy = "its training has not come to an end: start it again with the same command"
    else:
        remedy = "it is not the folder of a training"
    raise WeightsError(f"{folder}: holds neither {BEST} nor {LAST}; {remedy}")


def _own(path: Path) -> _Found | None:
    """What a `.keras` or `.weights.h5` file of a MaskRCNN holds; None for any other file."""
    if path.suffix == ".keras":
        model = _load_keras(path)
        return _Found(model.config, model=model)
    if not path.name.endswith(".weights.h5"):
        if path.suffix not in ENDINGS:
            raise WeightsError(f"{path}: is no weights file by its name")
        return None
    header = read_header(path)
    if header is not None and header.config is None:
        raise WeightsError(f"{path}: its configuration is not of this version of mrcnn_tf ({header.problem})")
    config_path = path.with_name(CONFIG)
    if header is not None:
        config = header.config
    elif config_path.is_file():
        config = Config.from_file(config_path)
    else:
        config = None
    return _Found(config, lambda model: load_weights(model, path))


def _load_keras(path: Path) -> MaskRCNN:
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # what is wrong with a file comes in a dozen classes
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: cannot be loaded ({reason}); is the file whole, and of mrcnn_tf?") from error
    if not isinstance(model, MaskRCNN):
        raise WeightsError(f"{path}: is a {type(model).__name__}, not a MaskRCNN")
    return model


# === Both ===


def _filled(found: _Found, config: Config | None, class_map: Mapping[str, str] | None) -> MaskRCNN:
    """A model of `config` (None: of the weights' own) with the weights, as far as the two have the same classes."""
    config = found.config if config is None else config
    other = {name for name, *_ in compare.shapes(found.config, config) if not name.endswith(".norm")}
    if found.model is None and class_map is None and not other:
        model = MaskRCNN(config)
        found.fill(model)
        return model
    if found.fill_but is not None and class_map is None and other <= {"num_classes", "keypoints"}:
        model = MaskRCNN(config)  # without another one for the weights: the larger networks fill gigabytes
        anew = layers_to_start_anew(found.config, config, model)
        found.fill_but(model, anew)
        warn_anew(found.config, config, model, anew)
        return model
    source = found.model
    if source is None:
        source = MaskRCNN(found.config)
        found.fill(source)
    model = MaskRCNN(config)
    transfer(source, model, class_map)
    return model
