"""Matching of anchors to objects, and the random choice of those that are trained on (section 3.1).

Shape letters: A anchors or candidates, G ground-truth objects, B images.
"""

from __future__ import annotations

import tensorflow as tf

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match_anchors(
    iou: tf.Tensor,
    valid_gt: tf.Tensor | None,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The object of each anchor, and whether the anchor is an example of it.

    Args:
        iou: [G, A] with G at least 1, the overlap of every object with every anchor; the long dimension is last for
            the sake of speed.
        valid_gt: [G] bool, False for padding and crowds, which nothing is matched to; None where all rows count.
        positive_iou: at or above it an anchor is positive.
        negative_iou: below it an anchor is negative; in between it is ignored.
        low_quality: the anchors that overlap an object most are positive too, whatever the overlap (above 0). They
            keep their own best object, as in Faster R-CNN.

    Returns:
        matched [A] int32, the object of highest overlap (the first of equals; 0 without objects), and labels [A]
        int32: 1 positive, 0 negative, -1 ignored.
    """
    if valid_gt is not None:
        iou = tf.where(valid_gt[:, None], iou, 0.0)
    best = tf.reduce_max(iou, axis=0)
    matched = tf.argmax(iou, axis=0, output_type=tf.int32)
    labels = tf.where(best >= positive_iou, POSITIVE, tf.where(best < negative_iou, NEGATIVE, IGNORED))
    if low_quality:
        best_of_object = tf.reduce_max(iou, axis=1, keepdims=True)
        # 2 is no overlap: an object that nothing touches has no best anchor.
        best_of_object = tf.where(best_of_object > 0.0, best_of_object, 2.0)
        labels = tf.where(tf.reduce_any(tf.equal(iou, best_of_object), axis=0), POSITIVE, labels)
    return matched, labels


def sample_labels(labels: tf.Tensor, noise: tf.Tensor, count: int, positive_fraction: float) -> tf.Tensor:
    """`labels` [A] int32 (1, 0, -1) with all but `count` of the 0 and 1 turned into -1.

    At most floor(count * positive_fraction) positives stay, negatives fill the rest; among equals those of the
    largest `noise` [A] (values in [0, 1)) stay.
    """
    size = tf.shape(labels)[0]
    quota = int(count * positive_fraction)
    positive = _largest(tf.equal(labels, POSITIVE), noise, tf.minimum(quota, size))
    room = count - tf.shape(positive)[0]
    negative = _largest(tf.equal(labels, NEGATIVE), noise, tf.minimum(room, size))
    sampled = tf.fill([size], IGNORED)
    sampled = tf.tensor_scatter_nd_update(sampled, negative[:, None], tf.fill(tf.shape(negative), NEGATIVE))
    return tf.tensor_scatter_nd_update(sampled, positive[:, None], tf.fill(tf.shape(positive), POSITIVE))


def _largest(mask: tf.Tensor, noise: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Indices of the (at most `count`) largest `noise` [A] where `mask` [A]."""
    value, index = tf.math.top_k(tf.where(mask, noise, -1.0), k=count)
    return tf.boolean_mask(index, value >= 0.0)


def uniform_noise(seed: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Numbers in [0, 1) that depend on an image's seed and an item's own key only.

    A sequence of random numbers would give an anchor another number as soon as the batch is padded to another
    size; a hash of what the anchor is gives the same sample in any batch, on any replica and on any device.

    Args:
        seed: [..., 2] int32, one pair for each image.
        keys: [..., A, k] int32 or float32, what tells the items of one image apart.

    Returns:
        [..., A] float32 with 24 random bits.
    """
    if keys.dtype == tf.float32:
        keys = tf.bitcast(keys, tf.int32)
    words = tf.bitcast(keys, tf.uint32)
    seed = tf.bitcast(seed, tf.uint32)[..., None, :]
    state = _mix(seed[..., 0] ^ tf.constant(0x9E3779B9, tf.uint32))
    state = _mix(state ^ seed[..., 1])
    for i in range(keys.shape[-1]):
        state = _mix((state ^ words[..., i]) + tf.constant(0x9E3779B9, tf.uint32))
    return tf.cast(tf.bitwise.right_shift(state, tf.constant(8, tf.uint32)), tf.float32) * (1.0 / (1 << 24))


def _mix(value: tf.Tensor) -> tf.Tensor:
    """A bijection of 32-bit words that lets every bit reach every other (the `lowbias32` constants)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = value ^ tf.bitwise.right_shift(value, tf.constant(shift, tf.uint32))
        value = value * tf.constant(factor, tf.uint32)
    return value ^ tf.bitwise.right_shift(value, tf.constant(16, tf.uint32))
