"""Large-scale jitter: which part of an image a canvas shows, and what of its objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_tf.config import Config, DataConfig, InputConfig
from mrcnn_tf.data import Dataset, Example, full_masks, mask_crops, shapes, training_batches
from mrcnn_tf.data.batch_plan import BatchPlan
from mrcnn_tf.data.cropping import Part, cut_example, fit_part, move_boxes, move_keypoints, random_part
from mrcnn_tf.data.proposals import with_proposals, write_proposals
from mrcnn_tf.data.transforms import draw_view, fit_image
from tests.data.test_masks import encode, example_of, sampled
from tests.data.test_pipeline import OfSizes, assert_same

# --- which part ---


@pytest.mark.parametrize(
    ("size", "canvas", "factor", "place", "expected"),
    [
        ((30, 40), (64, 64), 1.0, (0.3, 0.9), Part((48, 64), (0, 0), (48, 64))),  # fits: nothing to choose
        ((30, 40), (64, 64), 0.5, (0.3, 0.9), Part((24, 32), (0, 0), (24, 32))),
        ((30, 40), (64, 64), 2.0, (0.5, 0.25), Part((96, 128), (16, 16), (64, 64))),
        ((30, 40), (64, 64), 1.25, (1.0, 1.0), Part((60, 80), (0, 16), (60, 64))),  # larger on one axis alone
        ((100, 50), (64, 96), 1.0, (0.0, 0.0), Part((64, 32), (0, 0), (64, 32))),  # the height decides
        ((1000, 10), (64, 64), 0.1, (0.0, 0.0), Part((6, 1), (0, 0), (6, 1))),  # never less than a pixel
        ((64, 64), (64, 64), 1.0, (0.5, 0.5), Part((64, 64), (0, 0), (64, 64))),
    ],
)
def test_part(size, canvas, factor, place, expected):
    part = random_part(size, canvas, factor, place)
    assert part == expected and part.is_whole == (expected.size == expected.shown)


def test_window_in_the_original_image():
    part = Part((96, 128), (16, 40), (64, 64))
    assert part.window((48, 64), False).tolist() == [8, 20, 40, 52]
    assert part.window((48, 64), True).tolist() == [8, 12, 40, 44]


def test_views_draw_factor_and_place():
    data = DataConfig(scale_jitter=(0.1, 2.0), crop=(64, 96))
    views = [draw_view(np.random.default_rng(i), InputConfig(), data) for i in range(400)]
    assert {view.canvas for view in views} == {(64, 96)} and data.canvas == (64, 96)
    factors = np.array([view.factor for view in views])
    assert 0.1 <= factors.min() < 0.15 and 1.95 < factors.max() <= 2.0 and abs(factors.mean() - 1.05) < 0.1
    places = np.array([view.place for view in views])
    assert places.shape == (400, 2) and (places >= 0).all() and (places < 1).all()
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.06)
    # Flips are those that the same seeds give without a canvas.
    plain = [draw_view(np.random.default_rng(i), InputConfig(), DataConfig()) for i in range(400)]
    assert [view.flip for view in plain] == [view.flip for view in views] and plain[0].canvas is None


# --- the image ---


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 48), st.integers(1, 48)),
    st.floats(0.1, 3.0),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_part_has_the_pixels_of_the_whole(size, canvas, factor, place):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    part = random_part(size, canvas, factor, place)
    shown = fit_part(image, part, canvas).numpy()
    assert shown.shape == (*canvas, 3) and shown.dtype == np.float32
    (top, left), (height, width) = part.corner, part.shown
    whole = fit_image(image, *part.size, 1).numpy()
    np.testing.assert_allclose(shown[:height, :width], whole[top : top + height, left : left + width], atol=0.05)
    assert not shown[height:].any() and not shown[:, width:].any()


# --- objects, by hand: an image of 40 x 60 of which rows 10..30 and columns 20..50 are shown, nothing scaled ---

PART = Part((40, 60), (10, 20), (20, 30))


def one(mask=None, box=None, part=PART, flip=False, **fields):
    """The example that is left of one object, whose box is that of its mask if not given."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = box or [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    example = example_of([encode(mask)], [box], mask.shape)
    example = Example(**{**vars(example), "areas": mask.sum(keepdims=True).reshape(1).astype(np.float32), **fields})
    return cut_example(example, part, flip)


