"""The tensors of torchvision's Mask R-CNN with a ResNet-FPN, by the names of its state dictionary.

Shape letters: A anchors per cell, K classes.

torchvision counts the background as class 0, as the model does, and predicts a box and a mask for it too, which
nothing ever uses. Its published files keep the names that three modules had before 0.13; both forms are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.weights.torch_layout import Rows, swapped_boxes

PRESET = "torchvision/maskrcnn_resnet50_fpn"
LEFT_OUT = re.compile(r".*\.num_batches_tracked")
LEFT_ROWS = "the background's, which nothing uses"

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_BLOCK = re.compile(r"res(?P<stage>[2-5])_block(?P<block>\d+)_(?P<part>conv[123]|shortcut)")
_FPN = re.compile(r"fpn_(lateral|output)([2-5])")
_MASK_CONV = re.compile(r"mask_conv(\d+)")
_LAYERS = {
    "rpn/conv": "rpn.head.conv.0.0",
    "rpn/objectness": "rpn.head.cls_logits",
    "rpn/deltas": "rpn.head.bbox_pred",
    "box_fc1": "roi_heads.box_head.fc6",
    "box_fc2": "roi_heads.box_head.fc7",
    "box_classes": "roi_heads.box_predictor.cls_score",
    "box_deltas": "roi_heads.box_predictor.bbox_pred",
    "mask_deconv": "roi_heads.mask_predictor.conv5_mask",
    "mask_logits": "roi_heads.mask_predictor.mask_fcn_logits",
}
_OLD_NAMES = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
)
_OLD_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)")


def modern_name(name: str) -> str:
    """Today's name of a tensor; the published files have older ones in places."""
    match = _OLD_MASK_CONV.fullmatch(name)
    if match:
        return f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
    for old, new in _OLD_NAMES:
        name = re.sub(rf"^{old.pattern}$", new, name)
    return name


def doubts(tensors: Iterable[str], config: Config) -> list[str]:
    """What the names of the tensors cannot tell for certain, and the configuration may have wrong."""
    trained = any(LEFT_OUT.fullmatch(name) for name in tensors)
    if trained or config.backbone.norm_epsilon == 0:
        return []
    return [
        f"backbone.norm_epsilon is {config.backbone.norm_epsilon}, but the norms of these weights are frozen ones: "
        "torchvision's published Mask R-CNN, and what was trained from it, needs 0"
    ]


def tensor_name(path: str) -> str | None:
    """The tensor for the weight `path` of the model (`layer/.../name`); None where there is none."""
    layer, _, weight = path.rpartition("/")
    is_norm = layer.endswith("/norm")
    convolution = layer.removesuffix("/norm")
    match = _BLOCK.fullmatch(convolution)
    if convolution == "stem":
        convolution, norm = "backbone.body.conv1", "backbone.body.bn1"
    elif match:
        block = f"backbone.body.layer{int(match['stage']) - 1}.{int(match['block']) - 1}"
        number = match["part"].removeprefix("conv")
        pair = ("downsample.0", "downsample.1") if number == "shortcut" else (f"conv{number}", f"bn{number}")
        convolution, norm = (f"{block}.{name}" for name in pair)
    else:
        name = _head(layer)
        return name and f"{name}.{'weight' if weight == 'kernel' else 'bias'}"
    return f"{norm}.{_NORM[weight]}" if is_norm else f"{convolution}.weight"


def _head(layer: str) -> str | None:
    """The module for a layer past the backbone."""
    match = _FPN.fullmatch(layer)
    if match:
        return f"backbone.fpn.{'inner' if match[1] == 'lateral' else 'layer'}_blocks.{int(match[2]) - 2}.0"
    match = _MASK_CONV.fullmatch(layer)
    if match:
        return f"roi_heads.mask_head.{int(match[1]) - 1}.0"
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
        return swapped_boxes(num_classes, skip=1)
    if layer == "mask_logits":
        return np.arange(1, num_classes + 1), num_classes + 1
    return None
