"""A small training in a folder, to be killed and started again: `resumable.py FOLDER NAME:HOW ...`.

HOW: "step-N" is killed in the midst of step N; "write-N" while it writes the checkpoint of step N; "evaluation-N"
in the evaluation after step N; "term-N" gets a SIGTERM in step N; "on" goes on to the end. Each is a process of
its own, forked before TensorFlow has started (importing it once for each would take most of the time). Prints
what became of each as a line of json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np

from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.training import checkpoints, run
from tests.support.stand_in import batches, stand_in, weights_and_momenta
from tests.support.tiny import tiny_config


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(keras.callbacks.Callback):
    """Sends a signal when step `step` (from 1) begins; there is no end of a step then."""

    def __init__(self, step: int, number: int):
        super().__init__()
        self.step, self.number = step, number

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step - 1:
            os.kill(os.getpid(), self.number)


def measure_of(model, killed_at: int):
    """A validation whose AP depends on the weights."""
    if int(model.optimizer.iterations) == killed_at:
        kill()
    ap = float(np.exp(-np.sum(np.square(model.get_weights()[1] - 0.5))))
    return SimpleNamespace(metrics={"box/AP": ap, "box/AP50": ap, "mask/AP": ap, "mask/AP50": ap})


def child(folder: Path, how: str, step: int) -> dict:
    config = tiny_config(training__steps=14, training__evaluate_every=1, training__checkpoint_every=3)
    run._build = lambda config, chosen, batch: stand_in(config)
    run._batches = lambda this, dataset, start: batches(start)
    run.coco_measure = lambda *_, **__: lambda model: measure_of(model, step if how == "evaluation" else -1)
    callbacks = [Kill(step, signal.SIGTERM if how == "term" else signal.SIGKILL)] if how in ("step", "term") else []
    if how == "write":
        save = np.savez

        def die(path, **arrays):
            if f"step_{step:08d}" in str(path):
                path.write_bytes(b"PK half of a checkpoint")
                kill()
            save(path, **arrays)

        checkpoints.np.savez = die
    data = shapes(8, (64, 64))  # 4 steps an epoch
    result = run.train(config, data, data, folder, batch_size=2, callbacks=callbacks, verbose=0)
    weights = [np.asarray(array, np.float64).tolist() for array in weights_and_momenta(result.model)]
    found = {"weights": weights, "resumed_from": result.resumed_from, "steps": result.steps, "best": result.best_step}
    return {**found, "history": result.history, "best_ap": result.best_ap}


def fork(folder: Path, how: str, output: Path) -> int:
    """Runs `child` in another process; its exit status, negative for a signal."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status = 1
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            kind, _, number = how.partition("-")
            result = child(folder, kind, int(number or 0))
            output.with_suffix(".json").write_text(json.dumps(result))
            status = 0
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)


def main(parent: str, *ways: str) -> None:
    for number, way in enumerate(ways):
        name, how = way.split(":")
        folder, output = Path(parent) / name, Path(parent) / f"{number}.txt"
        status = fork(folder, how, output)
        steps = [path.name for path in sorted(folder.glob("checkpoints/step_*"))]
        rows = [line.split(",")[1] for line in (folder / "log.csv").read_text().splitlines()[1:]]
        result = json.loads(output.with_suffix(".json").read_text()) if status == 0 else None
        print(
            json.dumps(
                {"status": status, "checkpoints": steps, "rows": rows, "result": result, "text": output.read_text()}
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
