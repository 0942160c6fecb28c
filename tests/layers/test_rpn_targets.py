import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.layers.anchors import Anchors
from mrcnn_tf.layers.rpn_targets import RPNTargets

SIZES = ((16,), (32,), (64,), (128,), (256,))


def anchors_of(height, width):
    features = [tf.zeros([1, -(-height // stride), -(-width // stride), 1]) for stride in (4, 8, 16, 32, 64)]
    return Anchors(SIZES, (0.5, 1, 2))(features)


def call(layer, anchors, boxes, classes=None, crowd=None, size=(64, 96), seed=(1, 2)):
    """One image; `boxes` [G, 4], padded with an empty row."""
    boxes = np.concatenate([np.reshape(boxes, (-1, 4)), np.zeros((1, 4))]).astype(np.float32)
    count = len(boxes)
    classes = np.append(np.ones(count - 1) if classes is None else classes, 0).astype(np.int32)
    crowd = np.append(np.zeros(count - 1) if crowd is None else crowd, 0).astype(np.uint8)
    inputs = (boxes, classes, crowd, np.array(size, np.int32), np.array(seed, np.int32))
    labels, deltas = layer(anchors, *(value[None] for value in inputs))
    return labels[0].numpy(), deltas[0].numpy()


def everything(**fields):
    """A layer that samples all there is, so that labels can be read off."""
    return RPNTargets(anchors_per_image=10**6, positive_fraction=0.5, **fields)


def test_labels_and_deltas_of_one_object():
    anchors = anchors_of(64, 96)
    flat = np.concatenate(anchors)
    box = np.array([[10, 20, 40, 52]], np.float32)
    labels, deltas = call(everything(), anchors, box)
    overlap = box_ops.iou(box, flat).numpy()[0]
    centre = (flat[:, :2] + flat[:, 2:]) / 2
    inside = (centre < [64, 96]).all(1)
    best = overlap == overlap[inside].max()
    expected = np.where((overlap >= 0.7) | best, 1, np.where(overlap < 0.3, 0, -1))
    np.testing.assert_array_equal(labels, np.where(inside, expected, -1))
    assert (labels == 1).sum() >= 1
    restored = box_ops.decode(deltas[labels == 1], flat[labels == 1]).numpy()
    np.testing.assert_allclose(restored, np.broadcast_to(box, restored.shape), atol=1e-3)
    assert not deltas[labels != 1].any()


@pytest.mark.parametrize("box", [[30, 40, 31, 41], [0, 0, 1, 1], [62.5, 94.5, 64, 96]])
def test_one_pixel_object_has_an_anchor(box):
    labels, deltas = call(RPNTargets(), anchors_of(64, 96), [box])
    assert (labels == 1).sum() >= 1
    assert np.isfinite(deltas).all()


def test_without_low_quality_matches_it_has_none():
    labels, _ = call(RPNTargets(low_quality_matches=False), anchors_of(64, 96), [[30, 40, 31, 41]])
    assert (labels == 1).sum() == 0


def test_no_objects_gives_background_only():
    labels, deltas = call(RPNTargets(anchors_per_image=100), anchors_of(64, 96), [])
    assert (labels == 1).sum() == 0 and (labels == 0).sum() == 100
    assert not deltas.any()


def test_sample_sizes_with_many_objects():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (80, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 30, (80, 2))], axis=1)
    labels, _ = call(RPNTargets(anchors_per_image=64, positive_fraction=0.25), anchors_of(64, 96), boxes)
    assert ((labels == 1).sum(), (labels == 0).sum()) == (16, 48)


def test_anchors_outside_the_real_image_are_left_out():
    anchors = anchors_of(64, 96)
    flat = np.concatenate(anchors)
    labels, _ = call(everything(), anchors, [[5, 5, 30, 30]], size=(32, 50))
    centre = (flat[:, :2] + flat[:, 2:]) / 2
    outside = (centre >= [32, 50]).any(1)
    assert (labels[outside] == -1).all() and (labels[~outside] >= 0).any()


def test_crowds_are_neither_object_nor_background():
    anchors = anchors_of(64, 96)
    flat = np.concatenate(anchors)
    crowd_box, box = [0, 0, 64, 60], [10, 10, 42, 42]
    labels, _ = call(everything(), anchors, [crowd_box, box], crowd=[1, 0])
    alone, _ = call(everything(), anchors, [box])
    covered = box_ops.intersection_over_first(flat, np.array([crowd_box], np.float32)).numpy()[:, 0] >= 0.7
    np.testing.assert_array_equal(labels == 1, alone == 1)  # positives inside a crowd stay
    assert not (labels[covered] == 0).any() and (alone[covered] == 0).any()
    np.testing.assert_array_equal(labels[~covered], alone[~covered])
    only_crowd, _ = call(everything(), anchors, [crowd_box], crowd=[1])
    assert (only_crowd == 1).sum() == 0


def test_sample_depends_on_the_image_and_its_seed_alone():
    layer = RPNTargets(anchors_per_image=32)
    boxes = np.array([[[5, 5, 40, 30], [20, 50, 60, 90]], [[0, 0, 20, 20], [0, 0, 0, 0]]], np.float32)
    classes, crowd = np.array([[1, 2], [1, 0]], np.int32), np.zeros((2, 2), np.uint8)
    size, seed = np.array([[64, 96], [100, 128]], np.int32), np.array([[7, 1], [8, 1]], np.int32)
    # Together they are padded to the larger size: other maps, other numbers of anchors.
    together = anchors_of(128, 128)
    labels, deltas = (v.numpy() for v in layer(together, boxes, classes, crowd, size, seed))
    alone_anchors = anchors_of(64, 96)
    alone, alone_deltas = call(layer, alone_anchors, boxes[0], classes[0], size=(64, 96), seed=(7, 1))

    def samples(anchors, labels, deltas):
        flat = np.concatenate(anchors)
        chosen = labels >= 0
        return {
            (*a, int(label), *d) for a, label, d in zip(flat[chosen].tolist(), labels[chosen], deltas[chosen].tolist())
        }

    assert samples(alone_anchors, alone, alone_deltas) == samples(together, labels[0], deltas[0])
    other, _ = call(layer, alone_anchors, boxes[0], classes[0], size=(64, 96), seed=(7, 2))
    assert (other != alone).any()


def test_unknown_sizes_in_a_functional_model():
    features = [keras.Input((None, None, 1)) for _ in range(5)]
    shapes = [((None, 4), "float32"), ((None,), "int32"), ((None,), "uint8"), ((2,), "int32"), ((2,), "int32")]
    truth = [keras.Input(shape, dtype=dtype) for shape, dtype in shapes]
    layer = RPNTargets(anchors_per_image=16)
    model = keras.Model([features, truth], layer(Anchors(SIZES, (0.5, 1, 2))(features), *truth))
    assert [(output.shape, output.dtype) for output in model.outputs] == [
        ((None, None), "int32"),
        ((None, None, 4), "float32"),
    ]
    values = [
        tf.constant([[[5.0, 5, 40, 30]], [[0, 0, 0, 0]]]),
        tf.constant([[1], [0]]),
        tf.constant([[0], [0]], tf.uint8),
        tf.constant([[64, 96]] * 2),
        tf.constant([[1, 2], [3, 4]]),
    ]
    maps = [tf.zeros([2, -(-64 // stride), -(-96 // stride), 1]) for stride in (4, 8, 16, 32, 64)]
    for result, expected in zip(model([maps, values]), layer(anchors_of(64, 96), *values)):
        np.testing.assert_array_equal(result, expected)


def test_config_round_trip():
    layer = RPNTargets(0.6, 0.2, False, 99, 0.3, name="t")
    again = RPNTargets.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.positive_iou, again.low_quality_matches, again.anchors_per_image) == (0.6, False, 99)
