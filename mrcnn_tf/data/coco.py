"""Reader of COCO instances (and person keypoints) json files.

Everything that can be checked without opening the images is checked at once: each record by itself
(`coco_records`), then records against each other, and that the image files are there. Images that are
cut short or of another size are found when they are loaded.
"""

from __future__ import annotations

import os

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_tf.data.coco_categories import read_categories, read_keypoints
from mrcnn_tf.data.coco_records import NO_MASK, POLYGONS, RLE, Annotations, BadRecord, integer, read_members
from mrcnn_tf.data.errors import SKIP_REMEDY, DataError, Problems
from mrcnn_tf.data.schema import Dataset, Example

_LEAST_SIDE = 1e-3  # pixels of a box that have to lie in the image
_RLES_AT_ONCE = 10_000


def read_coco(
    json_path: str | os.PathLike,
    image_dir: str | os.PathLike,
    skip_bad: bool = False,
    class_names: tuple[str, ...] | list[str] | None = None,
    annotated: bool = True,
) -> Dataset:
    """Reads a COCO json: boxes, polygons, RLE (compressed or not), crowds, keypoints.

    Classes 1..K are the categories in the order of their ids, gaps closed. Categories that share a name get their id
    into it, as "fish (id 0)" and "fish (id 1)". Boxes that reach out of their image are clipped. Images without objects
    stay. An object without a segmentation is a bad record, unless it is a crowd or no annotation of the file has one:
    then the box serves as mask.

    Names and skeleton of the keypoints are those of the categories taken. An object may lack keypoints (it is there
    for its box and mask), but has no other number of them. A file without names gets "keypoint 1", "keypoint 2", ...

    Persons alone are `class_names=("person",)`; `config.data.drop_empty` leaves out the images without any.

    Args:
        image_dir: the folder that the file names are relative to; they may be written as Windows does it, "sub\\a.jpg".
        skip_bad: bad records are counted in the data set's `problems` instead of raised.
        class_names: take these categories only, as classes 1..K in this order; "N/A" is a class without objects.
        annotated: False takes a file without any annotation, as COCO's test sets are.

    Raises:
        DataError: the file is missing or not COCO; with skip_bad off, the first bad record.
    """
    path, folder = os.fspath(json_path), os.fspath(image_dir)
    report = _Report(path, skip_bad)
    images, annotations, categories = _Images(report), Annotations(), []

    def add_annotation(position: int, record: object) -> None:
        try:
            annotations.add(position, record)
        except BadRecord as bad:
            number = record.get("id") if isinstance(record, dict) else None
            kept = "; its other polygons are kept" if bad.rest and report.skip_bad else ""
            report.bad(bad.kind, _annotation_name(number, position), f"{bad}{kept}")
            if bad.rest:
                add_annotation(position, record | bad.rest)

    members = read_members(
        path,
        {
            "images": images.add,
            "annotations": add_annotation,
            "categories": lambda position, record: categories.append(record),
        },
    )
    for name in ("images", "annotations", "categories"):
        if annotated or members.get(name) or name != "annotations":
            _check_member(path, members, name, report)
    ids, names, known = read_categories(path, categories, class_names)
    keypoints = read_keypoints(path, categories, ids, annotations)
    images.drop_missing(folder)
    table = _Table(annotations, images, ids, known, report, len(keypoints[0]))
    return CocoDataset(path, folder, images, table, ids, names, report, keypoints)


def _annotation_name(number: object, position: int) -> str:
    return f"annotations[{position}]" + (f" (id {number})" if number is not None else "")


def _check_member(path: str, members: dict, name: str, report: _Report) -> None:
    if isinstance(members.get(name), int) and members[name] > 0:
        return
    if name == "annotations" and members.get(name, 0) == 0:
        if not report.skip_bad:
            message = f"{path}: there is no annotation at all in the file; annotate the images, or read the file with"
            message += " skip_bad=True (--skip-bad) to use them without objects"
            message += " (a test set with annotated=False, or evaluate.py --test, for its results)"
            raise DataError(message, "no annotation")
        report.problems.add("no annotation", f"{path}: there is no annotation at all in the file")
        return
    what = "is empty" if members.get(name) == 0 else "is no list" if name in members else "is missing"
    message = f"{path}: not COCO: '{name}' {what}; a COCO json has lists 'images', 'annotations' and 'categories'"
    raise DataError(message, "not COCO")


