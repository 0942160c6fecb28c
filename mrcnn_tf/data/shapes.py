"""A data set made on the fly: circles, squares and triangles that overlap, on noisy backgrounds.

Shape letters: G objects, H W pixels.

Example i depends on the seed and on i alone, so a set needs no disk, and two seeds give a training and
a validation set.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.data.schema import Dataset, Example

CLASS_NAMES = ("circle", "square", "triangle")
_TRIES = 12
_LEAST_VISIBLE = 0.5  # share of a shape that later shapes have to leave in sight
_LEAST_CONTRAST = 90.0  # distance of a shape's colour from the background's, in RGB
_LEAST_DIFFERENCE = 45.0  # the same between two shapes of an image
_SQRT3 = 3.0**0.5


def shapes(
    count: int, size: tuple[int, int] = (128, 128), seed: int = 0, max_objects: int = 5, empty_share: float = 0.04
) -> Dataset:
    """`count` images of `size` (height, width) with up to `max_objects` shapes each.

    Classes: 1 circle, 2 square, 3 triangle. A shape is an eighth to a half as large as the image's
    shorter side; later ones hide parts of earlier ones, which are taken out of the masks. A share of
    the images (`empty_share`) has no object.

    Raises:
        ValueError: no image asked for, or images below 32 pixels.
    """
    if count < 1 or min(size) < 32 or max_objects < 1:
        raise ValueError(f"shapes({count}, {size}): at least 1 image of at least 32 x 32 pixels, 1 object or more")
    return ShapesDataset(count, size, seed, max_objects, empty_share)


class ShapesDataset(Dataset):
    """See `shapes`."""

    def __init__(self, count: int, size: tuple[int, int], seed: int, max_objects: int, empty_share: float):
        super().__init__(
            name=f"shapes (seed {seed})",
            class_names=CLASS_NAMES,
            category_ids=(1, 2, 3),
            image_ids=np.arange(1, count + 1, dtype=np.int64),
            sizes=np.tile(np.array([size], np.int32), (count, 1)),
        )
        self._size = (int(size[0]), int(size[1]))
        self._seed = seed
        self._max_objects = max_objects
        self._empty_share = empty_share

    def example(self, index: int) -> Example:
        """Draws image `index`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        rng = np.random.default_rng([self._seed, index])
        height, width = self._size
        background = rng.uniform(0, 255, 3).astype(np.float32)
        classes, masks = self._place(rng)
        image = _background(rng, height, width, background)
        for mask, colour in zip(masks, _colours(rng, background, len(masks))):
            image[mask] = colour
        visible = _visible(masks)
        image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(4, 14))
        flat = np.asfortranarray(np.stack(visible, axis=-1) if visible else np.zeros((height, width, 0)), np.uint8)
        segmentations = coco_mask.encode(flat)
        xywh = coco_mask.toBbox(segmentations).reshape(-1, 4)
        boxes = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], axis=1)
        return Example(
            image_id=int(self.image_ids[index]),
            path=None,
            pixels=np.clip(image, 0, 255).astype(np.uint8),
            size=self._size,
            boxes=boxes.astype(np.float32),
            classes=np.array(classes, np.int32),
            crowd=np.zeros(len(classes), bool),
            areas=np.array([mask.sum() for mask in visible], np.float32),
            segmentations=tuple({"size": list(r["size"]), "counts": r["counts"].decode()} for r in segmentations),
            source=f"{self.name} image {index}",
        )

    def _place(self, rng: np.random.Generator) -> tuple[list[int], list[np.ndarray]]:
        """Classes and whole masks, lowest first; a shape that would hide too much is drawn again."""
        count = 0 if rng.random() < self._empty_share else int(rng.integers(1, self._max_objects + 1))
        classes: list[int] = []
        masks: list[np.ndarray] = []
        for _ in range(count):
            for _ in range(_TRIES):
                kind = int(rng.integers(1, len(CLASS_NAMES) + 1))
                mask = _draw(rng, kind, self._size)
                visible = _visible([*masks, mask])
                if all(v.sum() >= _LEAST_VISIBLE * m.sum() for v, m in zip(visible, masks)):
                    classes.append(kind)
                    masks.append(mask)
                    break
        return classes, masks


def _visible(masks: list[np.ndarray]) -> list[np.ndarray]:
    """What of each mask the later ones leave in sight."""
    hidden = np.zeros_like(masks[0]) if masks else None
    visible = []
    for mask in reversed(masks):
        visible.append(mask & ~hidden)
        hidden = hidden | mask
    return visible[::-1]


def _draw(rng: np.random.Generator, kind: int, size: tuple[int, int]) -> np.ndarray:
    """[H, W] bool: a shape wholly inside the image, its pixels those whose middle it covers."""
    height, width = size
    radius = 0.5 * min(size) * np.exp(rng.uniform(np.log(1 / 8), np.log(1 / 2)))
    y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    angle = rng.uniform(-np.pi / 8, np.pi / 8)
    down = (np.arange(height, dtype=np.float32) + 0.5 - y)[:, None]
    right = (np.arange(width, dtype=np.float32) + 0.5 - x)[None, :]
    if kind == 1:
        return down**2 + right**2 <= radius**2
    along, across = np.cos(angle) * right + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * right
    if kind == 2:
        half = radius / 2**0.5
        return (np.abs(along) <= half) & (np.abs(across) <= half)
    # An equilateral triangle with its corners on the circle of the radius, one of them up.
    return (across <= radius / 2) & (_SQRT3 * np.abs(along) <= across + radius)


def _background(rng: np.random.Generator, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """[H, W, 3] float32: the colour with a slope of light across the image."""
    slope = rng.uniform(-30, 30, (2, 3)).astype(np.float32)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    right = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    return colour + down * slope[0] + right * slope[1]


def _colours(rng: np.random.Generator, background: np.ndarray, count: int) -> list[np.ndarray]:
    """Colours that can be told from the background and from each other (or, in the end, nearly so)."""
    colours: list[np.ndarray] = []
    for _ in range(count):
        leeway = 1.0
        while True:
            colour = rng.uniform(0, 255, 3).astype(np.float32)
            apart = all(np.linalg.norm(colour - other) >= leeway * _LEAST_DIFFERENCE for other in colours)
            if apart and np.linalg.norm(colour - background) >= _LEAST_CONTRAST:
                break
            leeway *= 0.95
        colours.append(colour)
    return colours
