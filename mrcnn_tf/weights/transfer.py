"""Weights from one model to another of other classes or keypoints: what both have is taken, the rest starts anew.

Shape letters: K classes, F features, C channels.

The layers that depend on the classes keep them last: `box_classes` [F, K + 1] with the background first, `box_deltas`
[F, 4 K] with four for each class, `mask_logits` [1, 1, C, K]; each with a bias of that length.
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
MAY_DIFFER = ("num_classes", "branches", "keypoints")


def transfer(source: Any, target: Any, class_map: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Sets the weights of `target` to those of `source`, as far as the two models have the same layers.

    With another number of classes the layers that depend on them stay as `target` drew them, save the rows of the
    classes in `class_map`; so do the last layer of the keypoint branch with another number of keypoints, and all
    layers of a branch that `source` has not. These are named in one warning and marked (see `mrcnn_tf.untrained`).

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
        if name not in MAY_DIFFER and None not in (old, new)  # a branch that one of them has not
    ]
    if wrong:
        raise WeightsError(f"the weights do not fit the model: {'; '.join(wrong)}")
    pairs = None if class_map is None else class_rows(then.class_names, now.class_names, class_map)
    if pairs is None and then.num_classes == now.num_classes:
        pairs = [(place, place) for place in range(now.num_classes)]
    values = {weight.path: weight for weight in source.weights}
    anew: set[str] = set()
    for weight in target.weights:
        layer = weight.path.split("/")[0]
        old = values.get(weight.path)
        same = old is not None and tuple(old.shape) == tuple(weight.shape)
        if old is None or layer in KEYPOINT_LAYERS and not same:
            anew.add(layer)
        elif layer in CLASS_LAYERS:
            weight.assign(_with_rows(layer, weight.numpy(), old.numpy(), pairs or []))
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


def _with_rows(layer: str, new: np.ndarray, old: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """`new` [..., outputs] with the outputs of the classes in `pairs`, and of the background, taken from `old`."""
    width = 4 if layer == "box_deltas" else 1
    first = 1 if layer == "box_classes" else 0
    value = new.copy()
    if pairs:
        value[..., :first] = old[..., :first]
    for ours, theirs in pairs:
        start, begin = first + ours * width, first + theirs * width
        value[..., start : start + width] = old[..., begin : begin + width]
    return value


def layers_to_start_anew(then: Config, now: Config, model: Any) -> list[str]:
    """The layers of `model`, of the configuration `now`, that weights of `then` do not fit for their classes' sake."""
    layers = CLASS_LAYERS if then.num_classes != now.num_classes else ()
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