class _Report:
    """Raises for a bad record, or counts it."""

    def __init__(self, path: str, skip_bad: bool):
        self.path = path
        self.skip_bad = skip_bad
        self.problems = Problems()

    def bad(self, kind: str, record: str, what: str) -> None:
        if not self.skip_bad:
            raise DataError(f"{self.path}: {record}: {what}; {SKIP_REMEDY}", kind)
        self.problems.add(kind, f"{self.path}: {record}: {what}")


class _Images:
    """The image records: ids, sizes and file names, in the file's order."""

    def __init__(self, report: _Report):
        self._report = report
        self.rows: dict[int, int] = {}  # id -> row
        self.sizes: list[tuple[int, int]] = []
        self.files: list[str] = []
        self.skipped: set[int] = set()  # ids whose annotations go with them

    def add(self, position: int, record: object) -> None:
        name = f"images[{position}]" + (f" (id {record.get('id')})" if isinstance(record, dict) else "")
        try:
            if not isinstance(record, dict):
                raise BadRecord("field of a wrong type", "should be an object")
            number = integer(record, "id")
            if number in self.rows:
                raise BadRecord("duplicate id", f"the id {number} is taken by an image before it")
            self.skipped.add(number)  # until it has passed
            height, width = integer(record, "height"), integer(record, "width")
            if height < 1 or width < 1:
                raise BadRecord("field of a wrong type", f"height {height} and width {width} should be positive")
            file = record.get("file_name")
            if not isinstance(file, str) or not file:
                raise BadRecord("field missing", "'file_name' is missing or no text")
        except BadRecord as bad:
            self._report.bad(bad.kind, name, str(bad))
            return
        self.skipped.discard(number)
        self.rows[number] = len(self.files)
        self.sizes.append((height, width))
        self.files.append(file)

    def drop_missing(self, folder: str) -> None:
        """Looks for the image files, with one listing of each folder instead of a call for each file.

        Raises:
            DataError: there is no such folder, or none of the files is in it.
        """
        if not os.path.isdir(folder or "."):
            message = f"{self._report.path}: the image folder {folder} does not exist; correct its path"
            raise DataError(message, "image folder missing")
        listings: dict[str, set[str]] = {}
        keep = []

        def is_there(name: str) -> bool:
            parent, file = os.path.split(os.path.join(folder, name))
            if parent not in listings:
                listings[parent] = _listing(parent)
            return file in listings[parent]

        for number, row in self.rows.items():
            name = self.files[row]
            if not is_there(name) and is_there(name.replace("\\", "/")):  # the file was written on Windows
                self.files[row] = name = name.replace("\\", "/")
            if is_there(name):
                keep.append((number, row))
            else:
                path = os.path.join(folder, name)
                self._report.bad("image missing", f"image id {number}", f"the image file {path} is missing")
                self.skipped.add(number)
        if not keep:
            message = f"{self._report.path}: none of its {len(self.files)} usable images is in {folder}; correct it"
            raise DataError(message, "image missing")
        self.sizes = [self.sizes[row] for _, row in keep]
        self.files = [self.files[row] for _, row in keep]
        self.rows = {number: new for new, (number, _) in enumerate(keep)}


