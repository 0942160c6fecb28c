"""The networks of the paper's tables, and the schedules that the field trains them with today.

`mrcnn_tf.presets` puts them beside the package's own. What is not said here is the default of `Config`: ResNet-50-FPN,
16 images a step, 160,000 steps at .02, a tenth of it from step 120,000.

What the paper does not tell is as in the code published with it, or as its successors have it: 500 steps of warm-up
(`training.warmup_steps=0` turns it off), frozen norms and first stages, flips, a longest edge of 1333 pixels. Ranges of
scales are lists in steps of 32 pixels.
"""

from __future__ import annotations

Entry = tuple[str, dict]  # what it is, and the changes to the defaults of `Config`


def merged(*changes: dict) -> dict:
    """The changes of all sections, later ones over earlier ones."""
    result: dict = {}
    for change in changes:
        for name, value in change.items():
            result[name] = {**result.get(name, {}), **value} if isinstance(value, dict) else value
    return result


# ResNeXt has its stride in the 3x3 convolution.
_BACKBONES = {
    "r18": ("ResNet-18", {"name": "resnet18"}),
    "r34": ("ResNet-34", {"name": "resnet34"}),
    "r50": ("ResNet-50", {"name": "resnet50"}),
    "r101": ("ResNet-101", {"name": "resnet101"}),
    "r152": ("ResNet-152", {"name": "resnet152"}),
    "x50_32x4d": ("ResNeXt-50-32x4d", {"name": "resnext50_32x4d", "stride_in": "3x3"}),
    "x101_32x8d": ("ResNeXt-101-32x8d", {"name": "resnext101_32x8d", "stride_in": "3x3"}),
    "x101_64x4d": ("ResNeXt-101-64x4d", {"name": "resnext101_64x4d", "stride_in": "3x3"}),
}
# Anchors of 5 scales and 3 ratios on one map. The RPN's 512 channels are those of Ren et al. 2015.
_ONE_MAP = {
    "anchors": {"sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),)},
    "rpn": {"channels": 512, "pre_nms_train": 12_000, "pre_nms_test": 6_000, "post_nms_test": 300},
}
# Section 3.1: N = 64 RoIs for C4; res5 works on 7 x 7 with stride 1, and the masks are 14 x 14 (figure 3, left).
_FEATURES = {
    "fpn": {},
    "c4": merged(
        _ONE_MAP,
        {
            "backbone": {"features": "c4"},
            "roi": {"rois_per_image": 64},
            "box_head": {"pool": 7, "res5_stride": 1, "fc": ()},
            "mask_head": {"pool": 7, "convs": ()},
        },
    ),
    # Table 2d: the head is that of figure 3, right, since res5 belongs to the features. The paper tells neither the
    # RoIs nor the proposals: 512 as with such a head on the pyramid, 300 as on the other single map.
    "c5": merged(_ONE_MAP, {"backbone": {"features": "c5"}}),
    "dc5": merged(_ONE_MAP, {"backbone": {"features": "dc5"}}),
}
_TABLES = {
    ("r50", "c4"): "tables 2a, 2b and 2c",
    ("r101", "c4"): "tables 1 and 2a",
    ("r50", "fpn"): "tables 2a and 2e",
    ("r101", "fpn"): "tables 1, 2a and 3",
    ("x101_64x4d", "fpn"): "tables 1, 2a and 3",
    ("r50", "c5"): "table 2d",
}


def _network(backbone: str, features: str) -> tuple[str, dict]:
    name, changes = _BACKBONES[backbone]
    written = {"fpn": "FPN", "c4": "C4", "c5": "C5", "dc5": "dilated C5"}[features]
    return f"{name}-{written}", merged(_FEATURES[features], {"backbone": changes})


def _networks() -> dict[str, Entry]:
    """Mask R-CNN with each backbone on the pyramid, the small ones on a single map, and Faster R-CNN (table 3)."""
    pairs = [(backbone, "fpn") for backbone in _BACKBONES]
    pairs += [("r50", "c4"), ("r101", "c4"), ("r50", "c5"), ("r50", "dc5")]
    entries = {}
    for backbone, features in pairs:
        what, changes = _network(backbone, features)
        where = _TABLES.get((backbone, features))
        entries[f"mask_rcnn_{backbone}_{features}"] = (f"Mask R-CNN {what}" + (f" ({where})" if where else ""), changes)
    for backbone in ("r50", "r101", "x101_64x4d"):
        what, changes = _network(backbone, "fpn")
        what = f"Faster R-CNN with RoIAlign {what}: boxes alone" + " (table 3)" * (backbone == "r101")
        entries[f"faster_rcnn_{backbone}_fpn"] = (what, merged(changes, {"branches": ()}))
    return entries


def _ablations() -> dict[str, Entry]:
    """The rows of tables 2b to 2e, and of section 4's text, that are no network of their own: one change each."""
    rows = {
        "mask_rcnn_r50_c4_softmax": (
            "c4",
            "a softmax over the classes (table 2b)",
            {"mask_head": {"activation": "softmax"}},
        ),
        "mask_rcnn_r50_c4_roipool": ("c4", "RoIPool (table 2c)", {"roi": {"layer": "pool", "reduce": "max"}}),
        "mask_rcnn_r50_c4_roiwarp_max": (
            "c4",
            "RoIWarp, maximum (table 2c)",
            {"roi": {"layer": "warp", "reduce": "max"}},
        ),
        "mask_rcnn_r50_c4_roiwarp": ("c4", "RoIWarp, mean (table 2c)", {"roi": {"layer": "warp"}}),
        "mask_rcnn_r50_c4_roialign_max": ("c4", "RoIAlign, maximum (table 2c)", {"roi": {"reduce": "max"}}),
        "mask_rcnn_r50_c5_roipool": ("c5", "RoIPool (table 2d)", {"roi": {"layer": "pool", "reduce": "max"}}),
        "mask_rcnn_r50_fpn_roipool": ("fpn", "RoIPool (section 4.2)", {"roi": {"layer": "pool", "reduce": "max"}}),
        "mask_rcnn_r50_fpn_mlp": (
            "fpn",
            "a perceptron of two layers for masks (table 2e)",
            {"mask_head": {"fc": (1024,) * 2}},
        ),
        "mask_rcnn_r50_fpn_mlp3": (
            "fpn",
            "a perceptron of three layers for masks (table 2e)",
            {"mask_head": {"fc": (1024,) * 3}},
        ),
        "mask_rcnn_r50_c4_agnostic": (
            "c4",
            "one mask for all classes (section 4.2)",
            {"mask_head": {"class_agnostic": True}},
        ),
    }
    entries = {}
    for name, (features, what, change) in rows.items():
        network, changes = _network("r50", features)
        entries[name] = (f"Mask R-CNN {network} with {what}", merged(changes, change))
    network, changes = _network("r101", "fpn")
    pool = {"branches": (), "roi": {"layer": "pool", "reduce": "max"}}
    what = f"Faster R-CNN with RoIPool {network}: boxes alone (table 3)"
    return entries | {"faster_rcnn_r101_fpn_roipool": (what, merged(changes, pool))}


# === Keypoints (section 5) ===

# Persons, the shorter edge drawn from 640 to 800 pixels in training, 90,000 steps, a tenth at 60k and 80k.
_PERSONS = {
    "num_classes": 1,
    "class_names": ("person",),
    "input": {"shorter_edge": (640, 672, 704, 736, 768, 800)},
    "data": {"drop_empty": True, "min_keypoints": 1},
    "training": {"steps": 90_000, "decay_steps": (60_000, 80_000)},
}


def _keypoints() -> dict[str, Entry]:
    """Table 5's rows: keypoints, both, masks alone and boxes alone, on persons; and table 6's RoIPool."""
    rows = {
        "keypoint_rcnn_r50_fpn": ("boxes and keypoints", {"branches": ("keypoints",)}),
        "keypoint_mask_rcnn_r50_fpn": ("boxes, masks and keypoints", {"branches": ("mask", "keypoints")}),
        "person_mask_rcnn_r50_fpn": ("boxes and masks", {"branches": ("mask",)}),
        "person_faster_rcnn_r50_fpn": ("boxes", {"branches": ()}),
        "keypoint_rcnn_r50_fpn_roipool": (
            "boxes and keypoints by RoIPool (table 6)",
            {"branches": ("keypoints",), "roi": {"layer": "pool", "reduce": "max"}},
        ),
    }
    return {
        name: (f"ResNet-50-FPN for {what} of persons (section 5)", merged(_PERSONS, change))
        for name, (what, change) in rows.items()
    }


# === The schedules of today ===

_1X = {"training": {"steps": 90_000, "decay_steps": (60_000, 80_000), "warmup_steps": 1000}}
_3X = {
    "input": {"shorter_edge": (640, 672, 704, 736, 768, 800)},
    "training": {"steps": 270_000, "decay_steps": (210_000, 250_000), "warmup_steps": 1000},
}
_SCHEDULES: dict[str, Entry] = {
    "mask_rcnn_r50_fpn_1x": ("Mask R-CNN ResNet-50-FPN, 90,000 steps at 800 pixels", _1X),
    "mask_rcnn_r50_fpn_3x": ("Mask R-CNN ResNet-50-FPN, 270,000 steps at 640 to 800 pixels", _3X),
}

# === Large-scale jitter (Ghiasi et al. 2021) ===

# As Detectron2's new baselines have it: from scratch, norms over all devices in every part but the RPN, 64 images a
# step. Images are measured at 800 pixels as ever. Its 16 bits are float16, which needs a scale of the losses.
_LSJ = {
    "backbone": {"norm": "sync_batch", "norm_epsilon": 1e-5, "frozen_stages": 0},
    "fpn": {"norm": "sync_batch"},
    "rpn": {"convs": 2, "box_loss_beta": 0.0, "post_nms_train": 1000},
    "box_head": {"convs": (256,) * 4, "norm": "sync_batch", "fc": (1024,), "loss_beta": 0.0},
    "mask_head": {"norm": "sync_batch"},
    "data": {"crop": (1024,), "scale_jitter": (0.1, 2.0), "drop_empty": True},
    "training": {
        "images_per_device": 8,
        "learning_rate": 0.1,
        "reference_batch": 64,
        "warmup_steps": 500,
        "warmup_start": 0.067,
        "weight_decay": 4e-5,
        "precision": "mixed_bfloat16",
    },
}


def _large_scale_jitter() -> dict[str, Entry]:
    """100, 200 and 400 epochs of COCO, 184,375 steps for each hundred."""
    entries = {}
    for backbone in ("r50", "r101"):
        what, network = _network(backbone, "fpn")
        for times in (1, 2, 4):
            steps = {"steps": 184_375 * times, "decay_steps": (163_889 * times, 177_546 * times)}
            entries[f"mask_rcnn_{backbone}_fpn_lsj_{100 * times}ep"] = (
                f"Mask R-CNN {what} from scratch with large-scale jitter, {100 * times} epochs",
                merged(network, _LSJ, {"training": steps}),
            )
    return entries


PAPER: dict[str, Entry] = {**_networks(), **_ablations(), **_keypoints(), **_SCHEDULES, **_large_scale_jitter()}
