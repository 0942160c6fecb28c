"""COCO's measures of boxes, masks and keypoints, by pycocotools.

Shape letters: T IoU or OKS thresholds (.5 to .95), R recall thresholds, K classes, A area ranges, M limits on
detections.

AP is the mean precision over T, R and the classes that have ground truth, as COCO defines it. Where there is no ground
truth at all (in a class, or in an area range) a measure is not defined and stands as nan (pycocotools says -1).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mrcnn_tf.config import Config
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation import keypoints as oks
from mrcnn_tf.evaluation.matching import Evaluator

KINDS = {"box": "bbox", "mask": "segm", "keypoints": "keypoints"}
FIELDS = {"box": "bbox", "mask": "segmentation", "keypoints": "keypoints"}  # of COCO's results format
CLASS_METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_coco` found.

    Attributes:
        metrics: "box/AP", "box/AP50", "box/AP75", "box/APs", "box/APm", "box/APl" (small, medium, large objects),
            "box/AR1", "box/AR10", "box/AR100", "box/ARs", "box/ARm", "box/ARl", and the same of "mask/"; by OKS
            "keypoints/AP", "keypoints/AP50", "keypoints/AP75", "keypoints/APm", "keypoints/APl", and "keypoints/AR",
            "keypoints/AR50" (at OKS .5), ... likewise; 0..1 or nan.
        per_class: for each class name "objects" (without crowds), "images" that hold some, and "box/AP", "box/AP50",
            "box/AP75", the same of "mask/" and "keypoints/".
        results: COCO's results format, as the evaluation server takes it.
        max_detections: the limit on detections an image.
        image_count: images in the data set.
        object_count: objects in the data set, without crowds.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    results: list[dict] = field(repr=False)
    max_detections: int
    image_count: int
    object_count: int

    def to_dict(self) -> dict:
        """All but `results`, ready for strict json: nan becomes None."""
        return {
            "metrics": _without_nan(self.metrics),
            "per_class": {name: _without_nan(values) for name, values in self.per_class.items()},
            "max_detections": self.max_detections,
            "images": self.image_count,
            "objects": self.object_count,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes `to_dict` as json."""
        _write_json(self.to_dict(), path, indent=2)

    def save_results(self, path: str | os.PathLike, kind: str | None = None) -> None:
        """Writes `results` as json: the file that the COCO server takes.

        Args:
            path: the file.
            kind: "box", "mask" or "keypoints" writes what the server wants for that task alone, in which pycocotools
                takes a detection's area from its mask or keypoints as `metrics` does; None writes everything.

        Raises:
            ValueError: an unknown kind, or one that the results do not have.
        """
        if kind is not None:
            (kind,) = _check_kinds(kind)
            if not all(FIELDS[kind] in item for item in self.results):
                raise ValueError(f"kind = {kind!r}: the results have no {FIELDS[kind]}")
        kept = ("image_id", "category_id", FIELDS.get(kind, ""), "score")
        records = [{name: item[name] for name in kept} for item in self.results] if kind else self.results
        _write_json(records, path)

    def table(self, classes: bool = True) -> str:
        """Text for people: all measures, and (if `classes`) those of each class; "-" where one is not defined."""
        kinds = [kind for kind in KINDS if f"{kind}/AP" in self.metrics]
        head = (
            f"{self.image_count} images, {self.object_count} objects, at most {self.max_detections} detections an image"
        )
        blocks: dict[tuple[str, ...], list[list[str]]] = {}  # keypoints have columns of their own
        for kind in kinds:
            values = {name.split("/")[1]: value for name, value in self.metrics.items() if name.startswith(f"{kind}/")}
            rows = blocks.setdefault(tuple(values), [["", *values]])
            rows.append([kind, *map(_number, values.values())])
        text = "\n\n".join([head, *map(_columns, blocks.values())]) + "\n"
        if not classes:
            return text
        columns = [f"{kind}/{name}" for kind in kinds for name in CLASS_METRICS]
        rows = [["class", "objects", "images", *(column.replace("/", " ") for column in columns)]]
        for name, values in self.per_class.items():
            counts = [str(values["objects"]), str(values["images"])]
            rows.append([name, *counts, *(_number(values[column]) for column in columns)])
        return f"{text}\n{_columns(rows)}\n"


