"""Callbacks that write down how a training goes: tables, TensorBoard, curves, lines of text."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf.atomic import naming, write_atomically
from mrcnn_tf.training.progress import Progress

logger = logging.getLogger("mrcnn_tf")


def _numbers(logs: dict | None) -> dict[str, float]:
    return {name: float(value) for name, value in (logs or {}).items()}


class EpochLog(keras.callbacks.Callback):
    """`log.csv`: one row per epoch, numbered from 1, with the number of updates made by then.

    The file is replaced as a whole each time, so that it is never half written, and an epoch that is gone through
    again after an interruption replaces its row.

    Args:
        path: the file.
        progress: shared with the other callbacks.
        columns: columns to be there from the first row on; empty where a row has no such value.
    """

    FIRST = ("epoch", "step")

    def __init__(self, path: str | Path, progress: Progress, columns: Sequence[str] = ()):
        super().__init__()
        self.path = Path(path)
        self.progress = progress
        self.columns = list(columns)
        self.rows: list[dict[str, Any]] = []

    def rewind(self, step: int, pending_epoch: int | None = None) -> None:
        """Reads the file and forgets what comes after `step`, and the row of `pending_epoch` (from 0)."""
        again = None if pending_epoch is None else pending_epoch + 1
        self.rows = [row for row in self._read() if row["step"] <= step and row["epoch"] != again]
        if self.path.is_file():
            self._write()

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file; a file that somebody has made into something else is put aside."""
        if not self.path.is_file():
            return []
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            return [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            aside = self.path.with_name(f"{self.path.name}.unreadable")
            os.replace(self.path, aside)
            logger.warning("%s cannot be read (%r) and is kept as %s; a new one begins", self.path, error, aside.name)
            return []

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, "step": self.progress.step, **_numbers(logs)}
        self.rows = [old for old in self.rows if old["epoch"] != row["epoch"]] + [row]
        self._write()

    def _write(self) -> None:
        found = dict.fromkeys(name for row in self.rows for name in row)
        names = [name for name in found if name not in self.columns and name not in self.FIRST]
        # Losses first, then the rest, then validation: the same order whatever came up first.
        names.sort(
            key=lambda name: (name.startswith("val_"), not name.endswith("loss"), name not in ("loss", "val_loss"))
        )
        names = [*self.FIRST, *names, *self.columns]

        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names, restval="")
                writer.writeheader()
                writer.writerows({name: _short(value) for name, value in row.items()} for row in self.rows)

        write_atomically(self.path, write)

    @property
    def history(self) -> dict[str, list[float]]:
        """The columns: one value per row, NaN where a row has none."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name, math.nan) for row in self.rows] for name in names}


def _short(value: float) -> float | int | str:
    return value if isinstance(value, int) else f"{value:.7g}"


class StepLog(keras.callbacks.Callback):
    """`steps.jsonl`: one json object per update, flushed at once.

    Args:
        path: the file.
        progress: shared with the other callbacks.
    """

    def __init__(self, path: str | Path, progress: Progress):
        super().__init__()
        self.path = Path(path)
        self.progress = progress

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`, and a last one that was cut short."""
        if not self.path.is_file():
            return
        # What a crash of the machine leaves at the end of a file may be anything at all.
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if 0 < _step_of(line) <= step]
        text = "".join(f"{line}\n" for line in kept)
        write_atomically(self.path, lambda name: name.write_text(text, encoding="utf-8"))

    def on_train_batch_end(self, batch, logs=None):
        record = {"step": self.progress.step, **{name: float(f"{v:.7g}") for name, v in _numbers(logs).items()}}
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


