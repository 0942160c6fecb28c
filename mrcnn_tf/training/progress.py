"""How far a training is, and how its steps are laid out in epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras


@dataclass
class Progress:
    """The state that the callbacks of one training share.

    Attributes:
        total_steps: updates of the whole training.
        steps_per_epoch: updates between two evaluations; the last epoch may be shorter.
        step: updates that are done.
        best_ap: the best validation AP so far, NaN before the first.
        best_step: the step it was reached at.
        paused: seconds that steps spent on other things than training (saving), since the start.
    """

    total_steps: int
    steps_per_epoch: int
    step: int = 0
    best_ap: float = math.nan
    best_step: int = 0
    paused: float = 0.0

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def at_epoch_end(self) -> bool:
        return self.step % self.steps_per_epoch == 0 or self.step >= self.total_steps


class Segment(NamedTuple):
    """Epochs `first_epoch` .. `end_epoch` - 1 (from 0) of `steps` updates each, after `start_step` updates."""

    start_step: int
    first_epoch: int
    end_epoch: int
    steps: int


def segments(step: int, total_steps: int, steps_per_epoch: int) -> list[Segment]:
    """What is left of a training after `step` updates, as runs of epochs of equal length.

    At most three: the rest of an epoch that was interrupted, whole epochs, a shorter last one.
    """
    left: list[Segment] = []
    while step < total_steps:
        epoch, done = divmod(step, steps_per_epoch)
        rest = min(steps_per_epoch - done, total_steps - step)
        whole = (total_steps - step) // steps_per_epoch if rest == steps_per_epoch else 1
        left.append(Segment(step, epoch, epoch + whole, rest))
        step += rest * whole
    return left


class StepCounter(keras.callbacks.Callback):
    """Counts the updates in `progress`, and adds the learning rate to the logs, and the loss scale if there is one.

    Comes first of all callbacks. (Other optimisers' `iterations` need not count an update that a loss scale skips.)
    """

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress
        self._epoch_start = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = self.progress.step

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step = self._epoch_start + batch + 1
        self._add_rate(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._add_rate(logs)

    def _add_rate(self, logs) -> None:
        if logs is None:
            return
        schedule = getattr(self.model.optimizer, "_learning_rate", None)
        is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
        # The optimiser's own property is already that of the next step.
        rate = schedule(self.progress.step - 1) if is_schedule else self.model.optimizer.learning_rate
        logs["learning_rate"] = float(rate)
        scale = getattr(self.model.optimizer, "scale", None)
        if scale is not None:
            logs["loss_scale"] = float(scale.numpy())


def fit_steps(
    model: keras.Model,
    batches: Callable[[int], Any],
    progress: Progress,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Trains until `progress.total_steps` updates are made, or a callback sets `model.stop_training`.

    Keras' epochs all have one length; so `fit` is called once for each of `segments`.

    Args:
        model: compiled.
        batches: the endless data set of batches from a step on.
        progress: how far the training is; counted on by a `StepCounter`, which is put before `callbacks`.
        callbacks: see Keras; their `on_train_begin` is called for every segment.
    """
    everything = [StepCounter(progress), *callbacks]
    for segment in segments(progress.step, progress.total_steps, progress.steps_per_epoch):
        model.fit(
            batches(segment.start_step),
            initial_epoch=segment.first_epoch,
            epochs=segment.end_epoch,
            steps_per_epoch=segment.steps,
            callbacks=list(everything),
            verbose=0,
            shuffle=False,  # the data set has its order already
        )
        if model.stop_training:
            break
