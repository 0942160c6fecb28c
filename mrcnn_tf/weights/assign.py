"""Sets the weights of a model from the tensors of another implementation, in that one's own names and layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_tf import untrained
from mrcnn_tf.config import Config
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import compare, detectron2, torchvision
from mrcnn_tf.weights.guess import BACKBONE_CONVENTIONS, backbone_name, guess
from mrcnn_tf.weights.keras_applications import assign_keras
from mrcnn_tf.weights.matterport import assign_matterport
from mrcnn_tf.weights.report import WeightsError, WeightsReport
from mrcnn_tf.weights.torch_layout import BLOCK, from_torch, torch_shape

SOURCES = ("torchvision", "detectron2", "matterport", "keras")
# Those that depend on what is to be found, and may be left as drawn where that is something else.
CLASS_LAYERS = ("box_classes", "box_deltas", "mask_logits", "keypoint_deconv")
_STATE_DICTIONARIES = {"torchvision": torchvision, "detectron2": detectron2}


@dataclass(frozen=True)
class _Step:
    """One weight of the model and the tensor, by the file's name, or the constant that it is made of."""

    variable: Any
    tensor: str | None
    rows: np.ndarray | None = None
    outputs: int | None = None
    constant: float = 0.0


@dataclass(frozen=True)
class _Job:
    """What one call of `assign` works on: `own` has {name in a detector of today: name in `tensors`}."""

    model: Any
    names: Any
    tensors: Mapping[str, np.ndarray]
    own: dict[str, str]
    source: str
    skip: frozenset[str]

    @property
    def config(self) -> Config:
        return self.model.config

    @property
    def is_backbone(self) -> bool:
        """Whether the tensors are of an ImageNet network."""
        return self.names.is_backbone(self.tensors)

    def tensor(self, path: str) -> str | None:
        """The tensor for a weight of the model, None where there is none."""
        return self.own.get(self.names.tensor_name(path, self.config))


def assign(model: Any, tensors: Mapping[str, np.ndarray], source: str, skip: Iterable[str] = ()) -> WeightsReport:
    """Sets the weights of `model` to those of a model of another implementation.

    Nothing is set unless every shape fits. A layer of which a tensor is missing stays as it was, all of it. Tensors of
    an ImageNet network set the backbone alone.

    Args:
        model: a `MaskRCNN`; the preset named like the source's model has its conventions.
        tensors: {name: array} in the source's own names and layout, as `weights.read_tensors` gives them.
        source: "torchvision", "detectron2", "matterport" or "keras".
        skip: layers of the model that stay as they were drawn, such as `CLASS_LAYERS` for other classes.

    Returns:
        What became of every tensor and of every weight; it has been logged, loudly if anything is not as it should be.

    Raises:
        WeightsError: an unknown source or layer, tensors of another network (another backbone, or less than half of
            what the model needs is there), or shapes that do not fit: names and shapes of both.
    """
    if source not in SOURCES:
        raise WeightsError(f"unknown source '{source}'; known are {', '.join(SOURCES)}")
    skip = frozenset([skip] if isinstance(skip, str) else skip)
    unknown = skip.difference(_layer(variable) for variable in model.weights)
    if unknown:
        raise WeightsError(f"the model has no layer called {', '.join(sorted(unknown))} that could be skipped")
    if source == "matterport":
        report = assign_matterport(model, tensors, skip)
    elif source == "keras":
        report = assign_keras(model, tensors, source, skip)
    else:
        names = _STATE_DICTIONARIES[source]
        report = _assign(_Job(model, names, tensors, _own_names(tensors, names, model.config), source, skip))
    untrained.update(model, report.loaded, report.left + report.reinitialized)
    return report


