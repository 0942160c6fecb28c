"""Keypoints' measures: OKS by hand, and pycocotools itself on the same records."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mrcnn_tf.coco_names import KEYPOINTS, SKELETON
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation.coco import evaluate_coco, load_results
from mrcnn_tf.evaluation.keypoints import OTHER_SIGMA, SIGMAS, sigmas_of

SIZE = (240, 320)
AREA = 50.0**2  # of every object: medium


class Posed:
    """A data set by hand: `objects` are (image_id, keypoints [J, 3] as in COCO's files, area, crowd)."""

    class_names, category_ids = ("person",), (1,)

    def __init__(self, objects, names=KEYPOINTS, images=(1, 2)):
        self.objects, self.names = objects, names
        self.image_ids, self.sizes = np.array(images), np.array([SIZE] * len(images))

    def to_coco(self):
        annotations = []
        for image_id, points, area, crowd in self.objects:
            record = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "area": area}
            record |= {"bbox": [20, 20, 100, 100], "iscrowd": crowd, "keypoints": np.reshape(points, -1).tolist()}
            annotations.append({**record, "num_keypoints": int((np.array(points)[:, 2] > 0).sum())})
        images = [{"id": int(number), "height": SIZE[0], "width": SIZE[1]} for number in self.image_ids]
        category = {"id": 1, "name": "person", "keypoints": list(self.names), "skeleton": np.add(SKELETON, 1).tolist()}
        return {"images": images, "annotations": annotations, "categories": [category]}


def pose(seed=0, count=17, hidden=()):
    """[J, 3] x, y, visibility of COCO; the keypoints `hidden` are not labelled."""
    points = np.concatenate([np.random.default_rng(seed).integers(30, 110, (count, 2)), np.full((count, 1), 2)], axis=1)
    points[list(hidden)] = 0
    return points


def found(*poses, scores=None, names=("person",)):
    """Detections with these keypoints [J, 2] (x, y as in COCO's files)."""
    count = len(poses)
    points = [[(y + 0.5, x + 0.5, 3.0) for x, y in np.array(one, float)[:, :2]] for one in poses]
    scores = np.linspace(0.9, 0.5, count) if scores is None else scores
    return Detections([[20, 20, 120, 120]] * count, [1] * count, scores, names, SIZE, keypoints=points)


def reference(scene, records, sigmas=None):
    """What pycocotools' own evaluation says of these records."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = scene.to_coco()
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(records), "keypoints")
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
    values = [math.nan if value == -1 else value for value in evaluator.stats]
    return {f"keypoints/{name}": value for name, value in zip(names, values)}


def test_perfect_keypoints():
    scene = Posed([(1, pose(0), AREA, 0), (1, pose(1), 120.0**2, 0), (2, pose(2, hidden=(3, 4)), AREA, 0)])
    metrics = evaluate_coco(scene, {1: found(pose(1), pose(0)), 2: found(pose(2))}).metrics
    # The hidden ones were "found" in the corner, which does not matter.
    names = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
    assert [name for name in metrics if name.startswith("keypoints/")] == [f"keypoints/{name}" for name in names]
    assert all(metrics[f"keypoints/{name}"] == pytest.approx(1.0) for name in names)
    assert "mask/AP" not in metrics and "box/AP" in metrics


def test_similarity_by_hand():
    # All seventeen shifted by d pixels where exp(-d^2 / (2 area (2 k)^2)) is .82 for a uniform k: right at seven
    # of the ten thresholds (.5 to .8).
    shift = 50 * 2 * OTHER_SIGMA * math.sqrt(-2 * math.log(0.82))
    scene = Posed([(1, pose(), AREA, 0)])
    shifted = {1: found(pose() + [shift, 0, 0])}
    metrics = evaluate_coco(scene, shifted, sigmas=[OTHER_SIGMA] * 17).metrics
    assert metrics["keypoints/AP"] == pytest.approx(0.7) and metrics["keypoints/AR"] == pytest.approx(0.7)
    assert metrics["keypoints/AP75"] == pytest.approx(1.0) and metrics["keypoints/APm"] == pytest.approx(0.7)
    assert math.isnan(metrics["keypoints/APl"])
    # On an object of four times the area the same shift is half of it: .82 ^ (1 / 4) is .951, at all thresholds.
    metrics = evaluate_coco(Posed([(1, pose(), 4 * AREA, 0)]), shifted, sigmas=[OTHER_SIGMA] * 17).metrics
    assert metrics["keypoints/AP"] == pytest.approx(1.0)
    # One keypoint far off and the others right: 16 / 17 = .94, nine thresholds.
    off = pose()
    off[5] += [500, 0, 0]
    assert evaluate_coco(scene, {1: found(off)}).metrics["keypoints/AP"] == pytest.approx(0.9)


@pytest.mark.parametrize("seed", range(4))
def test_pycocotools_says_the_same(seed, tmp_path):
    rng = np.random.default_rng(seed)
    objects, detections = [], {}
    for image_id in range(1, 9):
        poses = [pose(100 * seed + 10 * image_id + k, hidden=rng.permutation(17)[: 6 * k]) for k in range(4)]
        objects += [(image_id, one, float(rng.uniform(500, 20_000)), int(rng.random() < 0.2)) for one in poses]
        noisy = [one + np.pad(rng.normal(0, rng.uniform(0, 12), (17, 2)), [(0, 0), (0, 1)]) for one in poses * 6]
        detections[image_id] = found(*noisy, scores=rng.permutation(np.linspace(0.1, 0.9, 24)))
    scene = Posed(objects, images=range(1, 10))
    evaluation = evaluate_coco(scene, detections)
    evaluation.save_results(tmp_path / "keypoints.json", kind="keypoints")
    records = json.loads((tmp_path / "keypoints.json").read_text())
    # The server's format: nothing else is in it. 24 detections an image, of which 20 count.
    assert set(records[0]) == {"image_id", "category_id", "keypoints", "score"} and len(records) == 8 * 24
    measured = {name: value for name, value in evaluation.metrics.items() if name.startswith("keypoints/")}
    assert measured == pytest.approx(reference(scene, records), abs=1e-12, nan_ok=True)
    assert 0.05 < measured["keypoints/AP"] < 0.95
    again = evaluate_coco(scene, load_results(tmp_path / "keypoints.json", scene), kinds=("keypoints",))
    assert again.metrics == pytest.approx(measured, abs=1e-12, nan_ok=True)


def test_objects_without_keypoints_and_crowds_count_for_nothing():
    bare = pose(hidden=range(17))
    scene = Posed([(1, pose(), AREA, 0), (1, bare, AREA, 0), (1, pose(7), AREA, 1), (2, bare, AREA, 0)])
    near = np.full((17, 3), [70, 70, 2])  # inside of the box of the one without keypoints
    detections = {1: found(near, pose(7), pose()), 2: found(near)}
    metrics = evaluate_coco(scene, detections).metrics
    assert metrics["keypoints/AP"] == pytest.approx(1.0)
    everything = load_all(scene, detections)
    assert metrics["keypoints/AP"] == pytest.approx(reference(scene, everything)["keypoints/AP"])


def load_all(scene, detections):
    """The server's records of detections."""
    records = [record for number, one in detections.items() for record in one.to_coco(number, scene.category_ids)]
    return [{name: record[name] for name in ("image_id", "category_id", "keypoints", "score")} for record in records]


