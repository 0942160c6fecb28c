"""From the layout of torch's tensors to the layout of the model's weights.

Shape letters: O outputs, I inputs (of one group, where a convolution has groups), h w a kernel's sides, S side of the
pooled feature, A anchors per cell, K classes.

torch keeps outputs first: convolutions [O, I, h, w], dense layers [O, I], deconvolutions [I, O, h, w]; a dense layer on
a map expects it flattened channel by channel, ours position by position. Boxes there are x before y.
"""

from __future__ import annotations

import re

import numpy as np

# Which outputs of a source's tensor are taken, in the model's order, and how many there are.
Rows = tuple[np.ndarray, int]

NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
BLOCK = re.compile(r"res(?P<stage>[2-5])_block(?P<block>\d+)_(?P<part>conv[123]|shortcut)")
DECONVOLUTIONS = ("mask_deconv/kernel", "keypoint_deconv/kernel")


def swapped_boxes(count: int, skip: int = 0) -> Rows:
    """The rows of `count` deltas (dx, dy, dw, dh) as (dy, dx, dh, dw), the first `skip` deltas left out."""
    return boxes_of(np.arange(skip, skip + count), skip + count)


def boxes_of(order: np.ndarray, count: int) -> Rows:
    """The rows of the deltas numbered `order`, out of `count` of (dx, dy, dw, dh), each as (dy, dx, dh, dw)."""
    return (order[:, None] * 4 + np.array([1, 0, 3, 2])).reshape(-1), 4 * count


def torch_shape(path: str, shape: tuple[int, ...], pool: int, outputs: int | None = None) -> tuple[int, ...]:
    """The shape that torch's tensor for the weight `path` of `shape` must have.

    Args:
        path: the weight's path in the model, `layer/.../name`.
        shape: its shape in the model.
        pool: S of the box branch.
        outputs: the source's number of outputs, where it is not the model's.
    """
    if len(shape) == 1:
        return (outputs or shape[0],)
    if len(shape) == 2:
        return (outputs or shape[1], shape[0])
    height, width, inputs, own_outputs = shape
    if path in DECONVOLUTIONS:  # [h, w, O, I] here, no rows are ever left out
        return (own_outputs, inputs, height, width)
    return (outputs or own_outputs, inputs, height, width)


def from_torch(path: str, tensor: np.ndarray, pool: int, rows: np.ndarray | None = None) -> np.ndarray:
    """The value of the weight `path`, float32 in the model's layout, of a tensor that has `torch_shape`."""
    value = np.asarray(tensor, np.float32)
    if rows is not None:
        value = value[rows]
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)  # also a deconvolution's [I, O, h, w] to [h, w, O, I]
    if value.ndim == 2 and path == "box_fc1/kernel":  # the layer that takes the map, whatever convolutions made it
        value = value.reshape(len(value), -1, pool, pool).transpose(0, 2, 3, 1).reshape(len(value), -1)
    return value.T if value.ndim == 2 else value
