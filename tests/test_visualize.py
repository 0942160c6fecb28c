"""Pictures: what stands at which pixel, how labels are laid out, and which inputs are taken."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mrcnn_tf import pasting, visualize
from mrcnn_tf.detections import Detections

NAMES = ("cat", "dog")
PLAIN = {"boxes": False, "labels": False}


def colour(number):
    return 255 * np.array(to_rgb(visualize.COLOURS[number]))


def one(box, size, classes=(1,), **masks):
    return Detections([box], classes, [0.9], NAMES, size, **masks)


def ring():
    """A mask with a hole: rows and columns 2 to 8 of 12, without 4 to 6."""
    mask = np.zeros((1, 12, 12), bool)
    mask[0, 2:9, 2:9] = True
    mask[0, 4:7, 4:7] = False
    return mask


def test_nothing_drawn_is_the_image_itself():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    none = Detections([], [], [], NAMES, (30, 40))
    np.testing.assert_array_equal(visualize.draw_detections(image, none, scale=1), image)
    # By default the longer side grows to 800 pixels, each pixel a block.
    enlarged = visualize.draw_detections(image, none)
    assert enlarged.shape == (600, 800, 3)
    np.testing.assert_array_equal(enlarged[10::20, 10::20], image)


@pytest.mark.parametrize("form", ["masks", "segmentations"])
def test_a_mask_covers_its_pixels_and_not_its_hole(form):
    masks = ring() if form == "masks" else [pasting.encode_mask(ring()[0])]
    found = one([2, 2, 9, 9], (12, 12), **{form: masks})
    picture = visualize.draw_detections(np.full((12, 12), 200, np.uint8), found, scale=20, **PLAIN)
    middles = picture[10::20, 10::20].astype(float)
    blend = 0.62 * 200 + 0.38 * colour(0)
    # The contour runs along the border between pixels and does not reach their middles.
    for row in range(12):
        for column in range(12):
            expected = blend if ring()[0, row, column] else [200] * 3
            np.testing.assert_allclose(middles[row, column], expected, atol=2)


def test_a_crop_is_drawn_where_it_is_pasted():
    found = one([2, 3, 10, 11], (12, 16), mask_crops=np.ones((1, 28, 28)))
    picture = visualize.draw_detections(np.zeros((12, 16, 3)), found, scale=20, **PLAIN)
    covered = picture[10::20, 10::20].sum(axis=2) > 60
    np.testing.assert_array_equal(covered, found.masks[0])


def test_a_box_is_drawn_on_its_edges():
    found = one([2, 3, 10, 14], (12, 16))
    picture = visualize.draw_detections(np.zeros((12, 16, 3)), found, scale=20, labels=False)
    for y, x in ((40, 160), (200, 160), (120, 60), (120, 280)):
        np.testing.assert_allclose(picture[y, x].astype(float), colour(0), atol=60)
    assert picture[120, 160].sum() == 0 and picture[20, 160].sum() == 0


def test_min_score_and_colours():
    boxes = [[1, 1, 5, 5], [1, 7, 5, 11], [7, 1, 11, 5]]
    masks = np.zeros((3, 12, 12), bool)
    for mask, (y1, x1, y2, x2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    found = Detections(boxes, [2, 2, 1], [0.9, 0.8, 0.3], NAMES, (12, 12), masks=masks)
    white = np.full((12, 12, 3), 255, np.uint8)
    middles = [(60, 60), (60, 180), (180, 60)]
    for options, numbers in (({}, (0, 1, 2)), ({"colour_by": "class"}, (1, 1, 0)), ({"min_score": 0.5}, (0, 1, None))):
        picture = visualize.draw_detections(white, found, scale=20, **PLAIN, **options)
        for (y, x), number in zip(middles, numbers):
            expected = [255] * 3 if number is None else 0.62 * 255 + 0.38 * colour(number)
            np.testing.assert_allclose(picture[y, x], expected, atol=2)


@pytest.mark.parametrize(
    "image",
    [
        np.full((9, 9), 128, np.uint8),
        np.full((9, 9, 1), 128.2, np.float32),
        np.full((9, 9, 3), 128 * 257, np.uint16),
        np.full((9, 9, 4), 128, np.int64),
        np.dstack([np.full((9, 9, 3), 128, np.uint8), np.zeros((9, 9, 9), np.uint8)]),
    ],
)
def test_images_of_every_type(image):
    picture = visualize.draw_detections(image, Detections([], [], [], NAMES, (9, 9)), scale=1)
    assert picture.dtype == np.uint8 and (picture == 128).all() and picture.shape == (9, 9, 3)


def test_what_cannot_be_drawn_is_refused():
    found = one([1, 1, 5, 5], (9, 9))
    with pytest.raises(ValueError, match=r"an image of \(9, 8\), but detections on \(9, 9\)"):
        visualize.draw_detections(np.zeros((9, 8, 3)), found)
    with pytest.raises(ValueError, match="an image should be"):
        visualize.draw_detections(np.zeros((1, 9, 9, 3)), found)
    with pytest.raises(ValueError, match="colour_by = 'score'"):
        visualize.draw_detections(np.zeros((9, 9, 3)), found, colour_by="score")


def overlap(boxes):
    """The largest area that two of the boxes share."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    areas = np.prod(np.maximum(high - low, 0), axis=2)
    return (areas - np.diag(np.diag(areas))).max()


