"""Results in the server's form and back, and the benchmark's measure of them."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import mrcnn_tf
from mrcnn_tf import Detections
from mrcnn_tf.evaluation.cityscapes_measure import CityscapesEvaluation
from tests.support.cityscapes_folder import ROAD, random_scene, street, write_ids, write_image, write_scene

STREET, EMPTY = "aachen_000001_000019", "aachen_000000_000019"


@pytest.fixture
def dataset(tmp_path):
    write_scene(tmp_path / "data", "val", STREET, street())
    write_scene(tmp_path / "data", "val", EMPTY, np.full((32, 48), ROAD))
    return mrcnn_tf.read_cityscapes(tmp_path / "data", "val")


def perfect(dataset) -> dict[int, Detections]:
    """The ground truth as detections; groups left out."""
    examples = [dataset.example(index) for index in range(len(dataset))]
    return {one.image_id: Detections.from_example(one, dataset.class_names) for one in examples}


# === The server's form ===


def test_every_object_comes_back_pixel_by_pixel(dataset, tmp_path):
    folder = tmp_path / "results"
    written = mrcnn_tf.write_cityscapes_results(perfect(dataset), dataset, folder)
    assert written == [folder / f"{EMPTY}_pred.txt", folder / f"{STREET}_pred.txt"]
    assert written[0].read_text() == ""
    labels = [24, 26, 26, 31, 33]
    lines = [f"masks/{STREET}_{place:03d}.png {label} 1\n" for place, label in enumerate(labels)]
    assert written[1].read_text() == "".join(lines)
    ids = [24003, 26000, 26001, 31000, 33012]  # in parts, of one pixel, whole columns
    for place, number in enumerate(ids):
        with Image.open(folder / "masks" / f"{STREET}_{place:03d}.png") as image:
            assert image.mode == "L" and image.size == (128, 64)
            np.testing.assert_array_equal(np.asarray(image), np.where(street() == number, 255, 0))
    back = mrcnn_tf.read_cityscapes_results(folder, dataset)
    assert sorted(back) == [1, 2] and len(back[1]) == 0
    np.testing.assert_array_equal(back[2].masks, [street() == number for number in ids])
    assert back[2].classes.tolist() == [1, 3, 3, 6, 8] and back[2].class_names == dataset.class_names
    example = dataset.example(1)
    np.testing.assert_array_equal(back[2].boxes, example.boxes[~example.crowd])


def test_scores_come_back_as_they_were_and_empty_masks_do_not(dataset, tmp_path):
    masks = np.zeros((3, 64, 128), bool)
    masks[0, 3:5, 6:9] = masks[2, :, 0] = True
    scores = np.array([1 / 3, 0.5, 1e-7], np.float32)
    found = {2: Detections(np.zeros((3, 4)), [2, 3, 4], scores, dataset.class_names, (64, 128), masks=masks)}
    mrcnn_tf.write_cityscapes_results(found, dataset, tmp_path / "results")
    back = mrcnn_tf.read_cityscapes_results(tmp_path / "results", dataset)
    assert len(back[1]) == 0
    np.testing.assert_array_equal(back[2].scores, scores[[0, 2]])
    np.testing.assert_array_equal(back[2].masks, masks[[0, 2]])
    assert back[2].classes.tolist() == [2, 4] and back[2].boxes.tolist() == [[3, 6, 5, 9], [0, 0, 64, 1]]


def test_results_are_replaced_and_a_subset_is_enough(dataset, tmp_path):
    folder = tmp_path / "results"
    mrcnn_tf.write_cityscapes_results(perfect(dataset), dataset, folder)
    (folder / "masks" / "other_0_0_000.png").touch()
    few = {2: perfect(dataset)[2][[0, 1]]}
    mrcnn_tf.write_cityscapes_results(few, dataset.subset([1]), folder)
    names = sorted(path.name for path in (folder / "masks").iterdir())
    assert names == [f"{STREET}_000.png", f"{STREET}_001.png", "other_0_0_000.png"]
    assert [len(found) for found in mrcnn_tf.read_cityscapes_results(folder, dataset).values()] == [0, 2]


def test_detections_that_do_not_fit_are_refused(dataset, tmp_path):
    found = perfect(dataset)
    boxes = Detections(found[2].boxes, found[2].classes, found[2].scores, dataset.class_names, (64, 128))
    other = mrcnn_tf.shapes(1)
    for detections, words in (
        ({7: found[2]}, "no image 7"),
        ({1: found[2]}, r"image 1 is \(32, 48\), its detections are on \(64, 128\)"),
        ({2: boxes}, "without masks"),
        ({2: Detections([], [], [], ("cat",), (64, 128))}, "other classes"),
    ):
        with pytest.raises(ValueError, match=words):
            mrcnn_tf.write_cityscapes_results(detections, dataset, tmp_path / "results")
        with pytest.raises(ValueError, match=words):
            mrcnn_tf.evaluate_cityscapes(dataset, detections)
    with pytest.raises(ValueError, match="'circle' is no class of Cityscapes"):
        mrcnn_tf.write_cityscapes_results({}, other, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_results_may_be_anybodys(dataset, tmp_path):
    """What the benchmark's tools take: other names behind the frame, other folders, non-zero masks, other labels."""
    inner = tmp_path / "theirs" / "a"
    inner.mkdir(parents=True)
    (inner / f"{EMPTY}_leftImg8bit.txt").write_text("")
    mask = np.zeros((64, 128), np.uint8)
    mask[5:7, 8:11] = 1
    Image.fromarray(mask).save(tmp_path / "theirs" / "mask.png")
    (inner / f"{STREET}.txt").write_text("../mask.png 33.0 0.25\n../mask.png 29 0.5\n")
    back = mrcnn_tf.read_cityscapes_results(tmp_path / "theirs", dataset)
    assert back[2].classes.tolist() == [8] and back[2].scores.tolist() == [0.25]
    np.testing.assert_array_equal(back[2].masks[0], mask > 0)