def filled(y1, x1, y2, x2, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_object_inside_keeps_its_box_to_the_bit():
    left = one(filled(12, 22, 20, 30), box=[12.3, 21.7, 20.2, 29.9])
    assert left.boxes.tolist() == np.array([[12.3, 21.7, 20.2, 29.9]], np.float32).tolist()
    assert left.areas.tolist() == [64]


@pytest.mark.parametrize(
    ("box", "left", "area"),
    [
        ((5, 22, 20, 30), (10, 22, 20, 30), 80),  # cut at the top
        ((12, 5, 20, 30), (12, 20, 20, 30), 80),  # at the left
        ((25, 45, 38, 58), (25, 45, 30, 50), 25),  # at the lower right
        ((0, 0, 40, 60), (10, 20, 30, 50), 600),  # on all sides
        ((29, 49, 35, 55), (29, 49, 30, 50), 1),  # one pixel is left
        ((10, 20, 30, 50), (10, 20, 30, 50), 600),  # exactly what is shown
    ],
)
def test_object_cut(box, left, area):
    cut = one(filled(*box))
    assert cut.boxes.tolist() == [list(left)] and cut.areas.tolist() == [area]
    assert mask_crops(cut, 16)[0].min() >= 255 // 4  # nothing but object, half a pixel at its own border


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (30, 20, 35, 30), (12, 50, 20, 60), (0, 22, 10, 30), (31, 51, 40, 60)])
def test_object_outside_is_left_out(box):
    cut = one(filled(*box), keypoints=np.ones((1, 3, 3), np.float32))
    assert len(cut) == 0 and cut.boxes.shape == (0, 4) and cut.segmentations == () and cut.areas.shape == (0,)
    assert cut.crowd.shape == (0,) and cut.keypoints.shape == (0, 3, 3) and cut.classes.dtype == np.int32


def test_the_box_becomes_tight_around_what_is_left():
    """An L: its upright from row 0 to 28 in columns 22..25, its foot, rows 25..28, from column 22 to 58."""
    letter = filled(0, 22, 28, 25) | filled(25, 22, 28, 58)
    assert one(letter).boxes.tolist() == [[10, 22, 28, 50]]
    # Of the foot alone nothing is left of the upright.
    assert one(letter, part=Part((40, 60), (10, 30), (20, 30))).boxes.tolist() == [[25, 30, 28, 58]]
    # A box that overlaps what is shown, but nothing of the mask does.
    hollow = filled(0, 0, 40, 5) | filled(35, 0, 40, 60)
    assert one(hollow).boxes.shape == (0, 4)


def test_sides_that_the_mask_reaches_as_before_stay_where_they_were():
    # The annotated box is not that of the pixels: its lower side is .4 higher, its left one .3 further left.
    cut = one(filled(5, 22, 20, 30), box=[5, 21.7, 19.6, 30])
    np.testing.assert_allclose(cut.boxes, [[10, 21.7, 19.6, 30]], rtol=1e-6)


def test_less_than_half_a_pixel_of_the_canvas_is_nothing():
    # Scaled fourfold, the resized rows 18..38 are 4.5..9.5 of the original image, rows 19..39 are 4.75..9.75.
    size, low, high = (20, 20), Part((80, 80), (18, 0), (20, 80)), Part((80, 80), (19, 0), (20, 80))
    assert one(filled(2, 3, 5, 9, size), part=low).boxes.tolist() == [[4.5, 3, 5, 9]]  # two pixels of the canvas
    assert one(filled(2, 3, 5, 9, size), part=high).boxes.tolist() == [[4.75, 3, 5, 9]]  # one
    assert len(one(filled(2, 3, 5, 9, size), box=[2, 3, 4.85, 9], part=high)) == 0  # .4
    # Scaled to two fifths: rows 25..45 of the resized image are 62.5..112.5. Half a row would be a fifth of a pixel.
    size, part = (200, 200), Part((80, 80), (25, 0), (20, 80))
    assert len(one(filled(50, 20, 63, 60, size), part=part)) == 0
    assert one(filled(50, 20, 64, 60, size), part=part).boxes.tolist() == [[63, 20, 64, 60]]  # a whole row is one


def test_part_of_a_pixel():
    # Scaled fourfold: columns 21..41 of the resized image are 5.25..10.25 of the original one.
    size, part = (20, 20), Part((80, 80), (0, 21), (80, 20))
    cut = one(filled(4, 2, 8, 18, size), part=part)
    assert cut.boxes.tolist() == [[4, 5.25, 8, 10.25]] and cut.areas.tolist() == [20]
    cut = one(filled(4, 10, 5, 11, size), part=part)
    assert cut.boxes.tolist() == [[4, 10, 5, 10.25]] and mask_crops(cut, 112).max() >= 128


