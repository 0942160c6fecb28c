"""The RoI layers that RoIAlign is compared with (tables 2c, 2d and 6): RoIPool, RoIWarp and cropping by the corners.

Shape letters: B images, H W the map of one level, C channels, n regions on that map, S side of the output, m bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.custom_gradient import custom_gradient
from mrcnn_tf.geometry import crops
from mrcnn_tf.layers.roi_align import RoIAlign, RoILayer

# What bins' heights and widths in cells are compared with; no map has more cells along a side.
_POWERS = tuple(2**power for power in range(16))


def make_roi_layer(
    kind: str,
    size: int,
    strides: Sequence[int] = (4, 8, 16, 32),
    samples: int = 2,
    reduce: str = "mean",
    half_pixel: bool = True,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    name: str | None = None,
) -> RoILayer:
    """The RoI layer `kind`: "align", "pool", "warp" or "crop", with the arguments of `RoIAlign`.

    What a kind has no use for is left aside: "pool" always takes the maximum of whole cells, "crop" single samples;
    neither they nor "warp" know `half_pixel`.
    """
    common = {"canonical_size": canonical_size, "canonical_level": canonical_level, "strides": strides, "name": name}
    if kind == "align":
        return RoIAlign(size, samples, half_pixel, reduce=reduce, **common)
    if kind == "warp":
        return RoIWarp(size, samples, reduce=reduce, **common)
    if kind == "pool":
        return RoIPool(size, **common)
    if kind == "crop":
        return RoICrop(size, **common)
    raise ValueError(f"kind={kind!r}: 'align', 'pool', 'warp' or 'crop'")


@keras.saving.register_keras_serializable("mrcnn_tf")
class RoIWarp(RoIAlign):
    """RoIAlign's bilinear samples inside a region whose corners are rounded as RoIPool's are (section 3, RoIWarp).

    The rounded region holds whole cells, those of its first and last row and column included. `half_pixel` has no
    say: rounding takes away what it would shift.
    """

    def extent(self, boxes: tf.Tensor, stride: int) -> tuple[tf.Tensor, tf.Tensor]:
        first, count = _whole_cells(boxes, stride)
        return first - 0.5, first + count - 0.5


@keras.saving.register_keras_serializable("mrcnn_tf")
class RoICrop(RoILayer):
    """S x S single bilinear samples, the outer ones on the region's corners: Matterport's RoI layer.

    Pixel 0 is the centre of the first cell and the image's last pixel that of the last cell. Regions are first cut to
    the padded image between those two, as Matterport's proposals are.
    """

    def pool_level(self, feature: tf.Tensor, boxes: tf.Tensor, image_index: tf.Tensor, stride: int) -> tf.Tensor:
        last_pixel = tf.maximum(tf.cast(tf.shape(feature)[1:3] * stride - 1, tf.float32), 1.0)
        corners = tf.clip_by_value(boxes / tf.tile(last_pixel, [2]), 0.0, 1.0)
        return crops.crop_and_average(feature, corners, image_index, self.size, 1)


@keras.saving.register_keras_serializable("mrcnn_tf")
class RoIPool(RoILayer):
    """The largest value of each of S x S bins of whole cells (Fast R-CNN; section 3, "quantizations").

    A region's corners are rounded to cells, its bins again, outwards, so that they may overlap; bins without a cell of
    the map are 0. torchvision's `roi_pool`, with the gradient going to one largest cell of each bin and channel.
    """

    def pool_level(self, feature: tf.Tensor, boxes: tf.Tensor, image_index: tf.Tensor, stride: int) -> tf.Tensor:
        first, count = _whole_cells(boxes, stride)
        size = tf.shape(feature)[1:3]
        rows = _bins(first[:, 0], count[:, 0], self.size, size[0])
        columns = _bins(first[:, 1], count[:, 1], self.size, size[1])
        return _pool_bins(feature, rows, columns, image_index)


def _whole_cells(boxes: tf.Tensor, stride: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The first row and column [n, 2] of boxes [n, 4] in whole cells, and how many they span, at least 1."""
    corners = boxes / stride
    # Halves go away from 0 as in C; tf.round sends them to even numbers.
    whole = tf.floor(tf.abs(corners))
    whole = tf.sign(corners) * (whole + tf.cast(tf.abs(corners) - whole >= 0.5, tf.float32))
    return whole[:, :2], tf.maximum(whole[:, 2:] - whole[:, :2] + 1.0, 1.0)


