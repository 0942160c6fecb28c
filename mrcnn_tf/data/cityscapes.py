"""Reader of Cityscapes (paper, appendix A): fine annotations to records of the eight classes with instances.

Shape letters: N images, G objects, H W pixels.

    <root>/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    <root>/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png, or ..._gtFine_polygons.json

as the archives leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack. What the annotation files hold is in
`cityscapes_labels`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from mrcnn_tf.data.cityscapes_labels import CLASSES, NO_OBJECTS, BadAnnotation, Objects, find_objects, read_ids
from mrcnn_tf.data.errors import SKIP_REMEDY, DataError, Problems
from mrcnn_tf.data.schema import Dataset, Example

# What a model trained on COCO knows of the classes, {ours: COCO's}, as `mrcnn_tf.load` takes it; a rider is new.
COCO_CLASS_MAP = {name: name for name in CLASSES if name != "rider"}

IMAGES, FINE = "leftImg8bit", "gtFine"
IMAGE_ENDING = "_leftImg8bit.png"
ANNOTATION_ENDINGS = ("_gtFine_instanceIds.png", "_gtFine_polygons.json")  # the better first
_ARCHIVES = {IMAGES: "leftImg8bit_trainvaltest.zip", FINE: "gtFine_trainvaltest.zip"}
_WITHOUT_ANNOTATIONS = ("test",)
_READERS = 8


def read_cityscapes(
    root: str | os.PathLike, split: str = "train", skip_bad: bool = False, progress: bool | None = None
) -> Dataset:
    """Reads a split of Cityscapes: its eight classes with instances, masks as RLE.

    The classes 1..8 are person, rider, car, truck, bus, train, motorcycle and bicycle; `category_ids` are their label
    ids 24 to 33. Groups ("cargroup") are crowds, one for each class and image. Masks come from the instanceIds files,
    and from the polygons where an image has no such file; both give the same pixels. Images are numbered from 1 in
    the order of their names.

    All annotations are read at once, on several threads: some 50 ms of a core for each image. They stay in memory as
    RLE, about 20 MB for the training images.

    Args:
        root: the folder that holds leftImg8bit/ and gtFine/.
        split: "train", "val" or "test"; the last needs no annotations and is good for predictions.
        skip_bad: images with bad or missing files are counted in the data set's `problems` instead of raised.
        progress: shows a progress bar (on the standard error); None does so on a terminal.

    Raises:
        DataError: a folder is missing (which archive to unpack, or which folder to give instead); with skip_bad off,
            the first image whose annotation is missing, unreadable or of another size, or whose file is missing.
    """
    root = os.fspath(root)
    problems = Problems()
    paths = _find_files(root, split)
    ids, sizes, images, annotations, objects = [], [], [], [], []
    progress = sys.stderr.isatty() if progress is None else progress
    bar = tqdm(total=len(paths), unit="image", desc=f"Cityscapes {split}", disable=not progress)
    with bar, contextlib.closing(_read_all(paths, split)) as results:
        for number, (image, annotation, found) in enumerate(results, start=1):
            bar.update()
            if isinstance(found, DataError):
                if not skip_bad:
                    raise found
                problems.add(found.kind, str(found))
                continue
            ids.append(number)
            images.append(image)
            annotations.append(annotation)
            sizes.append(found[0])
            objects.append(found[1])
    name = f"Cityscapes {split} ({root})"
    if not ids:
        raise DataError(f"{name}: none of its {len(paths)} images can be used; {problems.summary()}", "no image")
    return CityscapesDataset(name, ids, sizes, images, annotations, objects, skip_bad, problems)


# === Which files there are ===


def _find_files(root: str, split: str) -> list[tuple[str, str | None]]:
    """(image, annotation) of all names found in either part, in order; None where an annotation is not there.

    Raises:
        DataError: no such folder, or a part of Cityscapes is missing.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: there is no such folder; give the one that holds {IMAGES}/ and {FINE}/", "no folder")
    required = (IMAGES,) if split in _WITHOUT_ANNOTATIONS else (IMAGES, FINE)
    for part in required:
        _check_part(root, part, split)
    images = _listing(os.path.join(root, IMAGES, split), (IMAGE_ENDING,))
    annotations = _listing(os.path.join(root, FINE, split), ANNOTATION_ENDINGS)
    if not images:
        folder = os.path.join(root, IMAGES, split)
        message = f"{folder}: holds no <city>/*{IMAGE_ENDING}; unpack {_ARCHIVES[IMAGES]} in {root} again"
        raise DataError(message, "image missing")
    names = sorted(images if split in _WITHOUT_ANNOTATIONS else {*images, *annotations})
    return [(images.get(name) or _expected(root, split, name), annotations.get(name)) for name in names]


def _expected(root: str, split: str, name: str) -> str:
    """Where an image that was not found should be."""
    return os.path.join(root, IMAGES, split, name.split("_")[0], name + IMAGE_ENDING)


def _check_part(root: str, part: str, split: str) -> None:
    folder = os.path.join(root, part)
    if not os.path.isdir(folder):
        better = _better_root(root)
        remedy = f"give {better} instead" if better else f"unpack {_ARCHIVES[part]} in {root}"
        raise DataError(f"{root}: has no folder {part}/; {remedy}", f"{part} missing")
    if os.path.isdir(os.path.join(folder, split)):
        return
    there = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    known = f"its splits are {', '.join(there)}" if there else "it is empty"
    remedy = f"unpack {_ARCHIVES[part]} in {root}, or name another split"
    raise DataError(f"{folder}: has no split '{split}' ({known}); {remedy}", "split missing")


