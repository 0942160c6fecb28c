"""The records of a COCO json: a reader that streams them, and a compact store for annotations.

The json of COCO's 118,000 training images parsed as a whole takes several gigabytes of Python objects.
Here each record is parsed, checked by itself and put into flat arrays before the next one is parsed.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.masks import rle_counts

NO_MASK, POLYGONS, RLE = 0, 1, 2
_SPACE = re.compile(r"[ \t\r\n]*")


class BadRecord(Exception):
    """One record that cannot be used: what kind of fault it is, and what is wrong in words.

    `rest` has the fields that make a usable record of it, where there are such, in the place of its own.
    """

    def __init__(self, kind: str, what: str, rest: dict | None = None):
        super().__init__(what)
        self.kind = kind
        self.rest = rest


def read_members(path: str, lists: dict[str, Callable[[int, object], None]]) -> dict:
    """Parses a json file whose top level is an object, its long lists item by item.

    Args:
        lists: for members that hold lists, who takes the items (position, item) as they are parsed.

    Returns:
        The members; those of `lists` as their number of items.

    Raises:
        DataError: no such file, not json, or another top level than an object.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; correct the path", "file missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as json text ({error}); give a COCO json file", "not json") from None
    try:
        return _members(text, lists)
    except json.JSONDecodeError as error:
        message = f"{path}: not json ({error.msg}, line {error.lineno} column {error.colno}); is the file whole?"
        raise DataError(message, "not json") from None
    except TypeError:
        message = f"{path}: not COCO: the file should be an object with images, annotations and categories"
        raise DataError(message, "not COCO") from None


def _members(text: str, lists: dict[str, Callable[[int, object], None]]) -> dict:
    decoder = json.JSONDecoder()
    found: dict = {}
    position = _skip(text, 0)
    if text[position : position + 1] != "{":
        decoder.raw_decode(text, position)  # tells "not json" from "not an object"
        raise TypeError
    position = _skip(text, position + 1)
    while text[position : position + 1] != "}":
        if found:
            position = _expect(text, position, ",")
        start = position
        name, position = decoder.raw_decode(text, position)
        if not isinstance(name, str):
            raise json.JSONDecodeError("Expecting a property name in double quotes", text, start)
        position = _expect(text, _skip(text, position), ":")
        if name in lists and text[position : position + 1] == "[":
            found[name], position = _items(text, position, decoder, lists[name])
        else:
            found[name], position = decoder.raw_decode(text, position)
        position = _skip(text, position)
    if _skip(text, position + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, position + 1)
    return found


def _items(text: str, position: int, decoder: json.JSONDecoder, take: Callable[[int, object], None]) -> tuple[int, int]:
    count = 0
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        if count:
            position = _expect(text, position, ",")
        item, position = decoder.raw_decode(text, position)
        take(count, item)
        count += 1
        position = _skip(text, position)
    return count, position + 1


