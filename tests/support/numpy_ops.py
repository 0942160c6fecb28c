"""The operations of a Mask R-CNN in numpy, float64, each by its definition and with its derivative by hand.

Independent of the package and of TensorFlow. Every operation takes and gives a `Value`, which remembers where it comes
from: `gradients` goes that way back. That the derivatives are right is for finite differences to show.

Shape letters: B images, H W rows and columns, C channels in, F filters, N RoIs, S side of a RoI's map.
"""

from __future__ import annotations

import itertools

import numpy as np


class Value:
    """An array and its origin: `back` makes of its gradient those of its `parents`, in their order."""

    def __init__(self, data, parents=(), back=None):
        self.data = np.asarray(data, np.float64)
        self.parents, self.back = parents, back

    @property
    def shape(self):
        return self.data.shape

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda g: (_fit(g, self.shape), _fit(g, other.shape)))

    def __mul__(self, other):
        def back(g):
            return _fit(g * other.data, self.shape), _fit(g * self.data, other.shape)

        return Value(self.data * other.data, (self, other), back)

    def __getitem__(self, index):
        """Indices must not name an element twice."""

        def back(g):
            whole = np.zeros(self.shape)
            whole[index] = g
            return (whole,)

        return Value(self.data[index], (self,), back)

    def reshape(self, *shape):
        return Value(self.data.reshape(*shape), (self,), lambda g: (g.reshape(self.shape),))

    def transpose(self, *axes):
        return Value(self.data.transpose(axes), (self,), lambda g: (g.transpose(np.argsort(axes)),))

    def __matmul__(self, other):
        """[..., C] times [C, F]."""

        def back(g):
            rows, wide = self.data.reshape(-1, self.shape[-1]), g.reshape(-1, g.shape[-1])
            return g @ other.data.T, rows.T @ wide

        return Value(self.data @ other.data, (self, other), back)

    def sum(self):
        return Value(self.data.sum(), (self,), lambda g: (np.broadcast_to(g, self.shape),))


def _fit(gradient, shape):
    """The gradient of what was repeated along the leading dimensions: the sum of those of its copies."""
    return gradient.sum(tuple(range(gradient.ndim - len(shape)))) if gradient.shape != shape else gradient


def gradients(result: Value, of: dict[str, Value]) -> dict[str, np.ndarray]:
    """The gradient of a scalar for each of some values; zeros where it does not depend on it."""
    order, seen = [], set()

    def visit(value):
        if id(value) not in seen:
            seen.add(id(value))
            for parent in value.parents:
                visit(parent)
            order.append(value)

    visit(result)
    found = {id(result): np.ones(())}
    for value in reversed(order):
        if value.parents:
            for parent, gradient in zip(value.parents, value.back(found[id(value)])):
                found[id(parent)] = found.get(id(parent), 0.0) + gradient
    return {name: found.get(id(value), np.zeros(value.shape)) for name, value in of.items()}


def concatenate(values, axis):
    ends = np.cumsum([value.shape[axis] for value in values])[:-1]
    data = np.concatenate([value.data for value in values], axis)
    return Value(data, tuple(values), lambda g: np.split(g, ends, axis))


# === Convolutions ===


