"""The readers and the pipeline on real files."""

from __future__ import annotations

import json

import numpy as np
from pycocotools.coco import COCO

from mrcnn_tf.coco_names import KEYPOINTS, SKELETON
from mrcnn_tf.config import Config
from mrcnn_tf.data import BatchPlan, Dataset, evaluation_batches, full_masks, read_coco, training_batches


def test_coco_mini(coco_mini):
    train = read_coco(coco_mini / "annotations/instances_train2017.json", coco_mini / "train2017")
    val = read_coco(coco_mini / "annotations/instances_val2017.json", coco_mini / "val2017")
    assert (len(train), len(val)) == (80, 79)
    assert train.object_counts().sum() == 731 and val.object_counts().sum() == 619
    assert len(train.class_names) == 80 and train.class_names == val.class_names
    assert train.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13) and train.category_ids[-1] == 90
    crowds = sum(int(train.example(i).crowd.sum()) for i in range(80))
    assert crowds == 8 and not train.problems


def test_masks_are_those_of_the_coco_tools(coco_mini):
    path = coco_mini / "annotations/instances_train2017.json"
    dataset, coco = read_coco(path, coco_mini / "train2017"), COCO(str(path))
    for index in range(0, 80, 9):
        example = dataset.example(index)
        records = coco.imgToAnns[example.image_id]
        theirs = np.stack([coco.annToMask(record) for record in records]).astype(bool)
        np.testing.assert_array_equal(full_masks(example), theirs)
        np.testing.assert_allclose(example.areas, [record["area"] for record in records], rtol=1e-6)


def test_coco_mini_comes_back_as_it_was(coco_mini):
    path = coco_mini / "annotations/instances_val2017.json"
    before = json.loads(path.read_text())
    after = read_coco(path, coco_mini / "val2017").to_coco()
    key = lambda a: (a["image_id"], a["category_id"], a["bbox"])  # noqa: E731
    assert [i["file_name"] for i in after["images"]] == [i["file_name"] for i in before["images"]]
    for old, new in zip(sorted(before["annotations"], key=key), sorted(after["annotations"], key=key), strict=True):
        assert old["category_id"] == new["category_id"] and old["iscrowd"] == new["iscrowd"]
        np.testing.assert_allclose(old["bbox"], new["bbox"], atol=1e-9)
        if old["iscrowd"] == 0:
            assert old["segmentation"] == new["segmentation"]


def test_keypoints_of_people(coco_mini):
    dataset = read_coco(coco_mini / "annotations/person_keypoints_val2017.json", coco_mini / "val2017")
    assert dataset.class_names == ("person",)
    index = int(np.argmax(dataset.object_counts()))
    example = dataset.example(index)
    assert example.keypoints.shape == (len(example), 17, 3)
    y, x, seen = example.keypoints[:, :, 0], example.keypoints[:, :, 1], example.keypoints[:, :, 2] > 0
    assert (y[seen] <= example.size[0]).all() and (x[seen] <= example.size[1]).all()
    assert dataset.keypoint_names == KEYPOINTS
    counts = dataset.keypoint_counts()
    assert counts[index] == seen[~example.crowd].sum()
    assert counts.tolist() == Dataset.keypoint_counts(dataset).tolist()
    # The same lines, each once; COCO's own list begins at other ends.
    assert {frozenset(line) for line in dataset.skeleton} == {frozenset(line) for line in SKELETON}


def test_keypoints_come_back_as_they_were(coco_mini):
    path = coco_mini / "annotations/person_keypoints_train2017.json"
    before = json.loads(path.read_text())
    after = read_coco(path, coco_mini / "train2017").to_coco()
    for name in ("keypoints", "skeleton"):
        assert after["categories"][0][name] == before["categories"][0][name]
    key = lambda a: (a["image_id"], a["bbox"])  # noqa: E731
    for old, new in zip(sorted(before["annotations"], key=key), sorted(after["annotations"], key=key), strict=True):
        assert (old["keypoints"], old["num_keypoints"]) == (new["keypoints"], new["num_keypoints"])


def test_persons_alone(coco_mini):
    of_all = read_coco(
        coco_mini / "annotations/instances_train2017.json", coco_mini / "train2017", class_names=("person",)
    )
    people = read_coco(coco_mini / "annotations/person_keypoints_train2017.json", coco_mini / "train2017")
    assert (of_all.class_names, of_all.category_ids, len(of_all)) == (("person",), (1,), 80)
    np.testing.assert_array_equal(of_all.object_counts(), people.object_counts())
    assert of_all.object_counts().sum() == 167 and not of_all.keypoint_names
    plan = BatchPlan(people, 4, drop_empty=True)
    shown = {number for step in range(plan.steps_per_epoch) for number in plan.image_ids(step)}
    assert shown == set(people.image_ids[people.object_counts() > 0].tolist())


def test_nuclei(nuclei):
    train = read_coco(nuclei / "instances_train.json", nuclei / "train")
    val = read_coco(nuclei / "instances_val.json", nuclei / "val")
    assert (len(train), train.object_counts().sum()) == (266, 11518)
    assert (len(val), val.object_counts().sum()) == (122, 6093)
    assert train.class_names == ("nucleus",)
    for index in (0, 50, 200):
        example = train.example(index)
        masks = full_masks(example)
        np.testing.assert_array_equal(masks.sum(axis=(1, 2)), example.areas)


def test_batches_of_real_images(coco_mini):
    dataset = read_coco(coco_mini / "annotations/instances_val2017.json", coco_mini / "val2017").subset(range(8))
    config = Config().replace(input={"shorter_edge": 200, "longer_edge": 333})
    seen = []
    for batch in evaluation_batches(dataset, config, 3):
        size, boxes = batch["image_size"].numpy(), batch["boxes"].numpy()
        assert (size.min(axis=1) <= 200).all() and (size.max(axis=1) <= 333).all()
        assert (boxes[:, :, 2:] <= size[:, None] + 1e-3).all() and boxes.min() >= 0
        assert all(side % 32 == 0 for side in batch["image"].shape[1:3])
        seen += batch["image_id"].numpy().tolist()
    assert seen == dataset.image_ids.tolist()
    for batch in training_batches(dataset, config, 2, steps=8):
        filled = batch["classes"].numpy() > 0
        assert batch["masks"].numpy()[filled].max(axis=(1, 2)).min() > 0
