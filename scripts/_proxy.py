"""How a row of the paper's tables becomes a small one that two cores train in a minute or two.

What the row is about stays: the features (FPN, C4, C5), the RoI layer, the form of the mask branch, the branches. The
rest shrinks: ResNet-18 for ResNet-50, ResNet-34 for ResNet-101, ResNet-50 for ResNeXt-101; thinner heads, images of 128
pixels, drawn shapes for COCO, drawn kites with four keypoints for persons.

As the paper's trainings start from ImageNet, the proxies start from one backbone, trained once in a pyramid on shapes
of a seed of its own; then its norms and first stages are frozen as the paper's are. As the paper's ablations take
proposals of an RPN trained apart, they start with an RPN that works: that of the pyramid, or one trained alone on the
single map. Without it, what a row's few steps teach would be to propose anything at all.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

import mrcnn_tf

BACKBONES = {"resnet50": "resnet18", "resnet101": "resnet34", "resnext101_64x4d": "resnet50"}
SIDE = 128  # pixels of an image
# On a single map the images are enlarged: an object shall have a few cells of stride 16, and one or more of stride 32.
ENLARGED = {"fpn": 1.0, "c4": 1.5, "c5": 1.5}
STEPS = {"fpn": 300, "c4": 140, "c5": 480}
BATCH = 4
HELD_OUT = 150  # images
# Seeds of the images: of the backbone's training, of those held out, and (plus the row's) of each training.
BACKBONE_SEED, HELD_OUT_SEED, TRAINING_SEED = 7_000, 8_000, 9_000
NOTE = (
    "Proxy: ResNet-18, -34 and -50 stand for ResNet-50, ResNet-101 and ResNeXt-101; thin heads, small drawn images, a "
    "backbone and RPN trained on other drawn images in the place of ImageNet's weights. Absolute numbers mean nothing "
    "beside the paper's; differences between rows may."
)


def proxy_config(original: mrcnn_tf.Config, dataset: mrcnn_tf.Dataset) -> mrcnn_tf.Config:
    """The small form of a preset's configuration, for drawn images."""
    small = mrcnn_tf.preset("shapes")
    features = original.backbone.features
    side = round(SIDE * ENLARGED[features])
    scales = [ENLARGED[features] * level[0] for level in small.anchors.sizes]
    return original.replace(num_classes=len(dataset.class_names), class_names=()).replace(
        class_names=dataset.class_names,
        input={**dataclasses.asdict(small.input), "shorter_edge": (side,), "longer_edge": side},
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
        kind: "instances" (shapes of three classes) or "persons" (kites with keypoints).
        count: of training images.
        seed: the training's.
    """
    draw = {"instances": _shapes, "persons": Kites}[kind]
    return draw(count, TRAINING_SEED + seed), draw(HELD_OUT, HELD_OUT_SEED)


def _shapes(count: int, seed: int) -> mrcnn_tf.Dataset:
    return mrcnn_tf.shapes(count, (SIDE, SIDE), seed)


# === What all start from ===


def start(config: mrcnn_tf.Config, folder: Path, steps: int, path: Path) -> Path:
    """Writes the weights that the proxy `config` starts from; trains what they come from, in `folder`, if need be.

    The backbone takes `steps` steps, the RPN of a single map half as many.
    """
    source = _backbone(config.backbone.name, folder, steps)
    if config.backbone.features != "fpn":
        source = _proposing(config, source, folder, steps // 2)
    return start_weights(config, source, path)


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


# === Kites ===

_AROUND = [0, 1, 3, 2]  # the corners in the order of the outline


class Kites(mrcnn_tf.Dataset):
    """Images of up to four kites with the keypoints head, left, right and tail; what another one hides is hidden.

    Image i depends on the seed and on i alone.
    """

    def __init__(self, count: int, seed: int, side: int = SIDE):
        super().__init__(
            name=f"kites (seed {seed})",
            class_names=("kite",),
            category_ids=(1,),
            image_ids=np.arange(1, count + 1, dtype=np.int64),
            sizes=np.full((count, 2), side, np.int32),
            keypoint_names=("head", "left_corner", "right_corner", "tail"),
            skeleton=((0, 1), (0, 2), (1, 3), (2, 3)),
        )
        self._seed, self._side = seed, side

    def example(self, index: int) -> mrcnn_tf.Example:
        """Draws image `index`."""
        rng = np.random.default_rng([self._seed, range(len(self))[index]])
        side = self._side
        corners = np.stack([_kite(rng, side) for _ in range(rng.integers(1, 5))])  # [G, 4, 2] y, x
        top = np.zeros((side, side), np.int32)  # the number of the kite in sight, 0 for none
        background = rng.uniform(0, 255, 3)
        image = np.tile(background, (side, side, 1))
        for number, kite in enumerate(corners, start=1):
            canvas = Image.new("1", (side, side))
            ImageDraw.Draw(canvas).polygon([(x - 0.5, y - 0.5) for y, x in kite[_AROUND]], fill=1)
            inside = np.asarray(canvas)
            top[inside] = number
            # Away from the background's colour, so that it can be seen; darker towards the tail, so can its ends.
            colour = (background + rng.uniform(70, 185, 3)) % 256
            down = (np.arange(side)[:, None, None] + 0.5 - kite[0, 0]) * (kite[3, 0] - kite[0, 0])
            along = (np.arange(side)[None, :, None] + 0.5 - kite[0, 1]) * (kite[3, 1] - kite[0, 1]) + down
            shade = 1.0 - 0.5 * np.clip(along / np.sum((kite[3] - kite[0]) ** 2), 0, 1)
            image[inside] = (colour * shade)[inside]
        masks = top == np.arange(1, len(corners) + 1)[:, None, None]
        image += rng.normal(0, rng.uniform(4, 14), image.shape)
        kept = masks.sum(axis=(1, 2)) >= 40
        return self._record(range(len(self))[index], image, masks[kept], corners[kept])

    def _record(self, index: int, image: np.ndarray, masks: np.ndarray, corners: np.ndarray) -> mrcnn_tf.Example:
        side = self._side
        segmentations = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
        x, y, width, height = coco_mask.toBbox(segmentations).reshape(-1, 4).T
        inside = np.clip(corners, 0, side - 1).astype(int)
        # A corner that another kite covers is labelled, and hidden. Beside the corner lies its own kite, or nothing.
        seen = np.array([_near(mask, points) for mask, points in zip(masks, inside)]).reshape(len(masks), 4)
        return mrcnn_tf.Example(
            image_id=int(self.image_ids[index]),
            path=None,
            pixels=np.clip(image, 0, 255).astype(np.uint8),
            size=(side, side),
            boxes=np.stack([y, x, y + height, x + width], axis=1).astype(np.float32),
            classes=np.ones(len(masks), np.int32),
            crowd=np.zeros(len(masks), bool),
            areas=masks.sum(axis=(1, 2)).astype(np.float32),
            segmentations=tuple({"size": list(r["size"]), "counts": r["counts"].decode()} for r in segmentations),
            keypoints=np.concatenate([corners, np.where(seen, 2.0, 1.0)[..., None]], axis=2).astype(np.float32),
            source=f"{self.name} image {index}",
        )


def _kite(rng: np.random.Generator, side: int) -> np.ndarray:
    """[4, 2] y, x: head, left, right and tail, all inside the image; the head is up, give or take 45 degrees."""
    length = side * math.exp(rng.uniform(math.log(0.2), math.log(0.5)))
    half, waist, angle = (
        length * rng.uniform(0.25, 0.4),
        length * rng.uniform(0.25, 0.45),
        rng.uniform(-1, 1) * np.pi / 4,
    )
    points = np.array([[0.0, 0.0], [waist, -half], [waist, half], [length, 0.0]]) - [length / 2, 0.0]
    turned = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low, high = turned.min(axis=0), turned.max(axis=0)
    return turned + rng.uniform(-low + 1, side - 1 - high)


def _near(mask: np.ndarray, points: np.ndarray) -> list[bool]:
    """Whether the mask has a pixel within two of each point."""
    return [bool(mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any()) for y, x in points]
