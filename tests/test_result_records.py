"""Records of COCO's results format that other tools wrote, whole and broken."""

import numpy as np
import pytest

from mrcnn_tf.detections import Detections

SIZE, NAMES, IDS = (20, 30), ("cat", "dog"), (17, 90)
RECORD = {"image_id": 5, "category_id": 90, "score": 0.5, "bbox": [4, 3, 8, 8]}


def read(**changes):
    changed = {name: value for name, value in {**RECORD, **changes}.items() if value != "gone"}
    return Detections.from_coco([RECORD, changed], NAMES, IDS, SIZE)


def test_boxes_alone_may_have_empty_masks_and_keypoints():
    for found in (read(segmentation=[], keypoints=[]), read(segmentation=None, keypoints=None), read()):
        assert found.boxes.tolist() == [[3, 4, 11, 12]] * 2 and found.classes.tolist() == [2, 2]
        assert not found.has_masks and found.keypoints is None
    assert read(score=np.float32(0.5), bbox=(4, 3, 8, 8)).scores.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "gone"}, "record 1: 'score' is missing"),
        ({"score": None}, "record 1: 'score' should be a number, not None"),
        ({"score": float("nan")}, "record 1: 'score' should be a number, not nan"),
        ({"category_id": "gone"}, "record 1: 'category_id' is missing"),
        ({"bbox": "gone"}, "record 1: it has no bbox, and no segmentation or keypoints to take one from"),
        ({"bbox": [4, 3, 8]}, r"record 1: 'bbox' should be \[x, y, width, height\], not \[4, 3, 8\]"),
        ({"bbox": [4, 3, 8, None]}, "record 1: 'bbox' should be"),
        ({"keypoints": [1, 2]}, r"record 1: 'keypoints' should be x, y, v triples, not \[1, 2\]"),
    ],
)
def test_broken_records_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_keypoints_of_different_numbers_are_refused():
    records = [{**RECORD, "keypoints": [1, 2, 2] * count} for count in (1, 3)]
    with pytest.raises(ValueError, match="records with 1 and with 3 keypoints"):
        Detections.from_coco(records, NAMES, IDS, SIZE)
