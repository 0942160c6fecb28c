"""Checkpoints that a training can always go on from, whenever and however it was ended.

A checkpoint is a folder `step_00000123` with `arrays.npz` (the model's, the optimiser's and the running
means' variables) and `state.json`. It is written under another name, flushed to the disk and then
renamed, so that a folder of that name is always whole.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.atomic import UNFINISHED, flush_to_disk, write_atomically
from mrcnn_tf.stepping import has_machines
from mrcnn_tf.training.errors import CheckpointError, NonFiniteLossError
from mrcnn_tf.training.identity import check_identity
from mrcnn_tf.training.progress import Progress

logger = logging.getLogger("mrcnn_tf")

FORMAT_VERSION = 1
WORTH_SAVING = 0.5  # seconds that a checkpoint may take without anyone minding
UNREADABLE = "unreadable-"


def _write_json(path: Path, values: dict) -> None:
    text = json.dumps(values, indent=1)
    write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))


class CheckpointStore:
    """The folder with the last `keep` checkpoints."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = self.folder.glob("step_*") if self.folder.is_dir() else ()
        return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name))

    def write(self, step: int, arrays: dict[str, np.ndarray], state: dict) -> Path:
        """Adds a checkpoint and removes the oldest. If there is one of this step, it gets the new state."""
        path = self.path(step)
        if path.exists():
            self.write_state(step, state)
            return path
        self.clean()
        unfinished = self.folder / f"{UNFINISHED}{path.name}"
        unfinished.mkdir(parents=True)
        write_atomically(unfinished / "arrays.npz", lambda name: np.savez(name, **arrays))
        _write_json(unfinished / "state.json", state)
        flush_to_disk(unfinished)
        os.replace(unfinished, path)
        flush_to_disk(self.folder)
        for old in self.paths()[: -self.keep]:
            leaving = self.folder / f"{UNFINISHED}{old.name}"
            os.replace(old, leaving)  # never half deleted under its own name
            shutil.rmtree(leaving)
        return path

    def write_state(self, step: int, state: dict) -> None:
        """Replaces the state of the checkpoint of `step`."""
        _write_json(self.path(step) / "state.json", state)

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def clean(self) -> None:
        """Removes what a killed process left half written."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path)

    def read_latest(self) -> tuple[dict[str, np.ndarray], dict, Path] | None:
        """Arrays, state and folder of the newest checkpoint that can be read; None if there is none.

        Raises:
            CheckpointError: there are checkpoints, but none can be read, or they are of a newer version.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                state = json.loads((path / "state.json").read_text(encoding="utf-8"))
                version = state["format_version"]
                if version > FORMAT_VERSION:
                    raise CheckpointError(
                        f"{path}: format {version} is newer than this mrcnn_tf, which reads up to {FORMAT_VERSION}"
                    )
                with np.load(path / "arrays.npz") as archive:
                    return {name: archive[name] for name in archive.files}, state, path
            except (CheckpointError, MemoryError):
                raise
            except Exception as error:  # what is wrong with a damaged file comes in a dozen classes
                logger.warning("%s cannot be read (%s); going back to the one before", path, error)
        if paths:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be read; resume=False (--fresh) starts anew"
            )
        return None

    def set_aside_after(self, path: Path) -> None:
        """Renames what is newer than `path` and could not be read, so that these steps are saved when made again."""
        for newer in self.paths():
            if newer.name > path.name:
                aside = self.folder / f"{UNREADABLE}{newer.name}"
                if aside.exists():
                    shutil.rmtree(aside)
                os.replace(newer, aside)
                logger.warning("%s is kept as %s", newer, aside.name)


def variable_groups(model: keras.Model) -> dict[str, list]:
    """Everything that a training step changes, but for what is zero between two updates.

    The loss scale is a group of its own, without which a training goes on in another precision.
    """
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    optimizer = model.optimizer
    scale = list(getattr(optimizer, "variables_of_scale", ()))
    apart = {id(variable) for variable in [*scale, *getattr(optimizer, "variables_within_update", ())]}
    return {
        "model": list(model.variables),
        "optimizer": [variable for variable in optimizer.variables if id(variable) not in apart],
        "loss_scale": scale,
        "metrics": list(model.metrics_variables),
    }


