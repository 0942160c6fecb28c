"""The quick assignment against pycocotools' own, bit by bit."""

import contextlib
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_tf.evaluation.matching import Evaluator, assign

FIELDS = ("dtMatches", "gtMatches", "dtScores", "gtIgnore", "dtIgnore", "dtIds", "gtIds", "image_id", "category_id")


def test_assignment_by_hand():
    ious = np.array([[0.6, 0.7, 0.0], [0.55, 0.9, 0.0], [0.0, 0.0, 0.8], [0.0, 0.0, 0.8]])
    none, thresholds = np.zeros(3, bool), np.array([0.5, 0.65])
    # The first detection takes object 1, the second is left with object 0 (not at .65), the last with nothing.
    assert assign(ious, none, none, thresholds).tolist() == [[1, 0, 2, -1], [1, -1, 2, -1]]
    crowd = np.array([False, False, True])
    assert assign(ious, crowd, crowd, thresholds).tolist() == [[1, 0, 2, 2], [1, -1, 2, 2]]


def test_an_ignored_object_is_the_last_resort_and_equals_go_to_the_last():
    ious = np.array([[0.6, 0.6, 0.9], [0.6, 0.6, 0.9], [0.6, 0.6, 0.9], [0.1, 0.1, 0.9]])
    ignored = np.array([False, False, True])
    assert assign(ious, ignored, np.zeros(3, bool), np.array([0.5])).tolist() == [[1, 0, 2, -1]]


def scene(rng):
    """Random boxes of two classes on three images, with crowds, ties of score and IoU, and objects of all sizes."""
    truth, found = [], []
    for image in (1, 2, 3):
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = (float(value) for value in rng.choice([1, 8, 20, 40, 90, 100], 4))
            item = {"image_id": image, "category_id": int(rng.integers(1, 3)), "area": w * h, "bbox": [x, y, w, h]}
            truth.append({**item, "iscrowd": int(rng.random() < 0.2), "id": len(truth) + 1})
            for _ in range(rng.integers(0, 4)):
                box = [side + float(rng.choice([0, 0, 1, 3])) for side in item["bbox"]]
                score = float(rng.choice([0.1, 0.5, 0.5, 0.7, 0.9]))
                guess = {**item, "category_id": int(rng.integers(1, 3)), "bbox": box, "score": score, "iscrowd": 0}
                found.append({**guess, "area": box[2] * box[3], "id": len(found) + 1})
    return truth, found


def run(evaluator_class, truth, found, limits):
    images = [{"id": number, "height": 250, "width": 250} for number in (1, 2, 3)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    indexes = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truth, found):
            coco = COCO()
            coco.dataset = {"images": images, "categories": categories, "annotations": [dict(a) for a in annotations]}
            coco.createIndex()
            indexes.append(coco)
        evaluator = evaluator_class(*indexes, "bbox")
        evaluator.params.maxDets = limits
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


@given(st.integers(0, 10**6), st.sampled_from([[1, 10, 100], [1, 3], [2]]))
@settings(max_examples=40, deadline=None)
def test_everything_equals_pycocotools(seed, limits):
    truth, found = scene(np.random.default_rng(seed))
    ours, theirs = run(Evaluator, truth, found, limits), run(COCOeval, truth, found, limits)
    for one, other in zip(ours.evalImgs, theirs.evalImgs, strict=True):
        assert (one is None) == (other is None)
        for name in FIELDS if one else ():
            np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]), err_msg=name)
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    np.testing.assert_array_equal(ours.eval["recall"], theirs.eval["recall"])