def evaluate_coco(
    dataset: Any,
    detections: Mapping[int, Detections],
    max_detections: int = 100,
    kinds: Sequence[str] | None = None,
    sigmas: Sequence[float] | None = None,
    max_keypoint_detections: int = oks.MOST_DETECTIONS,
) -> Evaluation:
    """COCO's measures of detections on a data set.

    What is measured are the records that `Evaluation.save_results` writes (rounded as they are there), so the COCO
    server says the same of the file. Nothing is printed.

    Args:
        dataset: a data set (`data.schema.Dataset`); its crowds and area ranges count as COCO has it.
        detections: image id to Detections. Images that are left out count as images where nothing was found.
        max_detections: how many detections an image count; the largest of COCO's limits (1, 10, 100) is raised or
            lowered to it, for AP too.
        kinds: some of "box", "mask" and "keypoints"; None measures boxes always, and the others where both the data
            set and the detections have them (`kinds_of` tells what a model's are).
        sigmas: of the J keypoints, see `evaluation.keypoints`; None takes COCO's for its own 17, else .05 for all.
        max_keypoint_detections: how many detections an image count for the keypoints, at most `max_detections`.

    Returns:
        The measures. Without any ground truth all are nan; without any detection AP and AR are 0.

    Raises:
        ValueError: an unknown kind or image id, masks or keypoints asked for where detections or ground truth have
            none, other classes or keypoints than the data set's, an image of another size, one that is there twice.
    """
    limits = {"max_detections": max_detections, "max_keypoint_detections": max_keypoint_detections}
    for name, limit in limits.items():
        if limit < 1:
            raise ValueError(f"{name} = {limit}: at least 1")
    truth = dataset.to_coco()
    names = _keypoint_names(truth)
    kinds = _kinds_there(dataset, truth, detections) if kinds is None else _check_kinds(kinds)
    if "keypoints" in kinds and not names:
        raise ValueError(f"kinds = {kinds!r}: the data set has no keypoints")
    results = _results(dataset, truth, detections, kinds, len(names))
    sigmas = oks.sigmas_of(names, sigmas) if "keypoints" in kinds else None
    metrics: dict[str, float] = {}
    per_class = _count_objects(dataset, truth)
    for kind in kinds:
        limit = min(max_detections, max_keypoint_detections) if kind == "keypoints" else max_detections
        evaluator = _evaluate(truth, results, kind, limit, sigmas)
        metrics.update(_summary(evaluator, kind))
        for name, category in zip(dataset.class_names, dataset.category_ids, strict=True):
            per_class[name].update(_class_summary(evaluator, kind, category))
    object_count = sum(not annotation.get("iscrowd", 0) for annotation in truth["annotations"])
    return Evaluation(metrics, per_class, results, max_detections, len(truth["images"]), object_count)


def kinds_of(config: Config, dataset: Any) -> tuple[str, ...]:
    """What of a model is measured on a data set: boxes, and masks and keypoints where both have them."""
    has = {"mask": dataset.has_masks, "keypoints": bool(dataset.keypoint_names)}
    return ("box", *(kind for kind, there in has.items() if there and kind in config.branches))


def load_results(source: str | os.PathLike | list[dict], dataset: Any) -> dict[int, Detections]:
    """Detections from COCO's results format, as `evaluate_coco` takes them: image id to Detections.

    Args:
        source: the path of a json file, or the records themselves.
        dataset: the data set that the records are about.

    Raises:
        ValueError: no list of records, an image or category that the data set does not have, a record or mask that
            cannot be used; the message names the file, the image and the record.
    """
    if isinstance(source, list):
        return _load_records(source, dataset)
    try:
        with open(source, encoding="utf-8") as handle:
            records = json.load(handle)
        return _load_records(records, dataset)
    except ValueError as error:  # json's errors are such
        raise ValueError(f"{os.fspath(source)}: {error}") from error


def _load_records(source: Any, dataset: Any) -> dict[int, Detections]:
    if not isinstance(source, list) or not all(isinstance(item, dict) and "image_id" in item for item in source):
        raise ValueError("COCO's results format is a list of records with an image_id each")
    image_ids = [int(image_id) for image_id in dataset.image_ids]
    sizes = dict(zip(image_ids, dataset.sizes, strict=True))
    records: dict[int, list[dict]] = {image_id: [] for image_id in image_ids}
    for item in source:
        if item["image_id"] not in records:
            raise ValueError(f"the data set has no image {item['image_id']}")
        records[item["image_id"]].append(item)
    classes = (dataset.class_names, dataset.category_ids)
    loaded = {}
    for image_id, items in records.items():
        try:
            loaded[image_id] = Detections.from_coco(items, *classes, sizes[image_id])
        except ValueError as error:
            raise ValueError(f"image {image_id}: {error}") from error
    return loaded


def _check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds = {kinds!r}: some of {', '.join(KINDS)}")
    return kinds


def _keypoint_names(truth: dict) -> list[str]:
    return max((category.get("keypoints") or [] for category in truth["categories"]), key=len, default=[])


def _kinds_there(dataset: Any, truth: dict, detections: Mapping[int, Detections]) -> tuple[str, ...]:
    found = [one for one in detections.values() if len(one)]
    annotations = [item for item in truth["annotations"] if not item.get("iscrowd", 0)]
    has_masks = getattr(dataset, "has_masks", True) and all(item.get("segmentation") for item in annotations)
    has_masks &= all(one.has_masks for one in found)
    has_keypoints = bool(_keypoint_names(truth)) and all(one.keypoints is not None for one in found)
    return ("box", *["mask"] * has_masks, *["keypoints"] * has_keypoints)


