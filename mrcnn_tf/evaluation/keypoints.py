"""What is special about measuring keypoints: object keypoint similarity (OKS) in the place of IoU.

Shape letters: T OKS thresholds (.5 to .95), R recall thresholds, K classes, A area ranges, M limits on detections,
J keypoints.

The OKS of a detection with an object is the mean, over the object's labelled keypoints, of exp(-d^2 / (2 s^2 (2 k)^2)):
d the distance in pixels, s^2 the object's area, k how far people's own annotations of that keypoint scatter (its
sigma). COCO measured the sigmas of its 17 keypoints; for others there is one for all, unless some are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pycocotools.cocoeval import COCOeval, Params

from mrcnn_tf.coco_names import KEYPOINTS

SIGMAS = tuple(Params(iouType="keypoints").kpt_oks_sigmas.tolist())
OTHER_SIGMA = 0.05
MOST_DETECTIONS = 20  # an image, by COCO's rule


def sigmas_of(names: Sequence[str], given: Sequence[float] | None = None) -> np.ndarray:
    """[J] the sigmas to measure with: those given, COCO's own for its 17 keypoints, else .05 for all.

    Raises:
        ValueError: another number is given than there are keypoints, or one that is not positive.
    """
    if given is None:
        return np.array(SIGMAS if tuple(names) == KEYPOINTS else [OTHER_SIGMA] * len(names))
    sigmas = np.array(given, np.float64)
    if sigmas.shape != (len(names),) or not (sigmas > 0).all():
        raise ValueError(f"sigmas = {given!r}: one positive number for each of the {len(names)} keypoints")
    return sigmas


def truth_record(annotation: dict, count: int) -> dict:
    """An annotation with keypoints; without labelled ones it is ignored, whatever is found there."""
    points = annotation.get("keypoints") or [0] * (3 * count)
    return {**annotation, "keypoints": points, "num_keypoints": int(np.count_nonzero(np.array(points)[2::3] > 0))}


def result_record(item: dict) -> dict:
    """A record of the results with its area: that of the rectangle around its keypoints, as the server has it."""
    record = {key: item[key] for key in ("image_id", "category_id", "keypoints", "score")}
    x, y = item["keypoints"][0::3], item["keypoints"][1::3]
    return {**record, "area": (max(x) - min(x)) * (max(y) - min(y)), "iscrowd": 0}


def summary(evaluator: COCOeval) -> dict[str, float]:
    """COCO's ten measures of keypoints from precision [T, R, K, A, M] and recall [T, K, A, M]; nan where undefined.

    AP, AP50, AP75, APm, APl (medium and large objects), and AR likewise.
    """
    measures = {}
    for name, values in (("AP", evaluator.eval["precision"]), ("AR", evaluator.eval["recall"])):
        parts = {"": values[..., 0, -1], "50": values[0, ..., 0, -1], "75": values[5, ..., 0, -1]}
        parts |= {size: values[..., area, -1] for area, size in enumerate("ml", start=1)}
        for part, chosen in parts.items():
            defined = chosen[chosen > -1]
            measures[f"{name}{part}"] = float(defined.mean()) if defined.size else math.nan
    return measures
