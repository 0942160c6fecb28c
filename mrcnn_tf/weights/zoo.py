"""Public checkpoints: where each can be had, how it is told from another file, and which preset it belongs to.

Facts from the publishers' own pages: torchvision's documentation, Detectron2's model zoo, Keras applications,
Matterport's release 2.0. A hash is that part which the publisher tells: torchvision's file names end in the first 8 hex
digits of the file's sha256, Detectron2's in the first 6 of its md5; Keras has the whole md5; Matterport tells none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mrcnn_tf.config import Config
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import compare
from mrcnn_tf.weights.report import WeightsError

TORCHVISION = "https://download.pytorch.org/models/"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
MATTERPORT = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/"


@dataclass(frozen=True)
class Checkpoint:
    """A file that someone has published.

    Attributes:
        name: "source/model", with the schedule where there are several.
        dataset: "coco" (a whole model) or "imagenet" (a backbone).
        url: where it can be had.
        preset: the preset of a whole model; "" for a backbone.
        backbone: the name of the backbone.
        check: what the publisher tells of the file's hash, "sha256:..." or "md5:...", its beginning or all; "" nothing.
        ap: published AP on COCO val2017 in percent, of "box", "mask", "keypoints".
    """

    name: str
    dataset: str
    url: str
    preset: str
    backbone: str
    check: str = ""
    ap: dict[str, float] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Whose it is: "torchvision", "detectron2", "matterport" or "keras"."""
        return self.name.split("/")[0]

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.url).name


# === The table ===


def _torchvision(builder: str, digits: str, ap: dict[str, float]) -> Checkpoint:
    name, url = f"torchvision/{builder}", f"{TORCHVISION}{builder}_coco-{digits}.pth"
    return Checkpoint(name, "coco", url, name, "resnet50", f"sha256:{digits}", ap)


def _detectron2(group: str, model: str, schedule: str, file: str, ap: dict[str, float]) -> Checkpoint:
    backbone = "resnext101_32x8d" if "_X_101_" in model else "resnet101" if "_R_101_" in model else "resnet50"
    url = f"{DETECTRON2}{group}/{model}_{schedule}/{file}"
    check = f"md5:{PurePosixPath(file).stem.split('_')[-1]}"  # model_final_f10217.pkl
    return Checkpoint(f"detectron2/{model}_{schedule}", "coco", url, f"detectron2/{model}", backbone, check, ap)


def _box(box: float) -> dict[str, float]:
    return {"box": box}


def _mask(box: float, mask: float) -> dict[str, float]:
    return {"box": box, "mask": mask}


def _keypoints(box: float, keypoints: float) -> dict[str, float]:
    return {"box": box, "keypoints": keypoints}


_MASKS, _BOXES, _PEOPLE = "COCO-InstanceSegmentation", "COCO-Detection", "COCO-Keypoints"

