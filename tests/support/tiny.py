"""A Mask R-CNN of a few hundred thousand weights, and batches made of numbers, for tests of the whole."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.presets import preset


def tiny_config(**changes) -> Config:
    """The shapes preset at 64 pixels with thin heads; frozen norms unless `changes` say otherwise."""
    small = {
        "input": {"shorter_edge": 64, "longer_edge": 96},
        "backbone": {"norm": "frozen", "frozen_stages": 0},
        "fpn": {"channels": 16},
        "rpn": {"channels": 16, "post_nms_train": 40, "post_nms_test": 30, "anchors_per_image": 32},
        "roi": {"rois_per_image": 16},
        "box_head": {"fc": (32,)},
        "mask_head": {"convs": (16,), "deconv": 16},
        "detections": {"max_per_image": 8, "score_threshold": 0.0},
        "training": {"clip_norm": 0.0, "warmup_steps": 0, "learning_rate": 0.01},
    }
    return preset("shapes").replace(**small).replace(**changes)


def random_batch(images: int, height: int = 64, width: int = 64, objects: int = 4, seed: int = 0) -> dict:
    """A batch as the pipeline makes it: noise images, random boxes of classes 1..3, full-box masks."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (images, objects, 2)) * [height, width]
    extent = rng.uniform(0.15, 0.4, (images, objects, 2)) * [height, width]
    return {
        "image": tf.constant(rng.uniform(0, 255, (images, height, width, 3)), tf.float32),
        "image_size": tf.constant([[height, width]] * images, tf.int32),
        "original_size": tf.constant([[height, width]] * images, tf.int32),
        "image_id": tf.constant(rng.permutation(1000)[:images], tf.int64),
        "boxes": tf.constant(np.concatenate([corner, corner + extent], axis=-1), tf.float32),
        "classes": tf.constant(rng.integers(1, 4, (images, objects)), tf.int32),
        "crowd": tf.zeros((images, objects), tf.uint8),
        "masks": tf.fill((images, objects, 112, 112), tf.constant(255, tf.uint8)),
    }


def calm(model) -> None:
    """Scales the last norm of every block down, so that a random network with frozen norms stays bounded."""
    for layer in model.layers:
        if layer.name.startswith("res") and layer.name.endswith(("conv2", "conv3", "shortcut")):
            layer.norm.gamma.assign(0.3 * np.ones(layer.norm.gamma.shape))
