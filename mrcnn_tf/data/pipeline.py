"""Batches for training and evaluation, as `tf.data` pipelines.

Shape letters: B images of a batch, H W padded pixels, C channels, G objects (the most of any image of
the batch, at least 1), S cells along a side of a mask crop, J keypoints.

A batch is a dictionary: image [B, H, W, C] float32 0..255, image_size [B, 2] int32 (what of it is
real), original_size [B, 2] int32, image_id [B] int64, boxes [B, G, 4] float32 in pixels of the
network's input, classes [B, G] int32 (0 is padding), crowd [B, G] uint8 and, where the model has these
branches, masks [B, G, S, S] uint8 and keypoints [B, G, J, 3] float32 (y, x in pixels of the network's
input, visibility 0..2; zeros where an object has none). Where the data set comes with proposals, they are in it too:
proposals [B, P, 4] float32 in pixels of the network's input, the best P = `rpn.post_nms_train` (`rpn.post_nms_test` in
evaluation), padded with empty boxes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.batch_plan import BatchPlan
from mrcnn_tf.data.iterators import end_iterators_elsewhere, loading
from mrcnn_tf.data.loader import EvaluationLoader, Loader, TrainingLoader
from mrcnn_tf.data.schema import Dataset
from mrcnn_tf.data.transforms import mirrored_keypoints

logger = logging.getLogger("mrcnn_tf")


def training_batches(
    dataset: Dataset,
    config: Config,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    plan: BatchPlan | None = None,
) -> tf.data.Dataset:
    """Shuffled and augmented batches without end, or `steps` of them.

    The batch of step s depends on the seed and on s alone: a run that starts at `start_step` goes on
    exactly as if it had not been interrupted. Images that cannot be read raise, or, in a data set read
    with skip_bad, are counted in its `problems` and replaced by the next of the plan.

    With `config.training.accumulate` a step takes that many batches; together they hold the images of the step that
    one large batch would have.

    Args:
        batch_size: images of the whole (global) batch; a `tf.distribute` strategy splits it.
        start_step, steps: counted in steps, not batches.
        plan: the plan to follow, for a caller who wants to ask it for image ids; of the images of a step.

    Returns:
        The batches. Their method `part(machine, machines, devices)` gives what one of several machines is to load:
        batches of one device, for each of its devices in turn.

    Raises:
        ConfigError: the data set's keypoints are not those of the model, or it has no proposals for heads alone.
        DataError: no image to train on. What is wrong with a single image comes out of the iteration
            as a TensorFlow error with the same text; see `errors.clear_data_errors`.
    """
    check_keypoints(dataset, config)
    check_proposals(dataset, config)
    _warn_of_branches(dataset, config)
    plan = plan or BatchPlan.of(dataset, config, batch_size * config.training.accumulate, seed)
    loader = TrainingLoader(dataset, config, plan, seed)
    first = start_step * plan.batch_size

    def part(machine: int = 0, machines: int = 1, devices: int = 1) -> tf.data.Dataset:
        if batch_size % (machines * devices):
            raise ValueError(f"batches of {batch_size} images cannot be shared out to {machines} x {devices} devices")
        own = batch_size // machines
        counter = tf.data.Dataset.counter(dtype=tf.int64)
        if steps is not None:
            counter = counter.take(steps * plan.batch_size // machines)
        positions = counter.map(lambda place: first + place // own * batch_size + machine * own + place % own)
        return _batches(positions, loader, config, own // devices)

    batches = part()
    batches.part = part
    return batches


def _warn_of_branches(dataset: Dataset, config: Config) -> None:
    """Tells what the branches would learn wrongly, or not at all, from a data set."""
    if "mask" in config.branches and not dataset.has_masks:
        logger.warning("%s has no masks: the model's mask branch learns rectangles, the objects' boxes", dataset.name)
    if "keypoints" not in config.branches:
        return
    names = config.keypoint_head.names
    if not dataset.keypoint_names:
        logger.warning("%s has no keypoints: the model's keypoint branch learns nothing from it", dataset.name)
    elif config.data.flip and len(names) > 1 and (mirrored_keypoints(names) == np.arange(len(names))).all():
        logger.warning(
            "none of the keypoints %s has a name with left or right: in mirrored images each stays what it is; if that "
            "is wrong for these objects, name the sides or set data.flip=False",
            ", ".join(names),
        )


def evaluation_batches(dataset: Dataset, config: Config, batch_size: int = 1) -> tf.data.Dataset:
    """Every image once, in order, as it is, with its objects; the last batch may be smaller.

    Images that cannot be read raise, or, in a data set read with skip_bad, are counted in its
    `problems` and left out.

    Raises:
        ConfigError: the data set's keypoints are not those of the model.
    """
    check_keypoints(dataset, config)
    loader = EvaluationLoader(dataset, config, config.rpn.post_nms_test)
    positions = tf.data.Dataset.range(len(dataset))
    return _batches(positions, loader, config, batch_size, drop_unreadable=dataset.skip_bad)


def evaluation_images(dataset: Dataset, config: Config) -> Iterator[tuple[int, np.ndarray]]:
    """(image id, the image [H, W, C] in its own pixels) of every image, in order.

    Images that cannot be read raise, or, in a data set read with skip_bad, are counted in its `problems` and left out.

    Raises:
        DataError: so it is.
    """
    loader = Loader(dataset, config, 0)
    for index in range(len(dataset)):
        read = loader.read(index)
        if read is not None:
            yield int(read[0].image_id), read[1]


def check_keypoints(dataset: Dataset, config: Config) -> None:
    """Refuses a data set with other keypoints than the model's: another number, or a name in another place.

    Raises:
        ConfigError: so it is; the message names both.
    """
    names, known = tuple(dataset.keypoint_names), config.keypoint_head.names
    if "keypoints" not in config.branches or not names:
        return
    moved = [name for place, name in enumerate(names) if name in known and known[place : place + 1] != (name,)]
    if len(names) != len(known) or moved:
        theirs, ours = (f"{len(one)} keypoints ({', '.join(one)})" for one in (names, known))
        raise ConfigError(f"{dataset.name} has {theirs}, the model {ours}; set keypoint_head.names to the data set's")


def check_proposals(dataset: Dataset, config: Config) -> None:
    """Refuses a data set without proposals where heads are trained without the RPN.

    Raises:
        ConfigError: so it is.
    """
    if "rpn" not in config.training.parts and dataset.proposals is None:
        remedy = "give it some with mrcnn_tf.with_proposals, or train the RPN as well"
        raise ConfigError(f"training.parts = {config.training.parts}: {dataset.name} comes without proposals; {remedy}")


def _batches(positions, loader: Loader, config: Config, batch_size: int, drop_unreadable: bool = False):
    end_iterators_elsewhere()
    fields = loader.fields

    def load(position):
        values = tf.numpy_function(
            functools.partial(loading, loader), [position], [kind for kind, _ in fields.values()], stateful=False
        )
        for value, (_, shape) in zip(values, fields.values()):
            value.set_shape(shape)
        return dict(zip(fields, values))

    # A fixed number of workers: what AUTOTUNE buffers grows with the memory of the machine.
    workers = max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16))
    batches = positions.map(load, num_parallel_calls=workers, deterministic=True)
    if drop_unreadable:
        batches = batches.filter(lambda item: item["image_size"][0] > 0)
    options = tf.data.Options()
    # Files cannot be dealt out to machines, only images can.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.padded_batch(batch_size).prefetch(2).with_options(options)
