"""What each implementation calls each weight of each network, written down from their own module trees.

A table is a list of `Row`s: the weight's path and shape here, the tensor's name and shape there. Tensors that have no
weight here (counters, the classifier of ImageNet) stand apart. Tests hold these tables against the recorded names and
shapes of real models (`*_spec.json`), and the package against the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrcnn_tf.config import Config

# Blocks of the stages; whether they are bottlenecks; groups and their width in the first stage.
NETWORKS = {
    "resnet18": ((2, 2, 2, 2), False, 1, 64),
    "resnet34": ((3, 4, 6, 3), False, 1, 64),
    "resnet50": ((3, 4, 6, 3), True, 1, 64),
    "resnet101": ((3, 4, 23, 3), True, 1, 64),
    "resnet152": ((3, 8, 36, 3), True, 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), True, 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), True, 32, 8),
    "resnext101_64x4d": ((3, 4, 23, 3), True, 64, 4),
}


@dataclass(frozen=True)
class Row:
    path: str
    shape: tuple
    name: str
    torch_shape: tuple


@dataclass(frozen=True)
class Conv:
    """A convolution of the backbone: where it stands and its shape; stage 1 is the stem."""

    stage: int
    block: int
    part: str
    out: int
    ins: int  # of one group
    size: int

    @property
    def path(self):
        return "stem" if self.stage == 1 else f"res{self.stage}_block{self.block + 1}_{self.part}"


def backbone(network: str) -> list[Conv]:
    blocks, bottleneck, groups, group_width = NETWORKS[network]
    convs, before = [Conv(1, 0, "conv1", 64, 3, 7)], 64
    for stage, count in zip((2, 3, 4, 5), blocks):
        scale = 2 ** (stage - 2)
        width = groups * group_width * scale
        out = 256 * scale if bottleneck else width
        for block in range(count):
            if bottleneck:
                convs.append(Conv(stage, block, "conv1", width, before, 1))
                convs.append(Conv(stage, block, "conv2", width, width // groups, 3))
                convs.append(Conv(stage, block, "conv3", out, width, 1))
            else:
                convs.append(Conv(stage, block, "conv1", width, before, 3))
                convs.append(Conv(stage, block, "conv2", width, width, 3))
            if before != out:
                convs.append(Conv(stage, block, "shortcut", out, before, 1))
            before = out
    return convs


# === The backbone in each one's words: the module of a convolution and that of its norm ===


def torchvision_modules(conv: Conv, prefix: str) -> tuple[str, str]:
    if conv.stage == 1:
        return f"{prefix}conv1", f"{prefix}bn1"
    block = f"{prefix}layer{conv.stage - 1}.{conv.block}"
    if conv.part == "shortcut":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    return f"{block}.{conv.part}", f"{block}.bn{conv.part[-1]}"


def detectron2_modules(conv: Conv, features: str) -> tuple[str, str]:
    prefix = {"fpn": "backbone.bottom_up.", "c4": "backbone.", "dc5": "backbone."}[features]
    if features == "c4" and conv.stage == 5:
        prefix = "roi_heads."
    module = "stem.conv1" if conv.stage == 1 else f"res{conv.stage}.{conv.block}.{conv.part}"
    return prefix + module, f"{prefix}{module}.norm"


def _with_norm(path, shape, module, norm, out) -> list[Row]:
    height, width, ins, _ = shape
    rows = [Row(f"{path}/kernel", shape, f"{module}.weight", (out, ins, height, width))]
    for ours, theirs in (
        ("gamma", "weight"),
        ("beta", "bias"),
        ("moving_mean", "running_mean"),
        ("moving_variance", "running_var"),
    ):
        rows.append(Row(f"{path}/norm/{ours}", (out,), f"{norm}.{theirs}", (out,)))
    return rows


def _backbone_rows(network, modules) -> list[Row]:
    rows = []
    for conv in backbone(network):
        shape = (conv.size, conv.size, conv.ins, conv.out)
        rows += _with_norm(conv.path, shape, *modules(conv), conv.out)
    return rows


def _conv(path, size, ins, out, module, torch_out=None) -> list[Row]:
    return [
        Row(f"{path}/kernel", (size, size, ins, out), f"{module}.weight", (torch_out or out, ins, size, size)),
        Row(f"{path}/bias", (out,), f"{module}.bias", (torch_out or out,)),
    ]


def _dense(path, ins, out, module, torch_out=None) -> list[Row]:
    return [
        Row(f"{path}/kernel", (ins, out), f"{module}.weight", (torch_out or out, ins)),
        Row(f"{path}/bias", (out,), f"{module}.bias", (torch_out or out,)),
    ]


def _deconv(path, size, ins, out, module) -> list[Row]:
    return [
        Row(f"{path}/kernel", (size, size, out, ins), f"{module}.weight", (ins, out, size, size)),
        Row(f"{path}/bias", (out,), f"{module}.bias", (out,)),
    ]


# === Whole detectors ===


def torchvision_rows(config: Config, second: bool = False) -> list[Row]:
    rows = _backbone_rows(config.backbone.name, lambda conv: torchvision_modules(conv, "backbone.body."))
    top = 512 if config.backbone.name in ("resnet18", "resnet34") else 2048

    def conv(path, size, ins, out, module):
        if second:
            return _with_norm(path, (size, size, ins, out), f"{module}.0", f"{module}.1", out)
        return _conv(path, size, ins, out, f"{module}.0")

    for index in range(4):
        rows += conv(f"fpn_lateral{index + 2}", 1, top // 2 ** (3 - index), 256, f"backbone.fpn.inner_blocks.{index}")
    for index in range(4):
        rows += conv(f"fpn_output{index + 2}", 3, 256, 256, f"backbone.fpn.layer_blocks.{index}")
    rows += _conv("rpn/conv", 3, 256, 256, "rpn.head.conv.0.0")
    if second:
        rows += _conv("rpn/conv2", 3, 256, 256, "rpn.head.conv.1.0")
    rows += _conv("rpn/objectness", 1, 256, 3, "rpn.head.cls_logits")
    rows += _conv("rpn/deltas", 1, 256, 12, "rpn.head.bbox_pred")
    fc, classes = config.box_head.fc, config.num_classes
    if second:
        for index in range(4):
            rows += conv(f"box_conv{index + 1}", 3, 256, 256, f"roi_heads.box_head.{index}")
        rows += _dense("box_fc1", 12544, fc[0], "roi_heads.box_head.5")
    else:
        rows += _dense("box_fc1", 12544, fc[0], "roi_heads.box_head.fc6")
        rows += _dense("box_fc2", fc[0], fc[1], "roi_heads.box_head.fc7")
    rows += _dense("box_classes", fc[-1], classes + 1, "roi_heads.box_predictor.cls_score")
    rows += _dense("box_deltas", fc[-1], 4 * classes, "roi_heads.box_predictor.bbox_pred", 4 * classes + 4)
    if "mask" in config.branches:
        for index in range(4):
            rows += conv(f"mask_conv{index + 1}", 3, 256, 256, f"roi_heads.mask_head.{index}")
        rows += _deconv("mask_deconv", 2, 256, 256, "roi_heads.mask_predictor.conv5_mask")
        rows += _conv("mask_logits", 1, 256, classes, "roi_heads.mask_predictor.mask_fcn_logits", classes + 1)
    if "keypoints" in config.branches:
        for index in range(8):
            ins = 512 if index else 256
            rows += _conv(f"keypoint_conv{index + 1}", 3, ins, 512, f"roi_heads.keypoint_head.{2 * index}")
        rows += _deconv("keypoint_deconv", 4, 512, 17, "roi_heads.keypoint_predictor.kps_score_lowres")
    return rows


def detectron2_rows(config: Config) -> list[Row]:
    features, classes, fc = config.backbone.features, config.num_classes, config.box_head.fc
    rows = _backbone_rows(config.backbone.name, lambda conv: detectron2_modules(conv, features))
    channels = {"fpn": 256, "c4": 1024, "dc5": 2048}[features]
    if features == "fpn":
        for level in (2, 3, 4, 5):
            rows += _conv(f"fpn_lateral{level}", 1, 256 * 2 ** (level - 2), 256, f"backbone.fpn_lateral{level}")
            rows += _conv(f"fpn_output{level}", 3, 256, 256, f"backbone.fpn_output{level}")
    anchors = 3 if features == "fpn" else 15
    rows += _conv("rpn/conv", 3, channels, channels, "proposal_generator.rpn_head.conv")
    rows += _conv("rpn/objectness", 1, channels, anchors, "proposal_generator.rpn_head.objectness_logits")
    rows += _conv("rpn/deltas", 1, channels, 4 * anchors, "proposal_generator.rpn_head.anchor_deltas")
    if features != "c4":
        rows += _dense("box_fc1", 49 * channels, fc[0], "roi_heads.box_head.fc1")
        rows += _dense("box_fc2", fc[0], fc[1], "roi_heads.box_head.fc2")
    hidden = 2048 if features == "c4" else fc[-1]
    rows += _dense("box_classes", hidden, classes + 1, "roi_heads.box_predictor.cls_score")
    rows += _dense("box_deltas", hidden, 4 * classes, "roi_heads.box_predictor.bbox_pred")
    if "mask" in config.branches:
        if features != "c4":
            for number in (1, 2, 3, 4):
                ins = channels if number == 1 else 256
                rows += _conv(f"mask_conv{number}", 3, ins, 256, f"roi_heads.mask_head.mask_fcn{number}")
        rows += _deconv("mask_deconv", 2, 2048 if features == "c4" else 256, 256, "roi_heads.mask_head.deconv")
        rows += _conv("mask_logits", 1, 256, classes, "roi_heads.mask_head.predictor")
    if "keypoints" in config.branches:
        for number in range(1, 9):
            ins = 256 if number == 1 else 512
            rows += _conv(f"keypoint_conv{number}", 3, ins, 512, f"roi_heads.keypoint_head.conv_fcn{number}")
        rows += _deconv("keypoint_deconv", 4, 512, 17, "roi_heads.keypoint_head.score_lowres")
    return rows


# === ImageNet ===


def imagenet_rows(network: str) -> list[Row]:
    """torchvision's classification networks."""
    return _backbone_rows(network, lambda conv: torchvision_modules(conv, ""))


