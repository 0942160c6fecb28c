"""The tensors of Matterport's Mask_RCNN (Keras 2, ResNet-50 or 101 with FPN), by the names of its layers.

Shape letters: A anchors per cell, K classes, S side of the pooled feature, C F channels in and out.

That network computes what the model does under the preset "matterport/mask_rcnn_coco", with other weights:

- its convolutions before a batch norm have a bias, which goes into the norm's mean;
- the box and the mask branch have batch norms, whose stored statistics go into the kernels and biases before them;
- the box branch's first layer is an S x S convolution, and a dense layer here: the cells run row by row in both;
- an anchor has two scores, background and object, under a softmax; here one, their difference, under a sigmoid;
- the RPN's deltas are in units of (.1, .1, .2, .2), which goes into its last convolution. The box branch's are in the
  same units, which here are the weights of the box coder;
- the background has a box and a mask, which nothing uses: they are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import compare
from mrcnn_tf.weights.matterport_files import CLASS_LAYERS, count_classes, guess_depth, plain_name, read_matterport
from mrcnn_tf.weights.report import WeightsError, WeightsReport

__all__ = ["assign_matterport", "count_classes", "guess_depth", "read_matterport"]

PRESET = "matterport/mask_rcnn_coco"
NORM_EPSILON = 1e-3
DELTA_UNITS = np.array([0.1, 0.1, 0.2, 0.2])  # of (dy, dx, log dh, log dw), its RPN_BBOX_STD_DEV
# Beside those that all sources share; another value gives answers, but poor ones.
MORE_CONVENTIONS = ("input.std", "roi.canonical_size")
LEFT_OUT = re.compile(r"anchors/.*")  # some versions store the anchors, which the configuration has

_BLOCK = re.compile(r"res(?P<stage>[2-5])_block(?P<block>\d+)_(conv(?P<number>[123])|shortcut)")
_FPN = re.compile(r"fpn_(lateral|output)([2-5])")
_NORMED = re.compile(r"(box_fc|mask_conv)(\d+)")
_PLAIN = {
    "rpn/conv": "rpn_conv_shared",
    "rpn/objectness": "rpn_class_raw",
    "rpn/deltas": "rpn_bbox_pred",
    "box_classes": "mrcnn_class_logits",
    "box_deltas": "mrcnn_bbox_fc",
    "mask_deconv": "mrcnn_mask_deconv",
    "mask_logits": "mrcnn_mask",
}
_NORM_TENSORS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclass(frozen=True)
class _Part:
    """A convolution or dense layer of the model, its norm included, and the layers there that it is made of.

    `weights` are the model's by the names within the part, `shapes` those that the tensors there must have.
    """

    path: str
    weights: dict[str, Any]
    source: str
    norm: str
    shapes: dict[str, tuple[int, ...]]


def assign_matterport(model: Any, tensors: Mapping[str, np.ndarray], skip: Iterable[str] = ()) -> WeightsReport:
    """Sets the weights of `model` to those of a network of Matterport's Mask_RCNN.

    Nothing is set unless every shape fits. A layer of which a tensor is missing stays as it was, all of it.

    Args:
        model: a `MaskRCNN`; the preset "matterport/mask_rcnn_coco" has the conventions.
        tensors: {name: array} as `read_matterport` gives them, or with the longer names of the file.
        skip: layers of the model that stay as they were drawn, e.g. those that depend on the classes.

    Returns:
        What became of every tensor and of every weight; it has been logged, loudly if anything is not as it should be.

    Raises:
        WeightsError: a layer to skip that the model has not, tensors of another network (another depth, or less than
            half of what the model needs), or shapes that do not fit: names and shapes of both.
    """
    config, named = model.config, _named(tensors)
    report = WeightsReport("matterport", warnings=_broken_conventions(config))
    parts, skipped = _plan(model, named, set(skip), report)
    found = sum(len(part.weights) for part in parts)
    needed = sum(weight.path.split("/")[0] not in report.reinitialized for weight in model.weights)
    if 2 * found < needed:
        text = f"only {found} of the {needed} weights that the model needs can be made of them"
        raise WeightsError(f"these are no tensors of Matterport's Mask_RCNN: {text}")
    _check_depth(named, config)
    _check_shapes(parts, named, config)
    used = set()
    for part in parts:
        for name, value in _converted(part, named).items():
            part.weights[name].assign(np.asarray(value, np.float32))
            report.loaded.append(part.weights[name].path)
        used.update(part.shapes)
    _list_the_rest(parts, used, skipped, named, report)
    report.log()
    return report


def _named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by their plain names."""
    named: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        plain = plain_name(name)
        if plain in named:
            raise WeightsError(f"the tensor {plain} is there twice, the second time as {name}")
        named[plain] = value
    return named


