"""Reading good COCO files: every number of a hand-made one, and what the tools make of it again."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO

from mrcnn_tf.data import DataError, Dataset, full_masks, read_coco
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation.coco import evaluate_coco


def test_hand_made_file(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    assert len(dataset) == 4
    assert dataset.class_names == ("dog", "cat", "owl")  # by category id: 3, 7, 12
    assert dataset.category_ids == (3, 7, 12)
    assert dataset.image_ids.tolist() == [10, 20, 30, 40]
    assert dataset.sizes.tolist() == [[30, 40], [24, 20], [16, 16], [8, 32]]
    assert dataset.object_counts().tolist() == [3, 1, 0, 0]
    assert dataset.has_masks and not dataset.problems

    first = dataset.example(0)
    assert (first.image_id, first.size, len(first)) == (10, (30, 40), 3)
    assert first.path == str(coco_folder.images / "a.png") and first.pixels is None
    assert first.boxes.dtype == np.float32
    assert first.boxes.tolist() == [[10, 5, 18, 15], [4, 20, 20, 36], [25, 2, 30, 4]]
    assert first.classes.dtype == np.int32 and first.classes.tolist() == [2, 1, 2]
    assert first.crowd.tolist() == [False, False, False]
    # The triangle has no area of its own in the file: its mask's pixels are counted.
    assert first.areas[[0, 2]].tolist() == [80, 10]
    assert first.areas[1] == full_masks(first)[1].sum()
    assert first.keypoints is None
    assert "image id 10" in first.source and str(coco_folder.json) in first.source

    second = dataset.example(1)
    assert second.boxes.tolist() == [[0, 4, 24, 10], [6, 12, 10, 18]]
    assert second.classes.tolist() == [3, 1] and second.crowd.tolist() == [False, True]

    empty = dataset.example(2)
    assert empty.boxes.shape == (0, 4) and empty.classes.shape == (0,) and empty.segmentations == ()
    with pytest.raises(IndexError):
        dataset.example(4)


def test_masks_of_the_hand_made_file(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    first, second = full_masks(dataset.example(0)), full_masks(dataset.example(1))
    square, low, columns, crowd = (np.zeros(s, bool) for s in ((30, 40), (30, 40), (24, 20), (24, 20)))
    square[10:18, 5:15] = True
    low[25:30, 2:4] = True
    columns[:, 4:10] = True
    crowd[6:10, 12:18] = True
    np.testing.assert_array_equal(first[0], square)
    np.testing.assert_array_equal(first[2], low)
    np.testing.assert_array_equal(second[0], columns)
    np.testing.assert_array_equal(second[1], crowd)
    # The triangle's area is 128; its long side cuts 16 pixels in half.
    assert abs(int(first[1].sum()) - 128) <= 8


def test_coco_round_trip(coco_folder, tmp_path):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    made = dataset.to_coco()
    assert made["categories"] == [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}, {"id": 12, "name": "owl"}]
    assert made["images"] == coco_folder.record["images"]
    assert [a["id"] for a in made["annotations"]] == [1, 2, 3, 4, 5]
    for before, after in zip(coco_folder.record["annotations"], made["annotations"]):
        for name in ("image_id", "category_id", "iscrowd", "bbox"):
            assert after[name] == before[name]
    assert made["annotations"][0]["segmentation"] == [[5, 10, 15, 10, 15, 18, 5, 18]]
    assert made["annotations"][3]["segmentation"] == {"size": [24, 20], "counts": "P3`4`7"}

    path = tmp_path / "again.json"
    path.write_text(json.dumps(made))
    again = read_coco(path, coco_folder.images)
    for index in range(len(dataset)):
        one, two = dataset.example(index), again.example(index)
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(full_masks(one), full_masks(two))
        np.testing.assert_array_equal(one.areas, two.areas)


def test_the_coco_tools_read_it_alike(coco_folder):
    coco = COCO(str(coco_folder.json))
    dataset = read_coco(coco_folder.json, coco_folder.images)
    for index in range(2):
        example = dataset.example(index)
        theirs = [coco.annToMask(a) for a in coco.imgToAnns[example.image_id]]
        np.testing.assert_array_equal(full_masks(example), np.stack(theirs).astype(bool))


def test_chosen_classes_in_the_given_order(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images, class_names=("owl", "dog"))
    assert dataset.class_names == ("owl", "dog") and dataset.category_ids == (12, 3)
    assert dataset.example(0).classes.tolist() == [2]
    assert dataset.example(1).classes.tolist() == [1, 2]
    assert not dataset.problems  # what is not asked for is no problem


def test_classes_without_objects_keep_their_places(coco_folder):
    """As torchvision's models have them, where the ids have gaps."""
    names = ("N/A", "dog", "N/A", "cat", "owl")
    dataset = read_coco(coco_folder.json, coco_folder.images, class_names=names)
    assert dataset.class_names == names and dataset.category_ids == (-1, 3, -3, 7, 12)
    assert [dataset.example(index).classes.tolist() for index in (0, 1)] == [[4, 2, 4], [5, 2]]
    # What a model finds of such a class is a mistake that no class's precision knows of.
    truth = [dataset.example(index) for index in range(4)]
    found = {one.image_id: Detections.from_example(one, names) for one in truth}
    found[30] = Detections([[1, 1, 9, 9]], [3], [0.9], names, (16, 16), masks=np.ones((1, 16, 16), bool))
    evaluation = evaluate_coco(dataset, found)
    assert evaluation.metrics["box/AP"] == evaluation.metrics["mask/AP"] == 1.0
    assert evaluation.per_class["N/A"]["objects"] == 0 and np.isnan(evaluation.per_class["N/A"]["box/AP"])