def _skip(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()


def _expect(text: str, position: int, mark: str) -> int:
    if text[position : position + 1] != mark:
        raise json.JSONDecodeError(f"Expecting '{mark}'", text, position)
    return _skip(text, position + 1)


def integer(record: dict, name: str) -> int:
    """A whole number of a record, also where it is written as 3.0 or "3"."""
    if name not in record:
        raise BadRecord("field missing", f"'{name}' is missing")
    value = record[name]
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        value = int(value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or abs(value) >= 2**63:
        raise BadRecord("field of a wrong type", f"'{name}' should be a whole number, not {short(value)}")
    return int(value)


def short(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _numbers(values: object, what: str) -> array:
    try:
        numbers = array("d", values)
    except (TypeError, OverflowError):
        raise BadRecord("field of a wrong type", f"{what} should be numbers, not {short(values)}") from None
    if not math.isfinite(sum(numbers)):
        raise BadRecord("field of a wrong type", f"{what} has values that are not finite: {short(values)}")
    return numbers


class Annotations:
    """The annotations of a file as columns; row r is the r-th that was added."""

    def __init__(self):
        self.position = array("q")  # in the file's list
        self.id = array("q")  # -1 where the file gives none
        self.image = array("q")
        self.category = array("q")
        self.crowd = array("b")
        self.area = array("d")  # nan where the file gives none
        self.boxes = array("d")  # x, y, width, height of each row
        self.mask_kind = array("b")
        self.mask_start = array("q")  # rows of `ring_end`, or a row of `rles`
        self.mask_stop = array("q")
        self.mask_size = array("q")  # height, width of each row's RLE
        self.ring_end = array("q")  # of each polygon, in `points`
        self.points = array("d")
        self.rles: list[bytes] = []
        self.keypoint_end = array("q")  # of each row, in `keypoints`
        self.keypoints = array("d")

    def __len__(self) -> int:
        return len(self.id)

    def add(self, position: int, record: object) -> None:
        """Checks a record by itself and stores it.

        Raises:
            BadRecord: it cannot be used; nothing was stored.
        """
        if not isinstance(record, dict):
            raise BadRecord("field of a wrong type", f"should be an object, not {short(record)}")
        number = integer(record, "id") if record.get("id") is not None else -1
        image, category = integer(record, "image_id"), integer(record, "category_id")
        crowd = record.get("iscrowd")  # some tools write true and false
        crowd = int(crowd or 0) if crowd is None or isinstance(crowd, bool) else integer(record, "iscrowd")
        if crowd not in (0, 1):
            raise BadRecord("field of a wrong type", f"'iscrowd' should be 0 or 1, not {crowd}")
        area = record.get("area")
        area = _numbers([area], "'area'")[0] if area is not None else math.nan
        keypoints = _numbers(record.get("keypoints") or [], "'keypoints'")
        if len(keypoints) % 3:
            raise BadRecord(
                "field of a wrong type", f"'keypoints' should be x, y, v triples, not {len(keypoints)} numbers"
            )
        if not set(keypoints[2::3]) <= {0.0, 1.0, 2.0}:
            what = f"a keypoint's visibility should be 0, 1 or 2, not {short(keypoints[2::3].tolist())}"
            raise BadRecord("field of a wrong type", what)
        rings, rle, size = _segmentation(record.get("segmentation"))
        box = _box(record.get("bbox"), rings, rle, size)

        self.position.append(position)
        self.id.append(number)
        self.image.append(image)
        self.category.append(category)
        self.crowd.append(crowd)
        self.area.append(area)
        self.boxes.extend(box)
        self.mask_size.extend(size)
        self.keypoints.extend(keypoints)
        self.keypoint_end.append(len(self.keypoints))
        self._add_mask(rings, rle)

    def _add_mask(self, rings: list[array], rle: bytes | None) -> None:
        if rle is not None:
            self.mask_kind.append(RLE)
            self.mask_start.append(len(self.rles))
            self.rles.append(rle)
            self.mask_stop.append(len(self.rles))
            return
        self.mask_kind.append(POLYGONS if rings else NO_MASK)
        self.mask_start.append(len(self.ring_end))
        for ring in rings:
            self.points.extend(ring)
            self.ring_end.append(len(self.points))
        self.mask_stop.append(len(self.ring_end))

    def segmentation(self, row: int) -> list[list[float]] | dict | None:
        """What the file gave for this row, an RLE in its compressed form."""
        start, stop = self.mask_start[row], self.mask_stop[row]
        if self.mask_kind[row] == RLE:
            size = [self.mask_size[2 * row], self.mask_size[2 * row + 1]]
            return {"size": size, "counts": self.rles[start].decode("ascii")}
        if self.mask_kind[row] == NO_MASK:
            return None
        ends = [self.ring_end[start - 1] if start else 0, *self.ring_end[start:stop]]
        return [self.points[a:b].tolist() for a, b in zip(ends, ends[1:])]

    def keypoint_counts(self) -> np.ndarray:
        """[rows] how many keypoints each row has in the file."""
        return np.diff(np.array(self.keypoint_end, np.int64), prepend=0) // 3

    def labelled_counts(self) -> np.ndarray:
        """[rows] how many labelled keypoints, seen or hidden, each row has."""
        labelled = np.array(self.keypoints)[2::3] > 0
        so_far = np.concatenate([[0], np.cumsum(labelled)])[np.array(self.keypoint_end, np.int64) // 3]
        return np.diff(so_far, prepend=0)

    def keypoints_of(self, row: int, count: int) -> np.ndarray:
        """[J, 3] float32 of the row's keypoints: y, x, visibility; zeros where the file gives none.

        COCO's x and y count pixels, ours are continuous: the middle of the pixel is .5 further.
        """
        points = np.zeros((count, 3), np.float32)
        values = self.keypoints[self.keypoint_end[row - 1] if row else 0 : self.keypoint_end[row]]
        given = np.reshape(values, (-1, 3))[:, [1, 0, 2]]
        given[:, :2] += 0.5 * (given[:, 2:] > 0)
        points[: len(given)] = given
        return points


def _segmentation(value: object) -> tuple[list[array], bytes | None, tuple[int, int]]:
    """Polygons, or the compressed counts and the (height, width) of an RLE, or neither."""
    if value is None or value == [] or value == {}:
        return [], None, (0, 0)
    if isinstance(value, dict):
        return [], *_rle(value)
    if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
        what = f"'segmentation' should be a list of polygons or an RLE, not {short(value)}"
        raise BadRecord("field of a wrong type", what)
    rings = [_numbers(ring, "a polygon's coordinates") for ring in value]
    wrong = [ring for ring in rings if len(ring) % 2 or len(ring) < 6]
    if wrong:
        count = len(wrong[0])
        points = f"{count} numbers" if count % 2 else f"{count // 2} points"
        good = [ring.tolist() for ring in rings if len(ring) % 2 == 0 and len(ring) >= 6]
        what = f"a polygon has {points}, at least 3 (x, y) are needed"
        raise BadRecord("polygon of too few points", what, {"segmentation": good} if good else None)
    return rings, None, (0, 0)


def _rle(value: dict) -> tuple[bytes, tuple[int, int]]:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise BadRecord("broken RLE", f"the RLE's size should be [height, width], not {short(size)}")
    height, width = size
    try:
        if isinstance(counts, str):
            raw = counts.encode("ascii")
            runs = rle_counts(raw)
        else:
            runs = np.asarray(counts, np.float64)
            if runs.ndim != 1 or len(runs) == 0 or (runs < 0).any() or (runs % 1).any():
                raise ValueError("counts should be whole numbers, not negative")
    except (ValueError, TypeError) as error:
        raise BadRecord("broken RLE", f"the RLE's counts cannot be read ({error})") from None
    if runs.sum() != height * width:
        what = f"the RLE's counts cover {int(runs.sum())} pixels, its size {height} x {width} has {height * width}"
        raise BadRecord("RLE of another size", what)
    if not isinstance(counts, str):
        raw = coco_mask.frPyObjects({"size": size, "counts": [int(run) for run in counts]}, height, width)["counts"]
    return raw, (height, width)


def _box(value: object, rings: list[array], rle: bytes | None, size: tuple[int, int]) -> list[float]:
    """x, y, width, height; from the mask where the record has no box."""
    if value is not None:
        box = _numbers(value, "'bbox'").tolist()
        if len(box) != 4:
            raise BadRecord("field of a wrong type", f"'bbox' should be [x, y, width, height], not {short(value)}")
    elif rings:
        x, y = np.concatenate([ring[0::2] for ring in rings]), np.concatenate([ring[1::2] for ring in rings])
        box = [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
    elif rle is not None:
        box = coco_mask.toBbox({"size": list(size), "counts": rle}).tolist()
    else:
        raise BadRecord("field missing", "'bbox' is missing, and there is no segmentation to take it from")
    if box[2] <= 0 or box[3] <= 0:
        raise BadRecord("box of no area", f"the box [x, y, width, height] = {short(box)} has no area")
    return box
