"""The keypoint branch's ends: the targets it learns from and the keypoints its heat maps stand for (section 5).

Shape letters: B images, R sampled RoIs per image, G ground-truth objects, P RoIs with a keypoint to learn, J keypoints,
N detections of all images, S side of a heat map.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.geometry import keypoints as keypoint_geometry
from mrcnn_tf.layers.base import Float32Layer, spec


@keras.saving.register_keras_serializable("mrcnn_tf")
class DecodeKeypoints(Float32Layer):
    """The place of each detection's keypoints: the maxima of its heat maps, stretched over its box.

    Call arguments:
        heatmaps: [N, S, S, J], logits. boxes: [N, 4] in pixels. classes: [N] int32, 0 padding.

    Returns:
        [N, J, 3] (y, x in pixels, the logit there); 0 for padding.
    """

    def call(self, heatmaps: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        # An empty box costs no resizing.
        boxes = tf.where((classes > 0)[:, None], boxes, 0.0)
        return keypoint_geometry.decode_heatmaps(heatmaps, boxes)

    def compute_output_spec(self, heatmaps, boxes, classes):
        return spec(heatmaps.shape[0], heatmaps.shape[-1], 3)


@keras.saving.register_keras_serializable("mrcnn_tf")
class KeypointTargets(Float32Layer):
    """The positive RoIs that have a keypoint to learn, and the cells where their heat maps should peak.

    RoIs without a visible keypoint inside would only cost time, so the branch does not see them. Where a batch has
    no other, one empty RoI without valid keypoints keeps every shape at least 1.

    Args:
        side: S.

    Call arguments:
        rois: [B, R, 4] in pixels. classes: [B, R] int32, above 0 for positives. matched: [B, R] int32, the object of
        each RoI. keypoints: [B, G, J, 3] (y, x in pixels, visibility).

    Returns:
        A dictionary of `rois` [P, 4], `image_index` [P] int32, `index` [P, J] int32 (row * S + column) and `valid`
        [P, J] float32 of 0 and 1.
    """

    def __init__(self, side: int, **kwargs):
        super().__init__(**kwargs)
        self.side = int(side)

    def call(self, rois: tf.Tensor, classes: tf.Tensor, matched: tf.Tensor, keypoints: tf.Tensor) -> dict:
        positive = tf.where(classes > 0)
        image_index = tf.cast(positive[:, 0], tf.int32)
        objects = tf.stack([image_index, tf.cast(tf.gather_nd(matched, positive), tf.int32)], axis=-1)
        own_rois = tf.gather_nd(rois, positive)
        own_keypoints = tf.gather_nd(keypoints, objects)
        index, valid = keypoint_geometry.heatmap_targets(own_keypoints, own_rois, self.side)
        useful = tf.where(tf.reduce_any(valid > 0.0, axis=1))[:, 0]
        found = {"rois": own_rois, "image_index": image_index, "index": index, "valid": valid}
        return {name: tf.stop_gradient(_at_least_one(tf.gather(value, useful))) for name, value in found.items()}

    def compute_output_spec(self, rois, classes, matched, keypoints):
        number = keypoints.shape[2]
        return {
            "rois": spec(None, 4),
            "image_index": spec(None, dtype="int32"),
            "index": spec(None, number, dtype="int32"),
            "valid": spec(None, number),
        }

    def get_config(self) -> dict:
        return {**super().get_config(), "side": self.side}


def _at_least_one(values: tf.Tensor) -> tf.Tensor:
    """`values` [P, ...], or one row of zeros where P is 0."""
    shape = tf.shape(values)
    missing = tf.cast(tf.equal(shape[:1], 0), tf.int32)
    filled = tf.concat([values, tf.zeros(tf.concat([missing, shape[1:]], axis=0), values.dtype)], axis=0)
    return tf.ensure_shape(filled, [None, *values.shape[1:]])