def test_bad_results_are_told(dataset, tmp_path):
    folder = tmp_path / "results"
    mrcnn_tf.write_cityscapes_results(perfect(dataset), dataset, folder)
    text, mask = folder / f"{STREET}_pred.txt", folder / "masks" / f"{STREET}_000.png"
    first = text.read_text().splitlines()[0]

    def told(words: str, kind: str = "bad results") -> None:
        with pytest.raises(mrcnn_tf.DataError) as caught:
            mrcnn_tf.read_cityscapes_results(folder, dataset)
        assert words in str(caught.value) and caught.value.kind == kind

    for line in ("", "masks/a.png 26", f"{first} more", "masks/a.png car 1", "masks/a.png inf 1", "masks/a.png 26 one"):
        text.write_text(f"{first}\n{line}\n")
        told(f"{text}: line 2: should be a mask's relative path, a label id and a confidence, not '{line}'")
    for line in ("../../mask.png 26 1", f"{mask} 26 1"):
        text.write_text(line)
        told(f"{text}: line 1: the mask {line.split()[0]} lies outside")
    text.write_text("masks/none.png 26 1")
    told("the mask masks/none.png is missing", "results missing")
    text.write_text(first)
    Image.fromarray(np.zeros((64, 127), np.uint8)).save(mask)
    told("is 64 x 127 (height x width), its image 64 x 128")
    mask.write_bytes(b"none")
    told("cannot be read")
    (folder / f"{STREET}_again.txt").touch()
    told(f"there is 2 files {STREET}*.txt", "results missing")
    text.unlink()
    (folder / f"{STREET}_again.txt").unlink()
    told(f"there is no file {STREET}_pred.txt", "results missing")


# === Measures ===


def test_coco_measures_are_perfect_for_the_truth(dataset):
    metrics = mrcnn_tf.evaluate_coco(dataset, perfect(dataset), kinds=("mask",))
    assert metrics.metrics["mask/AP"] == 1.0 and metrics.metrics["mask/AP50"] == 1.0
    assert metrics.per_class["car"] == {"objects": 2, "images": 1, "mask/AP": 1.0, "mask/AP50": 1.0, "mask/AP75": 1.0}


