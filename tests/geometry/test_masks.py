import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_tf.geometry import masks as mask_ops

SIDE = 112


def crops_of(masks):
    """Crops [C, S, S] uint8 of full masks [C, H, W], each of its own tight box, and these boxes [C, 4]."""
    crops, boxes = [], []
    for mask in masks:
        rows, columns = np.where(mask)
        y1, x1, y2, x2 = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        picture = Image.fromarray((mask * 255).astype(np.uint8))
        crops.append(np.asarray(picture.resize((SIDE, SIDE), Image.BILINEAR, box=(x1, y1, x2, y2))))
        boxes.append([y1, x1, y2, x2])
    return np.stack(crops), np.array(boxes, np.float32)


def test_targets_agree_with_torchvision(recorded, yx):
    crops, boxes = crops_of(recorded["mask_target_gt_u8"])
    index = recorded["mask_target_gt_index"].astype(np.int32)
    # torchvision's RoIAlign without the half-pixel shift reads its full-size masks half a pixel further on.
    rois = yx(recorded["mask_target_boxes_xyxy"]) + np.float32(0.5)
    targets = mask_ops.mask_targets(crops, index, boxes[index], rois, 28).numpy() > 0.5
    expected = recorded["mask_target_28"] >= 0.5
    # Crops carry the mask through one more bilinear step: cells on the outline may fall to the other side.
    assert (targets == expected).mean() > 0.997
    overlap = (targets & expected).sum((1, 2)) / (targets | expected).sum((1, 2))
    assert overlap.min() > 0.98
    assert np.abs(recorded["mask_target_28"] - 0.5)[targets != expected].max() < 0.15


def test_roi_equal_to_the_box_gives_the_crop_itself():
    crop = np.zeros((1, SIDE, SIDE), np.uint8)
    crop[0, 28:84, :56] = 255  # cells 7..20 of 28, columns 0..13
    box = np.array([[10, 20, 40, 90]], np.float32)
    target = mask_ops.mask_targets(crop, [0], box, box, 28).numpy()[0]
    expected = np.zeros((28, 28))
    expected[7:21, :14] = 1
    np.testing.assert_array_equal(target, expected)


def test_roi_partly_outside_and_away_from_the_object():
    crop = np.full((1, SIDE, SIDE), 255, np.uint8)
    box = np.array([[0, 0, 10, 10]] * 3, np.float32)
    rois = np.array([[-10, 0, 10, 10], [5, 5, 25, 25], [50, 50, 60, 60]], np.float32)
    targets = mask_ops.mask_targets(crop, [0, 0, 0], box, rois, 28).numpy()
    assert targets[0, :14].sum() == 0 and targets[0, 14:].all()
    assert targets[1, :7, :7].all() and targets[1].sum() == 49
    assert targets[2].sum() == 0


def test_one_pixel_object_in_a_large_roi():
    crop = np.full((1, SIDE, SIDE), 255, np.uint8)
    box = np.array([[14, 14, 15, 15]], np.float32)
    target = mask_ops.mask_targets(crop, [0], box, np.array([[0, 0, 28, 28]], np.float32), 28).numpy()[0]
    assert target[14, 14] == 1 and target.sum() == 1


def test_each_roi_reads_its_own_crop():
    crops = np.zeros((2, SIDE, SIDE), np.uint8)
    crops[1] = 255
    boxes = np.array([[0, 0, 8, 8]] * 3, np.float32)
    targets = mask_ops.mask_targets(crops, [1, 0, 1], boxes, boxes, 14).numpy()
    np.testing.assert_array_equal(targets.mean((1, 2)), [1, 0, 1])


def test_no_rois_and_empty_boxes():
    crops = np.full((1, SIDE, SIDE), 255, np.uint8)
    none = np.zeros((0, 4), np.float32)
    assert mask_ops.mask_targets(crops, np.zeros(0, np.int32), none, none, 28).shape == (0, 28, 28)
    empty = np.zeros((1, 4), np.float32)
    assert np.isfinite(mask_ops.mask_targets(crops, [0], empty, empty, 28).numpy()).all()


def test_paste_equals_torchvision_where_both_see_the_same_box(recorded, yx):
    # torchvision pads the mask with one cell of nothing, widens the box to match and rounds it to whole pixels.
    # On that padded mask and that box, both definitions are the same bilinear resize.
    masks = np.pad(recorded["paste_masks"], ((0, 0), (1, 1), (1, 1)))
    boxes = yx(recorded["paste_boxes_xyxy"])
    centre = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32(30 / 28)
    whole = np.concatenate([np.trunc(centre - half), np.trunc(centre + half) + 1], axis=1).astype(np.float32)
    pasted = mask_ops.paste_masks(masks, whole, 120, 160).numpy() > 0.5
    np.testing.assert_array_equal(pasted, recorded["paste_result_u8"].astype(bool))


def paste_slowly(mask, box, height, width):
    """Pixel by pixel, in float64."""
    side = mask.shape[0]
    padded = np.pad(mask.astype(np.float64), 1)
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5 + 1
            u = (x + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5 + 1
            if not (0 <= v <= side + 1 and 0 <= u <= side + 1):
                continue
            i, j = min(int(v), side), min(int(u), side)
            a, b = v - i, u - j
            top = (1 - b) * padded[i, j] + b * padded[i, j + 1]
            bottom = (1 - b) * padded[i + 1, j] + b * padded[i + 1, j + 1]
            result[y, x] = (1 - a) * top + a * bottom
    return result


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_paste_is_what_the_slow_form_says(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(6, 6)).astype(np.float32)
    low, side = rng.uniform(-8, 15, 2), rng.uniform(0.5, 25, 2)
    box = np.concatenate([low, low + side]).astype(np.float32)
    pasted = mask_ops.paste_masks(mask[None], box[None], 17, 21).numpy()[0]
    np.testing.assert_allclose(pasted, paste_slowly(mask, box.astype(np.float64), 17, 21), atol=1e-4)


@pytest.mark.parametrize("box", [[2, 3, 10, 11], [2.0, 3.0, 30.0, 31.0]])
def test_a_full_mask_fills_its_box(box):
    pasted = mask_ops.paste_masks(tf.ones([1, 28, 28]), tf.constant([box], tf.float32), 40, 40).numpy()[0] >= 0.5
    y1, x1, y2, x2 = (int(v) for v in box)
    assert pasted[y1:y2, x1:x2].all() and pasted.sum() == (y2 - y1) * (x2 - x1)


def test_paste_of_nothing():
    assert mask_ops.paste_masks(tf.zeros([0, 28, 28]), tf.zeros([0, 4]), 5, 6).shape == (0, 5, 6)
    assert mask_ops.paste_masks(tf.ones([1, 28, 28]), tf.zeros([1, 4]), 5, 6).numpy().sum() == 0
