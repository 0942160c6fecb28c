"""Training targets of the box and mask branches.

Shape letters: B images, P proposals, G ground-truth objects (padded with class 0), R sampled RoIs of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.geometry import matching
from mrcnn_tf.layers.base import Float32Layer, spec

# A region with this share of itself inside a crowd is no background; IoU at which recall counts an object as found.
CROWD_COVER = 0.7
RECALL_IOU = 0.5
# Cells (in pixels) in which boxes are told apart for the random choice, and where the grid begins: off the lattice of
# multiples of a stride, on which untrained proposals stand and the last digit would decide about the cell. Cells of
# boxes of less than KEY_SIDE pixels are a half, a quarter or an eighth: what survives NMS stands so much closer there.
KEY_CELL, KEY_OFFSET, KEY_SIDE, KEY_OCTAVES = 3.7, 0.31, 29.6, 3


@keras.saving.register_keras_serializable("mrcnn_tf")
class DetectionTargets(Float32Layer):
    """The RoIs that the branches are trained on, 1 object to 3 background (section 3.1, training).

    The ground truth boxes join the proposals. A RoI is positive at IoU >= `positive_iou` with an object, else
    background, unless a crowd covers it. An image's sample depends on its proposals and its seed alone, not on the
    batch, its padding or the replica; two proposals that change places, or one that comes or goes, leave the rest of
    the sample as it is.

    Args:
        rois_per_image: R. positive_fraction: the share of positives, at most.
        positive_iou: overlap at which a RoI is positive. delta_weights: of the box coder.

    Call arguments:
        proposals: [B, P, 4], padded with empty boxes. proposal_scores: [B, P] (not used by this way of sampling).
        boxes: [B, G, 4]. classes: [B, G] int32. crowd: [B, G], 1 for a crowd. seed: [B, 2] int32 for each image.

    Returns:
        A dict: rois [B, R, 4]; classes [B, R] int32 (1..K, 0 background, -1 padding), positives first, so that all of
        them are among the first floor(R * positive_fraction); deltas [B, R, 4], 0 unless positive; matched [B, R]
        int32, the object's index in `boxes`; recall [B], the share of objects with a proposal at IoU >= .5 (the
        ground truth boxes left out; 0 without objects); gt_count [B] int32, the objects without crowds.
    """

    def __init__(
        self,
        rois_per_image: int = 512,
        positive_fraction: float = 0.25,
        positive_iou: float = 0.5,
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rois_per_image = int(rois_per_image)
        self.positive_fraction = float(positive_fraction)
        self.positive_iou = float(positive_iou)
        self.delta_weights = tuple(float(weight) for weight in delta_weights)

    @property
    def positives_per_image(self) -> int:
        """The most positives that an image can have; they stand first."""
        return int(self.rois_per_image * self.positive_fraction)

    def call(
        self,
        proposals: tf.Tensor,
        proposal_scores: tf.Tensor,
        boxes: tf.Tensor,
        classes: tf.Tensor,
        crowd: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        proposals = tf.stop_gradient(proposals)
        is_crowd = (classes > 0) & tf.cast(crowd, tf.bool)
        is_object = (classes > 0) & ~is_crowd
        candidates = tf.concat([proposals, tf.where(is_object[..., None], boxes, 0.0)], axis=1)
        overlap = tf.where(is_object[:, None, :], box_ops.iou(candidates, boxes), 0.0)  # [B, P + G, G]
        best = tf.reduce_max(overlap, axis=-1)
        real = box_ops.area(candidates) > 0.0
        cover = tf.where(is_crowd[:, None, :], box_ops.intersection_over_first(candidates, boxes), 0.0)
        in_crowd = tf.reduce_max(cover, axis=-1) >= CROWD_COVER
        positive = real & (best >= self.positive_iou)
        negative = real & (best < self.positive_iou) & ~in_crowd

        index, is_positive, is_sampled = self._sample(candidates, positive, negative, seed)
        rois = tf.where(is_sampled[..., None], tf.gather(candidates, index, batch_dims=1), 0.0)
        nearest = tf.argmax(overlap, axis=-1, output_type=tf.int32)
        matched = tf.where(is_positive, tf.gather(nearest, index, batch_dims=1), 0)
        own_boxes = tf.gather(boxes, matched, batch_dims=1)
        own_classes = tf.cast(tf.gather(classes, matched, batch_dims=1), tf.int32)
        deltas = box_ops.encode(own_boxes, rois, self.delta_weights)
        recall, gt_count = _recall(overlap[:, : tf.shape(proposals)[1]], is_object)
        targets = {
            "rois": rois,
            "classes": tf.where(is_positive, own_classes, tf.where(is_sampled, 0, -1)),
            "deltas": tf.where(is_positive[..., None], deltas, 0.0),
            "matched": matched,
            "recall": recall,
            "gt_count": gt_count,
        }
        return {name: tf.stop_gradient(value) for name, value in targets.items()}

    def _sample(self, candidates, positive, negative, seed):
        """Index of the candidate in each of the R slots, whether it is positive, whether the slot is filled: [B, R]."""
        slots = self.rois_per_image
        noise = matching.uniform_noise(seed, _cells(candidates))
        short = tf.maximum(slots - tf.shape(noise)[1], 0)
        noise, positive, negative = (tf.pad(values, [[0, 0], [0, short]]) for values in (noise, positive, negative))
        quota = self.positives_per_image
        value, positive_index = tf.math.top_k(tf.where(positive, noise, -1.0), k=quota)
        positives = tf.reduce_sum(tf.cast(value >= 0.0, tf.int32), axis=-1, keepdims=True)
        value, negative_index = tf.math.top_k(tf.where(negative, noise, -1.0), k=slots)
        negatives = tf.reduce_sum(tf.cast(value >= 0.0, tf.int32), axis=-1, keepdims=True)
        slot = tf.range(slots)[None]
        is_positive = slot < positives
        # Slot j holds the positive j, or once these are used up the negative j - positives.
        position = tf.where(is_positive, slot, quota + slot - positives)
        index = tf.gather(tf.concat([positive_index, negative_index], axis=1), position, batch_dims=1)
        is_sampled = slot < positives + negatives
        # A slot beyond the candidates points at padding; place 0 is always there to be read and thrown away.
        return tf.where(is_sampled, index, 0), is_positive, is_sampled

    def compute_output_spec(self, proposals, proposal_scores, boxes, classes, crowd, seed):
        batch, slots = proposals.shape[0], self.rois_per_image
        return {
            "rois": spec(batch, slots, 4),
            "classes": spec(batch, slots, dtype="int32"),
            "deltas": spec(batch, slots, 4),
            "matched": spec(batch, slots, dtype="int32"),
            "recall": spec(batch),
            "gt_count": spec(batch, dtype="int32"),
        }

    def get_config(self) -> dict:
        names = ("rois_per_image", "positive_fraction", "positive_iou", "delta_weights")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _cells(boxes):
    """The cells [B, N, 4] int32 of boxes [B, N, 4]: equal for boxes that differ in their last digits, seldom else."""
    side = tf.reduce_min(boxes[..., 2:] - boxes[..., :2], axis=-1, keepdims=True)
    octave = tf.floor(tf.math.log(tf.maximum(side, 1.0) / KEY_SIDE) / tf.math.log(2.0))
    cell = KEY_CELL * 2.0 ** tf.clip_by_value(octave, -KEY_OCTAVES, 0.0)
    return tf.cast(tf.floor(boxes / cell + KEY_OFFSET), tf.int32)


def _recall(overlap, is_object):
    """Share [B] of objects with an overlap [B, P, G] of at least RECALL_IOU, and their number [B]."""
    found = is_object & (tf.reduce_max(overlap, axis=1) >= RECALL_IOU)
    number = tf.reduce_sum(tf.cast(is_object, tf.int32), axis=-1)
    found = tf.reduce_sum(tf.cast(found, tf.float32), axis=-1)
    return tf.math.divide_no_nan(found, tf.cast(number, tf.float32)), number