def _assign(job: _Job) -> WeightsReport:
    report = WeightsReport(job.source, warnings=_broken_conventions(job) + job.names.doubts(job.tensors, job.config))
    wanted = _wanted(job, report)
    steps = _plan(job, wanted, report)
    _check_network(job, steps, report)
    _check_shapes(job, steps)
    for step in steps:
        path = step.variable.path
        if step.tensor is None:
            step.variable.assign(np.full(step.variable.shape, step.constant, np.float32))
        else:
            step.variable.assign(from_torch(path, job.tensors[step.tensor], job.config.box_head.pool, step.rows))
        report.loaded.append(path)
    _list_the_rest(job, steps, report)
    report.log()
    return report


def _own_names(tensors: Mapping[str, np.ndarray], names: Any, config: Config) -> dict[str, str]:
    own: dict[str, str] = {}
    for name in tensors:
        modern = names.modern_name(name, config)
        if modern in own:
            raise WeightsError(f"two tensors are the same one: {own[modern]} and {name}")
        own[modern] = name
    return own


def _layer(variable: Any) -> str:
    return variable.path.split("/")[0]


# === What is made of what ===


def _wanted(job: _Job, report: WeightsReport) -> list[Any]:
    """The weights of the model that the tensors have to tell; the layers of the others are listed in the report."""
    wanted = []
    for variable in job.model.weights:
        layer = _layer(variable)
        if layer in job.skip:
            report.reinitialized += [layer] * (layer not in report.reinitialized)
        elif job.is_backbone and layer != "stem" and not BLOCK.fullmatch(layer):
            report.left += [layer] * (layer not in report.left)
        else:
            wanted.append(variable)
    return wanted


def _plan(job: _Job, wanted: list[Any], report: WeightsReport) -> list[_Step]:
    """The steps for all layers that nothing is missing of; the others are listed in the report."""
    steps, incomplete = [], set()
    other_norms = _other_norms(job, wanted)
    for variable in wanted:
        path = variable.path
        if path.rpartition("/")[0] in other_norms:
            continue
        name = job.names.tensor_name(path, job.config)
        constant = job.names.implied(name, job.own, job.config) if name else None
        if name in job.own:
            rows, outputs = job.names.rows(path, job.config) or (None, None)
            steps.append(_Step(variable, job.own[name], rows, outputs))
        elif constant is not None:
            steps.append(_Step(variable, None, constant=constant))
        else:
            report.missing.append(f"{name or 'no tensor'} (for {path})")
            incomplete.add(_layer(variable))
    if other_norms:
        report.left += sorted(other_norms)
        report.warnings.append("the model has group norms, these weights batch norms: only the kernels were taken")
    report.left += list(dict.fromkeys(_layer(variable) for variable in wanted if _layer(variable) in incomplete))
    return [step for step in steps if _layer(step.variable) not in incomplete]


def _other_norms(job: _Job, wanted: list[Any]) -> set[str]:
    """The group norms of the model for which there are batch norms: their scale and shift mean nothing without."""
    paths = {variable.path for variable in wanted}
    norms = {path.removesuffix("/gamma") for path in paths if path.endswith("/norm/gamma")}
    return {norm for norm in norms if f"{norm}/moving_mean" not in paths and job.tensor(f"{norm}/moving_mean")}


# === Whether it fits ===


def _check_network(job: _Job, steps: list[_Step], report: WeightsReport) -> None:
    """Raises `WeightsError` for tensors of another network: another backbone, or names that are not those needed."""
    found = sum(step.tensor is not None for step in steps)
    if found < len(report.missing) or not found:
        try:
            other = guess(job.tensors, job.source)
            hint = f"; they look like those of a {other.preset} ({other.config().backbone.name})"
        except WeightsError:
            hint = "; is it the right source?"
        raise WeightsError(
            f"these are no tensors of this network of {job.source}: of those that the model needs {found} are there, "
            f"{len(report.missing)} are not{hint}"
        )
    theirs = backbone_name({name: np.shape(job.tensors[file_name]) for name, file_name in job.own.items()})
    if theirs not in (None, job.config.backbone.name):
        raise WeightsError(
            f"the weights are of a {theirs}, but the model's backbone.name is {job.config.backbone.name}"
        )


