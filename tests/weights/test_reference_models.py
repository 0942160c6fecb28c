"""Whole models against torchvision and Detectron2, with the same seeded weights on the same photographs.

The recorded numbers and how close is equal: tests/reference/README.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import weights
from mrcnn_tf.detections import Detections
from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from tests.reference.seeded_weights import state_dict

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
YX = [1, 0, 3, 2]
PHOTOGRAPHS = ("astronaut", "coffee")


PYRAMID = ("p2", "p3", "p4", "p5", "p6")


@dataclass(frozen=True)
class Source:
    """A recorded model; everything that is not said is as with Detectron2's models on a pyramid."""

    name: str
    model: str
    recorded: str
    spec: str
    image: str = "image_rgb_u8"
    maps: tuple[str, ...] = PYRAMID
    rpn: tuple[str, ...] = ("0", "1", "2", "3", "4")
    first_label: int = 0
    gains: dict | None = None
    changes: dict = field(default_factory=dict)

    @property
    def preset(self):
        return f"{self.name}/{self.model}"

    def tensors(self, seed=0):
        return state_dict(REFERENCE / self.spec, seed, self.gains)


def torchvision(model, recorded):
    return Source("torchvision", model, recorded, f"{model}_spec.json", "image_u8", rpn=PYRAMID, first_label=1)


def detectron2(model, **values):
    changes = {"input.std": (57.375, 57.12, 58.395)}
    return Source(
        "detectron2", model, f"detectron2_{model}.npz", f"detectron2_{model}_spec.json", changes=changes, **values
    )


MODELS = [
    torchvision("maskrcnn_resnet50_fpn", "torchvision_maskrcnn.npz"),
    torchvision("keypointrcnn_resnet50_fpn", "torchvision_keypointrcnn.npz"),
    detectron2("mask_rcnn_R_50_FPN"),
    detectron2("mask_rcnn_R_50_C4", maps=("res4",), rpn=("0",), gains={"box_predictor.cls_score": 0.1}),
    detectron2("mask_rcnn_R_50_DC5", maps=("res5",), rpn=("0",)),
    detectron2("mask_rcnn_X_101_32x8d_FPN"),
    detectron2("keypoint_rcnn_R_50_FPN", gains={"box_predictor.cls_score": 0.5}),
]
SOURCES = {source.preset: source for source in MODELS}


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return SOURCES[request.param]


@pytest.fixture(scope="module")
def recorded(source):
    with np.load(REFERENCE / source.recorded) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def model(source):
    return MaskRCNN(preset(source.preset, input__shorter_edge=256, input__longer_edge=320, **source.changes))


@pytest.fixture(scope="module")
def conversion(source, model):
    """The report of the conversion."""
    return weights.assign(model, source.tensors(), source.name)


@pytest.fixture(scope="module")
def answers(source, model, recorded, conversion):
    """For each photograph: features, RPN outputs, proposals, the head's answers on recorded proposals, detections."""
    features = model.stages["rpn"][0]
    logits, deltas, _ = model.stages["rpn"][1]
    whole = keras.Model(model.inputs, [features, logits, deltas, model.stages["proposals"][1], model.output])
    # As a graph, which lets go of what no later layer needs: res5 on a thousand RoIs makes gigabytes of it.
    whole = tf.function(whole, reduce_retracing=True)
    head = None
    if source.name == "torchvision":  # Detectron2's head is recorded by its detections alone
        head = keras.Model(model.stages["box_align"][0], model.stages["box_head"][1])
    found = {}
    for name in PHOTOGRAPHS:
        image = recorded[f"{name}/{source.image}"]
        size = np.array([image.shape[:2]], np.int32)
        maps, level_logits, level_deltas, proposals, outputs = whole([image[None].astype(np.float32), size])
        if head is not None:
            rois = tf.constant(recorded[f"{name}/proposals_xyxy"][None][..., YX])
            class_logits, box_deltas = (np.array(value[0]) for value in head([maps[:4], rois]))
        paste = model.config.detections.paste
        (detections,) = Detections.from_batch(outputs, size, size, model.config.class_names, paste=paste)
        found[name] = {
            "features": [np.array(value[0]) for value in maps],
            "rpn_logits": [np.array(value[0]) for value in level_logits],
            "rpn_deltas": [np.array(value[0]) for value in level_deltas],
            "proposals": np.array(proposals[0]),
            "class_logits": None if head is None else class_logits,
            "box_deltas": None if head is None else box_deltas,
            "detections": detections,
        }
    return found


def difference(ours, theirs):
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def iou(first, second):
    return box_ops.iou(first.astype(np.float32), second.astype(np.float32)).numpy()


def test_every_tensor_and_every_weight_is_accounted_for(source, model, conversion):
    report = conversion
    assert report.complete and report.missing == report.left == report.unused == report.warnings == []
    assert sorted(report.loaded) == sorted(weight.path for weight in model.weights)
    names = set(source.tensors())
    whole = {name for name in report.left_out if name in names}
    assert len(names) == len(report.loaded) + len(whole)
    if source.name == "detectron2":
        assert report.left_out == []
    else:
        assert all(name.endswith("num_batches_tracked") for name in whole)
        of_background = {name.split(" ")[0] for name in report.left_out if name not in names}
        boxes, masks = "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"
        left = {f"{boxes}.weight[0:4]", f"{boxes}.bias[0:4]"}
        left |= {f"{masks}.weight[0:1]", f"{masks}.bias[0:1]"} if "mask" in model.config.branches else set()
        assert of_background == left


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_features(photograph, source, answers, recorded):
    for name, ours in zip(source.maps, answers[photograph]["features"], strict=True):
        theirs = recorded[f"{photograph}/{name}_slice"]
        step = ours.shape[-1] // len(theirs)
        assert difference(ours[..., ::step].transpose(2, 0, 1), theirs) < 1e-3