def _better_root(root: str) -> str | None:
    """A folder above or below that is the data set's root, where this one has nothing of it."""
    if any(os.path.isdir(os.path.join(root, part)) for part in (IMAGES, FINE)):
        return None
    above = [os.path.abspath(root)]
    for _ in range(3):
        above.append(os.path.dirname(above[-1]))
    below = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())
    for folder in (*above[1:], *below):
        if all(os.path.isdir(os.path.join(folder, part)) for part in (IMAGES, FINE)):
            return folder
    return None


def _listing(folder: str, endings: tuple[str, ...]) -> dict[str, str]:
    """{name of the image without ending: path} of the files in the cities' folders; the first ending wins."""
    found: dict[str, tuple[int, str]] = {}
    cities = [entry.path for entry in os.scandir(folder) if entry.is_dir()] if os.path.isdir(folder) else []
    for city in cities:
        for file in os.listdir(city):
            if file.startswith("."):  # macOS leaves a "._" file beside each one that it copies
                continue
            for rank, ending in enumerate(endings):
                name = file[: -len(ending)]
                if file.endswith(ending) and rank <= found.get(name, (rank, ""))[0]:
                    found[name] = (rank, os.path.join(city, file))
    return {name: path for name, (_, path) in found.items()}


# === What is in them ===


def _read_all(paths: list[tuple[str, str | None]], split: str) -> Generator[tuple, None, None]:
    """(image, annotation, what `_read` gives or the DataError it raised) of each image, in order."""

    def read(pair: tuple[str, str | None]):
        try:
            return _read(*pair, annotated=split not in _WITHOUT_ANNOTATIONS)
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
    try:
        for (image, annotation), found in zip(paths, pool.map(read, paths)):
            yield image, annotation, found
    finally:
        pool.shutdown(cancel_futures=True)


def _read(image: str, annotation: str | None, annotated: bool) -> tuple[tuple[int, int], Objects]:
    """Size and objects of one image, of which the header alone is read.

    Raises:
        DataError: what is wrong with one of the two files.
    """
    if annotation is None and annotated:
        remedy = f"unpack {_ARCHIVES[FINE]} again, or skip such images (skip_bad=True, --skip-bad)"
        raise DataError(f"{image}: the image has no annotation in {FINE}/; {remedy}", "annotation missing")
    size = _image_size(image)
    if annotation is None:
        return size, NO_OBJECTS
    try:
        ids = read_ids(annotation)
    except BadAnnotation as error:
        raise DataError(
            f"{annotation}: {error}; unpack {_ARCHIVES[FINE]} again, {SKIP_REMEDY}", "bad annotation"
        ) from None
    if ids.shape != size:
        sizes = f"is {ids.shape[0]} x {ids.shape[1]} (height x width), its image {size[0]} x {size[1]}"
        raise DataError(f"{annotation}: the annotation {sizes}; {SKIP_REMEDY}", "image of another size")
    return size, find_objects(ids)


def _image_size(path: str) -> tuple[int, int]:
    """(height, width) from the file's header."""
    again = f"unpack {_ARCHIVES[IMAGES]} again, {SKIP_REMEDY}"
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"{path}: the image is missing, its annotation is there; {again}", "image missing") from None
    except Exception as error:  # PIL has a dozen error classes for bad bytes
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: the file is no image ({reason}); {again}", "image unreadable") from None


def annotation_of(image: str) -> str | None:
    """The annotation file of an image file of the data set; None where there is none."""
    folder, file = os.path.split(image)
    split, city = os.path.split(folder)
    part, split = os.path.split(split)
    stem = os.path.join(os.path.dirname(part), FINE, split, city, image_name(file))
    return next((stem + ending for ending in ANNOTATION_ENDINGS if os.path.isfile(stem + ending)), None)


def image_name(file_name: str) -> str:
    """`<city>_<sequence>_<frame>` of an image's path or file name."""
    name = os.path.basename(file_name)
    return name[: -len(IMAGE_ENDING)] if name.endswith(IMAGE_ENDING) else os.path.splitext(name)[0]


class CityscapesDataset(Dataset):
    """A split of Cityscapes; see `read_cityscapes`."""

    def __init__(
        self,
        name: str,
        ids: list[int],
        sizes: list[tuple[int, int]],
        images: list[str],
        annotations: list[str | None],
        objects: list[Objects],
        skip_bad: bool,
        problems: Problems,
    ):
        super().__init__(
            name=name,
            class_names=tuple(CLASSES),
            category_ids=tuple(CLASSES.values()),
            image_ids=np.array(ids, np.int64),
            sizes=np.array(sizes, np.int32).reshape(-1, 2),
            skip_bad=skip_bad,
            problems=problems,
        )
        self._images = images
        self._annotations = annotations
        self._objects = objects

    def object_counts(self) -> np.ndarray:
        """[N] int32: how many objects, crowds not counted, each image has."""
        return np.array([np.sum(~found.crowd) for found in self._objects], np.int32)

    def file_name(self, index: int) -> str:
        """The image's file name without its folder."""
        return os.path.basename(self._images[index])

    def example(self, index: int) -> Example:
        """The record at position `index`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        found = self._objects[index]
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        return Example(
            image_id=int(self.image_ids[index]),
            path=self._images[index],
            pixels=None,
            size=size,
            boxes=found.boxes.copy(),
            classes=found.classes,
            crowd=found.crowd,
            areas=found.areas.copy(),
            segmentations=tuple({"size": list(size), "counts": counts} for counts in found.counts),
            source=self._annotations[index] or self.name,
        )
