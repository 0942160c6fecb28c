"""Matterport's network as its file has it: random tensors under its names, the file itself, and what they compute.

Shape letters: B images, H W pixels, N anchors or RoIs, A anchors per cell, S side of a pooled feature, K classes.

Written for clarity from the raw tensors, batch norms and all, in normalised boxes as there: 0 is the first pixel of
the square and 1 the last, so that a box of pixels [y1, x1, y2, x2) is [y1, x1, y2 - 1, x2 - 1] / (side - 1).
"""

from __future__ import annotations

import h5py
import numpy as np
import tensorflow as tf

from mrcnn_tf.presets import preset

SIDE, CLASSES = 192, 3
STAGES = ((2, 3), (3, 4), (4, 6), (5, 3))  # of ResNet-50: blocks of each stage
SIZES, STRIDES, RATIOS = (32, 64, 128, 256, 512), (4, 8, 16, 32, 64), (0.5, 1, 2)
UNITS = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
EPSILON = 1e-3
RPN_LAYERS = ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")


def config(**changes):
    """The preset with ResNet-50 at a small square; there the side counts as 191 pixels of 192, not 1023 of 1024."""
    small = {"shorter_edge": SIDE, "longer_edge": SIDE, "size_divisor": 64}
    values = {"num_classes": CLASSES, "input": small, "roi__canonical_size": 224 / 2**0.5 * (SIDE - 1) / SIDE}
    return preset("matterport/mask_rcnn_coco", **{"backbone__name": "resnet50", **values, **changes})


def shapes(classes, stages=STAGES):
    """{layer: shape of its kernel, or the width of a norm} of the network for so many classes."""
    found = {"conv1": (7, 7, 3, 64), "bn_conv1": 64}
    inputs = 64
    for stage, blocks in stages:
        width = 32 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"{stage}{chr(97 + block)}_branch"
            kernels = {"2a": (1, 1, inputs, width), "2b": (3, 3, width, width), "2c": (1, 1, width, 4 * width)}
            if block == 0:
                kernels["1"] = (1, 1, inputs, 4 * width)
            for branch, kernel in kernels.items():
                found.update({f"res{name}{branch}": kernel, f"bn{name}{branch}": kernel[-1]})
            inputs = 4 * width
    for level, width in zip((2, 3, 4, 5), (256, 512, 1024, 2048)):
        found.update({f"fpn_c{level}p{level}": (1, 1, width, 256), f"fpn_p{level}": (3, 3, 256, 256)})
    found.update(rpn_conv_shared=(3, 3, 256, 512), rpn_class_raw=(1, 1, 512, 6), rpn_bbox_pred=(1, 1, 512, 12))
    found.update(mrcnn_class_conv1=(7, 7, 256, 1024), mrcnn_class_bn1=1024)
    found.update(mrcnn_class_conv2=(1, 1, 1024, 1024), mrcnn_class_bn2=1024)
    found.update(mrcnn_class_logits=(1024, classes + 1), mrcnn_bbox_fc=(1024, 4 * (classes + 1)))
    for number in (1, 2, 3, 4):
        found.update({f"mrcnn_mask_conv{number}": (3, 3, 256, 256), f"mrcnn_mask_bn{number}": 256})
    return {**found, "mrcnn_mask_deconv": (2, 2, 256, 256), "mrcnn_mask": (1, 1, 256, classes + 1)}