def test_benchmark_is_perfect_for_the_truth(dataset, tmp_path):
    evaluation = mrcnn_tf.evaluate_cityscapes(dataset, perfect(dataset))
    # The person of one pixel and the bicycle of 64 are too small to be looked for; neither are they held against it.
    assert [values["objects"] for values in evaluation.per_class.values()] == [0, 0, 2, 0, 0, 1, 0, 0]
    assert evaluation.metrics == {"AP": 1.0, "AP50": 1.0}
    assert evaluation.per_class["car"] == {"objects": 2, "AP": 1.0, "AP50": 1.0}
    assert math.isnan(evaluation.per_class["person"]["AP"])
    assert evaluation.table().splitlines()[4].split() == ["car", "2", "1.000", "1.000"]
    assert evaluation.table().splitlines()[-1].split() == ["mean", "3", "1.000", "1.000"]
    evaluation.save(tmp_path / "measures.json")
    saved = json.loads((tmp_path / "measures.json").read_text())
    assert saved["per_class"]["person"] == {"objects": 0, "AP": None, "AP50": None} and saved["images"] == 2
    nothing = mrcnn_tf.evaluate_cityscapes(dataset, {})
    assert nothing.metrics == {"AP": 0.0, "AP50": 0.0}


def scene(tmp_path, ids: np.ndarray, *found: tuple[float, tuple[int, int, int, int]]) -> CityscapesEvaluation:
    """The measure of cars found as (score, (y1, x1, y2, x2)) in one image."""
    write_scene(tmp_path, "val", STREET, ids)
    dataset = mrcnn_tf.read_cityscapes(tmp_path, "val")
    masks = np.zeros((len(found), *ids.shape), bool)
    for mask, (_, (y1, x1, y2, x2)) in zip(masks, found):
        mask[y1:y2, x1:x2] = True
    scores = [score for score, _ in found]
    empty = np.zeros((len(found), 4))
    detections = Detections(empty, [3] * len(found), scores, dataset.class_names, ids.shape, masks=masks)
    return mrcnn_tf.evaluate_cityscapes(dataset, {1: detections})


def car(**others: int) -> np.ndarray:
    """[60, 100]: a car of 20 x 20 at (10, 10); `others` may fill the box (40, 40) to (50, 60)."""
    ids = np.full((60, 100), ROAD)
    ids[10:30, 10:30] = 26000
    ids[40:50, 40:60] = others.get("beside", ROAD)
    return ids


CAR, BESIDE = (10, 10, 30, 30), (40, 40, 50, 60)


@pytest.mark.parametrize(
    "ids, found, expected",
    [
        (car(), [(0.9, CAR)], 1.0),
        # A second one on the same car is wrong, whichever is better placed: the higher score is the right one.
        (car(), [(0.9, CAR), (0.8, (10, 10, 30, 28))], 1.0),
        # Wrong before right: from precision 0 at recall 0 to .5 at recall 1.
        (car(), [(0.8, CAR), (0.9, BESIDE)], 0.25),
        (car(), [(0.8, CAR), (0.8, BESIDE)], 0.75),  # at once
        # On a group of cars, on nothing that is measured, on a car too small to be looked for: not held against it.
        (car(beside=26), [(0.8, CAR), (0.9, BESIDE)], 1.0),
        (car(beside=4), [(0.8, CAR), (0.9, BESIDE)], 1.0),
        # Groups of other vehicles and single caravans are.
        (car(beside=27), [(0.8, CAR), (0.9, BESIDE)], 0.25),
        (car(beside=29001), [(0.8, CAR), (0.9, BESIDE)], 0.25),
        # Half of it on the group: exactly the threshold, which has to be exceeded.
        (car(beside=26), [(0.8, CAR), (0.9, (40, 40, 60, 60))], 0.25),
        # An IoU of exactly .5 is no match.
        (car(), [(0.9, (10, 10, 30, 20))], 0.0),
        (car(), [(0.9, (10, 10, 30, 21))], 1.0),
        (car(), [], 0.0),
        (car(beside=26), [(0.9, BESIDE)], 0.0),  # nothing that counts
    ],
)
def test_rules_of_the_benchmark(tmp_path, ids, found, expected):
    assert scene(tmp_path, ids, *found).per_class["car"]["AP50"] == pytest.approx(expected, abs=1e-12)


