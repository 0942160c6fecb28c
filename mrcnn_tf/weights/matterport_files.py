"""Weights files of Matterport's Mask_RCNN, and what their tensors tell of the network they are of.

Shape letters: K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from mrcnn_tf.weights.report import WeightsError, reading

LAYER = re.compile(
    r"conv1|bn_conv1|(res|bn)[2-5][a-z]_branch(1|2[abc])|fpn_(c[2-5])?p[2-5]|rpn_(conv_shared|class_raw|bbox_pred)"
    r"|mrcnn_(class_(conv|bn)[12]|class_logits|bbox_fc|mask_(conv|bn)[1-4]|mask_deconv|mask)|anchors"
)
BLOCKS = {6: "resnet50", 23: "resnet101"}  # by the blocks of the fourth stage
CLASS_LAYERS = {"mrcnn_class_logits": 1, "mrcnn_bbox_fc": 4, "mrcnn_mask": 1}  # and their outputs per class


def read_matterport(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a weights file of Matterport's Mask_RCNN, or of a whole model saved with Keras 2.

    Returns:
        {"layer/weight": array}, e.g. "mrcnn_bbox_fc/kernel", in the layout of the file.

    Raises:
        WeightsError: no such file, it cannot be read, has a tensor twice, or is of something else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    tensors: dict[str, np.ndarray] = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            plain = plain_name(name)
            if plain in tensors:
                raise WeightsError(f"{path}: has {plain} twice, the second time as {name}")
            tensors[plain] = item[()]

    with reading(path, "the file may be cut short, or no .h5 file"), h5py.File(path) as file:
        whole = file.get("model_weights", file)
        (whole if isinstance(whole, h5py.Group) else file).visititems(visit)
    if not any(LAYER.fullmatch(name.split("/")[0]) for name in tensors):
        raise WeightsError(f"{path}: none of the {len(tensors)} tensors in it belongs to Matterport's Mask_RCNN")
    return tensors


def plain_name(name: str) -> str:
    """`layer/weight` of a tensor whatever Keras wrote around it.

    The RPN is a model within the model, each layer's group holds a group of the same name, TensorFlow adds `:0`, and
    `_1` and so on where a process built the network more than once.
    """
    *groups, tensor = name.split("/")
    tensor = tensor.split(":")[0]
    for group in groups:
        for layer in (group, re.sub(r"_\d+$", "", group)):
            if LAYER.fullmatch(layer):
                return f"{layer}/{tensor}"
    return "/".join([*groups[-1:], tensor])


def count_classes(tensors: Mapping[str, np.ndarray]) -> int:
    """K, the number of classes without the background, of the network that the tensors are of.

    Raises:
        WeightsError: none of the class-specific layers is there, or they are of different numbers of classes.
    """
    sizes = {plain_name(name): np.shape(value) for name, value in tensors.items()}
    found = {
        layer: sizes[f"{layer}/bias"][0] // outputs - 1
        for layer, outputs in CLASS_LAYERS.items()
        if f"{layer}/bias" in sizes
    }
    if not found:
        raise WeightsError(f"no class-specific layer is there: none of {', '.join(CLASS_LAYERS)}")
    if len(set(found.values())) > 1:
        counts = ", ".join(f"{layer} {count}" for layer, count in found.items())
        raise WeightsError(f"the layers are of different numbers of classes: {counts}")
    return next(iter(found.values()))


def guess_depth(tensors: Iterable[str]) -> str:
    """`BackboneConfig.name` of the network that the tensors are of: "resnet50" or "resnet101".

    Raises:
        WeightsError: neither of the two.
    """
    blocks = {match[1] for match in (re.match(r"res4([a-z])_", plain_name(name)) for name in tensors) if match}
    if len(blocks) not in BLOCKS:
        raise WeightsError(
            f"the fourth stage of the backbone has {len(blocks)} blocks; ResNet-50 has 6 there and ResNet-101 23"
        )
    return BLOCKS[len(blocks)]