def in_our_order(values, numbers):
    """Values [A * numbers, H, W] of a level as [H * W * A, numbers].

    Where several sizes of anchors stand on one map, Detectron2 goes through the ratios of each size, we through the
    sizes of each ratio.
    """
    _, height, width = values.shape
    values = values.reshape(-1, 3, numbers, height, width)  # [sizes, ratios, ...]
    return values.transpose(3, 4, 1, 0, 2).reshape(-1, numbers)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_rpn_outputs(photograph, source, answers, recorded):
    found = answers[photograph]
    for level, logits, deltas in zip(source.rpn, found["rpn_logits"], found["rpn_deltas"], strict=True):
        theirs = in_our_order(recorded[f"{photograph}/rpn_logits_{level}"], 1)
        assert difference(logits, theirs[:, 0]) < 1e-3
        theirs = in_our_order(recorded[f"{photograph}/rpn_deltas_{level}"], 4)
        assert difference(deltas, theirs[:, YX]) < 1e-3


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_proposals(photograph, answers, recorded):
    theirs = recorded[f"{photograph}/proposals_xyxy"][:, YX]
    overlap = iou(theirs, answers[photograph]["proposals"])
    # A proposal at the border of overlap or score decides about some of those after it.
    assert (overlap.max(axis=1) >= 0.99).mean() >= 0.99
    assert (overlap.max(axis=0) >= 0.99).mean() >= 0.99


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_box_head_on_the_recorded_proposals(photograph, source, answers, recorded):
    if source.name == "detectron2":
        pytest.skip("the outputs of Detectron2's box head are not recorded")
    found = answers[photograph]
    assert difference(found["class_logits"], recorded[f"{photograph}/class_logits"]) < 1e-3
    theirs = recorded[f"{photograph}/box_deltas_slice"].reshape(100, -1, 4)[:, 1:, YX]
    assert difference(found["box_deltas"][:100], theirs) < 1e-3


def same_masks(theirs, ours):
    """Which of `theirs` [A, H, W] and `ours` [B, H, W] have an IoU of .98 at least; masks without a pixel are equal."""
    shared = np.einsum("ahw,bhw->ab", theirs, ours, dtype=np.float32, optimize=True)
    union = theirs.sum((1, 2))[:, None] + ours.sum((1, 2)) - shared
    return shared >= 0.98 * union


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_detections_masks_and_keypoints(photograph, source, answers, recorded):
    ours = answers[photograph]["detections"]
    boxes, labels, scores = (recorded[f"{photograph}/{name}"] for name in ("boxes_xyxy", "labels", "scores"))
    assert len(ours) == len(boxes)
    overlap = iou(boxes[:, YX], ours.boxes)
    fits = (overlap >= 0.99) & (labels[:, None] - source.first_label + 1 == ours.classes)
    fits &= np.abs(scores[:, None] - ours.scores) <= 2e-3
    if f"{photograph}/masks_packed" in recorded:
        packed = recorded[f"{photograph}/masks_packed"]
        fits &= same_masks(np.unpackbits(packed, axis=-1)[..., : ours.image_size[1]].astype(bool), ours.masks)
    else:
        keypoints = recorded[f"{photograph}/keypoints_xyv"][..., :2][..., ::-1]
        distance = np.linalg.norm(keypoints[:, None] - ours.keypoints[None, ..., :2], axis=-1)
        fits &= (distance <= 0.5).all(axis=-1)
    if f"{photograph}/keypoint_scores" in recorded:
        differs = np.abs(recorded[f"{photograph}/keypoint_scores"][:, None] - ours.keypoints[None, ..., 2])
        fits &= (differs <= 1e-3 * np.abs(ours.keypoints[..., 2]).max()).all(axis=-1)
    taken = set()
    for row in fits:
        free = [index for index in np.flatnonzero(row) if index not in taken]
        taken |= set(free[:1])
    assert len(taken) >= 0.99 * len(boxes)


@pytest.mark.parametrize("seed", [1])
def test_another_seed_runs_and_uses_every_tensor(seed, source, model, recorded, answers):
    if source.model not in ("maskrcnn_resnet50_fpn", "keypoint_rcnn_R_50_FPN"):
        pytest.skip("two of the models are enough, and half a minute less each")
    report = weights.assign(model, source.tensors(seed), source.name)
    assert report.complete and report.unused == [] and len(report.loaded) == len(model.weights)
    image = recorded[f"coffee/{source.image}"]
    size = np.array([image.shape[:2]], np.int32)
    found = tf.function(model)({"image": image[None].astype(np.float32), "image_size": size})
    assert all(np.isfinite(found[key]).all() for key in found)
    assert (np.array(found["classes"]) > 0).any()
    assert not np.array_equal(found["scores"][0], answers["coffee"]["detections"].scores)
