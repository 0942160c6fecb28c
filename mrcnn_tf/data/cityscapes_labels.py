"""Cityscapes' labels, and what one annotation file says: a map of ids, and the objects in it.

Shape letters: G objects, H W pixels, R runs of equal ids down the columns of an image.

A pixel's id is label * 1000 + n where it belongs to a single object, and the label alone everywhere else: in roads and
skies, and in groups of objects that could not be told apart. A file is either such a map as a 16-bit PNG
(`_gtFine_instanceIds.png`) or the polygons that it was drawn from, from back to front (`_gtFine_polygons.json`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

# The eight classes of the instance task with their label ids; paper, appendix A.
CLASSES = {
    **{"person": 24, "rider": 25, "car": 26, "truck": 27},
    **{"bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
# All labels that polygons have. A license plate stays part of its car.
LABELS = {
    **{"unlabeled": 0, "ego vehicle": 1, "rectification border": 2, "out of roi": 3, "static": 4, "dynamic": 5},
    **{"ground": 6, "road": 7, "sidewalk": 8, "parking": 9, "rail track": 10, "building": 11, "wall": 12, "fence": 13},
    **{"guard rail": 14, "bridge": 15, "tunnel": 16, "pole": 17, "polegroup": 18, "traffic light": 19},
    **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "caravan": 29, "trailer": 30},
    **{"license plate": -1, **CLASSES},
}
# What the benchmark does not hold against a prediction that lies there.
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
GROUP = "group"  # "cargroup": cars that could not be told apart
_COUNTED = {*CLASSES.values(), LABELS["caravan"], LABELS["trailer"]}  # labels whose objects have numbers
_MOST_LABELS = 34
FIRST_OBJECT = 1000  # the smallest id of a single object

_CLASS_OF_LABEL = np.zeros(66, np.int32)  # 0: none of the eight; as long as 16-bit ids need it
_CLASS_OF_LABEL[list(CLASSES.values())] = np.arange(1, len(CLASSES) + 1)


class BadAnnotation(ValueError):
    """A file that is no annotation; the text says why, without the file's name."""


@dataclass(frozen=True)
class Objects:
    """The objects of the eight classes in one image, in the order of their ids.

    Attributes:
        ids: [G] uint16; below 1000 for groups.
        boxes: [G, 4] float32 y1, x1, y2, x2 around all of an object's parts.
        areas: [G] float32 in pixels.
        counts: G compressed RLE strings.
    """

    ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    counts: tuple[str, ...]

    @property
    def classes(self) -> np.ndarray:
        """[G] int32, 1..8."""
        return _CLASS_OF_LABEL[labels_of(self.ids)]

    @property
    def crowd(self) -> np.ndarray:
        """[G] bool: the groups."""
        return self.ids < FIRST_OBJECT


NO_OBJECTS = Objects(np.zeros(0, np.uint16), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ())