def test_categories_of_one_name_stay_apart(coco_folder, caplog):
    """Files of one class often have a root category of the same name, in front of it."""

    def name_alike(record):
        record["categories"] = [{"id": 3, "name": "fish"}, {"id": 12, "name": "owl"}, {"id": 7, "name": "fish"}]

    path = coco_folder.changed(name_alike)
    dataset = read_coco(path, coco_folder.images)
    assert dataset.class_names == ("fish (id 3)", "fish (id 7)", "owl")
    assert "fish (id 3), fish (id 7)" in caplog.text and "owl" not in caplog.text
    assert dataset.example(0).classes.tolist() == [2, 1, 2]
    # As a model that was trained on it is evaluated: by its class names.
    again = read_coco(path, coco_folder.images, class_names=dataset.class_names)
    assert again.category_ids == dataset.category_ids == (3, 7, 12)
    assert again.example(0).classes.tolist() == [2, 1, 2]
    chosen = read_coco(path, coco_folder.images, class_names=("fish (id 7)",))
    assert [len(chosen.example(index)) for index in (0, 1)] == [2, 0]
    found = {one.image_id: Detections.from_example(one, dataset.class_names) for one in map(dataset.example, range(4))}
    counts = {name: values["objects"] for name, values in evaluate_coco(dataset, found).per_class.items()}
    assert counts == {"fish (id 3)": 1, "fish (id 7)": 2, "owl": 1}
    with pytest.raises(DataError, match=r"instances.json: 2 categories are called 'fish'; ask for 'fish \(id"):
        read_coco(path, coco_folder.images, class_names=("fish",))
    with pytest.raises(DataError, match="'owl' stands 2 times in class_names"):
        read_coco(path, coco_folder.images, class_names=("owl", "owl"))


def test_what_was_written_with_classes_without_objects_is_read_again(coco_folder):
    names = ("N/A", "dog", "N/A", "cat")
    coco_folder.write(read_coco(coco_folder.json, coco_folder.images, class_names=names).to_coco())
    dataset = read_coco(coco_folder.json, coco_folder.images, class_names=names)
    assert dataset.category_ids == (-1, 3, -3, 7)
    assert [dataset.example(index).classes.tolist() for index in (0, 1)] == [[4, 2, 4], [2]]


def test_boxes_are_clipped_to_their_image(coco_folder):
    def reach_out(record):
        record["annotations"][0]["bbox"] = [-3, 10, 18, 25]

    dataset = read_coco(coco_folder.changed(reach_out), coco_folder.images)
    assert dataset.example(0).boxes[0].tolist() == [10, 0, 30, 15]


def test_a_missing_box_is_taken_from_the_mask(coco_folder):
    def drop_boxes(record):
        for annotation in record["annotations"]:
            del annotation["bbox"]

    with_boxes = read_coco(coco_folder.json, coco_folder.images)
    boxes = [with_boxes.example(i).boxes for i in range(4)]
    without = read_coco(coco_folder.changed(drop_boxes), coco_folder.images)
    for index in range(4):
        np.testing.assert_array_equal(without.example(index).boxes, boxes[index])


