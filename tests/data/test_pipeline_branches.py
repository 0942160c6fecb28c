"""Batches for networks with keypoints, with masks, with neither."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data import BatchPlan, DataError, Dataset, Example, evaluation_batches, training_batches


class Posed(Dataset):
    """One image of 40 x 60: a small person with a nose and two hands, one without keypoints; an image without any."""

    POINTS = np.array([[[10, 20, 2], [12, 30, 1], [0, 0, 0]], [[0, 0, 0]] * 3], np.float32)

    def __init__(self, names=("nose", "left_hand", "right_hand")):
        sizes = np.array([(40, 60), (40, 60)], np.int32)
        super().__init__("posed", ("person",), (1,), np.array([5, 6]), sizes, keypoint_names=tuple(names))

    def example(self, index):
        count = (2, 0)[index]
        boxes = np.array([[5, 10, 30, 40], [0, 0, 40, 60]], np.float32)[:count]
        return Example(
            *(int(self.image_ids[index]), None, np.zeros((40, 60, 3), np.uint8), (40, 60), boxes),
            *(np.ones(count, np.int32), np.zeros(count, bool), np.ones(count, np.float32)),
            tuple([[10, 5, 40, 5, 40, 30, 10, 30]] for _ in range(count)),
            keypoints=self.POINTS[:count] if self.keypoint_names else None,
        )


def keypoint_config(names=("nose", "left_hand", "right_hand"), branches=("keypoints",), **changes):
    small = Config().replace(input={"shorter_edge": 80, "longer_edge": 160})
    head = {"names": names, "skeleton": ()}
    return small.replace(num_classes=1, branches=branches, keypoint_head=head, **changes)


def test_keypoints_in_evaluation_batches():
    (batch,) = evaluation_batches(Posed(), keypoint_config(), 2)
    assert "masks" not in batch and batch["keypoints"].dtype == tf.float32
    # 40 x 60 by 2; an image without objects has a row of padding.
    assert batch["keypoints"].numpy().tolist() == [
        [[[20, 40, 2], [24, 60, 1], [0, 0, 0]], [[0, 0, 0]] * 3],
        [[[0, 0, 0]] * 3] * 2,
    ]
    (batch,) = evaluation_batches(Posed(), keypoint_config(branches=("mask", "keypoints")), 2)
    assert batch["keypoints"].shape == (2, 2, 3, 3) and batch["masks"].shape == (2, 2, 112, 112)
    (batch,) = evaluation_batches(Posed(), keypoint_config(branches=()), 2)
    assert not {"masks", "keypoints"} & set(batch)


def test_images_without_labelled_keypoints_can_be_left_out():
    """Of the two images only the first has keypoints: two of them, for what is not labelled does not count."""
    assert Posed().keypoint_counts().tolist() == [2, 0] and Posed(names=()).keypoint_counts().tolist() == [0, 0]
    assert Posed().subset([1, 0, 0]).keypoint_counts().tolist() == [0, 2, 2]
    for fewest, ids in ((0, {5, 6}), (1, {5}), (2, {5})):
        config = keypoint_config(data__min_keypoints=fewest)
        assert {int(batch["image_id"][0]) for batch in training_batches(Posed(), config, 1, steps=4)} == ids
    with pytest.raises(DataError, match="no image with data.min_keypoints = 3 to train on"):
        training_batches(Posed(), keypoint_config(data__min_keypoints=3), 1)
    # There is nothing to count in a data set without keypoints.
    batches = training_batches(Posed(names=()), keypoint_config(data__min_keypoints=3), 1, steps=4)
    assert {int(batch["image_id"][0]) for batch in batches} == {5, 6}


def test_keypoints_move_with_the_image():
    plan = BatchPlan(Posed(), 1, drop_empty=True)
    config = keypoint_config(input__shorter_edge=(40, 80))
    seen = set()
    for batch in training_batches(Posed(), config, 1, steps=20, plan=plan):
        scale = int(batch["image_size"][0, 0]) // 40
        box, points = batch["boxes"][0, 0].numpy() / scale, batch["keypoints"][0].numpy() / [scale, scale, 1]
        flipped = box.tolist() == [5, 20, 30, 50]
        assert flipped or box.tolist() == [5, 10, 30, 40]
        straight, mirrored = [[10, 20, 2], [12, 30, 1], [0, 0, 0]], [[10, 40, 2], [0, 0, 0], [12, 30, 1]]
        assert points[0].tolist() == (mirrored if flipped else straight)
        assert not points[1].any()
        seen.add((scale, flipped))
    assert len(seen) == 4


def test_masks_are_not_drawn_for_models_without_masks(monkeypatch):
    monkeypatch.setattr("mrcnn_tf.data.loader.mask_crops", lambda *_: pytest.fail("masks were drawn"))
    assert len(list(evaluation_batches(Posed(), keypoint_config(), 1))) == 2


def test_a_data_set_without_masks(caplog):
    boxes_alone = Posed()
    boxes_alone.has_masks = False
    training_batches(boxes_alone, keypoint_config(branches=()), 1)
    training_batches(Posed(), keypoint_config(branches=("mask",)), 1)
    assert not caplog.text
    training_batches(boxes_alone, keypoint_config(branches=("mask",)), 1)
    assert "posed has no masks: the model's mask branch learns rectangles" in caplog.text


def test_keypoints_without_sides_in_mirrored_images(caplog):
    unnamed = ("keypoint 1", "keypoint 2", "keypoint 3")
    training_batches(Posed(), keypoint_config(), 1)
    training_batches(Posed(unnamed), keypoint_config(unnamed, data__flip=False), 1)
    assert not caplog.text
    training_batches(Posed(unnamed), keypoint_config(unnamed), 1)
    assert "none of the keypoints keypoint 1, keypoint 2, keypoint 3 has a name with left or right" in caplog.text


def test_a_data_set_without_keypoints(caplog):
    (batch,) = training_batches(Posed(names=()), keypoint_config(), 2, steps=1)
    assert batch["keypoints"].shape == (2, 2, 3, 3) and not batch["keypoints"].numpy().any()
    assert "posed has no keypoints" in caplog.text


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("nose", "tail"), ["posed has 2 keypoints (nose, tail)", "3 keypoints (nose, left_hand, right_hand)"]),
        (("nose", "right_hand", "left_hand"), ["(nose, right_hand, left_hand)", "(nose, left_hand, right_hand)"]),
    ],
)
def test_other_keypoints_than_the_models_are_refused(names, named):
    for make in (lambda *a: training_batches(*a, 1), lambda *a: evaluation_batches(*a, 1)):
        with pytest.raises(ConfigError, match="set keypoint_head.names") as caught:
            make(Posed(names), keypoint_config())
        for text in named:
            assert text in str(caught.value)
        make(Posed(names), keypoint_config(branches=()))  # who does not ask for keypoints does not care
    evaluation_batches(Posed(("Nose", "hand, left", "hand, right")), keypoint_config())  # other words for the same