def test_polygon_too_thin_for_any_pixel():
    ring = [4.0, 15.05, 40.0, 15.05, 40.0, 15.15, 4.0, 15.15]
    cut = cut_example(example_of([[ring]], [[15.05, 4, 15.15, 40]], (40, 60)), PART, False)
    np.testing.assert_allclose(cut.boxes, [[15.05, 20, 15.15, 40]], rtol=1e-6)
    np.testing.assert_allclose(cut.areas, [20 / 36], rtol=1e-5)
    assert np.mean(mask_crops(cut, 112)[0] >= 128) > 0.95


def test_crowds_are_cut_and_stay_crowds():
    masks = [filled(0, 0, 5, 5), filled(5, 22, 20, 30), filled(12, 22, 20, 30)]
    boxes = [[0, 0, 5, 5], [5, 22, 20, 30], [12, 22, 20, 30]]
    example = example_of([encode(mask) for mask in masks], boxes, (40, 60))
    example = Example(**{**vars(example), "crowd": np.array([True, True, False]), "classes": np.array([1, 2, 3])})
    cut = cut_example(example, PART, False)
    assert cut.crowd.tolist() == [True, False] and cut.classes.tolist() == [2, 3]
    assert cut.boxes.tolist() == [[10, 22, 20, 30], [12, 22, 20, 30]]
    assert cut.segmentations == example.segmentations[1:]


def test_nothing_to_cut():
    empty = example_of([], [], (40, 60))
    assert len(cut_example(empty, PART, True)) == 0 and cut_example(empty, PART, True).boxes.shape == (0, 4)
    example = example_of([encode(filled(0, 0, 40, 60))], [[0, 0, 40, 60]], (40, 60))
    assert cut_example(example, Part((80, 120), (0, 0), (80, 120)), True) is example


def test_boxes_and_keypoints_move_to_the_part():
    boxes = np.array([[12, 25, 20, 30], [0, 0, 40, 60], [0, 0, 10, 20], [32, 0, 35, 60]], np.float32)
    moved = move_boxes(boxes, PART)
    assert moved.dtype == np.float32
    assert moved.tolist() == [[2, 5, 10, 10], [0, 0, 20, 30], [0, 0, 0, 0], [20, 0, 20, 30]]  # the last two are empty
    points = np.array([[[12, 25, 2], [9, 25, 2], [12, 51, 1], [30, 50, 1], [10, 20, 2], [0, 0, 0]]], np.float32)
    moved = move_keypoints(points, PART)
    assert moved.dtype == np.float32
    assert moved.tolist() == [[[2, 5, 2], [0, 0, 0], [0, 0, 0], [20, 30, 1], [0, 0, 2], [0, 0, 0]]]
    whole = Part((40, 60), (0, 0), (40, 60))
    assert move_boxes(boxes, whole) is boxes and move_keypoints(points, whole) is points


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cutting_is_cutting_the_full_masks(seed):
    """Random blobs, canvases, scales and places against whole masks, scaled by the nearest pixel and cut."""
    rng = np.random.default_rng(seed)
    size = tuple(int(side) for side in rng.integers(40, 90, 2))
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in range(rng.integers(1, 5)):
        centre, radii = rng.uniform(0, 1, 2) * size, rng.uniform(3, 30, 2)
        mask = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
        masks.append(mask & (rng.random() < 0.5 or (y + x) % 40 < 25))
    masks = [mask for mask in masks if mask.any()]
    boxes = [[*np.argwhere(mask).min(0), *np.argwhere(mask).max(0) + 1] for mask in masks]
    example = example_of([encode(mask) for mask in masks], boxes, size)
    example = Example(**{**vars(example), "classes": np.arange(len(masks), dtype=np.int32)})
    canvas, flip = (int(rng.integers(20, 100)), int(rng.integers(20, 100))), bool(rng.random() < 0.5)
    part = random_part(size, canvas, rng.uniform(0.5, 2.5), tuple(rng.random(2)))
    cut = cut_example(example, part, flip)

    window, factors = part.window(size, flip), part.scale(size)

    def shown(mask, samples):
        """What of a mask is seen at so many points along a pixel of the canvas: None, or y1, x1, y2, x2 around them."""
        steps = [(np.arange(side * samples) + 0.5) / samples for side in part.shown]
        places = [window[axis] + steps[axis] / factors[axis] for axis in (0, 1)]
        found = np.argwhere(
            mask[np.ix_(*[np.minimum(place.astype(int), side - 1) for place, side in zip(places, size)])]
        )
        ends = (found.min(0), found.max(0)) if len(found) else None
        return ends and np.array([places[axis][end[axis]] for end in ends for axis in (0, 1)])

    for number, mask in enumerate(full_masks(example)):
        middles, points = shown(mask, 1), shown(mask, 16)
        rows = np.flatnonzero(cut.classes == number)
        assert len(rows) == 1 if middles is not None else len(rows) <= (points is not None)
        for row in rows:
            # Around all pixels of the canvas that show the object, and around nothing else than the object.
            box = cut.boxes[row].astype(np.float64)
            if middles is not None:
                assert (box[:2] <= middles[:2] + 1e-3).all() and (box[2:] >= middles[2:] - 1e-3).all()
            spare = np.tile(1 / (16 * factors), 2) + 1e-3
            assert (box[:2] >= points[:2] - spare[:2]).all() and (box[2:] <= points[2:] + spare[2:]).all()
            crop, exact = mask_crops(cut, 112)[row], sampled(mask, cut.boxes[row], 112)
            if min(box[2:] - box[:2]) >= 12:  # of less, the outline is much of it
                assert np.mean((crop >= 128) == (exact >= 0.5)) >= 0.97


