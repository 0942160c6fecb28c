"""Which network tensors are of, told from their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_tf.config import Config
from mrcnn_tf.presets import checkpoints, preset
from mrcnn_tf.weights import compare, detectron2, keras_applications, matterport_files, torchvision
from mrcnn_tf.weights.report import WeightsError

Shapes = Mapping[str, tuple[int, ...]]

_OF_STATE_DICTIONARIES = {"torchvision": torchvision, "detectron2": detectron2}
_BLOCK = re.compile(
    r"(?:.*\.)?(?:layer(?P<layer>[1-4])|res(?P<stage>[2-5]))\.(?P<block>\d+)\.conv(?P<part>[123])\.weight"
)
_KERAS_BLOCK = re.compile(r"conv(?P<stage>[2-5])_block(?P<block>\d+)_1_conv/kernel")
# By the blocks of the stages, then by the shape [outputs, inputs of a group] of the first block's 3x3 convolution.
_BASIC = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_BOTTLENECKS = {
    (3, 4, 6, 3): {(64, 64): "resnet50", (128, 4): "resnext50_32x4d"},
    (3, 4, 23, 3): {(64, 64): "resnet101", (256, 8): "resnext101_32x8d", (256, 4): "resnext101_64x4d"},
    (3, 8, 36, 3): {(64, 64): "resnet152"},
}
_OWN_PRESETS = {f"resnet{depth}": f"mask_rcnn_r{depth}_fpn" for depth in (18, 34, 50, 101)}
# What an ImageNet network's weights mean depends on these alone.
BACKBONE_CONVENTIONS = [name for name in compare.CONVENTIONS if name.split(".")[0] in ("input", "backbone")]


@dataclass(frozen=True)
class Guess:
    """A preset, and the values in which a network differs from it, by dotted name."""

    preset: str
    changes: dict[str, Any]

    def config(self) -> Config:
        """The configuration of the network."""
        return preset(self.preset, **self.changes)


def guess(tensors: Mapping[str, np.ndarray], source: str) -> Guess:
    """The preset and the changes for a model that the tensors of `source` fit.

    Of an ImageNet network it is a Mask R-CNN with pyramid that starts from it, with the source's conventions.

    Raises:
        WeightsError: an unknown source, or tensors that are of no network known of it.
    """
    if source in _OF_STATE_DICTIONARIES:
        names = _OF_STATE_DICTIONARIES[source]
        shapes = {name: tuple(np.shape(value)) for name, value in tensors.items()}
        return _guess_backbone(shapes, source) if names.is_backbone(shapes) else _guess_detector(shapes, source)
    if source == "matterport":
        classes, depth = matterport_files.count_classes(tensors), matterport_files.guess_depth(tensors)
        return _differing("matterport/mask_rcnn_coco", {"num_classes": classes, "backbone.name": depth})
    if source == "keras":
        modern = [keras_applications.modern_name(name) for name in tensors]
        return _starting_from(_keras_backbone(modern) or _unknown(source), {})
    raise WeightsError(f"unknown source '{source}'; known are torchvision, detectron2, keras, matterport")


def backbone_name(shapes: Shapes) -> str | None:
    """`BackboneConfig.name` of the network that tensors of torchvision or Detectron2 are of; None if it is unknown.

    Args:
        shapes: {name: shape}, the names those of a detector or of Detectron2's own (not Caffe2's).
    """
    blocks: dict[int, set[str]] = {}
    bottleneck, first = False, ()
    for name, shape in shapes.items():
        match = _BLOCK.fullmatch(name)
        if not match:
            continue
        stage = int(match["stage"] or int(match["layer"]) + 1)
        blocks.setdefault(stage, set()).add(match["block"])
        bottleneck = bottleneck or match["part"] == "3"
        if (stage, match["block"], match["part"]) == (2, "0", "2"):
            first = tuple(shape[:2])
    depths = tuple(len(blocks.get(stage, ())) for stage in (2, 3, 4, 5))
    return _BOTTLENECKS.get(depths, {}).get(first) if bottleneck else _BASIC.get(depths)


def _keras_backbone(names: list[str]) -> str | None:
    blocks = [match for match in map(_KERAS_BLOCK.fullmatch, names) if match]
    deepest = (max((int(match["block"]) for match in blocks if match["stage"] == stage), default=0) for stage in "345")
    return {(4, 6): "resnet50", (4, 23): "resnet101", (8, 36): "resnet152"}.get(tuple(deepest)[:2])


def _unknown(source: str) -> str:
    raise WeightsError(f"the tensors are of no network known of {source}")


def _differing(name: str, values: dict[str, Any]) -> Guess:
    """The values that differ from the preset's."""
    base = preset(name)
    return Guess(name, {key: value for key, value in values.items() if compare.value(base, key) != value})