def _results(
    dataset: Any, truth: dict, detections: Mapping[int, Detections], kinds: Sequence[str], keypoints: int
) -> list[dict]:
    """The records of all images, in the data set's order, checked against the data set."""
    sizes = {int(image["id"]): (image["height"], image["width"]) for image in truth["images"]}
    if len(sizes) < len(truth["images"]):
        again = Counter(int(image["id"]) for image in truth["images"]).most_common(1)[0][0]
        raise ValueError(f"the data set has the image {again} more than once; measure each image once")
    unknown = [image_id for image_id in detections if image_id not in sizes]
    if unknown:
        raise ValueError(f"the data set has no image {unknown[0]} ({len(unknown)} such ids)")
    results = []
    for image_id, size in sizes.items():
        found = detections.get(image_id)
        if found is None or not len(found):
            continue
        if found.image_size != size:
            raise ValueError(f"image {image_id} is {size[0]} x {size[1]}, its detections are on {found.image_size}")
        if found.class_names and found.class_names != tuple(dataset.class_names):
            raise ValueError(f"image {image_id}: detections have other classes than the data set")
        if "mask" in kinds and not found.has_masks:
            raise ValueError(f"image {image_id}: detections without masks; evaluate them with kinds=('box',)")
        if "keypoints" in kinds and (found.keypoints is None or found.keypoints.shape[1] != keypoints):
            count = 0 if found.keypoints is None else found.keypoints.shape[1]
            raise ValueError(f"image {image_id}: detections with {count} keypoints, the data set has {keypoints}")
        results += found.to_coco(image_id, dataset.category_ids)
    return results


def _count_objects(dataset: Any, truth: dict) -> dict[str, dict[str, float]]:
    objects: dict[int, list[int]] = {category: [] for category in dataset.category_ids}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd", 0):
            objects[annotation["category_id"]].append(annotation["image_id"])
    counts = [{"objects": len(images), "images": len(set(images))} for images in objects.values()]
    return dict(zip(dataset.class_names, counts, strict=True))


def _evaluate(truth: dict, results: list[dict], kind: str, max_detections: int, sigmas: np.ndarray | None) -> Evaluator:
    joints = 0 if sigmas is None else len(sigmas)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        ground_truth = _index(truth, [_truth_record(item, kind, joints) for item in truth["annotations"]])
        found = _index(truth, [_result_record(item, kind) for item in results])
        evaluator = Evaluator(ground_truth, found, KINDS[kind])
        smaller = () if kind == "keypoints" else (1, 10)
        evaluator.params.maxDets = [*(limit for limit in smaller if limit < max_detections), max_detections]
        if kind == "keypoints":
            evaluator.params.kpt_oks_sigmas = sigmas
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _index(truth: dict, annotations: list[dict]) -> COCO:
    coco = COCO()
    # Numbered anew from 1: pycocotools takes an id of 0 for "not matched".
    annotations = [{**item, "id": number} for number, item in enumerate(annotations, start=1)]
    coco.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    coco.createIndex()
    return coco


def _truth_record(annotation: dict, kind: str, keypoints: int) -> dict:
    if kind == "mask" and not annotation.get("segmentation"):
        what = f"image {annotation['image_id']}: an object without segmentation"
        raise ValueError(f"{what}; evaluate boxes alone with kinds=('box',)")
    if kind == "keypoints":
        annotation = oks.truth_record(annotation, keypoints)
    # A copy: pycocotools writes into the records.
    return {**annotation, "iscrowd": annotation.get("iscrowd", 0)}


def _result_record(item: dict, kind: str) -> dict:
    if kind == "keypoints":
        return oks.result_record(item)
    record = {key: item[key] for key in ("image_id", "category_id", "bbox", "score")}
    if kind == "box":
        area = item["bbox"][2] * item["bbox"][3]
    else:
        # A mask is small or large by its own area, not its box's.
        record["segmentation"] = {**item["segmentation"], "counts": item["segmentation"]["counts"].encode()}
        area = float(coco_mask.area(record["segmentation"]))
    return {**record, "area": area, "iscrowd": 0}


def _summary(evaluator: Evaluator, kind: str) -> dict[str, float]:
    """The measures from precision [T, R, K, A, M] and recall [T, K, A, M], whatever the limits are.

    `COCOeval.summarize` looks for the limit 100 and says -1 where another was set.
    """
    if kind == "keypoints":
        return {f"{kind}/{name}": value for name, value in oks.summary(evaluator).items()}
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    values = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
    }
    values |= {f"AP{size}": _mean(precision[:, :, :, area, -1]) for area, size in enumerate("sml", start=1)}
    values |= {f"AR{limit}": _mean(recall[:, :, 0, place]) for place, limit in enumerate(evaluator.params.maxDets)}
    values |= {f"AR{size}": _mean(recall[:, :, area, -1]) for area, size in enumerate("sml", start=1)}
    return {f"{kind}/{name}": value for name, value in values.items()}


def _class_summary(evaluator: Evaluator, kind: str, category: int) -> dict[str, float]:
    precision = evaluator.eval["precision"][:, :, list(evaluator.params.catIds).index(category), 0, -1]
    values = (_mean(precision), _mean(precision[0]), _mean(precision[5]))
    return {f"{kind}/{name}": value for name, value in zip(CLASS_METRICS, values, strict=True)}


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _write_json(value: Any, path: str | os.PathLike, indent: int | None = None) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as handle:
        json.dump(value, handle, indent=indent, allow_nan=False)
