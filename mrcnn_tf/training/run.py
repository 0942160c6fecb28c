"""A whole training in a folder: model, data, callbacks, and going on after an interruption."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.batch_plan import BatchPlan
from mrcnn_tf.data.errors import clear_data_errors
from mrcnn_tf.data.pipeline import check_keypoints, check_proposals, evaluation_batches, training_batches
from mrcnn_tf.evaluation.coco import kinds_of
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.training import logs
from mrcnn_tf.training.callbacks import GracefulStop, StopOnNonFinite, Throughput
from mrcnn_tf.training.checkpoints import UNFINISHED, Checkpoint, CheckpointStore, CloseEpoch, write_atomically
from mrcnn_tf.training.cluster import Team
from mrcnn_tf.training.distribution import global_batch_size, strategy
from mrcnn_tf.training.errors import DistributionError
from mrcnn_tf.training.identity import run_identity
from mrcnn_tf.training.precision import precision
from mrcnn_tf.training.progress import Progress, fit_steps
from mrcnn_tf.training.validation import CocoEvaluation, ValidationLosses, coco_measure, columns, is_due
from mrcnn_tf.weights.files import load_weights
from mrcnn_tf.weights.keras_applications import load_backbone
from mrcnn_tf.weights.report import WeightsError, WeightsReport

logger = logging.getLogger("mrcnn_tf")

# What a training makes in its folder; moved out of the way when it starts anew.
MADE = (
    *("config.json", "log.csv", "steps.jsonl", "weights.txt", "evaluation.json", "best.weights.h5", "model.keras"),
    *("checkpoints", "tensorboard", "pictures"),
)
HOW_TO_RESUME = "Start the same command again to go on from there."


@dataclass
class TrainingResult:
    """What `train` made.

    Attributes:
        model: after the last step.
        history: the columns of log.csv, one value per epoch of the whole training.
        run_dir: the folder.
        steps: updates of the whole training, those before an interruption included.
        resumed_from: the step this call started at.
        best_ap: the best mask AP (keypoint AP without masks, box AP without either), of `best.weights.h5`; NaN
            without an evaluation.
        best_step: the step it was reached at.
        weights: what became of the backbone weights, if some were loaded.
        is_chief: of several workers, whether this is the one that wrote the files and evaluated.
    """

    model: keras.Model
    history: dict[str, list[float]]
    run_dir: Path
    steps: int
    resumed_from: int = 0
    best_ap: float = math.nan
    best_step: int = 0
    weights: WeightsReport | None = None
    is_chief: bool = True


@dataclass
class _Run:
    """One training's parts, made by `_prepare`."""

    config: Config
    run_dir: Path
    progress: Progress
    plan: BatchPlan
    checkpoint: Checkpoint
    log: logs.EpochLog
    steps: logs.StepLog
    stop: GracefulStop
    board: logs.TensorBoardLog
    team: Team
    at_epoch_end: list = field(default_factory=list)


