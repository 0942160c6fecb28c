import json
import math

import keras
import numpy as np
import pytest

from mrcnn_tf.data.proposals import with_proposals, write_proposals
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.training import checkpoints
from mrcnn_tf.training.checkpoints import Checkpoint, CheckpointStore, write_atomically
from mrcnn_tf.training.errors import CheckpointError, NonFiniteLossError
from mrcnn_tf.training.identity import check_identity, run_identity
from mrcnn_tf.training.progress import Progress, fit_steps
from tests.support.stand_in import batches, stand_in, weights_and_momenta
from tests.support.tiny import tiny_config


def identity(dataset=None, batch=2, per_epoch=4, **changes):
    return run_identity(tiny_config(**changes), dataset or shapes(8), batch, per_epoch)


def test_other_proposals_are_another_training(tmp_path):
    boxes, data = np.array([[1, 2, 30, 40]], np.float32), shapes(8)
    identities = []
    for name in ("one", "one", "other"):
        found = [(int(image_id), boxes, np.ones(1, np.float32)) for image_id in data.image_ids]
        write_proposals(tmp_path / "file.h5", found, name)
        identities.append(identity(with_proposals(data, tmp_path / "file.h5")))
    check_identity(identities[0], identities[1], "there")
    with pytest.raises(CheckpointError, match="the proposals are others"):
        check_identity(identities[0], identities[2], "there")
    earlier = {name: value for name, value in identities[0].items() if name != "proposals"}
    check_identity(earlier, identities[2], "there")


def trained(folder, steps, progress=None, **options):
    """A stand-in trained for some steps of epochs of 4, with checkpoints in `folder`."""
    model = stand_in(tiny_config())
    progress = progress or Progress(steps, 4)
    checkpoint = Checkpoint(CheckpointStore(folder), progress, identity(), **options)
    fit_steps(model, batches, progress, [checkpoint])
    return model, checkpoint


def restored(folder, seed=5, total=8):
    """A stand-in of other weights, set to the newest checkpoint."""
    model = stand_in(tiny_config(), seed=seed)
    checkpoint = Checkpoint(CheckpointStore(folder), Progress(total, 4), identity())
    return model, checkpoint, checkpoint.restore(model)


def test_a_checkpoint_brings_back_weights_momenta_and_step(tmp_path):
    model, first = trained(tmp_path, 4)
    first.progress.best_ap, first.progress.best_step = 0.25, 4
    first.close_epoch()
    other, checkpoint, path = restored(tmp_path)
    assert path == tmp_path / "step_00000004"
    for ours, theirs in zip(weights_and_momenta(other), weights_and_momenta(model)):
        np.testing.assert_array_equal(ours, theirs)
    assert int(other.optimizer.iterations) == 4
    progress = checkpoint.progress
    assert (progress.step, progress.best_ap, progress.best_step, checkpoint.pending) == (4, 0.25, 4, None)
    assert json.loads((path / "state.json").read_text())["format_version"] == 1


def test_resuming_equals_not_stopping(tmp_path):
    whole, _ = trained(tmp_path / "whole", 8)
    trained(tmp_path / "parts", 6, every_steps=3)
    model, checkpoint, _ = restored(tmp_path / "parts")
    assert checkpoint.progress.step == 6
    fit_steps(model, batches, checkpoint.progress, [checkpoint])
    for ours, theirs in zip(weights_and_momenta(model), weights_and_momenta(whole)):
        np.testing.assert_array_equal(ours, theirs)


