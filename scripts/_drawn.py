"""Data sets that are drawn as they are read: kites with keypoints, and outlines of which no two are alike."""

from __future__ import annotations

import abc
import math

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

import mrcnn_tf

SIDE = 128  # pixels of an image
SMALLEST = 40  # pixels that must be in sight of an object


class Drawn(mrcnn_tf.Dataset):
    """Images of up to four polygons of one class, later ones over earlier ones; image i depends on the seed and on i.

    Whoever derives from it draws one polygon in `outline`.
    """

    def __init__(self, name: str, count: int, seed: int, side: int = SIDE, **keypoints):
        super().__init__(
            name=f"{name}s (seed {seed})",
            class_names=(name,),
            category_ids=(1,),
            image_ids=np.arange(1, count + 1, dtype=np.int64),
            sizes=np.full((count, 2), side, np.int32),
            **keypoints,
        )
        self._seed, self._side = seed, side

    @abc.abstractmethod
    def outline(self, rng: np.random.Generator) -> np.ndarray:
        """[V, 2] y, x of one object's corners, in order, all inside the image."""

    def example(self, index: int) -> mrcnn_tf.Example:
        """Draws image `index`."""
        index = range(len(self))[index]
        rng = np.random.default_rng([self._seed, index])
        side = self._side
        outlines = [self.outline(rng) for _ in range(rng.integers(1, 5))]
        top = np.zeros((side, side), np.int32)  # the number of the object in sight, 0 for none
        background = rng.uniform(0, 255, 3)
        image = np.tile(background, (side, side, 1))
        for number, outline in enumerate(outlines, start=1):
            canvas = Image.new("1", (side, side))
            ImageDraw.Draw(canvas).polygon([(x - 0.5, y - 0.5) for y, x in outline], fill=1)
            inside = np.asarray(canvas)
            top[inside] = number
            # Away from the background's colour, so that it can be seen.
            colour = (background + rng.uniform(70, 185, 3)) % 256
            image[inside] = np.broadcast_to(colour * self.shade(outline), image.shape)[inside]
        masks = top == np.arange(1, len(outlines) + 1)[:, None, None]
        image += rng.normal(0, rng.uniform(4, 14), image.shape)
        kept = np.flatnonzero(masks.sum(axis=(1, 2)) >= SMALLEST)
        return self._record(index, image, masks[kept], [outlines[i] for i in kept])

    def shade(self, outline: np.ndarray) -> np.ndarray:
        """[H, W, 1], or of a shape that fits it: how bright the object is."""
        return np.ones((1, 1, 1))

    def keypoints(self, outline: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """[J, 3] y, x, visibility of one object."""
        return np.zeros((0, 3), np.float32)

    def _record(self, index: int, image: np.ndarray, masks: np.ndarray, outlines: list) -> mrcnn_tf.Example:
        segmentations = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
        x, y, width, height = coco_mask.toBbox(segmentations).reshape(-1, 4).T
        points = [self.keypoints(outline, mask) for outline, mask in zip(outlines, masks)]
        points = np.array(points, np.float32).reshape(len(masks), -1, 3)
        return mrcnn_tf.Example(
            image_id=int(self.image_ids[index]),
            path=None,
            pixels=np.clip(image, 0, 255).astype(np.uint8),
            size=(self._side, self._side),
            boxes=np.stack([y, x, y + height, x + width], axis=1).astype(np.float32),
            classes=np.ones(len(masks), np.int32),
            crowd=np.zeros(len(masks), bool),
            areas=masks.sum(axis=(1, 2)).astype(np.float32),
            segmentations=tuple({"size": list(r["size"]), "counts": r["counts"].decode()} for r in segmentations),
            keypoints=points if self.keypoint_names else None,
            source=f"{self.name} image {index}",
        )


# === Kites ===


class Kites(Drawn):
    """Kites with the keypoints head, left, right and tail; what another one hides is hidden."""

    def __init__(self, count: int, seed: int, side: int = SIDE):
        names, skeleton = ("head", "left_corner", "right_corner", "tail"), ((0, 1), (0, 2), (1, 3), (2, 3))
        super().__init__("kite", count, seed, side, keypoint_names=names, skeleton=skeleton)

    def outline(self, rng: np.random.Generator) -> np.ndarray:
        """[4, 2] y, x: head, left, tail and right; the head is up, give or take 45 degrees."""
        length = self._side * math.exp(rng.uniform(math.log(0.2), math.log(0.5)))
        half, waist = length * rng.uniform(0.25, 0.4), length * rng.uniform(0.25, 0.45)
        angle = rng.uniform(-1, 1) * np.pi / 4
        points = np.array([[0.0, 0.0], [waist, -half], [length, 0.0], [waist, half]]) - [length / 2, 0.0]
        return _placed(points, angle, self._side, rng)

    def shade(self, outline: np.ndarray) -> np.ndarray:
        """Darker towards the tail, so that head and tail can be told apart."""
        head, tail = outline[0], outline[2]
        place = np.arange(self._side) + 0.5
        down = (place[:, None, None] - head[0]) * (tail[0] - head[0])
        along = (place[None, :, None] - head[1]) * (tail[1] - head[1]) + down
        return 1.0 - 0.5 * np.clip(along / np.sum((tail - head) ** 2), 0, 1)

    def keypoints(self, outline: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A corner that another kite covers is labelled, and hidden."""
        corners = outline[[0, 1, 3, 2]]
        # Beside the corner lies its own kite, or nothing.
        near = np.clip(corners, 0, self._side - 1).astype(int)
        seen = [mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any() for y, x in near]
        return np.concatenate([corners, np.where(seen, 2.0, 1.0)[:, None]], axis=1)


def _placed(points: np.ndarray, angle: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """Turned, and put somewhere in the image."""
    turned = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    low, high = turned.min(axis=0), turned.max(axis=0)
    return turned + rng.uniform(-low + 1, side - 1 - high)


# === Outlines ===


class Outlines(Drawn):
    """Closed curves with up to six lobes and bays, drawn anew each time: who knows one knows nothing of the next."""

    def __init__(self, count: int, seed: int, side: int = SIDE):
        super().__init__("outline", count, seed, side)

    def outline(self, rng: np.random.Generator) -> np.ndarray:
        """[96, 2] y, x: an ellipse whose radius six waves make larger and smaller."""
        angles = np.arange(96) * (2 * np.pi / 96)
        waves = np.arange(2, 8)
        heights, phases = rng.normal(0, 0.5, 6) / np.sqrt(waves), rng.uniform(0, 2 * np.pi, 6)
        radius = np.exp(np.cos(angles[:, None] * waves + phases) @ heights)
        points = np.stack([radius * np.sin(angles), radius * np.cos(angles) * rng.uniform(0.5, 1.0)], axis=1)
        points *= self._side * math.exp(rng.uniform(math.log(0.2), math.log(0.5))) / np.ptp(points, axis=0).max()
        return _placed(points, rng.uniform(0, 2 * np.pi), self._side, rng)
