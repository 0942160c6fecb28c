"""Convolution of groups of channels, with a gradient for CPUs.

Shape letters: B images, H W pixels, C channels in, F filters, G groups, D blocks of neighbouring groups.

TensorFlow's op takes a kernel [k, k, C / G, F]; group g of the filters sees group g of the channels. Forwards it is
the fastest form on every device (on a CPU up to three times as fast as blocks of groups). Backwards a CPU has the op
only among oneDNN's kernels: without them, in float64 or with a written-out padding the gradient is an error, and
through XLA, which Keras' own layers take, it is hundreds of times slower than that of a dense convolution. So a CPU's
gradient is worked out here by D dense convolutions over blocks of groups, whose kernels are zero between two groups.
"""

from __future__ import annotations

import tensorflow as tf

from mrcnn_tf.custom_gradient import custom_gradient

BLOCK_CHANNELS = 32  # of 16, 32 and 64 the best on the whole, with AVX2 and AVX-512, with oneDNN and without


def grouped_conv2d(inputs: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor:
    """`tf.nn.conv2d` of inputs [B, H, W, C] with a kernel [k, k, C / G, F] -> [B, H', W', F].

    Without oneDNN a CPU refuses a bias fused into this op, and TensorFlow fuses one that follows at once: put a
    `tf.reshape` between them.

    Args:
        inputs: feature maps.
        kernel: of the same type as `inputs`; G is C over its third side.
        strides: of both sides.
        padding: "SAME" or "VALID".
    """
    if tf.config.get_visible_devices("GPU"):
        return tf.nn.conv2d(inputs, kernel, strides, padding)
    groups = inputs.shape[-1] // kernel.shape[2]

    @custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            return _gradient(inputs, kernel, upstream, groups, strides, padding)

        return tf.nn.conv2d(inputs, kernel, strides, padding), gradient

    return convolve(inputs, kernel)


def groups_per_block(groups: int, channels: int) -> int:
    """How many neighbouring groups of `channels` (C / G) make a block: all blocks are alike."""
    fitting = [count for count in range(1, groups + 1) if groups % count == 0 and count * channels <= BLOCK_CHANNELS]
    return max(fitting, default=1)


def block_kernels(kernel: tf.Tensor, groups: int) -> list[tf.Tensor]:
    """The kernel [k, k, C / G, F] as D dense ones [k, k, C / D, F / D], zero between different groups."""
    height, width, channels, filters = kernel.shape
    count = groups_per_block(groups, channels)
    blocks, per_group = groups // count, filters // groups
    parts = tf.reshape(kernel, [height, width, 1, channels, blocks, count, per_group])
    same_group = tf.reshape(tf.eye(count, dtype=kernel.dtype), [1, 1, count, 1, 1, count, 1])
    dense = tf.reshape(parts * same_group, [height, width, count * channels, blocks, count * per_group])
    return tf.unstack(dense, axis=3)


def from_block_kernels(kernels: list[tf.Tensor], groups: int, channels: int) -> tf.Tensor:
    """The inverse of `block_kernels`: what the D dense kernels have within the groups; `channels` is C / G."""
    height, width, _, filters = kernels[0].shape
    count = groups // len(kernels)
    per_group = filters // count
    dense = tf.reshape(tf.stack(kernels, axis=3), [height, width, count, channels, len(kernels), count, per_group])
    within = tf.stack([dense[:, :, group, :, :, group] for group in range(count)], axis=4)
    return tf.reshape(within, [height, width, channels, groups * per_group])


def _gradient(inputs, kernel, upstream, groups: int, strides: int, padding: str) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradients of inputs and kernel, block by block."""
    kernels = block_kernels(kernel, groups)
    shape = tf.concat([tf.shape(inputs)[:3], [inputs.shape[-1] // len(kernels)]], axis=0)
    how = {"strides": [1, strides, strides, 1], "padding": padding}
    of_inputs, of_kernels = [], []
    parts = zip(tf.split(inputs, len(kernels), axis=-1), kernels, tf.split(upstream, len(kernels), axis=-1))
    for part, dense, error in parts:
        of_inputs.append(tf.raw_ops.Conv2DBackpropInput(input_sizes=shape, filter=dense, out_backprop=error, **how))
        of_kernels.append(
            tf.raw_ops.Conv2DBackpropFilter(input=part, filter_sizes=dense.shape, out_backprop=error, **how)
        )
    return tf.concat(of_inputs, axis=-1), from_block_kernels(of_kernels, groups, kernel.shape[2])
