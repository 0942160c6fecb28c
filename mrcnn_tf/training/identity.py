"""What must be the same for a training to be resumed: model, data, and how the data is cut into steps."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import numpy as np

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.training.errors import CheckpointError

logger = logging.getLogger("mrcnn_tf")

# Of no consequence for the steps already made. (The batch and the epochs' length are compared as such.)
FREE = ("detections.", "training.steps", "training.evaluate_every", "training.checkpoint_every")
FREE_TOO = ("training.images_per_device", "training.accumulate", "training.steps_per_epoch")
# Changing these is a decision that one may take in the middle of a training; it is mentioned in the log.
NOTED = "training."
# The seed orders the data; the others say which weights have momenta.
FIXED_ANYWAY = ("training.seed", "training.parts", "training.train_backbone")


def run_identity(config: Config, dataset, global_batch: int, steps_per_epoch: int) -> dict:
    """What `check_identity` compares, ready for json."""
    ids = np.asarray(dataset.image_ids, np.int64)
    return {
        "config": config.to_dict(),
        "global_batch": global_batch,
        "steps_per_epoch": steps_per_epoch,
        "images": len(ids),
        "image_ids_crc32": zlib.crc32(ids.tobytes()),
        "proposals": None if dataset.proposals is None else dataset.proposals.identity,
    }


def check_identity(saved: dict, now: dict, path: str | Path) -> None:
    """Compares a checkpoint's identity with the present one.

    Changes of the schedule or the optimiser are logged; see `FREE` for what may change silently.

    Raises:
        CheckpointError: model, data, seed, batch or epoch length differ; it lists every difference.
    """
    try:
        before = _flat(Config.from_dict(saved["config"]).to_dict())
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration is not of this version of mrcnn_tf ({error})") from error
    differences, noted = [], []
    for name, value in _flat(now["config"]).items():
        if value == before[name] or name.startswith(FREE) or name in FREE_TOO:
            continue
        target = noted if name.startswith(NOTED) and name not in FIXED_ANYWAY else differences
        target.append(f"{name} was {before[name]!r}, now {value!r}")
    names = {"global_batch": "images per step", "steps_per_epoch": "steps per epoch", "images": "training images"}
    differences += [
        f"{text}: {saved[name]} then, {now[name]} now" for name, text in names.items() if saved[name] != now[name]
    ]
    if saved["images"] == now["images"] and saved["image_ids_crc32"] != now["image_ids_crc32"]:
        differences.append("the training images have other ids")
    if "proposals" in saved and saved["proposals"] != now["proposals"]:  # earlier versions did not note them
        differences.append("the proposals are others, of another model or other images")
    if differences:
        raise CheckpointError(
            f"{path} is of another training and cannot be resumed:\n  "
            + "\n  ".join(differences)
            + "\nUse another run folder, or resume=False (--fresh) to start anew in this one."
        )
    for change in noted:
        logger.warning("resuming with a changed configuration: %s", change)


def _flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}, with tuples for lists as json gives them."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = _tuples(value)
    return flat


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
