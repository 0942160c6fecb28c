"""Weights from one model to another of other classes or keypoints: what both have is taken, the rest starts anew.

Shape letters: K classes, F features, C channels, M mask side.

The layers that depend on the classes keep them last: `box_classes` [F, K + 1] with the background first, `box_deltas`
[F, 4 K] with four for each class, `mask_logits` [1, 1, C, K]; each with a bias of that length. The paper's other mask
branches: with a softmax the background comes first there too; a perceptron's has [F, M M K]; one mask for all classes
does not depend on them.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mrcnn_tf import untrained
from mrcnn_tf.config import Config
from mrcnn_tf.weights import compare
from mrcnn_tf.weights.report import WeightsError

logger = logging.getLogger("mrcnn_tf")

CLASS_LAYERS = ("box_classes", "box_deltas", "mask_logits")
KEYPOINT_LAYERS = ("keypoint_deconv",)
COUNTS = ("num_classes", "branches", "keypoints")
BRANCHES = {"mask_head": "mask", "keypoint_head": "keypoints"}  # by section of the configuration


def transfer(source: Any, target: Any, class_map: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Sets the weights of `target` to those of `source`, as far as the two models have the same layers.

    As many classes are taken to be the same ones in the same order; a warning tells of other names. With another number
    of classes the layers that depend on them stay as `target` drew them, save the rows of the classes in `class_map`;
    so do the last layer of the keypoint branch with another number of keypoints, and all layers of a branch that
    `source` has not. These are named in one warning and marked (see `mrcnn_tf.untrained`).

    Args:
        source: a `MaskRCNN`.
        target: another one, freshly drawn.
        class_map: {class of target: class of source} by their names; a class that is not in it starts anew.

    Returns:
        The layers that started anew, or some classes of which did.

    Raises:
        WeightsError: the models differ in more than that, in which values; or `class_map` has an unknown name.
    """
    then, now = source.config, target.config
    wrong = [
        f"{name} is {old!r} there, {new!r} here"
        for name, old, new in compare.shapes(then, now)
        if name not in COUNTS and not _is_of_one_only(name, then, now)
    ]
    if wrong:
        raise WeightsError(f"the weights do not fit the model: {'; '.join(wrong)}")
    pairs = None if class_map is None else class_rows(then.class_names, now.class_names, class_map)
    if pairs is None and then.num_classes == now.num_classes:
        pairs = [(place, place) for place in range(now.num_classes)]
        if then.class_names and now.class_names and then.class_names != now.class_names:
            old, new = (
                ", ".join(names[:8]) + ", ..." * (len(names) > 8) for names in (then.class_names, now.class_names)
            )
            logger.warning("the classes are %s, but those of the weights are %s: the same ones by place", new, old)
    values = {weight.path: weight for weight in source.weights}
    anew: set[str] = set()
    for weight in target.weights:
        layer = weight.path.split("/")[0]
        old = values.get(weight.path)
        same = old is not None and tuple(old.shape) == tuple(weight.shape)
        if old is None or layer in KEYPOINT_LAYERS and not same:
            anew.add(layer)
        elif layer in class_layers(now):
            outputs = (_outputs(layer, then), _outputs(layer, now))
            weight.assign(_with_rows(layer, weight.numpy(), old.numpy(), outputs, pairs or []))
            if len(pairs or []) < now.num_classes:
                anew.add(layer)
        elif same:
            weight.assign(old)
        else:
            raise WeightsError(f"{weight.path} has {tuple(old.shape)} there, {tuple(weight.shape)} here")
    untrained.mark(target, {*anew, *getattr(source, "anew_layers", ())})
    warn_anew(then, now, target, [name for name in target.anew_layers if name in anew], pairs or [])
    return target.anew_layers


def class_rows(source: Sequence[str], target: Sequence[str], class_map: Mapping[str, str]) -> list[tuple[int, int]]:
    """(place in `target`, place in `source`) of each pair of classes in `class_map`, counted from 0.

    Args:
        source, target: the classes' names, without the background.
        class_map: {class of target: class of source}.

    Raises:
        WeightsError: the names of one of them are not known, or a name is none of them.
    """
    for names, whose in ((source, "the weights"), (target, "the model (class_names)")):
        if not names:
            raise WeightsError(f"class_map goes by names, but the class names of {whose} are not known")
    return [
        (_place(ours, target, "the model"), _place(theirs, source, "the weights")) for ours, theirs in class_map.items()
    ]


