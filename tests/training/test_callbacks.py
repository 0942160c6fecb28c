import json
import math
import signal
import threading
import time

import keras
import numpy as np
import pytest

from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.training import callbacks
from mrcnn_tf.training.callbacks import GracefulStop, StopOnNonFinite, Throughput
from mrcnn_tf.training.checkpoints import Checkpoint, CheckpointStore
from mrcnn_tf.training.errors import NonFiniteLossError, TrainingInterrupted
from mrcnn_tf.training.identity import run_identity
from mrcnn_tf.training.progress import Progress, fit_steps
from tests.support.stand_in import batches, stand_in
from tests.support.tiny import tiny_config


def poisoned(step):
    """Batches of which that of step 5 (the sixth) has a NaN in it."""

    def poison(batch):
        return {**batch, "y": batch["y"] * math.nan}

    healthy = batches(step)
    return healthy.take(5 - step).concatenate(batches(5).take(1).map(poison)).concatenate(batches(6))


def checkpoint_of(folder, progress):
    return Checkpoint(CheckpointStore(folder), progress, run_identity(tiny_config(), shapes(8), 2, 4))


def test_nan_ends_the_training_and_names_step_losses_and_images(tmp_path):
    progress = Progress(8, 4)
    checkpoint = checkpoint_of(tmp_path / "checkpoints", progress)
    stop = StopOnNonFinite(progress, lambda step: [100 + step, 200 + step], tmp_path)
    with pytest.raises(NonFiniteLossError) as caught:
        fit_steps(stand_in(tiny_config()), poisoned, progress, [stop, checkpoint])
    message = str(caught.value)
    assert message.startswith("step 6: loss not finite, training stopped\n")
    assert "loss nan, size " in message and "images of the batch: 105, 205" in message
    record = json.loads((tmp_path / "non_finite_step_00000006.json").read_text())
    assert record["step"] == 6 and record["not_finite"] == ["loss"] and record["image_ids"] == [105, 205]
    assert record["logs"]["loss"] == "nan" and float(record["logs"]["size"]) > 0
    # The weights are NaN by now; the good checkpoint is still the only one.
    assert [path.name for path in checkpoint.store.paths()] == ["step_00000004"]
    model = stand_in(tiny_config(), seed=1)
    checkpoint.restore(model)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_infinite_counts_as_well_and_nothing_else_does():
    stop = StopOnNonFinite(Progress(8, 4))
    stop.on_train_batch_end(0, {"loss": 1e30})
    with pytest.raises(NonFiniteLossError, match="mask_loss not finite(.|\n)*images of the batch: not known"):
        stop.on_train_batch_end(0, {"loss": 1.0, "mask_loss": -math.inf})


class At(keras.callbacks.Callback):
    """Does something at the start of a step, or at the end of an epoch."""

    def __init__(self, action, step=None, epoch=None):
        super().__init__()
        self.action, self.step, self.epoch, self.count = action, step, epoch, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.count += 1
        if self.count == self.step:
            self.action()

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.action()


def stopped(folder, *more):
    """A training of 12 steps, in epochs of 4, until it is interrupted."""
    progress = Progress(12, 4)
    checkpoint = checkpoint_of(folder, progress)
    stop = GracefulStop(checkpoint, progress, "Do it again.")
    with pytest.raises(TrainingInterrupted) as caught, stop:
        fit_steps(stand_in(tiny_config()), batches, progress, [checkpoint, stop, *more])
    return caught.value, [path.name for path in checkpoint.store.paths()], checkpoint


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_ends(tmp_path, number, code, capfd):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    error, saved, checkpoint = stopped(tmp_path, At(lambda: signal.raise_signal(number), step=6))
    assert error.code == code and error.step == 6 and error.signal == number
    assert saved == ["step_00000004", "step_00000006"] and checkpoint.pending is None
    name = signal.Signals(number).name
    assert f"{name}: finishing this step, then saving ..." in capfd.readouterr().err
    assert error.message == (f"{name}: stopped after step 6 of 12, saved in {tmp_path / 'step_00000006'}. Do it again.")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_signal_in_the_last_step_of_an_epoch_leaves_its_end_to_be_dealt_with(tmp_path):
    error, saved, checkpoint = stopped(tmp_path, At(lambda: signal.raise_signal(signal.SIGTERM), step=8))
    assert error.step == 8 and saved == ["step_00000004", "step_00000008"]
    assert checkpoint.pending["epoch"] == 1


