"""The losses of Mask R-CNN: L = L_cls + L_box + L_mask with the two of the proposal network (section 3), keypoints (5).

Shape letters: B images, N anchors, R sampled RoIs, P positive RoIs, K classes, M mask side, J keypoints, S side of a
heat map.

Each function returns (total, count), float32 scalars summed over what one replica sees. The caller divides the total
by the count over all replicas, so loss and gradient do not depend on how a batch is split.
"""

from __future__ import annotations

import tensorflow as tf


def smooth_l1(x: tf.Tensor, beta: float) -> tf.Tensor:
    """x^2 / (2 beta) where |x| < beta, |x| - beta / 2 beyond; plain |x| for beta 0. Elementwise."""
    size = tf.abs(x)
    if beta == 0:
        return size
    return tf.where(size < beta, 0.5 * tf.square(x) / beta, size - 0.5 * beta)


def _count(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.float32))


def rpn_objectness_loss(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Binary cross-entropy over the sampled anchors; the count is their number.

    `logits` [B, N]; `labels` [B, N] int32: 1 object, 0 background, -1 not sampled.
    """
    sampled = labels >= 0
    # Whatever the unsampled logits are (infinite, say), they touch neither the loss nor the gradient.
    logits = tf.where(sampled, tf.cast(logits, tf.float32), 0.0)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(tf.equal(labels, 1), tf.float32), logits)
    return tf.reduce_sum(tf.where(sampled, loss, 0.0)), _count(sampled)


def rpn_box_loss(deltas: tf.Tensor, targets: tf.Tensor, labels: tf.Tensor, beta: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Smooth L1 over the positive anchors; the count is that of all sampled ones.

    `deltas`, `targets` [B, N, 4]; `labels` [B, N] int32 as in `rpn_objectness_loss`.
    """
    positive = tf.equal(labels, 1)[..., None]
    error = tf.where(positive, tf.cast(deltas, tf.float32) - targets, 0.0)
    return tf.reduce_sum(smooth_l1(error, beta)), _count(labels >= 0)


def box_class_loss(logits: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Softmax cross-entropy L_cls; the count is that of the sampled RoIs.

    `logits` [R, K + 1]; `classes` [R] int32: 0 background, -1 padding.
    """
    sampled = classes >= 0
    logits = tf.where(sampled[:, None], tf.cast(logits, tf.float32), 0.0)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(classes, 0), logits)
    return tf.reduce_sum(tf.where(sampled, loss, 0.0)), _count(sampled)


def box_delta_loss(
    deltas: tf.Tensor, targets: tf.Tensor, classes: tf.Tensor, beta: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Smooth L1 of the true class's deltas, L_box, over the positive RoIs; the count is that of all sampled ones.

    `deltas` [R, K, 4]; `targets` [R, 4]; `classes` [R] int32: 1..K, 0 background, -1 padding.
    """
    positive = tf.where(classes > 0)
    index = tf.concat([positive, tf.cast(tf.gather(classes, positive) - 1, tf.int64)], axis=-1)
    error = tf.cast(tf.gather_nd(deltas, index), tf.float32) - tf.gather_nd(targets, positive)
    return tf.reduce_sum(smooth_l1(error, beta)), _count(classes >= 0)


def mask_loss(logits: tf.Tensor, targets: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Binary cross-entropy of the k-th mask only, L_mask: the mean over pixels, summed over RoIs; the count is theirs.

    `logits` [P, M, M, K]; `targets` [P, M, M] of 0 and 1; `classes` [P] int32: 1..K, 0 ignores the RoI.
    """
    valid = tf.where(classes > 0)
    class_index = tf.gather_nd(classes, valid) - 1
    side = logits.shape[1]
    pixels = side * side
    count = tf.shape(valid)[0]
    # [P, M * M, K] -> [valid, M * M]: three coordinates for every pixel of every mask that counts.
    flat = tf.reshape(logits, [-1, pixels, logits.shape[-1]])
    roi = tf.broadcast_to(tf.cast(valid, tf.int32), [count, pixels])
    pixel = tf.broadcast_to(tf.range(pixels)[None], [count, pixels])
    own = tf.broadcast_to(class_index[:, None], [count, pixels])
    chosen = tf.cast(tf.gather_nd(flat, tf.stack([roi, pixel, own], axis=-1)), tf.float32)
    target = tf.gather_nd(tf.reshape(targets, [-1, pixels]), valid)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(target, chosen)
    return tf.reduce_sum(loss) / pixels, tf.cast(count, tf.float32)


def softmax_mask_loss(logits: tf.Tensor, targets: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The multinomial loss that table 2b compares `mask_loss` with: a softmax over the classes of every pixel.

    `logits` [P, M, M, K + 1], 0 the background; `targets` [P, M, M] of 0 and 1; `classes` [P] int32: 1..K, 0 ignores
    the RoI. Mean over pixels, summed over RoIs; the count is theirs.
    """
    labels = tf.cast(targets, tf.int32) * tf.maximum(classes, 0)[:, None, None]
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
    valid = tf.cast(classes > 0, tf.float32)
    return tf.reduce_sum(tf.reduce_mean(loss, axis=(1, 2)) * valid), tf.reduce_sum(valid)


def keypoint_loss(logits: tf.Tensor, index: tf.Tensor, valid: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Softmax cross-entropy over the cells of each visible keypoint's map (section 5); the count is that of keypoints.

    `logits` [P, S, S, J]; `index` [P, J] int32, row * S + column of the keypoint; `valid` [P, J], 0 ignores it.
    """
    cells = logits.shape[1] * logits.shape[2]
    # Most maps of a batch have no keypoint: they are left out before anything is computed.
    chosen = tf.where(valid > 0)
    maps = tf.transpose(tf.reshape(logits, [-1, cells, logits.shape[3]]), [0, 2, 1])
    maps = tf.cast(tf.gather_nd(maps, chosen), tf.float32)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather_nd(index, chosen), maps)
    return tf.reduce_sum(loss), tf.cast(tf.shape(chosen)[0], tf.float32)
