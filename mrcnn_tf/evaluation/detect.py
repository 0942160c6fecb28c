"""A model's detections on a whole data set.

Shape letters: B images, H W pixels of the network's input, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from mrcnn_tf.augmented import Augmentation, detect_augmented
from mrcnn_tf.config import ConfigError
from mrcnn_tf.data.errors import clear_data_errors
from mrcnn_tf.data.pipeline import evaluation_batches, evaluation_images
from mrcnn_tf.detections import Detections
from mrcnn_tf.inference import inference_function
from mrcnn_tf.proposing import detection_from_proposals


def detect(
    model: Any,
    dataset: Any,
    batch_size: int = 1,
    progress: bool = True,
    augmentation: Augmentation | None = None,
) -> dict[int, Detections]:
    """Runs a model on every image of a data set.

    Masks are kept as RLE, some 200 bytes each, so the whole of COCO fits in memory.

    Args:
        model: a MaskRCNN, or any Keras model with `config` that answers {"image": [B, H, W, C], "image_size":
            [B, 2]} as it does.
        dataset: a data set (`data.schema.Dataset`) of the model's classes. Where it comes with proposals, these are
            classified, and the model's own RPN is not asked.
        batch_size: images at once.
        progress: shows a progress bar (on the standard error).
        augmentation: looks at each image several times (see `mrcnn_tf.augmented`), one image at a time; for a MaskRCNN.

    Returns:
        Image id to Detections in the original image's pixels. Images that could not be read (where the data set
        skips such) are absent.

    Raises:
        ValueError: the data set has another number of classes than the model.
        ConfigError: an augmentation of given proposals.
        DataError: an image that cannot be read, where the data set does not skip such.
    """
    if len(dataset.class_names) != model.config.num_classes:
        counts = f"the data set has {len(dataset.class_names)} classes, the model {model.config.num_classes}"
        raise ValueError(f"{counts}: evaluate on the data set that it was trained for")
    if augmentation is not None and dataset.proposals is not None:
        raise ConfigError(f"{dataset.name} comes with proposals, which are for one view: leave the augmentation out")
    if augmentation is None:
        results = _batchwise(model, dataset, batch_size)
    else:
        results = _augmented(model, dataset, augmentation)
    found: dict[int, Detections] = {}
    with tqdm(total=len(dataset), unit="image", disable=not progress) as bar, clear_data_errors():
        for image_id, detections in results:
            found[image_id] = detections.compact()
            bar.update()
    return found


def detected_part(dataset: Any, detections: Mapping[int, Detections]) -> Any:
    """The data set without the images that `detect` left out because they cannot be read.

    Measured on the whole data set, their objects would count as missed.
    """
    there = [index for index, image_id in enumerate(dataset.image_ids.tolist()) if image_id in detections]
    return dataset if len(there) == len(dataset) else dataset.subset(there)


def _batchwise(model: Any, dataset: Any, batch_size: int) -> Iterator[tuple[int, Detections]]:
    keys = ["image", "image_size"]
    if dataset.proposals is None:
        infer = inference_function(model)
    else:
        keys, infer = [*keys, "proposals"], detection_from_proposals(model)
    rules = (model.config.detections.mask_threshold, model.config.detections.paste)
    for batch in evaluation_batches(dataset, model.config, batch_size):
        outputs = infer({key: batch[key] for key in keys})
        sizes = (batch["image_size"].numpy(), batch["original_size"].numpy())
        results = Detections.from_batch(outputs, *sizes, dataset.class_names, *rules)
        yield from zip(batch["image_id"].numpy().tolist(), results, strict=True)


def _augmented(model: Any, dataset: Any, augmentation: Augmentation) -> Iterator[tuple[int, Detections]]:
    for image_id, image in evaluation_images(dataset, model.config):
        yield image_id, detect_augmented(model, image, augmentation, dataset.class_names)