def caffe2_rows(network: str) -> list[Row]:
    """Detectron2's MSRA and FAIR files: scale and shift alone for a norm."""
    rows = []
    for conv in backbone(network):
        name = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[conv.part]
        module = "conv1" if conv.stage == 1 else f"res{conv.stage}_{conv.block}_branch{name}"
        norm = "res_conv1" if conv.stage == 1 else module
        shape, torch_shape = (conv.size, conv.size, conv.ins, conv.out), (conv.out, conv.ins, conv.size, conv.size)
        rows.append(Row(f"{conv.path}/kernel", shape, f"{module}_w", torch_shape))
        rows.append(Row(f"{conv.path}/norm/gamma", (conv.out,), f"{norm}_bn_s", (conv.out,)))
        rows.append(Row(f"{conv.path}/norm/beta", (conv.out,), f"{norm}_bn_b", (conv.out,)))
    return rows


def keras_rows(network: str) -> list[Row]:
    """Keras applications, names and layout of today; the biases are listed apart (`keras_biases`)."""
    rows = []
    for conv in backbone(network):
        part = {"shortcut": "0", "conv1": "1", "conv2": "2", "conv3": "3"}[conv.part]
        module = "conv1" if conv.stage == 1 else f"conv{conv.stage}_block{conv.block + 1}_{part}"
        shape = (conv.size, conv.size, conv.ins, conv.out)
        rows.append(Row(f"{conv.path}/kernel", shape, f"{module}_conv/kernel", shape))
        for tensor in ("gamma", "beta", "moving_mean", "moving_variance"):
            rows.append(Row(f"{conv.path}/norm/{tensor}", (conv.out,), f"{module}_bn/{tensor}", (conv.out,)))
    return rows


