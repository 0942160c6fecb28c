"""COCO's assignment of detections to ground truth, as pycocotools makes it, without its slowest loop.

Shape letters: T IoU thresholds, D detections, G ground-truth objects of one image and class.

`COCOeval.evaluateImg` visits every pair of detection and object at every threshold in Python: 20 s for 122 images of
nuclei. Almost all of these pairs do not touch, so here only pairs above the lowest threshold are visited. The results
are the same to the last bit.
"""

from __future__ import annotations

import numpy as np
from pycocotools.cocoeval import COCOeval


def assign(ious: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which object each detection is assigned to, at every threshold.

    A detection takes the free object with the largest IoU of at least the threshold (the last of equals); a crowd is
    always free; an ignored object is taken only where no other can be.

    Args:
        ious: [D, G], detections in descending order of score, ignored objects last.
        ignored: [G] bool.
        crowd: [G] bool.
        thresholds: [T].

    Returns:
        [T, D] index of the object, or -1.
    """
    chosen = np.full((len(thresholds), ious.shape[0]), -1)
    candidates: list[list[tuple[int, float]]] = [[] for _ in range(ious.shape[0])]
    for row, column in zip(*(axis.tolist() for axis in np.nonzero(ious >= thresholds.min())), strict=True):
        candidates[row].append((column, float(ious[row, column])))
    ignored, crowd = ignored.tolist(), crowd.tolist()
    for level, threshold in enumerate(thresholds.tolist()):
        taken: set[int] = set()
        for row, pairs in enumerate(candidates):
            best, best_iou = -1, threshold
            for column, iou in pairs:
                if column in taken and not crowd[column]:
                    continue
                if best >= 0 and ignored[column] and not ignored[best]:
                    break
                if iou >= best_iou:
                    best, best_iou = column, iou
            if best >= 0:
                chosen[level, row] = best
                taken.add(best)
    return chosen


class Evaluator(COCOeval):
    """`pycocotools.cocoeval.COCOeval` for all classes, with the assignment above."""

    def evaluateImg(self, imgId, catId, aRng, maxDet):  # noqa: N802, N803 (the names of the class it stands in for)
        """One image, class and area range: the dictionary that `accumulate` reads, or None where nothing is."""
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truth and not found:
            return None

        def outside(items: list[dict]) -> np.ndarray:
            areas = np.array([item["area"] for item in items], np.float64)
            return (areas < aRng[0]) | (areas > aRng[1])

        crowd = np.array([bool(item["iscrowd"]) for item in truth], bool)
        ignored = np.array([bool(item["ignore"]) for item in truth], bool) | outside(truth)
        order = np.argsort(ignored, kind="stable")
        truth_ids = np.array([item["id"] for item in truth], np.int64)[order]
        best_first = np.argsort([-item["score"] for item in found], kind="stable")[:maxDet]
        found = [found[place] for place in best_first]
        found_ids = np.array([item["id"] for item in found], np.int64)

        levels, shape = len(self.params.iouThrs), (len(self.params.iouThrs), len(found))
        matches, ignore_found = np.zeros(shape), np.zeros(shape, bool)
        truth_matches = np.zeros((levels, len(truth)))
        if truth and found:
            thresholds = np.minimum(self.params.iouThrs, 1 - 1e-10)
            chosen = assign(self.ious[imgId, catId][:, order], ignored[order], crowd[order], thresholds)
            level, place = np.nonzero(chosen >= 0)
            objects = chosen[level, place]
            matches[level, place] = truth_ids[objects]
            ignore_found[level, place] = ignored[order][objects]
            truth_matches[level, objects] = found_ids[place]
        # What is found outside of the area range counts neither for nor against.
        ignore_found |= (matches == 0) & outside(found)
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": found_ids.tolist(),
            "gtIds": truth_ids.tolist(),
            "dtMatches": matches,
            "gtMatches": truth_matches,
            "dtScores": [item["score"] for item in found],
            "gtIgnore": ignored[order].astype(int),
            "dtIgnore": ignore_found,
        }