def _starting_from(backbone: str, conventions: dict[str, Any]) -> Guess:
    return _differing(_OWN_PRESETS.get(backbone, "mask_rcnn_r50_fpn"), {"backbone.name": backbone, **conventions})


def _guess_backbone(shapes: Shapes, source: str) -> Guess:
    names, config = _OF_STATE_DICTIONARIES[source], Config()
    backbone = backbone_name({names.modern_name(name, config): shape for name, shape in shapes.items()})
    config = config.replace(backbone__name=backbone or _unknown(source))
    conventions = preset(names.preset_name(config))
    return _starting_from(backbone, {name: compare.value(conventions, name) for name in BACKBONE_CONVENTIONS})


# === Detectors ===


def _guess_detector(shapes: Shapes, source: str) -> Guess:
    names = _OF_STATE_DICTIONARIES[source]
    backbone = backbone_name(shapes) or _unknown(source)
    parts = (("mask", "roi_heads.mask"), ("keypoints", "roi_heads.keypoint"))
    branches = tuple(branch for branch, start in parts if any(name.startswith(start) for name in shapes))
    find = _torchvision_preset if source == "torchvision" else _detectron2_preset
    name = find(shapes, backbone, branches)
    config = preset(name)
    own = {names.modern_name(name, config): shape for name, shape in shapes.items()}
    values = {"backbone.name": backbone, "branches": branches, **_widths(own, names, config)}
    if names.doubts(shapes, config):  # frozen norms of torchvision, as its published files have them
        values["backbone.norm_epsilon"] = 0.0
    return _differing(name, values)


def _torchvision_preset(shapes: Shapes, backbone: str, branches: tuple[str, ...]) -> str:
    model = {"mask": "maskrcnn", "keypoints": "keypointrcnn"}.get(branches[0] if branches else "", "fasterrcnn")
    second = "backbone.fpn.inner_blocks.0.1.weight" in shapes and model != "keypointrcnn"
    return f"torchvision/{model}_resnet50_fpn{'_v2' if second else ''}"


def _detectron2_preset(shapes: Shapes, backbone: str, branches: tuple[str, ...]) -> str:
    model = {"mask": "mask", "keypoints": "keypoint"}.get(branches[0] if branches else "", "faster")
    features = "DC5"
    if any(name.startswith("backbone.bottom_up.") for name in shapes):
        features = "FPN"
    elif any(name.startswith("roi_heads.res5.") for name in shapes):
        features = "C4"
    part = {"resnet101": "R_101", "resnext101_32x8d": "X_101_32x8d"}.get(backbone, "R_50")
    exact = f"detectron2/{model}_rcnn_{part}_{features}"
    return (
        exact if exact in checkpoints() else f"detectron2/{model if features == 'FPN' else 'mask'}_rcnn_R_50_{features}"
    )


def _widths(shapes: Shapes, names: Any, config: Config) -> dict[str, Any]:
    """The numbers of classes, keypoints and channels, as far as the tensors' shapes tell them."""

    def outputs(path: str, tensor_config: Config = config) -> int | None:
        name = names.tensor_name(path, tensor_config)
        return shapes[name][0] if name in shapes else None

    def row_of(prefix: str, tensor_config: Config = config) -> tuple[int, ...]:
        widths: list[int] = []
        while found := outputs(f"{prefix}{len(widths) + 1}/kernel", tensor_config):
            widths.append(found)
        return tuple(widths)

    values: dict[str, Any] = {}
    if names.CLASS_LOGITS in shapes:
        values["num_classes"] = shapes[names.CLASS_LOGITS][0] - 1
    values["rpn.channels"] = outputs("rpn/conv/kernel")
    values["rpn.convs"] = 2 if outputs("rpn/conv2/kernel") else 1
    if config.backbone.features == "fpn":
        values["fpn.channels"] = outputs("fpn_output2/kernel")
    if config.backbone.features != "c4":
        values["box_head.convs"] = row_of("box_conv")
        values["box_head.fc"] = row_of("box_fc", config.replace(box_head__convs=values["box_head.convs"]))
    if outputs("mask_logits/kernel"):
        values["mask_head.convs"], values["mask_head.deconv"] = row_of("mask_conv"), outputs("mask_deconv/bias")
    keypoints = outputs("keypoint_deconv/bias")
    if keypoints:
        values["keypoint_head.convs"] = row_of("keypoint_conv")
        if keypoints != len(config.keypoint_head.names):
            values["keypoint_head.names"] = tuple(f"keypoint {number + 1}" for number in range(keypoints))
            values["keypoint_head.skeleton"] = ()
    return {name: value for name, value in values.items() if value is not None}
