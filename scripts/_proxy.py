"""How a row of the paper's tables becomes a small one that two cores train in a minute or two.

What the row is about stays: the features (FPN, C4, C5), the RoI layer, the form of the mask branch, the branches. The
rest shrinks: ResNet-18 for ResNet-50, ResNet-34 for ResNet-101, ResNet-50 for ResNeXt-101; thinner heads, images of 128
pixels (seen at 192 by a single map), drawn shapes for COCO, drawn kites with four keypoints for persons, and, where
asked for, drawn outlines of which no two are alike. For Cityscapes stand forty wide images of the same shapes, seen
again and again; for COCO's weights a whole model that was trained on shapes.

As the paper's trainings start from ImageNet, the proxies start from one backbone, trained once in a pyramid on shapes
of a seed of its own; then its norms and first stages are frozen as the paper's are. As the paper's ablations take
proposals of an RPN trained apart, they start with an RPN that works: that of the pyramid, or one trained alone on the
single map. Without it, what a row's few steps teach would be to propose anything at all.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from _drawn import SIDE, Kites, Outlines

import mrcnn_tf

BACKBONES = {"resnet50": "resnet18", "resnet101": "resnet34", "resnext101_64x4d": "resnet50"}
# On a single map the images are enlarged: an object shall have a few cells of stride 16, and one or more of stride 32.
ENLARGED = {"fpn": 1.0, "c4": 1.5, "c5": 1.5}
STEPS = {"fpn": 300, "c4": 140, "c5": 480}
STEPS_FROM_COCO = 50  # of 300: as 4,000 of 24,000
STREET, STREETS = (96, 192), 40  # height and width of wide images, and how many a training has
BATCH = 4
HELD_OUT = 150  # images
# Seeds of the images: of the backbone's training, of those held out, and (plus the row's) of each training.
BACKBONE_SEED, HELD_OUT_SEED, TRAINING_SEED = 7_000, 8_000, 9_000
NOTE = (
    "Proxy: ResNet-18, -34 and -50 stand for ResNet-50, ResNet-101 and ResNeXt-101; thin heads, small drawn images, a "
    "backbone and RPN trained on other drawn images in the place of ImageNet's weights. Absolute numbers mean nothing "
    "beside the paper's; differences between rows may."
)
NOTE_CITYSCAPES = (
    "For Cityscapes stand a few wide images, seen again and again, for COCO's weights those of a whole model trained "
    "on drawn shapes, for the benchmark's measure COCO's of masks."
)


def proxy_config(original: mrcnn_tf.Config, dataset: mrcnn_tf.Dataset) -> mrcnn_tf.Config:
    """The small form of a preset's configuration, for drawn images."""
    small = mrcnn_tf.preset("shapes")
    features = original.backbone.features
    shorter, longer = (round(edge * ENLARGED[features]) for edge in sorted(dataset.sizes[0].tolist()))
    scales = [ENLARGED[features] * level[0] for level in small.anchors.sizes]
    return original.replace(num_classes=len(dataset.class_names), class_names=()).replace(
        class_names=dataset.class_names,
        input={**dataclasses.asdict(small.input), "shorter_edge": (shorter,), "longer_edge": longer},
        backbone={
            "name": BACKBONES[original.backbone.name],
            "norm_epsilon": small.backbone.norm_epsilon,
            "stride_in": "1x1",
        },
        fpn=dataclasses.asdict(small.fpn),
        anchors={"sizes": tuple((scale,) for scale in scales) if features == "fpn" else (tuple(scales),)},
        # res5 on every RoI is what a C4 network's time goes to: few of them, and 4 x 4 cells for boxes (masks keep 7).
        rpn={**dataclasses.asdict(small.rpn), "post_nms_test": 50 if features == "c4" else small.rpn.post_nms_test},
        roi={"rois_per_image": 16 if features == "c4" else 32},
        box_head={"pool": 4 if features == "c4" else original.box_head.pool, "fc": _thin(original.box_head.fc, 4)},
        mask_head={
            "convs": _thin(original.mask_head.convs, 4),
            "deconv": original.mask_head.deconv // 4,
            "fc": _thin(original.mask_head.fc, 4),
        },
        keypoint_head={"convs": _thin(original.keypoint_head.convs, 16), **_keypoints(dataset)},
        detections={"max_per_image": 10},  # twice as many as there are objects
        training={
            **dataclasses.asdict(small.training),
            "images_per_device": BATCH,
            "reference_batch": 0,
            "learning_rate": 0.01,
            "steps": STEPS[features],
            "warmup_steps": STEPS[features] // 10,
            "decay_steps": (STEPS[features] * 3 // 4,),
        },
    )


def _thin(widths: tuple[int, ...], factor: int) -> tuple[int, ...]:
    return tuple(width // factor for width in widths)


def _keypoints(dataset: mrcnn_tf.Dataset) -> dict:
    return {"names": dataset.keypoint_names, "skeleton": dataset.skeleton} if dataset.keypoint_names else {}


def data(kind: str, count: int, seed: int) -> tuple[mrcnn_tf.Dataset, mrcnn_tf.Dataset]:
    """Training images, and those held out (the same for all rows and seeds).

    Args:
        kind: "instances" (shapes of three classes), "persons" (kites with keypoints), "outlines" (all different) or
            "cityscapes" (wide images of shapes, never more than `STREETS`).
        count: of training images.
        seed: the training's.
    """
    if kind == "cityscapes":
        count = min(count, STREETS)
    draw = {"instances": _shapes, "persons": Kites, "outlines": Outlines, "cityscapes": _streets}[kind]
    return draw(count, TRAINING_SEED + seed), draw(HELD_OUT, HELD_OUT_SEED)


def _shapes(count: int, seed: int) -> mrcnn_tf.Dataset:
    return mrcnn_tf.shapes(count, (SIDE, SIDE), seed)


def _streets(count: int, seed: int) -> mrcnn_tf.Dataset:
    return mrcnn_tf.shapes(count, STREET, seed)


# === What all start from ===


def start(config: mrcnn_tf.Config, folder: Path, steps: int, path: Path) -> Path:
    """Writes the weights that the proxy `config` starts from; trains what they come from, in `folder`, if need be.

    The backbone takes `steps` steps, the RPN of a single map half as many.
    """
    source = _backbone(config.backbone.name, folder, steps)
    if config.backbone.features != "fpn":
        source = _proposing(config, source, folder, steps // 2)
    return start_weights(config, source, path)


def start_from_coco(config: mrcnn_tf.Config, folder: Path, steps: int, path: Path) -> Path:
    """Writes all weights of a model of `config`'s form that was trained on shapes, which it trains if need be."""
    run = folder / f"{config.backbone.name}_{steps}_whole"
    if not (run / "model.keras").exists():
        whole = proxy_config(mrcnn_tf.preset("mask_rcnn_r50_fpn"), _shapes(1, 0)).replace(training={"seed": 0})
        weights = start(whole, folder, steps, run / "start.weights.h5")
        images = _shapes(whole.training.steps * BATCH, BACKBONE_SEED + 2)
        mrcnn_tf.train(whole, images, run_dir=run, initial_weights=weights, verbose=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    mrcnn_tf.weights.save_weights(mrcnn_tf.load(run), path)
    return path


def _backbone(name: str, folder: Path, steps: int) -> Path:
    run = folder / f"{name}_{steps}"
    if not (run / "model.keras").exists():
        config = mrcnn_tf.preset("shapes", backbone={"name": name}).with_steps(steps)
        count = config.training.steps * config.training.images_per_device
        mrcnn_tf.train(config, _shapes(count, BACKBONE_SEED), run_dir=run, verbose=2)
    return run


def _proposing(config: mrcnn_tf.Config, backbone: Path, folder: Path, steps: int) -> Path:
    """The RPN alone and the backbone below it, on the single map of `config`."""
    run = folder / f"{backbone.name}_{config.backbone.features}_rpn_{steps}"
    if not (run / "model.keras").exists():
        # No row's own: whatever its RoI layer and branches are, it gets the same RPN.
        heads = {
            "mask_head": dataclasses.asdict(mrcnn_tf.Config().mask_head),
            "roi": {"layer": "align", "reduce": "mean"},
        }
        plain = config.replace(branches=(), **heads, training={"parts": ("rpn",), "seed": 0}).with_steps(steps)
        images = _shapes(steps * plain.training.images_per_device, BACKBONE_SEED + 1)
        weights = start_weights(plain, backbone, run / "start.weights.h5")
        mrcnn_tf.train(plain, images, run_dir=run, initial_weights=weights, verbose=2)
    return run


def start_weights(config: mrcnn_tf.Config, source: Path, path: Path) -> Path:
    """Writes a model of `config` with backbone, pyramid and RPN of the run `source`, as far as they have one shape.

    The rest is drawn by `config.training.seed`.
    """
    import keras

    trained = {weight.path: weight for weight in mrcnn_tf.load(source).weights if weight.path.startswith(_TAKEN)}
    keras.utils.set_random_seed(config.training.seed)
    model = mrcnn_tf.MaskRCNN(config)
    for weight in model.weights:
        old = trained.get(weight.path)
        if old is not None and old.shape == weight.shape:
            weight.assign(old)
    path.parent.mkdir(parents=True, exist_ok=True)
    mrcnn_tf.weights.save_weights(model, path)
    return path


_TAKEN = ("stem/", "res2", "res3", "res4", "res5", "fpn_", "rpn/")
