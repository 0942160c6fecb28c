"""Bilinear samples of a feature map under boxes, each of which has its own number of them.

Shape letters: B images, H W cells of the map, C channels, N boxes, S side of the output; n the boxes of one chunk and
M all their samples.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mrcnn_tf.custom_gradient import custom_gradient

# Values that the samples of one chunk of boxes hold together: 256 MB.
_CHUNK_VALUES = 2**26


def crop_adaptively(
    feature: tf.Tensor,
    low: tf.Tensor,
    step: tf.Tensor,
    counts: tf.Tensor,
    image_index: tf.Tensor,
    size: int,
    reduce: str = "mean",
) -> tf.Tensor:
    """The mean or the maximum of the bilinear samples in each of `size` x `size` bins, as many as a box asks for.

    Boxes are taken in chunks, so that memory stays bounded. As in `crop_and_average`, a sample beyond the centres of
    the outer cells is 0, and the gradient is a product with a sparse matrix, since TensorFlow's own loses sums. Samples
    that are all the largest of their bin share its gradient.

    Args:
        feature: [B, H, W, C] float32, H and W at least 2. low: [N, 2] (y, x), the corner of each box in cells, where
            cell (i, j) has its centre at (i, j). step: [N, 2], cells from one sample to the next. counts: [N, 2] int64,
            rows and columns of samples in a bin; a box with none gives 0. image_index: [N] int32. size: S.
            reduce: "mean" or "max".

    Returns:
        [N, S, S, C] float32. There is a gradient to `feature` alone.
    """
    boxes = {"low": low, "step": step, "counts": counts, "image": image_index}
    boxes = {name: tf.stop_gradient(value) for name, value in boxes.items()}
    channels = feature.shape[-1]

    @custom_gradient
    def crop(feature):
        shape = tf.shape(feature)

        def pool(pooled, samples, place):
            own = _reduced(_values(feature, samples), samples["bin"], reduce)
            return tf.tensor_scatter_nd_update(pooled, place, tf.reshape(own, [-1, size, size, channels]))

        def gradient(upstream):
            def spread(total, samples, place):
                rows = tf.reshape(tf.gather(upstream, place[:, 0]), [-1, channels])
                if reduce == "mean":
                    return total + _to_cells(rows, samples["bin"], samples, samples["share"], shape)
                rows = _to_largest(rows, _values(feature, samples), samples["bin"])
                return total + _to_cells(rows, tf.range(tf.shape(rows, tf.int64)[0]), samples, 1.0, shape)

            total = tf.zeros([shape[0] * shape[1] * shape[2], channels])
            return tf.reshape(_over_chunks(spread, total, boxes, size, shape), shape)

        pooled = tf.zeros([tf.shape(low)[0], size, size, channels])
        return _over_chunks(pool, pooled, boxes, size, shape), gradient

    return crop(feature)


def _over_chunks(body: Callable, start, boxes, size, shape):
    """`start` after `body`(value so far, the chunk's samples, the places [n, 1] of its boxes) of all chunks."""
    own = size * size * boxes["counts"][:, 0] * boxes["counts"][:, 1]
    # Where and how a sample reads takes as much memory as some 64 values.
    limit = _CHUNK_VALUES // (start.shape[-1] + 64)
    chunk_of_box = tf.where(own > 0, (tf.cumsum(own) - 1) // limit, -1)
    chunks = tf.reduce_max(tf.concat([chunk_of_box, [-1]], axis=0)) + 1

    def one(chunk, value):
        place = tf.where(tf.equal(chunk_of_box, chunk))
        samples = _samples({name: tf.gather(values, place[:, 0]) for name, values in boxes.items()}, size, shape)
        return chunk + 1, tf.ensure_shape(body(value, samples, place), start.shape)

    # One at a time: chunks side by side would hold their samples side by side.
    state = (tf.constant(0, tf.int64), start)
    return tf.while_loop(lambda chunk, _: chunk < chunks, one, state, parallel_iterations=1)[1]


def _samples(boxes, size, shape):
    """The M samples of n `boxes` that all have some, bin by bin, each key [M]: `bin`, counted over the boxes; `share`
    of the bin's mean; `image`; and `point` [M, 2], the place as shares of H - 1 and W - 1."""
    in_bin = boxes["counts"][:, 0] * boxes["counts"][:, 1]
    end = tf.cumsum(size * size * in_bin)
    number = tf.range(tf.reduce_sum(size * size * in_bin))
    box = tf.searchsorted(end, number, side="right", out_type=tf.int64)
    counts, number = tf.gather(boxes["counts"], box), number - tf.gather(end - size * size * in_bin, box)
    in_bin = tf.gather(in_bin, box)
    bin_in_box, number = number // in_bin, number % in_bin
    bin_place = tf.stack([bin_in_box // size, bin_in_box % size], axis=-1)
    place = bin_place * counts + tf.stack([number // counts[:, 1], number % counts[:, 1]], axis=-1)
    position = tf.gather(boxes["low"], box) + (tf.cast(place, tf.float32) + 0.5) * tf.gather(boxes["step"], box)
    return {
        "bin": box * (size * size) + bin_in_box,
        "share": 1.0 / tf.cast(in_bin, tf.float32),
        "image": tf.gather(boxes["image"], box),
        "point": position / tf.cast(shape[1:3] - 1, tf.float32),
    }


def _values(feature, samples):
    """What samples read, [M, C]."""
    corners = tf.tile(samples["point"], [1, 2])
    return tf.image.crop_and_resize(feature, corners, samples["image"], [1, 1])[:, 0, 0]


def _reduced(values, bins, reduce):
    """[n S S, C] of the `values` [M, C] of samples; `bins` [M] ascends and leaves none out."""
    return tf.math.segment_mean(values, bins) if reduce == "mean" else tf.math.segment_max(values, bins)


def _to_largest(upstream, values, bins):
    """The gradient of samples [M, C] for that of their bins' maxima, `upstream` [n S S, C]."""
    largest = tf.cast(tf.equal(values, tf.gather(_reduced(values, bins, "max"), bins)), tf.float32)
    return largest * tf.gather(upstream / tf.math.segment_sum(largest, bins), bins)


def _to_cells(upstream, row, samples, share, shape):
    """The gradient [B H W, C] of all cells, where each sample passes `share` [M] of `upstream`'s row `row` [M] on."""
    last = tf.cast(shape[1:3] - 1, tf.float32)
    position = samples["point"] * last  # to the bit where crop_and_resize reads
    inside = tf.reduce_all((position >= 0.0) & (position <= last), axis=-1)
    below = tf.floor(position)
    part = tf.stack([1.0 - (position - below), position - below], axis=1)  # [M, 2, 2]: before and after; y and x
    cell = tf.clip_by_value(tf.stack([below, tf.math.ceil(position)], axis=1), 0.0, last)
    cell, cells = tf.cast(cell, tf.int64), tf.cast(shape, tf.int64)
    # [M, 2, 2]: each of two rows with each of two columns.
    first = tf.cast(samples["image"], tf.int64)[:, None, None] * cells[1] + cell[:, :, None, 0]
    cell = first * cells[2] + cell[:, None, :, 1]
    weight = tf.where(inside, share, 0.0)[:, None, None] * part[:, :, None, 0] * part[:, None, :, 1]
    indices = tf.stack([tf.repeat(row, 4), tf.reshape(cell, [-1])], axis=-1)
    matrix_shape = [tf.shape(upstream, tf.int64)[0], cells[0] * cells[1] * cells[2]]
    matrix = tf.SparseTensor(indices, tf.reshape(weight, [-1]), matrix_shape)
    return tf.sparse.sparse_dense_matmul(matrix, upstream, adjoint_a=True)
