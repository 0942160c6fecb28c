"""Proposals in a file: what one model's RPN found, for another model's branches to be trained and measured on.

Shape letters: N images, P proposals of an image, T proposals of all images.

The file is HDF5 with `image_ids` [N] int64, `starts` [N + 1] int64 (the proposals of image n are the rows starts[n] to
starts[n + 1]), `boxes` [T, 4] float32 (y1, x1, y2, x2 in pixels of the original image) and `scores` [T] float32, best
first within an image, and the attributes `format`, `format_version` and `identity`, which tells files of other models
or data apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from mrcnn_tf.atomic import write_atomically
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.schema import Dataset, Subset

FORMAT, FORMAT_VERSION = "mrcnn_tf proposals", 1
HOW_TO_WRITE = "write it with mrcnn_tf.save_proposals or scripts/save_proposals.py"
LISTED = 5  # image ids that a message shows

Found = tuple[int, np.ndarray, np.ndarray]  # image id, boxes [P, 4], scores [P]


class ProposalFile:
    """The proposals of many images; they stay on the disk. May be read from several threads.

    Attributes:
        path: of the file. image_ids: [N]. identity: what `write_proposals` was told.

    Raises:
        DataError: no such file, or none of this format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path)
            if self._file.attrs.get("format") != FORMAT or int(self._file.attrs["format_version"]) > FORMAT_VERSION:
                raise KeyError("format")
            self.image_ids = self._file["image_ids"][()]
            self._starts = self._file["starts"][()]
            self._boxes, self._scores = self._file["boxes"], self._file["scores"]
            self.identity = str(self._file.attrs["identity"])
            self._check()
        except FileNotFoundError as error:
            raise DataError(f"{path}: there is no such file of proposals; {HOW_TO_WRITE}", "no proposals") from error
        except (OSError, KeyError) as error:
            text = f"{path}: is no file of proposals that this version reads; {HOW_TO_WRITE}"
            raise DataError(text, "no proposals") from error
        self._rows = {int(image_id): row for row, image_id in enumerate(self.image_ids)}

    def _check(self) -> None:
        """Raises DataError where the arrays do not belong together."""
        starts, total = self._starts, len(self._scores)
        fit = self._boxes.shape == (total, 4) and self._scores.shape == (total,)
        fit = fit and starts.shape == (len(self.image_ids) + 1,) and starts[0] == 0 and starts[-1] == total
        if not fit or (np.diff(starts) < 0).any():
            text = f"{self.path}: is a damaged file of proposals, its arrays are not of one length; {HOW_TO_WRITE}"
            raise DataError(text, "no proposals")
        if len(starts) > 1 and not total:
            raise DataError(f"{self.path}: has not one proposal for any image; {HOW_TO_WRITE}", "no proposals")

    def __contains__(self, image_id: int) -> bool:
        return int(image_id) in self._rows

    def of(self, image_id: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [P, 4] in pixels of the original image and scores [P] of an image, the `most` best of them.

        Raises:
            KeyError: the image is not in the file.
            DataError: what the file has of it is no box.
        """
        row = self._rows[int(image_id)]
        start, end = int(self._starts[row]), int(self._starts[row + 1])
        end = end if most is None else min(end, start + most)
        boxes, scores = self._boxes[start:end], self._scores[start:end]
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            text = f"{self.path}: is damaged, a proposal of image {image_id} is no number; {HOW_TO_WRITE}"
            raise DataError(text, "no proposals")
        return boxes, scores


class _WithProposals(Subset):
    """All images of a data set, with their proposals."""

    def __init__(self, parent: Dataset, proposals: ProposalFile):
        super().__init__(parent, range(len(parent)))
        self.proposals = proposals


def with_proposals(dataset: Dataset, path: str | Path) -> Dataset:
    """The data set with proposals from a file: in its batches, and for `train`, `detect` and all that rest on these.

    Raises:
        DataError: see `ProposalFile`; or an image that is not in the file.
    """
    proposals = ProposalFile(path)
    missing = [int(image_id) for image_id in dataset.image_ids if image_id not in proposals]
    # Where the data set may lose images, the file may too.
    if missing and not (dataset.skip_bad and len(missing) < len(dataset)):
        ids = ", ".join(map(str, missing[:LISTED])) + ", ..." * (len(missing) > LISTED)
        text = f"{path}: has no proposals for {len(missing)} of the {len(dataset)} images of {dataset.name} (ids {ids})"
        raise DataError(f"{text}; {HOW_TO_WRITE}, for this data set", "no proposals")
    return _WithProposals(dataset, proposals)


def is_proposal_file(path: str | Path) -> bool:
    """Whether a file was written by `write_proposals`, of whatever version."""
    try:
        with h5py.File(path) as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        return False


def write_proposals(path: str | Path, found: Iterable[Found], identity: str = "") -> None:
    """Writes a file of proposals, which is whole or not there. `found` is read once, an image at a time."""

    def write(name: Path) -> None:
        with h5py.File(name, "w") as file:
            boxes = file.create_dataset("boxes", (0, 4), np.float32, maxshape=(None, 4), chunks=(4096, 4))
            scores = file.create_dataset("scores", (0,), np.float32, maxshape=(None,), chunks=(4096,))
            image_ids, starts = [], [0]
            for image_id, own_boxes, own_scores in found:
                image_ids.append(image_id)
                starts.append(starts[-1] + len(own_boxes))
                boxes.resize(starts[-1], axis=0)
                scores.resize(starts[-1], axis=0)
                boxes[starts[-2] :], scores[starts[-2] :] = own_boxes, own_scores
            file["image_ids"], file["starts"] = np.array(image_ids, np.int64), np.array(starts, np.int64)
            file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "identity": identity})

    write_atomically(path, write)