def read_variables(model: keras.Model) -> dict[str, np.ndarray]:
    """The variables as {"group/number/path": array}."""
    return {
        f"{group}/{number:05d}/{variable.path}": _array(variable, model.distribute_strategy)
        for group, variables in variable_groups(model).items()
        for number, variable in enumerate(variables)
    }


def _array(variable: keras.Variable, strategy: tf.distribute.Strategy) -> np.ndarray:
    if not has_machines(strategy) or variable.value.aggregation != tf.VariableAggregation.SUM:
        return keras.ops.convert_to_numpy(variable)
    # A running mean, whose parts on the replicas are equal: adding them up would need the other machines.
    return strategy.experimental_local_results(variable.value)[0].numpy() * strategy.num_replicas_in_sync


def assign_variables(model: keras.Model, arrays: dict[str, np.ndarray], groups: tuple[str, ...]) -> None:
    """Sets the variables of some groups to what `read_variables` gave.

    Raises:
        CheckpointError: another number of variables, other names or other shapes; nothing is set then.
    """
    pairs = []
    for group in groups:
        variables = variable_groups(model)[group]
        names = sorted(name for name in arrays if name.startswith(f"{group}/"))
        if len(names) != len(variables):
            raise CheckpointError(f"the checkpoint has {len(names)} variables of the {group}, not {len(variables)}")
        for variable, name in zip(variables, names):
            array, path = arrays[name], name.split("/", 2)[2]
            if _plain(path) != _plain(variable.path) or array.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"the checkpoint's {path} {array.shape} stands where the {group} has "
                    f"{variable.path} {tuple(variable.shape)}"
                )
            pairs.append((variable, array))
    for variable, array in pairs:
        variable.assign(array)


def _plain(path: str) -> str:
    """A path without the numbers that Keras adds when a name was used before in the process."""
    return re.sub(r"_\d+(?=/|$)", "", path)


