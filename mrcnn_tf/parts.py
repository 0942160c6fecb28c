"""The parts of a model that can be trained apart: the RPN, the heads (all branches), and the backbone below both."""

from __future__ import annotations

from typing import Any


def part_of(layer: str, features: str) -> str:
    """ "backbone" (the FPN included), "rpn" or "heads": where a layer of this name belongs.

    Args:
        layer: a layer's name, or a weight's path, which begins with it.
        features: `config.backbone.features`; with "c4", res5 is of the heads.
    """
    if layer.split("/")[0] == "rpn":
        return "rpn"
    is_head = features == "c4" and layer.startswith("res5_")
    return "backbone" if layer.startswith(("stem", "res", "fpn_")) and not is_head else "heads"


def freeze_others(model: Any) -> None:
    """Freezes the layers that `config.training` does not name; those frozen already stay so."""
    training = model.config.training
    trained = {*training.parts, *(("backbone",) if training.train_backbone else ())}
    for layer in model.layers:
        if part_of(layer.name, model.config.backbone.features) not in trained:
            layer.trainable = False


def weights_of(model: Any, part: str) -> dict[str, Any]:
    """{path: values} of all weights of a part."""
    features = model.config.backbone.features
    return {weight.path: weight.numpy() for weight in model.weights if part_of(weight.path, features) == part}
