"""RoIs between the two forms the network needs: per image and padded, or flat with an image index.

Shape letters: B images, N RoIs per image, P positive RoIs of the whole batch, R sampled RoIs per
image, G ground-truth objects, M mask side.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.geometry import masks as mask_geometry


@keras.saving.register_keras_serializable("mrcnn_tf")
class FlattenRoIs(keras.layers.Layer):
    """values of RoIs [B, N, ...] -> values [B * N, ...] and the image [B * N] int32 that each belongs to."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"}, autocast=False)

    def call(self, values):
        shape = tf.shape(values)
        flat = tf.reshape(values, tf.concat([[-1], shape[2:]], axis=0))
        flat.set_shape([None, *values.shape[2:]])
        return flat, tf.repeat(tf.range(shape[0]), shape[1])

    def compute_output_spec(self, values):
        return keras.KerasTensor((None, *values.shape[2:]), values.dtype), keras.KerasTensor((None,), "int32")


@keras.saving.register_keras_serializable("mrcnn_tf")
class UnflattenRoIs(keras.layers.Layer):
    """values [B * N, ...] and boxes [B, N, 4] -> values [B, N, ...]."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"}, autocast=False)

    def call(self, values, boxes):
        shape = tf.shape(boxes)
        output = tf.reshape(values, tf.concat([shape[:2], tf.shape(values)[1:]], axis=0))
        output.set_shape([boxes.shape[0], boxes.shape[1], *values.shape[1:]])
        return output

    def compute_output_spec(self, values, boxes):
        shape = (boxes.shape[0], boxes.shape[1], *values.shape[1:])
        return keras.KerasTensor(shape, values.dtype)


@keras.saving.register_keras_serializable("mrcnn_tf")
class MaskTargets(keras.layers.Layer):
    """The positive RoIs of a batch and the masks they should predict (section 3.1, training).

    The mask branch runs on these P RoIs alone: the loss is defined on positives only, and most
    sampled RoIs are background. Where a batch has none, one empty RoI of class 0, which the loss
    ignores, keeps every shape at least 1.

    Call: rois [B, R, 4], classes [B, R] int32, matched [B, R] int32 (index of the object), boxes
    [B, G, 4], masks [B, G, S, S] uint8 crops of the objects' own boxes -> a dictionary of `rois`
    [P, 4], `image_index` [P] int32, `classes` [P] int32, `targets` [P, M, M] float32 of 0 and 1.
    """

    def __init__(self, side: int, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"}, autocast=False)
        self.side = side

    def call(self, rois, classes, matched, boxes, masks):
        positive = tf.where(classes > 0)
        none = tf.cast(tf.equal(tf.shape(positive)[0], 0), tf.int32)
        positive = tf.concat([positive, tf.zeros([none, 2], tf.int64)], axis=0)
        image_index = tf.cast(positive[:, 0], tf.int32)
        crop_index = image_index * tf.shape(boxes)[1] + tf.gather_nd(matched, positive)
        rois = tf.gather_nd(rois, positive)
        flat_masks = tf.reshape(masks, tf.concat([[-1], tf.shape(masks)[2:]], axis=0))
        targets = mask_geometry.mask_targets(
            flat_masks, crop_index, tf.gather(tf.reshape(boxes, [-1, 4]), crop_index), rois, self.side
        )
        return {
            "rois": tf.stop_gradient(rois),
            "image_index": image_index,
            "classes": tf.maximum(tf.gather_nd(classes, positive), 0),
            "targets": tf.stop_gradient(targets),
        }

    def compute_output_spec(self, rois, classes, matched, boxes, masks):
        return {
            "rois": keras.KerasTensor((None, 4), "float32"),
            "image_index": keras.KerasTensor((None,), "int32"),
            "classes": keras.KerasTensor((None,), "int32"),
            "targets": keras.KerasTensor((None, self.side, self.side), "float32"),
        }

    def get_config(self):
        return {**super().get_config(), "side": self.side}