# --- batches ---


def canvas_config(**changes) -> Config:
    data = {"crop": (64,), "scale_jitter": (0.1, 2.0), **changes.pop("data", {})}
    return Config(num_classes=3).replace(input={"shorter_edge": 48, "longer_edge": 96}, data=data, **changes)


def test_all_batches_have_the_canvas():
    dataset = shapes(12, size=(50, 90), seed=3)
    sizes = set()
    for batch in training_batches(dataset, canvas_config(data={"crop": (64, 96)}), 3, seed=1, steps=20):
        assert batch["image"].shape == (3, 64, 96, 3)
        counts = (batch["classes"].numpy() > 0).sum(axis=1)
        assert batch["boxes"].shape[1] == max(1, counts.max()) == batch["masks"].shape[1]
        for row, (height, width) in enumerate(batch["image_size"].numpy().tolist()):
            sizes.add((height, width))
            boxes = batch["boxes"][row].numpy()[: counts[row]]
            assert (boxes >= 0).all() and (boxes <= [height, width, height, width]).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert not batch["image"][row, height:].numpy().any() and not batch["image"][row, :, width:].numpy().any()
    assert len(sizes) > 25 and (64, 96) in sizes and min(sizes)[0] < 20


def test_shown_objects_lie_on_their_pixels():
    """Bright rectangles on black, flipped, scaled and cut: each box is that of the bright pixels."""
    config = canvas_config(data={"scale_jitter": (0.8, 2.0)}, num_classes=1)
    seen = set()
    for batch in training_batches(Rectangle(), config, 1, steps=60):
        bright = batch["image"][0, :, :, 0].numpy() > 127
        box = batch["boxes"][0, 0].numpy()
        if not batch["classes"][0].numpy().any():
            assert bright.any(axis=1).sum() <= 1 or bright.any(axis=0).sum() <= 1
            continue
        found = np.argwhere(bright)
        np.testing.assert_allclose(box, [*found.min(0), *found.max(0) + 1], atol=1.0)
        assert batch["masks"][0, 0].numpy().min() >= 255 // 4
        seen.add((bool((box[2:] - box[:2]).min() > 20), bool((box[:2] == 0).any())))
    assert len(seen) >= 3


class Rectangle(Dataset):
    """One image of 40 x 60: white where its one object is, with two keypoints in its upper corners."""

    BOX = (8, 4, 30, 24)

    def __init__(self):
        sizes = np.array([(40, 60)], np.int32)
        super().__init__("rectangle", ("thing",), (1,), np.array([7]), sizes, keypoint_names=("left_end", "right_end"))

    def example(self, index):
        mask = filled(*self.BOX)
        y1, x1, _, x2 = self.BOX
        return Example(
            *(7, None, np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255, (40, 60)),
            *(np.array([self.BOX], np.float32), np.ones(1, np.int32), np.zeros(1, bool), np.ones(1, np.float32)),
            (encode(mask),),
            keypoints=np.array([[[y1, x1, 2], [y1, x2, 1]]], np.float32),
        )


