"""The categories of a COCO json: classes, and the names and skeleton of their keypoints."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mrcnn_tf.coco_names import NO_CLASS
from mrcnn_tf.data.coco_records import Annotations, BadRecord, integer, short
from mrcnn_tf.data.errors import DataError

logger = logging.getLogger("mrcnn_tf")


def read_categories(
    path: str, records: list, wanted: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Ids and names of the classes 1..K, and the ids of all categories of the file.

    Names stand for classes in models, tables and `wanted`. So where several categories of the file have one name, as
    in files whose root category is called as its only child, they become "name (id 0)" and "name (id 1)".

    Args:
        path: the file, for messages.
        records: its categories.
        wanted: names of those to take, in this order; None takes all in the order of their ids. "N/A" is a class
            without objects, of which torchvision's models have ten.

    Raises:
        DataError: a category without id or name, an id given twice, a wanted name that there is not, that several
            categories have, or that is given twice.
    """
    known: dict[int, str] = {}
    for position, record in enumerate(records):
        try:
            if not isinstance(record, dict) or not isinstance(record.get("name"), str):
                raise BadRecord("", "should be an object with 'id' and 'name'")
            number = integer(record, "id")
            if number in known:
                raise BadRecord("", f"the id {number} is taken by '{known[number]}' already")
        except BadRecord as bad:
            raise DataError(f"{path}: categories[{position}]: {bad}; correct the categories", "not COCO") from None
        known[number] = record["name"]
    given = Counter(name for name in known.values() if name != NO_CLASS)
    known = {number: f"{name} (id {number})" if given[name] > 1 else name for number, name in known.items()}
    if wanted is None:
        ids = sorted(known)
        shared = [known[number] for number in ids if known[number] not in (*given, NO_CLASS)]
        if shared:
            logger.warning("%s: several categories have one name; they are called %s", path, ", ".join(shared))
    else:
        by_name = {name: number for number, name in known.items()}
        _check_wanted(path, wanted, given)
        missing = [name for name in wanted if name not in by_name and name != NO_CLASS]
        if missing:
            message = f"{path}: has no category '{missing[0]}'; its categories are {', '.join(sorted(by_name))}"
            raise DataError(message, "category unknown")
        # Each class without objects has an id of its own, which no file has.
        ids = [-place if name == NO_CLASS else by_name[name] for place, name in enumerate(wanted, start=1)]
    names = tuple(known.get(number, NO_CLASS) for number in ids)
    return np.array(ids, np.int64), names, np.array(sorted(known), np.int64)


def _check_wanted(path: str, wanted: Sequence[str], given: Counter) -> None:
    """Raises DataError for a name that stands for several categories of the file, or that is wanted twice."""
    for name, count in Counter(wanted).items():
        if count > 1 and name != NO_CLASS:
            message = f"{path}: '{name}' stands {count} times in class_names; ask for each class once"
            raise DataError(message, "category unknown")
        if given[name] > 1:
            message = f"{path}: {given[name]} categories are called '{name}'; ask for '{name} (id ...)' with one's id"
            raise DataError(message, "category unknown")


def read_keypoints(path: str, records: list, ids: np.ndarray, annotations: Annotations) -> tuple[tuple, tuple]:
    """Names and skeleton of the classes' keypoints: J names, and pairs counted from 0.

    One branch learns one list of keypoints: where the classes have different ones, there are none. A file without
    names gets "keypoint 1", "keypoint 2", ...

    Raises:
        DataError: names or a skeleton that cannot be used.
    """
    found = {_keypoints_of(path, record) for record in records if integer(record, "id") in ids} - {((), ())}
    if len({names for names, _ in found}) > 1:
        logger.warning("%s: its classes have different keypoints, which are left out; choose one by class_names", path)
        return (), ()
    if found:
        return max(sorted(found), key=lambda table: len(table[1]))
    own = np.isin(np.frombuffer(annotations.category, np.int64), ids)
    count = int(annotations.keypoint_counts()[own].max(initial=0))
    return tuple(f"keypoint {number}" for number in range(1, count + 1)), ()


def _keypoints_of(path: str, record: dict) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names of a category's keypoints, and the pairs of its skeleton counted from 0 (in the file from 1).

    Raises:
        DataError: something else than a list of different names, or a skeleton of keypoints that there are not.
    """
    names, lines = record.get("keypoints") or [], record.get("skeleton") or []
    where = f"{path}: the category '{record['name']}'"
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or len(set(names)) != len(names):
        message = f"{where}: 'keypoints' should be a list of different names, not {short(names)}; correct it"
        raise DataError(message, "not COCO")
    known = range(1, len(names) + 1)
    pairs = isinstance(lines, list) and all(isinstance(line, list) and len(line) == 2 for line in lines)
    if not pairs or not all(end in known for line in lines for end in line):
        rule = f"pairs of its keypoints 1 to {len(names)}"
        raise DataError(f"{where}: 'skeleton' should be {rule}, not {short(lines)}; correct it", "not COCO")
    return tuple(names), tuple((int(start) - 1, int(end) - 1) for start, end in lines)
