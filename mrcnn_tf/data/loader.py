"""The arrays of one image, as they stand in a batch: read, cut, flipped, scaled and padded.

Shape letters: H W padded pixels, C channels, G objects (at least 1), J keypoints, P proposals. What each array holds
stands in `pipeline`.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.data.batch_plan import BatchPlan
from mrcnn_tf.data.cropping import Part, cut_example, fit_part, move_boxes, move_keypoints, random_part
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.images import load_image
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

_MOST_REPLACEMENTS = 1000


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


class Loader:
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


class TrainingLoader(Loader):
    """The image at a position of the plan, augmented; what is drawn depends on the seed and the position alone."""

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


class EvaluationLoader(Loader):
    """The image at a position of the data set, as it is; one without size where it cannot be read."""

    def __call__(self, position: np.ndarray) -> tuple:
        read = self._read(int(position))
        config = self._config
        if read is None:
            fields = self.fields.values()
            return tuple(np.zeros([side or 1 for side in shape], kind.as_numpy_dtype) for kind, shape in fields)
        return self._arrays(*read, View(flip=False, shorter=config.input.shorter_edge[-1]))