def test_boxes_stand_in_where_no_object_has_a_mask(coco_folder):
    def drop_masks(record):
        for annotation in record["annotations"]:
            del annotation["segmentation"]

    dataset = read_coco(coco_folder.changed(drop_masks), coco_folder.images)
    assert not dataset.has_masks and not dataset.problems
    expected = np.zeros((30, 40), bool)
    expected[4:20, 20:36] = True
    np.testing.assert_array_equal(full_masks(dataset.example(0))[1], expected)
    # What stands in for a mask is neither measured as one nor written.
    found = {one.image_id: Detections.from_example(one, dataset.class_names) for one in map(dataset.example, range(4))}
    assert evaluate_coco(dataset, found).metrics["box/AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="image 10: an object without segmentation"):
        evaluate_coco(dataset, found, kinds=("mask",))
    coco_folder.write(dataset.to_coco())
    again = read_coco(coco_folder.json, coco_folder.images)
    assert not again.has_masks and again.example(0).areas.tolist() == dataset.example(0).areas.tolist()


def test_a_crowd_may_lack_its_mask(coco_folder):
    def drop_crowd_mask(record):
        del record["annotations"][4]["segmentation"]

    dataset = read_coco(coco_folder.changed(drop_crowd_mask), coco_folder.images)
    assert dataset.has_masks
    assert full_masks(dataset.example(1))[1].sum() == 24


def test_crowds_written_as_truth_values(coco_folder):
    def rewrite(record):
        for annotation in record["annotations"]:
            annotation["iscrowd"] = bool(annotation["iscrowd"])
        record["annotations"][0]["iscrowd"] = None

    dataset = read_coco(coco_folder.changed(rewrite), coco_folder.images)
    assert [dataset.example(index).crowd.tolist() for index in (0, 1)] == [[False] * 3, [False, True]]


def test_ids_written_as_text_or_floats(coco_folder):
    def as_text(record):
        for image in record["images"]:
            image["id"] = str(image["id"])
        for annotation in record["annotations"]:
            annotation["image_id"], annotation["category_id"] = (
                float(annotation["image_id"]),
                str(annotation["category_id"]),
            )
            del annotation["id"]

    dataset = read_coco(coco_folder.changed(as_text), coco_folder.images)
    assert dataset.image_ids.tolist() == [10, 20, 30, 40]
    assert dataset.example(0).classes.tolist() == [2, 1, 2]


def test_subset(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    part = dataset.subset([3, 1])
    assert part.image_ids.tolist() == [40, 20] and len(part) == 2
    assert part.sizes.tolist() == [[8, 32], [24, 20]]
    assert part.object_counts().tolist() == [0, 1]
    assert part.example(1).image_id == 20
    assert [i["file_name"] for i in part.to_coco()["images"]] == ["d.png", "b.jpg"]
    assert dataset.subset(dataset.object_counts() > 0).image_ids.tolist() == [10, 20]
    assert dataset.subset([-1]).example(0).image_id == 40
    with pytest.raises(IndexError):
        dataset.subset([4])


def test_keypoints(coco_folder):
    def add_keypoints(record):
        record["annotations"][0]["keypoints"] = [6, 11, 2, 8, 12, 1, 0, 0, 0]

    dataset = read_coco(coco_folder.changed(add_keypoints), coco_folder.images)
    points = dataset.example(0).keypoints
    assert points.shape == (3, 3, 3)
    # y, x, visibility: the middle of COCO's pixel; what is not labelled stays zero.
    assert points[0].tolist() == [[11.5, 6.5, 2], [12.5, 8.5, 1], [0, 0, 0]]
    assert not points[1:].any()
    assert dataset.example(1).keypoints.shape == (2, 3, 3)
    assert dataset.example(2).keypoints.shape == (0, 3, 3)
    assert dataset.keypoint_names == ("keypoint 1", "keypoint 2", "keypoint 3") and dataset.skeleton == ()
    written = dataset.to_coco()["annotations"][0]
    assert written["keypoints"] == [6, 11, 2, 8, 12, 1, 0, 0, 0] and written["num_keypoints"] == 2


def pose(record):
    """Gives the dogs (category 3) a nose and two ears."""
    record["categories"][1] |= {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [3, 1]]}
    record["annotations"][1]["keypoints"] = [25.25, 6, 2, 0, 0, 0, 30, 8.125, 1]


def test_keypoints_have_names_and_a_skeleton(coco_folder):
    dataset = read_coco(coco_folder.changed(pose), coco_folder.images)
    assert dataset.keypoint_names == ("nose", "left_ear", "right_ear")
    assert dataset.skeleton == ((0, 1), (2, 0))
    points = dataset.example(0).keypoints
    assert points[1].tolist() == [[6.5, 25.75, 2], [0, 0, 0], [8.625, 30.5, 1]]
    assert not points[[0, 2]].any()  # cats have none
    part = dataset.subset([1, 0])
    assert part.keypoint_names == dataset.keypoint_names and part.skeleton == dataset.skeleton
    dogs = read_coco(coco_folder.json, coco_folder.images, class_names=("dog",))
    assert dogs.keypoint_names == dataset.keypoint_names and dogs.example(0).keypoints.shape == (1, 3, 3)
    cats = read_coco(coco_folder.json, coco_folder.images, class_names=("cat",))
    assert cats.keypoint_names == () and cats.example(0).keypoints is None
    assert cats.object_counts().tolist() == [2, 0, 0, 0]


def test_labelled_keypoints_are_counted_without_crowds(coco_folder):
    for crowd in (0, 1):

        def change(record, crowd=crowd):
            pose(record)
            record["annotations"][1]["iscrowd"] = crowd

        dataset = read_coco(coco_folder.changed(change), coco_folder.images)
        assert dataset.keypoint_counts().tolist() == [2 * (1 - crowd), 0, 0, 0]
        assert dataset.keypoint_counts().tolist() == Dataset.keypoint_counts(dataset).tolist()
    cats = read_coco(coco_folder.json, coco_folder.images, class_names=("cat",))
    assert cats.keypoint_counts().tolist() == [0, 0, 0, 0]


def test_keypoints_round_trip(coco_folder):
    dataset = read_coco(coco_folder.changed(pose), coco_folder.images)
    made = dataset.to_coco()
    dog = next(category for category in made["categories"] if category["name"] == "dog")
    assert dog["keypoints"] == ["nose", "left_ear", "right_ear"] and dog["skeleton"] == [[1, 2], [3, 1]]
    assert made["annotations"][1]["keypoints"] == [25.25, 6, 2, 0, 0, 0, 30, 8.125, 1]
    assert [a["num_keypoints"] for a in made["annotations"]] == [0, 2, 0, 0, 0]
    again = read_coco(coco_folder.write(made), coco_folder.images)
    assert (again.keypoint_names, again.skeleton) == (dataset.keypoint_names, dataset.skeleton)
    for index in range(4):
        np.testing.assert_array_equal(again.example(index).keypoints, dataset.example(index).keypoints)


def test_classes_with_different_keypoints_have_none(coco_folder, caplog):
    def two_poses(record):
        pose(record)
        record["categories"][0]["keypoints"] = ["tail"]
        record["annotations"][0]["keypoints"] = [6, 11, 2]

    dataset = read_coco(coco_folder.changed(two_poses), coco_folder.images)
    assert dataset.keypoint_names == () and dataset.example(0).keypoints is None
    assert "different keypoints" in caplog.text and str(coco_folder.json) in caplog.text
    cats = read_coco(coco_folder.json, coco_folder.images, class_names=["cat"])
    assert cats.keypoint_names == ("tail",)
    assert cats.example(0).keypoints.tolist() == [[[11.5, 6.5, 2]], [[0, 0, 0]]]


def test_images_in_subfolders(coco_folder):
    (coco_folder.images / "deep").mkdir()
    (coco_folder.images / "a.png").rename(coco_folder.images / "deep" / "a.png")

    def move(record):
        record["images"][0]["file_name"] = "deep/a.png"

    dataset = read_coco(coco_folder.changed(move), coco_folder.images)
    assert dataset.example(0).path == str(coco_folder.images / "deep/a.png")
    assert dataset.to_coco()["images"][0]["file_name"] == "deep/a.png"


def test_images_in_subfolders_as_windows_writes_them(coco_folder):
    def move(record):
        record["images"][0]["file_name"] = "deep\\a.png"
        record["images"][1]["file_name"] = "with\\b.jpg"  # a file of this very name

    (coco_folder.images / "deep").mkdir()
    (coco_folder.images / "a.png").rename(coco_folder.images / "deep" / "a.png")
    (coco_folder.images / "b.jpg").rename(coco_folder.images / "with\\b.jpg")
    dataset = read_coco(coco_folder.changed(move), coco_folder.images)
    assert dataset.example(0).path == str(coco_folder.images / "deep" / "a.png")
    assert [dataset.file_name(index) for index in (0, 1)] == ["deep/a.png", "with\\b.jpg"]


def test_white_space_and_unknown_members(coco_folder):
    text = json.dumps({"note": [1, {"a": []}], **coco_folder.record}, indent=3).replace("\n", "\r\n\t")
    coco_folder.json.write_text("\ufeff" + text + "\n", encoding="utf-8")
    assert len(read_coco(coco_folder.json, coco_folder.images).example(0)) == 3


def test_a_large_file_is_never_held_as_objects(coco_folder):
    """Parsed as a whole, a json takes six times its size and more; the streamed columns about twice."""
    rng = np.random.default_rng(0)
    ring = np.round(rng.uniform(2, 28, (24, 60)), 2)
    record = dict(coco_folder.record)
    record["images"] = [{**record["images"][0], "id": i} for i in range(3000)]
    record["annotations"] = [
        {
            **{"id": i, "image_id": i // 4, "category_id": 7, "iscrowd": 0, "area": 30.5, "bbox": [2, 2, 26, 26]},
            "segmentation": [ring[i % 24].tolist()],
        }
        for i in range(12_000)
    ]
    size = len(coco_folder.write(record).read_bytes())
    del record
    tracemalloc.start()
    dataset = read_coco(coco_folder.json, coco_folder.images)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 5e6 and len(dataset) == 3000 and dataset.object_counts().sum() == 12_000
    assert peak < 4 * size and kept < 2 * size