def test_a_signal_during_an_evaluation_ends_it_at_once(tmp_path):
    def evaluate():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        raise AssertionError("went on evaluating")

    error, saved, checkpoint = stopped(tmp_path, At(evaluate, epoch=0))
    assert error.step == 4 and saved == ["step_00000004"] and checkpoint.pending["epoch"] == 0


def test_a_signal_at_the_end_of_an_epoch_that_was_not_saved_saves_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "_is_too_soon", lambda self, epoch: True)
    error, saved, checkpoint = stopped(tmp_path, At(lambda: signal.raise_signal(signal.SIGTERM), step=8))
    assert error.step == 8 and saved == ["step_00000008"] and checkpoint.pending["epoch"] == 1
    # After such an epoch there is something to save: the next step is finished first.
    error, saved, checkpoint = stopped(tmp_path / "b", At(lambda: signal.raise_signal(signal.SIGTERM), epoch=0))
    assert error.step == 5 and saved == ["step_00000005"] and checkpoint.pending is None


@pytest.fixture
def usual_interrupt():
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background and ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, handler)


def test_a_second_signal_acts_as_usual(tmp_path, usual_interrupt):
    progress = Progress(12, 4)
    checkpoint = checkpoint_of(tmp_path, progress)
    stop = GracefulStop(checkpoint, progress)

    def twice():
        signal.raise_signal(signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is not usual_interrupt:
            time.sleep(0.01)  # two that are waiting to be handled are one
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), stop:
        fit_steps(stand_in(tiny_config()), batches, progress, [checkpoint, stop, At(twice, step=6)])


class Crew:
    """Two workers of which this is one: what the other one got, and how often both have met."""

    def __init__(self, other=lambda meeting: False):
        self.other, self.meetings = other, 0

    def any(self, flag):
        self.meetings += 1
        return flag or self.other(self.meetings)

    def wait(self):
        self.meetings += 1


def test_a_signal_to_another_worker_at_the_end_of_an_epoch_stops_this_one(tmp_path):
    """It came while the chief wrote the checkpoint, when the last step was over."""
    progress, crew = Progress(12, 4), Crew(other=lambda meeting: meeting == 5)  # four steps, then the epoch's end
    checkpoint = checkpoint_of(tmp_path, progress)
    stop = GracefulStop(checkpoint, progress, team=crew)
    with pytest.raises(TrainingInterrupted) as caught, stop:
        fit_steps(stand_in(tiny_config()), batches, progress, [checkpoint, stop])
    assert caught.value.step == 4 and caught.value.code == 143 and crew.meetings == 6


def test_a_signal_while_workers_meet_counts_when_they_meet_again(tmp_path):
    """The others have left by then without knowing of it."""
    progress = Progress(12, 4)

    def signal_at_second(meeting):
        if meeting == 2:
            signal.raise_signal(signal.SIGTERM)

    crew = Crew(other=signal_at_second)
    checkpoint = checkpoint_of(tmp_path, progress)
    stop = GracefulStop(checkpoint, progress, team=crew)
    with pytest.raises(TrainingInterrupted) as caught, stop:
        fit_steps(stand_in(tiny_config()), batches, progress, [checkpoint, stop])
    assert caught.value.step == 3 and crew.meetings == 4


def test_in_a_thread_signals_stay_as_they_are(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with GracefulStop(checkpoint_of(tmp_path, Progress(1, 1)), Progress(1, 1)):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before] == [signal.getsignal(signal.SIGTERM)]


def test_images_per_second(monkeypatch):
    clock = iter([0.0, 10.0, 10.5, 13.5, 14.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    progress = Progress(4, 4)
    speed, rates = Throughput(progress, batch_size=2), []
    speed.on_epoch_begin(0)
    for step in range(4):
        if step == 2:
            progress.paused += 2.0  # of the 3 seconds, 2 went into saving
        logs = {}
        speed.on_train_batch_end(step, logs)
        rates.append(logs["images_per_second"])
    assert rates == [0.2, 4.0, 2.0, 4.0]
    logs = {}
    speed.on_epoch_end(0, logs)
    assert logs["images_per_second"] == 6 / 2.0  # without the first step


def test_images_per_second_of_a_single_step(monkeypatch):
    clock = iter([0.0, 4.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    speed, logs = Throughput(Progress(1, 1), batch_size=2), {}
    speed.on_epoch_begin(0)
    speed.on_train_batch_end(0, {})
    speed.on_epoch_end(0, logs)
    assert logs == {"images_per_second": 0.5}
