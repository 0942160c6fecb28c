"""What a row of the paper's tables is trained on, with what, and from which weights: full size or proxy."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cli
import _proxy
import keras
import numpy as np
from _paper_tables import Row, Table

import mrcnn_tf
from mrcnn_tf.data.cityscapes import COCO_CLASS_MAP

START = "start.weights.h5"


@dataclass
class Job:
    """One training.

    Attributes:
        config: what was asked for; `start` may follow the conventions of the weights.
        train_set, val_set: see `mrcnn_tf.train`.
        data: the data in words.
        weights: the weights at the start, in words.
        start: folder of the training to (configuration, arguments of `mrcnn_tf.train`).
        eval_batch: images at once in the evaluation.
    """

    config: mrcnn_tf.Config
    train_set: mrcnn_tf.Dataset
    val_set: mrcnn_tf.Dataset
    data: str
    weights: str
    start: Callable[[Path], tuple[mrcnn_tf.Config, dict[str, Any]]]
    eval_batch: int = 1

    def identity(self) -> dict:
        """What a stored result has to agree with, ready for json."""
        return {
            "config": self.config.to_dict(),
            "data": self.data,
            "weights": self.weights,
            "train": _images_of(self.train_set),
            "val": _images_of(self.val_set),
        }


def step_identity(arguments: argparse.Namespace) -> dict:
    """What decides how many images a step has, where it is not the preset alone; to be part of the identity."""
    devices = None if arguments.batch_size else arguments.devices
    named = {"batch_size": arguments.batch_size, "devices": devices}
    return {name: value for name, value in named.items() if value is not None}


def given_identity(table: Table, checkpoint: str, arguments: argparse.Namespace, overrides: dict[str, Any]) -> dict:
    """What a stored result of a given model has to agree with, ready for json."""
    val_set, data = validation(table, arguments)
    place = "/".join(Path(checkpoint).resolve().parts[-3:])  # most models are called model.keras
    return {"checkpoint": place, "overrides": overrides, "data": data, "val": _images_of(val_set)}


def _images_of(dataset: mrcnn_tf.Dataset) -> list[int]:
    return [len(dataset), zlib.crc32(np.asarray(dataset.image_ids).tobytes())]


def make_job(table: Table, row: Row, seed: int, arguments: argparse.Namespace, overrides: dict[str, Any]) -> Job:
    """The training of a row with a seed.

    Raises:
        UsageError: data that was not named.
        DataError, ConfigError, WeightsError: see `mrcnn_tf`.
    """
    if arguments.proxy:
        return _proxy_job(table, row, seed, arguments, overrides)
    train_set, val_set, data = _datasets(table, arguments)
    config = mrcnn_tf.preset(row.preset).replace(class_names=(), num_classes=len(train_set.class_names))
    config = _scheduled(config.replace(class_names=train_set.class_names), seed, arguments.steps).replace(**overrides)
    weights, start = _start(row, config, arguments, overrides)
    return Job(config, train_set, val_set, data, weights, start)


def _scheduled(config: mrcnn_tf.Config, seed: int, steps: int | None) -> mrcnn_tf.Config:
    config = config.replace(training__seed=seed)
    return config.with_steps(steps) if steps else config


# === Proxies ===

_PROXY_DATA = {
    "instances": "drawn shapes of three classes",
    "persons": "drawn kites with four keypoints",
    "outlines": "drawn outlines, no two alike",
    "cityscapes": "wide images of drawn shapes of three classes",
}


def _proxy_job(table: Table, row: Row, seed: int, arguments: argparse.Namespace, overrides: dict[str, Any]) -> Job:
    kind = arguments.proxy_data or table.data
    _, val_set = _proxy.data(kind, 1, seed)
    config = _proxy.proxy_config(mrcnn_tf.preset(row.preset), val_set)
    from_coco = row.weights == "coco"
    default = _proxy.STEPS_FROM_COCO if from_coco else None
    config = _scheduled(config, seed, arguments.steps or default).replace(**overrides)
    batch = config.training.images_per_device
    train_set, _ = _proxy.data(kind, config.training.steps * batch, seed)  # each is seen once, but of Cityscapes'
    height, width = val_set.sizes[0]
    new = "new training images" if len(train_set) >= config.training.steps * batch else f"of {len(train_set)} images"
    data = (
        f"{_PROXY_DATA[kind]}, {height} x {width} pixels, seen at {config.input.shorter_edge[-1]}; {batch} {new} a "
        f"step, of seed {_proxy.TRAINING_SEED} + the row's; {len(val_set)} images held out, of seed "
        f"{_proxy.HELD_OUT_SEED}"
    )
    name, steps, single = config.backbone.name, arguments.backbone_steps, config.backbone.features != "fpn"

    def start(folder: Path) -> tuple[mrcnn_tf.Config, dict[str, Any]]:
        if not (folder / START).exists():
            make = _proxy.start_from_coco if from_coco else _proxy.start
            make(config, Path(arguments.run_dir) / "backbones", steps, folder / START)
        return config, {"initial_weights": folder / START}

    weights = f"backbone and RPN of a {name}-FPN trained for {steps} steps on shapes of seed {_proxy.BACKBONE_SEED}"
    if from_coco:
        weights = f"a whole model of this form, trained on drawn shapes from the {weights}"
    if single:
        weights += f", the RPN of the single map for {steps // 2} more, alone with the backbone"
    return Job(config, train_set, val_set, data, weights, start, eval_batch=8)


# === Full size ===


def _start(row: Row, config: mrcnn_tf.Config, arguments: argparse.Namespace, overrides: dict[str, Any]) -> tuple:
    """The weights at the start in words, and the function that provides them."""
    given = dict(_pair(text, "--backbone-weights") for text in arguments.backbone_weights)
    if row.weights == "imagenet" and config.backbone.name in given:
        file = given[config.backbone.name]
        return f"ImageNet, {Path(file).name}", lambda folder: (config, {"backbone_weights": file})
    public = arguments.coco_weights if row.weights == "coco" else "imagenet"
    class_map = {"class_map": COCO_CLASS_MAP} if row.weights == "coco" else {}

    def start(folder: Path) -> tuple[mrcnn_tf.Config, dict[str, Any]]:
        path = folder / START
        if path.exists():
            followed = mrcnn_tf.load(path).config
        else:
            names = config.class_names
            keras.utils.set_random_seed(config.training.seed)  # what the weights lack is the seed's, as in `train`
            model = mrcnn_tf.load(row.preset, weights=public, class_names=names, **class_map, **overrides)
            folder.mkdir(parents=True, exist_ok=True)
            mrcnn_tf.weights.save_weights(model, path)
            followed = model.config
        # The network follows the weights' conventions; the schedule is the one asked for.
        wanted = {"training": dataclasses.asdict(config.training), "detections": dataclasses.asdict(config.detections)}
        return followed.replace(**wanted), {"initial_weights": path}

    return f"{Path(public).name} (published)", start


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise _cli.UsageError(f"{option} {text}: should be NAME=FILE")
    return name, value


def checkpoint_of(table: Table, row: Row, arguments: argparse.Namespace) -> str | None:
    """The trained model that was given for a row."""
    given = dict(_pair(text, "--checkpoint") for text in arguments.checkpoint)
    return given.get(f"{table.name}/{row.name}") or given.get(row.name)


def validation(
    table: Table, arguments: argparse.Namespace, names: tuple[str, ...] = ()
) -> tuple[mrcnn_tf.Dataset, str]:
    """The images that a model is measured on, and what they are; `names` are the classes to take, () all there are."""
    if arguments.proxy:
        kind = arguments.proxy_data or table.data
        val_set = _proxy.data(kind, 1, 0)[1]
        return val_set, f"{len(val_set)} images of {_PROXY_DATA[kind]}, seed {_proxy.HELD_OUT_SEED}"
    if table.data == "cityscapes":
        dataset = _cityscapes(_needed(arguments, "cityscapes"), "val", arguments.skip_bad)
    else:
        names = ("person",) if table.data == "persons" else names or None
        dataset = _coco(*_needed(arguments, "val", "val_images"), arguments.skip_bad, names)
    return dataset, f"{len(dataset)} validation images"


def _datasets(table: Table, arguments: argparse.Namespace) -> tuple[mrcnn_tf.Dataset, mrcnn_tf.Dataset, str]:
    if table.data == "cityscapes":
        root = _needed(arguments, "cityscapes")
        train_set, name = _cityscapes(root, "train", arguments.skip_bad), "Cityscapes, fine annotations"
    else:
        files = (*_needed(arguments, "train", "train_images"), arguments.skip_bad)
        persons = table.data == "persons"
        train_set = _persons(*files) if persons else _coco(*files, None)
        name = Path(files[0]).stem + (", persons with keypoints" if persons else "")
    val_set, _ = validation(table, arguments, train_set.class_names)
    return train_set, val_set, f"{name}: {len(train_set)} images; measured on {len(val_set)}"


def _needed(arguments: argparse.Namespace, *names: str) -> Any:
    values = [getattr(arguments, name) for name in names]
    if None in values:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in names)
        raise _cli.UsageError(f"this table needs {options} (or --proxy, on drawn images)")
    return values[0] if len(values) == 1 else values


@functools.cache
def _coco(path: str, images: str, skip_bad: bool, names: tuple[str, ...] | None) -> mrcnn_tf.Dataset:
    return _cli.read_dataset(path, images, skip_bad, names)


@functools.cache
def _cityscapes(root: str, split: str, skip_bad: bool) -> mrcnn_tf.Dataset:
    return _cli.read_cityscapes(root, split, skip_bad)


@functools.cache
def _persons(path: str, images: str, skip_bad: bool) -> mrcnn_tf.Dataset:
    """The images with labelled keypoints: section 5 trains all rows of table 5 on the same ones."""
    whole = _coco(path, images, skip_bad, ("person",))
    if not whole.keypoint_names:
        raise _cli.UsageError(f"{path}: has no keypoints; tables 4 to 6 want COCO's person_keypoints files")
    return whole.subset(whole.keypoint_counts() > 0)
