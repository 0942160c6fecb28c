"""The records of COCO's results format: what one has to hold, and what `Detections.from_coco` takes from it.

Shape letters: N records of an image, J keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from mrcnn_tf import pasting


def check_record(record: dict, numbers: Mapping[int, int]) -> None:
    """Refuses a record that cannot be used; its segmentation is not looked at.

    Args:
        record: of COCO's results format.
        numbers: the class of each category id.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    for name in ("category_id", "score"):
        if name not in record:
            raise ValueError(f"'{name}' is missing; each result has image_id, category_id, score and bbox or the like")
    if record["category_id"] not in numbers:
        raise ValueError(f"category_id {record['category_id']} is unknown; known are {sorted(numbers)}")
    if len(_numbers([record["score"]])) != 1:
        raise ValueError(f"'score' should be a number, not {record['score']!r:.60}")
    points = record.get("keypoints")
    if points and (len(_numbers(points)) % 3 or not len(_numbers(points))):
        raise ValueError(f"'keypoints' should be x, y, v triples, not {points!r:.60}")
    if record.get("bbox"):
        if len(_numbers(record["bbox"])) != 4:
            raise ValueError(f"'bbox' should be [x, y, width, height], not {record['bbox']!r:.60}")
    elif not points and not record.get("segmentation"):
        raise ValueError("it has no bbox, and no segmentation or keypoints to take one from")


def _numbers(values: Any) -> list[float]:
    """The values, where all of them are finite numbers; else nothing."""
    fit = isinstance(values, (list, tuple)) and all(isinstance(value, Real) for value in values)
    return list(values) if fit and all(map(math.isfinite, values)) else []


def box_of(record: dict, image_size: Sequence[int]) -> list[float]:
    """x, y, width, height of a record; from its mask or keypoints where it has no bbox, as in pycocotools."""
    if record.get("bbox"):
        return record["bbox"]
    if record.get("segmentation"):
        return pasting.box_of(record["segmentation"], *image_size)
    points = np.reshape(record["keypoints"], (-1, 3))[:, :2]
    return [*points.min(axis=0), *np.ptp(points, axis=0)]


def keypoints_of(records: list[dict]) -> np.ndarray | None:
    """[N, J, 3] y, x and the third number of each keypoint of the records; None unless all of them have some.

    Raises:
        ValueError: records with different numbers of keypoints.
    """
    if not records or not all(record.get("keypoints") for record in records):
        return None
    counts = sorted({len(record["keypoints"]) // 3 for record in records})
    if len(counts) > 1:
        raise ValueError(f"records with {counts[0]} and with {counts[-1]} keypoints: all should have as many")
    triples = np.array([record["keypoints"] for record in records], np.float64).reshape(len(records), -1, 3)
    triples[..., :2] += 0.5 * triples.any(axis=2)[..., None]
    return triples[..., [1, 0, 2]].astype(np.float32)