def labels_of(ids: np.ndarray) -> np.ndarray:
    """The label of each id."""
    return np.where(ids >= FIRST_OBJECT, ids // 1000, ids)


# === Files to maps of ids ===


def read_ids(path: str) -> np.ndarray:
    """[H, W] uint16: the ids of a `_instanceIds.png` or `_polygons.json` file.

    Raises:
        BadAnnotation: the file cannot be read, is no such file, or has a label that Cityscapes has not.
    """
    ids = _read_polygons(path) if path.endswith(".json") else _read_png(path)
    labels = np.unique(labels_of(np.flatnonzero(np.bincount(ids.reshape(-1), minlength=1))))
    if labels[-1] >= _MOST_LABELS:
        raise BadAnnotation(f"it has pixels of the label {labels[-1]}; Cityscapes' labels are 0 to {_MOST_LABELS - 1}")
    return ids


def _read_png(path: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image)
    except Exception as error:  # PIL has a dozen error classes for bad bytes
        raise BadAnnotation(f"it is cut short or no image ({' '.join(str(error).split())[:120]})") from error
    if values.ndim != 2 or not mode.startswith("I"):
        # Label ids without the objects' numbers and the coloured pictures lie beside it under similar names.
        raise BadAnnotation(f"it has pixels of the kind '{mode}', an _instanceIds.png has one channel of 16 bits")
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BadAnnotation(f"it has ids from {values.min()} to {values.max()}, out of the range of 16 bits")
    return values.astype(np.uint16)


def _read_polygons(path: str) -> np.ndarray:
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError) as error:
        raise BadAnnotation(f"it is cut short or no json ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(record, dict) or not isinstance(record.get("objects"), list):
        raise BadAnnotation("it should have imgHeight, imgWidth and a list 'objects'")
    size = [record.get(name) for name in ("imgHeight", "imgWidth")]
    if not all(type(side) is int and side > 0 for side in size):
        raise BadAnnotation(f"imgHeight and imgWidth should be positive integers, not {size[0]!r} and {size[1]!r}")
    return draw_ids(record["objects"], *size)


def draw_ids(objects: list[dict], height: int, width: int) -> np.ndarray:
    """[H, W] uint16: polygons drawn one over the other, as Cityscapes' own maps are.

    Args:
        objects: {"label": name, "polygon": [[x, y], ...]} from back to front; those with "deleted" are passed over.

    Raises:
        BadAnnotation: an unknown label or no polygon; the text names the object's place.
    """
    image = Image.new("I", (width, height), LABELS["unlabeled"])
    drawer = ImageDraw.Draw(image)
    numbers = dict.fromkeys(_COUNTED, 0)
    for place, item in enumerate(objects):
        if isinstance(item, dict) and item.get("deleted"):
            continue
        label, is_group, points = _polygon(item, place)
        number = LABELS[label]
        if number in _COUNTED and not is_group:
            numbers[number], number = numbers[number] + 1, number * 1000 + numbers[number]
        if number >= 0:
            drawer.polygon(points, fill=number)
    return np.asarray(image).astype(np.uint16)


def _polygon(item: object, place: int) -> tuple[str, bool, list[tuple[float, float]]]:
    """Label, whether it is a group of such, and the corners (x, y)."""
    if not isinstance(item, dict) or not isinstance(item.get("label"), str):
        raise BadAnnotation(f"objects[{place}]: should have a 'label' and a 'polygon'")
    name = item["label"]
    is_group = name not in LABELS and name.endswith(GROUP)
    label = name[: -len(GROUP)] if is_group else name
    if label not in LABELS:
        raise BadAnnotation(f"objects[{place}]: '{name}' is no label of Cityscapes")
    try:
        points = np.array(item.get("polygon"), np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise BadAnnotation(f"objects[{place}] ({name}): 'polygon' should be three points [x, y] or more")
    return label, is_group, [tuple(point) for point in points.tolist()]


# === Maps of ids to objects ===


def find_objects(ids: np.ndarray) -> Objects:
    """The objects of the eight classes in a map of ids [H, W]; one that is in several parts is one object."""
    height, width = ids.shape
    down = ids.T.reshape(-1)  # COCO's run lengths go down the columns
    edges = np.flatnonzero(down[1:] != down[:-1]) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(down)]])
    values = down[starts]
    wanted = _CLASS_OF_LABEL[labels_of(values)] > 0
    starts, ends, values = starts[wanted], ends[wanted], values[wanted]
    order = np.argsort(values, kind="stable")
    found, first = np.unique(values[order], return_index=True)
    rles = []
    for runs in np.split(order, first[1:]) if len(found) else ():
        bounds = np.stack([starts[runs], ends[runs]], axis=1).reshape(-1)
        lengths = np.diff(np.concatenate([[0], bounds, [len(down)]])).tolist()
        counts = lengths if lengths[-1] else lengths[:-1]
        rles.append(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not rles:
        return NO_OBJECTS
    xywh = coco_mask.toBbox(rles)
    boxes = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], axis=1)
    texts = tuple(rle["counts"].decode("ascii") for rle in rles)
    return Objects(found, boxes.astype(np.float32), coco_mask.area(rles).astype(np.float32), texts)
