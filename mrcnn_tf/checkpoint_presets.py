"""The configurations of public checkpoints, "implementation/model", each with its implementation's conventions.

`mrcnn_tf.presets` puts them beside the package's own. The values are those of torchvision's builders with everything at
its default, of Detectron2's configuration files of the same names, and of Matterport's CocoConfig.
"""

from __future__ import annotations

from mrcnn_tf.coco_names import CLASSES, CLASSES_WITH_GAPS

Entry = tuple[str, dict]  # what it is, and the changes to the defaults of `Config`

_SCALES = (640, 672, 704, 736, 768, 800)  # shorter edges drawn in training; the last one at inference


def _merged(*changes: dict) -> dict:
    """The changes of all sections, later ones over earlier ones."""
    merged: dict = {}
    for change in changes:
        for name, value in change.items():
            merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return merged


# === torchvision ===

_TORCHVISION = {
    "num_classes": 90,
    "class_names": CLASSES_WITH_GAPS,
    "input": {"channel_order": "rgb", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
    # As a model without weights has it; for its published weights torchvision sets the epsilon to 0.
    "backbone": {"stride_in": "3x3", "norm_epsilon": 1e-5},
    "anchors": {"rounded": True, "stride_rule": "image"},
    "rpn": {"min_size": 1e-3},
    "roi": {"half_pixel": False},
    "box_head": {"loss_beta": 1.0 / 9.0},
    "detections": {"paste": "torchvision", "min_size": 0.01},
}
# The second version: norms that are trained everywhere, four convolutions in the box branch, two in the RPN. Its
# RoIAlign has no half-pixel shift either.
_SECOND = {
    "backbone": {"norm": "batch"},
    "fpn": {"norm": "batch"},
    "rpn": {"convs": 2},
    "box_head": {"convs": (256,) * 4, "norm": "batch", "fc": (1024,)},
    "mask_head": {"norm": "batch"},
}
_BOXES_ALONE = {"branches": ()}
_PEOPLE = {
    "num_classes": 1,
    "class_names": ("person",),
    "branches": ("keypoints",),
    "input": {"shorter_edge": _SCALES},
    "data": {"min_keypoints": 1},
}


def _torchvision() -> dict[str, Entry]:
    mask, boxes = "torchvision's Mask R-CNN ResNet-50-FPN", "torchvision's Faster R-CNN ResNet-50-FPN"
    models: dict[str, tuple[str, tuple[dict, ...]]] = {
        "maskrcnn_resnet50_fpn": (f"{mask} (the first version)", ()),
        "maskrcnn_resnet50_fpn_v2": (f"{mask} (the second version)", (_SECOND,)),
        "keypointrcnn_resnet50_fpn": ("torchvision's Keypoint R-CNN ResNet-50-FPN", (_PEOPLE,)),
        "fasterrcnn_resnet50_fpn": (f"{boxes} (the first version)", (_BOXES_ALONE,)),
        "fasterrcnn_resnet50_fpn_v2": (f"{boxes} (the second version)", (_SECOND, _BOXES_ALONE)),
    }
    return {
        f"torchvision/{name}": (f"{what}, on COCO", _merged(_TORCHVISION, *changes))
        for name, (what, changes) in models.items()
    }


# === Detectron2 ===

_DETECTRON2 = {
    "class_names": CLASSES,
    "input": {"mean": (103.53, 116.28, 123.675), "shorter_edge": _SCALES},
    "backbone": {"norm_epsilon": 1e-5},
    "rpn": {"box_loss_beta": 0.0},
    "box_head": {"loss_beta": 0.0},
    "detections": {"drop_small": "after"},
}
# One map of stride 16 with all anchors on it; images are not padded to a multiple of anything.
_ONE_MAP = {
    "input": {"size_divisor": 1},
    "anchors": {"sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),)},
    "rpn": {"pre_nms_train": 12_000, "pre_nms_test": 6_000, "post_nms_train": 2_000, "post_nms_test": 1_000},
}
_FEATURES = {
    "FPN": {"rpn": {"post_nms_train": 1000}},
    "C4": _merged(
        _ONE_MAP,
        {
            "backbone": {"features": "c4"},
            "rpn": {"channels": 1024},
            "box_head": {"pool": 14, "res5_stride": 2, "fc": ()},
            "mask_head": {"pool": 14, "convs": ()},
        },
    ),
    "DC5": _merged(_ONE_MAP, {"backbone": {"features": "dc5"}, "rpn": {"channels": 2048}}),
}
_BACKBONES = {
    "R_50": ("ResNet-50", {"backbone": {"name": "resnet50"}}),
    "R_101": ("ResNet-101", {"backbone": {"name": "resnet101"}}),
    # Trained with another implementation than the others: the stride stands in the 3x3 convolution, images are scaled.
    "X_101_32x8d": (
        "ResNeXt-101-32x8d",
        {
            "backbone": {"name": "resnext101_32x8d", "stride_in": "3x3"},
            "input": {"std": (57.375, 57.12, 58.395)},
        },
    ),
}
_BRANCHES = {
    "mask_rcnn": ("Mask R-CNN", {}),
    "faster_rcnn": ("Faster R-CNN", _BOXES_ALONE),
    "keypoint_rcnn": (
        "Keypoint R-CNN",
        _merged(_PEOPLE, {"rpn": {"post_nms_train": 1500}, "box_head": {"loss_beta": 0.5}}),
    ),
}
_MODELS = {
    "FPN": tuple(_BACKBONES),
    "C4": ("R_50", "R_101"),
    "DC5": ("R_50", "R_101"),
}


def _detectron2() -> dict[str, Entry]:
    entries = {}
    for branch, (model, branch_changes) in _BRANCHES.items():
        for features, backbones in _MODELS.items():
            if branch == "keypoint_rcnn" and features != "FPN":
                continue
            for backbone in backbones:
                what, backbone_changes = _BACKBONES[backbone]
                changes = _merged(_DETECTRON2, _FEATURES[features], backbone_changes, branch_changes)
                name = f"detectron2/{branch}_{backbone}_{features}"
                entries[name] = (f"Detectron2's {model} {what}-{features}, on COCO", changes)
    return entries


# === Matterport ===

# Other choices of its users: a side of the square of their own is longer_edge and size_divisor both, BACKBONE is
# backbone.name, RPN_ANCHOR_SCALES anchors.sizes, DETECTION_MIN_CONFIDENCE detections.score_threshold. What differs:
# the image lies in the square's corner, not its middle; beside it is the mean colour, not black; proposals are
# thinned level by level, not all levels together; an image of more than 800 pixels on the shorter edge is shrunk.
_MATTERPORT = {
    "class_names": CLASSES,
    "input": {
        "longer_edge": 1024,
        "size_divisor": 1024,
        "channel_order": "rgb",
        "mean": (123.7, 116.8, 103.9),
    },
    "backbone": {"name": "resnet101", "norm_epsilon": 1e-3, "pool_padding": "same"},
    # Ratios are width / height there.
    "anchors": {"ratios": (2.0, 1.0, 0.5), "shrink": 1.0},
    "rpn": {"channels": 512, "pre_nms_train": 6000, "pre_nms_test": 6000},
    # It rounds levels where equation 1 cuts them off, and counts a square of 1024 pixels as 1023 wide.
    "roi": {
        "rois_per_image": 200,
        "positive_fraction": 0.33,
        "layer": "crop",
        "canonical_size": 224.0 / 2**0.5 * 1023 / 1024,
    },
    "detections": {"score_threshold": 0.7, "nms_iou": 0.3, "one_class_per_box": True},
    "training": {"learning_rate": 0.001, "reference_batch": 2, "clip_norm": 5.0},
}

CHECKPOINTS: dict[str, Entry] = {
    **_torchvision(),
    **_detectron2(),
    "matterport/mask_rcnn_coco": (
        "Matterport's Mask_RCNN with ResNet-101-FPN in squares of 1024 pixels, on COCO",
        _MATTERPORT,
    ),
}
