"""Sets the weights of a model from the tensors of another implementation, in that one's own names and layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import detectron2, torchvision
from mrcnn_tf.weights.report import WeightsError, WeightsReport
from mrcnn_tf.weights.torch_layout import from_torch, torch_shape

SOURCES = {"torchvision": torchvision, "detectron2": detectron2}
# What the weights mean depends on these values; another one gives answers, but poor ones.
CONVENTIONS = (
    "input.channel_order",
    "input.mean",
    "backbone.stride_in",
    "anchors.ratios",
    "anchors.rounded",
    "anchors.stride_rule",
    "roi.half_pixel",
    "box_head.delta_weights",
)
CLASS_LAYERS = ("box_classes", "box_deltas", "mask_logits")


@dataclass(frozen=True)
class _Step:
    """One weight of the model and the tensor that it is made of."""

    variable: Any
    tensor: str
    rows: np.ndarray | None
    outputs: int | None


def assign(model: Any, tensors: Mapping[str, np.ndarray], source: str) -> WeightsReport:
    """Sets the weights of `model` to those of a model of another implementation.

    Nothing is set unless every shape fits. A layer of which a tensor is missing stays as it was, all of it.

    Args:
        model: a `MaskRCNN`; the preset named like the source's model has its conventions.
        tensors: {name: array} in the source's own names and layout.
        source: "torchvision" or "detectron2".

    Returns:
        What became of every tensor and of every weight; it has been logged, loudly if anything is not as it should be.

    Raises:
        WeightsError: an unknown source, tensors of another network (less than half of what the model needs is
            there), or shapes that do not fit: names and shapes of both.
    """
    if source not in SOURCES:
        raise WeightsError(f"unknown source '{source}'; known are {', '.join(SOURCES)}")
    names = SOURCES[source]
    own_names = {names.modern_name(name): name for name in tensors}
    warnings = _broken_conventions(model.config, names.PRESET) + names.doubts(tensors, model.config)
    report = WeightsReport(source, warnings=warnings)
    steps = _plan(model, names, own_names, report)
    if 2 * len(steps) < len(model.weights):
        found = f"only {len(steps)} of the {len(model.weights)} that the model needs"
        raise WeightsError(f"these are no tensors of a Mask R-CNN with FPN of {source}: they have {found}")
    _check_shapes(steps, tensors, model.config)
    used = set()
    for step in steps:
        path, pool = step.variable.path, model.config.box_head.pool
        step.variable.assign(from_torch(path, tensors[step.tensor], pool, step.rows))
        report.loaded.append(path)
        used.add(step.tensor)
    _list_the_rest(steps, used, tensors, names, report)
    report.log()
    return report


def _plan(model: Any, names: Any, own_names: dict[str, str], report: WeightsReport) -> list[_Step]:
    """The steps for all layers that nothing is missing of; the others are listed in the report."""
    config = model.config
    layers: dict[str, list[_Step]] = {}
    for variable in model.weights:
        layer = variable.path.split("/")[0]
        steps = layers.setdefault(layer, [])
        name = names.tensor_name(variable.path)
        if name not in own_names:
            report.missing.append(f"{name or 'no tensor'} (for {variable.path})")
            report.left += [layer] * (layer not in report.left)
            continue
        rows, outputs = names.rows(variable.path, config.num_classes, config.anchors.per_position) or (None, None)
        steps.append(_Step(variable, own_names[name], rows, outputs))
    return [step for layer, steps in layers.items() if layer not in report.left for step in steps]


def _check_shapes(steps: list[_Step], tensors: Mapping[str, np.ndarray], config: Config) -> None:
    wrong, hint = [], ""
    for step in steps:
        path, shape = step.variable.path, tuple(step.variable.shape)
        needed = torch_shape(path, shape, config.box_head.pool, step.outputs)
        found = tuple(np.shape(tensors[step.tensor]))
        if found != needed:
            wrong.append(f"{step.tensor} has the shape {found}, but {path} {shape} needs {needed}")
            if path.split("/")[0] in CLASS_LAYERS and found[1:] == needed[1:]:
                hint = f"; is it of a model of another number of classes (num_classes is {config.num_classes})?"
    if wrong:
        raise WeightsError(f"the weights do not fit the model{hint}\n  " + "\n  ".join(wrong))


def _list_the_rest(steps: list[_Step], used: set[str], tensors: Mapping, names: Any, report: WeightsReport) -> None:
    """What of the tensors was left out on purpose, and what nothing took."""
    for name in tensors:
        if name not in used:
            (report.left_out if names.LEFT_OUT.fullmatch(name) else report.unused).append(name)
    for step in steps:
        left = () if step.rows is None else np.setdiff1d(np.arange(step.outputs), step.rows)
        if len(left):
            report.left_out.append(f"{step.tensor}[{left[0]}:{left[-1] + 1}] ({names.LEFT_ROWS})")
    if report.unused:
        report.warnings.append(f"{len(report.unused)} tensors are of no part of the model")


def _broken_conventions(config: Config, name: str) -> list[str]:
    """Where the model's configuration is not that of the source's own model."""
    right, broken = preset(name), []
    for dotted in CONVENTIONS:
        section, field = dotted.split(".")
        ours, theirs = (getattr(getattr(one, section), field) for one in (config, right))
        # Means are published with and without decimals.
        same = np.allclose(ours, theirs, atol=0.5) if dotted == "input.mean" and len(ours) == 3 else ours == theirs
        if not same:
            broken.append(f"{dotted} is {ours!r}, but these weights were trained with {theirs!r}")
    return broken