def _bins(first: tf.Tensor, count: tf.Tensor, size: int, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the `size` bins of regions [n] along one side start and end [n, S] int32, inside a map of `length` cells.

    In float32 as torchvision does: its rounding lets some bins have one cell more than whole numbers would give.
    """
    # Divided in float64, since graphs turn a division into a product, which would round to another float32.
    cells = tf.cast(tf.cast(count, tf.float64) / size, tf.float32)[:, None]
    edges = tf.range(size + 1, dtype=tf.float32)
    start = first[:, None] + tf.floor(edges[:-1] * cells)
    end = first[:, None] + tf.math.ceil(edges[1:] * cells)
    limit = tf.cast(length, tf.float32)
    return tuple(tf.cast(tf.clip_by_value(edge, 0.0, limit), tf.int32) for edge in (start, end))


def _pool_bins(feature, rows, columns, image_index):
    """[n, S, S, C], the largest value of `feature` [B, H, W, C] in each bin; `rows` and `columns` as from `_bins`."""
    bins = _flat_bins(rows, columns, image_index)
    shape = tf.concat([tf.shape(rows[0]), [rows[0].shape[1], tf.shape(feature)[3]]], axis=0)

    @custom_gradient
    def pool(feature):
        def gradient(upstream):
            # Found out here and not on the way forward: prediction has no use for where the maxima lie.
            _, cell = _bin_maxima([feature, _cell_numbers(feature)], bins)
            upstream = tf.where(bins["tall"][:, None] > 0, tf.reshape(upstream, tf.shape(cell)), 0.0)
            return _scatter_to_cells(upstream, cell, bins["image"], feature)

        return tf.reshape(_bin_maxima([feature], bins)[0], shape), gradient

    return pool(feature)


def _flat_bins(rows, columns, image_index):
    """The m = n S S bins, each key [m] int32: `image`, `top`, `bottom`, `left`, `right`; `tall` and `wide`, the largest
    powers of two that fit into a bin's height and width, both 0 for an empty bin."""
    (top, bottom), (left, right) = rows, columns
    size = top.shape[1]

    def flat(values):
        return tf.reshape(tf.broadcast_to(values, [tf.shape(top)[0], size, size]), [-1])

    def power_within(length):
        return tf.reduce_max(tf.where(length[..., None] >= tf.constant(_POWERS), tf.constant(_POWERS), 0), axis=-1)

    tall, wide = flat(power_within(bottom - top)[:, :, None]), flat(power_within(right - left)[:, None, :])
    filled = (tall > 0) & (wide > 0)
    tall, wide = tf.where(filled, tall, 0), tf.where(filled, wide, 0)
    bins = {"top": top[:, :, None], "bottom": bottom[:, :, None], "left": left[:, None, :], "right": right[:, None, :]}
    bins = {name: flat(values) for name, values in bins.items()}
    return {**bins, "image": flat(image_index[:, None, None]), "tall": tall, "wide": wide}


def _bin_maxima(tables: list[tf.Tensor], bins: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    """For each of `tables` [B, H, W, C] what it holds in the cell where the first one is largest, [m, C] for m bins.

    A range query: any rectangle is the union of four overlapping ones whose sides are the largest powers of two that
    fit. The maxima of all rectangles of one such shape make a table as large as the map, which follows from the table
    before it by comparing it with itself, shifted. Tables are made one after the other, each serves the bins of its
    shape, and none is kept. 0 for empty bins.
    """
    found = [tf.zeros([tf.size(bins["tall"]), tf.shape(table)[3]]) for table in tables]
    tallest = tf.reduce_max(tf.concat([bins["tall"], [0]], axis=0))

    def along_rows(tall, tables, found):
        widest = tf.reduce_max(tf.where(tf.equal(bins["tall"], tall), bins["wide"], 0))

        def wider(wide, tables, found):
            tables = _doubled(tables, 2, wide)
            return 2 * wide, tables, _fill(found, tables, bins, tall, 2 * wide)

        found = _fill(found, tables, bins, tall, 1)
        return _loop(lambda wide, *_: wide < widest, wider, (tf.constant(1), tables, found))[2]

    def taller(tall, tables, found):
        tables = _doubled(tables, 1, tall)
        return 2 * tall, tables, along_rows(2 * tall, tables, found)

    found = along_rows(1, tables, found)
    return _loop(lambda tall, *_: tall < tallest, taller, (tf.constant(1), tables, found))[2]


def _loop(condition, body, state):
    # One step at a time: steps side by side would hold their tables side by side.
    return tf.while_loop(condition, body, state, parallel_iterations=1)


def _doubled(tables, axis, length):
    """The tables of rectangles twice as long along `axis`, where those of `tables` have `length`; cut at the border."""
    last = tf.shape(tables[0])[axis] - 1
    later = tf.minimum(tf.range(last + 1) + length, last)
    result = _larger(tables, [tf.gather(table, later, axis=axis) for table in tables])
    for table, before in zip(result, tables, strict=True):
        table.set_shape(before.shape)
    return result


def _larger(first, second):
    """Two lists of tensors as one: everywhere the entries of the list whose first tensor is larger there."""
    values = tf.maximum(first[0], second[0])  # unlike a comparison, this passes NaN on
    keep = first[0] >= second[0]
    return [values, *(tf.where(keep, a, b) for a, b in zip(first[1:], second[1:], strict=True))]


def _fill(found, tables, bins, tall, wide):
    """`found` [m, C] with the bins filled in that the tables of rectangles `tall` x `wide` answer."""
    own = tf.where(tf.equal(bins["tall"], tall) & tf.equal(bins["wide"], wide))
    image, top, bottom, left, right = (
        tf.gather_nd(bins[name], own) for name in ("image", "top", "bottom", "left", "right")
    )
    height, width = tf.shape(tables[0])[1], tf.shape(tables[0])[2]
    tables = [tf.reshape(table, [-1, tf.shape(table)[3]]) for table in tables]
    best = None
    for row in (top, bottom - tall):
        for column in (left, right - wide):
            place = (image * height + row) * width + column
            values = [tf.gather(table, place) for table in tables]
            best = values if best is None else _larger(best, values)
    return [tf.tensor_scatter_nd_update(all_bins, own, values) for all_bins, values in zip(found, best, strict=True)]


def _cell_numbers(feature: tf.Tensor) -> tf.Tensor:
    """The number row * W + column of every cell, in the shape of `feature`; float32, which is exact to 2^24."""
    shape = tf.shape(feature)
    number = tf.range(tf.cast(shape[1] * shape[2], tf.float32))
    return tf.broadcast_to(tf.reshape(number, [1, shape[1], shape[2], 1]), shape)


def _scatter_to_cells(upstream, cell, image, feature):
    """The gradient of `feature` [B, H, W, C] where `upstream` [m, C] belongs to the cells numbered `cell` [m, C]."""
    shape = tf.shape(feature)
    cells, channels = shape[1] * shape[2], shape[3]
    place = (image[:, None] * cells + tf.cast(cell, tf.int32)) * channels + tf.range(channels)
    return tf.reshape(tf.math.unsorted_segment_sum(upstream, place, shape[0] * cells * channels), shape)