def _broken_conventions(config: Config) -> list[str]:
    """Where the model's configuration is not that of Matterport's network."""
    right = preset(PRESET)
    broken = [pair for pair in compare.conventions(config, right) if pair[0] not in MORE_CONVENTIONS]
    more = [(name, compare.value(config, name), compare.value(right, name)) for name in MORE_CONVENTIONS]
    broken += [pair for pair in more if not _close(*pair[1:])]
    return [f"{name} is {ours!r}, but these weights were trained with {theirs!r}" for name, ours, theirs in broken]


def _close(ours: Any, theirs: Any) -> bool:
    """Equal but for what the side of the images changes."""
    return np.shape(ours) == np.shape(theirs) and np.allclose(ours, theirs, rtol=0.01)


# === What is made of what ===


def _plan(
    model: Any, named: Mapping[str, np.ndarray], skip: set[str], report: WeightsReport
) -> tuple[list[_Part], dict[str, str]]:
    """The parts of all layers that nothing is missing of; and {layer there: layer} of those to skip.

    What is missing, left and skipped is listed in the report.
    """
    parts, skipped = [], {}
    for path, weights in _weights_by_part(model, skip).items():
        layer, (source, norm) = path.split("/")[0], _source(path)
        if layer in skip:
            report.reinitialized += [layer] * (layer not in report.reinitialized)
            skipped.update({source: layer, norm: layer})
            continue
        part = _Part(path, weights, source, norm, _shapes(path, weights, source, norm, model.config))
        wanted = {"kernel", *(f"norm/{name}" for name in _NORM_TENSORS)} if _is_backbone(path) else {"kernel", "bias"}
        if source and set(weights) == wanted:
            missing = [f"{name} (for {path})" for name in part.shapes if name not in named]
        else:
            missing = [f"no tensor (for {weight.path})" for weight in weights.values()]
        report.missing += missing
        report.left += [layer] * (bool(missing) and layer not in report.left)
        parts.append(part)
    return [part for part in parts if part.path.split("/")[0] not in report.left], skipped


def _weights_by_part(model: Any, skip: set[str]) -> dict[str, dict[str, Any]]:
    """{part: {name within it: weight}} of all weights of the model; checks the layers to skip."""
    parts: dict[str, dict[str, Any]] = {}
    for weight in model.weights:
        layer, _, name = weight.path.rpartition("/")
        part = layer.removesuffix("/norm")
        parts.setdefault(part, {})[name if part == layer else f"norm/{name}"] = weight
    unknown = skip.difference(path.split("/")[0] for path in parts)
    if unknown:
        raise WeightsError(f"the model has no layer called {', '.join(sorted(unknown))}")
    return parts


def _is_backbone(path: str) -> bool:
    return path == "stem" or _BLOCK.fullmatch(path) is not None


def _source(path: str) -> tuple[str, str]:
    """The layer there for a part of the model, and the batch norm after it; empty names where there is none."""
    if path == "stem":
        return "conv1", "bn_conv1"
    match = _BLOCK.fullmatch(path)
    if match:
        place = f"{match['stage']}{chr(ord('a') + int(match['block']) - 1)}"
        branch = f"2{'abc'[int(match['number']) - 1]}" if match["number"] else "1"
        return f"res{place}_branch{branch}", f"bn{place}_branch{branch}"
    match = _FPN.fullmatch(path)
    if match:
        return f"fpn_c{match[2]}p{match[2]}" if match[1] == "lateral" else f"fpn_p{match[2]}", ""
    match = _NORMED.fullmatch(path)
    if match:
        layer = "mrcnn_class_" if match[1] == "box_fc" else "mrcnn_mask_"
        return f"{layer}conv{match[2]}", f"{layer}bn{match[2]}"
    return _PLAIN.get(path, ""), ""


