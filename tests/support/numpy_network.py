"""The losses of a Mask R-CNN for given samples in numpy, float64, and their gradients: what the package's must equal.

Written from the papers; the names of the weights are the only thing taken from the package.
"""

from __future__ import annotations

import numpy as np

from tests.support import numpy_ops as ops
from tests.support.numpy_ops import Value

# Blocks of res2 to res5, and whether a block is a bottleneck.
DEPTHS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}
# How far a channel may be moved to keep it off the kink of its ReLU; its values are of size 1.
REACH = 0.1


class NumpyNetwork:
    """Runs forward once, at construction.

    Args:
        config: the model's configuration; its numbers alone are read.
        batch: the images, as the model gets them.
        weights: {path: array}.
        samples: what was sampled: rpn_labels [B, N], rpn_targets [B, N, 4]; rois [B, R, 4], roi_classes [B, R],
            roi_targets [B, R, 4]; mask_rois [P, 4], mask_images [P], mask_classes [P], mask_targets [P, M, M];
            keypoint_rois [P, 4], keypoint_images [P], keypoint_index, keypoint_valid [P, J]. Without them there are
            no losses.
        settle: moves the shifts (biases, betas) before ReLUs a little, each channel so that none of its values comes
            near the kink; without samples those of the trunk and the RPN, with samples those of the other branches.

    Attributes:
        weights: {path: Value}, as given, or settled.
        losses: {name: Value}.
        margin: the least distance of a value from the kink of its ReLU.
        pool_margin: how much the largest value of a window of the pooling is above the others, at least.
        statistics: {path of a batch norm: (mean, variance) of its channels in this batch}.
    """

    def __init__(self, config, batch: dict, weights: dict, samples: dict | None = None, settle: bool = False):
        self.config, self.samples = config, samples
        self.weights = {path: Value(value) for path, value in weights.items()}
        self.losses: dict[str, Value] = {}
        self.margin = np.inf
        self.statistics: dict[str, tuple] = {}
        self._settled: set[str] = set()
        self._settling = settle and samples is None
        features = self._features(Value(_normalised_images(batch, config.input)))
        self._rpn(features)
        if samples is not None:
            self._settling = settle
            self._box(features)
            if "mask" in config.branches:
                self._mask(features)
            if "keypoints" in config.branches:
                self._keypoint(features)

    def gradients(self, loss: str) -> dict[str, np.ndarray]:
        """{path: gradient} of one of the losses."""
        return ops.gradients(self.losses[loss], self.weights)

    # === Layers ===

    def _conv(self, x, name: str, stride: int = 1, dilation: int = 1):
        """A convolution with a bias, or with a norm in its place."""
        y = ops.convolve(x, self.weights[f"{name}/kernel"], stride, dilation)
        bias = self.weights.get(f"{name}/bias")
        return self._norm(y, f"{name}/norm") if bias is None else y + bias

    def _norm(self, x, name: str):
        sections = {"fpn": self.config.fpn, "box": self.config.box_head, "mask": self.config.mask_head}
        kind = sections.get(name.split("_")[0], self.config.backbone).norm
        epsilon = self.config.backbone.norm_epsilon
        gamma, beta = self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"]
        if kind == "group":  # every image by itself, 32 groups of neighbouring channels
            grouped = x.reshape(*x.shape[:3], 32, -1)
            return ops.normalise(grouped, (1, 2, 4), epsilon).reshape(x.shape) * gamma + beta
        if kind == "frozen":
            mean, variance = (self.weights[f"{name}/moving_{what}"].data for what in ("mean", "variance"))
            return (x + Value(-mean)) * Value(1 / np.sqrt(variance + epsilon)) * gamma + beta
        self.statistics.setdefault(name, (x.data.mean((0, 1, 2)), x.data.var((0, 1, 2))))
        return ops.normalise(x, (0, 1, 2), epsilon) * gamma + beta

    def _relu(self, x, name: str):
        """ReLU; `name` is the layer whose bias or beta was added to x last."""
        path = f"{name}/bias" if f"{name}/bias" in self.weights else f"{name}/norm/beta"
        if self._settling and path not in self._settled:
            shift = _into_the_widest_gap(x.data)
            self.weights[path].data = self.weights[path].data + shift
            x = x + Value(shift)
            self._settled.add(path)
        self.margin = min(self.margin, np.abs(x.data).min())
        return ops.relu(x)

    def _convs(self, x, name: str, widths: tuple):
        for number in range(1, len(widths) + 1):
            x = self._relu(self._conv(x, f"{name}{number}"), f"{name}{number}")
        return x

    def _dense(self, x, name: str):
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    # === Trunk ===

    def _features(self, image) -> dict:
        """The pyramid, or the one map there is: {level: features}, of stride 2^level."""
        features = self.config.backbone.features
        x = self._relu(self._conv(image, "stem", 2), "stem")
        self.pool_margin = _margin_of_windows(x.data)
        x = ops.max_pool(x)
        maps = {}
        for stage in range(2, 5 if features == "c4" else 6):
            dilated = features == "dc5" and stage == 5
            x = maps[stage] = self._stage(x, stage, 1 if stage == 2 or dilated else 2, 2 if dilated else 1)
        if features != "fpn":
            return {5 if features == "c5" else 4: x}
        merged = {level: self._conv(maps[level], f"fpn_lateral{level}") for level in range(2, 6)}
        for level in (4, 3, 2):
            merged[level] = merged[level] + ops.doubled(merged[level + 1])
        pyramid = {level: self._conv(merged[level], f"fpn_output{level}") for level in range(2, 6)}
        return {**pyramid, 6: pyramid[5][:, ::2, ::2]}

    def _stage(self, x, stage: int, stride: int, dilation: int = 1):
        counts, bottleneck = DEPTHS[self.config.backbone.name]
        for number in range(1, counts[stage - 2] + 1):
            block = self._bottleneck if bottleneck else self._basic
            x = block(x, f"res{stage}_block{number}", stride if number == 1 else 1, dilation)
        return x

    def _basic(self, x, name: str, stride: int, dilation: int):
        y = self._relu(self._conv(x, f"{name}_conv1", stride, dilation), f"{name}_conv1")
        y = self._conv(y, f"{name}_conv2", 1, dilation)
        return self._relu(y + self._shortcut(x, name, stride), f"{name}_conv2")

    def _bottleneck(self, x, name: str, stride: int, dilation: int):
        first, second = (stride, 1) if self.config.backbone.stride_in == "1x1" else (1, stride)
        y = self._relu(self._conv(x, f"{name}_conv1", first), f"{name}_conv1")
        y = self._relu(self._conv(y, f"{name}_conv2", second, dilation), f"{name}_conv2")
        y = self._conv(y, f"{name}_conv3")
        return self._relu(y + self._shortcut(x, name, stride), f"{name}_conv3")

    def _shortcut(self, x, name: str, stride: int):
        return self._conv(x, f"{name}_shortcut", stride) if f"{name}_shortcut/kernel" in self.weights else x

    # === RPN ===

    def _rpn(self, features: dict):
        hidden = list(features.values())
        for number in range(1, self.config.rpn.convs + 1):
            name = "rpn/conv" if number == 1 else f"rpn/conv{number}"
            maps = [self._conv(x, name) for x in hidden]
            # The levels share the layer: the cells of all in one row, through the ReLU, and back.
            row = ops.concatenate([x.reshape(x.shape[0], -1, x.shape[3]) for x in maps], axis=1)
            row = self._relu(row, name)
            ends = np.cumsum([0, *(x.shape[1] * x.shape[2] for x in maps)])
            hidden = [row[:, a:b].reshape(x.shape) for a, b, x in zip(ends, ends[1:], maps)]
        if self.samples is None:
            return
        batch = row.shape[0]
        logits, deltas = (
            (row @ self.weights[f"rpn/{name}/kernel"][0, 0] + self.weights[f"rpn/{name}/bias"])
            for name in ("objectness", "deltas")
        )
        labels = self.samples["rpn_labels"]
        sampled, positive = labels >= 0, labels == 1
        entropy = ops.sigmoid_cross_entropy(logits.reshape(batch, -1)[sampled], labels[sampled])
        error = deltas.reshape(batch, -1, 4)[positive] + Value(-self.samples["rpn_targets"][positive])
        self._lose("rpn_objectness_loss", entropy, sampled.sum())
        self._lose("rpn_box_loss", ops.smooth_l1(error, self.config.rpn.box_loss_beta), sampled.sum())

    def _lose(self, name: str, losses, count, weight: float = 1.0):
        self.losses[name] = losses.sum() * Value(weight / count)

    # === Branches on RoIs ===

    def _align(self, features: dict, rois, images, size: int):
        """RoIAlign [N, S, S, C] of rois [N, 4], which are constants."""
        roi = self.config.roi
        levels = np.full(len(rois), next(iter(features)))
        if self.config.backbone.features == "fpn":
            levels = np.array([_level(box, roi.canonical_size, roi.canonical_level) for box in rois])
        parts, order = [], []
        for level in np.unique(levels):
            own = np.flatnonzero(levels == level)
            x, boxes = features[level], rois[own].astype(np.float64)
            rows, columns = (
                [_bins(box[axis], box[axis + 2], 2**level, x.shape[1 + axis], size, roi.samples) for box in boxes]
                for axis in (0, 1)
            )
            parts.append(ops.resample(x, images[own], rows, columns))
            order.append(own)
        return ops.concatenate(parts, axis=0)[np.argsort(np.concatenate(order))]

    def _box(self, features: dict):
        head, rois = self.config.box_head, self.samples["rois"]
        classes = self.samples["roi_classes"].reshape(-1)
        x = self._align(features, rois.reshape(-1, 4), np.repeat(np.arange(len(rois)), rois.shape[1]), head.pool)
        count = x.shape[0]
        if self.config.backbone.features == "c4":
            x = self._stage(x, 5, head.res5_stride)
            cells = x.shape[1] * x.shape[2]
            mean = Value(np.full((cells, 1), 1 / cells))
            x = (x.reshape(count, cells, -1).transpose(0, 2, 1) @ mean).reshape(count, -1)
        else:
            x = self._convs(x, "box_conv", head.convs).reshape(count, -1)
            for number in range(1, len(head.fc) + 1):
                x = self._relu(self._dense(x, f"box_fc{number}"), f"box_fc{number}")
        sampled, positive = classes >= 0, np.flatnonzero(classes > 0)
        entropy = ops.softmax_cross_entropy(self._dense(x, "box_classes")[sampled], classes[sampled])
        own = self._dense(x, "box_deltas").reshape(count, -1, 4)[positive, classes[positive] - 1]
        error = own + Value(-self.samples["roi_targets"].reshape(-1, 4)[positive])
        self._lose("box_class_loss", entropy, sampled.sum())
        self._lose("box_delta_loss", ops.smooth_l1(error, head.loss_beta), sampled.sum())

    def _mask(self, features: dict):
        samples, head = self.samples, self.config.mask_head
        x = self._align(features, samples["mask_rois"], samples["mask_images"], head.pool)
        if self.config.backbone.features == "c4":
            x = self._stage(x, 5, self.config.box_head.res5_stride)
        x = self._convs(x, "mask_conv", head.convs)
        x = ops.deconvolve(x, self.weights["mask_deconv/kernel"]) + self.weights["mask_deconv/bias"]
        logits = self._conv(self._relu(x, "mask_deconv"), "mask_logits")
        positive = np.flatnonzero(samples["mask_classes"] > 0)
        own = logits.transpose(0, 3, 1, 2)[positive, samples["mask_classes"][positive] - 1]
        self._lose("mask_loss", ops.sigmoid_cross_entropy(own, samples["mask_targets"][positive]), own.data.size)

    def _keypoint(self, features: dict):
        samples, head = self.samples, self.config.keypoint_head
        x = self._align(features, samples["keypoint_rois"], samples["keypoint_images"], head.pool)
        x = self._convs(x, "keypoint_conv", head.convs)
        x = ops.deconvolve(x, self.weights["keypoint_deconv/kernel"]) + self.weights["keypoint_deconv/bias"]
        # Twice the resolution, the borders of both grids being the same.
        side = x.shape[1]
        twice = [ops.hat_weights((np.arange(2 * side) + 0.5) / 2 - 0.5, side)] * x.shape[0]
        maps = ops.resample(x, np.arange(x.shape[0]), twice, twice).transpose(0, 3, 1, 2)
        visible = samples["keypoint_valid"] > 0
        cells = maps[visible].reshape(visible.sum(), -1)
        entropy = ops.softmax_cross_entropy(cells, samples["keypoint_index"][visible])
        self._lose("keypoint_loss", entropy, visible.sum(), head.loss_weight)


