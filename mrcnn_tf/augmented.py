"""Test-time augmentation: one answer from several views of an image, at other scales and mirrored.

Shape letters: V views, D detections of an image, M mask side, S side of a heat map, J keypoints, H W pixels of the
image.

Each view is an image of its own to the network, with its own proposals, scores and NMS. What is found in all of them
goes, in the pixels of the original image, through one more NMS per class, and the best `max_per_image` stay: what
Detectron2 makes of augmented boxes. The mask and keypoint branches then see these same boxes in every view. Masks are
averaged as probabilities and heat maps as logits, both turned back first where the view was mirrored (of heat maps left
and right change places too), and a keypoint is the maximum of its mean heat map, as without augmentation.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf import untrained
from mrcnn_tf.config import Config, ConfigError, InputConfig
from mrcnn_tf.data.images import check_images, load_image
from mrcnn_tf.data.transforms import flip_boxes, mirrored_keypoints, prepare_image
from mrcnn_tf.detections import Detections
from mrcnn_tf.geometry.keypoints import decode_heatmaps
from mrcnn_tf.geometry.nms import nms_by_class

SCALES = (0.75, 1.0, 1.25)  # of the model's own shorter edge, where no edges are given


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The views of an image: each of the shorter edges and, with `flip`, each of them mirrored left to right too.

    The limit on the longer edge grows and shrinks with the shorter one.

    Args:
        shorter_edges: in pixels; () stands for .75, 1 and 1.25 times the model's own.
        flip: whether mirrored views are looked at as well.

    Raises:
        ConfigError: an edge that is no positive number of pixels, or one that stands twice.
    """

    shorter_edges: tuple[int, ...] = ()
    flip: bool = True

    def __post_init__(self):
        edges = tuple(int(edge) for edge in self.shorter_edges)
        if edges and min(edges) < 1:
            raise ConfigError(f"Augmentation.shorter_edges = {edges}: positive pixels")
        if len(set(edges)) < len(edges):
            raise ConfigError(f"Augmentation.shorter_edges = {edges}: each view once")
        object.__setattr__(self, "shorter_edges", edges)

    def views(self, config: InputConfig) -> list[tuple[InputConfig, bool]]:
        """What each view's image is prepared by, and whether it is mirrored."""
        own = config.shorter_edge[-1]
        edges = self.shorter_edges or tuple(dict.fromkeys(max(1, round(own * scale)) for scale in SCALES))
        inputs = [
            dataclasses.replace(config, shorter_edge=(edge,), longer_edge=max(edge, config.longer_edge * edge // own))
            for edge in edges
        ]
        return [(view, mirrored) for view in inputs for mirrored in ((False, True) if self.flip else (False,))]


def predict_augmented(
    model: Any,
    images: Sequence[Any],
    shorter_edges: Sequence[int] = (),
    flip: bool = True,
    score_threshold: float | None = None,
) -> list[Detections]:
    """Detections of pictures, in their own pixels, from several views of each: as `predict_images`, with more work.

    With the model's own shorter edge and without flip the answer is that of `predict_images`. One view is run at a
    time, but the feature maps of all are kept: 91 MB for 800 x 1333 pixels and a pyramid of 256 channels.

    Args:
        model: a `MaskRCNN`.
        images: paths or arrays, as `predict_images` takes them.
        shorter_edges, flip: the views, see `Augmentation`.
        score_threshold: drops detections below; None keeps all that the model gives.

    Raises:
        ConfigError: see `Augmentation`.
        DataError: a file that is missing or no image, or an array of another number of channels.
        TypeError: one path or one image in place of a list.
    """
    augmentation = Augmentation(tuple(shorter_edges), flip)
    channels, names = model.config.input.channels, model.config.class_names
    check_images(images, channels)
    found = [detect_augmented(model, load_image(image, channels), augmentation, names) for image in images]
    return found if score_threshold is None else [detections.filter(score_threshold) for detections in found]


def detect_augmented(
    model: Any, image: np.ndarray, augmentation: Augmentation, class_names: Sequence[str]
) -> Detections:
    """The detections of one image [H, W, C], values 0..255 in RGB, in its own pixels."""
    config = model.config
    find, describe = _functions(model)
    views = [_View(image, *view) for view in augmentation.views(config.input)]
    for view in views:
        view.find(find)
    boxes, classes, scores = (np.concatenate([getattr(view, name) for view in views]) for name in _FOUND)
    inner = np.concatenate([view.inner(config.anchors.shrink) for view in views])
    limit, nms_iou = config.detections.max_per_image, config.detections.nms_iou
    kept = nms_by_class(*(tf.constant(each) for each in (inner.astype(np.float32), scores, classes)), nms_iou, limit)
    kept = kept.numpy()
    described = _describe(describe, views, boxes, classes, kept, config)
    return Detections(
        boxes[kept],
        classes[kept],
        scores[kept],
        class_names,
        image.shape[:2],
        mask_threshold=config.detections.mask_threshold,
        paste=config.detections.paste,
        **described,
    )


_FOUND = ("boxes", "classes", "scores")


class _View:
    """One view of an image, and what the network finds in it.

    Attributes:
        boxes: [D, 4] float64 in pixels of the original image. classes, scores: [D].
        own_boxes: [D, 4] the same as the branches of this view take them.
    """

    def __init__(self, image: np.ndarray, config: InputConfig, mirrored: bool):
        self.mirrored = mirrored
        self._original = np.array(image.shape[:2])
        seen = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
        self._image, self._size = prepare_image(seen, config, config.shorter_edge[-1])
        self.factors = self._original / self._size.numpy()

    def find(self, find: Callable[[dict], dict]) -> None:
        """Runs the network as far as the boxes; the image is not needed any more then."""
        outputs = find({"image": self._image[None], "image_size": self._size[None]})
        del self._image
        self.maps = outputs["maps"]
        boxes, own, classes, scores = (outputs[name][0].numpy() for name in ("boxes", "inner", "classes", "scores"))
        # A network that has diverged answers with nan: nothing was found there.
        real = (classes > 0) & np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        height, width = self._original
        boxes = np.clip(boxes[real] * np.tile(self.factors, 2), 0, [height, width, height, width])
        self.boxes = flip_boxes(boxes, width) if self.mirrored else boxes
        self.own_boxes, self.classes, self.scores = own[real], classes[real], scores[real]

    def inner(self, shrink: float) -> np.ndarray:
        """`boxes` as the network's NMS takes them, the far corners moved by `shrink` of its pixels."""
        return _shrunk(self.boxes, shrink * self.factors)

    def boxes_of(self, boxes: np.ndarray, shrink: float) -> np.ndarray:
        """Boxes [D, 4] of the original image as this view's branches take them."""
        boxes = flip_boxes(boxes, self._original[1]) if self.mirrored else boxes
        return _shrunk(boxes / np.tile(self.factors, 2), np.full(2, shrink))


def _shrunk(boxes: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Boxes [D, 4] whose far corners lie nearer by `pixels` (y, x), but by half a box at most (`MoveFarCorner`)."""
    near, far = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([near, np.maximum(far - pixels, (near + far) / 2)], axis=1) if pixels.any() else boxes


def _describe(describe, views: list[_View], boxes, classes, kept: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Masks and keypoints of the `kept` boxes, averaged over the views, named as `Detections` takes them."""
    shrink, limit = config.anchors.shrink, config.detections.max_per_image
    first = np.cumsum([0, *(len(view.classes) for view in views)])
    missing = limit - len(kept)
    own_classes = np.pad(classes[kept], [0, missing])[None]
    answers, places = [], []
    for view, start, end in zip(views, first, first[1:]):
        place = view.boxes_of(boxes[kept], shrink).astype(np.float32)
        # A box that was found in this very view is taken as it was, without the rounding of the way there and back.
        is_own = (kept >= start) & (kept < end)
        place[is_own] = view.own_boxes[kept[is_own] - start]
        places.append(place)
        padded = np.pad(place, [[0, missing], [0, 0]])[None]
        answers.append(describe([*view.maps, padded, own_classes]))
    mirrored = [view.mirrored for view in views]
    described = {}
    if "mask" in config.branches:
        masks = [answer["masks"][0, : len(kept)].numpy() for answer in answers]
        described["mask_crops"] = mean_masks(masks, mirrored).astype(np.float16)
    if "keypoints" in config.branches:
        heatmaps = [answer["heatmaps"][: len(kept)].numpy() for answer in answers]
        mean = mean_heatmaps(heatmaps, mirrored, mirrored_keypoints(config.keypoint_head.names))
        points = _decode(mean, places[0]).numpy()  # the first view is never mirrored
        described["keypoints"] = points * np.array([*views[0].factors, 1.0])
    return described


def mean_masks(masks: Sequence[np.ndarray], mirrored: Sequence[bool]) -> np.ndarray:
    """The mean of V masks [D, M, M] of probabilities, those of mirrored views turned back: [D, M, M] float32."""
    turned = [mask[:, :, ::-1] if flipped else mask for mask, flipped in zip(masks, mirrored, strict=True)]
    return np.mean(turned, axis=0, dtype=np.float32)


def mean_heatmaps(heatmaps: Sequence[np.ndarray], mirrored: Sequence[bool], order: np.ndarray) -> np.ndarray:
    """The mean of V heat maps [D, S, S, J] of logits, those of mirrored views turned back: [D, S, S, J] float32.

    `order` [J] is that of `data.transforms.mirrored_keypoints`: a left hand is a right one in the mirror.
    """
    turned = [
        heatmap[:, :, ::-1][..., order] if flipped else heatmap
        for heatmap, flipped in zip(heatmaps, mirrored, strict=True)
    ]
    return np.mean(turned, axis=0, dtype=np.float32)


_decode = tf.function(decode_heatmaps, reduce_retracing=True)

# The two functions of each model, for as long as it lives: tracing again takes seconds.
_FUNCTIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _functions(model: Any) -> tuple[Callable[[dict], dict], Callable[[list], dict]]:
    """The model in two parts, each traced once: from an image to boxes and maps, and from these to the branches.

    The first takes {"image", "image_size"}, the second [maps..., boxes, classes].
    """
    untrained.warn_once(model)
    if model not in _FUNCTIONS:
        stages = model.stages
        image, image_size = stages["normalize"][0]
        maps = stages["box_align"][0][0]
        inner, classes, scores = stages["detections"][1]
        found = {"boxes": model.output["boxes"], "inner": inner, "classes": classes, "scores": scores, "maps": maps}
        described = {}
        if "masks" in model.output:
            described["masks"] = model.output["masks"]
        if "keypoints" in model.output:
            described["heatmaps"] = stages["keypoint_head"][1]
        _FUNCTIONS[model] = (
            _traced({"image": image, "image_size": image_size}, found),
            _traced([*maps, inner, classes], described) if described else lambda _: {},
        )
    return _FUNCTIONS[model]


def _traced(inputs: dict | list, outputs: dict) -> Callable[..., dict]:
    """The part of a graph between these symbolic tensors, for all sizes of images."""
    part = keras.Model(inputs, outputs)
    signature = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), inputs)
    return tf.function(lambda values: part(values, training=False), input_signature=[signature])