def _shapes(path: str, own: dict, source: str, norm: str, config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors there must have, to fit the weights of the model."""
    if not source or "kernel" not in own:
        return {}
    kernel = tuple(own["kernel"].shape)
    outputs = kernel[2] if path == "mask_deconv" else kernel[-1]  # a deconvolution's kernel is [h, w, F, C]
    if path == "box_fc1":
        side = config.box_head.pool
        kernel = (side, side, kernel[0] // side**2, outputs)
    elif path.startswith("box_fc"):
        kernel = (1, 1, *kernel)
    elif path in ("rpn/objectness", "box_deltas", "mask_logits"):
        outputs += {"rpn/objectness": outputs, "box_deltas": 4, "mask_logits": 1}[path]
        kernel = (*kernel[:-1], outputs)
    shapes = {f"{source}/kernel": kernel, f"{source}/bias": (outputs,)}
    return {**shapes, **{f"{norm}/{name}": (outputs,) for name in _NORM_TENSORS if norm}}


def _converted(part: _Part, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of the weights of a part, by their names in it, made of the tensors there."""
    # Statistics in float64, as quotients and differences of them lose digits; a kernel of that size would be large.
    kernel = np.asarray(named[f"{part.source}/kernel"], np.float32)
    bias = np.asarray(named[f"{part.source}/bias"], np.float64)
    if part.norm:
        norm = {name: np.asarray(named[f"{part.norm}/{name}"], np.float64) for name in _NORM_TENSORS}
        if _is_backbone(part.path):
            norm["moving_mean"] = norm["moving_mean"] - bias
            return {"kernel": kernel, **{f"norm/{name}": value for name, value in norm.items()}}
        kernel, bias = fold_norm(kernel, bias, **norm)
        if part.path.startswith("box_fc"):
            kernel = kernel.reshape(-1, kernel.shape[-1])
    elif part.path == "rpn/objectness":
        kernel, bias = foreground_over_background(kernel), foreground_over_background(bias)
    elif part.path == "rpn/deltas":
        units = np.tile(DELTA_UNITS, len(bias) // 4)
        kernel, bias = kernel * units.astype(kernel.dtype), bias * units
    elif part.path in ("box_deltas", "mask_logits"):
        background = 4 if part.path == "box_deltas" else 1
        kernel, bias = kernel[..., background:], bias[background:]
    return {"kernel": kernel, "bias": bias}


def fold_norm(
    kernel: np.ndarray,
    bias: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    moving_mean: np.ndarray,
    moving_variance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [..., F] and bias [F] of one layer that is a convolution and the batch norm [F] after it."""
    scale = gamma / np.sqrt(moving_variance + NORM_EPSILON)
    return kernel * scale.astype(kernel.dtype), (bias - moving_mean) * scale + beta


def foreground_over_background(scores: np.ndarray) -> np.ndarray:
    """[..., A] of [..., 2 A]: the softmax over the two scores of an anchor is the sigmoid of their difference."""
    return scores[..., 1::2] - scores[..., 0::2]


# === Whether it fits, and what is left ===


def _check_depth(named: Mapping[str, np.ndarray], config: Config) -> None:
    depth = guess_depth(named) if any(name.startswith("res4") for name in named) else config.backbone.name
    if depth != config.backbone.name:
        raise WeightsError(f"the tensors are of a {depth}, but the model's backbone.name is {config.backbone.name}")


def _check_shapes(parts: list[_Part], named: Mapping[str, np.ndarray], config: Config) -> None:
    wrong, hint = [], ""
    for part in parts:
        for name, needed in part.shapes.items():
            found = tuple(np.shape(named[name]))
            if found != needed:
                wrong.append(f"{name} has the shape {found}, but {part.path} needs {needed}")
                hint = _class_hint(named, config) if part.source in CLASS_LAYERS else hint
    if wrong:
        raise WeightsError(f"the weights do not fit the model{hint}\n  " + "\n  ".join(wrong))


def _class_hint(named: Mapping[str, np.ndarray], config: Config) -> str:
    count = count_classes(named)
    if count == config.num_classes:
        return ""
    return f": they are of {count} classes and the background, its num_classes is {config.num_classes}"


def _list_the_rest(
    parts: list[_Part],
    used: set[str],
    skipped: Mapping[str, str],
    named: Mapping[str, np.ndarray],
    report: WeightsReport,
) -> None:
    """What of the tensors was left out on purpose, and what nothing took."""
    for name in named:
        layer = name.split("/")[0]
        if name not in used and layer in skipped:
            report.left_out.append(f"{name} ({skipped[layer]} stays as drawn)")
        elif name not in used:
            (report.left_out if LEFT_OUT.fullmatch(name) else report.unused).append(name)
    for part in parts:
        if part.path in ("box_deltas", "mask_logits"):
            last = 4 if part.path == "box_deltas" else 1
            report.left_out += [f"{name}[..., 0:{last}] (the background's, which nothing uses)" for name in part.shapes]
    if report.unused:
        report.warnings.append(f"{len(report.unused)} tensors are of no part of the model")