def train(
    config: Config,
    train_set: Any,
    val_set: Any = None,
    run_dir: str | Path = "run",
    devices: int | str | Sequence[str] | None = None,
    batch_size: int | None = None,
    backbone_weights: str | Path | None = None,
    reinitialize_stages: Iterable[str] = (),
    last_norm_gamma: float | None = 0.2,
    initial_weights: str | Path | None = None,
    resume: bool = True,
    validation_losses: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int = 1,
) -> TrainingResult:
    """Trains a Mask R-CNN for `config.training.steps` steps; called again, goes on where it was stopped.

    The folder gets config.json, log.csv (a row per epoch), steps.jsonl (a line per step), tensorboard/,
    checkpoints/ (the last two), best.weights.h5 (of the best validation AP), evaluation.json, pictures/,
    weights.txt (what was found in `backbone_weights`) and, at the end, model.keras.

    Where several workers train together (see `distribution.strategy`), each calls this with the same arguments. The
    folder is to be one that all of them see; the chief alone writes to it, while the others wait.

    Args:
        config: the model, the schedule and the data's treatment. Without class names it takes those of
            `train_set`.
        train_set: a data set (`data.schema.Dataset`); with proposals where the heads are trained alone, and `val_set`
            too (`mrcnn_tf.with_proposals`).
        val_set: evaluated every `config.training.evaluate_every` epochs (0: never) and at the end; may be None.
        run_dir: the folder of this training.
        devices: see `distribution.strategy`.
        batch_size: images of a step over all devices and its `config.training.accumulate` micro-batches; None takes
            `config.training.images_per_device` for each.
        backbone_weights: a file for `weights.load_backbone`. Not read again when resuming.
        reinitialize_stages, last_norm_gamma: stages that start anew instead; see `weights.load_backbone`.
        initial_weights: weights of a whole model (`.weights.h5` or `.keras`) to start from.
        resume: False moves an earlier training of this folder to `earlier-1` (2, ...) in it and starts anew; so does
            True where its checkpoints have been removed.
        validation_losses: whether to compute the losses on `val_set` as well.
        callbacks: further Keras callbacks (of every worker); what they add to an epoch's logs is logged.
        verbose: 0 silent, 1 a progress bar (lines of text where there is no terminal), 2 lines of text.

    Raises:
        ConfigError: classes or keypoints of config and data sets differ.
        DataError: an image or record that cannot be used.
        DistributionError: see `distribution.strategy`.
        WeightsError: weights that do not fit.
        CheckpointError: the folder holds another training.
        NonFiniteLossError, TrainingInterrupted: a loss became NaN or infinite; Ctrl-C or SIGTERM, after saving.
        WorkerLostError: another worker is gone.
    """
    chosen = strategy(devices)
    config = _with_classes(config, train_set, val_set)
    training = config.training
    batch = global_batch_size(chosen, training.images_per_device, batch_size, training.accumulate)
    run = _prepare(config, train_set, batch, run_dir, Team(chosen))
    weights = (initial_weights, backbone_weights, reinitialize_stages, last_norm_gamma)
    model, report = _start(run, chosen, resume, *weights)
    start = run.progress.step
    every = _callbacks(run, val_set if config.training.evaluate_every else None, validation_losses, callbacks, verbose)
    with run.stop, clear_data_errors(), run.team.together(HOW_TO_RESUME):
        _finish_epoch(run, model)
        fit_steps(model, lambda step: _batches(run, train_set, step), run.progress, every)
        if run.team.is_chief:
            _save(model, run)
        run.team.wait()
    run.board.close()
    done, best_ap, best_step = run.progress.step, run.progress.best_ap, run.progress.best_step
    history, is_chief = run.log.history, run.team.is_chief
    return TrainingResult(model, history, run.run_dir, done, start, best_ap, best_step, report, is_chief)