def test_small_objects_are_not_held_against_a_prediction(tmp_path):
    ids = car()
    ids[40:49, 40:51] = 26001  # 99 pixels
    evaluation = scene(tmp_path, ids, (0.8, CAR), (0.9, (40, 40, 49, 51)))
    assert evaluation.per_class["car"] == {"objects": 1, "AP": 1.0, "AP50": 1.0}
    ids[49, 40] = 26001  # 100 pixels
    evaluation = scene(tmp_path, ids, (0.8, CAR), (0.9, (40, 40, 49, 51)))
    assert evaluation.per_class["car"] == {"objects": 2, "AP": 1.0, "AP50": 1.0}


def test_images_without_annotation_are_not_measured(tmp_path):
    write_image(tmp_path, "test", STREET, (32, 32))
    dataset = mrcnn_tf.read_cityscapes(tmp_path, "test")
    with pytest.raises(mrcnn_tf.DataError, match="has no annotation to measure by"):
        mrcnn_tf.evaluate_cityscapes(dataset, {})
    path = write_ids(tmp_path, "test", STREET, np.full((32, 32), 3))
    assert math.isnan(mrcnn_tf.evaluate_cityscapes(dataset, {}).metrics["AP"])
    path.write_bytes(b"none")
    with pytest.raises(mrcnn_tf.DataError, match="cut short or no image"):
        mrcnn_tf.evaluate_cityscapes(dataset, {})


# AP and AP50 that cityscapesScripts 2.3.0 (evalInstanceLevelSemanticLabeling) said of the scenes below.
RECORDED = {
    "person": (0.10898069666909378, 0.2283411664093482),
    "rider": (0.08656320523030642, 0.317943483109688),
    "car": (0.2515085798956035, 0.40732695666906193),
    "truck": (0.08985646770669992, 0.3141759860509861),
    "bus": (0.07610993585609008, 0.19531719087156393),
    "train": (0.12180624859623343, 0.2149221568293545),
    "motorcycle": (0.041479819200407435, 0.2709145021645022),
    "bicycle": (0.09912393162393163, 0.40164835164835166),
    "mean": (0.10942861059729578, 0.2938237242191071),
}


def random_results(folder, images: int = 16):
    """Random scenes, and predictions that are moved, cut and mistaken objects, with ties among the scores."""
    for seed in range(images):
        write_scene(folder, "val", f"bonn_{seed:06d}_000019", random_scene(seed))
    dataset = mrcnn_tf.read_cityscapes(folder, "val")
    rng = np.random.RandomState(0)
    detections = {}
    for seed in range(images):
        ids, masks, classes, scores = random_scene(seed), [], [], []
        for number in np.unique(ids):
            label = number // 1000 if number >= 1000 else number
            for _ in range(rng.randint(0, 3)):
                moved = np.roll(ids == number, tuple(rng.randint(-3, 4, 2)), (0, 1))
                if rng.rand() < 0.3:
                    moved &= rng.rand(*ids.shape) < 0.75
                known = label in dataset.category_ids and rng.rand() < 0.9
                classes.append(dataset.category_ids.index(label) + 1 if known else rng.randint(1, 9))
                scores.append(round(rng.rand(), 1 if rng.rand() < 0.5 else 5))
                masks.append(moved)
        boxes = np.zeros((len(masks), 4))
        masks = np.reshape(masks, (len(masks), *ids.shape))
        detections[seed + 1] = Detections(boxes, classes, scores, dataset.class_names, ids.shape, masks=masks)
    return dataset, detections


def test_benchmark_is_that_of_its_own_tools(tmp_path):
    dataset, detections = random_results(tmp_path)
    evaluation = mrcnn_tf.evaluate_cityscapes(dataset, detections)
    measured = {name: (values["AP"], values["AP50"]) for name, values in evaluation.per_class.items()}
    measured["mean"] = (evaluation.metrics["AP"], evaluation.metrics["AP50"])
    assert sorted(measured) == sorted(RECORDED)
    for name, values in RECORDED.items():
        assert measured[name] == pytest.approx(values, abs=1e-9), name
