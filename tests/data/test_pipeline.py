"""Training and evaluation batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data import (
    BatchPlan,
    DataError,
    Dataset,
    Example,
    clear_data_errors,
    evaluation_batches,
    full_masks,
    load_image,
    read_coco,
    shapes,
    training_batches,
)

ROOT = Path(__file__).resolve().parents[2]


def config_of(shorter=64, longer=128, **changes) -> Config:
    return Config(num_classes=3).replace(input={"shorter_edge": shorter, "longer_edge": longer}, **changes)


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for one, two in zip(batches, others):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


class OfSizes(Dataset):
    """Black images of given sizes, without objects."""

    def __init__(self, sizes):
        ids = np.arange(100, 100 + len(sizes), dtype=np.int64)
        super().__init__("sizes", ("thing",), (1,), ids, np.array(sizes, np.int32))

    def example(self, index):
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, np.float32))
        return Example(int(self.image_ids[index]), None, np.zeros((*size, 3), np.uint8), size, *nothing, ())


# --- what is in a batch ---


def test_evaluation_batch_of_the_hand_made_file(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    batches = list(evaluation_batches(dataset, config_of(shorter=60, longer=90), 3))
    assert [batch["image_id"].numpy().tolist() for batch in batches] == [[10, 20, 30], [40]]

    batch = {name: value.numpy() for name, value in batches[0].items()}
    kinds = {name: value.dtype for name, value in batch.items()}
    assert kinds == {
        **{"image": np.float32, "image_size": np.int32, "original_size": np.int32, "image_id": np.int64},
        **{"boxes": np.float32, "classes": np.int32, "crowd": np.uint8, "masks": np.uint8},
    }
    # 30 x 40 by 2 is 60 x 80; 24 x 20 by 3 is 72 x 60; 16 x 16 by 3.75 is 60 x 60.
    assert batch["image_size"].tolist() == [[60, 80], [72, 60], [60, 60]]
    assert batch["original_size"].tolist() == [[30, 40], [24, 20], [16, 16]]
    assert batch["image"].shape == (3, 96, 96, 3)
    assert not batch["image"][0, 60:].any() and not batch["image"][0, :, 80:].any()
    assert batch["boxes"].shape == (3, 3, 4) and batch["masks"].shape == (3, 3, 112, 112)
    assert batch["boxes"][0].tolist() == [[20, 10, 36, 30], [8, 40, 40, 72], [50, 4, 60, 8]]
    assert batch["boxes"][1].tolist() == [[0, 12, 72, 30], [18, 36, 30, 54], [0, 0, 0, 0]]
    assert batch["classes"].tolist() == [[2, 1, 2], [3, 1, 0], [0, 0, 0]]
    assert batch["crowd"].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert not batch["masks"][1, 2].any() and not batch["masks"][2].any()
    # The triangle: its right angle at the top left of its box.
    triangle = batch["masks"][0, 1] >= 128
    assert triangle[5, 5] and not triangle[106, 106] and 0.4 < triangle.mean() < 0.6

    resized = tf.image.resize(load_image(dataset.example(0).path), (60, 80))
    np.testing.assert_array_equal(batch["image"][0, :60, :80], resized)

    # An image of 8 x 32 by 90 / 32, for the longer edge; no object, but one row of padding.
    assert batches[1]["image_size"].numpy().tolist() == [[22, 90]]
    assert batches[1]["classes"].numpy().tolist() == [[0]] and batches[1]["boxes"].shape == (1, 1, 4)


def test_ground_truth_moves_with_the_image():
    """Flipped and scaled, the boxes and masks still cover the pixels of their objects."""
    dataset = shapes(12, size=(64, 96), seed=11)
    config = config_of(shorter=(48, 100), longer=300, data={"scale_jitter": [0.8, 1.3]})
    flipped, sizes = set(), set()
    for batch in training_batches(dataset, config, 2, seed=1, steps=12):
        for row in range(2):
            example = dataset.example(int(batch["image_id"][row]) - 1)
            size = batch["image_size"][row].numpy()
            sizes.add(tuple(size))
            image = batch["image"][row, : size[0], : size[1]].numpy()
            straight = tf.image.resize(example.pixels, size).numpy()
            flip = np.abs(image - straight).mean() > np.abs(image - straight[:, ::-1]).mean()
            np.testing.assert_allclose(image, straight[:, ::-1] if flip else straight, atol=0.01)
            flipped.add(bool(flip))
            masks = full_masks(example)[:, :, ::-1] if flip else full_masks(example)
            for mask, box, crop in zip(masks, batch["boxes"][row].numpy(), batch["masks"][row].numpy()):
                scaled = tf.image.resize(mask[:, :, None].astype(np.float32), size)[:, :, 0].numpy() >= 0.5
                rows, columns = np.flatnonzero(scaled.any(1)), np.flatnonzero(scaled.any(0))
                tight = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
                np.testing.assert_allclose(box, tight, atol=2.0)
                y = (box[0] + (np.arange(112) + 0.5) / 112 * (box[2] - box[0])).astype(int)
                x = (box[1] + (np.arange(112) + 0.5) / 112 * (box[3] - box[1])).astype(int)
                if min(box[2] - box[0], box[3] - box[1]) >= 10:  # of less, one pixel is a tenth
                    assert np.mean(scaled[np.ix_(y, x)] == (crop >= 128)) > 0.9
    assert flipped == {True, False} and len(sizes) > 15


def test_validation_is_neither_flipped_nor_jittered():
    dataset = shapes(3, seed=2)
    config = config_of(shorter=(96, 128), longer=256, data={"scale_jitter": [0.5, 2.0]})
    for index, batch in enumerate(evaluation_batches(dataset, config, 1)):
        np.testing.assert_array_equal(batch["image"][0], dataset.example(index).pixels)


def test_other_numbers_of_channels(tmp_path, coco_folder):
    many = np.random.default_rng(0).integers(0, 256, (30, 40, 5), np.uint8)
    np.save(coco_folder.images / "a.npy", many)

    def only_first(record):
        record["images"] = [{**record["images"][0], "file_name": "a.npy"}]
        record["annotations"] = record["annotations"][:1]

    dataset = read_coco(coco_folder.changed(only_first), coco_folder.images)
    config = config_of(shorter=30, input__channels=5, input__mean=[0] * 5, input__std=[1] * 5)
    batch = next(iter(evaluation_batches(dataset, config)))
    np.testing.assert_array_equal(batch["image"][0, :30, :40], many)


# --- which images, in which order ---


@pytest.mark.parametrize(("count", "size"), [(10, 3), (12, 4), (7, 7), (3, 5), (1, 2)])
def test_every_epoch_shows_every_image(count, size):
    plan = BatchPlan(OfSizes([(10, 10 + i) for i in range(count)]), size, seed=4)
    assert plan.steps_per_epoch == -(-count // size)
    orders = []
    for epoch in range(5):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        shown = np.concatenate([plan.indices(step) for step in steps])
        assert len(shown) == plan.steps_per_epoch * size
        assert set(shown.tolist()) == set(range(count))
        orders.append(shown.tolist())
    assert count == 1 or len({tuple(order) for order in orders}) > 1


def test_plan_is_a_function_of_seed_and_step():
    dataset = shapes(20)
    one, two, other = BatchPlan(dataset, 4, seed=1), BatchPlan(dataset, 4, seed=1), BatchPlan(dataset, 4, seed=2)
    forwards = [one.image_ids(step) for step in range(30)]
    backwards = [two.image_ids(step) for step in reversed(range(30))][::-1]
    assert forwards == backwards
    assert forwards != [other.image_ids(step) for step in range(30)]
    assert all(isinstance(number, int) for number in forwards[0])


def test_images_of_like_form_share_a_batch():
    rng = np.random.default_rng(0)
    sizes = [(480, 640), (640, 480), (500, 500), (300, 900)] * 50
    dataset = OfSizes([sizes[i] for i in rng.permutation(200)])
    plan = BatchPlan(dataset, 4, seed=0)
    mixed = 0
    for step in range(plan.steps_per_epoch):
        mixed += len({tuple(size) for size in dataset.sizes[plan.indices(step)].tolist()}) > 1
    assert mixed <= 3  # where one form ends and the next begins
    first = [tuple(dataset.sizes[plan.indices(step)[0]].tolist()) for step in range(12)]
    assert len(set(first)) > 1  # the forms take turns


def test_images_without_objects_can_be_left_out():
    dataset = shapes(60, seed=0, empty_share=0.3)
    filled = set(dataset.image_ids[dataset.object_counts() > 0].tolist())
    assert 30 < len(filled) < 60
    plan = BatchPlan(dataset, 4, drop_empty=True)
    assert {number for step in range(plan.steps_per_epoch) for number in plan.image_ids(step)} == filled
    batches = training_batches(dataset, config_of(shorter=128, data={"drop_empty": True}), 4, steps=15)
    assert all((batch["classes"].numpy().max(axis=1) > 0).all() for batch in batches)
    with pytest.raises(DataError, match="no image with an object"):
        training_batches(shapes(3, empty_share=1.0), config_of(data={"drop_empty": True}), 1)


def test_batches_follow_the_plan():
    dataset = shapes(9, size=(32, 32))
    plan = BatchPlan(dataset, 2, seed=7)
    batches = training_batches(dataset, config_of(), 2, seed=7, start_step=3, steps=8, plan=plan)
    ids = [batch["image_id"].numpy().tolist() for batch in batches]
    assert ids == [plan.image_ids(step) for step in range(3, 11)]


# --- the same again ---


def test_the_same_seed_gives_the_same_batches():
    dataset = shapes(10, size=(48, 64), seed=1)
    config = config_of(shorter=(40, 48), data={"scale_jitter": [0.7, 1.2]})
    first = list(training_batches(dataset, config, 3, seed=5, steps=9))
    assert_same(first, training_batches(dataset, config, 3, seed=5, steps=9))
    other = list(training_batches(dataset, config, 3, seed=6, steps=9))
    assert any(a["image_id"].numpy().tolist() != b["image_id"].numpy().tolist() for a, b in zip(first, other))


def test_a_resumed_run_goes_on_as_if_undisturbed(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    config = config_of(shorter=(40, 48), data={"scale_jitter": [0.7, 1.2]})
    whole = list(training_batches(dataset, config, 3, seed=5, steps=12))
    for start in (1, 5, 11):
        rest = training_batches(dataset, config, 3, seed=5, start_step=start, steps=12 - start)
        assert_same(whole[start:], rest)


def test_number_of_batches():
    dataset, config = shapes(5, size=(32, 32)), config_of()
    assert training_batches(dataset, config, 2).cardinality() == tf.data.INFINITE_CARDINALITY
    assert training_batches(dataset, config, 2, steps=4).cardinality() == 4
    assert evaluation_batches(dataset, config, 2).cardinality() == 3
    assert sum(1 for _ in training_batches(dataset, config, 2).take(20)) == 20


# --- bad images ---


def spoil(coco_folder, how):
    path = coco_folder.images / "b.jpg"
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:300])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes((coco_folder.images / "c.png").read_bytes())
    return path


KINDS = {"cut short": "image unreadable", "gone": "image missing", "another image": "image of another size"}


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_bad_image_raises(coco_folder, how, training):
    dataset = read_coco(coco_folder.json, coco_folder.images)
    path = spoil(coco_folder, how)
    batches = (
        training_batches(dataset, config_of(), 2, steps=4) if training else evaluation_batches(dataset, config_of(), 2)
    )
    with pytest.raises(DataError) as caught, clear_data_errors():
        list(batches)
    message = str(caught.value)
    assert caught.value.kind == KINDS[how]
    assert message.startswith(str(path)) and "image id 20" in message and "\n" not in message


@pytest.mark.parametrize("how", KINDS)
def test_bad_image_is_skipped(coco_folder, how):
    dataset = read_coco(coco_folder.json, coco_folder.images, skip_bad=True)
    path = spoil(coco_folder, how)
    ids = [batch["image_id"].numpy().tolist() for batch in evaluation_batches(dataset, config_of(), 2)]
    assert ids == [[10, 30], [40]]
    batches = list(training_batches(dataset, config_of(), 2, steps=10))
    assert len(batches) == 10 and all(batch["image"].shape[0] == 2 for batch in batches)
    shown = {number for batch in batches for number in batch["image_id"].numpy().tolist()}
    assert shown == {10, 30, 40}
    assert_same(batches[4:], training_batches(dataset, config_of(), 2, start_step=4, steps=6))
    # However often it was met, it is one problem.
    assert dataset.problems.counts == {KINDS[how]: 1}
    assert str(path) in dataset.problems.summary()


def test_no_readable_image(coco_folder):
    dataset = read_coco(coco_folder.json, coco_folder.images, skip_bad=True)
    for path in coco_folder.images.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="could not be read; check the image folder"), clear_data_errors():
        list(training_batches(dataset, config_of(), 2, steps=1))
    assert list(evaluation_batches(dataset, config_of(), 2)) == []
    assert dataset.problems.counts == {"image unreadable": 4}


# --- at length, and on several devices ---


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_memory_does_not_grow_with_the_epochs():
    dataset = shapes(6, size=(64, 64))
    batches = iter(training_batches(dataset, config_of(), 2))
    for _ in range(150):
        next(batches)
    before = resident()
    for _ in range(450):
        next(batches)
    assert resident() - before < 20e6


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
from mrcnn_tf.config import Config
from mrcnn_tf.data import shapes, training_batches
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
config = Config(num_classes=3).replace(input={"shorter_edge": 64})
make = lambda: training_batches(shapes(20, size=(64, 64)), config, 8, seed=3, start_step=2, steps=3)
whole = list(make())
for batch, wanted in zip(strategy.experimental_distribute_dataset(make()), whole):
    for name, value in batch.items():
        parts = strategy.experimental_local_results(value)
        assert len(parts) == 4 and all(part.shape[0] == 2 for part in parts)
        np.testing.assert_array_equal(np.concatenate([part.numpy() for part in parts]), wanted[name], name)
print("split alike")
"""


def test_a_strategy_splits_the_batches():
    done = subprocess.run([sys.executable, "-c", REPLICAS], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "split alike" in done.stdout
