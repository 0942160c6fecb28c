"""The four-step training after which RPN and branches share their features (section 4.4; Ren et al. 2015, section 3.2).

1. The RPN alone, on a backbone of its own.
2. The branches alone, on a backbone of their own, with the proposals of step 1.
3. The RPN anew on the backbone of step 2, which stays as it is.
4. The branches of step 2 again on that same backbone, with the proposals of step 3.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_tf.atomic import write_atomically
from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.proposals import with_proposals
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.parts import weights_of
from mrcnn_tf.proposing import save_proposals
from mrcnn_tf.training.cluster import workers_named
from mrcnn_tf.training.errors import DistributionError
from mrcnn_tf.training.run import set_aside, train

logger = logging.getLogger("mrcnn_tf")

STEPS = ("1-rpn", "2-heads", "3-rpn", "4-heads")
FOLLOWS = "follows.txt"  # in a step's folder: a number of the weights of the step before that it was begun with


@dataclass
class AlternatingResult:
    """What `train_alternating` made.

    Attributes:
        model: with shared features; it predicts from images alone, as any other.
        run_dir: the folder.
        histories: {step: the columns of its log.csv}, in the order of `STEPS`.
    """

    model: MaskRCNN
    run_dir: Path
    histories: dict[str, dict[str, list[float]]]


def train_alternating(
    config: Config,
    train_set: Any,
    val_set: Any = None,
    run_dir: str | Path = "run",
    devices: int | str | Sequence[str] | None = None,
    batch_size: int | None = None,
    backbone_weights: str | Path | None = None,
    reinitialize_stages: Iterable[str] = (),
    last_norm_gamma: float | None = 0.2,
    resume: bool = True,
    verbose: int = 1,
) -> AlternatingResult:
    """Trains a Mask R-CNN in four steps of `config.training.steps` each; called again, goes on where it was stopped.

    Where a step had still something to do (more steps than before, say), those after it start anew, also where that
    was in an earlier call, which was stopped before it came to them.

    The folder gets one of `train`'s folders for each step (`STEPS`), the proposals of steps 1 and 3 in theirs
    (`train.proposals.h5`, `val.proposals.h5`), and at the end model.keras and config.json.

    Args:
        config: as of `train`; which parts a step trains, is set here.
        train_set, val_set: data sets; the latter may be None. It is evaluated in steps 2 and 4.
        run_dir: the folder of this training.
        devices, batch_size, resume, verbose: see `train`. On one machine only.
        backbone_weights, reinitialize_stages, last_norm_gamma: what steps 1 and 2 begin with; see `train`.

    Raises:
        As `train` does. DistributionError: several workers.
        ConfigError: the configuration is of a training of one part.
        RuntimeError: the backbone of the RPN and that of the branches are not the same at the end.
    """
    if workers_named(os.environ) > 1:
        raise DistributionError("the four steps train on one machine only: start them without srun and TF_CONFIG")
    if set(config.training.parts) != {"rpn", "heads"} or not config.training.train_backbone:
        raise ConfigError("the four steps set training.parts and training.train_backbone themselves: leave both out")
    run_dir = Path(run_dir)
    fresh = {
        "backbone_weights": backbone_weights,
        "reinitialize_stages": tuple(reinitialize_stages),
        "last_norm_gamma": last_norm_gamma,
    }
    options = {"devices": devices, "batch_size": batch_size, "resume": resume, "verbose": verbose}
    sets = (train_set, val_set)
    rpn, heads = (_only(config, part, backbone=True) for part in ("rpn", "heads"))
    rpn_again, heads_again = (_only(config, part, backbone=False) for part in ("rpn", "heads"))
    folders = [run_dir / step for step in STEPS]
    histories = {}

    def step(number: int, own_config: Config, own_sets: tuple, before: Any = None, **start: Any) -> MaskRCNN:
        logger.info("step %d of 4: %s", number, folders[number - 1])
        # What an earlier call made of the former end of the step before is of other weights.
        if before is not None and _follows_another(before, folders[number - 1]):
            options["resume"] = False
        result = train(own_config, *own_sets, folders[number - 1], **start, **options)
        options["resume"] &= result.resumed_from == result.steps
        histories[STEPS[number - 1]] = result.history
        return result.model

    model = step(1, rpn, sets, **fresh)
    model = step(2, heads, _propose(model, sets, folders[0], verbose), model, **fresh)
    shared = weights_of(model, "backbone")
    model = step(3, rpn_again, sets, model, initial_weights=folders[1] / "model.keras")
    proposed, own_rpn = _propose(model, sets, folders[2], verbose), weights_of(model, "rpn")
    model = step(4, heads_again, proposed, model, initial_weights=folders[2] / "model.keras")
    _check_same(shared, weights_of(model, "backbone"), "the backbone of step 2")
    _check_same(own_rpn, weights_of(model, "rpn"), "the RPN of step 3")
    return AlternatingResult(_save(model, config, run_dir), run_dir, histories)


def _follows_another(before: MaskRCNN, folder: Path) -> bool:
    """Notes in a step's folder which model it follows; if it has followed another, its training is moved aside."""
    digest = hashlib.sha256()
    for part in ("backbone", "rpn", "heads"):
        for path, values in sorted(weights_of(before, part).items()):
            digest.update(path.encode() + np.ascontiguousarray(values).tobytes())
    number, note = digest.hexdigest(), folder / FOLLOWS
    known = note.read_text() if note.exists() else None
    if known == number:
        return False
    if known is not None:
        set_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, lambda name: name.write_text(number))
    return known is not None


def _only(config: Config, part: str, backbone: bool) -> Config:
    return config.replace(training__parts=(part,), training__train_backbone=backbone)


def _propose(model: MaskRCNN, sets: tuple, folder: Path, verbose: int) -> tuple:
    """The data sets with the proposals of `model`, which are kept in `folder`."""
    with_them = []
    for name, dataset in zip(("train", "val"), sets):
        if dataset is not None:
            path = save_proposals(model, dataset, folder / f"{name}.proposals.h5", progress=None if verbose else False)
            dataset = with_proposals(dataset, path)
        with_them.append(dataset)
    return tuple(with_them)


def _check_same(expected: dict[str, np.ndarray], found: dict[str, np.ndarray], what: str) -> None:
    moved = [path for path, values in expected.items() if not np.array_equal(values, found[path])]
    if moved:
        raise RuntimeError(f"{what} is not that of the last model any more: {', '.join(moved[:5])}")


def _save(trained: MaskRCNN, config: Config, run_dir: Path) -> MaskRCNN:
    """The model of all parts, written to the folder."""
    training = {"parts": config.training.parts, "train_backbone": config.training.train_backbone}
    model = MaskRCNN(trained.config.replace(training=training))
    values = {weight.path: weight for weight in trained.weights}
    for weight in model.weights:
        weight.assign(values[weight.path])
    write_atomically(run_dir / "model.keras", model.save)
    text = model.config.to_json() + "\n"
    write_atomically(run_dir / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    return model
