import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.layers.detection_targets import DetectionTargets

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def call(layer, proposals, boxes, classes, crowd=None, seed=(1, 2)):
    """One image, without the batch dimension."""
    proposals = np.reshape(proposals, (-1, 4)).astype(np.float32)
    boxes = np.reshape(boxes, (-1, 4)).astype(np.float32)
    crowd = np.zeros(len(boxes)) if crowd is None else crowd
    scores = np.ones(len(proposals), np.float32)
    inputs = (
        proposals,
        scores,
        boxes,
        np.array(classes, np.int32),
        np.array(crowd, np.uint8),
        np.array(seed, np.int32),
    )
    return {name: value[0].numpy() for name, value in layer(*(value[None] for value in inputs)).items()}


def random_boxes(count, seed=0, extent=200):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, extent, (count, 2))
    return np.concatenate([low, low + rng.uniform(10, 60, (count, 2))], axis=1).astype(np.float32)


def test_by_hand():
    box = [10, 10, 50, 50]
    proposals = [[10, 10, 50, 40], [100, 100, 140, 140], [0, 0, 0, 0], [10, 10, 50, 20]]
    targets = call(DetectionTargets(8, 0.5), proposals, [box, [0, 0, 0, 0]], [3, 0])
    # Positive: the first proposal (IoU .75) and the object's own box. Background: the second, and the fourth (.25).
    np.testing.assert_array_equal(targets["classes"], [3, 3, 0, 0, -1, -1, -1, -1])
    rois = {tuple(roi) for roi in targets["rois"][:2].tolist()}
    assert rois == {(10, 10, 50, 40), (10, 10, 50, 50)}
    assert {tuple(roi) for roi in targets["rois"][2:4].tolist()} == {(100, 100, 140, 140), (10, 10, 50, 20)}
    assert not targets["rois"][4:].any() and not targets["deltas"][2:].any()
    np.testing.assert_allclose(
        box_ops.decode(targets["deltas"][:2], targets["rois"][:2], WEIGHTS), [box, box], atol=1e-4
    )
    assert targets["recall"] == 1 and targets["gt_count"] == 1


def test_threshold_is_inclusive():
    targets = call(DetectionTargets(4, 0.5), [[0, 0, 10, 5], [0, 0, 10, 4.9]], [[0, 0, 10, 10]], [1])
    assert sorted(targets["classes"].tolist()) == [-1, 0, 1, 1]


def test_recall_counts_objects_with_a_proposal_and_leaves_out_crowds():
    boxes = [[0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 110, 110], [0, 0, 0, 0]]
    targets = call(DetectionTargets(8), [[0, 0, 10, 9]], boxes, [1, 1, 2, 0], crowd=[0, 0, 1, 0])
    assert targets["recall"] == pytest.approx(0.5) and targets["gt_count"] == 2


def test_quota_and_order_with_many_objects():
    boxes = random_boxes(40)
    proposals = np.concatenate([boxes + 1, random_boxes(500, 1, 2000) + 500])
    targets = call(DetectionTargets(64, 0.25), proposals, boxes, np.arange(1, 41))
    assert (targets["classes"][:16] > 0).all() and (targets["classes"][16:] == 0).all()
    # Each positive's class is that of the object it is matched to, the one of the highest overlap.
    overlap = box_ops.iou(targets["rois"][:16], boxes).numpy()
    np.testing.assert_array_equal(overlap.argmax(1), targets["matched"][:16])
    np.testing.assert_array_equal(targets["classes"][:16], targets["matched"][:16] + 1)
    assert len({tuple(roi) for roi in targets["rois"].tolist()}) == 64


def test_negatives_do_not_fill_in_for_padding_nor_positives_for_negatives():
    boxes = random_boxes(10)
    targets = call(DetectionTargets(64, 0.25), boxes, boxes, np.ones(10))
    # 20 positive candidates, a quota of 16, no background at all.
    assert (targets["classes"] == 1).sum() == 16 and (targets["classes"] == -1).sum() == 48


def test_no_objects():
    targets = call(DetectionTargets(16), random_boxes(30), [[0, 0, 0, 0]], [0])
    np.testing.assert_array_equal(targets["classes"], np.zeros(16))
    assert targets["recall"] == 0 and targets["gt_count"] == 0
    assert np.isfinite(targets["deltas"]).all()


def test_no_proposals_at_all_and_no_objects():
    targets = call(DetectionTargets(16), np.zeros((5, 4)), [[0, 0, 0, 0]], [0])
    np.testing.assert_array_equal(targets["classes"], np.full(16, -1))
    assert not targets["rois"].any()


def test_objects_are_their_own_proposals():
    targets = call(DetectionTargets(16), np.zeros((5, 4)), [[5, 5, 6, 6]], [2])  # a one-pixel object
    np.testing.assert_array_equal(targets["classes"], [2] + [-1] * 15)
    np.testing.assert_array_equal(targets["rois"][0], [5, 5, 6, 6])
    assert not targets["deltas"].any() and targets["recall"] == 0


def test_crowds_are_neither_object_nor_background():
    proposals = [[10, 10, 30, 30], [110, 110, 130, 130], [0, 0, 100, 100]]
    targets = call(DetectionTargets(8), proposals, [[0, 0, 100, 100]], [1], crowd=[1])
    # The first lies in the crowd, the third is the crowd; only the second is background.
    np.testing.assert_array_equal(targets["classes"], [0] + [-1] * 7)
    np.testing.assert_array_equal(targets["rois"][0], [110, 110, 130, 130])


