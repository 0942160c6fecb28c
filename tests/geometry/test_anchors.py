import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.geometry import anchors as anchor_ops


def test_pyramid_equals_torchvision(recorded, yx):
    levels = []
    for (height, width), size in zip(recorded["anchors_feature_sizes"], (32, 64, 128, 256, 512)):
        cell = anchor_ops.cell_anchors((size,), (0.5, 1.0, 2.0), rounded=True)
        stride = int(recorded["anchors_image_size"][0] // height)
        levels.append(anchor_ops.grid_anchors((int(height), int(width)), stride, cell).numpy())
    np.testing.assert_array_equal(np.concatenate(levels), yx(recorded["anchors_xyxy"]))


def test_cell_by_hand():
    cell = anchor_ops.cell_anchors((8, 16), (0.25, 1.0))
    # Ratios outermost, and a ratio is height / width.
    expected = [[-2, -8, 2, 8], [-4, -16, 4, 16], [-4, -4, 4, 4], [-8, -8, 8, 8]]
    np.testing.assert_allclose(cell, expected)
    assert cell.dtype == np.float32


def test_rounding_is_half_to_even():
    np.testing.assert_array_equal(anchor_ops.cell_anchors((5,), (1.0,), rounded=True), [[-2, -2, 2, 2]])
    np.testing.assert_array_equal(anchor_ops.cell_anchors((7,), (1.0,), rounded=True), [[-4, -4, 4, 4]])


def test_shrinking_moves_the_far_corner_alone():
    cell = anchor_ops.cell_anchors((8,), (0.25, 1.0), shrink=1.0)
    np.testing.assert_allclose(cell, [[-2, -8, 1, 7], [-4, -4, 3, 3]])
    cell = anchor_ops.cell_anchors((5,), (1.0,), rounded=True, shrink=0.25)  # after the rounding
    np.testing.assert_array_equal(cell, [[-2, -2, 1.75, 1.75]])
    assert cell.dtype == np.float32


def test_grid_by_hand():
    cell = np.array([[-1, -2, 1, 2], [-3, -3, 3, 3]], np.float32)
    anchors = anchor_ops.grid_anchors((1, 2), 8, cell, offset=0.5).numpy()
    expected = [[3, 2, 5, 6], [1, 1, 7, 7], [3, 10, 5, 14], [1, 9, 7, 15]]
    np.testing.assert_array_equal(anchors, expected)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(4, 600), min_size=1, max_size=3),
    st.lists(st.floats(0.2, 5), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([4, 8, 64]),
    st.sampled_from([0.0, 0.5]),
)
def test_every_anchor_has_its_area_ratio_and_centre(sizes, ratios, height, width, stride, offset):
    cell = anchor_ops.cell_anchors(sizes, ratios)
    anchors = anchor_ops.grid_anchors((height, width), stride, cell, offset).numpy()
    anchors = anchors.reshape(height, width, len(ratios), len(sizes), 4)
    tall, wide = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    np.testing.assert_allclose(tall * wide, np.broadcast_to(np.square(sizes), tall.shape), rtol=1e-3)
    np.testing.assert_allclose(tall / wide, np.broadcast_to(np.array(ratios)[:, None], tall.shape), rtol=1e-3)
    centre_y = (anchors[..., 0] + anchors[..., 2]) / 2
    expected = ((np.arange(height) + offset) * stride)[:, None, None, None]
    np.testing.assert_allclose(centre_y, np.broadcast_to(expected, centre_y.shape), atol=1e-3)