def counters(rows: list[Row]) -> dict[str, tuple]:
    """The `num_batches_tracked` that goes with every batch norm of torch."""
    ends = ".running_mean"
    return {f"{row.name.removesuffix(ends)}.num_batches_tracked": () for row in rows if row.name.endswith(ends)}


def spec(rows: list[Row], **extras) -> dict[str, tuple]:
    """{name: shape} of a checkpoint."""
    return {**{row.name: row.torch_shape for row in rows}, **extras}


# === Tensors without memory, and a model without layers ===


def numbered(rows_or_spec) -> dict[str, np.ndarray]:
    """Tensors of one value each, all different, that take no memory whatever their shape."""
    shapes = rows_or_spec if isinstance(rows_or_spec, dict) else spec(rows_or_spec)
    return {name: np.broadcast_to(np.float32(number), shape) for number, (name, shape) in enumerate(shapes.items(), 1)}


def torchvision_imagenet(network):
    rows = imagenet_rows(network)
    classifier = {"fc.weight": (1000, rows[-1].shape[0]), "fc.bias": (1000,)}
    return numbered(spec(rows, **counters(rows), **classifier))


def caffe2_imagenet(network):
    fc = "pred" if network.startswith("resnext") else "fc1000"
    extras = {f"{fc}_w": (1000, 2048), f"{fc}_b": (1000,), "conv1_b": (64,)}
    extras |= {"conv1_w_momentum": (64, 3, 7, 7), "res2_0_branch2a_bn_s_momentum": (64,)}
    return numbered(spec(caffe2_rows(network), **extras))


def keras_imagenet(network):
    rows = keras_rows(network)
    biases = {row.name.replace("kernel", "bias"): (row.shape[3],) for row in rows if row.name.endswith("/kernel")}
    top = {"predictions/kernel": (2048, 1000), "predictions/bias": (1000,)}
    return numbered(spec(rows, **biases, **top))


IMAGENET = {"torchvision": torchvision_imagenet, "detectron2": caffe2_imagenet, "keras": keras_imagenet}


class Variable:
    """What `assign` needs of a weight; it keeps the smallest and largest value that it was set to."""

    def __init__(self, path, shape):
        self.path, self.shape, self.range = path, tuple(shape), None

    def assign(self, value):
        assert value.shape == self.shape and value.dtype == np.float32
        self.range = (value.min(), value.max())


class Model:
    """A model that is a list of weights."""

    name = "listed"

    def __init__(self, config: Config, rows: list[Row]):
        self.config = config
        self.weights = [Variable(row.path, row.shape) for row in rows]
