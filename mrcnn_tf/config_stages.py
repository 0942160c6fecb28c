"""The configuration of the network's stages: frozen dataclasses, one per stage, checked on construction.

`mrcnn_tf.config` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrcnn_tf.coco_names import KEYPOINTS, SKELETON
from mrcnn_tf.config_values import check

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
NORMS = ("frozen", "batch", "sync_batch", "group")
HEAD_NORMS = ("none", *NORMS)
FEATURES = ("fpn", "c4", "c5", "dc5")
BRANCHES = ("mask", "keypoints")


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
        check(self.size_divisor >= 1, self, "size_divisor", "positive")
        check(self.channel_order in ("rgb", "bgr"), self, "channel_order", "'rgb' or 'bgr'")
        for name in ("mean", "std"):
            rule = f"needs one value per channel ({self.channels})"
            check(len(getattr(self, name)) == self.channels, self, name, rule)
        check(min(self.std) > 0, self, "std", "positive values")


@dataclass(frozen=True)
class BackboneConfig:
    """The residual network (section 3, network architecture; table 2a).

    `features` are what the proposals and the branches see: "fpn" the pyramid; "c4" the map of stride 16, on which res5
    runs for each RoI as the head; "c5" the map of stride 32; "dc5" the same at stride 16, res5 being dilated.
    `stride_in` says which convolution of a bottleneck carries the stride: the first "1x1" (the
    original ResNet, Keras applications) or the "3x3" (torchvision). `frozen_stages` counts from the
    input: 0 none, 1 the stem, 2 the stem and conv2, up to 5. `norm` "frozen" uses the stored statistics and trains
    nothing of the norm, as the code published with the paper does. `norm_epsilon` is that of all norms of the model.
    `pool_padding` is where the first pooling pads: "symmetric", or as TensorFlow's "same" (Matterport's weights).
    """

    name: str = "resnet50"
    features: str = "fpn"
    norm: str = "frozen"
    stride_in: str = "1x1"
    frozen_stages: int = 2
    norm_epsilon: float = 1.001e-5
    pool_padding: str = "symmetric"

    def __post_init__(self):
        check(self.name in BACKBONES, self, "name", f"one of {', '.join(BACKBONES)}")
        check(self.features in FEATURES, self, "features", f"one of {', '.join(FEATURES)}")
        check(self.pool_padding in ("symmetric", "same"), self, "pool_padding", "'symmetric' or 'same'")
        check(self.norm in NORMS, self, "norm", f"one of {', '.join(NORMS)}")
        check(self.stride_in in ("1x1", "3x3"), self, "stride_in", "'1x1' or '3x3'")
        check(0 <= self.frozen_stages <= 5, self, "frozen_stages", "0 (none) to 5 (all stages)")
        check(self.norm_epsilon >= 0, self, "norm_epsilon", "not negative")


@dataclass(frozen=True)
class FPNConfig:
    """The feature pyramid P2..P6: lateral 1x1 and output 3x3 convolutions of `channels`.

    With a `norm` other than "none" the convolutions have that norm in the place of a bias.
    """

    channels: int = 256
    norm: str = "none"

    def __post_init__(self):
        check(self.channels >= 1, self, "channels", "positive")
        check(self.norm in HEAD_NORMS, self, "norm", f"one of {', '.join(HEAD_NORMS)}")


@dataclass(frozen=True)
class AnchorConfig:
    """Anchors: one tuple of sizes per level (P2..P6, or the only map there is), the same ratios (height/width) on each.

    `offset` shifts the centres by that share of a stride: 0 puts them at multiples of the stride
    (Detectron2, torchvision). `rounded` rounds the corners to whole pixels as torchvision does.
    `stride_rule` "level" takes 4, 8, 16, 32, 64 pixels as the distances of the centres; "image" the
    padded image's side // the map's side, as torchvision does: less where a map's side was rounded up.
    `shrink` takes that many pixels off the lower and right side, as Matterport's boxes with inclusive corners want it.
    """

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    offset: float = 0.0
    rounded: bool = False
    stride_rule: str = "level"
    shrink: float = 0.0

    def __post_init__(self):
        check(len(self.sizes) >= 1, self, "sizes", "one tuple of sizes for each level")
        same = len({len(level) for level in self.sizes}) == 1 and len(self.sizes[0]) >= 1
        check(same, self, "sizes", "every level needs the same number (at least 1) of sizes")
        check(min(min(level) for level in self.sizes) > 0, self, "sizes", "positive pixels")
        check(len(self.ratios) >= 1 and min(self.ratios) > 0, self, "ratios", "at least one positive ratio")
        check(0.0 <= self.offset < 1.0, self, "offset", "in [0, 1)")
        check(self.stride_rule in ("level", "image"), self, "stride_rule", "'level' or 'image'")
        check(
            0.0 <= self.shrink < min(min(level) for level in self.sizes), self, "shrink", "less than an anchor's side"
        )

    @property
    def per_position(self) -> int:
        """Anchors at each position of a feature map (A in the shape letters)."""
        return len(self.sizes[0]) * len(self.ratios)


@dataclass(frozen=True)
class RPNConfig:
    """The region proposal network, its training targets and its proposals (section 3.1).

    `convs` is the number of 3x3 convolutions before the two outputs.
    """

    channels: int = 256
    convs: int = 1
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
            "convs",
            "anchors_per_image",
            "pre_nms_train",
            "pre_nms_test",
            "post_nms_train",
            "post_nms_test",
        ):
            check(getattr(self, name) >= 1, self, name, "at least 1")
        check(0 < self.positive_fraction <= 1, self, "positive_fraction", "in (0, 1]")
        check(0 < self.nms_iou <= 1, self, "nms_iou", "in (0, 1]")
        for name in ("box_loss_beta", "min_size"):
            check(getattr(self, name) >= 0, self, name, "not negative")


@dataclass(frozen=True)
class RoIConfig:
    """RoI sampling for training and the RoI layer (section 3, RoIAlign; section 3.1, training; tables 2c, 2d, 6).

    `layer` is "align"; "pool" and "warp", the quantised ones that the paper compares; or "crop", with the outer
    samples on the corners of the RoI (Matterport). `reduce` is how the samples of a bin become one: "mean" or "max".
    `half_pixel` applies the half-pixel shift of feature coordinates (Detectron2 does, the first
    torchvision checkpoints do not); `samples` is the number of sampling points per bin and side, where 0 lets it grow
    with the RoI, so that they are at most one cell apart (Detectron2's default).
    """

    rois_per_image: int = 512
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    layer: str = "align"
    reduce: str = "mean"
    half_pixel: bool = True
    samples: int = 2
    canonical_size: float = 224.0
    canonical_level: int = 4

    def __post_init__(self):
        check(self.rois_per_image >= 1, self, "rois_per_image", "at least 1")
        check(0 < self.positive_fraction <= 1, self, "positive_fraction", "in (0, 1]")
        check(0 < self.positive_iou <= 1, self, "positive_iou", "in (0, 1]")
        check(self.layer in ("align", "pool", "warp", "crop"), self, "layer", "'align', 'pool', 'warp' or 'crop'")
        check(self.reduce in ("mean", "max"), self, "reduce", "'mean' or 'max'")
        check(self.samples >= 0, self, "samples", "at least 1, or 0 for a number that grows with the RoI")
        check(self.canonical_size > 0, self, "canonical_size", "positive pixels")
        check(2 <= self.canonical_level <= 5, self, "canonical_level", "2 to 5")


@dataclass(frozen=True)
class BoxHeadConfig:
    """The box branch: class scores and per-class box deltas (figure 3).

    Before them stand 3x3 convolutions of the widths `convs` (with `norm`, or with a bias where that is "none") and
    fully connected layers of the widths `fc`; with the features "c4" instead res5 and the mean over its cells.
    `res5_stride` is the stride of that res5: 1 on a `pool` of 7 as in the paper, 2 on 14 as in Detectron2.
    """

    pool: int = 7
    convs: tuple[int, ...] = ()
    norm: str = "none"
    fc: tuple[int, ...] = (1024, 1024)
    res5_stride: int = 1
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    loss_beta: float = 1.0

    def __post_init__(self):
        check(self.pool >= 1, self, "pool", "at least 1")
        check(all(width >= 1 for width in (*self.convs, *self.fc)), self, "fc", "positive widths")
        check(self.norm in HEAD_NORMS, self, "norm", f"one of {', '.join(HEAD_NORMS)}")
        check(self.res5_stride in (1, 2), self, "res5_stride", "1 or 2")
        check(
            len(self.delta_weights) == 4 and min(self.delta_weights) > 0,
            self,
            "delta_weights",
            "4 positive (dy, dx, dh, dw)",
        )
        check(self.loss_beta >= 0, self, "loss_beta", "not negative")


@dataclass(frozen=True)
class MaskHeadConfig:
    """The mask branch: convolutions, a deconvolution, K sigmoid masks (figure 3, right).

    With the features "c4" it stands on the output of res5 (figure 3, left), whose side is that of `pool` divided by
    the stride of res5. The paper's comparisons: `fc` makes it a perceptron of these widths in the place of all
    convolutions (table 2e); `activation` "softmax" lets the classes and the background compete for a pixel (table 2b);
    `class_agnostic` predicts a single mask for all classes (section 4.2).
    """

    pool: int = 14
    convs: tuple[int, ...] = (256, 256, 256, 256)
    norm: str = "none"
    deconv: int = 256
    fc: tuple[int, ...] = ()
    activation: str = "sigmoid"
    class_agnostic: bool = False

    def __post_init__(self):
        check(self.pool >= 1, self, "pool", "at least 1")
        check(all(width >= 1 for width in self.fc), self, "fc", "positive widths")
        check(self.activation in ("sigmoid", "softmax"), self, "activation", "'sigmoid' or 'softmax'")
        alone = not (self.class_agnostic and self.activation == "softmax")
        check(alone, self, "class_agnostic", "a single mask has no classes that a softmax could choose from")
        check(all(width >= 1 for width in self.convs), self, "convs", "positive widths")
        check(self.norm in HEAD_NORMS, self, "norm", f"one of {', '.join(HEAD_NORMS)}")
        check(self.deconv >= 1, self, "deconv", "positive")


@dataclass(frozen=True)
class KeypointHeadConfig:
    """The keypoint branch (section 5): convolutions, a deconvolution, 2x bilinear; one heat map per keypoint.

    `names` are the keypoints' names in the order of the data set; those called left_... and right_..., or with these
    words elsewhere in the name, change places when an image is flipped. `skeleton` has the pairs of keypoints that a
    picture joins by a line, counted from 0.
    """

    pool: int = 14
    convs: tuple[int, ...] = (512,) * 8
    names: tuple[str, ...] = KEYPOINTS
    skeleton: tuple[tuple[int, int], ...] = SKELETON
    loss_weight: float = 1.0

    def __post_init__(self):
        check(self.pool >= 1, self, "pool", "at least 1")
        check(all(width >= 1 for width in self.convs), self, "convs", "positive widths")
        different = len(set(self.names)) == len(self.names) >= 1
        check(different, self, "names", "at least one keypoint, all called differently")
        known = all(0 <= end < len(self.names) for line in self.skeleton for end in line)
        check(known, self, "skeleton", f"keypoints from 0 to {len(self.names) - 1}")
        check(self.loss_weight > 0, self, "loss_weight", "positive")

    @property
    def side(self) -> int:
        """Side of a heat map in cells."""
        return 4 * self.pool


@dataclass(frozen=True)
class DetectionsConfig:
    """Inference (section 3.1): per-class NMS, masks for the best `max_per_image` boxes only.

    `paste` "exact" stretches a mask over its box as it is; "torchvision" over the box with its
    corners cut to whole pixels, as torchvision does. `one_class_per_box` gives each proposal its best class alone
    (Matterport), where Faster R-CNN tries all classes. Boxes that lie outside the image, or have a side below
    `min_size` pixels, are dropped "before" the NMS, or "after" it: then they take places of others first (Detectron2).
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_per_image: int = 100
    mask_threshold: float = 0.5
    paste: str = "exact"
    one_class_per_box: bool = False
    min_size: float = 0.0
    drop_small: str = "before"

    def __post_init__(self):
        check(0 <= self.score_threshold < 1, self, "score_threshold", "in [0, 1)")
        check(0 < self.nms_iou <= 1, self, "nms_iou", "in (0, 1]")
        check(self.max_per_image >= 1, self, "max_per_image", "at least 1")
        check(0 < self.mask_threshold < 1, self, "mask_threshold", "in (0, 1)")
        check(self.paste in ("exact", "torchvision"), self, "paste", "'exact' or 'torchvision'")
        check(self.min_size >= 0, self, "min_size", "not negative")
        check(self.drop_small in ("before", "after"), self, "drop_small", "'before' or 'after'")