def _check_shapes(job: _Job, steps: list[_Step]) -> None:
    wrong, of_classes = [], []
    for step in steps:
        if step.tensor is None:
            continue
        path, shape = step.variable.path, tuple(step.variable.shape)
        needed = torch_shape(path, shape, job.config.box_head.pool, step.outputs)
        found = tuple(np.shape(job.tensors[step.tensor]))
        if found != needed:
            wrong.append(f"{step.tensor} has the shape {found}, but {path} {shape} needs {needed}")
            if _layer(step.variable) in CLASS_LAYERS:
                of_classes.append(_layer(step.variable))
    if wrong:
        raise WeightsError(f"the weights do not fit the model{_class_hint(job, of_classes)}\n  " + "\n  ".join(wrong))


def _class_hint(job: _Job, layers: list[str]) -> str:
    """What to do about other classes or keypoints, if those are what does not fit."""
    texts, logits = [], job.own.get(job.names.CLASS_LOGITS)
    theirs = np.shape(job.tensors[logits])[0] - 1 if logits else None
    if layers and theirs not in (None, job.config.num_classes):
        texts.append(f"they are of a model of {theirs} classes (its num_classes is {job.config.num_classes})")
    deconvolution = job.tensor("keypoint_deconv/bias")
    if "keypoint_deconv" in layers and deconvolution:
        found, needed = len(job.tensors[deconvolution]), len(job.config.keypoint_head.names)
        texts.append(f"they are of {found} keypoints (its keypoint_head.names has {needed})")
    if not texts:
        return ""
    names = ", ".join(f"'{layer}'" for layer in dict.fromkeys(layers))
    return f": {', '.join(texts)}; skip=({names},) would leave these layers as drawn, to be trained"


def _broken_conventions(job: _Job) -> list[str]:
    """Where the model's configuration is not that of the source's own model."""
    right = preset(job.names.preset_name(job.config))
    broken = []
    for name, ours, theirs in compare.conventions(job.config, right):
        if job.is_backbone and name not in BACKBONE_CONVENTIONS:
            continue
        # Frozen norms of torchvision: see its `doubts`. Detectron2's ResNets are trained with both.
        if name == "backbone.norm_epsilon" and job.source == "torchvision" and ours == 0 and not job.is_backbone:
            continue
        other_std = preset("detectron2/mask_rcnn_X_101_32x8d_FPN").input.std
        if name == "input.std" and job.source == "detectron2" and ours == other_std:
            continue
        broken.append(f"{name} is {ours!r}, but these weights were trained with {theirs!r}")
    return broken


# === What is left ===


def _list_the_rest(job: _Job, steps: list[_Step], report: WeightsReport) -> None:
    """What of the tensors was left out on purpose, and what nothing took."""
    used = {step.tensor for step in steps}
    reasons = {}
    for variable in job.model.weights:
        if _layer(variable) in job.skip:
            reasons[job.tensor(variable.path)] = f"of {_layer(variable)}, which stays as drawn"
    for norm in _other_norms(job, job.model.weights):
        for weight in ("gamma", "beta", "moving_mean", "moving_variance"):
            reasons[job.tensor(f"{norm}/{weight}")] = "a batch norm's, where the model has a group norm"
    for modern, name in job.own.items():
        if name in used:
            continue
        found = (why for pattern, why in job.names.LEFT_OUT if pattern.fullmatch(modern))
        why = reasons.get(name) or next(found, None)
        if why:
            report.left_out.append(name)
            report.reasons[name] = why
        else:
            report.unused.append(name)
    for step in steps:
        left = () if step.rows is None else np.setdiff1d(np.arange(step.outputs), step.rows)
        if len(left):
            report.left_out.append(f"{step.tensor}[{left[0]}:{left[-1] + 1}] ({job.names.LEFT_ROWS})")
    if report.unused:
        report.warnings.append(f"{len(report.unused)} tensors are of no part of the model")
    implied = sum(step.tensor is None for step in steps)
    if implied:
        report.notes.append(f"{implied} weights are statistics that had been folded into the norms: mean 0, variance 1")
