"""Backbone weights from Keras applications: ResNet-50, 101 and 152 (the first version), ImageNet.

Reads `.npz` files keyed `layer/weight`, the `.h5` files that `keras.applications` caches (with or without
top, today's layer names or the older `res2a_branch2a`), and what Keras 3 saves of such a model
(`.weights.h5`, `.h5`). These networks have the stride in the first 1x1 convolution, a bias in
every convolution, and want BGR images minus their mean.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from mrcnn_tf.weights.report import WeightsError, WeightsReport, reading

LAYER = re.compile(r"(stem)|res(?P<stage>[2-5])_block(?P<block>\d+)_(?P<part>conv[123]|shortcut)")
NORM_TENSORS = ("gamma", "beta", "moving_mean", "moving_variance")
STAGES = ("stem", "res2", "res3", "res4", "res5")
CHANNEL_MEAN = (103.939, 116.779, 123.68)
NORM_EPSILON = 1.001e-5
OLD_NAME = re.compile(r"(?P<kind>res|bn)(?P<stage>[2-5])(?P<letter>[a-z])(?P<number>\d*)_branch(?P<part>1|2[abc])")
TOP = re.compile(r"(predictions|fc1000|probs)/.*")
OLD_PARTS = {"1": "0", "2a": "1", "2b": "2", "2c": "3"}


def load_backbone(
    model,
    path: str | Path,
    reinitialize: Iterable[str] = (),
    last_norm_gamma: float | None = 0.2,
    allow_missing: bool = True,
) -> WeightsReport:
    """Sets the backbone of `model` to the weights of a Keras-applications ResNet file.

    A convolution and its norm belong together: where a tensor of the two is missing in the file, both
    are left as the model drew them, and the report names what was not found. The bias of a
    convolution goes into the moving mean of its norm, which leaves the function the same.

    Args:
        model: a Keras model with the layers of `networks.resnet` (a `MaskRCNN`).
        path: the `.npz` or `.h5` file.
        reinitialize: stages ("stem", "res2" .. "res5") that stay as drawn, whatever the file has.
        last_norm_gamma: scale that the last norm of each block of those stages starts at, so that a new
            block changes what passes through it only little; None leaves it at 1.
        allow_missing: whether tensors may be missing.

    Returns:
        What was loaded, missing, unused and left; it has been logged, loudly if anything is missing.

    Raises:
        WeightsError: the file cannot be read, is of another network, or has a tensor of another shape.
    """
    stages = _checked_stages(reinitialize)
    layers = _backbone_layers(model)
    anew = [name for name in layers if name.split("_")[0] in stages]
    for name in anew:
        _shrink_last_norm(name, layers[name], last_norm_gamma)
    return _assign(model, layers, read_tensors(path), str(path), anew, allow_missing)


def assign_keras(
    model, tensors: Mapping[str, np.ndarray], source: str = "keras", skip: Iterable[str] = ()
) -> WeightsReport:
    """Sets the backbone of `model` to {"layer/weight": array} of a ResNet of Keras applications.

    Args:
        model: a Keras model with the layers of `networks.resnet` (a `MaskRCNN`).
        tensors: the arrays under the file's names, today's or the older ones; with the top or without.
        source: what to call it in messages.
        skip: layers that stay as drawn.

    Raises:
        WeightsError: the tensors are of another network, or one has another shape.
    """
    return _assign(model, _backbone_layers(model), tensors, source, skip, allow_missing=True)


def _assign(
    model, layers: dict, tensors: Mapping[str, np.ndarray], source: str, skip: Iterable[str], allow_missing: bool
) -> WeightsReport:
    names = {modern_name(name): name for name in tensors}
    _check_same_network(layers, names, source)
    report = WeightsReport(source, warnings=_broken_conventions(model))
    own = {name: tensors[file_name] for name, file_name in names.items()}
    used: set[str] = set()
    for weight in model.weights:
        layer = weight.path.split("/")[0]
        listed = report.reinitialized if layer in skip else report.left
        if (layer in skip or layer not in layers) and layer not in listed:
            listed.append(layer)
    steps: list[tuple] = []
    for name, weights in layers.items():
        if name not in skip:
            steps += _plan_layer(name, weights, own, report, used)
    for weight, value in steps:
        weight.assign(value)
        report.loaded.append(weight.path)
    if "moving_mean" not in layers["stem"]:
        report.warnings.append("the model has group norms, which these files do not: only the kernels were taken")
    if not report.loaded and not set(skip).issuperset(layers):
        raise WeightsError(
            f"{source}: none of the {len(tensors)} tensors in it belongs to a ResNet of Keras applications"
        )
    for name, file_name in names.items():
        if TOP.fullmatch(name):
            report.left_out.append(file_name)
            report.reasons[file_name] = "the classifier of ImageNet"
        elif name not in used:
            report.unused.append(file_name)
    if report.missing and not allow_missing:
        raise WeightsError(report.summary())
    report.log()
    return report


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a `.npz` or `.h5` file as {"layer/weight": array}, under today's layer names.

    Raises:
        WeightsError: no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    if path.suffix not in (".npz", ".h5", ".hdf5"):
        raise WeightsError(f"{path}: backbone weights are read from .npz and .h5 files")
    raw = read_npz(path) if path.suffix == ".npz" else _read_h5(path)
    return {modern_name(name): value for name, value in raw.items()}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file by their names; raises `WeightsError` for a damaged file or one of another kind."""
    if not zipfile.is_zipfile(path):  # numpy would take it for a pickle
        raise WeightsError(f"{path}: cannot be read (it is no .npz file); the file may be cut short")
    with reading(path), np.load(path) as archive:
        found = {name: archive[name] for name in archive.files}
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}

    def visit(name, item):
        if not isinstance(item, h5py.Dataset):
            return
        parts = ["", *name.split("/")]
        if parts[-2] == "vars" and parts[-1].isdecimal():
            # Keras 3: layers/<class>_<n>/vars/<k>, the layer's name is an attribute
            layer = str(item.parent.attrs.get("name", parts[-3]))
            order = NORM_TENSORS if layer.endswith("bn") else ("kernel", "bias")
            parts = [layer, order[int(parts[-1])] if int(parts[-1]) < len(order) else parts[-1]]
        tensors[f"{parts[-2]}/{parts[-1].split(':')[0]}"] = item[()]

    with reading(path), h5py.File(path) as file:
        whole = file.get("model_weights", file)
        (whole if isinstance(whole, h5py.Group) else file).visititems(visit)
    return tensors


