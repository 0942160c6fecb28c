"""Pictures of detections and ground truth, as arrays and files; no window and no pyplot state is involved.

Shape letters: H W pixels of the image, h w pixels of the picture, N objects, J keypoints.

Pictures are uint8 RGB arrays [h, w, 3]. Small images are enlarged, so that names and scores can be read. The charts of
`mrcnn_tf.charts` (`plot_history`, `plot_per_class`) are offered here as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from contourpy import LineType, contour_generator
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from PIL import Image

from mrcnn_tf import pasting
from mrcnn_tf.charts import plot_history, plot_per_class
from mrcnn_tf.detections import Detections
from mrcnn_tf.skeletons import INK, Skeleton, draw_skeleton

__all__ = [
    "Skeleton",
    "draw_detections",
    "draw_ground_truth",
    "grid",
    "plot_history",
    "plot_per_class",
    "save",
    "side_by_side",
]

# Hues a golden angle apart: neighbours in the list are far apart in colour, and all are bright enough for black text.
COLOURS = (
    *("#44a5ff", "#ff886a", "#1fd19a", "#c57fff", "#f5b100", "#00c2e8", "#ff68a0", "#7cd955"),
    *("#8f9bff", "#fd8b1e", "#00e2d9", "#e07ee0", "#cdbd12", "#ff6f78"),
)
LEAST_SIDE = 800  # pixels of a picture's longer side
DPI = 100
MOST_HIDDEN = 0.15  # share of any object's box that a label may cover
FEW = 30  # objects that get their labels in any case
SKELETONS_ABOVE = 5_000  # all masks and boxes, in the order of drawing


def draw_detections(
    image: Any,
    detections: Detections,
    *,
    min_score: float = 0.0,
    colour_by: str = "instance",
    masks: bool = True,
    boxes: bool = True,
    keypoints: bool = True,
    labels: bool = True,
    scores: bool = True,
    skeleton: Skeleton | None = None,
    min_keypoint: float = 0.0,
    scale: float | None = None,
    crowd: Sequence[bool] | None = None,
) -> np.ndarray:
    """An image with the objects on it: translucent mask with its contour, box, skeleton of keypoints, name and score.

    Labels are placed in descending order of score where they hide neither another label nor much of any object's
    box. Where it is too crowded for that, a label shrinks to its score; among very many objects it may be left out.

    Args:
        image: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4 or more] (the first three channels are shown); uint8, uint16,
            or float 0..255.
        detections: the objects, in the pixels of the image.
        min_score: draws nothing below.
        colour_by: "instance" (touching objects stay apart) or "class".
        masks, boxes, keypoints, labels, scores: what is drawn.
        skeleton: names and lines of the keypoints; by default COCO's where there are 17, else dots alone.
        min_keypoint: keypoints are drawn whose third number is above: the network's logit, or ground truth's
            visibility.
        scale: picture pixels per image pixel; by default images below 800 pixels are enlarged to that.
        crowd: [N] marks crowds, whose outlines are dashed.

    Returns:
        The picture [h, w, 3] uint8.

    Raises:
        ValueError: an image of another size than the detections', no image at all, an unknown `colour_by`, a skeleton
            of another number of keypoints.
    """
    if colour_by not in ("instance", "class"):
        raise ValueError(f"colour_by = {colour_by!r}: 'instance' or 'class'")
    pixels = _rgb(image)
    if pixels.shape[:2] != detections.image_size:
        size = detections.image_size
        raise ValueError(f"an image of {pixels.shape[:2]}, but detections on {size} (height, width)")
    crowd = np.zeros(len(detections), bool) if crowd is None else np.asarray(crowd, bool)
    keep = detections.scores >= min_score
    detections, crowd = detections[keep], crowd[keep]
    canvas = _Canvas(pixels, scale or max(1.0, LEAST_SIDE / max(pixels.shape[:2])), detections.boxes)
    numbers = detections.classes - 1 if colour_by == "class" else np.arange(len(detections))
    colours = [COLOURS[number % len(COLOURS)] for number in numbers]
    corners = detections.boxes
    by_area = np.argsort(-np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1), kind="stable")
    for order, index in enumerate(by_area):  # small objects lie on large ones
        if masks and detections.has_masks:
            canvas.mask(_outline(detections, index), colours[index], order, bool(crowd[index]))
        if boxes:
            canvas.box(corners[index], colours[index], order, bool(crowd[index]))
        if keypoints and detections.keypoints is not None:
            points = detections.keypoints[index]
            canvas.skeleton(points, points[:, 2] > min_keypoint, skeleton, corners[index], colours[index], order)
    if labels:
        for index in np.argsort(-detections.scores, kind="stable"):
            name = detections.names[index] + (" (crowd)" if crowd[index] else "")
            score = f"{100 * detections.scores[index]:.0f}%"
            texts = (f"{name} {score}", score) if scores else (name,)
            canvas.label(texts, index, colours[index])
    return canvas.picture()


def draw_ground_truth(image: Any, example: Any, class_names: Sequence[str], **options: Any) -> np.ndarray:
    """An image with its ground truth (a `data.schema.Example`) on it; crowds have dashed outlines.

    `options` are those of `draw_detections`.
    """
    truth = Detections.from_example(example, class_names, crowds=True)
    return draw_detections(image, truth, **{"scores": False, "crowd": example.crowd, **options})


def side_by_side(image: Any, truth: Any, detections: Detections, **options: Any) -> np.ndarray:
    """Ground truth on the left, prediction on the right, under their titles.

    Args:
        image: as in `draw_detections`.
        truth: a `data.schema.Example`, or Detections.
        detections: the prediction.
        options: those of `draw_detections`; `min_score` and `min_keypoint` apply to the prediction.
    """
    shown = {name: value for name, value in options.items() if name not in ("min_score", "min_keypoint")}
    if isinstance(truth, Detections):
        left, count = draw_detections(image, truth, **{"scores": False, **shown}), len(truth)
    else:
        left, count = draw_ground_truth(image, truth, detections.class_names, **shown), int(np.sum(~truth.crowd))
    right = draw_detections(image, detections, **options)
    found = len(detections.filter(options.get("min_score", 0.0)))
    return grid([_titled(left, "Ground truth", count), _titled(right, "Prediction", found)], columns=2)


def grid(pictures: Sequence[np.ndarray], columns: int = 2, gap: int = 12) -> np.ndarray:
    """Pictures in rows on white, each in the upper left of its cell.

    Raises:
        ValueError: no pictures.
    """
    if not len(pictures):
        raise ValueError("a grid needs at least one picture")
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    widths = [max(picture.shape[1] for picture in pictures[column::columns]) for column in range(columns)]
    sheet = np.full((sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (columns + 1), 3), 255, np.uint8)
    for row, members in enumerate(rows):
        top = gap * (row + 1) + sum(heights[:row])
        for column, picture in enumerate(members):
            left = gap * (column + 1) + sum(widths[:column])
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def save(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Writes a picture to a file (PNG, JPEG, ... by its ending) and makes the folder it stands in."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(picture).save(path)


class _Background(Artist):
    """The image behind everything, pixel for pixel; `imshow` would resample it, in seconds where it is large."""

    def __init__(self, pixels: np.ndarray):
        super().__init__()
        self.set_zorder(-1)
        self._rgba = np.full((*pixels.shape[:2], 4), 255, np.uint8)
        self._rgba[..., :3] = pixels

    def draw(self, renderer: Any) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self._rgba[::-1])  # it counts rows from the bottom


class _Canvas:
    """A figure that is the image, in the image's continuous pixels; labels are laid out in the picture's."""

    def __init__(self, pixels: np.ndarray, scale: float, boxes: np.ndarray):
        height, width = pixels.shape[:2]
        self.height, self.width = max(1, round(height * scale)), max(1, round(width * scale))
        self.factors = np.array([self.height / height, self.width / width])
        self.boxes = boxes * np.tile(self.factors, 2)
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        if (self.height, self.width) != (height, width):
            how = Image.Resampling.BICUBIC if scale < 4 else Image.Resampling.NEAREST
            pixels = np.asarray(Image.fromarray(pixels).resize((self.width, self.height), how))
        self.figure.add_artist(_Background(pixels))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        unit = max(1.0, max(self.height, self.width) / 1100)  # lines and letters grow with large pictures
        self.line = 1.4 * unit
        self.font = FontProperties(family="DejaVu Sans", weight="bold", size=9.5 * unit)
        self.labels = np.zeros((0, 4))

    def mask(self, outline: Path | None, colour: str, order: int, dashed: bool) -> None:
        if outline is None:
            return
        style = {"linestyle": (0, (2, 1.5)) if dashed else "solid", "zorder": 2 + order, "joinstyle": "round"}
        fill = PathPatch(outline, facecolor=colour, edgecolor="none", alpha=0.38, zorder=2 + order)
        edge = PathPatch(outline, facecolor="none", edgecolor=colour, linewidth=self.line, **style)
        edge.set_path_effects([withStroke(linewidth=self.line + 1.4, foreground=INK, alpha=0.7)])
        self.axes.add_artist(fill)
        self.axes.add_artist(edge)

    def box(self, box: np.ndarray, colour: str, order: int, dashed: bool) -> None:
        y1, x1, y2, x2 = box
        style = {"linestyle": (0, (4, 2)) if dashed else "solid", "zorder": 2 + order}
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=self.line, **style)
        frame.set_path_effects([withStroke(linewidth=self.line + 1.4, foreground=INK, alpha=0.7)])
        self.axes.add_artist(frame)

    def skeleton(
        self, points: np.ndarray, shown: np.ndarray, skeleton: Skeleton | None, box: np.ndarray, colour: str, order: int
    ) -> None:
        # Dots shrink with their object, so that those of a small one do not run together.
        extent = np.sqrt(np.prod(np.maximum((box[2:] - box[:2]) * self.factors, 0)))
        size = float(np.clip(0.03 * extent, 2.2, 4.6 * self.line)) * 72 / DPI
        skeleton = skeleton or Skeleton.of_count(len(points))
        draw_skeleton(self.axes, points, shown, skeleton, colour, size, SKELETONS_ABOVE + order)

    def label(self, texts: Sequence[str], index: int, colour: str) -> None:
        """Puts the first of the texts that finds a place at box `index` where it hides little; none where none does.

        Few objects get their label in any case, unless it would hide another.
        """
        trials = [(text, MOST_HIDDEN) for text in texts]
        if len(self.boxes) <= FEW:
            trials.insert(1, (texts[0], 3 * MOST_HIDDEN))
            trials += [(text, 1.0) for text in texts]
        for text, limit in trials:
            place = self._free_place(*self._extent(text), self.boxes[index], limit)
            if place is not None:
                self._chip(text, place, colour)
                self.labels = np.concatenate([self.labels, place[None]])
                return

    def _extent(self, text: str) -> tuple[float, float]:
        """Height and width of a label in picture pixels, with its margins."""
        renderer = self.figure.canvas.get_renderer()
        width, _, _ = renderer.get_text_width_height_descent(text, self.font, False)
        size = self.font.get_size() * DPI / 72
        return 1.45 * size, width + 0.7 * size

    def _free_place(self, tall: float, wide: float, box: np.ndarray, limit: float) -> np.ndarray | None:
        """y1, x1, y2, x2 of the label: above the box, inside of it or below it; it hides a share `limit` of no box."""
        top, left, bottom, right = box
        corners = [(top - tall, left), (top, left), (bottom, left), (bottom - tall, left)]
        corners += [(top - tall, right - wide), (top, right - wide), (bottom, right - wide)]
        for y, x in corners:
            x = np.clip(x, 0, max(0, self.width - wide))
            place = np.array([y, x, y + tall, x + wide])
            inside = y >= 0 and y + tall <= self.height
            if inside and not _covered(self.labels, place).any() and (_covered(self.boxes, place) <= limit).all():
                return place
        return None

    def _chip(self, text: str, place: np.ndarray, colour: str) -> None:
        y1, x1, y2, x2 = place / np.tile(self.factors, 2)
        chip = Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=colour, edgecolor=INK, linewidth=0.6, zorder=10_000)
        self.axes.add_artist(chip)
        style = {"ha": "center", "va": "center_baseline", "color": INK, "parse_math": False, "zorder": 10_001}
        self.axes.text((x1 + x2) / 2, (y1 + y2) / 2, text, fontproperties=self.font, clip_on=True, **style)

    def picture(self) -> np.ndarray:
        return _draw(self.figure)


def _covered(boxes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """[N] share of each box [N, 4] that lies under `place` [4]."""
    sides = np.minimum(boxes[:, 2:], place[2:]) - np.maximum(boxes[:, :2], place[:2])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.prod(np.maximum(sides, 0), axis=1) / np.maximum(area, 1e-6)


def _draw(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def _titled(picture: np.ndarray, title: str, count: int) -> np.ndarray:
    """The picture under a strip with its title and the number of objects."""
    title = f"{title}: {count} object{'' if count == 1 else 's'}"
    width, unit = picture.shape[1], max(1.0, max(picture.shape[:2]) / 1100)
    figure = Figure(figsize=(width / DPI, 0.3 * unit), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0, 0.5, title, ha="left", va="center", fontsize=11.5 * unit, color=INK, family="DejaVu Sans", weight="bold"
    )
    strip = _draw(figure)
    fitted = np.full((strip.shape[0], width, 3), 255, np.uint8)
    fitted[:, : min(width, strip.shape[1])] = strip[:, :width]
    return np.concatenate([fitted, picture])


def _outline(detections: Detections, index: int) -> Path | None:
    """The contour of one mask in the image's continuous pixels; None where the mask is empty."""
    if detections.mask_crops is not None:
        crop, box = detections.mask_crops[index], detections.mask_boxes[index]
        top, left, values = pasting.paste_patch(crop, box, *detections.image_size)
        level = detections.mask_threshold
    else:
        mask = detections.mask(index)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        top, left, level = rows[0], columns[0], 0.5
        values = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.float32)
    lines = contour_generator(z=np.pad(values, 1), line_type=LineType.Separate).lines(level)
    # Value j of the padded patch stands for the pixel whose middle is at left + j - 1 + .5.
    paths = [Path(line + np.array([left - 0.5, top - 0.5]), closed=True) for line in lines if len(line) > 2]
    return Path.make_compound_path(*paths) if paths else None


def _rgb(image: Any) -> np.ndarray:
    """[H, W, 3] uint8 of an image of any type and number of channels."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or not image.size:
        raise ValueError(f"an image should be [H, W] or [H, W, C], not {list(image.shape)}")
    channels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if channels.dtype == np.uint16:
        channels = channels / 257.0
    elif channels.dtype == bool:
        channels = channels * 255.0
    return channels if channels.dtype == np.uint8 else np.clip(np.round(channels), 0, 255).astype(np.uint8)