def test_object_inside_a_crowd_is_learned():
    targets = call(
        DetectionTargets(8, 0.5), [[10, 10, 30, 30]], [[0, 0, 100, 100], [10, 10, 30, 31]], [1, 2], crowd=[1, 0]
    )
    assert (targets["classes"] == 2).sum() == 2 and (targets["matched"][:2] == 1).all()


def test_sample_depends_on_the_image_and_its_seed_alone():
    layer = DetectionTargets(32, 0.25)
    boxes, proposals = random_boxes(6), np.concatenate([random_boxes(6) + 2, random_boxes(200, 3)])
    alone = call(layer, proposals, boxes, np.arange(1, 7), seed=(5, 9))
    # In a batch, with more padding of the ground truth, and another image before it.
    padded = np.concatenate([boxes, np.zeros((9, 4), np.float32)])
    batch = layer(
        np.stack([random_boxes(len(proposals), 8), proposals]),
        np.ones((2, len(proposals)), np.float32),
        np.stack([random_boxes(15, 9), padded]),
        np.stack([np.ones(15), np.append(np.arange(1, 7), np.zeros(9))]).astype(np.int32),
        np.zeros((2, 15), np.uint8),
        np.array([[1, 1], [5, 9]], np.int32),
    )
    for name, value in alone.items():
        np.testing.assert_array_equal(batch[name][1], value, err_msg=name)
    other = call(layer, proposals, boxes, np.arange(1, 7), seed=(5, 10))
    assert (other["rois"] != alone["rois"]).any()


def test_order_and_number_of_proposals_leave_the_rest_of_the_sample():
    layer, proposals = DetectionTargets(32, 0.25), random_boxes(120, 3)
    boxes = proposals[:4] + 2

    def sample(some):
        targets = call(layer, some, boxes, [1, 2, 3, 4])
        return {(*roi, int(k)) for roi, k in zip(targets["rois"].tolist(), targets["classes"])}

    whole = sample(proposals)
    assert sample(proposals[::-1]) == whole
    # Each proposal that goes takes at most its own place away; a hair's breadth moves nobody out.
    for gone in range(10, 40, 4):
        assert len(whole - sample(np.delete(proposals, gone, axis=0))) <= 1
    moved = {tuple(np.round(row, 2)) for row in sample(proposals + np.float32(1e-4))}
    assert moved == {tuple(np.round(row, 2)) for row in sample(proposals + np.float32(2e-4))}


def test_every_candidate_gets_its_turn():
    proposals, steps = random_boxes(40, 1) + 300, 60
    seeds = np.stack([np.ones(steps), np.arange(steps)], axis=1).astype(np.int32)
    targets = DetectionTargets(10)(
        np.tile(proposals, (steps, 1, 1)),
        np.ones((steps, 40), np.float32),
        np.zeros((steps, 1, 4), np.float32),
        np.zeros((steps, 1), np.int32),
        np.zeros((steps, 1), np.uint8),
        seeds,
    )
    rois, counts = np.unique(targets["rois"].numpy().reshape(-1, 4), axis=0, return_counts=True)
    # 600 draws of 40 boxes: 15 each with a standard deviation of 3.4.
    assert len(rois) == 40 and counts.sum() == 600
    assert counts.min() > 2 and counts.max() < 32


@pytest.mark.parametrize(("side", "move"), [(8.0, 0.8), (16.0, 1.6), (32.0, 3.2), (128.0, 12.8)])
def test_close_proposals_are_chosen_apart(side, move):
    """Pairs at an IoU of .68, which NMS leaves: being taken says nothing about the other."""
    pairs = 400
    low = np.random.default_rng(0).uniform(0, 5000, (pairs, 2))
    one = np.concatenate([low, low + side], axis=1)
    assert box_ops.iou(one[None, :1], one[None, :1] + move).numpy().item() == pytest.approx(0.68, abs=0.01)
    targets = call(DetectionTargets(pairs), np.concatenate([one, one + move]), np.zeros((1, 4)), [0])
    taken = {tuple(row) for row in targets["rois"].tolist()}
    assert len(taken) == pairs
    first, second = (
        np.array([tuple(row) in taken for row in boxes.astype(np.float32).tolist()]) for boxes in (one, one + move)
    )
    # Half of all are taken: of one half of the pairs exactly one, 200 with a standard deviation of 10.
    assert 160 < (first != second).sum() < 240


def test_unknown_sizes_in_a_functional_model():
    shapes = [
        ((None, 4), "float32"),
        ((None,), "float32"),
        ((None, 4), "float32"),
        ((None,), "int32"),
        ((None,), "uint8"),
        ((2,), "int32"),
    ]
    inputs = [keras.Input(shape, dtype=dtype) for shape, dtype in shapes]
    layer = DetectionTargets(16)
    model = keras.Model(inputs, layer(*inputs))
    specs = {name: (value.shape, value.dtype) for name, value in model.output.items()}
    assert specs["rois"] == ((None, 16, 4), "float32") and specs["classes"] == ((None, 16), "int32")
    values = [
        tf.constant(random_boxes(12).reshape(2, 6, 4)),
        tf.ones([2, 6]),
        tf.constant(random_boxes(4, 5).reshape(2, 2, 4)),
        tf.constant([[1, 2], [3, 0]]),
        tf.constant([[0, 0], [0, 0]], tf.uint8),
        tf.constant([[1, 2], [3, 4]]),
    ]
    eager = layer(*values)
    for name, value in model(values).items():
        np.testing.assert_allclose(value, eager[name], atol=1e-5)
        assert value.dtype == specs[name][1]


def test_config_round_trip():
    layer = DetectionTargets(7, 0.1, 0.6, (1, 2, 3, 4), name="d")
    again = DetectionTargets.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.rois_per_image, again.positive_iou, again.delta_weights) == (7, 0.6, (1, 2, 3, 4))
