"""Layers of a model that no weights were loaded for and that no training has seen: what they answer means nothing.

A model remembers their names as `anew_layers` until it is trained, and says so once when it predicts. So it does of the
parts that its training left out (`training.parts`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger("mrcnn_tf")

LISTED = 12  # names that a warning shows


def mark(model: Any, layers: Iterable[str]) -> None:
    """Sets `model.anew_layers`: the names, sorted, of those of its layers that were started anew."""
    model.anew_layers = tuple(sorted(set(layers).intersection(layer_names(model))))
    model._warned_of_anew_layers = False


def clear(model: Any) -> None:
    """The model has been trained, or all of its weights were loaded."""
    model.anew_layers = ()


def update(model: Any, loaded: Iterable[str], left: Iterable[str]) -> None:
    """After weights were loaded: what was loaded is no longer marked, what stays as it was drawn is.

    Args:
        model: the model.
        loaded: paths of the weights that were set ("stem/kernel").
        left: layers, or parts of them ("stem/norm"), that were not.
    """
    known = {path.split("/")[0] for path in loaded}
    mark(model, {*getattr(model, "anew_layers", ())} - known | {path.split("/")[0] for path in left})


def layer_names(model: Any) -> list[str]:
    """The names of the layers that have weights, in the model's order."""
    return list(dict.fromkeys(weight.path.split("/")[0] for weight in model.weights))


def warn_once(model: Any) -> None:
    """Logs a warning, once for a model, if it is about to predict with layers that were started anew."""
    warn_of_parts(model, ("rpn", "heads"))
    layers = getattr(model, "anew_layers", ())
    if not layers or getattr(model, "_warned_of_anew_layers", False):
        return
    model._warned_of_anew_layers = True
    logger.warning(
        "predicting with %s, started anew and not trained since: the results mean nothing before a training",
        listed(layers, model),
    )


def warn_of_parts(model: Any, needed: Iterable[str]) -> None:
    """Logs a warning, once for a model, if its training left out a part that is about to be used.

    Args:
        model: a MaskRCNN; of other models nothing is known.
        needed: "rpn", "heads", or both.
    """
    config = getattr(model, "config", None)
    trained = getattr(getattr(config, "training", None), "parts", ("rpn", "heads"))
    left = [part for part in needed if part not in trained]
    if not left or getattr(model, "_warned_of_parts", False):
        return
    model._warned_of_parts = True
    what, remedy = ("the branches", "train them") if left == ["heads"] else ("the RPN", "give it proposals of another")
    logger.warning(
        "this model's training (training.parts = %s) left out %s: %s, or the results mean nothing, unless the weights "
        "it began with had been trained",
        ",".join(trained),
        what,
        remedy,
    )


def listed(layers: Iterable[str], model: Any) -> str:
    """The names for a message: "box_classes, box_deltas", "all layers", or the first few and how many more."""
    layers = list(layers)
    if len(layers) == len(layer_names(model)):
        return "all layers"
    more = f" and {len(layers) - LISTED} more layers" if len(layers) > LISTED else ""
    return ", ".join(layers[:LISTED]) + more
