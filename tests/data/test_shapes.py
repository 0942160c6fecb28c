"""The shapes data set: the same image for the same number, masks that fit what is seen."""

from __future__ import annotations

import numpy as np
import pytest

from mrcnn_tf.data import full_masks, shapes


def test_an_image_depends_on_seed_and_number_alone():
    few, many, other = shapes(4, seed=3), shapes(50, seed=3), shapes(4, seed=4)
    many.example(7)
    for index in (3, 0):
        one, two = few.example(index), many.example(index)
        np.testing.assert_array_equal(one.pixels, two.pixels)
        np.testing.assert_array_equal(one.boxes, two.boxes)
        assert one.segmentations == two.segmentations and one.image_id == two.image_id == index + 1
    assert not np.array_equal(few.example(0).pixels, other.example(0).pixels)


def test_description():
    dataset = shapes(12, size=(96, 160), seed=1)
    assert len(dataset) == 12 and dataset.class_names == ("circle", "square", "triangle")
    assert dataset.sizes.tolist() == [[96, 160]] * 12 and dataset.image_ids.tolist() == list(range(1, 13))
    example = dataset.example(0)
    assert example.pixels.shape == (96, 160, 3) and example.pixels.dtype == np.uint8 and example.path is None
    with pytest.raises(IndexError):
        dataset.example(12)
    with pytest.raises(ValueError, match="at least 1 image"):
        shapes(0)


def test_objects_fit_their_masks():
    dataset = shapes(80, seed=5)
    counts, classes = [], []
    for index in range(len(dataset)):
        example = dataset.example(index)
        masks = full_masks(example)
        counts.append(len(example))
        classes += example.classes.tolist()
        assert masks.sum(axis=0).max(initial=0) <= 1  # what is hidden belongs to the shape above
        for mask, box, area in zip(masks, example.boxes, example.areas):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            assert area == mask.sum() >= 0.4 * 8 * 8
    assert min(counts) == 0 and max(counts) == 5 and 2 < np.mean(counts) < 4
    assert np.bincount(classes).tolist()[0] == 0 and min(np.bincount(classes)[1:]) > 50
    assert dataset.object_counts().tolist() == counts


def test_shapes_stand_out_from_the_background():
    dataset = shapes(40, seed=6)
    for index in range(len(dataset)):
        example = dataset.example(index)
        masks = full_masks(example)
        outside = example.pixels[~masks.any(axis=0)].mean(axis=0)
        for mask in masks:
            assert np.linalg.norm(example.pixels[mask].mean(axis=0) - outside) > 45


@pytest.mark.parametrize(("kind", "share"), [(1, np.pi / 4), (2, 1.0), (3, 0.5)])
def test_form_of_unhidden_shapes(kind, share):
    """Area over the area of the box: of the upright shape, less where it is turned."""
    dataset = shapes(60, seed=7, max_objects=1, empty_share=0.0)
    ratios = []
    for index in range(len(dataset)):
        example = dataset.example(index)
        if len(example) == 1 and example.classes[0] == kind:
            y1, x1, y2, x2 = example.boxes[0]
            ratios.append(example.areas[0] / ((y2 - y1) * (x2 - x1)))
    assert len(ratios) > 8
    # A square turned by an eighth of a half turn fills 1 / (1 + sin(45 degrees)) = .59 of its box. Pixels make
    # the rest of the difference.
    lowest = {1: 0.74, 2: 0.55, 3: 0.42}[kind]
    assert lowest <= min(ratios) and max(ratios) <= min(1.12 * share, 1.0)


def test_sizes():
    dataset = shapes(60, seed=8, max_objects=1, empty_share=0.0)
    sides = [np.max(dataset.example(i).boxes[0, 2:] - dataset.example(i).boxes[0, :2]) for i in range(60)]
    assert 10 <= min(sides) < 22 and 45 < max(sides) <= 65


def test_to_coco():
    made = shapes(3, seed=0).to_coco()
    assert [i["file_name"] for i in made["images"]] == ["000000000001.png", "000000000002.png", "000000000003.png"]
    assert [c["id"] for c in made["categories"]] == [1, 2, 3]
    assert all(isinstance(a["segmentation"]["counts"], str) for a in made["annotations"])