# Of those that fit a preset, "coco" means the first.
_COCO = (
    _detectron2(_MASKS, "mask_rcnn_R_50_FPN", "3x", "137849600/model_final_f10217.pkl", _mask(41.0, 37.2)),
    _detectron2(_MASKS, "mask_rcnn_R_50_FPN", "1x", "137260431/model_final_a54504.pkl", _mask(38.6, 35.2)),
    _detectron2(_MASKS, "mask_rcnn_R_101_FPN", "3x", "138205316/model_final_a3ec72.pkl", _mask(42.9, 38.6)),
    _detectron2(_MASKS, "mask_rcnn_X_101_32x8d_FPN", "3x", "139653917/model_final_2d9806.pkl", _mask(44.3, 39.5)),
    _detectron2(_MASKS, "mask_rcnn_R_50_C4", "3x", "137849525/model_final_4ce675.pkl", _mask(39.8, 34.4)),
    _detectron2(_MASKS, "mask_rcnn_R_50_C4", "1x", "137259246/model_final_9243eb.pkl", _mask(36.8, 32.2)),
    _detectron2(_MASKS, "mask_rcnn_R_101_C4", "3x", "138363239/model_final_a2914c.pkl", _mask(42.6, 36.7)),
    _detectron2(_MASKS, "mask_rcnn_R_50_DC5", "3x", "137849551/model_final_84107b.pkl", _mask(40.0, 35.9)),
    _detectron2(_MASKS, "mask_rcnn_R_50_DC5", "1x", "137260150/model_final_4f86c3.pkl", _mask(38.3, 34.2)),
    _detectron2(_MASKS, "mask_rcnn_R_101_DC5", "3x", "138363294/model_final_0464b7.pkl", _mask(41.9, 37.3)),
    _detectron2(_BOXES, "faster_rcnn_R_50_FPN", "3x", "137849458/model_final_280758.pkl", _box(40.2)),
    _detectron2(_BOXES, "faster_rcnn_R_50_FPN", "1x", "137257794/model_final_b275ba.pkl", _box(37.9)),
    _detectron2(_BOXES, "faster_rcnn_R_101_FPN", "3x", "137851257/model_final_f6e8b1.pkl", _box(42.0)),
    _detectron2(_BOXES, "faster_rcnn_X_101_32x8d_FPN", "3x", "139173657/model_final_68b088.pkl", _box(43.0)),
    _detectron2(_BOXES, "faster_rcnn_R_50_C4", "3x", "137849393/model_final_f97cb7.pkl", _box(38.4)),
    _detectron2(_BOXES, "faster_rcnn_R_50_C4", "1x", "137257644/model_final_721ade.pkl", _box(35.7)),
    _detectron2(_BOXES, "faster_rcnn_R_101_C4", "3x", "138204752/model_final_298dad.pkl", _box(41.1)),
    _detectron2(_BOXES, "faster_rcnn_R_50_DC5", "3x", "137849425/model_final_68d202.pkl", _box(39.0)),
    _detectron2(_BOXES, "faster_rcnn_R_50_DC5", "1x", "137847829/model_final_51d356.pkl", _box(37.3)),
    _detectron2(_BOXES, "faster_rcnn_R_101_DC5", "3x", "138204841/model_final_3e0943.pkl", _box(40.6)),
    _detectron2(_PEOPLE, "keypoint_rcnn_R_50_FPN", "3x", "137849621/model_final_a6e10b.pkl", _keypoints(55.4, 65.5)),
    _detectron2(_PEOPLE, "keypoint_rcnn_R_50_FPN", "1x", "137261548/model_final_04e291.pkl", _keypoints(53.6, 64.0)),
    _detectron2(_PEOPLE, "keypoint_rcnn_R_101_FPN", "3x", "138363331/model_final_997cc7.pkl", _keypoints(56.4, 66.1)),
    _detectron2(
        _PEOPLE, "keypoint_rcnn_X_101_32x8d_FPN", "3x", "139686956/model_final_5ad38f.pkl", _keypoints(57.3, 66.0)
    ),
    _torchvision("maskrcnn_resnet50_fpn_v2", "73cbd019", _mask(47.4, 41.8)),
    _torchvision("maskrcnn_resnet50_fpn", "bf2d0c1e", _mask(37.9, 34.6)),
    _torchvision("fasterrcnn_resnet50_fpn_v2", "dd69338a", _box(46.7)),
    _torchvision("fasterrcnn_resnet50_fpn", "258fb6c6", _box(37.0)),
    _torchvision("keypointrcnn_resnet50_fpn", "fc266e95", _keypoints(54.6, 65.0)),
    Checkpoint(
        "matterport/mask_rcnn_coco",
        "coco",
        f"{MATTERPORT}mask_rcnn_coco.h5",
        "matterport/mask_rcnn_coco",
        "resnet101",
    ),
)


def _keras(backbone: str, md5: str) -> Checkpoint:
    file = f"{backbone}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return Checkpoint(f"keras/{backbone}", "imagenet", KERAS + file, "", backbone, f"md5:{md5}")


def _torchvision_backbone(backbone: str, digits: str, version: str = "") -> Checkpoint:
    url = f"{TORCHVISION}{backbone}-{digits}.pth"
    return Checkpoint(f"torchvision/{backbone}{version}", "imagenet", url, "", backbone, f"sha256:{digits}")


def _detectron2_backbone(backbone: str, file: str) -> Checkpoint:
    url = f"{DETECTRON2}ImageNetPretrained/{file}"
    return Checkpoint(f"detectron2/{PurePosixPath(file).stem}", "imagenet", url, "", backbone)