def _place(name: str, names: Sequence[str], whose: str) -> int:
    if name in names:
        return list(names).index(name)
    folded = {known.lower(): known for known in names}
    close = [folded[known] for known in difflib.get_close_matches(str(name).lower(), folded, n=1)]
    shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {shown}"
    raise WeightsError(f"class_map: '{name}' is no class of {whose}; {hint}")


def class_layers(config: Config) -> tuple[str, ...]:
    """The layers that depend on the classes."""
    return CLASS_LAYERS[:2] if config.mask_head.class_agnostic else CLASS_LAYERS


def _is_of_one_only(name: str, then: Config, now: Config) -> bool:
    """Whether a value is of a branch that only one of two networks has."""
    branch = BRANCHES.get(name.split(".")[0])
    return branch is not None and not (branch in then.branches and branch in now.branches)


def _outputs(layer: str, config: Config) -> tuple[int, int]:
    """How many outputs of a layer the background has, which are the first, and how many all classes and it have."""
    if layer == "box_deltas":
        return 0, 4 * config.num_classes
    background = int(layer == "box_classes" or config.mask_head.activation == "softmax")
    return background, background + config.num_classes


def _with_rows(
    layer: str,
    new: np.ndarray,
    old: np.ndarray,
    outputs: tuple[tuple[int, int], tuple[int, int]],
    pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """`new` with the outputs of the classes in `pairs`, and of the background, taken from `old`.

    `outputs` are those of the layer in the old network and the new; where there are more, they repeat (a perceptron's
    for each pixel).
    """
    if not pairs:
        return new
    width = 4 if layer == "box_deltas" else 1
    (first, count), (_, new_count) = outputs
    value = new.reshape(*new.shape[:-1], -1, new_count).copy()
    theirs = old.reshape(*old.shape[:-1], -1, count)
    value[..., :first] = theirs[..., :first]
    for to, origin in pairs:
        start, begin = first + to * width, first + origin * width
        value[..., start : start + width] = theirs[..., begin : begin + width]
    return value.reshape(new.shape)


def layers_to_start_anew(then: Config, now: Config, model: Any) -> list[str]:
    """The layers of `model`, of the configuration `now`, that weights of `then` do not fit for their classes' sake."""
    layers = class_layers(now) if then.num_classes != now.num_classes else ()
    if len(then.keypoint_head.names) != len(now.keypoint_head.names):
        layers = (*layers, *KEYPOINT_LAYERS)
    return [layer for layer in layers if layer in untrained.layer_names(model)]


def warn_anew(
    then: Config, now: Config, target: Any, anew: Sequence[str], pairs: Sequence[tuple[int, int]] = ()
) -> None:
    """Logs one warning that names all layers of `target` that started anew, and why.

    Args:
        then, now: the configuration of the weights, and that of `target`.
        target: the model.
        anew: the layers.
        pairs: the classes that were taken over, as `class_rows` gives them.
    """
    if not anew:
        return
    reasons = []
    taken = {ours for ours, _ in pairs}
    rest = [name for place, name in enumerate(now.class_names) if place not in taken]
    if any(layer in CLASS_LAYERS for layer in anew) and taken and rest:
        shown = ", ".join(rest[:10]) + ", ..." * (len(rest) > 10)
        reasons.append(f"of the {now.num_classes} classes {len(taken)} are taken over, {shown} are new")
    elif then.num_classes != now.num_classes:
        reasons.append(f"the weights are of {then.num_classes} classes, the model has {now.num_classes}")
    keypoints = [len(config.keypoint_head.names) for config in (then, now)]
    if any(layer in KEYPOINT_LAYERS for layer in anew) and "keypoints" in then.branches:
        reasons.append(f"the weights are of {keypoints[0]} keypoints, the model has {keypoints[1]}")
    branches = [branch for branch in now.branches if branch not in then.branches]
    if branches:
        reasons.append(f"the weights have no branch for {' and '.join(branches)}")
    logger.warning(
        "%s start anew (%s): train the model before it is used", untrained.listed(anew, target), "; ".join(reasons)
    )