class TensorBoardLog(keras.callbacks.Callback):
    """Event files for TensorBoard: every step under `step/`, every epoch under `epoch/`.

    They are written by TensorFlow itself; the package tensorboard is needed only to look at them.

    Args:
        folder: of the event files.
        progress: shared with the other callbacks.
    """

    def __init__(self, folder: str | Path, progress: Progress):
        super().__init__()
        self.folder = Path(folder)
        self.progress = progress
        self._writer = None

    def on_train_batch_end(self, batch, logs=None):
        self._write("step", logs)

    def on_epoch_end(self, epoch, logs=None):
        self._write("epoch", logs)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, group: str, logs: dict | None) -> None:
        if self._writer is None:
            self._tell_start(self.progress.step + (group == "epoch"))
            self._writer = tf.summary.create_file_writer(str(self.folder))
        # What `tf.summary.scalar` makes; that function itself needs the package tensorboard.
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1
        )
        with self._writer.as_default():
            for name, value in _numbers(logs).items():
                tf.summary.write(
                    f"{group}/{name}", tf.constant(value, tf.float32), step=self.progress.step, metadata=metadata
                )

    def _tell_start(self, step: int) -> None:
        """Tells TensorBoard that a training begins: after the first such event, forget what was from `step` on.

        A resumed training begins at its checkpoint, and makes again the steps that came after it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        event, session = tf.compat.v1.Event, tf.compat.v1.SessionLog
        now = time.time()
        # Files are read in the order of their names: after those of before, ahead of the one that is begun now.
        with tf.io.TFRecordWriter(str(self.folder / f"events.out.tfevents.{int(now):010d}.0.start")) as file:
            file.write(event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            start = event(wall_time=now, step=step, session_log=session(status=session.START))
            file.write(start.SerializeToString())


class Curves(keras.callbacks.Callback):
    """`curves.png` of the steps and the validation: at the end of the training, and now and then before.

    Args:
        log: the validation's values.
        steps: the steps' values.
        path: the picture.
        seconds: least time between two pictures; drawing takes at most a fiftieth of the time.
    """

    def __init__(self, log: EpochLog, steps: StepLog, path: str | Path, seconds: float = 60.0):
        super().__init__()
        self.log = log
        self.steps = steps
        self.path = Path(path)
        self.seconds = seconds
        self._next = -math.inf

    def on_epoch_end(self, epoch, logs=None):
        progress, started = self.log.progress, time.monotonic()
        if progress.step < progress.total_steps and started < self._next:
            return
        try:
            from mrcnn_tf.charts import plot_history

            plot_history(joined_history(self.steps.path, self.log.rows), self.path)
        except Exception:  # a picture is not worth a training
            logger.warning("the training curves could not be drawn", exc_info=True)
        self._next = time.monotonic() + max(self.seconds, 50 * (time.monotonic() - started))


def joined_history(steps_path: str | Path, epochs: Sequence[dict], points: int = 200) -> dict[str, list[float]]:
    """The steps' values, as means over at most about `points` spans, with the epochs' `val_` values between them.

    Args:
        steps_path: a `steps.jsonl`.
        epochs: rows of an `EpochLog`.
        points: how many spans at most.

    Returns:
        Columns of one length, "step" the first of them; NaN where a row has no value.
    """
    with open(steps_path, encoding="utf-8") as file:
        steps = [json.loads(line) for line in file]
    span = -(-len(steps) // points) or 1
    rows = []
    for start in range(0, len(steps), span):
        group = steps[start : start + span]
        means = {name: sum(row.get(name, math.nan) for row in group) / len(group) for name in group[0]}
        rows.append({**means, "step": group[-1]["step"]})
    rows += [{name: row[name] for name in row if name == "step" or name.startswith("val_")} for row in epochs]
    rows.sort(key=lambda row: row["step"])
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar, which would not know how many epochs there are in all.

    Args:
        progress: shared with the other callbacks.
    """

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress

    def set_params(self, params):
        super().set_params({**params, "epochs": self.progress.epochs, "verbose": 1})


class ProgressLines(keras.callbacks.Callback):
    """A line of text now and then, for terminals that are files.

    Args:
        progress: shared with the other callbacks.
        seconds: between two lines; every epoch's end gives one as well.
    """

    SHOWN = ("loss", "images_per_second", "val_loss")

    def __init__(self, progress: Progress, seconds: float = 30.0):
        super().__init__()
        self.progress = progress
        self.seconds = seconds
        self._last = -math.inf
        self._start: tuple[int, float] | None = None

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if self._start is None:  # the first step, which builds the graph, says nothing about the others
            self._start = (self.progress.step, now)
        if now - self._last >= self.seconds:
            self._last = now
            print(self._line(_numbers(logs), now), flush=True)

    def _line(self, values: dict[str, float], now: float) -> str:
        step, start = self._start
        text = f"step {self.progress.step}/{self.progress.total_steps}"
        for name, form in (("loss", ".4f"), ("learning_rate", ".3g"), ("images_per_second", ".2f")):
            if name in values:
                text += f"  {name.replace('_', ' ')} {values[name]:{form}}"
        if self.progress.step > step:
            left = (now - start) / (self.progress.step - step) * (self.progress.total_steps - self.progress.step)
            text += f"  {int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d} left"
        return text

    def on_epoch_end(self, epoch, logs=None):
        shown = {
            k: v
            for k, v in _numbers(logs).items()
            if k in self.SHOWN or k.startswith(("val_box_AP", "val_mask_AP", "val_keypoints_AP"))
        }
        values = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
        print(f"epoch {epoch + 1}/{self.progress.epochs} (step {self.progress.step}): {values}", flush=True)
