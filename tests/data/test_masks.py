"""Mask crops against masks drawn in full, and the decoder of COCO's run lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from mrcnn_tf.data import Example, full_masks, mask_crops, read_coco
from mrcnn_tf.data.masks import rle_counts


def example_of(segmentations, boxes, size) -> Example:
    count = len(segmentations)
    return Example(
        image_id=1,
        path=None,
        pixels=None,
        size=size,
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        classes=np.ones(count, np.int32),
        crowd=np.zeros(count, bool),
        areas=np.ones(count, np.float32),
        segmentations=tuple(segmentations),
    )


def encode(mask) -> dict:
    made = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(made["size"]), "counts": made["counts"].decode()}


def sampled(mask: np.ndarray, box, side: int) -> np.ndarray:
    """[side, side] float: the mask at the middles of a box's cells, bilinear between pixel middles."""
    y1, x1, y2, x2 = box
    y = y1 + (np.arange(side) + 0.5) / side * (y2 - y1) - 0.5
    x = x1 + (np.arange(side) + 0.5) / side * (x2 - x1) - 0.5
    padded = np.pad(mask.astype(float), 1)

    def at(rows, columns):
        rows, columns = rows.clip(-1, mask.shape[0]) + 1, columns.clip(-1, mask.shape[1]) + 1
        return padded[np.ix_(rows.astype(int), columns.astype(int))]

    top, left = np.floor(y), np.floor(x)
    down, right = (y - top)[:, None], (x - left)[None, :]
    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return upper * (1 - down) + lower * down


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1)))
def test_run_lengths_of_any_mask(mask):
    flat = mask.reshape(-1, order="F")
    runs = rle_counts(encode(mask)["counts"].encode())
    np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2, runs), flat)


def test_long_runs():
    mask = np.zeros((1000, 1500), np.uint8)
    mask[3:997, 700:705] = 1
    runs = rle_counts(encode(mask)["counts"].encode())
    assert runs.tolist() == [700_003, 994, 6, 994, 6, 994, 6, 994, 6, 994, 795_003]


@pytest.mark.parametrize("counts", [b"", b"P", b"\xff0", b"n0n0n0" + b"P" * 12 + b"0", b"00O"])
def test_broken_run_lengths(counts):
    with pytest.raises(ValueError):
        rle_counts(counts)


def test_whole_box_of_object():
    mask = np.zeros((20, 30))
    mask[4:12, 6:22] = 1
    crop = mask_crops(example_of([encode(mask)], [[4, 6, 12, 22]], (20, 30)), 16)[0]
    # The box's border lies between an inside and an outside pixel: half and more, full further in.
    assert crop.min() >= 255 * 0.25 and crop[1:-1, 1:-1].min() == 255
    crop = mask_crops(example_of([encode(np.ones((20, 30)))], [[0, 0, 20, 30]], (20, 30)), 16)[0]
    assert crop.min() == 255


def test_half_of_box():
    mask = np.zeros((40, 40))
    mask[8:40, 8:24] = 1
    crop = mask_crops(example_of([encode(mask)], [[8, 8, 40, 40]], (40, 40)), 112)[0]
    inside = crop >= 128
    assert inside[1:, :55].all() and not inside[:, 57:].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_crop_follows_the_full_mask(seed):
    """Random blobs in random boxes: crop and exact mask agree but for the cells along the outline."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(50, 90, 2)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(3):
        cy, cx, ry, rx = rng.uniform(0.2, 0.8, 4) * [height, width, 30, 30] + [0, 0, 10, 10]
        mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], float)
    shifted = box + rng.uniform(-0.5, 0.5, 4)
    shifted = np.clip(shifted, 0, [height, width, height, width])
    for one in (box, shifted):
        crop = mask_crops(example_of([encode(mask)], [one], (height, width)), 112)[0]
        exact = sampled(mask, np.float32(one), 112)
        assert np.mean((crop >= 128) == (exact >= 0.5)) >= 0.985
        assert np.abs(crop / 255 - exact).max() <= 0.6  # nowhere inside for outside


def test_polygons_are_drawn_where_the_full_mask_has_them():
    ring = [10.3, 20.7, 61.2, 14.1, 70.9, 55.5, 40.4, 71.6, 12.8, 50.2]
    hole_free = [80.0, 20.0, 90.0, 20.0, 90.0, 30.0, 80.0, 30.0]
    example = example_of([[ring, hole_free]], [[14.1, 10.3, 71.6, 90.0]], (80, 100))
    full = full_masks(example)[0]
    crop = mask_crops(example, 112)[0]
    exact = sampled(full, example.boxes[0], 112)
    assert np.mean((crop >= 128) == (exact >= 0.5)) >= 0.99


def test_polygon_past_the_image():
    ring = [-20.0, -10.0, 30.0, -10.0, 30.0, 15.0, -20.0, 15.0]
    example = example_of([[ring]], [[0, 0, 15, 30]], (40, 50))
    assert full_masks(example)[0].sum() == 450
    assert mask_crops(example, 32)[0].min() >= 255 * 0.25


def test_object_too_thin_for_any_pixel():
    ring = [4.0, 10.05, 24.0, 10.05, 24.0, 10.15, 4.0, 10.15]
    example = example_of([[ring]], [[10.05, 4, 10.15, 24]], (30, 30))
    assert full_masks(example)[0].sum() == 0
    assert np.mean(mask_crops(example, 112)[0] >= 128) > 0.95


def test_no_objects():
    assert mask_crops(example_of([], [], (10, 10)), 28).shape == (0, 28, 28)
    assert full_masks(example_of([], [], (10, 12))).shape == (0, 10, 12)


def test_real_crops_follow_the_full_masks(coco_mini):
    dataset = read_coco(coco_mini / "annotations/instances_val2017.json", coco_mini / "val2017")
    agreement = []
    for index in range(0, len(dataset), 4):
        example = dataset.example(index)
        crops, full = mask_crops(example), full_masks(example)
        for row, box in enumerate(example.boxes):
            if min(box[2] - box[0], box[3] - box[1]) >= 32:
                agreement.append(np.mean((crops[row] >= 128) == (sampled(full[row], box, 112) >= 0.5)))
    assert len(agreement) > 50
    assert np.mean(agreement) >= 0.995 and min(agreement) >= 0.97
