"""Proposals: the regions that the proposal network finds worth a look.

Shape letters: B images, L pyramid levels, N_l anchors of a level, P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.layers.base import Float32Layer, spec


@keras.saving.register_keras_serializable("mrcnn_tf")
class Proposals(Float32Layer):
    """The best anchors of each level, moved by their deltas, cut to the image and thinned by NMS (section 3.1).

    Of each level the `pre_nms` best are taken, NMS works within the level, and the `post_nms` best of all levels stay.
    No gradient flows through.

    Args:
        pre_nms_train, post_nms_train: the two numbers in training; `pre_nms_test`, `post_nms_test` at inference.
        nms_iou: overlap above which the worse box goes.
        min_size: boxes with a side of no more pixels than this, once cut to the image, are dropped.

    Call arguments:
        logits: list of L tensors [B, N_l], objectness before the sigmoid.
        deltas: list of L tensors [B, N_l, 4].
        anchors: list of L tensors [N_l, 4] in pixels.
        image_size: [B, 2] (height, width) in pixels.

    Returns:
        boxes [B, P, 4] and objectness [B, P] in (0, 1), best first, padded with empty boxes of score 0; P = post_nms.
    """

    def __init__(
        self,
        pre_nms_train: int = 2000,
        pre_nms_test: int = 1000,
        post_nms_train: int = 2000,
        post_nms_test: int = 1000,
        nms_iou: float = 0.7,
        min_size: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.pre_nms_train = int(pre_nms_train)
        self.pre_nms_test = int(pre_nms_test)
        self.post_nms_train = int(post_nms_train)
        self.post_nms_test = int(post_nms_test)
        self.nms_iou = float(nms_iou)
        self.min_size = float(min_size)

    def call(
        self,
        logits: Sequence[tf.Tensor],
        deltas: Sequence[tf.Tensor],
        anchors: Sequence[tf.Tensor],
        image_size: tf.Tensor,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        pre_nms = self.pre_nms_train if training else self.pre_nms_test
        post_nms = self.post_nms_train if training else self.post_nms_test
        levels = [
            self._candidates(tf.stop_gradient(logit), tf.stop_gradient(delta), anchor, image_size, pre_nms)
            for logit, delta, anchor in zip(logits, deltas, anchors, strict=True)
        ]
        longest = tf.reduce_max([tf.shape(scores)[1] for _, scores in levels])
        # The levels stand where the operation expects classes: one NMS for each, then the best of all.
        boxes = tf.stack([_pad_to(boxes, longest, 0.0) for boxes, _ in levels], axis=2)
        scores = tf.stack([_pad_to(scores, longest, -float("inf")) for _, scores in levels], axis=2)
        boxes, scores, _, count = tf.image.combined_non_max_suppression(
            boxes,
            scores,
            max_output_size_per_class=post_nms,
            max_total_size=post_nms,
            iou_threshold=self.nms_iou,
            score_threshold=-float("inf"),
            clip_boxes=False,
        )
        found = tf.range(post_nms)[None] < count[:, None]
        return tf.where(found[..., None], boxes, 0.0), tf.where(found, tf.sigmoid(scores), 0.0)

    def _candidates(self, logits, deltas, anchors, image_size, pre_nms):
        """The best `pre_nms` of a level as boxes [B, k, 4] and logits [B, k]; -inf where a box is too small."""
        scores, index = tf.math.top_k(tf.cast(logits, tf.float32), k=tf.minimum(pre_nms, tf.shape(logits)[1]))
        deltas = tf.cast(tf.gather(deltas, index, batch_dims=1), tf.float32)
        boxes = box_ops.clip(box_ops.decode(deltas, tf.gather(anchors, index)), image_size)
        height, width = box_ops.sides(boxes)
        # Written so that a box of no number at all fails too.
        large = (height > self.min_size) & (width > self.min_size)
        return boxes, tf.where(large, scores, -float("inf"))

    def compute_output_spec(self, logits, deltas, anchors, image_size, training=None):
        batch = logits[0].shape[0]
        number = self.post_nms_train if training else self.post_nms_test
        return spec(batch, number, 4), spec(batch, number)

    def get_config(self) -> dict:
        names = ("pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test", "nms_iou", "min_size")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _pad_to(values: tf.Tensor, length: tf.Tensor, filling: float) -> tf.Tensor:
    """`values` [B, k, ...] padded to [B, length, ...]."""
    missing = length - tf.shape(values)[1]
    return tf.pad(values, [[0, 0], [0, missing]] + [[0, 0]] * (values.shape.rank - 2), constant_values=filling)
