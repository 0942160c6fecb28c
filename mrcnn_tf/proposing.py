"""The RPN for itself: its proposals on a data set written to a file, and detection on given proposals.

Shape letters: B images, H W pixels of the network's input, P proposals.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from mrcnn_tf import untrained
from mrcnn_tf.atomic import write_atomically
from mrcnn_tf.data.errors import DataError, clear_data_errors
from mrcnn_tf.data.pipeline import evaluation_batches
from mrcnn_tf.data.proposals import Found, ProposalFile, is_proposal_file, write_proposals
from mrcnn_tf.layers.anchors import MoveFarCorner
from mrcnn_tf.layers.proposals import Proposals

logger = logging.getLogger("mrcnn_tf")

PART_IMAGES = 200  # images of a part of the file, the most that an interruption costs


def save_proposals(
    model: Any, dataset: Any, path: str | Path, batch_size: int = 1, progress: bool | None = None
) -> Path:
    """Writes the proposals of a model's RPN on every image to a file (section 3.1: "RPN is trained separately").

    As many are kept as training takes, `rpn.post_nms_train` of the best `rpn.pre_nms_train`; evaluation reads the best
    `rpn.post_nms_test` of them (where a model's own proposals begin from the best `rpn.pre_nms_test`).
    What is done is kept beside the file, in `PATH.parts`, until all is: the same call goes on after an interruption,
    and is over at once where the file is there. A file of other weights or images is replaced.

    Args:
        model: a `MaskRCNN`. Its images are resized as for prediction, not mirrored.
        dataset: a data set. Images that cannot be read, where it skips such, are left out.
        path: the file, see `data.proposals`.
        batch_size: images at once.
        progress: shows a progress bar (on the standard error); None does so on a terminal, else the log tells how far
            it is.

    Raises:
        DataError: an image that cannot be read, where the data set does not skip such; a file of another kind is at
            `path`.
    """
    path = Path(path)
    identity = _identity(model, dataset)
    if path.exists() and not is_proposal_file(path):
        raise DataError(f"{path}: is there, and is no file of proposals; name another", "no proposals")
    if _is_written(path, identity):
        return path
    parts = path.with_name(f"{path.name}.parts")
    _prepare_parts(parts, identity)
    untrained.warn_of_parts(model, ("rpn",))
    propose = _propose_function(model)
    progress = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(dataset), unit="image", disable=not progress) as bar, clear_data_errors():
        names = []
        for start in range(0, len(dataset), PART_IMAGES):
            indices = range(start, min(start + PART_IMAGES, len(dataset)))
            names.append(parts / f"{start:08d}.npz")
            if not names[-1].exists():
                found = _found(propose, model.config, dataset.subset(indices), batch_size, bar)
                _write_part(names[-1], list(found))
            bar.update(indices[-1] + 1 - bar.n)
            if not progress:
                logger.info("%s: proposals of %d of %d images", path, indices[-1] + 1, len(dataset))
    write_proposals(path, _read_parts(names), identity)
    shutil.rmtree(parts)
    return path


def _found(propose, config: Any, dataset: Any, batch_size: int, bar: tqdm) -> Iterator[Found]:
    for batch in evaluation_batches(dataset, config, batch_size):
        boxes, scores = (each.numpy() for each in propose({key: batch[key] for key in ("image", "image_size")}))
        factors = batch["original_size"].numpy() / batch["image_size"].numpy()
        for row, image_id in enumerate(batch["image_id"].numpy().tolist()):
            real = (scores[row] > 0) & (boxes[row, :, 2:] > boxes[row, :, :2]).all(axis=1)
            yield image_id, (boxes[row][real] * np.tile(factors[row], 2)).astype(np.float32), scores[row][real]
            bar.update()


def _identity(model: Any, dataset: Any) -> str:
    """A number that changes with the weights, with what makes proposals of them, and with the images."""
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps([config[name] for name in ("input", "anchors", "rpn")]).encode())
    digest.update(np.asarray(dataset.image_ids, np.int64).tobytes())
    for weight in model.weights:
        digest.update(weight.path.encode())
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def _is_written(path: Path, identity: str) -> bool:
    try:
        return ProposalFile(path).identity == identity
    except DataError:
        return False


def _prepare_parts(parts: Path, identity: str) -> None:
    """The folder of the parts, without those of another model or data set."""
    note = parts / "identity"
    if parts.exists() and (not note.exists() or note.read_text() != identity):
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(note, lambda name: name.write_text(identity))


def _write_part(path: Path, found: list[Found]) -> None:
    values = {
        "image_ids": np.array([image_id for image_id, _, _ in found], np.int64),
        "counts": np.array([len(boxes) for _, boxes, _ in found], np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(boxes for _, boxes, _ in found)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(scores for *_, scores in found)]),
    }
    write_atomically(path, lambda name: np.savez(name, **values))


def _read_parts(paths: list[Path]) -> Iterator[Found]:
    for path in paths:
        with np.load(path) as part:
            ends = np.cumsum(part["counts"])[:-1]
            yield from zip(part["image_ids"], np.split(part["boxes"], ends), np.split(part["scores"], ends))


# The functions of each model, for as long as it lives: tracing again takes seconds.
_PROPOSE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_DETECT: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _propose_function(model: Any) -> Callable[[dict], tuple]:
    """{"image", "image_size"} -> boxes [B, P, 4] in pixels of these images and scores [B, P], as training has them.

    The boxes are as those from outside: what `anchors.shrink` takes is given back.
    """
    if model not in _PROPOSE:
        rpn = model.config.rpn
        layer = Proposals(
            pre_nms_test=rpn.pre_nms_train,
            post_nms_test=rpn.post_nms_train,
            nms_iou=rpn.nms_iou,
            min_size=rpn.min_size,
        )
        boxes, scores = layer(*model.stages["proposals"][0], training=False)
        _PROPOSE[model] = _traced(_images(model), [MoveFarCorner(model.config.anchors.shrink)(boxes), scores])
    return _PROPOSE[model]


def detection_from_proposals(model: Any) -> Callable[[dict], dict]:
    """{"image", "image_size", "proposals" [B, P, 4]} -> the outputs of `model` on these proposals, not on its own."""
    untrained.warn_of_parts(model, ("heads",))
    if model not in _DETECT:
        given = _images(model) | {"proposals": model.stages["proposals"][1]}
        detect, inwards = _traced(given, model.output), MoveFarCorner(-model.config.anchors.shrink)
        _DETECT[model] = lambda values: detect(values | {"proposals": inwards(values["proposals"])})
    return _DETECT[model]


def _images(model: Any) -> dict:
    image, image_size = model.stages["normalize"][0]
    return {"image": image, "image_size": image_size}


def _traced(inputs: dict, outputs: Any) -> Callable[[dict], Any]:
    """The part of a graph between these symbolic tensors, for all sizes of images."""
    part = keras.Model(list(inputs.values()), outputs)
    signature = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in inputs.items()}
    return tf.function(
        lambda values: part([values[name] for name in inputs], training=False), input_signature=[signature]
    )