@pytest.mark.parametrize("count, side", [(12, 60), (200, 30)])
def test_labels_lie_apart_inside_the_picture_and_hide_little(count, side):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [500 - side, 700 - side], (count, 2))
    boxes = np.concatenate([corners, corners + side], axis=1)
    canvas = visualize._Canvas(np.zeros((500, 700, 3), np.uint8), 1.0, boxes)
    for index in range(count):
        canvas.label(("nucleus 98%", "98%"), index, "#ffffff")
    assert overlap(canvas.labels) < 1e-6
    assert canvas.labels.min() >= 0 and (canvas.labels[:, 2:] <= [500 + 1e-6, 700 + 1e-6]).all()
    if count <= visualize.FEW:
        assert len(canvas.labels) == count
    else:
        hidden = [visualize._covered(boxes, label).max() for label in canvas.labels]
        assert max(hidden) <= visualize.MOST_HIDDEN and 20 < len(canvas.labels) < count


def test_names_with_any_letters_and_objects_of_no_size():
    found = Detections([[0, 0, 20, 30], [5, 5, 5, 5]], [1, 1], [1, 1], ("$x^{ß_1$",), (20, 30))
    assert visualize.draw_detections(np.zeros((20, 30, 3)), found).shape == (533, 800, 3)


def example():
    return SimpleNamespace(
        boxes=np.array([[2, 2, 9, 9], [0, 0, 12, 12]], np.float32),
        classes=np.array([1, 2]),
        crowd=np.array([False, True]),
        segmentations=(pasting.encode_mask(ring()[0]), [[0, 10, 12, 10, 12, 12, 0, 12]]),
        keypoints=None,
        size=(12, 12),
    )


def test_ground_truth_beside_prediction():
    image = np.full((12, 12, 3), 255, np.uint8)
    found = one([2, 2, 9, 9], (12, 12), masks=ring())
    truth = visualize.draw_ground_truth(image, example(), NAMES, scale=20, **PLAIN)
    prediction = visualize.draw_detections(image, found, scale=20, **PLAIN)
    both = visualize.side_by_side(image, example(), found, scale=20, **PLAIN)
    strip = both.shape[0] - 240 - 2 * 12
    assert both.shape[1] == 2 * 240 + 3 * 12 and 20 < strip < 60
    np.testing.assert_array_equal(both[12 + strip : -12, 12:252], truth)
    np.testing.assert_array_equal(both[12 + strip : -12, 264:504], prediction)
    assert (both[12 : 12 + strip, 12:252] < 100).any()  # the title
    # The crowd (the last two rows) is drawn in the second colour.
    np.testing.assert_allclose(truth[230, 130], 0.62 * 255 + 0.38 * colour(1), atol=2)
    # From detections as from the example, and what scores less is left out on the right alone.
    left = Detections.from_example(example(), NAMES)
    again = visualize.side_by_side(image, left, found, scale=20, min_score=0.95, **PLAIN)
    np.testing.assert_array_equal(again[12 + strip : -12, 12:252], prediction)  # the same object
    assert (again[12 + strip : -12, 264:504] == 255).all()


def test_a_grid_keeps_every_picture():
    pictures = [
        np.full((height, width, 3), 10 * n, np.uint8) for n, (height, width) in enumerate([(4, 6), (8, 2), (3, 3)])
    ]
    sheet = visualize.grid(pictures, columns=2, gap=1)
    assert sheet.shape == (8 + 3 + 3, 6 + 2 + 3, 3)
    assert (sheet[1:5, 1:7] == 0).all() and (sheet[1:9, 8:10] == 10).all() and (sheet[10:13, 1:4] == 20).all()
    assert (sheet == 255).sum() == sheet.size - 3 * (24 + 16 + 9)
    with pytest.raises(ValueError, match="at least one"):
        visualize.grid([])


def test_save_makes_the_folder(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    visualize.save(picture, tmp_path / "new" / "picture.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "picture.png")), picture)


def test_drawing_leaves_no_figure_and_no_backend_behind():
    """No window is needed, and a notebook's own pyplot figures stay as they are."""
    code = (
        "import numpy as np, matplotlib, matplotlib.pyplot as plt\n"
        "matplotlib.use('svg')\n"
        "import mrcnn_tf\n"
        "empty = np.zeros((0, 4))\n"
        "found = mrcnn_tf.Detections(empty, [], [], ('a',), (8, 9), masks=np.zeros((0, 8, 9), bool))\n"
        "picture = mrcnn_tf.visualize.draw_detections(np.zeros((8, 9, 3), 'uint8'), found)\n"
        "mrcnn_tf.visualize.plot_history({'loss': [1.0, 0.5]})\n"
        "print(picture.ndim, plt.get_fignums(), matplotlib.get_backend())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2].lower() == "3 [] svg"
