"""Non-maximum suppression of one image's boxes. The layers use the batched operation of TensorFlow.

Shape letters: N boxes, D boxes that are kept.
"""

from __future__ import annotations

import tensorflow as tf


def nms(boxes: tf.Tensor, scores: tf.Tensor, iou: float, max_boxes: int | tf.Tensor | None = None) -> tf.Tensor:
    """Indices [D] int32 of the boxes that are kept, best score first (equal scores: lower index first).

    A box goes when it overlaps a better kept box by more than `iou`.

    Args:
        boxes: [N, 4] pixels. scores: [N].
        iou: the overlap, in (0, 1].
        max_boxes: keep no more than this; None keeps all.
    """
    max_boxes = tf.shape(scores)[0] if max_boxes is None else max_boxes
    return tf.image.non_max_suppression(boxes, scores, max_boxes, iou_threshold=iou)


def nms_by_class(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    classes: tf.Tensor,
    iou: float,
    max_boxes: int | tf.Tensor | None = None,
) -> tf.Tensor:
    """As `nms`, but boxes [N, 4] suppress only those of the same class ([N] int32); indices [D], best score first."""
    distinct, index_of_class = tf.unique(classes)
    keep = tf.zeros_like(index_of_class, tf.bool)
    for_each = tf.range(tf.shape(distinct)[0])

    def keep_of_class(kept: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        members = tf.where(tf.equal(index_of_class, wanted))[:, 0]
        best = nms(tf.gather(boxes, members), tf.gather(scores, members), iou)
        chosen = tf.gather(members, best)
        return tf.tensor_scatter_nd_update(kept, chosen[:, None], tf.ones_like(chosen, tf.bool))

    keep = tf.foldl(keep_of_class, for_each, initializer=keep)
    order = tf.argsort(scores, direction="DESCENDING", stable=True)
    order = tf.boolean_mask(order, tf.gather(keep, order))
    return order if max_boxes is None else order[:max_boxes]
