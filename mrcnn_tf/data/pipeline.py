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

import logging
import os
import threading
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.cropping import Part, cut_example, fit_part, move_boxes, move_keypoints, random_part
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.iterators import end_iterators_elsewhere
from mrcnn_tf.data.masks import mask_crops
from mrcnn_tf.data.schema import Dataset, Example
from mrcnn_tf.data.transforms import (
    View,
    draw_view,
    fit_image,
    flip_boxes,
    flip_crops,
    flip_keypoints,
    mirrored_keypoints,
    scale_boxes,
    scale_keypoints,
)
from mrcnn_tf.geometry.resize import resized_size

logger = logging.getLogger("mrcnn_tf")

_BINS_PER_OCTAVE = 3
_MOST_REPLACEMENTS = 1000


class BatchPlan:
    """Which images form which training batch: a function of the seed and the step alone.

    An epoch shuffles all images, groups those of similar aspect ratio so that little of a batch is
    padding, and shuffles the batches. The images that an epoch lacks for its last batch are drawn
    from its own beginning, so that every epoch shows every image and has `steps_per_epoch` batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        drop_empty: bool = False,
        by_aspect: bool = True,
        min_keypoints: int = 0,
    ):
        """Plans batches of `batch_size`; `drop_empty` and `min_keypoints` leave out images as in `DataConfig`.

        `by_aspect` false leaves the aspect ratios mixed, which costs nothing where all images get one canvas.

        Raises:
            DataError: no image is left.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1")
        keep = np.arange(len(dataset))
        if drop_empty:
            keep = keep[dataset.object_counts() > 0]
        asked = "an object" if drop_empty else ""
        if min_keypoints and dataset.keypoint_names:
            keep = keep[dataset.keypoint_counts()[keep] >= min_keypoints]
            asked = f"data.min_keypoints = {min_keypoints}"
        if len(keep) == 0:
            reason = f"no image with {asked}" if asked else "no image"
            raise DataError(f"{dataset.name}: {reason} to train on; check the annotations", "nothing to train on")
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-len(keep) // batch_size)
        self._ids = dataset.image_ids
        self._keep = keep
        aspect = np.log2(dataset.sizes[keep, 1] / dataset.sizes[keep, 0])
        self._bins = np.round(aspect * _BINS_PER_OCTAVE * by_aspect).astype(np.int64)
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, dataset: Dataset, config: Config, batch_size: int, seed: int) -> BatchPlan:
        """The plan of a training by `config`."""
        data = config.data
        return cls(dataset, batch_size, seed, data.drop_empty, not data.crop, data.min_keypoints)

    def indices(self, step: int) -> np.ndarray:
        """[B] positions in the data set of the images of batch `step` (0, 1, ...)."""
        epoch, row = divmod(int(step), self.steps_per_epoch)
        with self._lock:
            if epoch not in self._epochs:
                if len(self._epochs) > 2:
                    self._epochs.pop(min(self._epochs))
                self._epochs[epoch] = self._plan(epoch)
            return self._epochs[epoch][row]

    def image_ids(self, step: int) -> list[int]:
        """The ids of the images of batch `step`."""
        return [int(i) for i in self._ids[self.indices(step)]]

    def _plan(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._keep))
        order = np.resize(order, self.steps_per_epoch * self.batch_size)  # repeats from the beginning
        order = order[np.argsort(self._bins[order], kind="stable")]
        batches = order.reshape(self.steps_per_epoch, self.batch_size)
        return self._keep[batches[rng.permutation(len(batches))]]


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
    loader = _TrainingLoader(dataset, config, plan, seed)
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
    loader = _EvaluationLoader(dataset, config, config.rpn.post_nms_test)
    positions = tf.data.Dataset.range(len(dataset))
    return _batches(positions, loader, config, batch_size, drop_unreadable=dataset.skip_bad)


def evaluation_images(dataset: Dataset, config: Config) -> Iterator[tuple[int, np.ndarray]]:
    """(image id, the image [H, W, C] in its own pixels) of every image, in order.

    Images that cannot be read raise, or, in a data set read with skip_bad, are counted in its `problems` and left out.

    Raises:
        DataError: so it is.
    """
    loader = _Loader(dataset, config, 0)
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


def _fields(config: Config) -> dict[str, tuple[tf.DType, list[int | None]]]:
    """What a loader gives of one image: names, types and shapes."""
    side = config.data.mask_crop
    fields = {
        "image": (tf.float32, [None, None, config.input.channels]),
        "image_size": (tf.int32, [2]),
        "original_size": (tf.int32, [2]),
        "image_id": (tf.int64, []),
        "boxes": (tf.float32, [None, 4]),
        "classes": (tf.int32, [None]),
        "crowd": (tf.uint8, [None]),
    }
    if "mask" in config.branches:
        fields["masks"] = (tf.uint8, [None, side, side])
    if "keypoints" in config.branches:
        fields["keypoints"] = (tf.float32, [None, len(config.keypoint_head.names), 3])
    return fields


def _batches(positions, loader: _Loader, config: Config, batch_size: int, drop_unreadable: bool = False):
    end_iterators_elsewhere()
    fields = loader.fields

    def load(position):
        values = tf.numpy_function(loader, [position], [kind for kind, _ in fields.values()], stateful=False)
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


