"""Results in the form that Cityscapes' server takes.

Shape letters: H W pixels.

The server wants for each image a text file `<city>_<sequence>_<frame>_pred.txt`, with one line an object:

    masks/<city>_<sequence>_<frame>_<number>.png <label id> <confidence>

and the mask, a PNG of 8 bits of the image's size that is not zero on the object. `cityscapes_measure` has the server's
measure of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mrcnn_tf import pasting
from mrcnn_tf.data.cityscapes import image_name
from mrcnn_tf.data.cityscapes_labels import CLASSES
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.detections import Detections

MASKS = "masks"
ENDING = "_pred.txt"


def write_cityscapes_results(
    detections: Mapping[int, Detections], dataset: Any, folder: str | os.PathLike, progress: bool | None = None
) -> list[Path]:
    """Writes detections as Cityscapes' server takes them: pack the folder's content as a zip file.

    Every image of the data set gets its text file; that of an image where nothing was found is empty. An object
    without a single pixel is left out, as the server does with it. What the folder holds for these images is replaced.

    Args:
        detections: image id to Detections with masks, as `detect` gives them.
        dataset: of `read_cityscapes`, or a subset of one.
        folder: made if it is not there.
        progress: shows a progress bar (on the standard error); None does so on a terminal.

    Returns:
        The text files, in the data set's order.

    Raises:
        ValueError: an image id or classes that are not the data set's, an image of another size, detections without
            masks.
    """
    numbers = check_detections(detections, dataset)
    folder = Path(folder)
    (folder / MASKS).mkdir(parents=True, exist_ok=True)
    before: dict[str, set[str]] = {}  # masks of an earlier call by the names of their images
    for file in os.listdir(folder / MASKS):
        before.setdefault(file.rpartition("_")[0], set()).add(file)
    progress = sys.stderr.isatty() if progress is None else progress
    written = []
    for index in tqdm(range(len(dataset)), unit="image", disable=not progress):
        name = image_name(dataset.file_name(index))
        found = detections.get(int(dataset.image_ids[index]))
        lines, masks = [], set()
        for place in range(0 if found is None else len(found)):
            mask = found.mask(place)
            if not mask.any():
                continue
            file = f"{name}_{place:03d}.png"
            # The lowest compression: twice as fast, and nearly all of a mask is one value.
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / MASKS / file, compress_level=1)
            masks.add(file)
            # Nine digits give back the same float32.
            lines.append(f"{MASKS}/{file} {numbers[found.classes[place] - 1]} {float(found.scores[place]):.9g}\n")
        for file in before.get(name, set()) - masks:
            (folder / MASKS / file).unlink()
        written.append(folder / f"{name}{ENDING}")
        written[-1].write_text("".join(lines), encoding="ascii")
    return written


def check_detections(detections: Mapping[int, Detections], dataset: Any) -> tuple[int, ...]:
    """The label id of each class; raises ValueError for detections that are not on this data set."""
    wrong = [name for name in dataset.class_names if name not in CLASSES]
    if wrong:
        raise ValueError(f"{dataset.name}: '{wrong[0]}' is no class of Cityscapes ({', '.join(CLASSES)})")
    sizes = dict(zip(dataset.image_ids.tolist(), map(tuple, dataset.sizes.tolist()), strict=True))
    for image_id, found in detections.items():
        if image_id not in sizes:
            raise ValueError(f"the data set has no image {image_id}")
        if found.image_size != sizes[image_id]:
            raise ValueError(f"image {image_id} is {sizes[image_id]}, its detections are on {found.image_size}")
        if found.class_names and found.class_names != tuple(dataset.class_names):
            raise ValueError(f"image {image_id}: detections have other classes than the data set")
        if len(found) and not found.has_masks:
            raise ValueError(f"image {image_id}: detections without masks; the server compares masks")
    return tuple(CLASSES[name] for name in dataset.class_names)


def read_cityscapes_results(folder: str | os.PathLike, dataset: Any) -> dict[int, Detections]:
    """The inverse of `write_cityscapes_results`; a text file may lie in any folder below, as on the server.

    A mask's box is the smallest around it. Lines of other labels than the data set's classes are passed over.

    Args:
        folder: with the text files and masks.
        dataset: of `read_cityscapes`, or a subset of one.

    Returns:
        Image id to Detections, for all images of the data set.

    Raises:
        DataError: an image without text file or with several, a line that is not understood, a mask that is missing,
            unreadable, of another size, or outside of the folder; the message names the file and the line.
    """
    root = Path(folder).resolve()
    texts: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.txt")):
        # The server goes by the first three parts of a name: <city>_<sequence>_<frame>*.txt.
        texts.setdefault("_".join(path.stem.split("_")[:3]), []).append(path)
    loaded = {}
    for index in range(len(dataset)):
        name = image_name(dataset.file_name(index))
        files = texts.get("_".join(name.split("_")[:3]), [])
        if len(files) != 1:
            what = f"{len(files)} files {name}*.txt" if files else f"no file {name}{ENDING}"
            raise DataError(f"{root}: there is {what}; each image needs one text file", "results missing")
        size = (int(dataset.sizes[index, 0]), int(dataset.sizes[index, 1]))
        loaded[int(dataset.image_ids[index])] = _read_text(files[0], root, dataset, size)
    return loaded


def _read_text(path: Path, root: Path, dataset: Any, size: tuple[int, int]) -> Detections:
    """What one text file and its masks say."""
    numbers = {label: place for place, label in enumerate(dataset.category_ids, start=1)}
    boxes, classes, scores, segmentations = [], [], [], []
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            file, label, score = line.split(" ")
            label, score = int(float(label)), float(score)
        except (ValueError, OverflowError):
            rule = "a mask's relative path, a label id and a confidence"
            raise DataError(f"{path}: line {row}: should be {rule}, not '{line:.80}'", "bad results") from None
        if label not in numbers:
            continue
        rle = pasting.encode_mask(_read_mask(path, row, file, root, size))
        x, y, width, height = pasting.box_of(rle, *size)
        boxes.append([y, x, y + height, x + width])
        classes.append(numbers[label])
        scores.append(score)
        segmentations.append(rle)
    return Detections(boxes, classes, scores, dataset.class_names, size, segmentations=segmentations)


def _read_mask(path: Path, row: int, file: str, root: Path, size: tuple[int, int]) -> np.ndarray:
    """[H, W] bool: the mask that line `row` of a text file names."""
    where = f"{path}: line {row}: the mask {file}"
    place = (path.parent / file).resolve()
    if os.path.isabs(file) or root not in place.parents:
        raise DataError(f"{where} lies outside of {root}; the server takes relative paths inside alone", "bad results")
    try:
        with Image.open(place) as image:
            mask = np.asarray(image.convert("L")) != 0
    except FileNotFoundError:
        raise DataError(f"{where} is missing; write the results again", "results missing") from None
    except Exception as error:  # PIL has a dozen error classes for bad bytes
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{where} cannot be read ({reason}); write the results again", "bad results") from None
    if mask.shape != size:
        sizes = f"is {mask.shape[0]} x {mask.shape[1]} (height x width), its image {size[0]} x {size[1]}"
        raise DataError(f"{where} {sizes}", "bad results")
    return mask
