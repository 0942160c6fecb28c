"""Training targets of the region proposal network.

Shape letters: B images, L pyramid levels, N anchors of all levels, G ground-truth objects (padded with class 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import matching
from mrcnn_tf.layers.base import Float32Layer, spec

# An anchor with this share of itself inside a crowd says nothing about background.
CROWD_COVER = 0.7


@keras.saving.register_keras_serializable("mrcnn_tf")
class RPNTargets(Float32Layer):
    """Which anchors are objects, which are background, and the deltas to learn (section 3.1; Faster R-CNN 3.1.2).

    Anchors whose centre lies outside the real image, and anchors inside a crowd, are left out. An image's sample
    depends on that image and its seed alone, not on the batch, its padding, or the replica.

    Args:
        positive_iou, negative_iou, low_quality_matches: see `matching.match_anchors`.
        anchors_per_image: how many anchors are sampled; positive_fraction: the share of positives, at most.

    Call arguments:
        anchors: list of L tensors [N_l, 4].
        boxes: [B, G, 4]. classes: [B, G] int32, 0 padding. crowd: [B, G], 1 for a crowd.
        image_size: [B, 2] (height, width) in pixels.
        seed: [B, 2] int32, an image's own random seed.

    Returns:
        labels [B, N] int32 (1 object, 0 background, -1 not sampled); deltas [B, N, 4], 0 unless the label is 1.
    """

    def __init__(
        self,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        low_quality_matches: bool = True,
        anchors_per_image: int = 256,
        positive_fraction: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.positive_iou = float(positive_iou)
        self.negative_iou = float(negative_iou)
        self.low_quality_matches = bool(low_quality_matches)
        self.anchors_per_image = int(anchors_per_image)
        self.positive_fraction = float(positive_fraction)

    def call(
        self,
        anchors: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        classes: tf.Tensor,
        crowd: tf.Tensor,
        image_size: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        anchors = tf.concat(list(anchors), axis=0)
        # Image by image: overlaps of every anchor with every object are the largest tensor of the training step.
        labels, deltas = tf.map_fn(
            lambda image: self._targets_of_image(anchors, *image),
            (boxes, classes, crowd, image_size, seed),
            fn_output_signature=(tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, 4], tf.float32)),
        )
        return tf.stop_gradient(labels), tf.stop_gradient(deltas)

    def _targets_of_image(self, anchors, boxes, classes, crowd, image_size, seed):
        is_object = classes > 0
        is_crowd = is_object & tf.cast(crowd, tf.bool)
        # One empty box behind the objects, which overlaps nothing, so that there is always one to look at.
        objects = tf.pad(tf.boolean_mask(boxes, is_object & ~is_crowd), [[0, 1], [0, 0]])
        crowds = tf.boolean_mask(boxes, is_crowd)
        centres = 0.5 * (anchors[:, :2] + anchors[:, 2:])
        inside = tf.reduce_all((centres >= 0.0) & (centres < tf.cast(image_size, tf.float32)), axis=-1)
        # An anchor outside cannot be the best of an object, so that every object gets an anchor that counts.
        overlap = box_ops.iou(objects, tf.where(inside[:, None], anchors, 0.0))
        matched, labels = matching.match_anchors(
            overlap, None, self.positive_iou, self.negative_iou, self.low_quality_matches
        )
        cover = box_ops.intersection(crowds, anchors)
        in_crowd = tf.reduce_any(cover >= CROWD_COVER * box_ops.area(anchors), axis=0)
        labels = tf.where(in_crowd & (labels != matching.POSITIVE), matching.IGNORED, labels)
        labels = tf.where(inside, labels, matching.IGNORED)
        noise = matching.uniform_noise(seed, anchors)
        labels = matching.sample_labels(labels, noise, self.anchors_per_image, self.positive_fraction)
        return labels, _deltas_of_positives(labels, matched, objects, anchors)

    def compute_output_spec(self, anchors, boxes, classes, crowd, image_size, seed):
        sizes = [level.shape[0] for level in anchors]
        number = None if None in sizes else sum(sizes)
        return spec(boxes.shape[0], number, dtype="int32"), spec(boxes.shape[0], number, 4)

    def get_config(self) -> dict:
        names = ("positive_iou", "negative_iou", "low_quality_matches", "anchors_per_image", "positive_fraction")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _deltas_of_positives(labels, matched, objects, anchors):
    """Deltas [N, 4], computed for the few positive anchors only."""
    positive = tf.where(tf.equal(labels, matching.POSITIVE))
    own_objects = tf.gather(objects, tf.gather_nd(matched, positive))
    deltas = box_ops.encode(own_objects, tf.gather_nd(anchors, positive))
    return tf.scatter_nd(positive, deltas, tf.shape(anchors, out_type=tf.int64))