def modern_name(name: str) -> str:
    """`res2b_branch2a/res2b_branch2a/kernel:0` as `conv2_block2_1_conv/kernel`; today's names as they are."""
    layer, _, tensor = name.rpartition("/")
    layer, tensor = layer.rpartition("/")[2], tensor.split(":")[0]
    match = OLD_NAME.fullmatch(layer)
    if match:
        # Blocks are called a, b, c, ... or, in the deeper networks, a, b1, b2, ...
        block = 1 + (int(match["number"]) if match["number"] else ord(match["letter"]) - ord("a"))
        kind = "conv" if match["kind"] == "res" else "bn"
        layer = f"conv{match['stage']}_block{block}_{OLD_PARTS[match['part']]}_{kind}"
    return f"{ {'conv1': 'conv1_conv', 'bn_conv1': 'conv1_bn'}.get(layer, layer) }/{tensor}"


def _file_layer(name: str) -> str:
    """`conv3_block1_2` for `res3_block1_conv2`; the file adds `_conv` or `_bn` to it."""
    match = LAYER.fullmatch(name)
    if match[1]:
        return "conv1"
    part = "0" if match["part"] == "shortcut" else match["part"].removeprefix("conv")
    return f"conv{match['stage']}_block{match['block']}_{part}"


def _checked_stages(stages: Iterable[str]) -> set[str]:
    stages = {stages} if isinstance(stages, str) else set(stages)
    unknown = stages.difference(STAGES)
    if unknown:
        raise WeightsError(f"unknown stage {', '.join(sorted(unknown))}; stages are {', '.join(STAGES)}")
    return stages


def _backbone_layers(model) -> dict[str, dict]:
    """{layer: {"kernel", "gamma", ...: weight}} of the backbone, wherever in the model its layers stand."""
    layers: dict[str, dict] = {}
    for weight in model.weights:
        layer, *_, tensor = weight.path.split("/")
        if LAYER.fullmatch(layer):
            layers.setdefault(layer, {})[tensor] = weight
    if "stem" not in layers:
        raise WeightsError(f"the model '{model.name}' has no ResNet backbone (no layer called 'stem')")
    if "res2_block1_conv3" not in layers:
        raise WeightsError(
            "the model's backbone has basic blocks (ResNet-18 or 34), which Keras applications has no weights for; "
            "choose resnet50, resnet101 or resnet152"
        )
    grouped = layers["res2_block1_conv2"]["kernel"]
    if grouped.shape[2] != layers["res2_block1_conv1"]["kernel"].shape[3]:
        raise WeightsError("the model's backbone is a ResNeXt, which Keras applications has no weights for")
    return layers


