"""Callbacks that watch the single steps: non-finite losses, being stopped, speed."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from mrcnn_tf.training.checkpoints import Checkpoint, write_atomically
from mrcnn_tf.training.cluster import Team
from mrcnn_tf.training.errors import NonFiniteLossError, TrainingInterrupted
from mrcnn_tf.training.progress import Progress

logger = logging.getLogger("mrcnn_tf")

SMALLEST_SCALE = 2.0**-10  # of the loss in float16: no gradient that is any good needs a smaller one


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends the training at the first loss that is NaN or infinite, and says where it came from.

    Comes before whatever saves or logs the step.

    Args:
        progress: shared with the other callbacks.
        image_ids: gives the image ids of the batch of a step (counted from 0); None if that is not known.
        run_dir: where `non_finite_step_<n>.json` is written; None writes nothing.
    """

    def __init__(
        self,
        progress: Progress,
        image_ids: Callable[[int], Sequence[int]] | None = None,
        run_dir: str | Path | None = None,
    ):
        super().__init__()
        self.progress = progress
        self.image_ids = image_ids
        self.run_dir = run_dir

    def on_train_batch_end(self, batch, logs=None):
        values = {name: float(value) for name, value in (logs or {}).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad and values.get("loss_scale", 1.0) < SMALLEST_SCALE:
            bad = ["the gradients at any loss scale"]  # they were passed over again and again
        if bad:
            raise NonFiniteLossError(self._report(bad, values))

    def _report(self, bad: list[str], values: dict[str, float]) -> str:
        step = self.progress.step
        ids = [] if self.image_ids is None else [int(image_id) for image_id in self.image_ids(step - 1)]
        lines = [
            f"step {step}: {', '.join(bad)} not finite, training stopped",
            "  " + ", ".join(f"{name} {value:.6g}" for name, value in values.items()),
            f"  images of the batch: {', '.join(map(str, ids)) or 'not known'}",
            "  The earlier checkpoints are untouched. What helps: a lower training.learning_rate, a longer "
            "training.warmup_steps, training.clip_norm (10, say); or something is wrong with those images.",
        ]
        if self.run_dir is not None:
            path = Path(self.run_dir) / f"non_finite_step_{step:08d}.json"
            record = {"step": step, "not_finite": bad, "logs": {k: str(v) for k, v in values.items()}, "image_ids": ids}
            try:
                write_atomically(path, lambda name: name.write_text(json.dumps(record, indent=1), encoding="utf-8"))
                lines.append(f"  written down in {path}")
            except OSError as error:  # the error at hand matters more
                logger.warning("%s could not be written: %s", path, error)
        return "\n".join(lines)


class GracefulStop(keras.callbacks.Callback):
    """Ctrl-C and SIGTERM end the step that is running, save a checkpoint, and then the training.

    Comes right after the `Checkpoint`. Between an epoch's last step and the next one's first (an
    evaluation, say) everything is saved already, and the training ends at once. A second signal acts
    as if this class were not there. Use it as a context manager around `fit`.

    Args:
        checkpoint: what saves.
        progress: shared with the other callbacks.
        how_to_resume: the end of the message.
        team: the workers, who stop together when one of them gets a signal.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpoint: Checkpoint, progress: Progress, how_to_resume: str = "", team: Team | None = None):
        super().__init__()
        self.team = team
        self.checkpoint = checkpoint
        self.progress = progress
        self.how_to_resume = how_to_resume
        self._received: int | None = None
        self._nothing_to_save = True
        self._handlers: dict = {}

    def __enter__(self) -> GracefulStop:
        try:
            for number in self.SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)
        except ValueError:  # only the main thread may; elsewhere signals do what they did before
            logger.debug("signals are not handled: the training runs in a thread")
        return self

    def __exit__(self, *_) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}

    def _on_signal(self, number, _frame) -> None:
        self._received = number
        self._give_back()
        if self._nothing_to_save:
            raise self._interruption()
        _say(f"{signal.Signals(number).name}: finishing this step, then saving ...")

    def _interruption(self) -> TrainingInterrupted:
        saved = self.checkpoint.store.paths()
        where = f"saved in {saved[-1]}" if saved else "nothing was saved yet"
        message = (
            f"{signal.Signals(self._received).name}: stopped after step {self.progress.step} of "
            f"{self.progress.total_steps}, {where}. {self.how_to_resume}".strip()
        )
        _say(message)
        return TrainingInterrupted(self._received, self.progress.step, message)

    def on_train_batch_begin(self, batch, logs=None):
        self._nothing_to_save = False

    def on_train_batch_end(self, batch, logs=None):
        if self._stops() and not self.progress.at_epoch_end:
            self.checkpoint.save()
            self._wait_for_others()
            raise self._interruption()

    def _stops(self) -> bool:
        """Whether any worker got a signal: all of them ask at the same points and hear the same.

        What reaches one of them after it has asked counts at the next point, lest it leaves the others alone.
        """
        if self.team is None:
            return self._received is not None
        stops = self.team.any(self._received is not None)
        if stops:
            self._received = self._received or signal.SIGTERM
        return stops

    def _wait_for_others(self) -> None:
        if self.team is not None:
            self.team.wait()

    def on_epoch_end(self, epoch, logs=None):
        if self._stops():
            if not self.checkpoint.is_saved:
                self.checkpoint.save_epoch(epoch, logs)
            self._wait_for_others()
            raise self._interruption()
        self._nothing_to_save = self.checkpoint.is_saved


def _say(text: str) -> None:
    """Prints to the standard error, also from within a signal handler, where `print` may fail."""
    os.write(2, f"\n{text}\n".encode())


class Throughput(keras.callbacks.Callback):
    """Adds `images_per_second` to the logs: of each step, and of the epoch.

    Waiting for data counts, saving and evaluating do not; neither does the process's first step, in which
    TensorFlow builds the graph, unless it is the only one of its epoch.

    Args:
        progress: shared with the other callbacks.
        batch_size: images of a step over all devices.
    """

    def __init__(self, progress: Progress, batch_size: int):
        super().__init__()
        self.progress = progress
        self.batch_size = batch_size
        self._warm = False
        self._rate = math.nan

    def on_epoch_begin(self, epoch, logs=None):
        self._mark()
        self._images, self._seconds = 0, 0.0

    def _mark(self) -> None:
        self._last, self._paused = time.perf_counter(), self.progress.paused

    def on_train_batch_end(self, batch, logs=None):
        last, paused = self._last, self._paused
        self._mark()
        elapsed = max(self._last - last - (self._paused - paused), 1e-9)
        self._rate = self.batch_size / elapsed
        if self._warm:
            self._images += self.batch_size
            self._seconds += elapsed
        self._warm = True
        if logs is not None:
            logs["images_per_second"] = self._rate

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["images_per_second"] = self._images / self._seconds if self._images else self._rate
