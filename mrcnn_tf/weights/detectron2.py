"""The tensors of Detectron2's Mask R-CNN with a ResNet-FPN, by the names of its state dictionary.

Shape letters: A anchors per cell, K classes.

Detectron2 counts classes from 0 and has the background last; the model has it first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.weights.torch_layout import Rows, swapped_boxes

PRESET = "detectron2/mask_rcnn_R_50_FPN"
# Constants that files of some versions carry along; the configuration has them.
LEFT_OUT = re.compile(
    r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+|.*\.num_batches_tracked"
)
LEFT_ROWS = "of no class"

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_BLOCK = re.compile(r"res(?P<stage>[2-5])_block(?P<block>\d+)_(?P<part>conv[123]|shortcut)")
_FPN = re.compile(r"fpn_(lateral|output)[2-5]")
_NUMBERED = re.compile(r"(box_fc|mask_conv)(\d+)")
_LAYERS = {
    "rpn/conv": "proposal_generator.rpn_head.conv",
    "rpn/objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn/deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box_classes": "roi_heads.box_predictor.cls_score",
    "box_deltas": "roi_heads.box_predictor.bbox_pred",
    "mask_deconv": "roi_heads.mask_head.deconv",
    "mask_logits": "roi_heads.mask_head.predictor",
}
_NUMBERED_LAYERS = {"box_fc": "roi_heads.box_head.fc", "mask_conv": "roi_heads.mask_head.mask_fcn"}


def modern_name(name: str) -> str:
    """The name of a tensor as `tensor_name` gives it: names have not changed."""
    return name


def doubts(tensors: Iterable[str], config: Config) -> list[str]:
    """What the names of the tensors cannot tell for certain, and the configuration may have wrong: nothing."""
    return []


def tensor_name(path: str) -> str | None:
    """The tensor for the weight `path` of the model (`layer/.../name`); None where there is none."""
    layer, _, weight = path.rpartition("/")
    is_norm = layer.endswith("/norm")
    convolution = layer.removesuffix("/norm")
    match = _BLOCK.fullmatch(convolution)
    if match:
        convolution = f"res{match['stage']}.{int(match['block']) - 1}.{match['part']}"
    elif convolution == "stem":
        convolution = "stem.conv1"
    else:
        name = _head(layer)
        return name and f"{name}.{'weight' if weight == 'kernel' else 'bias'}"
    convolution = f"backbone.bottom_up.{convolution}"
    return f"{convolution}.norm.{_NORM[weight]}" if is_norm else f"{convolution}.weight"


def _head(layer: str) -> str | None:
    """The module for a layer past the backbone."""
    if _FPN.fullmatch(layer):
        return f"backbone.{layer}"
    match = _NUMBERED.fullmatch(layer)
    if match:
        return f"{_NUMBERED_LAYERS[match[1]]}{match[2]}"
    return _LAYERS.get(layer)


def rows(path: str, num_classes: int, anchors: int) -> Rows | None:
    """The outputs of the tensor that the weight `path` takes, in its order; None for all as they stand.

    Args:
        path: the weight's path in the model.
        num_classes: K of the model.
        anchors: A of the model.
    """
    layer = path.rpartition("/")[0]
    if layer == "rpn/deltas":
        return swapped_boxes(anchors)
    if layer == "box_deltas":
        return swapped_boxes(num_classes)
    if layer == "box_classes":
        return np.roll(np.arange(num_classes + 1), 1), num_classes + 1
    return None