def random_tensors(classes=CLASSES, stages=STAGES, seed=0):
    """{"layer/weight": array} of such a network, nothing at its default, answers of a moderate size."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer, shape in shapes(classes, stages).items():
        if isinstance(shape, int):
            # The blocks' last norms are small, so that the sum over the blocks does not grow.
            scale = 0.3 if layer.endswith("2c") else 1.0
            tensors[f"{layer}/gamma"] = scale * random.uniform(0.5, 1.5, shape)
            tensors[f"{layer}/beta"] = random.normal(0, 0.1, shape)
            tensors[f"{layer}/moving_mean"] = random.normal(0, 0.1, shape)
            tensors[f"{layer}/moving_variance"] = random.uniform(0.5, 1.5, shape)
        else:
            fan_in = shape[3] if layer == "mrcnn_mask_deconv" else np.prod(shape[:-1])
            outputs = shape[2] if layer == "mrcnn_mask_deconv" else shape[-1]
            tensors[f"{layer}/kernel"] = random.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in)
            tensors[f"{layer}/bias"] = random.normal(0, 0.1, outputs)
    tensors["conv1/kernel"] /= 50  # pixels, not values of about 1
    for level in (2, 3, 4, 5):
        tensors[f"fpn_c{level}p{level}/kernel"] /= 10  # else softmax and sigmoid would know 0 and 1 alone
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def write_h5(path, tensors, group="", suffix=""):
    """Writes the file as Keras 2 does: a group for each layer, within it the weights under their whole names.

    Args:
        group: "model_weights" for the file of a whole model.
        suffix: "_1" and so on, as TensorFlow calls the weights of a network that a process built again.
    """
    layers = dict.fromkeys(name.split("/")[0] for name in tensors)
    outer = dict.fromkeys("rpn_model" if layer in RPN_LAYERS else layer for layer in layers)
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [name.encode() for name in ("input_image", *outer, "mrcnn_detection")]
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.0.8"
        for layer in ("input_image", *outer, "mrcnn_detection"):
            root.create_group(layer).attrs["weight_names"] = np.array([], "S1")
        for name, value in tensors.items():
            layer, weight = name.split("/")
            place = root["rpn_model" if layer in RPN_LAYERS else layer]
            place.create_dataset(f"{layer}{suffix}/{weight}:0", data=value)
            names = [*place.attrs["weight_names"], f"{layer}{suffix}/{weight}:0".encode()]
            place.attrs["weight_names"] = np.array(names)
    return path


class Network:
    """The network of the tensors {"layer/weight": array}, on one square image."""

    def __init__(self, tensors):
        self.tensors = tensors

    def conv(self, x, layer, stride=1):
        kernel, bias = self.tensors[f"{layer}/kernel"], self.tensors[f"{layer}/bias"]
        padding = "SAME" if kernel.shape[0] == 3 else "VALID"
        return tf.nn.conv2d(x, kernel, stride, padding) + bias

    def norm(self, x, layer):
        weights = (self.tensors[f"{layer}/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance"))
        gamma, beta, mean, variance = weights
        return gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta

    def block(self, x, name, stride, project):
        shortcut = self.norm(self.conv(x, f"res{name}1", stride), f"bn{name}1") if project else x
        y = tf.nn.relu(self.norm(self.conv(x, f"res{name}2a", stride), f"bn{name}2a"))
        y = tf.nn.relu(self.norm(self.conv(y, f"res{name}2b"), f"bn{name}2b"))
        return tf.nn.relu(self.norm(self.conv(y, f"res{name}2c"), f"bn{name}2c") + shortcut)

    def features(self, image, mean=(123.7, 116.8, 103.9)):
        """P2..P6 of RGB images [B, H, W, 3]."""
        x = tf.pad(image - tf.constant(mean), [[0, 0], [3, 3], [3, 3], [0, 0]])
        x = tf.nn.relu(self.norm(self.conv(x, "conv1", 2), "bn_conv1"))
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        maps = {}
        for stage, blocks in STAGES:
            for block in range(blocks):
                first = block == 0
                x = self.block(x, f"{stage}{chr(97 + block)}_branch", 2 if first and stage > 2 else 1, first)
            maps[stage] = x
        top = self.conv(maps[5], "fpn_c5p5")
        pyramid = {5: self.conv(top, "fpn_p5")}
        for level in (4, 3, 2):
            top = tf.repeat(tf.repeat(top, 2, axis=1), 2, axis=2) + self.conv(maps[level], f"fpn_c{level}p{level}")
            pyramid[level] = self.conv(top, f"fpn_p{level}")
        return [pyramid[2], pyramid[3], pyramid[4], pyramid[5], pyramid[5][:, ::2, ::2]]

    def rpn(self, features):
        """Probabilities [B, N, 2] of background and object, deltas [B, N, 4] in their units."""
        probabilities, deltas = [], []
        for feature in features:
            shared = tf.nn.relu(self.conv(feature, "rpn_conv_shared"))
            scores = tf.reshape(self.conv(shared, "rpn_class_raw"), [len(feature), -1, 2])
            probabilities.append(tf.nn.softmax(scores))
            deltas.append(tf.reshape(self.conv(shared, "rpn_bbox_pred"), [len(feature), -1, 4]))
        return tf.concat(probabilities, 1), tf.concat(deltas, 1)

    def box_branch(self, pooled):
        """Class probabilities [N, K + 1] and deltas [N, K + 1, 4] in their units, of features [N, 7, 7, 256]."""
        x = tf.nn.relu(self.norm(self.conv(pooled, "mrcnn_class_conv1"), "mrcnn_class_bn1"))
        x = tf.nn.relu(self.norm(self.conv(x, "mrcnn_class_conv2"), "mrcnn_class_bn2"))[:, 0, 0]
        scores, deltas = (
            x @ self.tensors[f"{layer}/kernel"] + self.tensors[f"{layer}/bias"]
            for layer in ("mrcnn_class_logits", "mrcnn_bbox_fc")
        )
        return tf.nn.softmax(scores), tf.reshape(deltas, [len(x), -1, 4])

    def mask_branch(self, pooled):
        """Masks [N, 28, 28, K + 1] of features [N, 14, 14, 256]."""
        x = pooled
        for number in (1, 2, 3, 4):
            x = tf.nn.relu(self.norm(self.conv(x, f"mrcnn_mask_conv{number}"), f"mrcnn_mask_bn{number}"))
        shape = [len(x), 28, 28, 256]
        x = tf.nn.conv2d_transpose(x, self.tensors["mrcnn_mask_deconv/kernel"], shape, 2, "VALID")
        return tf.sigmoid(self.conv(tf.nn.relu(x + self.tensors["mrcnn_mask_deconv/bias"]), "mrcnn_mask"))


def normalised_anchors(side):
    """The anchors [N, 4] of a square of `side` pixels, level by level, row by row, ratio (width / height) by ratio."""
    boxes = []
    for size, stride in zip(SIZES, STRIDES):
        for y in range(0, side, stride):
            for x in range(0, side, stride):
                for ratio in RATIOS:
                    height, width = size / ratio**0.5, size * ratio**0.5
                    boxes.append([y - height / 2, x - width / 2, y + height / 2 - 1, x + width / 2 - 1])
    return (np.array(boxes) / (side - 1)).astype(np.float32)


def moved(boxes, deltas):
    """The boxes [..., 4] that deltas (dy, dx, log dh, log dw) in units of `UNITS` make of boxes [..., 4]."""
    deltas = np.asarray(deltas) * UNITS
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + deltas[..., :2] * sides
    sides = sides * np.exp(deltas[..., 2:])
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)


def levels(boxes, image_side):
    """The level [N] that each of the normalised boxes [N, 4] is read from: rounded, by the size in pixels."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.clip(4 + np.round(np.log2(np.sqrt(area) * image_side / 224)), 2, 5).astype(int)


def crops(features, boxes, size, image_side):
    """Features [N, S, S, C] of normalised boxes [N, 4] of one image, each of the level of its size."""
    pooled = [
        tf.image.crop_and_resize(features[level - 2], box[None], [0], [size, size])
        for level, box in zip(levels(boxes, image_side), boxes)
    ]
    return tf.concat(pooled, axis=0)
