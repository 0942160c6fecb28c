"""The configuration of a Mask R-CNN: frozen dataclasses, one per stage of the model.

Every class checks its values on construction and raises `ConfigError` naming the field, the value
and what would be right. `Config.to_json` and `Config.from_json` round-trip exactly; `Config.replace`
takes dotted names, which is what the command lines use.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from mrcnn_tf.config_values import ConfigError, build, check, merge

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NORMS = ("frozen", "batch", "sync_batch", "group")


@dataclass(frozen=True)
class InputConfig:
    """How an image enters the network (section 3.1: the shorter edge is resized to 800 pixels).

    `shorter_edge` may hold several values: training draws one of them for each image (scale jitter),
    inference uses the last. `mean` and `std` have one value per channel, in the order in which the
    network takes the channels (`channel_order`); the caller's images are always RGB.
    """

    channels: int = 3
    shorter_edge: tuple[int, ...] = (800,)
    longer_edge: int = 1333
    size_divisor: int = 32
    channel_order: str = "bgr"
    mean: tuple[float, ...] = (103.939, 116.779, 123.68)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        check(self.channels >= 1, self, "channels", "at least one channel is needed")
        check(len(self.shorter_edge) >= 1 and min(self.shorter_edge) >= 1, self, "shorter_edge", "positive pixels")
        check(self.longer_edge >= max(self.shorter_edge), self, "longer_edge", "not below shorter_edge")
        check(self.size_divisor % 32 == 0 and self.size_divisor > 0, self, "size_divisor", "a multiple of 32")
        check(self.channel_order in ("rgb", "bgr"), self, "channel_order", "'rgb' or 'bgr'")
        for name in ("mean", "std"):
            rule = f"needs one value per channel ({self.channels})"
            check(len(getattr(self, name)) == self.channels, self, name, rule)
        check(min(self.std) > 0, self, "std", "positive values")


@dataclass(frozen=True)
class BackboneConfig:
    """The residual network (section 3, network architecture).

    `stride_in` says which convolution of a bottleneck carries the stride: the first "1x1" (the
    original ResNet, Keras applications) or the "3x3" (torchvision). `frozen_stages` counts from the
    input: 0 none, 1 the stem, 2 the stem and conv2, up to 5. `norm` "frozen" uses the stored
    statistics and trains nothing of the norm, as the paper does.
    """

    name: str = "resnet50"
    norm: str = "frozen"
    stride_in: str = "1x1"
    frozen_stages: int = 2
    norm_epsilon: float = 1.001e-5

    def __post_init__(self):
        check(self.name in BACKBONES, self, "name", f"one of {', '.join(BACKBONES)}")
        check(self.norm in NORMS, self, "norm", f"one of {', '.join(NORMS)}")
        check(self.stride_in in ("1x1", "3x3"), self, "stride_in", "'1x1' or '3x3'")
        check(0 <= self.frozen_stages <= 5, self, "frozen_stages", "0 (none) to 5 (all stages)")
        check(self.norm_epsilon >= 0, self, "norm_epsilon", "not negative")


@dataclass(frozen=True)
class FPNConfig:
    """The feature pyramid P2..P6: lateral 1x1 and output 3x3 convolutions of `channels`."""

    channels: int = 256

    def __post_init__(self):
        check(self.channels >= 1, self, "channels", "positive")


@dataclass(frozen=True)
class AnchorConfig:
    """Anchors: one tuple of sizes per pyramid level P2..P6, the same ratios (height/width) on each.

    `offset` shifts the centres by that share of a stride: 0 puts them at multiples of the stride
    (Detectron2, torchvision). `rounded` rounds the corners to whole pixels as torchvision does.
    `stride_rule` "level" takes 4, 8, 16, 32, 64 pixels as the distances of the centres; "image" the
    padded image's side // the map's side, as torchvision does: less where a map's side was rounded up.
    """

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    offset: float = 0.0
    rounded: bool = False
    stride_rule: str = "level"

    def __post_init__(self):
        check(len(self.sizes) == 5, self, "sizes", "one tuple of sizes for each of the levels P2..P6")
        same = len({len(level) for level in self.sizes}) == 1 and len(self.sizes[0]) >= 1
        check(same, self, "sizes", "every level needs the same number (at least 1) of sizes")
        check(min(min(level) for level in self.sizes) > 0, self, "sizes", "positive pixels")
        check(len(self.ratios) >= 1 and min(self.ratios) > 0, self, "ratios", "at least one positive ratio")
        check(0.0 <= self.offset < 1.0, self, "offset", "in [0, 1)")
        check(self.stride_rule in ("level", "image"), self, "stride_rule", "'level' or 'image'")

    @property
    def per_position(self) -> int:
        """Anchors at each position of a feature map (A in the shape letters)."""
        return len(self.sizes[0]) * len(self.ratios)


@dataclass(frozen=True)
class RPNConfig:
    """The region proposal network, its training targets and its proposals (section 3.1)."""

    channels: int = 256
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    low_quality_matches: bool = True
    anchors_per_image: int = 256
    positive_fraction: float = 0.5
    box_loss_beta: float = 1.0 / 9.0
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    min_size: float = 0.0

    def __post_init__(self):
        check(
            0 < self.negative_iou <= self.positive_iou <= 1, self, "negative_iou", "0 < negative <= positive_iou <= 1"
        )
        for name in (
            "channels",
            "anchors_per_image",
            "pre_nms_train",
            "pre_nms_test",
            "post_nms_train",
            "post_nms_test",
        ):
            check(getattr(self, name) >= 1, self, name, "at least 1")
        check(0 < self.positive_fraction <= 1, self, "positive_fraction", "in (0, 1]")
        check(0 < self.nms_iou <= 1, self, "nms_iou", "in (0, 1]")
        check(self.box_loss_beta >= 0 and self.min_size >= 0, self, "box_loss_beta", "not negative")


@dataclass(frozen=True)
class RoIConfig:
    """RoI sampling for training and RoIAlign (section 3, RoIAlign; section 3.1, training).

    `half_pixel` applies the half-pixel shift of feature coordinates (Detectron2 does, the first
    torchvision checkpoints do not); `samples` is the number of sampling points per bin and side.
    """

    rois_per_image: int = 512
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    half_pixel: bool = True
    samples: int = 2
    canonical_size: float = 224.0
    canonical_level: int = 4

    def __post_init__(self):
        check(self.rois_per_image >= 1, self, "rois_per_image", "at least 1")
        check(0 < self.positive_fraction <= 1, self, "positive_fraction", "in (0, 1]")
        check(0 < self.positive_iou <= 1, self, "positive_iou", "in (0, 1]")
        check(self.samples >= 1, self, "samples", "at least 1")
        check(self.canonical_size > 0, self, "canonical_size", "positive pixels")
        check(2 <= self.canonical_level <= 5, self, "canonical_level", "2 to 5")


@dataclass(frozen=True)
class BoxHeadConfig:
    """The box branch: fully connected layers, then class scores and per-class box deltas (figure 3)."""

    pool: int = 7
    fc: tuple[int, ...] = (1024, 1024)
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    loss_beta: float = 1.0

    def __post_init__(self):
        check(self.pool >= 1, self, "pool", "at least 1")
        check(len(self.fc) >= 1 and min(self.fc) >= 1, self, "fc", "at least one positive width")
        check(
            len(self.delta_weights) == 4 and min(self.delta_weights) > 0,
            self,
            "delta_weights",
            "4 positive (dy, dx, dh, dw)",
        )
        check(self.loss_beta >= 0, self, "loss_beta", "not negative")


@dataclass(frozen=True)
class MaskHeadConfig:
    """The mask branch: convolutions, a deconvolution, K sigmoid masks (figure 3, right)."""

    pool: int = 14
    convs: tuple[int, ...] = (256, 256, 256, 256)
    deconv: int = 256

    def __post_init__(self):
        check(self.pool >= 1, self, "pool", "at least 1")
        check(all(width >= 1 for width in self.convs), self, "convs", "positive widths")
        check(self.deconv >= 1, self, "deconv", "positive")

    @property
    def side(self) -> int:
        """Side of a predicted mask in cells (M in the shape letters)."""
        return 2 * self.pool


@dataclass(frozen=True)
class DetectionsConfig:
    """Inference (section 3.1): per-class NMS, masks for the best `max_per_image` boxes only.

    `paste` "exact" stretches a mask over its box as it is; "torchvision" over the box with its
    corners cut to whole pixels, as torchvision does.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_per_image: int = 100
    mask_threshold: float = 0.5
    paste: str = "exact"

    def __post_init__(self):
        check(0 <= self.score_threshold < 1, self, "score_threshold", "in [0, 1)")
        check(0 < self.nms_iou <= 1, self, "nms_iou", "in (0, 1]")
        check(self.max_per_image >= 1, self, "max_per_image", "at least 1")
        check(0 < self.mask_threshold < 1, self, "mask_threshold", "in (0, 1)")
        check(self.paste in ("exact", "torchvision"), self, "paste", "'exact' or 'torchvision'")


