import errno
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from mrcnn_tf.training.progress import Progress, fit_steps
from mrcnn_tf.training.validation import CocoEvaluation, ValidationLosses, columns, is_due
from tests.support.stand_in import batches, stand_in
from tests.support.tiny import tiny_config


class Measured(SimpleNamespace):
    """What an evaluation gives, with a `save` as it has."""

    def save(self, path):
        path.write_text(json.dumps(self.metrics))


def evaluation(run_dir, aps, steps=12, every=1):
    """An evaluation that gives these mask APs one after the other, its progress, and how often it was made."""
    progress, made = Progress(steps, 4), []

    def measure(model):
        made.append(progress.step)
        ap = aps[len(made) - 1]
        if isinstance(ap, Exception):
            raise ap
        return Measured(metrics={"box/AP": ap / 2, "box/AP50": 0.5, "mask/AP": ap, "mask/AP50": 0.6, "mask/APs": 0.1})

    return CocoEvaluation(measure, run_dir, progress, every), progress, made


def ends(callback, progress, model):
    """The logs after the end of every epoch."""
    callback.set_model(model)
    everything = []
    for epoch in range(progress.epochs):
        progress.step = min(progress.total_steps, (epoch + 1) * progress.steps_per_epoch)
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        everything.append(logs)
    return everything


@pytest.mark.parametrize(
    ("total", "per_epoch", "every", "expected"),
    [
        (12, 4, 1, [4, 8, 12]),
        (20, 4, 2, [8, 16, 20]),
        (9, 4, 1, [4, 9]),  # one step after an evaluation is not worth another
        (10, 4, 1, [4, 8, 10]),
        (3, 4, 1, [3]),
    ],
)
def test_when_an_evaluation_is_due(total, per_epoch, every, expected):
    found = []
    for epoch in range(-(-total // per_epoch)):
        progress = Progress(total, per_epoch, step=min(total, (epoch + 1) * per_epoch))
        if is_due(progress, epoch, every):
            found.append(progress.step)
    assert found == expected


def test_ap_goes_into_the_logs_and_the_best_weights_are_kept(tmp_path):
    model = stand_in(tiny_config())
    callback, progress, _ = evaluation(tmp_path, [0.2, 0.5, 0.3])
    weights, kept = [], callback._keep_best

    def keep(metrics):
        model.layers[-1].bias.assign(np.full(2, metrics["mask/AP"], np.float32))
        kept(metrics)
        weights.append(model.get_weights())

    callback._keep_best = keep
    logs = ends(callback, progress, model)
    assert logs[1] == {
        "loss": 1.0,
        "val_box_AP": 0.25,
        "val_box_AP50": 0.5,
        "val_mask_AP": 0.5,
        "val_mask_AP50": 0.6,
    }
    assert list(logs[0])[1:] == columns(("box", "mask"))
    assert (progress.best_ap, progress.best_step) == (0.5, 8)
    model.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_array_equal(model.layers[-1].bias, [0.5, 0.5])
    assert json.loads((tmp_path / "evaluation.json").read_text())["mask/AP"] == 0.3  # the last one


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ({"box/AP": 0.9, "mask/AP": 0.2, "keypoints/AP": 0.5}, 0.2),
        ({"box/AP": 0.9, "keypoints/AP": 0.5}, 0.5),
        ({"box/AP": 0.9}, 0.9),
    ],
)
def test_what_the_best_weights_are_best_in(tmp_path, measured, best):
    callback, progress, _ = evaluation(tmp_path, [0.0], steps=4)
    callback.measure = lambda model: Measured(metrics=measured)
    (logs,) = ends(callback, progress, stand_in(tiny_config()))
    assert progress.best_ap == best and (tmp_path / "best.weights.h5").exists()
    assert logs == {"loss": 1.0, **{f"val_{name.replace('/', '_')}": value for name, value in measured.items()}}


def test_a_failing_evaluation_is_logged_and_the_training_goes_on(tmp_path, caplog):
    callback, progress, made = evaluation(tmp_path, [0.2, RuntimeError("out of memory"), 0.3])
    logs = ends(callback, progress, stand_in(tiny_config()))
    assert made == [4, 8, 12] and logs[1] == {"loss": 1.0} and logs[2]["val_mask_AP"] == 0.3
    assert "the evaluation after epoch 2 failed" in caplog.text and "out of memory" in caplog.text


def test_best_weights_that_cannot_be_written_end_the_training(tmp_path, monkeypatch):
    """Going on would lose them; the epoch's checkpoint knows that the evaluation is still to come."""
    model = stand_in(tiny_config())
    callback, progress, _ = evaluation(tmp_path, [0.2, 0.5, 0.3])

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save_weights", full, raising=False)
    with pytest.raises(OSError, match="No space left on device.*best.weights.h5"):
        ends(callback, progress, model)
    assert math.isnan(progress.best_ap)


def test_an_undefined_ap_never_replaces_a_defined_one(tmp_path):
    model = stand_in(tiny_config())
    callback, progress, _ = evaluation(tmp_path, [math.nan, 0.1, math.nan])
    ends(callback, progress, model)
    assert (tmp_path / "best.weights.h5").exists()
    assert (progress.best_ap, progress.best_step) == (0.1, 8)


def test_validation_losses_are_those_of_evaluate():
    model, progress = stand_in(tiny_config()), Progress(4, 4)
    logs = {}

    class Seen(ValidationLosses):
        def on_epoch_end(self, epoch, logs_=None):
            logs.update(logs_)
            super().on_epoch_end(epoch, logs)

    fit_steps(model, batches, progress, [Seen(lambda: batches(100).take(3), progress)])
    expected = model.evaluate(batches(100).take(3), return_dict=True, verbose=0)
    assert logs["val_loss"] == pytest.approx(expected["loss"]) and logs["val_size"] == pytest.approx(expected["size"])
    assert logs["loss"] != logs["val_loss"]


def test_failing_validation_losses_do_not_end_the_training(caplog):
    progress, logs = Progress(4, 4, step=4), {"loss": 1.0}

    def fail():
        raise OSError("disk gone")

    callback = ValidationLosses(fail, progress)
    callback.set_model(stand_in(tiny_config()))
    callback.on_epoch_end(0, logs)
    assert logs == {"loss": 1.0} and "disk gone" in caplog.text
