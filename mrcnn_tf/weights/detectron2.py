"""The tensors of Detectron2's R-CNNs and of the ImageNet networks they start from, by their names.

Shape letters: A anchors per cell, R ratios and s sizes of one map's anchors (A = R s), K classes.

Detectron2 counts classes from 0 and has the background last; the model has it first. The anchors of a cell run over the
ratios first there, over the sizes first here.

The ImageNet files (ImageNetPretrained/MSRA/R-50.pkl, R-101.pkl, FAIR/X-101-32x8d.pkl) have Caffe2's names: `conv1_w`,
`res_conv1_bn_s`, `res2_0_branch2a_w`, `res2_0_branch2a_bn_b`, `res2_0_branch1_w`, `fc1000_w` or `pred_w`. Relied on,
from Detectron2's documentation and its reading of them: `branch1` is the shortcut, `branch2a` to `2c` are the three
convolutions; the norms are a scale `bn_s` and a shift `bn_b` into which the statistics have been folded, so their mean
is 0 and their variance plus epsilon 1 (where a file has `bn_rm` and `bn_riv`, these are mean and variance); the bias
`conv1_b` and what ends in `_momentum` is not used.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.weights.torch_layout import BLOCK, NORM, Rows, boxes_of, swapped_boxes

LEFT_OUT = (
    # Constants that files of some versions carry along; the configuration has them.
    (re.compile(r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+"), "a constant"),
    (re.compile(r".*\.num_batches_tracked"), "a count of training steps"),
    (re.compile(r".*_momentum"), "left over from training"),
    (re.compile(r"(stem\.)?(fc|fc1000|pred|linear)[._](w|b|weight|bias)"), "the classifier of ImageNet"),
    (re.compile(r"conv1_b"), "a bias that Detectron2 does not use either"),
)
LEFT_ROWS = "of no class"
CLASS_LOGITS = "roi_heads.box_predictor.cls_score.bias"

_FPN = re.compile(r"fpn_(lateral|output)[2-5]")
_NUMBERED = re.compile(r"(box_conv|box_fc|mask_conv|keypoint_conv)(\d+)")
_LAYERS = {
    "rpn/conv": "proposal_generator.rpn_head.conv",
    "rpn/objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn/deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box_classes": "roi_heads.box_predictor.cls_score",
    "box_deltas": "roi_heads.box_predictor.bbox_pred",
    "mask_deconv": "roi_heads.mask_head.deconv",
    "mask_logits": "roi_heads.mask_head.predictor",
    "keypoint_deconv": "roi_heads.keypoint_head.score_lowres",
}
_NUMBERED_LAYERS = {
    "box_conv": "roi_heads.box_head.conv",
    "box_fc": "roi_heads.box_head.fc",
    "mask_conv": "roi_heads.mask_head.mask_fcn",
    "keypoint_conv": "roi_heads.keypoint_head.conv_fcn",
}
_DETECTOR = ("backbone.", "proposal_generator.", "roi_heads.")
_PLAIN = re.compile(r"(stem\.conv1|res[2-5]\.\d+)\..*")
_CAFFE2 = re.compile(r"(?:(?:res_)?conv1|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2[abc]))_(?P<what>\w+)")
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_WHAT = {
    "w": "weight",
    **{f"{kind}_{name}": "norm.weight" for kind in ("bn", "gn") for name in ("s", "gamma")},
    **{f"{kind}_{name}": "norm.bias" for kind in ("bn", "gn") for name in ("b", "beta")},
    **{f"bn_{name}": "norm.running_mean" for name in ("rm", "running_mean")},
    **{f"bn_{name}": "norm.running_var" for name in ("riv", "running_var")},
}


def preset_name(config: Config) -> str:
    """The preset that has the conventions of a network like this one."""
    backbone = {"resnet101": "R_101", "resnext101_32x8d": "X_101_32x8d"}.get(config.backbone.name, "R_50")
    features = {"fpn": "FPN", "c4": "C4"}.get(config.backbone.features, "DC5")
    return f"detectron2/mask_rcnn_{backbone}_{'FPN' if backbone.startswith('X') else features}"


def is_backbone(names: Collection[str]) -> bool:
    """Whether these are the tensors of an ImageNet network and not of a detector."""
    return not any(name.startswith(_DETECTOR) for name in names)


def modern_name(name: str, config: Config) -> str:
    """The name that a tensor has in a detector with the configuration's features; Caffe2's names are translated."""
    match = _CAFFE2.fullmatch(name)
    if match and match["what"] in _WHAT:
        layer = "stem.conv1"
        if match["stage"]:
            layer = f"res{match['stage']}.{match['block']}.{_BRANCHES[match['branch']]}"
        name = f"{layer}.{_WHAT[match['what']]}"
    return _placed(name, config) if _PLAIN.fullmatch(name) else name


def _placed(name: str, config: Config) -> str:
    """Where a detector has a module of the backbone: under the pyramid, alone, or (res5 of C4) in the head."""
    if config.backbone.features == "c4" and name.startswith("res5"):
        return f"roi_heads.{name}"
    return f"backbone.{'bottom_up.' if config.backbone.features == 'fpn' else ''}{name}"


def doubts(names: Collection[str], config: Config) -> list[str]:
    """What the names of the tensors cannot tell for certain, and the configuration may have wrong: nothing."""
    return []


def implied(name: str, tensors: dict[str, str], config: Config) -> float | None:
    """The value that a tensor which is not there has all the same: the statistics that were folded into Caffe2's norms.

    Args:
        name: of the tensor that is missing.
        tensors: {modern name: the file's name} of those that are there.
        config: the model's configuration.
    """
    norm, _, statistic = name.rpartition(".")
    if statistic not in ("running_mean", "running_var") or not tensors.get(f"{norm}.weight", "").endswith("bn_s"):
        return None
    # One of the two alone would be a file that is not whole.
    if f"{norm}.running_mean" in tensors or f"{norm}.running_var" in tensors:
        return None
    return 0.0 if statistic == "running_mean" else 1.0 - config.backbone.norm_epsilon


def tensor_name(path: str, config: Config) -> str | None:
    """The tensor for the weight `path` of the model (`layer/.../name`); None where there is none."""
    layer, _, weight = path.rpartition("/")
    is_norm = layer.endswith("/norm")
    layer = layer.removesuffix("/norm")
    match = BLOCK.fullmatch(layer)
    if match:
        module = _placed(f"res{match['stage']}.{int(match['block']) - 1}.{match['part']}", config)
    elif layer == "stem":
        module = _placed("stem.conv1", config)
    else:
        module = _head(layer)
    if is_norm:
        return module and f"{module}.norm.{NORM[weight]}"
    return module and f"{module}.{'weight' if weight == 'kernel' else 'bias'}"


def _head(layer: str) -> str | None:
    """The module for a layer past the backbone."""
    if _FPN.fullmatch(layer):
        return f"backbone.{layer}"
    match = _NUMBERED.fullmatch(layer)
    if match:
        return f"{_NUMBERED_LAYERS[match[1]]}{match[2]}"
    return _LAYERS.get(layer)


def rows(path: str, config: Config) -> Rows | None:
    """The outputs of the tensor that the weight `path` takes, in its order; None for all as they stand."""
    layer = path.rpartition("/")[0]
    if layer == "rpn/objectness":
        return _anchors(config), config.anchors.per_position
    if layer == "rpn/deltas":
        return boxes_of(_anchors(config), config.anchors.per_position)
    if layer == "box_deltas":
        return swapped_boxes(config.num_classes)
    if layer == "box_classes":
        return np.roll(np.arange(config.num_classes + 1), 1), config.num_classes + 1
    return None


def _anchors(config: Config) -> np.ndarray:
    """The number there of each anchor of a cell here: [R, s] here, [s, R] there."""
    sizes, ratios = len(config.anchors.sizes[0]), len(config.anchors.ratios)
    return np.arange(sizes * ratios).reshape(sizes, ratios).T.reshape(-1)