def test_other_keypoints_and_sigmas():
    names = ("beak", "tail", "left_foot")
    scene = Posed([(1, pose(count=3), AREA, 0)], names=names)
    shifted = {1: found(pose(count=3) + [4, 0, 0])}
    for sigmas in (None, [0.02, 0.2, 0.1]):
        metrics = evaluate_coco(scene, shifted, sigmas=sigmas).metrics
        expected = reference(scene, load_all(scene, shifted), sigmas or [0.05] * 3)
        assert metrics["keypoints/AP"] == pytest.approx(expected["keypoints/AP"])
    assert metrics["keypoints/AP"] < 1
    np.testing.assert_array_equal(sigmas_of(KEYPOINTS), Params(iouType="keypoints").kpt_oks_sigmas)
    assert len(SIGMAS) == 17 and sigmas_of(names).tolist() == [0.05] * 3
    assert sigmas_of(("a",) * 17).tolist() == [0.05] * 17  # seventeen others are not COCO's
    for wrong in ([0.1], [0.1, 0.1, 0.0]):
        with pytest.raises(ValueError, match="sigmas = .*: one positive number for each of the 3 keypoints"):
            evaluate_coco(scene, shifted, sigmas=wrong)


def test_limits_on_detections():
    scene = Posed([(1, pose(), AREA, 0)], images=(1,))
    wrong = [pose(k) for k in range(1, 25)]
    last = {1: found(*wrong, pose(), scores=np.linspace(0.9, 0.1, 25))}
    assert evaluate_coco(scene, last).metrics["keypoints/AR"] == 0.0  # the 25th of 20
    assert evaluate_coco(scene, last, max_keypoint_detections=30).metrics["keypoints/AR"] == pytest.approx(1.0)
    metrics = evaluate_coco(scene, last, max_keypoint_detections=30, max_detections=24).metrics
    assert metrics["keypoints/AR"] == 0.0


def test_keypoints_that_do_not_fit_are_refused():
    scene = Posed([(1, pose(), AREA, 0)])
    with pytest.raises(ValueError, match="image 1: detections with 3 keypoints, the data set has 17"):
        evaluate_coco(scene, {1: found(pose(count=3))})
    bare = Detections([[20, 20, 120, 120]], [1], [0.9], ("person",), SIZE)
    with pytest.raises(ValueError, match="image 1: detections with 0 keypoints, the data set has 17"):
        evaluate_coco(scene, {1: bare}, kinds="keypoints")
    assert "keypoints/AP" not in evaluate_coco(scene, {1: bare}).metrics


def test_the_table_with_keypoints():
    evaluation = evaluate_coco(Posed([(1, pose(), AREA, 0)]), {1: found(pose())})
    assert evaluation.table() == (
        "2 images, 1 objects, at most 100 detections an image\n"
        "\n"
        "        AP   AP50   AP75  APs    APm  APl    AR1   AR10  AR100  ARs    ARm  ARl\n"
        "box  1.000  1.000  1.000    -  1.000    -  1.000  1.000  1.000    -  1.000    -\n"
        "\n"
        "              AP   AP50   AP75    APm  APl     AR   AR50   AR75    ARm  ARl\n"
        "keypoints  1.000  1.000  1.000  1.000    -  1.000  1.000  1.000  1.000    -\n"
        "\n"
        "class   objects  images  box AP  box AP50  box AP75  keypoints AP  keypoints AP50  keypoints AP75\n"
        "person        1       1   1.000     1.000     1.000         1.000           1.000           1.000\n"
    )
