"""Pasting and run lengths: hand-made cases, another implementation's recorded masks, and COCO's own encoder."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_tf import pasting

REFERENCE = Path(__file__).resolve().parent / "reference" / "torchvision_ops.npz"


def naive_paste(crop, box, height, width):
    """The definition, pixel by pixel: bilinear in the grid of cells, zero outside of it."""
    side = crop.shape[0]
    y1, x1, y2, x2 = box
    grid = np.pad(crop, 1)
    pasted = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = (row + 0.5 - y1) / (y2 - y1) * side - 0.5
            x = (column + 0.5 - x1) / (x2 - x1) * side - 0.5
            if not (-1 < y < side and -1 < x < side):
                continue
            top, left = int(np.floor(y)), int(np.floor(x))
            for i, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    if -1 <= i <= side and -1 <= j <= side:
                        pasted[row, column] += weight_y * weight_x * grid[i + 1, j + 1]
    return pasted


def placed(top, left, patch, height, width):
    image = np.zeros((height, width), patch.dtype)
    image[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return image


def test_a_box_on_whole_pixels_with_one_cell_a_pixel_keeps_the_crop():
    crop = np.arange(16).reshape(4, 4) / 16
    top, left, patch = pasting.paste_patch(crop, np.array([2, 3, 6, 7.0]), 10, 12)
    expected = np.zeros((10, 12))
    expected[2:6, 3:7] = crop
    np.testing.assert_allclose(placed(top, left, patch, 10, 12), expected, atol=1e-7)


def test_a_stretched_crop_fades_over_half_a_cell_at_the_border():
    # Two cells of ones over 8 pixels: a cell is 4 pixels; pixel centres .5, 1.5, ... 7.5 lie at the grid
    # coordinates -.375, -.125, ... 1.375, and beyond the box the value falls to zero in half a cell.
    _, weights = pasting.axis_weights(4, 12, 2, 16)
    np.testing.assert_allclose(weights.sum(1), [0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    mask = pasting.paste_mask(np.ones((2, 2)), np.array([4, 4, 12, 12.0]), 16, 16)
    assert mask[4:12, 4:12].sum() == mask.sum() == 64 - 4 * 1  # the corners: .625 * .625 < .5
    assert not mask[4, 4] and mask[4, 5]


@pytest.mark.parametrize("box", [[3, 3, 3, 9], [5, 5, 4, 9], [np.nan, 0, 5, 5], [0, 0, np.inf, 5], [-9, 0, -4, 5]])
def test_boxes_without_area_not_finite_or_outside_give_nothing(box):
    crop = np.ones((28, 28), np.float16)
    assert not pasting.paste_mask(crop, np.array(box, float), 10, 10).any()
    (rle,) = pasting.encode_crops(crop[None], np.array([box], float), 10, 10)
    assert coco_mask.area(rle) == 0 and rle["size"] == [10, 10]


boxes = st.tuples(st.floats(-5, 20), st.floats(-5, 20), st.floats(0.1, 30), st.floats(0.1, 30))


@given(boxes, st.integers(2, 7), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_pasting_is_the_definition(box, side, seed):
    y1, x1, tall, wide = box
    crop = np.random.default_rng(seed).random((side, side))
    box = np.array([y1, x1, y1 + tall, x1 + wide])
    top, left, patch = pasting.paste_patch(crop, box, 17, 14)
    np.testing.assert_allclose(placed(top, left, patch, 17, 14), naive_paste(crop, box, 17, 14), atol=1e-5)


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_cocos(seed, density):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 9, 2)
    top, left = rng.integers(0, height), rng.integers(0, width)
    patch = rng.random((rng.integers(0, height - top) + 1, rng.integers(0, width - left) + 1)) < density
    full = placed(top, left, patch, height, width)
    assert pasting.encode_patch(patch, top, left, int(height), int(width)) == pasting.encode_mask(full)
    np.testing.assert_array_equal(pasting.decode(pasting.encode_mask(full)), full)


def test_run_lengths_by_hand():
    patch = np.array([[1, 0], [1, 1]], bool)
    # 3 rows: column 0 is 0 0 0, column 1 is 0 1 1, column 2 is 0 0 1.
    assert pasting.run_lengths(patch, 1, 1, 3, 3) == [4, 2, 2, 1]
    assert pasting.run_lengths(np.ones((3, 2), bool), 0, 0, 3, 3) == [0, 6, 3]
    assert pasting.run_lengths(np.zeros((2, 2), bool), 0, 0, 3, 3) == [9]


def test_compress_takes_every_form_of_a_segmentation():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:5] = True
    packed = pasting.encode_mask(mask)
    forms = [
        packed,
        {"size": [6, 8], "counts": packed["counts"].decode()},
        {"size": [6, 8], "counts": pasting.run_lengths(mask, 0, 0, 6, 8)},
        [[2, 1, 5, 1, 5, 4, 2, 4]],
    ]
    for form in forms:
        np.testing.assert_array_equal(pasting.decode(pasting.compress(form, 6, 8)), mask)


@pytest.mark.parametrize("form", [{"size": [8, 6], "counts": [48]}, {"counts": [48]}, "1O", {}])
def test_compress_refuses_what_does_not_fit(form):
    with pytest.raises(ValueError, match="size 8, 6|size .8, 6.|no COCO segmentation"):
        pasting.compress(form, 6, 8)


@pytest.mark.parametrize(
    "form",
    [
        {"size": [6, 8], "counts": [20, 5]},  # pycocotools decodes what lies in memory behind such
        {"size": [6, 8], "counts": [60, -12]},
        {"size": [6, 8], "counts": "12"},
        {"size": [6, 8], "counts": "z#"},
        {"size": [6, 8], "counts": None},
        [],
        [[1, 2, 3, 4]],
        [1, 2, 5, 2, 5, 5],
    ],
)
def test_compress_refuses_broken_masks(form):
    with pytest.raises(ValueError, match="an RLE whose counts|polygons of 3 points or more"):
        pasting.compress(form, 6, 8)


def test_torchvisions_boxes_by_hand():
    # 2 cells: the box grows by a cell of 5 to [0, 20] (rows) and of 1.5 to [-.5, 5.5], which is cut to [0, 5]; with the
    # last pixel in it is 21 and 6 pixels long, of which the outer cells, a quarter each, are padding.
    boxes = pasting.torchvision_boxes([[5, 1, 15, 4.0]], 2)
    np.testing.assert_allclose(boxes, [[5.25, 1.5, 15.75, 4.5]])


def test_torchvisions_recorded_masks():
    recorded = np.load(REFERENCE)
    boxes = pasting.torchvision_boxes(recorded["paste_boxes_xyxy"][:, [1, 0, 3, 2]], 28)
    equal = []
    for crop, box, expected in zip(recorded["paste_masks"], boxes, recorded["paste_result_u8"]):
        equal.append(pasting.paste_mask(crop, box, 120, 160) == expected.astype(bool))
    # Noise, so values lie on the threshold now and then.
    assert np.mean(equal) > 0.9999


def test_tensors_and_numpy_paste_alike():
    masks = pytest.importorskip("mrcnn_tf.geometry.masks")
    rng = np.random.default_rng(0)
    crops = rng.random((5, 28, 28)).astype(np.float32)
    corners = rng.uniform(-10, 60, (5, 2))
    box = np.concatenate([corners, corners + rng.uniform(1, 50, (5, 2))], axis=1).astype(np.float32)
    pasted = masks.paste_masks(crops, box, 64, 80).numpy()
    for index in range(5):
        ours = placed(*pasting.paste_patch(crops[index], box[index], 64, 80), 64, 80)
        np.testing.assert_allclose(ours, pasted[index], atol=1e-4)
    np.testing.assert_allclose(masks.torchvision_boxes(box, 28), pasting.torchvision_boxes(box, 28), atol=1e-5)
    np.testing.assert_array_equal(masks.torchvision_boxes(np.zeros((2, 4), np.float32), 28), np.zeros((2, 4)))
