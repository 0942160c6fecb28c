"""Named configurations.

A preset is a `Config` under a name. `preset(name, **changes)` takes the changes of `Config.replace`. Beside the
package's own there is one for each public checkpoint, with the conventions of the implementation it comes from.
"""

from __future__ import annotations

import difflib
from typing import Any

from mrcnn_tf.coco_names import CLASSES, CLASSES_WITH_GAPS
from mrcnn_tf.config import Config, ConfigError

_PAPER: dict = {}  # The defaults of `Config` are the paper's: R50-FPN, 800 pixels, 16 images, 160k steps.

# Small pictures, small objects: a side of 8 to 128 pixels.
_SMALL_ANCHORS = {"sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))}

_PRESETS: dict[str, tuple[str, dict]] = {
    "mask_rcnn_r50_fpn": ("ResNet-50-FPN as in the paper's tables 2a and 2e", _PAPER),
    "mask_rcnn_r101_fpn": ("ResNet-101-FPN as in the paper's tables 1 and 2a", {"backbone": {"name": "resnet101"}}),
    "mask_rcnn_r34_fpn": ("ResNet-34-FPN for smaller machines", {"backbone": {"name": "resnet34"}}),
    "mask_rcnn_r18_fpn": ("ResNet-18-FPN for smaller machines", {"backbone": {"name": "resnet18"}}),
    "nucleus": (
        "ResNet-50-FPN for small, crowded objects in small images, from ImageNet weights in 400 steps",
        {
            "num_classes": 1,
            "class_names": ("nucleus",),
            "input": {"shorter_edge": (256,), "longer_edge": 1333},
            "backbone": {"name": "resnet50", "norm": "frozen", "frozen_stages": 2},
            "anchors": _SMALL_ANCHORS,
            "roi": {"rois_per_image": 128},
            "detections": {"max_per_image": 200},
            "training": {
                "steps": 400,
                "images_per_device": 2,
                "learning_rate": 0.005,
                "reference_batch": 2,
                "warmup_steps": 100,
                "decay_steps": (320,),
                "evaluate_every": 0,
            },
        },
    ),
    "coco_mini": (
        "ResNet-50-FPN at 384 pixels, to learn a handful of COCO images by heart",
        {
            "input": {"shorter_edge": (384,), "longer_edge": 640},
            "anchors": {"sizes": ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))},
            "roi": {"rois_per_image": 128},
            "data": {"flip": False},
            "training": {
                "steps": 400,
                "images_per_device": 2,
                "learning_rate": 0.01,
                "reference_batch": 2,
                "warmup_steps": 50,
                "decay_steps": (320,),
                "evaluate_every": 0,
                "clip_norm": 10.0,
            },
        },
    ),
    "shapes": (
        "a small network for the shapes data set: minutes on two cores, from nothing",
        {
            "num_classes": 3,
            "class_names": ("circle", "square", "triangle"),
            "input": {
                "shorter_edge": (128,),
                "longer_edge": 256,
                "channel_order": "rgb",
                "mean": (127.5, 127.5, 127.5),
                "std": (64.0, 64.0, 64.0),
            },
            "backbone": {"name": "resnet18", "norm": "batch", "frozen_stages": 0, "norm_epsilon": 1e-5},
            "fpn": {"channels": 128},
            "anchors": _SMALL_ANCHORS,
            "rpn": {
                "channels": 128,
                "anchors_per_image": 128,
                "pre_nms_train": 300,
                "pre_nms_test": 200,
                "post_nms_train": 200,
                "post_nms_test": 100,
            },
            "roi": {"rois_per_image": 64},
            "box_head": {"fc": (256, 256)},
            "mask_head": {"convs": (128, 128), "deconv": 128},
            "detections": {"max_per_image": 20},
            "training": {
                "steps": 500,
                "images_per_device": 8,
                "learning_rate": 0.02,
                "reference_batch": 8,
                "warmup_steps": 50,
                "decay_steps": (400,),
                "evaluate_every": 0,
                "clip_norm": 10.0,
            },
        },
    ),
}

_CHECKPOINTS: dict[str, tuple[str, dict]] = {
    "torchvision/maskrcnn_resnet50_fpn": (
        "torchvision's Mask R-CNN ResNet-50-FPN (the first version), on COCO",
        {
            "num_classes": 90,
            "class_names": CLASSES_WITH_GAPS,
            "input": {"channel_order": "rgb", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            # As a model without weights has it; for its published weights torchvision sets the epsilon to 0.
            "backbone": {"stride_in": "3x3", "norm_epsilon": 1e-5},
            "anchors": {"rounded": True, "stride_rule": "image"},
            "rpn": {"min_size": 1e-3},
            "roi": {"half_pixel": False},
            "box_head": {"loss_beta": 1.0 / 9.0},
            "detections": {"paste": "torchvision"},
        },
    ),
    "detectron2/mask_rcnn_R_50_FPN": (
        "Detectron2's Mask R-CNN ResNet-50-FPN (1x and 3x), on COCO",
        {
            "class_names": CLASSES,
            "input": {"mean": (103.53, 116.28, 123.675)},
            "backbone": {"norm_epsilon": 1e-5},
            "rpn": {"post_nms_train": 1000, "box_loss_beta": 0.0},
            "box_head": {"loss_beta": 0.0},
        },
    ),
    # Other choices of its users: a side of the square of their own is longer_edge and size_divisor both, BACKBONE is
    # backbone.name, RPN_ANCHOR_SCALES anchors.sizes, DETECTION_MIN_CONFIDENCE detections.score_threshold. What differs:
    # the image lies in the square's corner, not its middle; beside it is the mean colour, not black; proposals are
    # thinned level by level, not all levels together; an image of more than 800 pixels on the shorter edge is shrunk.
    "matterport/mask_rcnn_coco": (
        "Matterport's Mask_RCNN with ResNet-101-FPN in squares of 1024 pixels, on COCO",
        {
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
        },
    ),
}


def names() -> list[str]:
    """The names of the package's own presets."""
    return list(_PRESETS)


def checkpoints() -> list[str]:
    """The names of the presets for public checkpoints, "implementation/model"."""
    return list(_CHECKPOINTS)


def describe(name: str) -> str:
    """One line on what a preset is for."""
    return _entry(name)[0]


def preset(name: str, **changes: Any) -> Config:
    """The configuration called `name`, with changes as `Config.replace` takes them.

    Raises:
        ConfigError: an unknown name, with the nearest known one, or a change that does not fit.
    """
    config = Config().replace(**_entry(name)[1])
    if "num_classes" in changes and "class_names" not in changes:
        config = config.replace(class_names=(), num_classes=changes["num_classes"])
    return config.replace(**changes)


def _entry(name: str) -> tuple[str, dict]:
    known = {**_PRESETS, **_CHECKPOINTS}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
        raise ConfigError(f"unknown preset '{name}'; {hint}")
    return known[name]