def _normalised_images(batch: dict, config) -> np.ndarray:
    """The images without their mean, in units of their spread; 0 outside the real image. Channels stay RGB."""
    images = np.zeros(batch["image"].shape)
    for image, pixels, (height, width) in zip(images, np.asarray(batch["image"]), np.asarray(batch["image_size"])):
        image[:height, :width] = (pixels[:height, :width] - np.asarray(config.mean)) / np.asarray(config.std)
    return images


def _level(box, canonical_size, canonical_level) -> int:
    """Equation 1 of the FPN paper: k = floor(k0 + log2(sqrt(w h) / 224)), from 2 to 5; empty boxes go to 2."""
    size = np.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
    return 2 if size == 0 else int(np.clip(np.floor(canonical_level + np.log2(size / canonical_size)), 2, 5))


def _bins(low, high, stride, cells, size, samples) -> np.ndarray:
    """[S, cells]: the share of each cell of one axis in each bin of a RoI from `low` to `high` pixels.

    Cell i has its centre at (i + .5) strides. A bin is the mean of `samples` points; a point more than one cell beyond
    the outermost centre counts as 0.
    """
    step = (high - low) / (size * samples)
    points = (low + (np.arange(size * samples) + 0.5) * step) / stride - 0.5
    inside = (points >= -1) & (points <= cells)
    return (inside[:, None] * ops.hat_weights(points, cells)).reshape(size, samples, cells).mean(1)


def _into_the_widest_gap(x) -> np.ndarray:
    """What to add to each channel of [..., C], at most REACH, so that no value is near 0."""
    shifts = []
    for values in x.reshape(-1, x.shape[-1]).T:
        zeros = np.unique(np.clip(np.append(-values, [-REACH, REACH]), -REACH, REACH))
        widest = np.argmax(np.diff(zeros))
        shifts.append((zeros[widest] + zeros[widest + 1]) / 2)
    return np.array(shifts)


def _margin_of_windows(x) -> float:
    """By how much the largest value of a 3 x 3 window of [B, H, W, C] is above the next, at least; ties are allowed."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    second, first = np.sort(windows.reshape(-1, 9), axis=1)[:, -2:].T
    return (first - second)[first > second].min()
