"""From an image in its own pixels to the network's input: resize, pad, flip, scale jitter.

Shape letters: H W pixels, C channels, G objects, J keypoints, S cells along a side of a mask crop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from mrcnn_tf.config import DataConfig, InputConfig
from mrcnn_tf.geometry.resize import resized_size_tf


def fit_image(image: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int, divisor: int) -> tf.Tensor:
    """Resizes to height x width and pads with zeros, at the bottom and right, to multiples of `divisor`.

    Bilinear with half-pixel centres and without antialiasing, the one definition for training,
    prediction and the exported model.

    Args:
        image: [H, W, C], of any number type.

    Returns:
        [ceil(height / divisor) * divisor, ceil(width / divisor) * divisor, C] float32.
    """
    resized = tf.cast(tf.image.resize(image, (height, width), antialias=False), tf.float32)
    return tf.pad(resized, [[0, -height % divisor], [0, -width % divisor], [0, 0]])


def prepare_image(image: tf.Tensor, config: InputConfig, shorter: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """What an image becomes before it enters the network (section 3.1: shorter edge of 800 pixels).

    Args:
        image: [H, W, C], values 0..255.
        config: its `shorter_edge`, `longer_edge` and `size_divisor` are used.
        shorter: the shorter edge in pixels; by default the last of `config.shorter_edge`.

    Returns:
        The padded image, float32 0..255, and [2] int32, the (height, width) that is real.
    """
    shape = tf.shape(image)
    shorter = config.shorter_edge[-1] if shorter is None else shorter
    height, width, _ = resized_size_tf(shape[0], shape[1], shorter, config.longer_edge)
    return fit_image(image, height, width, config.size_divisor), tf.stack([height, width])


@dataclass(frozen=True)
class View:
    """What chance decided for one training example: mirrored or not, and how much of it is seen in which size.

    Attributes:
        flip: whether it is mirrored left to right.
        shorter: the shorter edge in pixels; not used with a canvas.
        canvas: (height, width) that the image is brought to, or None for the whole image at its own size.
        factor: the image is scaled to fit the canvas times this.
        place: the (y, x) place of the part that is shown, each from 0 to 1, see `cropping.random_part`.
    """

    flip: bool
    shorter: int
    canvas: tuple[int, int] | None = None
    factor: float = 1.0
    place: tuple[float, float] = (0.0, 0.0)


def draw_view(rng: np.random.Generator, input_config: InputConfig, data_config: DataConfig) -> View:
    """Draws flip, size and part; the numbers drawn are the same whatever is switched on.

    The jitter's factor multiplies the shorter edge, and the bound on the longer edge stays; or the canvas.
    """
    flip, edge, share = rng.random(3)
    low, high = data_config.scale_jitter
    factor = low + share * (high - low)
    shorter = input_config.shorter_edge[int(edge * len(input_config.shorter_edge))]
    return View(
        flip=bool(data_config.flip and flip < 0.5),
        shorter=max(1, int(round(shorter * factor))),
        canvas=data_config.canvas,
        factor=float(factor),
        place=tuple(float(value) for value in rng.random(2)),
    )


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """[G, 4] boxes of an image of this width, mirrored left to right."""
    mirrored = boxes.copy()
    mirrored[:, 1], mirrored[:, 3] = width - boxes[:, 3], width - boxes[:, 1]
    return mirrored


def flip_crops(crops: np.ndarray) -> np.ndarray:
    """[G, S, S] mask crops, mirrored left to right."""
    return crops[:, :, ::-1]


# A side as a word of its own: "left_eye", "Left Eye", "eye-left", "L_Eye", "leftEye", "eyeLeft", but not "leftmost".
_SIDE = re.compile(r"(?:(?<![A-Za-z])(?:left|right|LEFT|RIGHT|[lrLR])|(?<![A-Z])(?:Left|Right))(?![a-z])")
_PAIRS = (("left", "right"), ("LEFT", "RIGHT"), ("Left", "Right"), ("l", "r"), ("L", "R"))
_OTHER_SIDE = dict(_PAIRS) | {right: left for left, right in _PAIRS}


def mirrored_keypoints(names: Sequence[str]) -> np.ndarray:
    """[J] which keypoint stands in each place once the image is mirrored: left_... for right_... and the reverse.

    The side may be any word of a name, also "l" or "r", whatever its case. A name without a partner ("nose", or
    "left_eye" alone) stays where it is.
    """
    places = {name: place for place, name in enumerate(names)}
    partners = [_SIDE.sub(lambda side: _OTHER_SIDE[side.group()], name) for name in names]
    return np.array([places.get(partner, place) for place, partner in enumerate(partners)], np.int64)


def flip_keypoints(keypoints: np.ndarray, width: float, order: np.ndarray) -> np.ndarray:
    """[G, J, 3] (y, x, visibility) of an image of this width, mirrored; `order` is that of `mirrored_keypoints`.

    Keypoints that are not labelled stay as they are.
    """
    mirrored = keypoints[:, order]
    mirrored[..., 1] = np.where(mirrored[..., 2] > 0, width - mirrored[..., 1], mirrored[..., 1])
    return mirrored


def scale_keypoints(keypoints: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """[G, J, 3] (y, x, visibility) of an image of `size` (height, width) in one of `new_size`."""
    return keypoints * np.array([new_size[0] / size[0], new_size[1] / size[1], 1.0], np.float32)


def scale_boxes(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """[G, 4] boxes of an image of `size` (height, width) in one of `new_size`, each axis by its own factor."""
    factors = np.array([new_size[0] / size[0], new_size[1] / size[1]] * 2, np.float32)
    return boxes * factors