def _listing(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


class _Table:
    """The annotations that passed, grouped by image."""

    def __init__(
        self,
        annotations: Annotations,
        images: _Images,
        ids: np.ndarray,
        known: np.ndarray,
        report: _Report,
        keypoints: int,
    ):
        self.annotations = annotations
        self._report = report
        count = len(annotations)
        image, category = np.frombuffer(annotations.image, np.int64), np.frombuffer(annotations.category, np.int64)
        self._good = np.ones(count, bool)
        self.rows = np.array([images.rows.get(number, -1) for number in image.tolist()], np.int64)
        silent = (self.rows < 0) & np.isin(image, np.array(sorted(images.skipped), np.int64))
        self._refuse(
            (self.rows < 0) & ~silent, "image unknown", lambda r: f"there is no image of the id {image[r]} in the file"
        )
        self._refuse(
            ~np.isin(category, known), "category unknown", lambda r: f"the category id {category[r]} is unknown"
        )
        self._refuse_duplicates()
        position = np.searchsorted(ids, category, sorter=np.argsort(ids)).clip(0, len(ids) - 1)
        position = np.argsort(ids)[position]
        self.classes = np.where(ids[position] == category, position + 1, 0).astype(np.int32)  # 0: not asked for
        self._good &= ~silent & (self.classes > 0)
        self.sizes = np.array(images.sizes, np.int64).reshape(-1, 2)
        self.boxes = self._clip_boxes()
        self._check_masks()
        given = annotations.keypoint_counts()
        self._refuse(
            (given > 0) & (given != keypoints) & (keypoints > 0),
            "keypoints of another number",
            lambda r: f"it has {given[r]} keypoints, its category {keypoints}",
        )
        kept = np.flatnonzero(self._good)
        self.order = kept[np.argsort(self.rows[kept], kind="stable")]
        self.starts = np.searchsorted(self.rows[self.order], np.arange(len(images.files) + 1))
        self.crowd = np.frombuffer(annotations.crowd, np.int8).astype(bool)

    def _refuse(self, wrong: np.ndarray, kind: str, what) -> None:
        for row in np.flatnonzero(wrong & self._good):
            self._report.bad(kind, self.name(row), what(row))
            self._good[row] = False

    def name(self, row: int) -> str:
        number = self.annotations.id[row]
        return _annotation_name(number if number >= 0 else None, self.annotations.position[row])

    def _refuse_duplicates(self) -> None:
        numbers = np.frombuffer(self.annotations.id, np.int64)
        given = np.flatnonzero(numbers >= 0)
        _, first = np.unique(numbers[given], return_index=True)
        again = np.zeros(len(numbers), bool)
        again[given] = True
        again[given[first]] = False
        self._refuse(again, "duplicate id", lambda r: f"the id {numbers[r]} is taken by an annotation before it")

    def _clip_boxes(self) -> np.ndarray:
        """[rows, 4] float64 y1, x1, y2, x2 inside their images."""
        xywh = np.frombuffer(self.annotations.boxes, np.float64).reshape(-1, 4)
        size = self.sizes[self.rows] if len(self.sizes) else np.ones((len(self.rows), 2), np.int64)
        corners = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], axis=1)
        clipped = np.clip(corners, 0, np.tile(size, 2))
        outside = (clipped[:, 2:] - clipped[:, :2] < _LEAST_SIDE).any(axis=1)
        self._refuse(
            outside,
            "box outside its image",
            lambda r: (
                f"the box [x, y, width, height] = {xywh[r].tolist()} has no area inside the image "
                f"of {size[r][0]} x {size[r][1]} (height x width) pixels"
            ),
        )
        return clipped

    def _check_masks(self) -> None:
        columns = self.annotations
        kind = np.frombuffer(columns.mask_kind, np.int8)
        rle_size = np.frombuffer(columns.mask_size, np.int64).reshape(-1, 2)
        size = self.sizes[self.rows] if len(self.sizes) else rle_size
        self._refuse(
            (kind == RLE) & (rle_size != size).any(axis=1),
            "RLE of another size",
            lambda r: (
                f"the RLE is for {rle_size[r][0]} x {rle_size[r][1]} pixels (height x width), its image has "
                f"{size[r][0]} x {size[r][1]}"
            ),
        )
        # A file of boxes only is a detection set; one box without its mask among masks is a mistake.
        self.has_masks = not self._good.any() or bool((kind[self._good] != NO_MASK).any())
        if self.has_masks:
            missing = (kind == NO_MASK) & (np.frombuffer(columns.crowd, np.int8) == 0)
            self._refuse(missing, "no segmentation", lambda r: "it has no segmentation, others of the file have")
        low, high = self._mask_extents(kind)
        apart = (np.maximum(low, self.boxes[:, :2]) >= np.minimum(high, self.boxes[:, 2:])).any(axis=1)
        self._refuse(
            (kind == RLE) & (high == low).any(axis=1), "mask without a pixel", lambda r: "its RLE has no pixel inside"
        )
        self._refuse(
            (kind != NO_MASK) & apart,
            "mask outside its box",
            lambda r: (
                f"its {'RLE' if kind[r] == RLE else 'polygons'} (y {low[r][0]:g}..{high[r][0]:g}, "
                f"x {low[r][1]:g}..{high[r][1]:g}) lie{'s' * int(kind[r] == RLE)} outside its box"
            ),
        )

    def _mask_extents(self, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[rows, 2] least and greatest (y, x) of each row's polygons or RLE; zeros for those without."""
        columns = self.annotations
        low, high = np.zeros((len(kind), 2)), np.zeros((len(kind), 2))
        has = kind == POLYGONS
        if has.any():
            ends = np.concatenate([[0], np.frombuffer(columns.ring_end, np.int64)])
            first = ends[np.frombuffer(columns.mask_start, np.int64)[has]] // 2  # rows are stored without gaps
            points = np.frombuffer(columns.points, np.float64).reshape(-1, 2)[:, ::-1]
            low[has] = np.minimum.reduceat(points, first)
            high[has] = np.maximum.reduceat(points, first)
        packed = np.flatnonzero(kind == RLE)
        for start in range(0, len(packed), _RLES_AT_ONCE):
            rows = packed[start : start + _RLES_AT_ONCE]
            xywh = coco_mask.toBbox([columns.segmentation(row) for row in rows])
            low[rows] = xywh[:, 1::-1]
            high[rows] = xywh[:, 1::-1] + xywh[:, :1:-1]
        return low, high


class CocoDataset(Dataset):
    """A COCO file; see `read_coco`. Annotations stay in flat columns until `example` is called."""

    def __init__(self, path: str, folder: str, images: _Images, table: _Table, ids, names, report: _Report, keypoints):
        super().__init__(
            name=path,
            class_names=names,
            category_ids=tuple(int(number) for number in ids),
            image_ids=np.array(list(images.rows), np.int64),
            sizes=np.array(images.sizes, np.int32).reshape(-1, 2),
            has_masks=table.has_masks,
            skip_bad=report.skip_bad,
            problems=report.problems,
            keypoint_names=keypoints[0],
            skeleton=keypoints[1],
        )
        self._folder = folder
        self._files = images.files
        self._table = table

    def file_name(self, index: int) -> str:
        """The file name as the json gives it."""
        return self._files[index]

    def object_counts(self) -> np.ndarray:
        """[N] int32: how many objects, crowds not counted, each image has."""
        rows = self._table.rows[self._table.order]
        return np.bincount(rows[~self._table.crowd[self._table.order]], minlength=len(self)).astype(np.int32)

    def keypoint_counts(self) -> np.ndarray:
        """[N] int32: how many labelled keypoints the objects of each image have, crowds not counted."""
        if not self.keypoint_names:
            return np.zeros(len(self), np.int32)
        kept = self._table.order[~self._table.crowd[self._table.order]]
        labelled = self._table.annotations.labelled_counts()[kept]
        return np.bincount(self._table.rows[kept], labelled, len(self)).astype(np.int32)

    def example(self, index: int) -> Example:
        """The record at position `index`, built anew at each call."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        table = self._table
        rows = table.order[table.starts[index] : table.starts[index + 1]]
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        segmentations = tuple(self._segmentation(row) for row in rows)
        return Example(
            image_id=int(self.image_ids[index]),
            path=os.path.join(self._folder, self._files[index]),
            pixels=None,
            size=size,
            boxes=table.boxes[rows].astype(np.float32),
            classes=table.classes[rows],
            crowd=table.crowd[rows],
            areas=np.array([self._area(row, s, size) for row, s in zip(rows, segmentations)], np.float32),
            segmentations=segmentations,
            keypoints=self._keypoints(rows) if self.keypoint_names else None,
            source=f"image id {int(self.image_ids[index])} of {self.name}",
        )

    def _segmentation(self, row: int) -> list | dict:
        segmentation = self._table.annotations.segmentation(row)
        if segmentation is None:
            y1, x1, y2, x2 = self._table.boxes[row].tolist()
            return [[x1, y1, x2, y1, x2, y2, x1, y2]]
        return segmentation

    def _area(self, row: int, segmentation: list | dict, size: tuple[int, int]) -> float:
        area = self._table.annotations.area[row]
        if np.isnan(area):
            whole = (
                segmentation
                if isinstance(segmentation, dict)
                else coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
            )
            return float(coco_mask.area(whole))
        return area

    def _keypoints(self, rows: np.ndarray) -> np.ndarray:
        count = len(self.keypoint_names)
        points = [self._table.annotations.keypoints_of(row, count) for row in rows]
        return np.stack(points) if points else np.zeros((0, count, 3), np.float32)
