"""Bad COCO files: each gives one clear error, or is counted and left out where bad records are skipped."""

from __future__ import annotations

import json

import pytest

from mrcnn_tf.data import DataError, read_coco


def annotation(index, **values):
    def change(record):
        record["annotations"][index].update(values)

    return change


def image(index, **values):
    def change(record):
        record["images"][index].update(values)

    return change


def without(member, index, field):
    def change(record):
        del record[member][index][field]

    return change


SQUARE_RLE = {"size": [40, 30], "counts": [5, 10, 1185]}

# name: (change, kind, what the message has to name, annotations and images that are left when it is skipped)
BAD_RECORDS = {
    "image missing": (image(1, file_name="gone.jpg"), "image missing", ["image id 20", "gone.jpg"], 3, 3),
    "category": (annotation(1, category_id=99), "category unknown", ["annotations[1]", "id 102", "99"], 4, 4),
    "image id": (annotation(1, image_id=77), "image unknown", ["id 102", "77"], 4, 4),
    "no width": (annotation(1, bbox=[20, 4, 0, 16]), "box of no area", ["id 102", "[20.0, 4.0, 0.0, 16.0]"], 4, 4),
    "negative height": (annotation(1, bbox=[20, 4, 3, -2]), "box of no area", ["id 102"], 4, 4),
    "box outside": (annotation(1, bbox=[50, 4, 5, 5]), "box outside its image", ["id 102", "30 x 40"], 4, 4),
    "box above": (annotation(1, bbox=[5, -9, 5, 9]), "box outside its image", ["id 102"], 4, 4),
    "two points": (
        *(annotation(1, segmentation=[[20, 4, 36, 20]]), "polygon of too few points"),
        *(["id 102", "2 points"], 4, 4),
    ),
    "odd polygon": (
        *(annotation(1, segmentation=[[20, 4, 36, 20, 8, 9, 1]]), "polygon of too few points"),
        *(["id 102", "7 numbers"], 4, 4),
    ),
    "polygon elsewhere": (
        *(annotation(1, segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]), "mask outside its box"),
        *(["id 102", "0.1..0.4"], 4, 4),
    ),
    "RLE elsewhere": (  # row by row instead of column by column: rows 4 and 5 became columns
        *(annotation(1, segmentation={"size": [30, 40], "counts": [180, 20, 10, 20, 970]}), "mask outside its box"),
        *(["id 102", "RLE (y 0..20, x 6..8) lies outside"], 4, 4),
    ),
    "RLE of nothing": (
        *(annotation(1, segmentation={"size": [30, 40], "counts": [1200]}), "mask without a pixel"),
        *(["id 102"], 4, 4),
    ),
    "RLE size": (annotation(1, segmentation=SQUARE_RLE), "RLE of another size", ["id 102", "40 x 30", "30 x 40"], 4, 4),
    "RLE counts": (
        *(annotation(3, segmentation={"size": [24, 20], "counts": "P3`4"}), "RLE of another size"),
        *(["id 104", "240 pixels", "480"], 4, 4),
    ),
    "RLE letters": (
        *(annotation(3, segmentation={"size": [24, 20], "counts": "P3\u00e9"}), "broken RLE"),
        *(["id 104"], 4, 4),
    ),
    "RLE negative": (
        annotation(1, segmentation={"size": [30, 40], "counts": [-1, 1201]}),
        "broken RLE",
        ["id 102"],
        4,
        4,
    ),
    "RLE no size": (annotation(1, segmentation={"counts": [1200]}), "broken RLE", ["id 102", "size"], 4, 4),
    "one mask missing": (without("annotations", 1, "segmentation"), "no segmentation", ["id 102"], 4, 4),
    "annotation twice": (annotation(2, id=101), "duplicate id", ["annotations[2]", "101"], 4, 4),
    "image twice": (image(2, id=10), "duplicate id", ["images[2]", "10"], 5, 3),
    "image without size": (without("images", 1, "width"), "field missing", ["images[1]", "id 20", "width"], 3, 3),
    "image of no height": (image(1, height=0), "field of a wrong type", ["id 20", "height 0"], 3, 3),
    "image without file": (without("images", 1, "file_name"), "field missing", ["id 20", "file_name"], 3, 3),
    "no image id": (without("annotations", 1, "image_id"), "field missing", ["id 102", "image_id"], 4, 4),
    "text for id": (annotation(1, image_id="ten"), "field of a wrong type", ["id 102", "'ten'"], 4, 4),
    "three numbers": (annotation(1, bbox=[1, 2, 3]), "field of a wrong type", ["id 102", "bbox"], 4, 4),
    "text in box": (annotation(1, bbox=[1, 2, 3, "4"]), "field of a wrong type", ["id 102", "bbox"], 4, 4),
    "infinite box": (annotation(1, bbox=[1, 2, float("inf"), 4]), "field of a wrong type", ["id 102", "finite"], 4, 4),
    "crowd of 2": (annotation(1, iscrowd=2), "field of a wrong type", ["id 102", "iscrowd"], 4, 4),
    "keypoint pair": (annotation(1, keypoints=[1, 2]), "field of a wrong type", ["id 102", "keypoints"], 4, 4),
    "visibility 3": (annotation(1, keypoints=[1, 2, 3]), "field of a wrong type", ["id 102", "visibility", "3"], 4, 4),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_bad_record(coco_folder, name):
    change, kind, named, annotations, images = BAD_RECORDS[name]
    path = coco_folder.changed(change)
    with pytest.raises(DataError) as caught:
        read_coco(path, coco_folder.images)
    message = str(caught.value)
    assert caught.value.kind == kind
    assert "\n" not in message and str(path) in message and "skip_bad=True" in message
    for text in named:
        assert text in message

    dataset = read_coco(path, coco_folder.images, skip_bad=True)
    assert dataset.problems.counts == {kind: 1}
    assert kind in dataset.problems.summary() and named[0] in dataset.problems.summary()
    assert len(dataset) == images
    assert sum(len(dataset.example(i)) for i in range(len(dataset))) == annotations