@dataclass(frozen=True)
class DataConfig:
    """What the input pipeline does to a training example."""

    flip: bool = True
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    mask_crop: int = 112
    drop_empty: bool = False

    def __post_init__(self):
        low_high = len(self.scale_jitter) == 2 and 0 < self.scale_jitter[0] <= self.scale_jitter[1]
        check(low_high, self, "scale_jitter", "(low, high) factors with 0 < low <= high")
        check(self.mask_crop >= 8, self, "mask_crop", "at least 8 cells a side")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser and schedule (section 3.1: SGD .02 for 16 images, .9, 1e-4, a tenth at 120k of 160k).

    `learning_rate` belongs to a global batch of `reference_batch` images and is scaled linearly with
    the batch really used; `reference_batch` 0 takes it as it is.
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
    steps_per_epoch: int = 0
    evaluate_every: int = 1
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "images_per_device"):
            check(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("reference_batch", "warmup_steps", "clip_norm", "weight_decay", "steps_per_epoch"):
            check(getattr(self, name) >= 0, self, name, "not negative")
        for name in ("evaluate_every", "checkpoint_every", "seed"):
            check(getattr(self, name) >= 0, self, name, "not negative (0 switches it off or leaves it to the default)")
        check(self.learning_rate > 0, self, "learning_rate", "positive")
        check(0 <= self.momentum < 1, self, "momentum", "in [0, 1)")
        check(0 <= self.warmup_start <= 1, self, "warmup_start", "a share of the learning rate in [0, 1]")
        check(list(self.decay_steps) == sorted(self.decay_steps), self, "decay_steps", "ascending steps")
        check(0 < self.decay_factor <= 1, self, "decay_factor", "in (0, 1]")


@dataclass(frozen=True)
class Config:
    """A whole Mask R-CNN: `num_classes` is K, the data set's classes without the background."""

    num_classes: int = 80
    class_names: tuple[str, ...] = ()
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    detections: DetectionsConfig = field(default_factory=DetectionsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self):
        check(self.num_classes >= 1, self, "num_classes", "at least one class beside the background")
        fits = not self.class_names or len(self.class_names) == self.num_classes
        check(fits, self, "class_names", f"{self.num_classes} names are needed, one per class (num_classes)")

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