def test_the_means_of_an_interrupted_epoch_go_on(tmp_path):
    class Epochs(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.losses = []

        def on_epoch_end(self, epoch, logs=None):
            self.losses.append(logs["loss"])

    whole, epochs = stand_in(tiny_config()), Epochs()
    fit_steps(whole, batches, Progress(8, 4), [epochs])
    trained(tmp_path, 6)
    model, checkpoint, _ = restored(tmp_path)
    resumed = Epochs()
    fit_steps(model, batches, checkpoint.progress, [checkpoint, resumed])
    np.testing.assert_allclose(resumed.losses, epochs.losses[1:], rtol=1e-6)


def test_the_last_two_are_kept_and_leftovers_removed(tmp_path):
    (tmp_path / ".unfinished-step_00000099").mkdir()
    (tmp_path / ".unfinished-step_00000099" / "arrays.npz").write_bytes(b"half")
    trained(tmp_path, 11, every_steps=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000011"]


def test_an_epoch_end_is_pending_until_it_is_closed(tmp_path):
    _, first = trained(tmp_path, 4)
    _, checkpoint, _ = restored(tmp_path)
    assert checkpoint.pending["epoch"] == 0 and set(checkpoint.pending["logs"]) == {"loss", "size", "learning_rate"}
    first.close_epoch()
    assert restored(tmp_path)[1].pending is None


def test_short_epochs_are_not_all_saved(tmp_path, monkeypatch):
    """Saving takes 2 seconds, an epoch 15: after a checkpoint, the next within 40 seconds are passed over."""
    model, progress = stand_in(tiny_config()), Progress(24, 4)
    checkpoint = Checkpoint(CheckpointStore(tmp_path, keep=9), progress, identity(), evaluated=lambda epoch: epoch == 1)
    checkpoint.set_model(model)
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: now[0])
    write = CheckpointStore.write

    def slow(*arguments):
        now[0] += 2.0
        return write(*arguments)

    monkeypatch.setattr(CheckpointStore, "write", slow)
    for epoch in range(6):
        now[0] += 15.0
        progress.step = 4 * (epoch + 1)
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
        saved = checkpoint.is_saved
        checkpoint.close_epoch()
        assert checkpoint.is_saved == saved
    # The first; the second is evaluated; the fifth comes 45 seconds after that; the sixth is the last.
    assert [int(path.name[-2:]) // 4 for path in checkpoint.store.paths()] == [1, 2, 5, 6]


def test_no_checkpoint_restores_nothing(tmp_path):
    model, checkpoint, path = restored(tmp_path / "nothing")
    assert path is None and checkpoint.progress.step == 0 and math.isnan(checkpoint.progress.best_ap)


@pytest.mark.parametrize("damage", ["arrays cut short", "state cut short", "arrays missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage, caplog):
    trained(tmp_path, 8)
    broken = tmp_path / "step_00000008"
    if damage == "arrays missing":
        (broken / "arrays.npz").unlink()
    else:
        path = broken / ("arrays.npz" if damage.startswith("arrays") else "state.json")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, checkpoint, path = restored(tmp_path)
    assert path.name == "step_00000004" and checkpoint.progress.step == 4
    assert "going back to the one before" in caplog.text


def test_steps_made_again_after_a_damaged_checkpoint_are_saved(tmp_path, caplog):
    trained(tmp_path, 8)
    arrays = tmp_path / "step_00000008" / "arrays.npz"
    # The header of the zip's first entry names a compression that there is not.
    whole = arrays.read_bytes()
    place = whole.rindex(b"PK\x01\x02") + 10
    arrays.write_bytes(whole[:place] + b"\x63" + whole[place + 1 :])
    model, checkpoint, path = restored(tmp_path)
    assert path.name == "step_00000004" and "is kept as unreadable-step_00000008" in caplog.text
    fit_steps(model, batches, checkpoint.progress, [checkpoint])
    again, checkpoint, path = restored(tmp_path)
    assert path.name == "step_00000008" and checkpoint.progress.step == 8
    for ours, theirs in zip(weights_and_momenta(again), weights_and_momenta(model)):
        np.testing.assert_array_equal(ours, theirs)


def test_only_damaged_checkpoints_do_not_start_anew_silently(tmp_path):
    trained(tmp_path, 4)
    (tmp_path / "step_00000004" / "arrays.npz").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"none of the checkpoints .* can be read; resume=False \(--fresh\) starts anew"
    ):
        restored(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    trained(tmp_path, 4)
    path = tmp_path / "step_00000004" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(CheckpointError, match="format 2 is newer"):
        restored(tmp_path)


def test_another_model_is_refused_and_left_alone(tmp_path):
    trained(tmp_path, 4)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(5, name="dense")(inputs))
    model.compile(optimizer=stand_in(tiny_config()).optimizer.from_config({"name": "sgd"}))
    before = model.get_weights()
    with pytest.raises(
        CheckpointError, match=r"dense/kernel \(3, 2\) stands where the model has dense/kernel \(3, 5\)"
    ):
        Checkpoint(CheckpointStore(tmp_path), Progress(8, 4), identity()).restore(model)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model, checkpoint = trained(tmp_path, 4)
    model.layers[-1].bias.assign([1.0, math.nan])
    checkpoint.progress.step = 5
    with pytest.raises(NonFiniteLossError, match="after step 5 1 variables are not finite .*bias"):
        checkpoint.save()
    assert [path.name for path in checkpoint.store.paths()] == ["step_00000004"]


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda name: name.write_text("whole"))

    def fail(name):
        name.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "whole"


def test_a_failed_save_leaves_the_checkpoints_that_were_there(tmp_path, monkeypatch):
    _, checkpoint = trained(tmp_path, 8)
    checkpoint.progress.step = 9

    def fail(name, **_):
        name.write_bytes(b"ha")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save()
    monkeypatch.undo()
    assert restored(tmp_path)[2].name == "step_00000008"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"num_classes": 2, "class_names": ()}, "num_classes was 3, now 2"),
        ({"input__shorter_edge": 96}, r"input.shorter_edge was \(64,\), now \(96,\)"),
        ({"training__seed": 1}, "training.seed was 0, now 1"),
        ({"batch": 4}, "images per step: 2 then, 4 now"),
        ({"per_epoch": 5}, "steps per epoch: 4 then, 5 now"),
        ({"dataset": shapes(9)}, "training images: 8 then, 9 now"),
        ({"dataset": shapes(9).subset(range(1, 9))}, "the training images have other ids"),
    ],
)
def test_other_trainings_are_told_apart(now, message):
    saved = json.loads(json.dumps(identity()))
    with pytest.raises(CheckpointError, match=message):
        check_identity(saved, identity(**now), "run/checkpoints/step_1")


def test_what_may_change_between_two_calls(caplog):
    saved = json.loads(json.dumps(identity()))
    now = identity(training__steps=9999, training__images_per_device=1, detections__score_threshold=0.3)
    check_identity(saved, now, "path")
    assert not caplog.text
    check_identity(saved, identity(training__learning_rate=0.5), "path")
    assert "resuming with a changed configuration: training.learning_rate was 0.01, now 0.5" in caplog.text


def test_a_configuration_of_another_version_is_named():
    saved = json.loads(json.dumps(identity()))
    saved["config"]["roi"]["colour"] = 1
    with pytest.raises(CheckpointError, match="unknown option 'roi.colour'"):
        check_identity(saved, identity(), "path")
