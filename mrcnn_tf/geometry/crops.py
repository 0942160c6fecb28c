"""Bilinear samples of a feature map under boxes, with a gradient that adds up right.

Shape letters: B images, H W cells of the map, C channels, N boxes, S side of the output, G = S * samples.
"""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.custom_gradient import custom_gradient


def crop_and_average(
    feature: tf.Tensor, corners: tf.Tensor, image_index: tf.Tensor, size: int, samples: int
) -> tf.Tensor:
    """The mean of `samples` x `samples` bilinear samples in each of `size` x `size` bins of every box.

    The samples are those of `tf.image.crop_and_resize` to G x G. Its own gradient on a CPU is computed by several
    threads, which write to the same cells where boxes overlap and lose each other's sums (errors of percents); the
    gradient here is one product with a sparse matrix.

    Args:
        feature: [B, H, W, C] float32. corners: [N, 4] (y1, x1, y2, x2), centres of the outer samples, as shares of
            H - 1 and W - 1. image_index: [N] int32. size: S. samples: per bin and side.

    Returns:
        [N, S, S, C] float32. There is a gradient to `feature` alone.
    """
    corners = tf.stop_gradient(corners)

    @custom_gradient
    def crop(feature):
        grid = size * samples
        sampled = tf.image.crop_and_resize(feature, corners, image_index, [grid, grid])
        pooled = sampled if samples == 1 else tf.nn.avg_pool2d(sampled, samples, samples, "VALID")

        def gradient(upstream):
            return _spread(upstream, tf.shape(feature), corners, image_index, samples)

        return pooled, gradient

    return crop(feature)


def _spread(upstream, shape, corners, image_index, samples):
    """The gradient [B, H, W, C] of the map for that of the bins, `upstream` [N, S, S, C]."""
    number, size, channels = tf.shape(upstream)[0], upstream.shape[1], upstream.shape[3]
    cells = tf.cast(shape, tf.int64)
    row, row_weight = _taps(corners[:, 0], corners[:, 2], shape[1], size, samples)  # [N, S, 2 samples]
    column, column_weight = _taps(corners[:, 1], corners[:, 3], shape[2], size, samples)
    first_row = tf.cast(image_index, tf.int64)[:, None, None] * cells[1] + row
    # [N, S, 2 samples, S, 2 samples]: every pair of a row and a column that a bin reads.
    cell = first_row[:, :, :, None, None] * cells[2] + column[:, None, None, :, :]
    weight = row_weight[:, :, :, None, None] * column_weight[:, None, None, :, :]
    bins = tf.reshape(tf.range(tf.cast(number * size * size, tf.int64)), [-1, size, 1, size, 1])
    indices = tf.stack([tf.reshape(tf.broadcast_to(bins, tf.shape(cell)), [-1]), tf.reshape(cell, [-1])], axis=-1)
    pixels = cells[0] * cells[1] * cells[2]
    matrix = tf.SparseTensor(indices, tf.reshape(weight, [-1]), [tf.cast(number * size * size, tf.int64), pixels])
    spread = tf.sparse.sparse_dense_matmul(matrix, tf.reshape(upstream, [-1, channels]), adjoint_a=True)
    return tf.reshape(spread, shape)


def _taps(low, high, length, size, samples):
    """Along one side: the cells [N, S, 2 samples] int64 that each bin reads, and their weights."""
    grid = size * samples
    last = tf.cast(length - 1, tf.float32)
    if grid > 1:
        step = (high - low) * last / (grid - 1)
        position = low[:, None] * last + tf.range(grid, dtype=tf.float32)[None] * step[:, None]
    else:
        position = 0.5 * (low + high)[:, None] * last
    inside = (position >= 0.0) & (position <= last)
    below = tf.floor(position)
    share = position - below
    cells = tf.stack([below, tf.math.ceil(position)], axis=-1)
    weights = tf.stack([1.0 - share, share], axis=-1) * tf.where(inside, 1.0 / samples, 0.0)[..., None]
    cells = tf.cast(tf.clip_by_value(cells, 0.0, last), tf.int64)
    shape = [-1, size, 2 * samples]
    return tf.reshape(cells, shape), tf.reshape(weights, shape)
