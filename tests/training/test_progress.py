import json

import keras
import numpy as np
import pytest

from mrcnn_tf.training.progress import Progress, Segment, StepCounter, fit_steps, segments
from tests.support.stand_in import batches, stand_in
from tests.support.tiny import tiny_config


@pytest.mark.parametrize(
    ("step", "total", "per_epoch", "expected"),
    [
        (0, 6, 3, [Segment(0, 0, 2, 3)]),
        (0, 7, 3, [Segment(0, 0, 2, 3), Segment(6, 2, 3, 1)]),
        (4, 11, 3, [Segment(4, 1, 2, 2), Segment(6, 2, 3, 3), Segment(9, 3, 4, 2)]),
        (4, 5, 3, [Segment(4, 1, 2, 1)]),
        (3, 6, 3, [Segment(3, 1, 2, 3)]),
        (0, 2, 3, [Segment(0, 0, 1, 2)]),
        (6, 6, 3, []),
        (9, 6, 3, []),
    ],
)
def test_segments(step, total, per_epoch, expected):
    assert segments(step, total, per_epoch) == expected


def test_segments_cover_every_step_once():
    for total in range(1, 14):
        for per_epoch in range(1, 6):
            for step in range(total + 1):
                covered = [
                    (epoch, segment.start_step + (epoch - segment.first_epoch) * segment.steps + offset)
                    for segment in segments(step, total, per_epoch)
                    for epoch in range(segment.first_epoch, segment.end_epoch)
                    for offset in range(segment.steps)
                ]
                assert covered == [(index // per_epoch, index) for index in range(step, total)]


class Recorder(keras.callbacks.Callback):
    def __init__(self, progress):
        super().__init__()
        self.progress, self.steps, self.epochs = progress, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append((self.progress.step, round(logs["learning_rate"], 6)))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, self.progress.step, round(logs["learning_rate"], 6)))


def test_training_makes_exactly_the_steps_that_are_left():
    config = tiny_config(
        training__learning_rate=0.1, training__warmup_steps=4, training__warmup_start=0.0, training__reference_batch=0
    )
    model, progress = stand_in(config), Progress(total_steps=8, steps_per_epoch=3, step=2)
    model.optimizer.iterations.assign(2)
    recorder = Recorder(progress)
    fit_steps(model, batches, progress, [recorder])
    # The rate at which a step was made: the warm-up's third step (step 3) has half of it.
    assert recorder.steps == [(3, 0.05), (4, 0.075), (5, 0.1), (6, 0.1), (7, 0.1), (8, 0.1)]
    assert recorder.epochs == [(0, 3, 0.05), (1, 6, 0.1), (2, 8, 0.1)]
    assert int(model.optimizer.iterations) == 8


def test_segments_see_the_batches_of_their_steps():
    def run(start_steps):
        model = stand_in(tiny_config())
        for start, stop in start_steps:
            fit_steps(model, batches, Progress(total_steps=stop, steps_per_epoch=4, step=start), [])
        return json.dumps([w.tolist() for w in model.get_weights()])

    assert run([(0, 9)]) == run([(0, 2), (2, 3), (3, 9)])


def test_constant_learning_rate_is_logged_too():
    model, logs = stand_in(tiny_config()), {}
    model.compile(optimizer=keras.optimizers.SGD(0.25))
    counter = StepCounter(Progress(5, 5))
    counter.set_model(model)
    counter.on_epoch_begin(0)
    counter.on_train_batch_end(0, logs)
    np.testing.assert_allclose(logs["learning_rate"], 0.25)


def test_a_callback_may_stop_the_training():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model, progress = stand_in(tiny_config()), Progress(total_steps=10, steps_per_epoch=3)
    fit_steps(model, batches, progress, [Stop()])
    assert progress.step == 6
