"""Micro-batches of the real model, through `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data.batch_plan import BatchPlan
from mrcnn_tf.data.pipeline import training_batches
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.optimizer import SGD
from tests.support.tiny import calm, random_batch, tiny_config


def changes(model, before, batch):
    """What a step of `fit` on a batch, cut into micro-batches of one image, does to the weights, and the logs."""
    for weight, value in zip(model.weights, before):
        weight.assign(value)
    model.optimizer.iterations.assign(0)
    images = 2 // model.optimizer.accumulate if batch["image"].shape[0] == 2 else 1
    data = tf.data.Dataset.from_tensor_slices(batch).batch(images)
    history = model.fit(data, steps_per_epoch=1, verbose=0, shuffle=False).history
    assert int(model.optimizer.iterations) == 1
    found = {weight.path: old - weight.numpy() for weight, old in zip(model.weights, before)}
    return found, {name: value[0] for name, value in history.items()}


def worst(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 10
    return max(np.linalg.norm(ours[n] - theirs[n]) / max(np.linalg.norm(theirs[n]), 1e-6) for n in theirs)


def test_an_update_of_two_micro_batches():
    """It is the mean of theirs, and that of the joined batch where the counts are equal; with some weights frozen.

    The RPN's and the boxes' are equal, which sample a fixed number an image; the masks' are not.
    """
    keras.utils.set_random_seed(0)
    model = MaskRCNN(tiny_config(backbone__frozen_stages=2))
    calm(model)
    before = [weight.numpy() for weight in model.weights]
    batch = random_batch(2)
    results = {}
    for accumulate, batches in (
        (2, {"split": slice(0, 2)}),
        (1, {"joined": slice(0, 2), 0: slice(0, 1), 1: slice(1, 2)}),
    ):
        # So large a rate that the change of a weight shows every digit of its gradient.
        model.compile(SGD(1e4, momentum=0.0, l2=0.0, accumulate=accumulate))
        for name, images in batches.items():
            results[name] = changes(model, before, {key: value[images] for key, value in batch.items()})
    (split, logs), (first, first_logs), (second, second_logs) = (results[name] for name in ("split", 0, 1))
    still = {path for path, change in split.items() if not np.any(change)}
    assert still == {weight.path for weight in model.non_trainable_weights} and "stem/kernel" in still
    mean = {path: (first[path] + second[path]) / 2 for path in split}
    assert worst(split, mean) < 1e-4
    for name in ("loss", "mask_loss", "positive_rois"):
        assert logs[name] == pytest.approx((first_logs[name] + second_logs[name]) / 2, rel=1e-4)
    joined, joined_logs = results["joined"]
    own = [path for path in split if path.startswith(("rpn/", "box_"))]
    assert worst({path: split[path] for path in own}, {path: joined[path] for path in own}) < 1e-4
    for name in ("rpn_objectness_loss", "rpn_box_loss", "box_class_loss", "box_delta_loss"):
        assert logs[name] == pytest.approx(joined_logs[name], rel=1e-4)


def test_micro_batches_hold_the_images_of_a_step():
    data, config = shapes(10, (64, 64)), tiny_config(training__accumulate=3)
    plan = BatchPlan(data, 6, seed=5)
    found = [batch["image_id"].numpy() for batch in training_batches(data, config, 2, 5, start_step=1, steps=2)]
    assert [len(ids) for ids in found] == [2] * 6
    assert np.concatenate(found).tolist() == plan.image_ids(1) + plan.image_ids(2)


@pytest.mark.parametrize(("machines", "devices"), [(2, 1), (2, 3), (3, 2)])
def test_machines_share_out_every_batch(machines, devices):
    data, config = shapes(12, (64, 64)), tiny_config(training__accumulate=2)
    size = machines * devices * 2
    batches = training_batches(data, config, size, seed=1, start_step=1, steps=1)
    whole = [batch["image_id"].numpy() for batch in batches]
    parts = [[b["image_id"].numpy() for b in batches.part(m, machines, devices)] for m in range(machines)]
    assert all(len(part) == 2 * devices for part in parts)  # two micro-batches, one batch for each device
    for number, ids in enumerate(whole):
        found = [part[number * devices + device] for part in parts for device in range(devices)]
        np.testing.assert_array_equal(np.concatenate(found), ids)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    batches = training_batches(shapes(4, (64, 64)), tiny_config(), 4)
    with pytest.raises(ValueError, match="batches of 4 images cannot be shared out to 3 x 1 devices"):
        batches.part(0, 3)


def test_micro_batches_are_of_single_steps():
    """Keras counts a call as several steps then, of which all but one would be missing."""
    model = MaskRCNN(tiny_config(branches=()))
    model.compile(SGD(0.1, accumulate=2), steps_per_execution=4)
    with pytest.raises(ValueError, match="steps_per_execution = 4: .* compile the model without it"):
        model.fit(tf.data.Dataset.from_tensors(random_batch(1)), steps_per_epoch=4, verbose=0)
