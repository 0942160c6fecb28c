"""One record of a data set (`Example`) and what every data set offers (`Dataset`).

Shape letters: G objects of one image, H W pixels, J keypoints, N images.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrcnn_tf.data.errors import Problems


@dataclass(frozen=True)
class Example:
    """One image with its objects, in the pixels of the original image.

    Attributes:
        image_id: the data set's number of the image.
        path: the image file, or None where `pixels` holds the image.
        pixels: [H, W, C] uint8, or None where the image is read from `path`.
        size: (height, width) that the annotations belong to.
        boxes: [G, 4] float32 `[y1, x1, y2, x2]`, clipped to the image, each of positive area.
        classes: [G] int32, 1..K.
        crowd: [G] bool, True for a region that holds many uncounted objects.
        areas: [G] float32, area of the mask in pixels.
        segmentations: G entries, each a list of COCO polygons `[x, y, x, y, ...]` or a COCO RLE
            dictionary with compressed counts.
        keypoints: [G, J, 3] float32 (y, x, visibility 0 not labelled, 1 hidden, 2 seen), or None where the data set
            has none. Continuous pixels as all of ours: COCO numbers pixels from their upper left one, so its keypoint
            (0, 0) is our (.5, .5), the middle of that pixel. Readers and writers convert; keypoints that are not
            labelled stay zeros.
        source: names file and record in messages.
    """

    image_id: int
    path: str | None
    pixels: np.ndarray | None
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: tuple
    keypoints: np.ndarray | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.classes)


@dataclass
class Dataset(abc.ABC):
    """N images with their objects; a reader fills the fields and overrides `example`.

    Attributes:
        name: for messages and file names.
        class_names: K names, of the classes 1..K in order.
        category_ids: K ids that the classes have in the source's own files.
        image_ids: [N] int64.
        sizes: [N, 2] int32 (height, width) of the original images.
        has_masks: the objects have masks; otherwise their boxes stand in for them.
        skip_bad: what cannot be read later on (an image cut short) is counted instead of raised.
        problems: what was skipped.
        keypoint_names: J names, the same for all classes; () where the objects have no keypoints.
        skeleton: pairs of keypoints, counted from 0, that a picture joins by a line.
        proposals: the images' proposals (`data.proposals.ProposalFile`), where they come with the data, else None.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    sizes: np.ndarray
    has_masks: bool = True
    skip_bad: bool = False
    problems: Problems = field(default_factory=Problems)
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    proposals: Any = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @abc.abstractmethod
    def example(self, index: int) -> Example:
        """The record at position `index` (0..N-1)."""

    def object_counts(self) -> np.ndarray:
        """[N] int32: how many objects, crowds not counted, each image has."""
        return np.array([np.sum(~self.example(i).crowd) for i in range(len(self))], np.int32)

    def keypoint_counts(self) -> np.ndarray:
        """[N] int32: how many labelled keypoints, seen or hidden, the objects of each image have, but for crowds."""
        if not self.keypoint_names:
            return np.zeros(len(self), np.int32)
        examples = (self.example(index) for index in range(len(self)))
        return np.array([np.sum(one.keypoints[~one.crowd, :, 2] > 0) for one in examples], np.int32)

    def file_name(self, index: int) -> str:
        """The image's file name without its folder; a made-up one where there is no file."""
        path = self.example(index).path
        return os.path.basename(path) if path else f"{int(self.image_ids[index]):012d}.png"

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The images at these positions, in this order, as a data set of their own."""
        return Subset(self, indices)

    def to_coco(self) -> dict:
        """The data set as the dictionary of a COCO instances json, with its original category ids.

        Objects are numbered from 1, which the COCO evaluation relies on. Keypoints, their names and the skeleton are
        included where the data set has them. Where it has no masks, objects have no "segmentation": the boxes that
        stand in for them would be read as masks.
        """
        images, annotations = [], []
        for index in range(len(self)):
            example = self.example(index)
            height, width = example.size
            images.append(
                {"id": example.image_id, "file_name": self.file_name(index), "height": height, "width": width}
            )
            for row in range(len(example)):
                record = _coco_annotation(example, row, self.category_ids)
                if not self.has_masks:
                    del record["segmentation"]
                annotations.append({"id": len(annotations) + 1, **record})
        points = {"keypoints": list(self.keypoint_names)} if self.keypoint_names else {}
        if points:
            points["skeleton"] = [[start + 1, end + 1] for start, end in self.skeleton]
        classes = zip(self.category_ids, self.class_names)
        categories = [{"id": int(number), "name": name, **points} for number, name in classes]
        return {
            "info": {"description": self.name},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }


def _coco_annotation(example: Example, row: int, category_ids: tuple[int, ...]) -> dict:
    # Rounding takes back what float32 added: COCO's own files have two decimals.
    y1, x1, y2, x2 = (float(value) for value in example.boxes[row])
    record = {
        "image_id": example.image_id,
        "category_id": int(category_ids[example.classes[row] - 1]),
        "iscrowd": int(example.crowd[row]),
        "area": round(float(example.areas[row]), 4),
        "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
        "segmentation": example.segmentations[row],
    }
    if example.keypoints is not None:
        record["keypoints"] = coco_keypoints(example.keypoints[row])
        record["num_keypoints"] = int(np.sum(example.keypoints[row, :, 2] > 0))
    return record


def coco_keypoints(points: np.ndarray) -> list[float]:
    """[J, 3] y, x, visibility as COCO writes them: x, y, visibility, ..., x and y as indices of pixels."""
    shifted = points.astype(np.float64)
    shifted[:, :2] -= 0.5 * (points[:, 2:] > 0)
    return [round(float(value), 3) for value in shifted[:, [1, 0, 2]].reshape(-1)]


class Subset(Dataset):
    """Some images of another data set; what is skipped is counted there."""

    def __init__(self, parent: Dataset, indices: Sequence[int]):
        indices = np.asarray(indices)
        if indices.dtype == np.bool_:
            indices = np.flatnonzero(indices)
        # Indexing the arrays raises IndexError here, not later inside a pipeline.
        indices = indices.astype(np.int64).reshape(-1)
        super().__init__(
            name=parent.name,
            class_names=parent.class_names,
            category_ids=parent.category_ids,
            image_ids=parent.image_ids[indices],
            sizes=parent.sizes[indices],
            has_masks=parent.has_masks,
            skip_bad=parent.skip_bad,
            problems=parent.problems,
            keypoint_names=parent.keypoint_names,
            skeleton=parent.skeleton,
            proposals=parent.proposals,
        )
        self._parent = parent
        self._indices = np.where(indices < 0, indices + len(parent), indices)

    def example(self, index: int) -> Example:
        """The record at position `index` of the subset."""
        return self._parent.example(int(self._indices[index]))

    def object_counts(self) -> np.ndarray:
        """[N] int32: how many objects, crowds not counted, each image has."""
        return self._parent.object_counts()[self._indices]

    def keypoint_counts(self) -> np.ndarray:
        """[N] int32: how many labelled keypoints the objects of each image have."""
        return self._parent.keypoint_counts()[self._indices]

    def file_name(self, index: int) -> str:
        """The parent's name of the image."""
        return self._parent.file_name(int(self._indices[index]))
