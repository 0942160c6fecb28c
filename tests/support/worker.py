"""One worker of a training of several processes: `worker.py MODEL FOLDER STEPS [STEP SIGNAL]`; TF_CONFIG says which.

MODEL is "real" or "stand-in" (which starts quicker). A worker with a SIGNAL gets it when STEP (from 1) begins. The
last line that a worker prints is json with its weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import mrcnn_tf
from mrcnn_tf.training import run
from tests.support.stand_in import batches, stand_in
from tests.support.tiny import calm, tiny_config

IMAGES = 12  # of a step


class Signal(keras.callbacks.Callback):
    """Sends this process a signal when step `step` (from 1) begins."""

    def __init__(self, step: int, name: str):
        super().__init__()
        self.step, self.number = step, getattr(signal, name)

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step - 1:
            os.kill(os.getpid(), self.number)


def replace_model() -> None:
    """The stand-in and its numbers take the place of the network and the images."""

    def build(config, chosen, batch):
        with chosen.scope():
            return stand_in(config, global_batch=batch)

    run._build = build
    run._batches = lambda this, dataset, step: batches(step, IMAGES)


def calm_first(build):
    """Keeps the untrained network bounded."""

    def calmed(*args):
        model = build(*args)
        calm(model)
        return model

    return calmed


def main(model: str, folder: str, steps: str, step: str = "0", name: str = "") -> None:
    mrcnn_tf.strategy()
    changes = {"training__steps_per_epoch": 2, "training__checkpoint_every": 1}
    config = tiny_config(training__steps=int(steps), training__evaluate_every=int(model == "real"), **changes)
    if model == "real":
        run._build = calm_first(run._build)
    else:
        replace_model()
    callbacks = [Signal(int(step), name)] if name else []
    data = mrcnn_tf.shapes(24, (64, 64)), mrcnn_tf.shapes(2, (64, 64), seed=1)
    result = mrcnn_tf.train(config, *data, folder, batch_size=IMAGES, callbacks=callbacks, verbose=2)
    found = {
        "weights": [weight.numpy().ravel()[:50].astype(float).tolist() for weight in result.model.weights],
        "norms": [float(np.linalg.norm(weight.numpy())) for weight in result.model.weights],
        "steps": result.steps,
        "resumed_from": result.resumed_from,
        "chief": result.is_chief,
        "devices": result.model.distribute_strategy.num_replicas_in_sync,
        "files": sorted(path.name for path in Path(folder).iterdir()),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except mrcnn_tf.WorkerLostError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