def _check_same_network(layers: dict, tensors: dict, path) -> None:
    if any("preact" in name for name in tensors):
        raise WeightsError(f"{path}: a ResNet V2; the first version is needed (keras.applications.ResNet50 and so on)")
    for stage in range(2, 6):
        ours = max(int(LAYER.fullmatch(name)["block"]) for name in layers if name.startswith(f"res{stage}_"))
        found = re.findall(rf"conv{stage}_block(\d+)_", " ".join(tensors))
        theirs = max(map(int, found), default=0)
        if theirs > ours:
            raise WeightsError(
                f"{path}: is of a deeper network: it has {theirs} blocks in stage {stage}, the model's backbone {ours}"
            )


def _broken_conventions(model) -> list[str]:
    """Where the model's configuration is not what these weights were trained with."""
    config = getattr(model, "config", None)
    if config is None:
        return []
    expected = [
        ("input.channel_order", config.input.channel_order, "bgr"),
        ("input.mean", config.input.mean, CHANNEL_MEAN),
        ("input.std", config.input.std, (1.0, 1.0, 1.0)),
        ("backbone.stride_in", config.backbone.stride_in, "1x1"),
        ("backbone.norm_epsilon", config.backbone.norm_epsilon, NORM_EPSILON),
    ]
    return [
        f"{name} is {value!r}, but these weights were trained with {right!r}"
        for name, value, right in expected
        if not _close(value, right)
    ]


def _close(value, right) -> bool:
    """Equal, or nearly so: means are published with and without decimals, epsilons rounded."""
    if isinstance(right, tuple):
        return len(value) == len(right) and max(abs(a - b) for a, b in zip(value, right)) <= 0.5
    return value == right if isinstance(right, str) else 0.5 < value / right < 2


def _shrink_last_norm(name: str, weights: dict, gamma: float | None) -> None:
    if gamma is not None and name.endswith("_conv3"):
        weights["gamma"].assign(np.full(weights["gamma"].shape, gamma, np.float32))


def _plan_layer(name: str, weights: dict, tensors: dict, report: WeightsReport, used: set[str]) -> list[tuple]:
    """(weight, its value) of one convolution and its norm, or nothing where a tensor of the two is missing."""
    source = _file_layer(name)
    has_statistics = "moving_mean" in weights
    wanted = {"kernel": f"{source}_conv/kernel"}
    # Scale and shift that were trained with stored statistics mean nothing to a group norm.
    wanted.update({tensor: f"{source}_bn/{tensor}" for tensor in NORM_TENSORS if has_statistics})
    missing = [f"{file_name} (for {name})" for file_name in wanted.values() if file_name not in tensors]
    if missing:
        report.missing += missing
        report.left.append(name)
        return []
    values = {tensor: tensors[file_name] for tensor, file_name in wanted.items()}
    used.update(wanted.values())
    if not has_statistics:
        report.left.append(f"{name}/norm")
    bias = f"{source}_conv/bias"
    if bias in tensors and has_statistics:
        used.add(bias)
        _check_shape(bias, tensors[bias], weights["moving_mean"], name)
        values["moving_mean"] = values["moving_mean"] - tensors[bias]
    for tensor, value in values.items():
        _check_shape(wanted[tensor], value, weights[tensor], name)
    return [(weights[tensor], value) for tensor, value in values.items()]


def _check_shape(file_name: str, value: np.ndarray, variable, name: str) -> None:
    if tuple(value.shape) == tuple(variable.shape):
        return
    remedy = ""
    if name == "stem" and len(value.shape) == 4 and value.shape[2] != variable.shape[2]:
        remedy = (
            f": the model takes images of {variable.shape[2]} channels, the weights of {value.shape[2]}; "
            "reinitialize 'stem' to train it anew"
        )
    raise WeightsError(
        f"{file_name} has the shape {tuple(value.shape)}, but {name} needs {tuple(variable.shape)}{remedy}"
    )
