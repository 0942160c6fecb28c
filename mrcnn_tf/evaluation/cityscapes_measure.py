"""The measure of Cityscapes' benchmark: average precision of masks with its own rules for what is counted.

Shape letters: P predictions and G objects of one class in one image, H W pixels, T IoU thresholds (.5 to .95).

It differs from COCO's mask AP (`evaluate_coco`) in this: objects below 100 pixels and groups are not to be found; a
prediction that found nothing is not held against the model where more of it than the IoU threshold lies on such, or on
labels that the benchmark leaves out; the number of predictions is not limited; the IoU has to exceed the threshold;
and the area under the curve of precision over recall is that of the straight lines between its points, from precision
1 at recall 0.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mrcnn_tf.atomic import write_atomically
from mrcnn_tf.data.cityscapes import annotation_of
from mrcnn_tf.data.cityscapes_labels import FIRST_OBJECT, VOID, BadAnnotation, labels_of, read_ids
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation.cityscapes import check_detections

LEAST_AREA = 100  # pixels of an object that is to be found
THRESHOLDS = np.arange(0.5, 1.0, 0.05)


@dataclass(frozen=True)
class CityscapesEvaluation:
    """What `evaluate_cityscapes` found.

    Attributes:
        metrics: "AP", "AP50", means over the classes that have objects; 0..1 or nan.
        per_class: for each class name "objects" that were to be found, "AP", "AP50".
        image_count: images in the data set.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    image_count: int

    def table(self) -> str:
        """Text for people; "-" where a measure is not defined."""
        rows = [("class", "objects", "AP", "AP50")]
        for name, values in self.per_class.items():
            rows.append((name, str(values["objects"]), _number(values["AP"]), _number(values["AP50"])))
        objects = sum(values["objects"] for values in self.per_class.values())
        rows.append(("mean", str(objects), _number(self.metrics["AP"]), _number(self.metrics["AP50"])))
        lines = [f"{name:12}{count:>9}{ap:>8}{ap50:>8}" for name, count, ap, ap50 in rows]
        return f"{self.image_count} images, measured as Cityscapes' benchmark does\n" + "\n".join(lines) + "\n"

    def save(self, path: str | os.PathLike) -> None:
        """Writes everything as json; nan becomes null."""
        whole = {"metrics": self.metrics, "per_class": self.per_class, "images": self.image_count}
        text = json.dumps(_without_nan(whole), indent=2, allow_nan=False)
        write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))


def evaluate_cityscapes(
    dataset: Any, detections: Mapping[int, Detections], progress: bool | None = None
) -> CityscapesEvaluation:
    """The benchmark's instance-level AP and AP50 (table 7 of the paper).

    Args:
        dataset: of `read_cityscapes`, or a subset of one; its annotation files are read again, one at a time.
        detections: image id to Detections with masks. Images that are left out count as images where nothing was
            found.
        progress: shows a progress bar (on the standard error); None does so on a terminal.

    Raises:
        ValueError: an image id or classes that are not the data set's, an image of another size, detections without
            masks.
        DataError: an image without annotation (the test images), or one that cannot be read.
    """
    check_detections(detections, dataset)
    progress = sys.stderr.isatty() if progress is None else progress
    matches: list[list[_Match]] = [[] for _ in dataset.class_names]
    for index in tqdm(range(len(dataset)), unit="image", disable=not progress):
        ids = _ids(dataset.example(index).path)
        areas = np.bincount(ids.reshape(-1), minlength=FIRST_OBJECT)
        found = detections.get(int(dataset.image_ids[index]))
        for place, label in enumerate(dataset.category_ids):
            matches[place].append(_match(ids, areas, label, found, place + 1))
    per_class, values = {}, []
    for name, images in zip(dataset.class_names, matches, strict=True):
        precision = np.array([_average_precision(images, threshold) for threshold in THRESHOLDS])
        objects = int(sum(image.counted.sum() for image in images))
        per_class[name] = {"objects": objects, "AP": float(precision.mean()), "AP50": float(precision[0])}
        values.append((per_class[name]["AP"], per_class[name]["AP50"]))
    defined = np.array([pair for pair in values if not math.isnan(pair[0])]).reshape(-1, 2)
    means = defined.mean(axis=0) if len(defined) else np.full(2, math.nan)
    return CityscapesEvaluation({"AP": float(means[0]), "AP50": float(means[1])}, per_class, len(dataset))


def _ids(image: str) -> np.ndarray:
    """[H, W] uint16: the ids of an image's pixels."""
    path = annotation_of(image)
    if path is None:
        message = f"{image}: has no annotation to measure by; the test images are measured by Cityscapes' server"
        raise DataError(message, "annotation missing")
    try:
        return read_ids(path)
    except BadAnnotation as error:
        raise DataError(f"{path}: {error}; unpack it again", "bad annotation") from None


@dataclass(frozen=True)
class _Match:
    """Predictions and objects of one class in one image.

    Attributes:
        scores: [P].
        iou: [P, G], G being all objects and the group.
        counted: [G] bool, what is to be found.
        ignored: [P] share of a prediction that is not held against the model.
    """

    scores: np.ndarray
    iou: np.ndarray
    counted: np.ndarray
    ignored: np.ndarray


def _match(ids: np.ndarray, areas_of_ids: np.ndarray, label: int, found: Detections | None, number: int) -> _Match:
    """How the predictions of class `number` lie on the objects of `label`; `areas_of_ids` counts the pixels of ids."""
    there = np.flatnonzero(areas_of_ids)
    objects = there[labels_of(there) == label]
    areas = areas_of_ids[objects]
    scores, iou, ignored = [], [], []
    for place in np.flatnonzero(found.classes == number) if found is not None else ():
        pixels = ids[found.mask(place)]
        if not len(pixels):
            continue
        covered = np.bincount(pixels, minlength=len(areas_of_ids))
        shared = covered[objects]
        free = covered[list(VOID)].sum() + shared[objects < FIRST_OBJECT].sum() + shared[areas < LEAST_AREA].sum()
        scores.append(float(found.scores[place]))
        iou.append(shared / (areas + len(pixels) - shared))
        ignored.append(free / len(pixels))
    counted = (objects >= FIRST_OBJECT) & (areas >= LEAST_AREA)
    return _Match(np.array(scores), np.reshape(iou, (len(scores), len(objects))), counted, np.array(ignored))


def _average_precision(images: list[_Match], threshold: float) -> float:
    """AP of one class at one IoU threshold; nan without an object to be found, 0 without any prediction.

    Objects do not overlap, so above an IoU of .5 a prediction belongs to one object at most.
    """
    positives = sum(int(image.counted.sum()) for image in images)
    if not positives:
        return math.nan
    right, wrong = [], []
    for image in images:
        hits = image.iou > threshold
        for column in hits.T[image.counted]:
            if column.any():
                best, *others = sorted(image.scores[column], reverse=True)
                right.append(best)
                wrong += others
        missed = ~hits.any(axis=1) & (image.ignored <= threshold)
        wrong += image.scores[missed].tolist()
    scores = np.array(right + wrong)
    if not len(scores):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(order < len(right))
    # Predictions of one score come together: a point of the curve stands after the last of them.
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    precision = np.concatenate([[1.0], hits[last] / (last + 1)])
    recall = np.concatenate([[0.0], hits[last] / positives])
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
