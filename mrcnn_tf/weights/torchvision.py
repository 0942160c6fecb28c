"""The tensors of torchvision's detectors with a ResNet-FPN and of its ImageNet networks, by their state dictionaries.

Shape letters: A anchors per cell, K classes.

torchvision counts the background as class 0, as the model does, and predicts a box and a mask for it too, which
nothing ever uses. The first versions of its published detectors keep the names that three modules had before 0.13; both
forms are read. The second versions have batch norms in the pyramid and the branches, two convolutions in the RPN, and a
box branch that is one sequence of modules: its convolutions, a flattening, then dense layers and ReLUs by turns.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.weights.torch_layout import BLOCK, NORM, Rows, swapped_boxes

LEFT_OUT = (
    (re.compile(r".*\.num_batches_tracked"), "a count of training steps"),
    (re.compile(r"fc\.(weight|bias)"), "the classifier of ImageNet"),
)
LEFT_ROWS = "the background's, which nothing uses"
CLASS_LOGITS = "roi_heads.box_predictor.cls_score.bias"

_FPN = re.compile(r"fpn_(lateral|output)([2-5])")
_NUMBERED = re.compile(r"(box_conv|box_fc|mask_conv|keypoint_conv)(\d+)")
_LAYERS = {
    "rpn/conv": "rpn.head.conv.0.0",
    "rpn/conv2": "rpn.head.conv.1.0",
    "rpn/objectness": "rpn.head.cls_logits",
    "rpn/deltas": "rpn.head.bbox_pred",
    "box_classes": "roi_heads.box_predictor.cls_score",
    "box_deltas": "roi_heads.box_predictor.bbox_pred",
    "mask_deconv": "roi_heads.mask_predictor.conv5_mask",
    "mask_logits": "roi_heads.mask_predictor.mask_fcn_logits",
    "keypoint_deconv": "roi_heads.keypoint_predictor.kps_score_lowres",
}
_OLD_NAMES = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
)
_OLD_MASK_CONV = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)")
_CLASSIFIER = re.compile(r"(conv1|bn1|layer[1-4])\..*")
_DETECTOR = ("backbone.", "rpn.", "roi_heads.")


def preset_name(config: Config) -> str:
    """The preset that has the conventions of a network like this one."""
    return "torchvision/maskrcnn_resnet50_fpn"


def is_backbone(names: Collection[str]) -> bool:
    """Whether these are the tensors of an ImageNet network and not of a detector."""
    return not any(name.startswith(_DETECTOR) for name in names)


def modern_name(name: str, config: Config) -> str:
    """The name that a tensor has in a detector of today: the published files have older ones in places."""
    if _CLASSIFIER.fullmatch(name):
        return f"backbone.body.{name}"
    match = _OLD_MASK_CONV.fullmatch(name)
    if match:
        return f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
    for old, new in _OLD_NAMES:
        name = re.sub(rf"^{old.pattern}$", new, name)
    return name


def doubts(names: Collection[str], config: Config) -> list[str]:
    """What the names of the tensors cannot tell for certain, and the configuration may have wrong."""
    trained = any(name.endswith(".num_batches_tracked") for name in names)
    if trained or is_backbone(names) or config.backbone.norm_epsilon == 0:
        return []
    return [
        f"backbone.norm_epsilon is {config.backbone.norm_epsilon}, but the norms of these weights are frozen ones: "
        "torchvision's published Mask R-CNN, Keypoint R-CNN and Faster R-CNN (the first versions), and what was "
        "trained from them, need 0"
    ]


def implied(name: str, tensors: dict[str, str], config: Config) -> float | None:
    """The value that a tensor which is not there has all the same: none."""
    return None


def tensor_name(path: str, config: Config) -> str | None:
    """The tensor for the weight `path` of the model (`layer/.../name`); None where there is none."""
    layer, _, weight = path.rpartition("/")
    is_norm = layer.endswith("/norm")
    layer = layer.removesuffix("/norm")
    match = BLOCK.fullmatch(layer)
    if layer == "stem":
        convolution, norm = "backbone.body.conv1", "backbone.body.bn1"
    elif match:
        block = f"backbone.body.layer{int(match['stage']) - 1}.{int(match['block']) - 1}"
        number = match["part"].removeprefix("conv")
        pair = ("downsample.0", "downsample.1") if number == "shortcut" else (f"conv{number}", f"bn{number}")
        convolution, norm = (f"{block}.{name}" for name in pair)
    else:
        convolution = _head(layer, config)
        norm = f"{convolution[:-2]}.1" if convolution and convolution.endswith(".0") else None
    if is_norm:
        return norm and f"{norm}.{NORM[weight]}"
    return convolution and f"{convolution}.{'weight' if weight == 'kernel' else 'bias'}"


def _head(layer: str, config: Config) -> str | None:
    """The module for a layer past the backbone; of a convolution that may have a norm the first of a sequence, ".0"."""
    match = _FPN.fullmatch(layer)
    if match:
        return f"backbone.fpn.{'inner' if match[1] == 'lateral' else 'layer'}_blocks.{int(match[2]) - 2}.0"
    match = _NUMBERED.fullmatch(layer)
    if not match:
        return _LAYERS.get(layer)
    number, convs = int(match[2]), len(config.box_head.convs)
    return {
        "box_conv": f"roi_heads.box_head.{number - 1}.0",
        "box_fc": f"roi_heads.box_head.{convs + 2 * number - 1}" if convs else f"roi_heads.box_head.fc{number + 5}",
        "mask_conv": f"roi_heads.mask_head.{number - 1}.0",
        "keypoint_conv": f"roi_heads.keypoint_head.{2 * number - 2}",  # ReLUs stand between
    }[match[1]]


def rows(path: str, config: Config) -> Rows | None:
    """The outputs of the tensor that the weight `path` takes, in its order; None for all as they stand."""
    layer = path.rpartition("/")[0]
    if layer == "rpn/deltas":
        return swapped_boxes(config.anchors.per_position)
    if layer == "box_deltas":
        return swapped_boxes(config.num_classes, skip=1)
    if layer == "mask_logits":
        return np.arange(1, config.num_classes + 1), config.num_classes + 1
    return None
