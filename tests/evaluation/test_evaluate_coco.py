"""COCO's measures on hand-made scenes whose AP is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mrcnn_tf.config import Config
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation.coco import evaluate_coco, kinds_of, load_results

NUCLEI = Path(__file__).resolve().parents[3] / "shared" / "data" / "nuclei" / "instances_val.json"
SIZE = (120, 160)


class Scene:
    """A data set by hand: `objects` are (image_id, class, box, crowd); masks fill their boxes."""

    class_names = ("cat", "dog")
    category_ids = (17, 90)

    def __init__(self, objects, images=(1, 2), masks=True):
        self.objects, self.masks = objects, masks
        self.image_ids = np.array(images)
        self.sizes = np.array([SIZE] * len(images))

    def __len__(self):
        return len(self.image_ids)

    def to_coco(self):
        annotations = []
        for image_id, number, (y1, x1, y2, x2), crowd in self.objects:
            record = {"id": len(annotations), "image_id": image_id, "category_id": self.category_ids[number - 1]}
            record |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (y2 - y1) * (x2 - x1), "iscrowd": crowd}
            if self.masks:
                record["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            annotations.append(record)
        images = [{"id": int(number), "height": SIZE[0], "width": SIZE[1]} for number in self.image_ids]
        categories = [{"id": number, "name": name} for number, name in zip(self.category_ids, self.class_names)]
        return {"images": images, "annotations": annotations, "categories": categories}


def rectangles(boxes, classes, scores, with_masks=True):
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (y1, x1, y2, x2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    return Detections(boxes, classes, scores, Scene.class_names, SIZE, masks=masks if with_masks else None)


A, B, C = (10, 10, 50, 50), (60, 60, 100, 100), (10, 100, 30, 120)  # areas 1600, 1600, 400


def test_perfect_detections():
    scene = Scene([(1, 1, A, 0), (1, 2, B, 0), (2, 1, C, 0)])
    found = {1: rectangles([A, B], [1, 2], [0.9, 0.8]), 2: rectangles([C], [1], [0.7])}
    evaluation = evaluate_coco(scene, found)
    for kind in ("box", "mask"):
        for name in ("AP", "AP50", "AP75", "APs", "APm", "AR10", "AR100", "ARs", "ARm"):
            assert evaluation.metrics[f"{kind}/{name}"] == pytest.approx(1.0), name
        assert math.isnan(evaluation.metrics[f"{kind}/APl"])
        # One detection an image: both images hold one cat at the most, and one dog.
        assert evaluation.metrics[f"{kind}/AR1"] == pytest.approx(1.0)
    assert evaluation.object_count == 3 and evaluation.image_count == 2
    assert evaluation.per_class["cat"] == pytest.approx(
        {"objects": 2, "images": 2, **{f"{kind}/{n}": 1 for kind in ("box", "mask") for n in ("AP", "AP50", "AP75")}}
    )


def test_average_precision_by_hand():
    # Cats: the best-scored detection is wrong, the next is right with IoU 36/44 (.818: seven thresholds, .5 to .8),
    # the second cat is never found. Precision is 1/2 up to recall 1/2: 51 of the 101 recall points.
    scene = Scene([(1, 1, A, 0), (2, 1, C, 0)])
    shifted = (14, 10, 54, 50)
    found = {1: rectangles([B, shifted], [1, 1], [0.9, 0.8])}
    evaluation = evaluate_coco(scene, found)
    for kind in ("box", "mask"):
        assert evaluation.metrics[f"{kind}/AP50"] == pytest.approx(51 / 101 / 2)
        assert evaluation.metrics[f"{kind}/AP75"] == pytest.approx(51 / 101 / 2)
        assert evaluation.metrics[f"{kind}/AP"] == pytest.approx(0.7 * 51 / 101 / 2)
        assert evaluation.metrics[f"{kind}/AR100"] == pytest.approx(0.7 / 2)
        assert evaluation.metrics[f"{kind}/AR1"] == 0.0
        assert evaluation.metrics[f"{kind}/APs"] == 0.0
    assert math.isnan(evaluation.per_class["dog"]["box/AP"]) and evaluation.per_class["dog"]["objects"] == 0


def test_masks_are_small_or_large_by_their_own_area():
    scene = Scene([(1, 1, A, 0)])
    mask = np.zeros((2, *SIZE), bool)
    mask[0, 10:50, 10:50] = True
    mask[1, 60:70, 60:70] = True  # 100 pixels in a box of 1600: small by its area, so no false alarm among medium ones
    found = {1: Detections([A, B], [1, 1], [0.5, 0.9], Scene.class_names, SIZE, masks=mask)}
    evaluation = evaluate_coco(scene, found)
    assert evaluation.metrics["mask/APm"] == pytest.approx(1.0)
    assert evaluation.metrics["box/APm"] == pytest.approx(0.5)
    assert evaluation.metrics["mask/AP"] == pytest.approx(0.5)


def test_detections_on_a_crowd_do_not_count():
    scene = Scene([(1, 1, A, 0), (1, 1, (60, 60, 120, 160), 1)])
    found = {1: rectangles([(60, 60, 90, 90), (90, 100, 110, 140), A], [1, 1, 1], [0.9, 0.8, 0.7])}
    evaluation = evaluate_coco(scene, found)
    assert evaluation.metrics["box/AP"] == pytest.approx(1.0) and evaluation.metrics["mask/AP"] == pytest.approx(1.0)
    assert evaluation.object_count == 1


def test_the_limit_on_detections_rules_ap_too():
    # 150 objects of 6 x 6 pixels, all found.
    boxes = [(8 * row, 8 * column, 8 * row + 6, 8 * column + 6) for row in range(15) for column in range(10)]
    scene = Scene([(1, 1, box, 0) for box in boxes], images=(1,))
    found = {1: rectangles(boxes, [1] * 150, np.linspace(1, 0.1, 150))}
    for limit, expected in ((200, 1.0), (100, 67 / 101), (5, 4 / 101)):
        metrics = evaluate_coco(scene, found, max_detections=limit).metrics
        assert metrics["box/AP"] == pytest.approx(expected)
        assert metrics["mask/APs"] == pytest.approx(expected)
        assert metrics[f"box/AR{limit}"] == pytest.approx(min(limit / 150, 1))
    assert list(metrics) == [
        f"{kind}/{name}"
        for kind in ("box", "mask")
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR5", "ARs", "ARm", "ARl")
    ]


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(tmp_path):
    scene = Scene([(1, 1, A, 0)])
    for found in ({}, {1: rectangles([], [], []), 2: rectangles([], [], [], with_masks=False)}):
        evaluation = evaluate_coco(scene, found)
        assert evaluation.metrics["box/AP"] == evaluation.metrics["mask/AR100"] == 0.0
        assert evaluation.results == []
    empty = evaluate_coco(Scene([]), {1: rectangles([A], [1], [0.9])})
    assert all(math.isnan(value) for value in empty.metrics.values())
    assert " -" in empty.table() and "nan" not in empty.table()
    empty.save(tmp_path / "made" / "evaluation.json")
    saved = json.loads((tmp_path / "made" / "evaluation.json").read_text())
    assert saved["metrics"]["box/AP"] is None and saved["objects"] == 0 and saved["images"] == 2
    assert all(math.isnan(value) for value in evaluate_coco(Scene([], images=()), {}).metrics.values())


def test_boxes_alone():
    scene = Scene([(1, 1, A, 0)], masks=False)
    found = {1: rectangles([A], [1], [0.9], with_masks=False)}
    evaluation = evaluate_coco(scene, found, kinds="box")
    assert evaluation.metrics["box/AP"] == pytest.approx(1.0) and "mask/AP" not in evaluation.metrics
    assert evaluate_coco(scene, found).metrics == pytest.approx(evaluation.metrics, nan_ok=True)
    both = ("box", "mask")
    with pytest.raises(ValueError, match="image 1: detections without masks; evaluate them with kinds=..box"):
        evaluate_coco(scene, found, kinds=both)
    with pytest.raises(ValueError, match="image 1: an object without segmentation"):
        evaluate_coco(scene, {}, kinds=both)


def test_what_is_measured_follows_what_is_there():
    def kinds(scene, found):
        return {name.split("/")[0] for name in evaluate_coco(scene, found).metrics}

    with_masks, without = Scene([(1, 1, A, 0)]), Scene([(1, 1, A, 0)], masks=False)
    masks, boxes = rectangles([A], [1], [0.9]), rectangles([A], [1], [0.9], with_masks=False)
    assert kinds(with_masks, {1: masks}) == {"box", "mask"} and kinds(with_masks, {}) == {"box", "mask"}
    assert kinds(with_masks, {1: boxes}) == {"box"} and kinds(without, {1: masks}) == {"box"}
    with_masks.has_masks = False  # boxes stand in for its masks
    assert kinds(with_masks, {1: masks}) == {"box"}


def test_kinds_of_a_model():
    config, scene = Config(num_classes=2), Scene([])
    for has_masks, names in ((True, ()), (True, ("nose",)), (False, ("nose",))):
        scene.has_masks, scene.keypoint_names = has_masks, names
        for branches in ((), ("mask",), ("keypoints",), ("keypoints", "mask")):
            expected = ["box", *["mask"] * (has_masks and "mask" in branches)]
            expected += ["keypoints"] * (bool(names) and "keypoints" in branches)
            assert kinds_of(config.replace(branches=branches), scene) == tuple(expected)


@pytest.mark.parametrize(
    "found, options, message",
    [
        ({3: rectangles([A], [1], [1])}, {}, "no image 3"),
        ({1: Detections([A], [1], [1], Scene.class_names, (9, 9))}, {}, "image 1 is 120 x 160"),
        ({1: Detections([A], [1], [1], ("cow",), SIZE)}, {}, "image 1: detections have other classes"),
        ({}, {"kinds": ("boxes",)}, "kinds = ..boxes"),
        ({}, {"kinds": ("keypoints",)}, "kinds = ..keypoints.*no keypoints"),
        ({}, {"max_keypoint_detections": 0}, "max_keypoint_detections = 0: at least 1"),
        ({}, {"max_detections": 0}, "max_detections = 0: at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(found, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_coco(Scene([(1, 1, A, 0)]), found, **options)


def test_an_image_that_is_there_twice_is_refused():
    """Its objects would be counted twice and found once."""
    scene = Scene([(1, 1, A, 0), (1, 1, A, 0), (2, 1, B, 0)], images=(2, 1, 1))
    with pytest.raises(ValueError, match="has the image 1 more than once"):
        evaluate_coco(scene, {1: rectangles([A], [1], [0.9])})


def test_results_are_saved_loaded_and_measured_alike(tmp_path, capsys):
    scene = Scene([(1, 1, A, 0), (2, 2, B, 0)])
    found = {1: rectangles([A, C], [1, 1], [0.9, 0.95]), 2: rectangles([B], [2], [0.123456789])}
    evaluation = evaluate_coco(scene, found)
    path = tmp_path / "results.json"
    evaluation.save_results(path)
    records = json.loads(path.read_text())
    assert [(item["image_id"], item["category_id"], item["score"]) for item in records] == [
        (1, 17, 0.9),
        (1, 17, 0.95),
        (2, 90, 0.123457),
    ]
    assert records[2]["bbox"] == [60.0, 60.0, 40.0, 40.0]
    assert set(records[2]["segmentation"]) == {"size", "counts"}
    again = evaluate_coco(scene, load_results(path, scene))
    np.testing.assert_equal(again.metrics, evaluation.metrics)
    assert again.results == evaluation.results
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no image 2"):
        load_results(records, Scene([], images=(1,)))
    with pytest.raises(ValueError, match="image 1: record 0: category_id 3 is unknown"):
        load_results([{**records[0], "category_id": 3}], scene)
    with pytest.raises(ValueError, match="list of records"):
        load_results([1], scene)
    path.write_text("{")
    with pytest.raises(ValueError, match="results.json: Expecting property"):
        load_results(path, scene)
    path.write_text(json.dumps([{**records[0], "score": None}]))
    with pytest.raises(ValueError, match="results.json: image 1: record 0: 'score' should be a number"):
        load_results(path, scene)
    boxes = evaluate_coco(scene, {1: rectangles([A], [1], [0.9], with_masks=False)})
    with pytest.raises(ValueError, match="kind = 'mask': the results have no segmentation"):
        boxes.save_results(path, kind="mask")


def test_the_table():
    scene = Scene([(1, 1, A, 0), (1, 1, C, 1)])
    evaluation = evaluate_coco(scene, {1: rectangles([A], [1], [0.9])})
    assert evaluation.table() == (
        "2 images, 1 objects, at most 100 detections an image\n"
        "\n"
        "         AP   AP50   AP75  APs    APm  APl    AR1   AR10  AR100  ARs    ARm  ARl\n"
        "box   1.000  1.000  1.000    -  1.000    -  1.000  1.000  1.000    -  1.000    -\n"
        "mask  1.000  1.000  1.000    -  1.000    -  1.000  1.000  1.000    -  1.000    -\n"
        "\n"
        "class  objects  images  box AP  box AP50  box AP75  mask AP  mask AP50  mask AP75\n"
        "cat          1       1   1.000     1.000     1.000    1.000      1.000      1.000\n"
        "dog          0       0       -         -         -        -          -          -\n"
    )
    assert evaluation.table(classes=False).count("\n") == 5


class Nuclei:
    """The first images of the nuclei as a data set."""

    class_names, category_ids = ("nucleus",), (1,)

    def __init__(self, count):
        content = json.loads(NUCLEI.read_text())
        self.images = content["images"][:count]
        self.image_ids = np.array([image["id"] for image in self.images])
        self.sizes = np.array([(image["height"], image["width"]) for image in self.images])
        wanted = set(self.image_ids.tolist())
        self.annotations = [item for item in content["annotations"] if item["image_id"] in wanted]
        self.categories = content["categories"]

    def to_coco(self):
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}


@pytest.mark.skipif(not NUCLEI.exists(), reason="the nuclei (shared/data/nuclei) are not there")
def test_real_ground_truth_is_a_perfect_detection_of_itself():
    dataset = Nuclei(20)
    records = [{**item, "score": 1.0} for item in dataset.annotations]
    evaluation = evaluate_coco(dataset, load_results(records, dataset), max_detections=400)
    assert evaluation.metrics["mask/AP"] == pytest.approx(1.0)
    assert evaluation.metrics["box/AP"] == pytest.approx(1.0)
    assert evaluation.object_count == len(records) > 400