class _Loader:
    """Makes the arrays of one image; called by `tf.data` from several threads. `proposals` is the number of these."""

    def __init__(self, dataset: Dataset, config: Config, proposals: int):
        self._dataset = dataset
        self._config = config
        self._proposals = proposals
        self.fields = _fields(config)
        if dataset.proposals is not None:
            self.fields["proposals"] = (tf.float32, [proposals, 4])
        self._mirrored = mirrored_keypoints(config.keypoint_head.names)

    def read(self, index: int) -> tuple[Example, np.ndarray] | None:
        """The record and its image; None where it cannot be read and may be skipped."""
        try:
            example = self._dataset.example(index)
            source = example.path if example.pixels is None else example.pixels
            return example, load_image(source, self._config.input.channels, example.size, example.source)
        except DataError as error:
            if not self._dataset.skip_bad:
                raise
            key = ("image", int(self._dataset.image_ids[index]))
            self._dataset.problems.add(error.kind, str(error), key=key)
            return None

    def _read(self, index: int) -> tuple[Example, np.ndarray] | None:
        """As `read`, for `tf.data`."""
        try:
            return self.read(index)
        except DataError as error:
            # The kind travels in the text, the only thing that TensorFlow keeps of an error.
            raise DataError(f"[{error.kind}] {error}", error.kind) from None

    def _arrays(self, example: Example, image: np.ndarray, view: View) -> tuple:
        config = self._config
        part = self._part(example, view)
        example = cut_example(example, part, view.flip)
        boxes = example.boxes
        if view.flip:
            image, boxes = image[:, ::-1], flip_boxes(boxes, example.size[1])
        none = (0, 1)[len(example) == 0]  # one row of padding, so that a batch never has G = 0
        arrays = (
            self._fitted(np.ascontiguousarray(image), part, view),
            np.array(part.shown, np.int32),
            np.array(example.size, np.int32),
            np.int64(example.image_id),
            np.pad(move_boxes(scale_boxes(boxes, example.size, part.size), part), [[0, none], [0, 0]]),
            np.pad(example.classes, [0, none]),
            np.pad(example.crowd.astype(np.uint8), [0, none]),
        )
        if "mask" in config.branches:
            crops = mask_crops(example, config.data.mask_crop)
            arrays += (np.pad(flip_crops(crops) if view.flip else crops, [[0, none], [0, 0], [0, 0]]),)
        if "keypoints" in config.branches:
            points = self._keypoints(example, part, view.flip)
            arrays += (np.pad(points, [[0, none], [0, 0], [0, 0]]),)
        if "proposals" in self.fields:
            arrays += (self._given_proposals(example, part, view.flip),)
        return arrays

    def _part(self, example: Example, view: View) -> Part:
        """What of the image is shown, and in which size."""
        if view.canvas is not None:
            return random_part(example.size, view.canvas, view.factor, view.place)
        size = resized_size(*example.size, view.shorter, self._config.input.longer_edge)[:2]
        return Part(size, (0, 0), size)

    def _fitted(self, image: np.ndarray, part: Part, view: View) -> np.ndarray:
        """The network's image [H, W, C]: the canvas, or the whole image with its padding."""
        with tf.device("CPU:0"):
            if view.canvas is not None:
                return fit_part(image, part, view.canvas).numpy()
            return fit_image(image, *part.size, self._config.input.size_divisor).numpy()

    def _given_proposals(self, example: Example, part: Part, flip: bool) -> np.ndarray:
        """[P, 4] float32 in the pixels of what is shown."""
        boxes = np.zeros((0, 4), np.float32)
        if example.image_id in self._dataset.proposals:
            boxes, _ = self._dataset.proposals.of(example.image_id, self._proposals)
        boxes = scale_boxes(flip_boxes(boxes, example.size[1]) if flip else boxes, example.size, part.size)
        return np.pad(move_boxes(boxes, part), [[0, self._proposals - len(boxes)], [0, 0]])

    def _keypoints(self, example: Example, part: Part, flip: bool) -> np.ndarray:
        """[G, J, 3] float32 in the pixels of what is shown."""
        points = example.keypoints
        if points is None:
            return np.zeros((len(example), len(self._mirrored), 3), np.float32)
        points = points.astype(np.float32)
        if flip:
            points = flip_keypoints(points, example.size[1], self._mirrored)
        return move_keypoints(scale_keypoints(points, example.size, part.size), part)


class _TrainingLoader(_Loader):
    def __init__(self, dataset: Dataset, config: Config, plan: BatchPlan, seed: int):
        super().__init__(dataset, config, config.rpn.post_nms_train)
        self._plan = plan
        self._seed = seed

    def __call__(self, position: np.ndarray) -> tuple:
        position = int(position)
        rng = np.random.default_rng([self._seed, position, 1])
        view = draw_view(rng, self._config.input, self._config.data)
        for offset in range(_MOST_REPLACEMENTS):
            step, row = divmod(position + offset, self._plan.batch_size)
            read = self._read(int(self._plan.indices(step)[row]))
            if read is not None:
                return self._arrays(*read, view)
        message = (
            f"{self._dataset.name}: {_MOST_REPLACEMENTS} images in a row could not be read; check the image folder"
        )
        raise DataError(message, "image unreadable")


class _EvaluationLoader(_Loader):
    def __call__(self, position: np.ndarray) -> tuple:
        read = self._read(int(position))
        config = self._config
        if read is None:
            fields = self.fields.values()
            return tuple(np.zeros([side or 1 for side in shape], kind.as_numpy_dtype) for kind, shape in fields)
        return self._arrays(*read, View(flip=False, shorter=config.input.shorter_edge[-1]))
