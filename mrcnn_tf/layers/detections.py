"""From class scores and deltas to detections, and the choice of the mask that counts.

Shape letters: B images, P proposals, K classes, D detections, N detections of all images, M mask side.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.layers.base import Float32Layer, spec


@keras.saving.register_keras_serializable("mrcnn_tf")
class DetectBoxes(Float32Layer):
    """Scores and boxes of every class, thinned by NMS class by class; the best stay (section 3.1, inference).

    Args:
        score_threshold: only scores above it count. nms_iou: overlap above which the worse box of a class goes.
        max_per_image: D. delta_weights: of the box coder.
        one_class_per_box: a proposal stands for its likeliest class alone, and for nothing where that is the
            background (Matterport's rule); else every class of it is tried, as in Faster R-CNN.
        min_size: boxes of no area, or with a side below it in pixels, are dropped.
        drop_small: whether that happens "before" NMS, or "after" it and after the choice of the best (Detectron2).

    Call arguments:
        class_logits: [B, P, K + 1], class 0 background. deltas: [B, P, K, 4].
        proposals: [B, P, 4] in pixels, padded with empty boxes. image_size: [B, 2] (height, width).

    Returns:
        boxes [B, D, 4] in pixels inside the image, classes [B, D] int32 (1..K, 0 padding), scores [B, D], best first.
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_per_image: int = 100,
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        one_class_per_box: bool = False,
        min_size: float = 0.0,
        drop_small: str = "before",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.score_threshold = float(score_threshold)
        self.nms_iou = float(nms_iou)
        self.max_per_image = int(max_per_image)
        self.delta_weights = tuple(float(weight) for weight in delta_weights)
        self.one_class_per_box = bool(one_class_per_box)
        self.min_size = float(min_size)
        self.drop_small = drop_small

    def call(
        self, class_logits: tf.Tensor, deltas: tf.Tensor, proposals: tf.Tensor, image_size: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        scores = tf.nn.softmax(tf.cast(class_logits, tf.float32), axis=-1)
        if self.one_class_per_box:
            scores, deltas = _likeliest_class(scores, deltas)
        else:
            scores = scores[..., 1:]
        boxes = box_ops.decode(tf.cast(deltas, tf.float32), proposals[:, :, None, :], self.delta_weights)
        boxes = box_ops.clip(boxes, image_size[:, None, :])
        if self.drop_small == "before":
            scores = tf.where(self._large(boxes), scores, 0.0)
        else:
            # Padding is no proposal at all.
            scores = tf.where((box_ops.area(proposals) > 0.0)[..., None], scores, 0.0)
        boxes, scores, classes, count = tf.image.combined_non_max_suppression(
            boxes,
            scores,
            max_output_size_per_class=self.max_per_image,
            max_total_size=self.max_per_image,
            iou_threshold=self.nms_iou,
            score_threshold=self.score_threshold,
            clip_boxes=False,
        )
        found = tf.range(self.max_per_image)[None] < count[:, None]
        if self.drop_small == "after":
            found &= self._large(boxes)
            # What was dropped leaves no gap: the rest moves up, in its order.
            order = tf.argsort(tf.cast(found, tf.int32), axis=-1, direction="DESCENDING", stable=True)
            found, boxes, scores, classes = (
                tf.gather(values, order, batch_dims=1) for values in (found, boxes, scores, classes)
            )
        classes = tf.where(found, tf.cast(classes, tf.int32) + 1, 0)
        return tf.where(found[..., None], boxes, 0.0), classes, tf.where(found, scores, 0.0)

    def _large(self, boxes: tf.Tensor) -> tf.Tensor:
        """Which boxes [..., 4] have an area, and sides of `min_size` at least; not those of no number."""
        height, width = box_ops.sides(boxes)
        return (tf.minimum(height, width) > 0.0) & (tf.minimum(height, width) >= self.min_size)

    def compute_output_spec(self, class_logits, deltas, proposals, image_size):
        batch, number = class_logits.shape[0], self.max_per_image
        return spec(batch, number, 4), spec(batch, number, dtype="int32"), spec(batch, number)

    def get_config(self) -> dict:
        names = ("score_threshold", "nms_iou", "max_per_image", "delta_weights")
        names += ("one_class_per_box", "min_size", "drop_small")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _likeliest_class(scores: tf.Tensor, deltas: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores [B, P, K] that are 0 but for each proposal's best class, and the deltas [B, P, 1, 4] of that class.

    One box for all classes is a form that the batched NMS takes; classes of score 0 do not count in it.
    """
    best = tf.argmax(scores, axis=-1, output_type=tf.int32)  # the first of equals: the background before all others
    one_hot = tf.one_hot(best, tf.shape(scores)[-1], on_value=True, off_value=False, dtype=tf.bool)
    deltas = tf.gather(deltas, tf.maximum(best - 1, 0)[..., None], axis=2, batch_dims=2)
    return tf.where(one_hot, scores, 0.0)[..., 1:], deltas


@keras.saving.register_keras_serializable("mrcnn_tf")
class SelectMasks(Float32Layer):
    """The mask of each detection's own class (section 3: mask and class prediction are decoupled).

    Args:
        activation: "sigmoid", or "softmax" over the classes and the background (table 2b).

    Call arguments:
        mask_logits: [N, M, M, L]; L is K, or 1 where one mask serves all classes, or K + 1 with the background first
            and a softmax. classes: [N] int32, 1..K, 0 padding.

    Returns:
        [N, M, M] in [0, 1]; 0 for padding.
    """

    def __init__(self, activation: str = "sigmoid", **kwargs):
        super().__init__(**kwargs)
        self.activation = activation

    def call(self, mask_logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        mask_logits, classes = tf.cast(mask_logits, tf.float32), tf.cast(classes, tf.int32)
        if self.activation == "softmax":
            own, values = classes, tf.nn.softmax(mask_logits, axis=-1)
        else:
            own = tf.zeros_like(classes) if mask_logits.shape[-1] == 1 else tf.maximum(classes - 1, 0)
            values = mask_logits
        masks = tf.gather(values, own[:, None], axis=3, batch_dims=1)[..., 0]
        masks = masks if self.activation == "softmax" else tf.sigmoid(masks)
        return tf.where((classes > 0)[:, None, None], masks, 0.0)

    def compute_output_spec(self, mask_logits, classes):
        return spec(*mask_logits.shape[:3])

    def get_config(self) -> dict:
        return {**super().get_config(), "activation": self.activation}
