"""Cityscapes' folders to records: every object, groups, what is missing or broken, and batches of it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mrcnn_tf
from mrcnn_tf import coco_names
from mrcnn_tf.data.cityscapes import COCO_CLASS_MAP, annotation_of, image_name
from mrcnn_tf.data.cityscapes_labels import CLASSES, LABELS, VOID, draw_ids, find_objects
from mrcnn_tf.data.masks import full_masks
from mrcnn_tf.data.pipeline import evaluation_batches, training_batches
from tests.support.cityscapes_folder import (
    SKY,
    random_scene,
    street,
    write_ids,
    write_image,
    write_polygons,
    write_scene,
)

STREET, EMPTY, DRAWN = "aachen_000001_000019", "aachen_000000_000019", "zurich_000000_000019"


@pytest.fixture
def root(tmp_path):
    """Three training images: objects of all kinds, none at all, and one with polygons alone."""
    write_scene(tmp_path, "train", STREET, street())
    write_scene(tmp_path, "train", EMPTY, np.full((32, 48), SKY))
    write_image(tmp_path, "train", DRAWN, (64, 128))
    write_polygons(
        tmp_path, "train", DRAWN, (64, 128), [rectangle("road", 0, 0, 127, 63), rectangle("bus", 9, 5, 40, 30)]
    )
    return tmp_path


def rectangle(label: str, x1: int, y1: int, x2: int, y2: int, **more) -> dict:
    return {"label": label, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], **more}


# === Records ===


def test_every_object_is_read_as_it_is(root):
    dataset = mrcnn_tf.read_cityscapes(root)
    assert dataset.class_names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert dataset.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    # In the order of the names, from 1.
    assert [dataset.file_name(i) for i in range(3)] == [f"{name}_leftImg8bit.png" for name in (EMPTY, STREET, DRAWN)]
    assert dataset.image_ids.tolist() == [1, 2, 3]
    assert dataset.sizes.tolist() == [[32, 48], [64, 128], [64, 128]]
    assert dataset.object_counts().tolist() == [0, 5, 1]
    example = dataset.example(1)
    ids = [24, 26, 24003, 26000, 26001, 31000, 33012]
    np.testing.assert_array_equal(full_masks(example), [street() == number for number in ids])
    assert example.classes.tolist() == [1, 3, 1, 3, 3, 6, 8] and example.classes.dtype == np.int32
    assert example.crowd.tolist() == [True, True] + [False] * 5
    assert example.areas.tolist() == [80.0, 270.0, 1.0, 520.0, 260.0, 128.0, 64.0]
    boxes = [[0, 90, 4, 110], [50, 100, 60, 127], [40, 100, 41, 101], [10, 20, 30, 50], [45, 70, 58, 90]]
    assert example.boxes.tolist() == [*boxes, [0, 60, 64, 62], [0, 127, 64, 128]]
    assert example.size == (64, 128) and example.path.endswith(f"{STREET}_leftImg8bit.png")
    assert example.source.endswith("instanceIds.png")
    assert len(dataset.example(0)) == 0 and dataset.example(0).boxes.shape == (0, 4)
    assert dataset.example(2).boxes.tolist() == [[5, 9, 31, 41]] and dataset.example(-1).classes.tolist() == [5]
    with pytest.raises(IndexError):
        dataset.example(3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.tuples(st.integers(8, 40), st.integers(8, 40)))
def test_objects_of_any_map_are_those_of_its_ids(seed, size):
    ids = random_scene(seed, size)
    found = find_objects(ids)
    wanted = [n for n in np.unique(ids) if (n // 1000 if n >= 1000 else n) in CLASSES.values()]
    assert found.ids.tolist() == wanted
    for place, number in enumerate(wanted):
        rows, columns = np.nonzero(ids == number)
        box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        assert found.boxes[place].tolist() == box and found.areas[place] == len(rows)
        mask = mrcnn_tf.Detections(
            [box], [1], [1], (), size, segmentations=[{"size": list(size), "counts": found.counts[place]}]
        ).mask(0)
        np.testing.assert_array_equal(mask, ids == number)


def test_a_record_is_one_of_coco(root):
    truth = mrcnn_tf.read_cityscapes(root).to_coco()
    json.dumps(truth)
    assert [item["category_id"] for item in truth["annotations"]] == [24, 26, 24, 26, 26, 31, 33, 28]
    assert [item["iscrowd"] for item in truth["annotations"]] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert {item["id"]: item["name"] for item in truth["categories"]} == {
        value: name for name, value in CLASSES.items()
    }


# === Polygons ===


def test_polygons_cover_what_lies_behind_them():
    objects = [
        rectangle("sky", 0, 0, 47, 31),
        rectangle("car", 4, 4, 20, 20),
        rectangle("license plate", 6, 16, 10, 18),  # stays part of the car
        rectangle("cargroup", 30, 10, 60, 15),  # reaches out of the image
        rectangle("person", 1, 1, 3, 3, deleted=1),
        rectangle("caravan", 0, 25, 5, 31),
        rectangle("car", 2, 8, 12, 12),  # in front of the first
        rectangle("polegroup", 8, 0, 9, 31),  # a label of its own, no group of poles
        rectangle("bus", 40, 0, 47, 3),
        rectangle("sky", 40, 0, 47, 3),  # hides the bus
    ]
    ids = np.full((32, 48), SKY)
    ids[4:21, 4:21] = 26000
    ids[10:16, 30:] = 26
    ids[25:, 0:6] = 29000
    ids[8:13, 2:13] = 26001
    ids[:, 8:10] = 18
    np.testing.assert_array_equal(draw_ids(objects, 32, 48), ids)
    assert find_objects(ids).ids.tolist() == [26, 26000, 26001]


def test_instance_ids_win_over_polygons(root):
    write_polygons(root, "train", STREET, (64, 128), [rectangle("truck", 0, 0, 20, 20)])
    assert 27 not in {item["category_id"] for item in mrcnn_tf.read_cityscapes(root).to_coco()["annotations"]}
    (root / "gtFine" / "train" / "aachen" / f"{STREET}_gtFine_instanceIds.png").unlink()
    example = mrcnn_tf.read_cityscapes(root).example(1)
    assert example.classes.tolist() == [4] and example.boxes.tolist() == [[0, 0, 21, 21]]


@pytest.mark.parametrize(
    "objects, what",
    [
        ([rectangle("cat", 0, 0, 5, 5)], "objects[0]: 'cat' is no label of Cityscapes"),
        ([rectangle("catgroup", 0, 0, 5, 5)], "'catgroup' is no label"),
        ([{"label": "car", "polygon": [[1, 2], [3, 4]]}], "objects[0] (car): 'polygon' should be three points"),
        ([{"label": "car", "polygon": [[1, 2], [3], [5, 6]]}], "'polygon' should be three points"),
        ([{"label": "car"}], "'polygon' should be three points"),
        ([{"polygon": [[1, 2], [3, 4], [5, 5]]}], "should have a 'label'"),
        ("none", "a list 'objects'"),
    ],
)
def test_bad_polygons_are_told(root, objects, what):
    path = write_polygons(root, "train", DRAWN, (64, 128), objects)
    with pytest.raises(mrcnn_tf.DataError) as caught:
        mrcnn_tf.read_cityscapes(root)
    assert str(path) in str(caught.value) and what in str(caught.value) and "skip_bad" in str(caught.value)
    assert caught.value.kind == "bad annotation"


def test_labels_are_all_known():
    assert sorted(LABELS.values()) == list(range(-1, 34))
    assert set(CLASSES.items()) <= set(LABELS.items()) and not set(VOID) & set(CLASSES.values())


# === What is missing or broken ===


def refused(root, split="train") -> mrcnn_tf.DataError:
    with pytest.raises(mrcnn_tf.DataError) as caught:
        mrcnn_tf.read_cityscapes(root, split)
    return caught.value


def test_missing_parts_name_their_archive(root, tmp_path):
    assert "no such folder" in str(refused(tmp_path / "none"))
    empty = tmp_path / "empty"  # in a folder that is a whole root
    (empty / "leftImg8bit").mkdir(parents=True)
    assert "leftImg8bit: has no split 'train' (it is empty); unpack leftImg8bit_trainvaltest.zip" in str(refused(empty))
    (empty / "leftImg8bit" / "train" / "aachen").mkdir(parents=True)
    assert "has no folder gtFine/; unpack gtFine_trainvaltest.zip in" in str(refused(empty))
    (empty / "gtFine" / "train").mkdir(parents=True)
    assert "holds no <city>/*_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip" in str(refused(empty))
    error = refused(root, "val")
    assert "has no split 'val' (its splits are train)" in str(error) and error.kind == "split missing"


@pytest.mark.parametrize("inner", ["gtFine", "leftImg8bit", "leftImg8bit/train", "gtFine/train/aachen"])
def test_an_inner_folder_is_told_from_the_root(root, inner):
    assert str(refused(root / inner)).endswith(f"give {root} instead")


def test_an_outer_folder_is_told_from_the_root(root, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    for part in ("gtFine", "leftImg8bit"):
        (outer / "cityscapes").mkdir(exist_ok=True)
        (root / part).rename(outer / "cityscapes" / part)
    assert str(refused(outer)).endswith(f"give {outer / 'cityscapes'} instead")


def breakages(root):
    """What can be wrong with a single image: how it is done, its kind, the file that is named, and a remedy."""
    image = root / "leftImg8bit" / "train" / "aachen" / f"{STREET}_leftImg8bit.png"
    ids = root / "gtFine" / "train" / "aachen" / f"{STREET}_gtFine_instanceIds.png"
    labels = Image.fromarray(np.full((64, 128), 7, np.uint8))
    far = np.where(street() == 26000, 40000, street())
    return {
        "no image": (image.unlink, "image missing", image, "leftImg8bit_trainvaltest.zip"),
        "no annotation": (ids.unlink, "annotation missing", image, "gtFine_trainvaltest.zip"),
        "no picture": (lambda: image.write_bytes(b"none"), "image unreadable", image, "leftImg8bit_trainvaltest.zip"),
        "cut short": (
            lambda: ids.write_bytes(ids.read_bytes()[:150]),
            "bad annotation",
            ids,
            "gtFine_trainvaltest.zip",
        ),
        "label ids": (lambda: labels.save(ids), "bad annotation", ids, "has one channel of 16 bits"),
        "unknown label": (lambda: write_ids(root, "train", STREET, far), "bad annotation", ids, "the label 40"),
        "another size": (
            lambda: write_ids(root, "train", STREET, street()[:60]),
            "image of another size",
            ids,
            "is 60 x 128 (height x width), its image 64 x 128",
        ),
    }


@pytest.mark.parametrize(
    "name", ["no image", "no annotation", "no picture", "cut short", "label ids", "unknown label", "another size"]
)
def test_a_bad_image_is_refused_or_counted(root, name):
    act, kind, path, words = breakages(root)[name]
    act()
    error = refused(root)
    assert str(path) in str(error) and words in str(error) and "skip_bad=True" in str(error)
    assert error.kind == kind and "\n" not in str(error)
    dataset = mrcnn_tf.read_cityscapes(root, skip_bad=True)
    assert dataset.problems.counts == {kind: 1} and str(path) in dataset.problems.summary()
    assert dataset.image_ids.tolist() == [1, 3]  # the others keep their numbers


def test_nothing_usable_is_refused(tmp_path):
    write_image(tmp_path, "train", STREET, (32, 32))
    (tmp_path / "gtFine" / "train").mkdir(parents=True)
    with pytest.raises(mrcnn_tf.DataError, match="none of its 1 images can be used.*annotation missing"):
        try:
            mrcnn_tf.read_cityscapes(tmp_path, skip_bad=True)
        except mrcnn_tf.DataError as error:
            raise mrcnn_tf.DataError(" ".join(str(error).split())) from error


def test_test_images_need_no_annotations(tmp_path):
    name = "berlin_000000_000019"
    write_image(tmp_path, "test", name, (32, 48))
    dataset = mrcnn_tf.read_cityscapes(tmp_path, "test")
    assert len(dataset) == 1 and len(dataset.example(0)) == 0 and dataset.sizes.tolist() == [[32, 48]]
    write_ids(tmp_path, "test", name, np.full((32, 48), 3))  # the archive has such maps of nothing
    assert len(mrcnn_tf.read_cityscapes(tmp_path, "test").example(0)) == 0


def test_names_and_places(root):
    path = mrcnn_tf.read_cityscapes(root).example(1).path
    assert image_name(path) == STREET
    assert annotation_of(path) == str(root / "gtFine" / "train" / "aachen" / f"{STREET}_gtFine_instanceIds.png")
    assert annotation_of(str(root / "leftImg8bit" / "train" / "aachen" / "other_leftImg8bit.png")) is None


def test_hidden_files_are_no_images(root):
    expected = mrcnn_tf.read_cityscapes(root).image_ids.tolist()
    path = root / "leftImg8bit" / "train" / "aachen"
    for name in (f"._{STREET}_leftImg8bit.png", "._berlin_000000_000019_leftImg8bit.png"):
        (path / name).write_bytes(b"notes of macOS")
    assert mrcnn_tf.read_cityscapes(root).image_ids.tolist() == expected


# === Batches ===


def test_every_object_reaches_its_batch(root):
    dataset = mrcnn_tf.read_cityscapes(root)
    config = mrcnn_tf.preset("cityscapes", input={"shorter_edge": 64, "longer_edge": 128})
    batches = list(evaluation_batches(dataset, config))
    assert [batch["image_id"].numpy().tolist() for batch in batches] == [[1], [2], [3]]
    assert batches[0]["classes"].numpy().tolist() == [[0]]
    example, batch = dataset.example(1), {name: value.numpy()[0] for name, value in batches[1].items()}
    np.testing.assert_array_equal(batch["boxes"], example.boxes)  # resized to its own size
    assert batch["classes"].tolist() == example.classes.tolist() and batch["crowd"].tolist() == example.crowd.tolist()
    for box, mask, crop in zip(example.boxes.astype(int), full_masks(example), batch["masks"]):
        y1, x1, y2, x2 = box
        rows = ((np.arange(y2 - y1) + 0.5) / (y2 - y1) * 112).astype(int)
        columns = ((np.arange(x2 - x1) + 0.5) / (x2 - x1) * 112).astype(int)
        np.testing.assert_array_equal(crop[np.ix_(rows, columns)] >= 128, mask[y1:y2, x1:x2])


def test_training_batches_are_drawn_from_it(root):
    dataset = mrcnn_tf.read_cityscapes(root)
    config = mrcnn_tf.preset("cityscapes", input={"shorter_edge": (48, 64), "longer_edge": 128})
    batches = list(training_batches(dataset, config, batch_size=2, steps=3))
    assert sorted({int(i) for batch in batches for i in batch["image_id"]}) == [1, 2, 3]
    assert max(int(batch["classes"].numpy().max()) for batch in batches) == 8
    # Without its empty image where that is asked for.
    batches = training_batches(dataset, config.replace(data={"drop_empty": True}), batch_size=1, steps=4)
    assert {int(batch["image_id"][0]) for batch in batches} == {2, 3}


# === Presets ===


def test_presets_are_the_papers():
    config, short = mrcnn_tf.preset("cityscapes"), mrcnn_tf.preset("cityscapes_from_coco")
    assert config.class_names == tuple(CLASSES) and config.backbone.name == "resnet50"
    assert config.input.shorter_edge[0] == 800 and config.input.shorter_edge[-1] == 1024
    assert config.input.longer_edge == 2048
    training = config.training
    assert (training.steps, training.decay_steps, training.learning_rate) == (24_000, (18_000,), 0.01)
    assert training.reference_batch == 8 and training.images_per_device == 1
    assert (short.training.steps, short.training.decay_steps) == (4_000, (3_000,))
    assert short.replace(training=config.to_dict()["training"]) == config


def test_seven_classes_are_known_to_coco():
    assert set(COCO_CLASS_MAP) == set(CLASSES) - {"rider"}
    assert set(COCO_CLASS_MAP.values()) <= set(coco_names.CLASSES)