class Checkpoint(keras.callbacks.Callback):
    """Saves at the end of every epoch, and every `every_steps` steps if that is not 0.

    Epochs so short that saving would take more than a twentieth of the time are passed over, save those
    with an evaluation and the last. An epoch's checkpoint is written before its evaluation, with a note
    that this is still to come; should the process end there, `pending` gives the epoch whose end is to be gone
    through again.

    Args:
        store: where to.
        progress: shared with the other callbacks.
        identity: see `identity.run_identity`; kept with the checkpoint, and compared on `restore`.
        every_steps: 0 saves at epoch ends only.
        evaluated: says whether an epoch (from 0) will be evaluated.
        writes: whether this process is the one that writes.

    Attributes:
        pending: the epoch whose end is to be gone through again, and its logs.
        model_step: the step that the model in the training's folder is of; None where there is none.
    """

    def __init__(
        self,
        store: CheckpointStore,
        progress: Progress,
        identity: dict,
        every_steps: int = 0,
        evaluated: Callable[[int], bool] = lambda epoch: False,
        writes: bool = True,
    ):
        super().__init__()
        self.evaluated = evaluated
        self.writes = writes
        self._saved_at, self._seconds = -math.inf, 0.0
        self.store = store
        self.progress = progress
        self.identity = identity
        self.every_steps = every_steps
        self.pending: dict | None = None
        self.model_step: int | None = None
        self._metrics: dict[str, np.ndarray] = {}

    def restore(self, model: keras.Model) -> Path | None:
        """Sets model, optimiser and progress to the newest checkpoint; None if there is none.

        Raises:
            CheckpointError: it cannot be read, or is of another configuration, data set or batch.
        """
        if self.writes:
            self.store.clean()
        found = self.store.read_latest()
        if found is None:
            return None
        arrays, state, path = found
        check_identity(state["identity"], self.identity, path)
        try:
            assign_variables(model, arrays, ("model", "optimizer"))
        except CheckpointError as error:
            raise CheckpointError(f"{path} does not fit the model: {error}") from error
        if self.writes:
            self.store.set_aside_after(path)
        if any(name.startswith("loss_scale/") for name in arrays) and model.optimizer.variables_of_scale:
            assign_variables(model, arrays, ("loss_scale",))
        self._metrics = {name: array for name, array in arrays.items() if name.startswith("metrics/")}
        self.progress.step = state["step"]
        ap = state["best"]["ap"]
        self.progress.best_ap, self.progress.best_step = math.nan if ap is None else ap, state["best"]["step"]
        self.pending, self.model_step = state["pending"], state.get("model_step")
        return path

    def save(self, pending: dict | None = None) -> Path:
        """Writes a checkpoint of this very step.

        Raises:
            NonFiniteLossError: a weight is NaN or infinite; the checkpoints stay as they are.
        """
        if not self.writes:
            return self.store.path(self.progress.step)
        started = time.perf_counter()
        arrays = read_variables(self.model)
        bad = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
        if bad:
            names = ", ".join(name.split("/", 2)[2] for name in bad[:5]) + ", ..." * (len(bad) > 5)
            raise NonFiniteLossError(
                f"after step {self.progress.step} {len(bad)} variables are not finite ({names}): not saved; "
                f"the earlier checkpoints in {self.store.folder} are untouched"
            )
        self.pending = pending
        path = self.store.write(self.progress.step, arrays, self._state())
        self._saved_at = time.perf_counter()
        self._seconds = self._saved_at - started
        self.progress.paused += self._seconds
        return path

    def save_epoch(self, epoch: int, logs: dict | None) -> Path:
        """Writes a checkpoint of an epoch whose end is still to be dealt with; raises as `save`."""
        return self.save({"epoch": epoch, "logs": {name: float(value) for name, value in (logs or {}).items()}})

    @property
    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this very step."""
        return self.store.path(self.progress.step).exists()

    def close_epoch(self) -> None:
        """Notes in the epoch's checkpoint that its end has been dealt with."""
        self.pending = None
        self._note()

    def note_model(self) -> None:
        """Notes in the checkpoint that the training's model was written to its folder at this step."""
        self.model_step = self.progress.step
        self._note()

    def _note(self) -> None:
        if self.writes and self.is_saved:
            self.store.write_state(self.progress.step, self._state())

    def _is_too_soon(self, epoch: int) -> bool:
        if self._seconds < WORTH_SAVING or self.progress.step >= self.progress.total_steps or self.evaluated(epoch):
            return False
        return time.perf_counter() - self._saved_at < 20 * self._seconds

    def _state(self) -> dict:
        best = self.progress.best_ap
        return {
            "format_version": FORMAT_VERSION,
            "step": self.progress.step,
            "epoch": self.progress.step // self.progress.steps_per_epoch,
            "best": {"ap": None if math.isnan(best) else best, "step": self.progress.best_step},
            "pending": self.pending,
            "model_step": self.model_step,
            "identity": self.identity,
        }

    def on_epoch_begin(self, epoch, logs=None):
        # Keras has just emptied the running means: those of an interrupted epoch go on.
        if self._metrics and self.progress.step % self.progress.steps_per_epoch:
            try:
                assign_variables(self.model, self._metrics, ("metrics",))
            except CheckpointError as error:
                logger.warning("the means of epoch %d count from step %d on (%s)", epoch + 1, self.progress.step, error)
        self._metrics = {}

    def on_train_batch_end(self, batch, logs=None):
        due = self.every_steps and self.progress.step % self.every_steps == 0
        if due and not self.progress.at_epoch_end:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        if not self._is_too_soon(epoch):
            self.save_epoch(epoch, logs)


class CloseEpoch(keras.callbacks.Callback):
    """Comes last of all callbacks: the epoch's evaluation and logs are done."""

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self.checkpoint = checkpoint

    def on_epoch_end(self, epoch, logs=None):
        self.checkpoint.close_epoch()