def _start(run: _Run, chosen: tf.distribute.Strategy, resume: bool, *weights) -> tuple[keras.Model, Any]:
    """The model at the checkpoint's step, or at step 0 with its first weights and the report on them."""
    team, text = run.team, run.config.to_json() + "\n"
    with team.together(HOW_TO_RESUME):
        if not resume:
            for path in (weights[0], weights[1]):
                _check_there(path)
            team.wait()  # lest others look for what the chief has moved already
        if team.is_chief:
            if not resume or _has_results_alone(run):
                set_aside(run.run_dir)
            _clean(run.run_dir)
        team.wait()
        model = _build(run.config, chosen, run.plan.batch_size // run.config.training.accumulate)
        found = run.checkpoint.restore(model)
        if team.mean(run.progress.step) != run.progress.step:
            raise DistributionError(
                f"the workers find different checkpoints; {run.run_dir} is to be seen by all of them"
            )
    report = None
    if found is None:
        report = _load(model, *(_where_now(path, run.run_dir) for path in weights[:2]), *weights[2:])
    else:
        logger.info("resuming from %s: step %d of %d", found, run.progress.step, run.progress.total_steps)
    if team.is_chief:
        write_atomically(run.run_dir / "config.json", lambda path: path.write_text(text, "utf-8"))
        if report is not None:
            (run.run_dir / "weights.txt").write_text(report.summary() + "\n", encoding="utf-8")
    return model, report


def _with_classes(config: Config, train_set: Any, val_set: Any) -> Config:
    """The config with class names, after checking that they are those of the data sets."""
    names = tuple(train_set.class_names)
    if len(names) != config.num_classes:
        raise ConfigError(
            f"num_classes = {config.num_classes}, but {train_set.name} has {len(names)} classes "
            f"({', '.join(names[:10])}{', ...' * (len(names) > 10)}); set num_classes to {len(names)}"
        )
    if val_set is not None and tuple(val_set.class_names) != names:
        raise ConfigError(
            f"the classes of {val_set.name} {tuple(val_set.class_names)} are not those of {train_set.name} {names}"
        )
    for dataset in (train_set, val_set):
        if dataset is not None:
            check_keypoints(dataset, config)
            check_proposals(dataset, config)
    return config if config.class_names else config.replace(class_names=names)


def _prepare(config: Config, train_set: Any, batch: int, run_dir: str | Path, team: Team) -> _Run:
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = BatchPlan.of(train_set, config, batch, config.training.seed)
    steps_per_epoch = config.training.steps_per_epoch or plan.steps_per_epoch
    progress = Progress(config.training.steps, steps_per_epoch)
    identity = run_identity(config, train_set, batch, steps_per_epoch)
    store = CheckpointStore(run_dir / "checkpoints")
    checkpoint = Checkpoint(store, progress, identity, config.training.checkpoint_every, writes=team.is_chief)
    return _Run(
        config=config,
        run_dir=run_dir,
        progress=progress,
        plan=plan,
        checkpoint=checkpoint,
        log=logs.EpochLog(run_dir / "log.csv", progress),
        steps=logs.StepLog(run_dir / "steps.jsonl", progress),
        stop=GracefulStop(checkpoint, progress, HOW_TO_RESUME, team if team.count > 1 else None),
        board=logs.TensorBoardLog(run_dir / "tensorboard", progress),
        team=team,
    )


def set_aside(run_dir: Path) -> None:
    """Moves what an earlier training made into a folder of its own: nobody loses a week by a command."""
    made = [run_dir / name for name in MADE if (run_dir / name).exists()]
    if not made:
        return
    number = 1
    while (run_dir / f"earlier-{number}").exists():
        number += 1
    aside = run_dir / f"earlier-{number}"
    aside.mkdir()
    for path in made:
        path.rename(aside / path.name)
    logger.warning("starting anew; the earlier training is now in %s", aside)


def _has_results_alone(run: _Run) -> bool:
    """Whether there are trained weights without a checkpoint, which somebody may have removed to save space."""
    results = any((run.run_dir / name).exists() for name in ("best.weights.h5", "model.keras"))
    return results and not run.checkpoint.store.paths()


def _check_there(weights: str | Path | None) -> None:
    """Refuses a file that is not there before anything is moved for its sake."""
    if weights is not None and not Path(weights).is_file():
        raise WeightsError(f"{weights}: there is no such weights file")


def _where_now(weights: str | Path | None, run_dir: Path) -> str | Path | None:
    """The path of weights, also if they are those of the training that `set_aside` has just moved."""
    if weights is None or Path(weights).exists() or Path(weights).resolve().parent != run_dir.resolve():
        return weights
    moved = sorted(run_dir.glob(f"earlier-*/{Path(weights).name}"), key=lambda path: int(path.parent.name[8:]))
    return moved[-1] if moved else weights


def _clean(run_dir: Path) -> None:
    for path in run_dir.glob(f"{UNFINISHED}*"):
        path.unlink()


def _build(config: Config, chosen: tf.distribute.Strategy, batch: int) -> keras.Model:
    keras.utils.set_random_seed(config.training.seed)
    with chosen.scope(), precision(config.training.precision):
        model = MaskRCNN(config)
        model.compile(global_batch=batch)
    return model


def _load(model, initial_weights, backbone_weights, stages, last_norm_gamma) -> WeightsReport | None:
    if initial_weights is not None:
        load_weights(model, initial_weights)
    if backbone_weights is None:
        return None
    return load_backbone(model, backbone_weights, stages, last_norm_gamma)


def _batches(run: _Run, train_set: Any, step: int) -> tf.data.Dataset:
    plan = run.plan
    images = plan.batch_size // run.config.training.accumulate
    return training_batches(train_set, run.config, images, plan.seed, start_step=step, plan=plan)


def _callbacks(run: _Run, val_set: Any, validation_losses: bool, more: Sequence, verbose: int) -> list:
    """All callbacks in the order that they depend on."""
    progress, training = run.progress, run.config.training
    shown: list = []
    if verbose:
        bar = verbose == 1 and sys.stdout.isatty()
        shown = [logs.ProgressBar(progress) if bar else logs.ProgressLines(progress)]
    measured: list = []
    if val_set is not None:
        if validation_losses:
            batch = run.plan.batch_size // training.accumulate
            measured.append(
                ValidationLosses(
                    lambda: evaluation_batches(val_set, run.config, batch), progress, training.evaluate_every
                )
            )
        run.checkpoint.evaluated = lambda epoch: is_due(progress, epoch, training.evaluate_every)
        if "heads" in training.parts:  # an RPN alone detects nothing
            measure = coco_measure(val_set, run.run_dir, show=bool(verbose) and sys.stderr.isatty())
            measured.append(CocoEvaluation(measure, run.run_dir, progress, training.evaluate_every))
            run.log.columns = columns(kinds_of(run.config, val_set))
    if not run.team.is_chief:
        # Others take part in what the devices compute together, and write nothing.
        run.at_epoch_end = [callback for callback in measured if isinstance(callback, ValidationLosses)]
        return [StopOnNonFinite(progress, run.plan.image_ids), run.checkpoint, run.stop, *run.at_epoch_end, *more]
    curves = logs.Curves(run.log, run.steps, run.run_dir / "pictures" / "curves.png")
    run.at_epoch_end = [*measured, run.log, run.board, curves, *shown, CloseEpoch(run.checkpoint)]
    every_step = [
        StopOnNonFinite(progress, run.plan.image_ids, run.run_dir),
        Throughput(progress, run.plan.batch_size),
        run.steps,
        run.checkpoint,
        run.stop,
    ]
    # The caller's callbacks come before those that log, which then log what they add.
    return [*every_step, *measured, *more, *run.at_epoch_end[len(measured) :]]


def _finish_epoch(run: _Run, model: keras.Model) -> None:
    """Brings the logs to the checkpoint's step, and catches up on an evaluation that was interrupted."""
    pending = run.checkpoint.pending
    if run.team.is_chief:
        run.steps.rewind(run.progress.step)
        run.log.rewind(run.progress.step, None if pending is None else pending["epoch"])
    if pending is None:
        return
    run.checkpoint.set_model(model)
    epoch_logs = dict(pending["logs"])
    for callback in run.at_epoch_end:
        callback.set_model(model)
        if not isinstance(callback, keras.callbacks.ProgbarLogger):  # has no epoch of its own here
            callback.on_epoch_end(pending["epoch"], epoch_logs)


def _save(model: keras.Model, run: _Run) -> None:
    path = run.run_dir / "model.keras"
    # A model may be of fewer steps: of a shorter training that was gone on with, and stopped after its last step.
    if run.checkpoint.model_step != run.progress.step or not path.exists():
        write_atomically(path, model.save)
        run.checkpoint.note_model()
