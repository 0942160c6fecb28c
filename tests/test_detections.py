"""Detections: forms of masks, selection, the network's output and COCO's results format."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mrcnn_tf import pasting
from mrcnn_tf.detections import Detections

NAMES = ("cat", "dog", "owl")
SIZE = (20, 30)


def three(**masks):
    boxes = [[2, 3, 12, 13], [0, 0, 20, 30], [5, 20, 9, 24]]
    return Detections(boxes, [2, 1, 2], [0.9, 0.8, 0.3], NAMES, SIZE, **masks)


def full_masks():
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 2:12, 3:13] = True
    masks[1, :, 10:] = True
    masks[2, 5:9, 20:24] = True
    return masks


def test_names_length_and_text():
    found = three()
    assert len(found) == 3 and found.names == ["dog", "cat", "dog"]
    assert repr(found) == "Detections(3 in 20 x 30: 2 dog, 1 cat)"
    assert repr(found[[]]) == "Detections(0 in 20 x 30)"
    assert found.masks is None and found.segmentations is None and not found.has_masks
    assert Detections([[0, 0, 1, 1]], [7], [1], (), SIZE).names == ["class 7"]


def test_selection():
    found = three(masks=full_masks())
    assert found[1].names == ["cat"] and found[-1].scores[0] == np.float32(0.3)
    assert found[1:].names == ["cat", "dog"]
    assert found[[2, 0]].scores.tolist() == pytest.approx([0.3, 0.9])
    assert found[np.array([True, False, True])].names == ["dog", "dog"]
    assert len(found[[]]) == 0 and found[[]].masks.shape == (0, 20, 30)
    assert [item.names for item in found] == [["dog"], ["cat"], ["dog"]]
    np.testing.assert_array_equal(found[[2, 0]].masks, full_masks()[[2, 0]])
    with pytest.raises(IndexError, match="object 3 of 3"):
        found[3]


def test_filter_by_score_and_class():
    found = three()
    assert found.filter(0.8).names == ["dog", "cat"]
    assert found.filter(classes=["dog"]).scores.tolist() == pytest.approx([0.9, 0.3])
    assert found.filter(0.5, classes=[2]).scores.tolist() == pytest.approx([0.9])
    assert len(found.filter(classes=["owl"])) == 0
    with pytest.raises(ValueError, match="no class is named 'cow': cat, dog, owl"):
        found.filter(classes=["cow"])


def test_every_form_of_masks_gives_the_same():
    masks = full_masks()
    crops = np.ones((3, 28, 28))
    crops[1] = np.arange(28) * 30 / 28 >= 9.5  # columns 10 to 29 of a box over the whole image
    from_crops = three(mask_crops=crops)
    from_masks = three(masks=masks)
    from_rle = three(segmentations=[pasting.encode_mask(mask) for mask in masks])
    for found in (from_crops, from_masks, from_rle, from_crops.compact(), from_masks.compact()):
        assert found.has_masks
        # Masks on whole boxes lose the corner pixels alone, where two half cells fade.
        assert [mask.sum() for mask in found.masks] == pytest.approx([100, 400, 16], abs=4)
    assert [rle["counts"] for rle in from_masks.segmentations] == [rle["counts"] for rle in from_rle.segmentations]
    for index in range(3):
        np.testing.assert_array_equal(from_masks.mask(index), from_rle.mask(index))
        np.testing.assert_array_equal(from_crops.mask(index), from_crops.masks[index])
    assert from_crops.compact().mask_crops is None
    with pytest.raises(ValueError, match="no masks"):
        three().mask(0)


def test_the_threshold_cuts_crops():
    crops = np.full((3, 28, 28), 0.4)
    assert three(mask_crops=crops).masks.sum() == 0
    found = three(mask_crops=crops, mask_threshold=0.3)
    # Half a cell inside of the box the value is .4 in full, on the border it is half.
    assert found.masks[0, 3:11, 4:12].all() and found[:2].compact().masks[0].sum() == found.masks[0].sum()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classes": [1]}, "3 boxes but 1 classes"),
        ({"scores": [1, 1]}, "3 boxes but 2 scores"),
        ({"classes": [0, 1, 1]}, "class 0 is unknown: classes are 1 to 3"),
        ({"classes": [1, 4, 1]}, "class 4 is unknown: classes are 1 to 3"),
        ({"masks": np.zeros((3, 20, 29))}, r"masks should be \[N, 20, 30\], not \[3, 20, 29\]"),
        ({"mask_crops": np.zeros((3, 28))}, r"mask_crops should be \[N, M, M\], not \[3, 28\]"),
        ({"segmentations": [{"size": [20, 30], "counts": [600]}] * 2}, "3 boxes but 2 segmentations"),
        ({"segmentations": [{"size": [30, 20], "counts": [600]}]}, r"object 0: an RLE of size \[30, 20\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    values = {"boxes": np.zeros((3, 4)), "classes": [1, 1, 1], "scores": [1, 1, 1]} | change
    with pytest.raises(ValueError, match=message):
        Detections(**values, class_names=NAMES, image_size=SIZE)


def test_no_objects_as_empty_lists():
    found = Detections([], [], [], NAMES, SIZE, mask_crops=[], keypoints=[])
    assert len(found) == len(found.segmentations) == len(found.keypoints) == 0 and found.masks.shape == (0, *SIZE)
    found = Detections([], [], [], NAMES, SIZE, masks=[])
    assert found.masks.shape == (0, *SIZE) and found.compact().segmentations == [] and found.to_coco(1, (1, 2, 3)) == []


def test_from_batch_rescales_and_drops_padding_and_nan():
    boxes = np.zeros((2, 4, 4), np.float32)
    boxes[0, 0] = [10, 20, 30, 41]
    boxes[0, 1] = [0, 0, np.nan, 1]
    boxes[1, 0] = [0, 0, 100, 200]
    boxes[1, 1] = [-4, 8, 12, 16]
    classes = np.array([[3, 1, 0, 0], [1, 2, 0, 0]])
    scores = np.array([[0.5, 0.4, 0, 0], [0.9, 0.7, 0, 0]], np.float32)
    masks = np.random.default_rng(0).random((2, 4, 28, 28)).astype(np.float32)
    outputs = {"boxes": boxes, "classes": classes, "scores": scores, "masks": masks}
    first, second = Detections.from_batch(outputs, [[40, 80], [100, 200]], [[20, 40], [150, 250]], NAMES, 0.4)
    np.testing.assert_allclose(first.boxes, [[5, 10, 15, 20.5]])
    assert first.names == ["owl"] and first.image_size == (20, 40) and first.mask_threshold == 0.4
    np.testing.assert_allclose(second.boxes, [[0, 0, 150, 250], [0, 10, 18, 20]])
    assert second.mask_crops.dtype == np.float16
    np.testing.assert_allclose(second.mask_crops, masks[1, :2], atol=1e-3)
    (boxes_only,) = Detections.from_batch({**outputs, "masks": None}, [[40, 80]], [[20, 40]], NAMES)
    assert not boxes_only.has_masks


def test_masks_pasted_as_torchvision_pastes_them():
    crop = np.ones((1, 28, 28), np.float32)
    exact, rounded = (
        Detections([[2.4, 3.4, 8.4, 9.4]], [1], [0.5], NAMES, (12, 12), mask_crops=crop, paste=paste)
        for paste in ("exact", "torchvision")
    )
    # The middles of pixels 2..7 and 3..8 are inside; torchvision's box begins at 2 and 3 and ends a pixel later.
    assert exact.mask(0).sum() == 36 and exact.mask(0)[2:8, 3:9].all()
    np.testing.assert_array_equal(rounded[0].mask(0), pasting.paste_mask(crop[0], rounded.mask_boxes[0], 12, 12))
    np.testing.assert_allclose(rounded.mask_boxes, pasting.torchvision_boxes([[2.4, 3.4, 8.4, 9.4]], 28))
    assert (rounded.mask_boxes != rounded.boxes).all()
    np.testing.assert_array_equal(rounded.filter(0.1).compact().mask(0), rounded.mask(0))
    outputs = {"boxes": rounded.boxes[None], "classes": [[1]], "scores": [[0.5]], "masks": crop[None]}
    (found,) = Detections.from_batch(outputs, [[12, 12]], [[12, 12]], NAMES, paste="torchvision")
    np.testing.assert_array_equal(found.masks, rounded.masks)


def test_coco_records_are_what_the_server_takes():
    found = Detections(
        [[1.23456, 2, 11.5, 7.126]], [2], [0.123456789], NAMES, SIZE, masks=full_masks()[:1], segmentations=None
    )
    (record,) = found.to_coco(image_id=np.int64(139), category_ids=(17, 18, 90))
    counts = pasting.encode_mask(full_masks()[0])["counts"].decode()
    assert record == {
        "image_id": 139,
        "category_id": 18,
        "bbox": [2.0, 1.23, 5.13, 10.27],
        "score": 0.123457,
        "segmentation": {"size": [20, 30], "counts": counts},
    }
    assert json.loads(json.dumps(record)) == record
    assert "segmentation" not in three().to_coco(1, (1, 2, 3))[0]
    assert three()[[]].to_coco(1, (1, 2, 3)) == []
    with pytest.raises(ValueError, match="2 category ids for 3 classes"):
        found.to_coco(1, (1, 2))


POINTS = [[[2.5, 3.5, 9.0], [11.25, 12.0, -4.5]], [[0.5, 0.5, 1.0], [0.0, 0.0, 0.0]], [[5, 20, 2], [8.99, 23.99, 1]]]


def test_keypoints_go_along():
    found = three(keypoints=POINTS)
    assert found.keypoints.dtype == np.float32 and found.keypoints.shape == (3, 2, 3)
    np.testing.assert_allclose(found[[2, 0]].keypoints, np.float32(POINTS)[[2, 0]])
    np.testing.assert_allclose(found.filter(0.8).compact().keypoints, np.float32(POINTS)[:2])
    assert three().keypoints is None
    for wrong, message in (
        (POINTS[:2], "3 boxes but 2 keypoints"),
        (np.zeros((3, 2)), r"keypoints should be \[N, J, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            three(keypoints=wrong)


def test_keypoints_of_the_network_are_scaled_to_the_image():
    outputs = {
        "boxes": np.array([[[0, 0, 40, 80], [0, 0, 0, 0]]]),
        "classes": np.array([[1, 0]]),
        "scores": np.array([[0.9, 0.0]]),
        "keypoints": np.array([[[[10, 20, 5], [40, 80, -5]], [[0, 0, 0], [0, 0, 0]]]]),
    }
    (found,) = Detections.from_batch(outputs, [[40, 80]], [[20, 60]], NAMES)
    assert found.keypoints.tolist() == [[[5, 15, 5], [20, 60, -5]]] and not found.has_masks


def test_keypoints_in_coco_records():
    found, ids = three(keypoints=POINTS), (17, 18, 90)
    records = found.to_coco(5, ids)
    # COCO counts pixels from the middle of the first one; none is written as zeros.
    assert [record["keypoints"] for record in records] == [
        [3.0, 2.0, 1.0, 11.5, 10.75, 1.0],
        [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        [19.5, 4.5, 1.0, 23.49, 8.49, 1.0],
    ]
    assert json.loads(json.dumps(records)) == records
    again = Detections.from_coco(records, NAMES, ids, SIZE)
    np.testing.assert_allclose(again.keypoints[..., :2], np.array(POINTS)[..., :2], atol=1e-6)
    assert again.to_coco(5, ids) == records
    assert Detections.from_coco(records[:1] + three().to_coco(5, ids), NAMES, ids, SIZE).keypoints is None


def test_records_without_boxes_get_those_of_their_masks_or_keypoints():
    ids = (17, 18, 90)
    for found, boxes in (
        (three(masks=full_masks()), [[2, 3, 12, 13], [0, 10, 20, 30], [5, 20, 9, 24]]),
        (three(keypoints=POINTS)[[0, 2]], [[2, 3, 10.75, 11.5], [4.5, 19.5, 8.49, 23.49]]),
    ):
        records = [{name: value for name, value in one.items() if name != "bbox"} for one in found.to_coco(5, ids)]
        np.testing.assert_allclose(Detections.from_coco(records, NAMES, ids, SIZE).boxes, boxes, atol=1e-5)


def test_coco_records_round_trip():
    found = three(masks=full_masks())
    ids = (17, 18, 90)
    records = found.to_coco(5, ids) + found[0].to_coco(6, ids)
    again = Detections.from_coco(json.loads(json.dumps(records)), NAMES, ids, SIZE, image_id=5)
    np.testing.assert_allclose(again.boxes, found.boxes)
    assert again.names == found.names and again.scores.tolist() == found.scores.tolist()
    np.testing.assert_array_equal(again.masks, found.masks)
    assert len(Detections.from_coco([], NAMES, ids, SIZE)) == 0
    assert not Detections.from_coco(three().to_coco(1, ids), NAMES, ids, SIZE).has_masks


def test_coco_records_that_do_not_fit_are_refused():
    records = three(masks=full_masks()).to_coco(5, (17, 18, 90))
    with pytest.raises(ValueError, match=r"record 0: category_id 18 is unknown; known are \[1, 2, 3\]"):
        Detections.from_coco(records, NAMES, (1, 2, 3), SIZE)
    with pytest.raises(ValueError, match="object 0: an RLE of size"):
        Detections.from_coco(records, NAMES, (17, 18, 90), (30, 20))
    del records[1]["segmentation"]
    with pytest.raises(ValueError, match="2 of 3 records have a segmentation"):
        Detections.from_coco(records, NAMES, (17, 18, 90), SIZE)


def test_ground_truth_as_detections():
    segmentations = ([[2, 1, 5, 1, 5, 4, 2, 4]], pasting.encode_mask(full_masks()[1]))
    example = SimpleNamespace(
        boxes=np.array([[1, 2, 4, 5], [0, 10, 20, 30]], np.float32),
        classes=np.array([3, 1]),
        crowd=np.array([False, True]),
        segmentations=segmentations,
        keypoints=None,
        size=SIZE,
    )
    found = Detections.from_example(example, NAMES)
    assert found.names == ["owl"] and found.scores.tolist() == [1.0] and found.masks.sum() == 9
    both = Detections.from_example(example, NAMES, crowds=True)
    assert both.names == ["owl", "cat"] and both.mask(1).sum() == 400