def test_keypoints_in_batches_are_cut_with_the_image():
    head = {"names": ("left_end", "right_end"), "skeleton": ()}
    config = canvas_config(branches=("keypoints",), keypoint_head=head, num_classes=1, data__scale_jitter=(1.5, 2.0))
    labelled = set()
    for batch in training_batches(Rectangle(), config, 1, steps=40):
        points, box = batch["keypoints"][0, 0].numpy(), batch["boxes"][0, 0].numpy()
        labelled.add(tuple(points[:, 2].astype(int).tolist()))
        for corner, (y, x, seen) in zip((box[1], box[3]), points.tolist()):
            assert (y, x, seen) == (0, 0, 0) if not seen else np.allclose((y, x), (box[0], corner), atol=1e-3)
    # The left end of a flipped image is what was the right one.
    assert {(0, 0)} < labelled and {tuple(sorted(pair)) for pair in labelled} >= {(0, 0), (1, 2)}


def test_proposals_are_cut_with_the_image(tmp_path):
    boxes = np.array([Rectangle.BOX, (0, 0, 40, 60), (38, 58, 40, 60)], np.float32)
    write_proposals(tmp_path / "file.h5", [(7, boxes, np.array([0.9, 0.8, 0.7], np.float32))])
    dataset = with_proposals(Rectangle(), tmp_path / "file.h5")
    config = canvas_config(num_classes=1, rpn={"post_nms_train": 5}, data__scale_jitter=(1.2, 2.0))
    empty = 0
    for batch in training_batches(dataset, config, 1, steps=20):
        given, (height, width) = batch["proposals"][0].numpy(), batch["image_size"][0].numpy()
        assert given.shape == (5, 4) and not given[3:].any()
        np.testing.assert_allclose(given[1], [0, 0, height, width], atol=1e-3)
        if batch["classes"][0, 0]:
            np.testing.assert_allclose(given[0], batch["boxes"][0, 0], atol=0.5)
        empty += bool((given[2, 2:] <= given[2, :2]).any())
    assert 5 < empty < 20


def test_images_without_objects_and_none_left():
    batches = list(training_batches(OfSizes([(30, 80), (80, 30)]), canvas_config(), 2, steps=3))
    assert all(batch["boxes"].shape == (2, 1, 4) and not batch["classes"].numpy().any() for batch in batches)
    assert all(batch["masks"].shape == (2, 1, 112, 112) and batch["image"].shape == (2, 64, 64, 3) for batch in batches)


def test_the_same_seed_cuts_the_same():
    dataset = shapes(8, size=(48, 64), seed=1)
    whole = list(training_batches(dataset, canvas_config(), 2, seed=5, steps=8))
    assert_same(whole, training_batches(dataset, canvas_config(), 2, seed=5, steps=8))
    assert_same(whole[5:], training_batches(dataset, canvas_config(), 2, seed=5, start_step=5, steps=3))
    other = next(iter(training_batches(dataset, canvas_config(), 2, seed=6, steps=1)))
    assert not np.array_equal(whole[0]["image"], other["image"])


def test_forms_are_mixed_on_one_canvas():
    dataset = OfSizes([(480, 640), (640, 480)] * 40)
    apart, mixed = (BatchPlan(dataset, 8, by_aspect=by_aspect) for by_aspect in (True, False))
    forms = [[len(set(dataset.sizes[plan.indices(i)][:, 0].tolist())) for i in range(10)] for plan in (apart, mixed)]
    assert sum(forms[0]) == 10 and sum(forms[1]) >= 18
    config = canvas_config()
    ids = [batch["image_id"].numpy().tolist() for batch in training_batches(dataset, config, 8, steps=3)]
    assert ids == [mixed.image_ids(step) for step in range(3)]


def test_a_tiny_model_learns_from_cut_images():
    from mrcnn_tf import MaskRCNN
    from tests.support.tiny import tiny_config

    config = tiny_config(data={"crop": (64,), "scale_jitter": (0.1, 2.0)}, training={"clip_norm": 1.0})
    model = MaskRCNN(config)
    model.compile()
    batches = training_batches(shapes(6, size=(48, 64), seed=0), config, 2)
    history = model.fit(batches, steps_per_epoch=2, epochs=1, verbose=0).history
    assert np.isfinite([value[-1] for value in history.values()]).all() and int(model.optimizer.iterations) == 2
