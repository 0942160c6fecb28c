"""What a user holds: the objects found in one image, in that image's own pixels.

Shape letters: B images, N objects, D padded detections, H W pixels of the image, M mask side, J keypoints.

A `Detections` keeps its masks in the leanest form it was given (M x M crops, full masks or COCO's RLE) and makes the
other forms when they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mrcnn_tf import pasting, result_records


class Detections:
    """Objects in one image.

    Args:
        boxes: [N, 4] y1, x1, y2, x2 in pixels of the image, continuous (pixel i spans [i, i+1)).
        classes: [N] integers 1..K.
        scores: [N] in 0..1.
        class_names: the K names, without the background; () where the classes have none ("class 7" stands for them).
        image_size: height and width of the image.
        mask_crops: [N, M, M] probabilities of each object inside its own box, or None.
        masks: [N, H, W] bool, or None; wins over `mask_crops`.
        segmentations: N COCO segmentations (RLE or polygons), or None; used where the two others are None.
        mask_threshold: where probabilities are cut.
        paste: what `mask_crops` are stretched over: the boxes ("exact"), or the boxes cut to whole pixels as
            torchvision does it ("torchvision").
        keypoints: [N, J, 3] y, x in pixels of the image and how sure the network is (the heat map's logit), or None.

    Raises:
        ValueError: lengths or shapes that do not fit together, a class without a name, an RLE of another size.
    """

    def __init__(
        self,
        boxes: Any,
        classes: Any,
        scores: Any,
        class_names: Sequence[str],
        image_size: Sequence[int],
        mask_crops: Any = None,
        masks: Any = None,
        *,
        segmentations: Iterable[Any] | None = None,
        mask_threshold: float = 0.5,
        paste: str = "exact",
        keypoints: Any = None,
    ):
        self.boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        self.classes = np.asarray(classes, np.int32).reshape(-1)
        self.scores = np.asarray(scores, np.float32).reshape(-1)
        self.class_names = tuple(class_names)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.mask_threshold = float(mask_threshold)
        self.paste = paste
        self.mask_crops = None if mask_crops is None else _array(mask_crops, (0, 1, 1))
        self._masks = None if masks is None else _array(masks, (0, *self.image_size)).astype(bool, copy=False)
        self._segmentations = None
        if segmentations is not None:
            self._segmentations = _compress_all(segmentations, self.image_size)
        self.keypoints = None if keypoints is None else _array(keypoints, (0, 0, 3)).astype(np.float32, copy=False)
        self._check()

    def _check(self) -> None:
        count = len(self.boxes)
        held = {"classes": self.classes, "scores": self.scores, "mask_crops": self.mask_crops}
        held |= {"masks": self._masks, "segmentations": self._segmentations, "keypoints": self.keypoints}
        for name, value in held.items():
            if value is not None and len(value) != count:
                raise ValueError(f"{count} boxes but {len(value)} {name}")
        if self.mask_crops is not None and (self.mask_crops.ndim != 3 or len(set(self.mask_crops.shape[1:])) != 1):
            raise ValueError(f"mask_crops should be [N, M, M], not {list(self.mask_crops.shape)}")
        if self._masks is not None and self._masks.shape[1:] != self.image_size:
            height, width = self.image_size
            raise ValueError(f"masks should be [N, {height}, {width}], not {list(self._masks.shape)}")
        if self.keypoints is not None and (self.keypoints.ndim != 3 or self.keypoints.shape[2] != 3):
            raise ValueError(f"keypoints should be [N, J, 3], not {list(self.keypoints.shape)}")
        last = len(self.class_names) or np.inf
        wrong = self.classes[(self.classes < 1) | (self.classes > last)]
        if len(wrong):
            raise ValueError(f"class {wrong[0]} is unknown: classes are 1 to {last}")

    # --- What is in it

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        height, width = self.image_size
        return f"Detections({len(self)} in {height} x {width}{': ' if counts else ''}{counts})"

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[number - 1] if self.class_names else f"class {number}" for number in self.classes]

    @property
    def has_masks(self) -> bool:
        """Whether the objects come with masks, in any form."""
        return any(held is not None for held in (self.mask_crops, self._masks, self._segmentations))

    @property
    def masks(self) -> np.ndarray | None:
        """[N, H, W] bool, pasted at the first use and kept; None where there are no masks.

        100 masks of 800 x 1333 pixels take 107 MB: `mask(index)` makes one at a time.
        """
        if self._masks is None and self.has_masks:
            # The name stays unset until all are there, so that an interruption leaves nothing half made.
            masks = np.zeros((len(self), *self.image_size), bool)
            for index in range(len(self)):
                masks[index] = self.mask(index)
            self._masks = masks
        return self._masks

    @property
    def mask_boxes(self) -> np.ndarray:
        """[N, 4]: the boxes that `mask_crops` are stretched over."""
        if self.paste == "exact" or self.mask_crops is None:
            return self.boxes
        return pasting.torchvision_boxes(self.boxes, self.mask_crops.shape[1])

    def mask(self, index: int) -> np.ndarray:
        """[H, W] bool: the mask of one object.

        Raises:
            ValueError: there are no masks.
        """
        if self._masks is not None:
            return self._masks[index]
        if self.mask_crops is not None:
            crop, box = self.mask_crops[index], self.mask_boxes[index]
            return pasting.paste_mask(crop, box, *self.image_size, self.mask_threshold)
        if self._segmentations is not None:
            return pasting.decode(self._segmentations[index])
        raise ValueError("these detections have no masks")

    @property
    def segmentations(self) -> list[dict] | None:
        """The masks as COCO's compressed RLE ({"size": [H, W], "counts": bytes}); None where there are no masks."""
        if self._segmentations is None and self.has_masks:
            if self._masks is not None:
                self._segmentations = [pasting.encode_mask(mask) for mask in self._masks]
            else:
                crops = (self.mask_crops, self.mask_boxes, *self.image_size, self.mask_threshold)
                self._segmentations = pasting.encode_crops(*crops)
        return self._segmentations

    # --- Parts of it

    def __getitem__(self, index: Any) -> Detections:
        """The objects at an index, a slice, a list of indices or a bool mask, as Detections."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"object {index} of {len(self)}")
            chosen = np.array([index])
        elif isinstance(index, slice):
            chosen = np.arange(len(self))[index]
        else:
            index = np.asarray(index)
            chosen = np.arange(len(self))[index if index.size else index.astype(int)]
        return self._like(chosen, self.mask_crops, self._masks, self._segmentations)

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def filter(self, min_score: float = 0.0, classes: Iterable[str | int] | None = None) -> Detections:
        """The objects of at least `min_score` and, if given, of these classes (names or numbers).

        Raises:
            ValueError: a class name that is not among `class_names`.
        """
        keep = self.scores >= min_score
        if classes is not None:
            keep &= np.isin(self.classes, [self._class_number(item) for item in classes])
        return self[keep]

    def compact(self) -> Detections:
        """The same with the masks as RLE only: the leanest form to keep many of."""
        return self._like(np.arange(len(self)), None, None, self.segmentations)

    def _class_number(self, item: str | int) -> int:
        if not isinstance(item, str):
            return int(item)
        if item not in self.class_names:
            raise ValueError(f"no class is named '{item}': {', '.join(self.class_names)}")
        return self.class_names.index(item) + 1

    def _like(self, chosen: np.ndarray, crops: Any, masks: Any, segmentations: Any) -> Detections:
        made = Detections(
            self.boxes[chosen],
            self.classes[chosen],
            self.scores[chosen],
            self.class_names,
            self.image_size,
            None if crops is None else crops[chosen],
            None if masks is None else masks[chosen],
            mask_threshold=self.mask_threshold,
            paste=self.paste,
            keypoints=None if self.keypoints is None else self.keypoints[chosen],
        )
        if segmentations is not None:  # checked and compressed they are already
            made._segmentations = [segmentations[index] for index in chosen]
        return made

    # --- From the network, from ground truth

    @classmethod
    def from_batch(
        cls,
        outputs: dict[str, Any],
        image_size: Any,
        original_size: Any,
        class_names: Sequence[str],
        mask_threshold: float = 0.5,
        paste: str = "exact",
    ) -> list[Detections]:
        """What the network answers for a batch, as one Detections per image, in the original images' pixels.

        Args:
            outputs: "boxes" [B, D, 4] in pixels of the network's input, "classes" [B, D] (0 = padding), "scores"
                [B, D] and, of the branches that the network has, "masks" [B, D, M, M] probabilities and
                "keypoints" [B, D, J, 3] y, x in pixels of the network's input and a logit.
            image_size: [B, 2] height and width that the images had at the network's input, without padding.
            original_size: [B, 2] height and width of the original images.
            class_names: the K names, without the background.
            mask_threshold: where mask probabilities are cut.
            paste: what masks are stretched over, as in `Config.detections`.
        """
        values = {name: np.asarray(outputs[name]) for name in ("boxes", "classes", "scores")}
        crops = None if outputs.get("masks") is None else np.asarray(outputs["masks"])
        points = None if outputs.get("keypoints") is None else np.asarray(outputs["keypoints"])
        original_size = np.asarray(original_size)
        # In float32, as an exported model computes them: a mask may hang on the last digit of its box.
        factors = original_size.astype(np.float32) / np.asarray(image_size).astype(np.float32)
        found = []
        for index, (height, width) in enumerate(original_size.tolist()):
            # A network that has diverged answers with nan: nothing was found there.
            real = (values["classes"][index] > 0) & np.isfinite(values["boxes"][index]).all(axis=1)
            real &= np.isfinite(values["scores"][index])
            boxes = values["boxes"][index][real] * np.tile(factors[index], 2)
            found.append(
                cls(
                    np.clip(boxes, 0, [height, width, height, width]),
                    values["classes"][index][real],
                    values["scores"][index][real],
                    class_names,
                    (height, width),
                    # Half precision is finer than any pasting needs, in half the memory.
                    None if crops is None else crops[index][real].astype(np.float16),
                    mask_threshold=mask_threshold,
                    paste=paste,
                    keypoints=None if points is None else points[index][real] * [*factors[index], 1.0],
                )
            )
        return found

    @classmethod
    def from_example(cls, example: Any, class_names: Sequence[str], crowds: bool = False) -> Detections:
        """Ground truth (a `data.schema.Example`) as detections of score 1; crowds only where asked for."""
        chosen = np.flatnonzero(np.logical_or(crowds, ~np.asarray(example.crowd, bool)))
        return cls(
            example.boxes[chosen],
            example.classes[chosen],
            np.ones(len(chosen)),
            class_names,
            example.size,
            segmentations=[example.segmentations[index] for index in chosen] if example.segmentations else None,
            keypoints=None if example.keypoints is None else example.keypoints[chosen],
        )

    # --- COCO's results format

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict]:
        """The records of COCO's results format, ready for json.

        Args:
            image_id: the image's id in the data set.
            category_ids: the original id of each of the K classes.

        Returns:
            One dictionary per object: image_id, category_id, bbox [x, y, width, height] (hundredths of a pixel),
            score (six decimals), segmentation as RLE with str counts where there are masks, and keypoints [x1, y1, 1,
            ...] where there are some: COCO's keypoints number pixels from the first one's middle, ours from its
            corner, so these are .5 less (hundredths of a pixel). A keypoint of zeros, which stands for none, is
            written as zeros.

        Raises:
            ValueError: not as many category ids as classes.
        """
        count = len(self.class_names) or max(len(category_ids), self.classes.max(initial=0))
        if len(category_ids) != count:
            raise ValueError(f"{len(category_ids)} category ids for {count} classes")
        corners = self.boxes.astype(np.float64)
        xywh = np.concatenate([corners[:, 1::-1], (corners[:, 2:] - corners[:, :2])[:, ::-1]], axis=1)
        records = []
        for index, box in enumerate(xywh):
            record = {
                "image_id": int(image_id),
                "category_id": int(category_ids[self.classes[index] - 1]),
                "bbox": [round(side, 2) for side in box.tolist()],
                "score": round(float(self.scores[index]), 6),
            }
            if self.has_masks:
                rle = self.segmentations[index]
                record["segmentation"] = {"size": list(self.image_size), "counts": rle["counts"].decode()}
            if self.keypoints is not None:
                points = self.keypoints[index].astype(np.float64)
                triples = np.insert(points[:, 1::-1] - 0.5, 2, 1.0, axis=1) * points.any(axis=1)[:, None]
                record["keypoints"] = [round(value, 2) for value in triples.reshape(-1).tolist()]
            records.append(record)
        return records

    @classmethod
    def from_coco(
        cls,
        results: Iterable[dict],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_size: Sequence[int],
        image_id: int | None = None,
    ) -> Detections:
        """The inverse of `to_coco`, for the records of one image.

        Args:
            results: records of COCO's results format. Where one has no bbox, its mask or keypoints make it, as in
                pycocotools.
            class_names: the K names, without the background.
            category_ids: the original id of each of the K classes.
            image_size: height and width of the image.
            image_id: take only the records of this image (all of them by default).

        Raises:
            ValueError: a record without category, score or anything to take a box from, a category that is not among
                `category_ids`, masks on some records only, a broken mask or one of another size; the message names
                the record's place among this image's.
        """
        numbers = {int(category): index + 1 for index, category in enumerate(category_ids)}
        records = [record for record in results if image_id is None or record["image_id"] == image_id]
        with_mask = sum(bool(record.get("segmentation")) for record in records)
        if with_mask not in (0, len(records)):
            raise ValueError(f"{with_mask} of {len(records)} records have a segmentation: all or none should")
        xywh = np.zeros((len(records), 4))
        for place, record in enumerate(records):
            try:
                result_records.check_record(record, numbers)
                xywh[place] = result_records.box_of(record, image_size)
            except ValueError as error:
                raise ValueError(f"record {place}: {error}") from error
        return cls(
            np.concatenate([xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, :1:-1]], axis=1),
            [numbers[record["category_id"]] for record in records],
            [record["score"] for record in records],
            class_names,
            image_size,
            segmentations=[record["segmentation"] for record in records] if with_mask else None,
            keypoints=result_records.keypoints_of(records),
        )


def _array(values: Any, nothing: tuple[int, ...]) -> np.ndarray:
    """The values as an array, of the shape `nothing` where they are an empty list."""
    array = np.asarray(values)
    return np.zeros(nothing, np.float32) if array.shape == (0,) else array


def _compress_all(segmentations: Iterable[Any], image_size: tuple[int, int]) -> list[dict]:
    rles = []
    for place, segmentation in enumerate(segmentations):
        try:
            rles.append(pasting.compress(segmentation, *image_size))
        except ValueError as error:
            raise ValueError(f"object {place}: {error}") from error
    return rles
