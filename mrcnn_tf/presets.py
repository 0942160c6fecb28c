"""Named configurations.

A preset is a `Config` under a name. `preset(name, **changes)` takes the changes of `Config.replace`. There are those of
the paper's tables (`mrcnn_tf.paper_presets`), a few for small data sets (here), and one for each public checkpoint with
the conventions of the implementation it comes from (`mrcnn_tf.checkpoint_presets`).
"""

from __future__ import annotations

import difflib
from typing import Any

from mrcnn_tf.checkpoint_presets import CHECKPOINTS
from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.paper_presets import PAPER

# Small pictures, small objects: a side of 8 to 128 pixels.
_SMALL_ANCHORS = {"sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))}

# Appendix A: the shorter edge drawn from 800 to 1024 pixels, measured at 1024, one image on each of 8 GPUs.
_CITYSCAPES = {
    "num_classes": 8,
    "class_names": ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "input": {"shorter_edge": (800, 832, 864, 896, 928, 960, 992, 1024), "longer_edge": 2048},
}
_CITYSCAPES_TRAINING = {"images_per_device": 1, "learning_rate": 0.01, "reference_batch": 8}

_PRESETS: dict[str, tuple[str, dict]] = {
    **PAPER,
    "cityscapes": (
        "Mask R-CNN ResNet-50-FPN for Cityscapes from ImageNet weights (table 7)",
        {**_CITYSCAPES, "training": {**_CITYSCAPES_TRAINING, "steps": 24_000, "decay_steps": (18_000,)}},
    ),
    "cityscapes_from_coco": (
        "Mask R-CNN ResNet-50-FPN for Cityscapes from COCO weights (table 7)",
        {**_CITYSCAPES, "training": {**_CITYSCAPES_TRAINING, "steps": 4_000, "decay_steps": (3_000,)}},
    ),
    "nucleus": (
        "ResNet-50-FPN for small, crowded objects in small images, in 400 steps",
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


def names() -> list[str]:
    """The names of the package's own presets."""
    return list(_PRESETS)


def checkpoints() -> list[str]:
    """The names of the presets for public checkpoints, "implementation/model"."""
    return list(CHECKPOINTS)


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
    known = {**_PRESETS, **CHECKPOINTS}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
        raise ConfigError(f"unknown preset '{name}'; {hint}")
    return known[name]