def _taps(size, spread, stride, shape):
    """Every place (u, v) in a window, and the slices of a padded map at which the windows have it."""
    rows, columns = ((side - spread * (size - 1) - 1) // stride + 1 for side in shape)
    for u, v in itertools.product(range(size), repeat=2):
        y, x = spread * u, spread * v
        yield u, v, np.s_[:, y : y + stride * (rows - 1) + 1 : stride, x : x + stride * (columns - 1) + 1 : stride]


def convolve(x, kernel, stride=1, dilation=1):
    """x [B, H, W, C], kernel w [k, k, C, F]: y[i, j] is the sum of x[s i + d u - p, s j + d v - p] w[u, v].

    s is the stride, d the dilation, p the padding that keeps the side at stride 1; no bias.
    """
    size, pad = kernel.shape[0], dilation * (kernel.shape[0] // 2)
    around = [(0, 0), (pad, pad), (pad, pad), (0, 0)]
    padded = np.pad(x.data, around)
    places = [place for _, _, place in _taps(size, dilation, stride, padded.shape[1:3])]
    taps = np.stack([padded[place] for place in places], axis=3)  # [B, H', W', k * k, C]
    lines = taps.reshape(-1, taps.shape[3] * taps.shape[4])
    matrix = kernel.data.reshape(lines.shape[1], -1)

    def back(g):
        g = g.reshape(-1, g.shape[-1])
        of_taps, of_padded = (g @ matrix.T).reshape(taps.shape), np.zeros(padded.shape)
        for index, place in enumerate(places):
            of_padded[place] += of_taps[:, :, :, index]
        inner = slice(pad, -pad) if pad else slice(None)
        return of_padded[:, inner, inner], (lines.T @ g).reshape(kernel.shape)

    return Value((lines @ matrix).reshape(*taps.shape[:3], -1), (x, kernel), back)


def deconvolve(x, kernel, stride=2):
    """x [B, H, W, C], kernel w [k, k, F, C]: x[i, j] w[u, v] is added to y[s i + u - p, s j + v - p].

    The output's sides are s times the input's, which leaves p = (k - s) / 2; no bias.
    """
    size, (batch, rows, columns, _) = kernel.shape[0], x.shape
    wide = np.zeros((batch, stride * (rows - 1) + size, stride * (columns - 1) + size, kernel.shape[2]))
    cut = (size - stride) // 2
    inner = np.s_[:, cut : cut + stride * rows, cut : cut + stride * columns]
    places = list(_taps(size, 1, stride, wide.shape[1:3]))
    for u, v, place in places:
        wide[place] += x.data @ kernel.data[u, v].T

    def back(g):
        of_wide, of_x, of_kernel = np.zeros(wide.shape), np.zeros(x.shape), np.zeros(kernel.shape)
        of_wide[inner] = g
        for u, v, place in places:
            of_x += of_wide[place] @ kernel.data[u, v]
            of_kernel[u, v] = np.tensordot(of_wide[place], x.data, axes=([0, 1, 2], [0, 1, 2]))
        return of_x, of_kernel

    return Value(wide[inner], (x, kernel), back)


# === Between two convolutions ===


def relu(x):
    return Value(np.maximum(x.data, 0), (x,), lambda g: (g * (x.data > 0),))


def max_pool(x, size=3, stride=2, pad=1):
    """The largest value in each window of [B, H, W, C]; what is outside never is."""
    padded = np.pad(x.data, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=-np.inf)
    places = [place for _, _, place in _taps(size, 1, stride, padded.shape[1:3])]
    windows = np.stack([padded[place] for place in places])
    winner = windows.argmax(0)

    def back(g):
        of_padded = np.zeros(padded.shape)
        for index, place in enumerate(places):
            of_padded[place] += g * (winner == index)
        return (of_padded[:, pad:-pad, pad:-pad],)

    return Value(windows.max(0), (x,), back)


def normalise(x, axes, epsilon):
    """x without its mean over `axes`, in units of its standard deviation over them."""
    deviation = np.sqrt(x.data.var(axes, keepdims=True) + epsilon)
    y = (x.data - x.data.mean(axes, keepdims=True)) / deviation

    def back(g):
        return ((g - g.mean(axes, keepdims=True) - y * (g * y).mean(axes, keepdims=True)) / deviation,)

    return Value(y, (x,), back)


def doubled(x):
    """Every cell of [B, H, W, C] twice along both sides."""
    batch, rows, columns, channels = x.shape

    def back(g):
        return (g.reshape(batch, rows, 2, columns, 2, channels).sum((2, 4)),)

    return Value(x.data.repeat(2, axis=1).repeat(2, axis=2), (x,), back)


def hat_weights(points, cells):
    """[P, cells] weights of linear interpolation at P points between cells at 0, 1, 2...; the outer ones are held."""
    points = np.clip(points, 0, cells - 1)
    return np.maximum(1 - np.abs(points[:, None] - np.arange(cells)), 0)


def resample(x, images, rows, columns):
    """Separable interpolation of maps [B, H, W, C]: for each n of images[n], rows[n] [S, H] and columns[n] [S, W].

    Returns [N, S, S, C].
    """

    def back(g):
        of_x = np.zeros(x.shape)
        for index, image in enumerate(images):
            of_x[image] += np.einsum("pqc,ph,qw->hwc", g[index], rows[index], columns[index], optimize=True)
        return (of_x,)

    parts = [np.einsum("hwc,ph,qw->pqc", x.data[i], r, c, optimize=True) for i, r, c in zip(images, rows, columns)]
    return Value(np.stack(parts), (x,), back)


# === Losses ===


def sigmoid_cross_entropy(logits, targets):
    """-log of the probability that sigmoid(logits) gives to the targets of 0 and 1, each."""
    x = logits.data
    loss = np.logaddexp(0.0, -x) * targets + np.logaddexp(0.0, x) * (1 - targets)
    return Value(loss, (logits,), lambda g: (g * (1 / (1 + np.exp(-x)) - targets),))


def softmax_cross_entropy(logits, index):
    """logits [N, K], index [N] -> -log of the share of the right one, [N]."""
    largest = logits.data.max(-1, keepdims=True)
    powers = np.exp(logits.data - largest)
    right = np.arange(len(index)), index
    loss = largest[:, 0] + np.log(powers.sum(-1)) - logits.data[right]

    def back(g):
        share = powers / powers.sum(-1, keepdims=True)
        share[right] -= 1
        return (g[:, None] * share,)

    return Value(loss, (logits,), back)


def smooth_l1(error, beta):
    """x^2 / (2 beta) below beta, |x| - beta / 2 above, each."""
    x, size = error.data, np.abs(error.data)
    if beta == 0:
        return Value(size, (error,), lambda g: (g * np.sign(x),))
    loss = np.where(size < beta, size**2 / (2 * beta), size - beta / 2)
    return Value(loss, (error,), lambda g: (g * np.clip(x / beta, -1, 1),))
