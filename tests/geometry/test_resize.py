import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry import resize


@pytest.mark.parametrize(
    "size, edges, expected",
    [
        ((480, 640), (800, 1333), (800, 1066)),  # the shorter edge decides, and is met exactly
        ((640, 480), (800, 1333), (1066, 800)),
        ((400, 600), (256, 320), (213, 320)),  # the longer edge decides
        ((213, 320), (256, 320), (213, 320)),  # the recorded coffee image
        ((512, 512), (256, 320), (256, 256)),
        ((1, 5000), (800, 1333), (1, 1333)),  # never less than a pixel
        ((333, 500), (800, 1333), (800, 1201)),
    ],
)
def test_sizes_by_hand(size, edges, expected):
    height, width, factor = resize.resized_size(*size, *edges)
    assert (height, width) == expected
    assert factor == pytest.approx(min(edges[0] / min(size), edges[1] / max(size)))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(0, 1500))
def test_bounds_and_tensorflow_twin(height, width, shorter, more):
    longer = shorter + more
    new_height, new_width, factor = resize.resized_size(height, width, shorter, longer)
    assert 1 <= max(new_height, new_width) <= longer
    assert min(new_height, new_width) <= shorter
    assert min(new_height, new_width) == shorter or max(new_height, new_width) == longer
    assert abs(new_height - max(1, height * factor)) <= 1 and abs(new_width - max(1, width * factor)) <= 1
    twin = resize.resized_size_tf(tf.constant(height), tf.constant(width), shorter, longer)
    assert (int(twin[0]), int(twin[1])) == (new_height, new_width)
    assert float(twin[2]) == np.float32(factor)


@pytest.mark.parametrize("arguments", [(0, 10, 800, 1333), (10, 10, 0, 1333)])
def test_nothing_cannot_be_resized(arguments):
    with pytest.raises(ValueError, match="at least one pixel"):
        resize.resized_size(*arguments)