def test_many_bad_records_are_counted_by_kind(coco_folder):
    def spoil(record):
        good = record["annotations"][0]
        record["annotations"] += [{**good, "id": 200 + i, "bbox": [5, 5, 0, 5]} for i in range(7)]
        record["annotations"] += [{**good, "id": 300, "category_id": 1}]

    dataset = read_coco(coco_folder.changed(spoil), coco_folder.images, skip_bad=True)
    assert dataset.problems.counts == {"box of no area": 7, "category unknown": 1}
    assert dataset.problems.total == 8
    summary = dataset.problems.summary()
    assert "skipped 8 bad records" in summary and "7 x box of no area" in summary and "and 4 more" in summary
    assert "id 202" in summary and "id 203" not in summary
    assert len(dataset.example(0)) == 3


BAD_FILES = {
    "empty file": ("", "not json"),
    "cut short": ('{"images": [{"id": 1, "file_na', "not json"),
    "not json": ("id,file\n1,a.png\n", "not json"),
    "two values": ('{"images": []} {}', "not json"),
    "trailing comma": ('{"images": [],}', "not json"),
    "number for name": ("{1: []}", "not json"),
    "results file": ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]', "not COCO"),
    "other object": ('{"type": "FeatureCollection", "features": []}', "not COCO"),
    "no images": ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "not COCO"),
    "images no list": ('{"images": {"a": 1}, "annotations": [], "categories": []}', "not COCO"),
}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(coco_folder, name, skip_bad):
    text, kind = BAD_FILES[name]
    coco_folder.json.write_text(text)
    with pytest.raises(DataError) as caught:
        read_coco(coco_folder.json, coco_folder.images, skip_bad=skip_bad)
    assert caught.value.kind == kind
    assert str(coco_folder.json) in str(caught.value) and "\n" not in str(caught.value)


def test_file_missing(tmp_path):
    with pytest.raises(DataError, match="no such file") as caught:
        read_coco(tmp_path / "gone.json", tmp_path)
    assert str(tmp_path / "gone.json") in str(caught.value)


def test_binary_file(coco_folder):
    with pytest.raises(DataError, match="cannot be read as json text"):
        read_coco(coco_folder.images / "a.png", coco_folder.images)


def test_image_folder_missing(coco_folder):
    with pytest.raises(DataError, match="image folder .*gone does not exist"):
        read_coco(coco_folder.json, coco_folder.folder / "gone", skip_bad=True)


def test_wrong_image_folder(coco_folder):
    (coco_folder.folder / "other").mkdir()
    with pytest.raises(DataError, match="none of its 4 usable images is in"):
        read_coco(coco_folder.json, coco_folder.folder / "other", skip_bad=True)


def test_no_annotation_at_all(coco_folder):
    path = coco_folder.changed(lambda record: record["annotations"].clear())
    with pytest.raises(DataError, match="no annotation at all") as caught:
        read_coco(path, coco_folder.images)
    assert caught.value.kind == "no annotation" and str(path) in str(caught.value)
    dataset = read_coco(path, coco_folder.images, skip_bad=True)
    assert len(dataset) == 4 and dataset.object_counts().sum() == 0
    assert dataset.problems.counts == {"no annotation": 1}
    unlabelled = coco_folder.changed(lambda record: record.pop("annotations"))
    dataset = read_coco(unlabelled, coco_folder.images, annotated=False)
    assert len(dataset) == 4 and dataset.object_counts().sum() == 0 and not dataset.problems