_BACKBONES = (
    _keras("resnet50", "4d473c1dd8becc155b73f8504c6f6626"),
    _keras("resnet101", "88cf7a10940856eca736dc7b7e228a21"),
    _keras("resnet152", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    _torchvision_backbone("resnet18", "f37072fd"),
    _torchvision_backbone("resnet34", "b627a593"),
    _torchvision_backbone("resnet50", "0676ba61"),
    _torchvision_backbone("resnet50", "11ad3fa6", "_v2"),
    _torchvision_backbone("resnet101", "63fe2227"),
    _torchvision_backbone("resnet152", "394f9c45"),
    _torchvision_backbone("resnext50_32x4d", "7cdf4587"),
    _torchvision_backbone("resnext101_32x8d", "8ba56ff5"),
    _torchvision_backbone("resnext101_64x4d", "173b62eb"),
    _detectron2_backbone("resnet50", "MSRA/R-50.pkl"),
    _detectron2_backbone("resnet101", "MSRA/R-101.pkl"),
    _detectron2_backbone("resnext101_32x8d", "FAIR/X-101-32x8d.pkl"),
)


# === Finding one ===


def checkpoints() -> tuple[Checkpoint, ...]:
    """All public checkpoints, whole models first."""
    return _COCO + _BACKBONES


def names() -> list[str]:
    """The names of all public checkpoints."""
    return [checkpoint.name for checkpoint in checkpoints()]


def by_name(name: str) -> Checkpoint | None:
    """The checkpoint called `name`; None if there is none."""
    return next((checkpoint for checkpoint in checkpoints() if checkpoint.name == name), None)


def by_file(path: str | Path) -> Checkpoint | None:
    """The checkpoint that a file is, by its name; None where that is not known."""
    name = Path(path).name
    return next((checkpoint for checkpoint in checkpoints() if checkpoint.file_name == name), None)


def find(preset_name: str, config: Config, dataset: str) -> Checkpoint:
    """The checkpoint that `weights="coco"` or `"imagenet"` means for a preset.

    One with the same branches comes first, then that of the preset itself, one of its source, one with more branches
    in common, one of the same number of classes, and the order of the table.

    Args:
        preset_name: the preset, one of a source or of the package's own.
        config: its configuration, with the caller's changes.
        dataset: "coco" or "imagenet".

    Raises:
        WeightsError: none is published for such a network.
    """
    if dataset == "coco":
        fit = [one for one in _COCO if _is_network(preset(one.preset), config)]
        fit = fit or [one for one in _COCO if one.preset == preset_name]  # the loader tells what differs
    else:
        fit = [one for one in _BACKBONES if one.backbone == config.backbone.name]
    if not fit:
        hint = "; weights='imagenet' are for its backbone" if dataset == "coco" else ""
        raise WeightsError(
            f"no public {dataset} weights are known for the network of '{preset_name}'{hint} "
            "(mrcnn_tf.weights.zoo.names() lists all that are)"
        )
    return max(fit, key=lambda one: _merit(one, preset_name, config))


def _is_network(published: Config, config: Config) -> bool:
    """Whether two networks are the same but for branches, numbers of classes and keypoints, and kinds of norms."""
    different = compare.shapes(published.replace(branches=config.branches), config)
    return all(name in ("num_classes", "keypoints") or name.endswith(".norm") for name, *_ in different)


def _merit(one: Checkpoint, preset_name: str, config: Config) -> tuple:
    own_source = one.source == preset_name.split("/")[0]
    if not one.preset:
        return (own_source,)
    published = preset(one.preset)
    common = set(published.branches) & set(config.branches)
    return (
        set(published.branches) == set(config.branches),
        one.preset == preset_name,
        own_source,
        len(common),
        published.num_classes == config.num_classes,
    )


def nearest(name: str) -> str:
    """The end of a message: the known name that is most like `name`."""
    close = difflib.get_close_matches(name, ["coco", "imagenet", *names()], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def source_of(names: Iterable[str]) -> str:
    """Whose tensors these are, by their names."""
    names = list(names)
    telling = (
        ("matterport", r"(.*/)?(mrcnn_|rpn_class_raw|fpn_[cp]\d).*"),
        ("torchvision", r"backbone\.body\..*|layer[1-4]\.\d+\..*|roi_heads\.box_head\.fc6\..*"),
        ("detectron2", r"backbone\.bottom_up\..*|proposal_generator\..*|res\d\.\d+\..*|res\d_\d+_branch.*|stem\..*"),
    )
    for source, pattern in telling:
        if any(re.fullmatch(pattern, name) for name in names):
            return source
    return "keras"


# === Told to people ===

# Presets whose model, with weights drawn from the names of the tensors, was compared with what the original answers.
_COMPARED = (
    "torchvision/maskrcnn_resnet50_fpn",
    "torchvision/keypointrcnn_resnet50_fpn",
    "detectron2/mask_rcnn_R_50_FPN",
    "detectron2/mask_rcnn_R_50_C4",
    "detectron2/mask_rcnn_R_50_DC5",
    "detectron2/mask_rcnn_X_101_32x8d_FPN",
    "detectron2/keypoint_rcnn_R_50_FPN",
)
_PROOFS = {
    **{name: "same answers" for name in _COMPARED},
    "matterport/mask_rcnn_coco": "same answers as its network written once more",
}


def table() -> str:
    """The whole models as a Markdown table: checkpoint, preset, published AP, what was proved. It is in the README."""
    lines = ["| checkpoint | preset | box AP | mask AP | keypoint AP | proved here |", "|---|---|---|---|---|---|"]
    for one in _COCO:
        found = [f"{one.ap[kind]:.1f}" if kind in one.ap else "" for kind in ("box", "mask", "keypoints")]
        proof = _PROOFS.get(one.preset, "each tensor in its place")
        lines.append(f"| `{one.name}` | `{one.preset}` | {' | '.join(found)} | {proof} |")
    return "\n".join(lines)
