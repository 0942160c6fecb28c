"""One call from a trained model to its measures and pictures in a folder.

This is what the command lines and samples do after a training; each step is a public function of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf import visualize
from mrcnn_tf.augmented import Augmentation
from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.schema import Dataset, Example
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation.coco import Evaluation, evaluate_coco, kinds_of
from mrcnn_tf.evaluation.detect import detect, detected_part
from mrcnn_tf.skeletons import Skeleton


def evaluation_report(
    model: Any,
    dataset: Dataset,
    folder: str | os.PathLike,
    max_detections: int | None = None,
    batch_size: int = 1,
    pictures: int = 8,
    picture_score: float = 0.5,
    progress: bool | None = None,
    augmentation: Augmentation | None = None,
) -> Evaluation:
    """COCO's measures of a model on a data set, written to a folder.

    The folder gets `evaluation.json` (all measures), `results.json` (COCO's results format, as the COCO server takes
    it; for keypoints `keypoints.json` as well, without boxes and masks), `per_class.png` and `pictures/`: ground truth
    beside prediction.

    Args:
        model: a `MaskRCNN`.
        dataset: of the model's classes. Images that cannot be read, where it skips such, are not measured either.
        max_detections: detections an image that count, and COCO's largest limit; None takes the model's
            `config.detections.max_per_image`.
        batch_size: images at once.
        pictures: how many images are drawn, evenly spread over the data set.
        picture_score: detections below are not drawn.
        progress: shows a progress bar; None does so on a terminal.
        augmentation: several views of each image, see `detect`.

    Raises:
        ValueError: see `detect` and `evaluate_coco`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    progress = sys.stderr.isatty() if progress is None else progress
    found = detect(model, dataset, batch_size=batch_size, progress=progress, augmentation=augmentation)
    limit = max_detections or model.config.detections.max_per_image
    kinds = kinds_of(model.config, dataset)
    evaluation = evaluate_coco(detected_part(dataset, found), found, max_detections=limit, kinds=kinds)
    evaluation.save(folder / "evaluation.json")
    evaluation.save_results(folder / "results.json")
    if "keypoints" in kinds:
        evaluation.save_results(folder / "keypoints.json", kind="keypoints")
    visualize.plot_per_class(evaluation, folder / "per_class.png")
    draw_comparisons(dataset, found, folder / "pictures", pictures, picture_score)
    return evaluation


def server_results(
    model: Any,
    dataset: Dataset,
    folder: str | os.PathLike,
    batch_size: int = 1,
    pictures: int = 8,
    picture_score: float = 0.5,
    progress: bool | None = None,
    augmentation: Augmentation | None = None,
) -> int:
    """What a model finds in images without ground truth (`read_coco(..., annotated=False)`), for the COCO server.

    The folder gets `results.json` (for keypoints `keypoints.json` as well) and `pictures/`: the image, and beside it
    what was found. The arguments are those of `evaluation_report`.

    Returns:
        How many objects were found.

    Raises:
        ValueError: see `detect`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    progress = sys.stderr.isatty() if progress is None else progress
    found = detect(model, dataset, batch_size=batch_size, progress=progress, augmentation=augmentation)
    records = [record for image_id, one in found.items() for record in one.to_coco(image_id, dataset.category_ids)]
    evaluation = Evaluation({}, {}, records, model.config.detections.max_per_image, len(found), 0)
    evaluation.save_results(folder / "results.json")
    if "keypoints" in model.config.branches:
        evaluation.save_results(folder / "keypoints.json", kind="keypoints")
    draw_comparisons(dataset, found, folder / "pictures", pictures, picture_score)
    return len(records)


def draw_comparisons(
    dataset: Dataset,
    found: dict[int, Detections],
    folder: str | os.PathLike,
    count: int = 8,
    min_score: float = 0.5,
) -> list[Path]:
    """Writes pictures with ground truth on the left and detections on the right.

    Args:
        dataset: with the ground truth; its skeleton joins the keypoints.
        found: image id to Detections, as `detect` gives them.
        folder: where the pictures go, named after the images.
        count: of pictures, evenly spread over the images that were detected in.
        min_score: detections below are not drawn.

    Returns:
        The files.
    """
    indices = [index for index, image_id in enumerate(dataset.image_ids) if int(image_id) in found]
    step = max(1, len(indices) // count) if count else len(indices) + 1
    skeleton = Skeleton.of(dataset) if dataset.keypoint_names else None
    written = []
    for index in indices[::step][:count]:
        example = dataset.example(index)
        detections = found[int(example.image_id)]
        path = Path(folder) / f"{Path(dataset.file_name(index)).stem}.png"
        if path in written:  # two folders may hold files of one name
            path = path.with_name(f"{path.stem}_{example.image_id}.png")
        options = {"min_score": min_score, "skeleton": skeleton}
        picture = visualize.side_by_side(_image_of(example), example, detections, **options)
        visualize.save(picture, path)
        written.append(path)
    return written


def _image_of(example: Example) -> np.ndarray:
    """The image in a form that can be shown, whatever number of channels the model takes."""
    if example.path is None:
        return example.pixels
    if example.path.endswith(".npy"):
        return np.load(example.path)
    return load_image(example.path, 3, example.size)