def test_every_annotation_bad(coco_folder):
    def spoil(record):
        for one in record["annotations"]:
            one["category_id"] = 50

    dataset = read_coco(coco_folder.changed(spoil), coco_folder.images, skip_bad=True)
    assert dataset.object_counts().tolist() == [0, 0, 0, 0]
    assert dataset.problems.counts == {"category unknown": 5}


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([{"id": 3}], "categories[0]"),
        ([{"id": 3, "name": "a"}, {"id": 3, "name": "b"}], "taken by 'a'"),
        (["cat"], "categories[0]"),
        ([{"name": "a"}], "'id' is missing"),
    ],
)
def test_bad_categories(coco_folder, records, text):
    path = coco_folder.write({**coco_folder.record, "categories": records})
    with pytest.raises(DataError) as caught:
        read_coco(path, coco_folder.images, skip_bad=True)
    assert text in str(caught.value) and str(path) in str(caught.value)


def with_pose(names, skeleton, keypoints=()):
    def change(record):
        record["categories"][1] |= {"keypoints": names, "skeleton": skeleton}
        record["annotations"][1]["keypoints"] = list(keypoints)

    return change


@pytest.mark.parametrize(
    ("names", "skeleton", "text"),
    [
        ("nose", [], "'keypoints' should be a list of different names, not 'nose'"),
        (["nose", 3], [], "list of different names"),
        (["ear", "ear"], [], "list of different names"),
        (["nose", "ear"], [[0, 1]], "'skeleton' should be pairs of its keypoints 1 to 2, not [[0, 1]]"),
        (["nose", "ear"], [[1, 3]], "pairs of its keypoints 1 to 2"),
        (["nose", "ear"], [[1, [2]]], "pairs of its keypoints 1 to 2"),
        (["nose", "ear"], [1, 2], "pairs of its keypoints 1 to 2"),
        ([], [[1, 2]], "pairs of its keypoints 1 to 0"),
    ],
)
def test_bad_names_and_skeletons(coco_folder, names, skeleton, text):
    path = coco_folder.changed(with_pose(names, skeleton))
    with pytest.raises(DataError) as caught:
        read_coco(path, coco_folder.images)
    assert str(caught.value).startswith(f"{path}: the category 'dog': ") and text in str(caught.value)


def test_good_polygons_of_a_bad_record_are_kept(coco_folder):
    """The ring of two points would have made the box larger."""
    good = [20, 4, 36, 4, 36, 20, 20, 20]

    def change(record):
        record["annotations"][1]["segmentation"] = [[1, 1, 2, 2], good, [30, 30]]
        del record["annotations"][1]["bbox"]

    path = coco_folder.changed(change)
    with pytest.raises(DataError, match="id 102.*a polygon has 2 points, at least 3"):
        read_coco(path, coco_folder.images)
    dataset = read_coco(path, coco_folder.images, skip_bad=True)
    example = dataset.example(0)
    assert len(example) == 3 and example.segmentations[1] == [good]
    assert example.boxes[1].tolist() == [4, 20, 20, 36]
    assert dataset.problems.total == 1
    summary = dataset.problems.summary()
    assert "id 102" in summary and "its other polygons are kept" in summary


def test_keypoints_of_another_number(coco_folder):
    path = coco_folder.changed(with_pose(["nose", "ear"], [[1, 2]], [1, 2, 2]))
    with pytest.raises(DataError, match=r"annotations\[1\] \(id 102\): it has 1 keypoints, its category 2"):
        read_coco(path, coco_folder.images)
    dataset = read_coco(path, coco_folder.images, skip_bad=True)
    assert dataset.problems.counts == {"keypoints of another number": 1}
    assert dataset.example(0).keypoints.shape == (2, 2, 3)
    # The other classes are read as before.
    assert len(read_coco(path, coco_folder.images, class_names=["cat"]).example(0)) == 2


def test_unknown_class_name(coco_folder):
    with pytest.raises(DataError, match="no category 'cow'; its categories are cat, dog, owl"):
        read_coco(coco_folder.json, coco_folder.images, class_names=["cat", "cow"])


def test_records_that_are_no_objects(coco_folder):
    record = json.loads(coco_folder.json.read_text())
    record["annotations"][1] = 5
    record["images"].append("x")
    path = coco_folder.write(record)
    with pytest.raises(DataError, match=r"images\[4\]: should be an object"):
        read_coco(path, coco_folder.images)
    dataset = read_coco(path, coco_folder.images, skip_bad=True)
    assert dataset.problems.counts == {"field of a wrong type": 2}
