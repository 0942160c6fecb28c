"""The configuration of a Mask R-CNN: frozen dataclasses, one per stage of the model.

Every class checks its values on construction and raises `ConfigError` naming the field, the value
and what would be right. `Config.to_json` and `Config.from_json` round-trip exactly; `Config.replace`
takes dotted names, which is what the command lines use.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrcnn_tf.config_stages import (
    BRANCHES,
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    DetectionsConfig,
    FPNConfig,
    InputConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    RoIConfig,
    RPNConfig,
)
from mrcnn_tf.config_values import ConfigError, build, check, merge

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

PARTS = ("rpn", "heads")


@dataclass(frozen=True)
class DataConfig:
    """What the input pipeline does to a training example.

    `scale_jitter` has the lowest and the highest factor of a random scale. Without `crop` it multiplies the shorter
    edge. `crop` is a canvas, the side of a square or (height, width), that all training images are brought to: the
    factor is then that of the canvas, which the image is scaled to fit; of a larger image a random part is taken, a
    smaller one is padded, and `input.shorter_edge` and `input.longer_edge` hold for evaluation alone.

    `drop_empty` leaves images without objects out of the training, `min_keypoints` those whose objects have fewer
    labelled keypoints than that, all together; of a data set without keypoints it leaves nothing out.
    """

    flip: bool = True
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, ...] = ()
    mask_crop: int = 112
    drop_empty: bool = False
    min_keypoints: int = 0

    def __post_init__(self):
        low_high = len(self.scale_jitter) == 2 and 0 < self.scale_jitter[0] <= self.scale_jitter[1]
        check(low_high, self, "scale_jitter", "(low, high) factors with 0 < low <= high")
        sides = len(self.crop) <= 2 and all(side >= 1 for side in self.crop)
        check(sides, self, "crop", "the side of a square canvas or its height and width, positive pixels; () for none")
        check(self.mask_crop >= 8, self, "mask_crop", "at least 8 cells a side")
        check(self.min_keypoints >= 0, self, "min_keypoints", "a number of keypoints, 0 for all images")

    @property
    def canvas(self) -> tuple[int, int] | None:
        """(height, width) of the canvas that `crop` names, None without one."""
        return (self.crop[0], self.crop[-1]) if self.crop else None


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser and schedule (section 3.1: SGD .02 for 16 images, .9, 1e-4, a tenth at 120k of 160k).

    `learning_rate` belongs to a global batch of `reference_batch` images and is scaled linearly with
    the batch really used; `reference_batch` 0 takes it as it is. An update takes `accumulate` micro-batches one after
    the other; its batch is that of all of them, but for norms, whose means and variances (and moving ones) are those of
    each micro-batch. `precision` is one of `PRECISIONS`.

    `parts` are what the losses are of and what is trained, with the backbone below where `train_backbone` is true:
    "rpn" the proposal network, "heads" all branches. The heads without the RPN take proposals that come with the data
    (`mrcnn_tf.with_proposals`), as in the paper's ablations, where the two share no features.
    """

    steps: int = 160_000
    images_per_device: int = 2
    learning_rate: float = 0.02
    reference_batch: int = 16
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms_and_biases: bool = False
    warmup_steps: int = 500
    warmup_start: float = 0.001
    decay_steps: tuple[int, ...] = (120_000,)
    decay_factor: float = 0.1
    clip_norm: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    steps_per_epoch: int = 0
    evaluate_every: int = 1
    checkpoint_every: int = 0
    seed: int = 0
    parts: tuple[str, ...] = PARTS
    train_backbone: bool = True

    def __post_init__(self):
        for name in ("steps", "images_per_device", "accumulate"):
            check(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("reference_batch", "warmup_steps", "clip_norm", "weight_decay", "steps_per_epoch"):
            check(getattr(self, name) >= 0, self, name, "not negative")
        for name in ("evaluate_every", "checkpoint_every", "seed"):
            check(getattr(self, name) >= 0, self, name, "not negative (0 switches it off or leaves it to the default)")
        check(self.precision in PRECISIONS, self, "precision", f"one of {', '.join(PRECISIONS)}")
        check(self.learning_rate > 0, self, "learning_rate", "positive")
        check(0 <= self.momentum < 1, self, "momentum", "in [0, 1)")
        check(0 <= self.warmup_start <= 1, self, "warmup_start", "a share of the learning rate in [0, 1]")
        check(list(self.decay_steps) == sorted(self.decay_steps), self, "decay_steps", "ascending steps")
        check(0 < self.decay_factor <= 1, self, "decay_factor", "in (0, 1]")
        known = len(set(self.parts)) == len(self.parts) > 0 and set(self.parts) <= set(PARTS)
        check(known, self, "parts", f"each at most once, of {', '.join(PARTS)}")


@dataclass(frozen=True)
class Config:
    """A whole Mask R-CNN: `num_classes` is K, the data set's classes without the background.

    `branches` are those beside the box branch: "mask", "keypoints", both, or none (a Faster R-CNN with RoIAlign).
    """

    num_classes: int = 80
    class_names: tuple[str, ...] = ()
    branches: tuple[str, ...] = ("mask",)
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    keypoint_head: KeypointHeadConfig = field(default_factory=KeypointHeadConfig)
    detections: DetectionsConfig = field(default_factory=DetectionsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self):
        check(self.num_classes >= 1, self, "num_classes", "at least one class beside the background")
        fits = not self.class_names or len(self.class_names) == self.num_classes
        check(fits, self, "class_names", f"{self.num_classes} names are needed, one per class (num_classes)")
        known = len(set(self.branches)) == len(self.branches) and set(self.branches) <= set(BRANCHES)
        check(known, self, "branches", f"each at most once, of {', '.join(BRANCHES)}")
        features = self.backbone.features
        levels = len(self.anchors.sizes)
        right = 5 if features == "fpn" else 1
        which = "each of the levels P2..P6" if features == "fpn" else f"the one map of the features '{features}'"
        check(levels == right, self.anchors, "sizes", f"one tuple of sizes for {which}")
        if features == "fpn":
            check(self.input.size_divisor % 32 == 0, self.input, "size_divisor", "a multiple of 32 (features 'fpn')")
        divisor = self.input.size_divisor
        whole = all(side % divisor == 0 for side in self.data.crop)
        check(whole, self.data, "crop", f"multiples of input.size_divisor, {divisor}")
        for section, name in ((self.fpn, "channels"), (self.box_head, "convs"), (self.mask_head, "convs")):
            widths = getattr(section, name)
            whole = section.norm != "group" or all(
                width % 32 == 0 for width in (widths if name == "convs" else (widths,))
            )
            check(whole, section, name, "multiples of 32, the groups of its norm 'group'")
        bottleneck = self.backbone.name not in ("resnet18", "resnet34")
        check(features != "dc5" or bottleneck, self.backbone, "features", "'dc5' needs a backbone of bottlenecks")

    @property
    def mask_side(self) -> int:
        """Side of a predicted mask in cells (M in the shape letters): twice that of the features it is made of."""
        if self.backbone.features != "c4":
            return 2 * self.mask_head.pool
        return 2 * -(-self.mask_head.pool // self.box_head.res5_stride)

    def to_dict(self) -> dict:
        """A plain dictionary of numbers, strings, lists and dictionaries."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """The inverse of `to_dict`; fields that are missing take their defaults.

        Raises:
            ConfigError: an unknown field, a value of the wrong type, or a value out of range.
        """
        return build(cls, values, "")

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of `to_json`; raises `ConfigError` where the text is no such json."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the configuration is not valid json: {error}") from error
        return cls.from_dict(values)

    @classmethod
    def from_file(cls, path: str | Path) -> Config:
        """What a config.json holds; raises `ConfigError`, which names the file, where it is none, and `OSError`."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is no configuration, which would be json") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def replace(self, **values: Any) -> Config:
        """A copy with some fields changed.

        Names are fields, `section__field` or (through `**{}`) "section.field"; a section also takes a
        dictionary: `config.replace(input={"shorter_edge": 256}, rpn__nms_iou=0.6)`.

        Raises:
            ConfigError: an unknown field, with the nearest known name, or a value that does not fit.
        """
        merged = self.to_dict()
        for name, value in values.items():
            merge(merged, name.replace("__", ".").split("."), value, name)
        return Config.from_dict(merged)

    def with_steps(self, steps: int) -> Config:
        """The same schedule over another number of steps: warm-up and decay keep their share of it."""
        training = self.training
        return self.replace(
            training__steps=steps,
            training__warmup_steps=round(steps * training.warmup_steps / training.steps),
            training__decay_steps=tuple(round(steps * step / training.steps) for step in training.decay_steps),
        )
