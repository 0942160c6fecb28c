import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.errors import DataError
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.training import run
from mrcnn_tf.training.errors import CheckpointError, DistributionError
from mrcnn_tf.training.run import train
from mrcnn_tf.weights.report import WeightsError
from tests.support.stand_in import batches, stand_in
from tests.support.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]


def data(count=8, seed=0):
    return shapes(count, (64, 64), seed=seed)


@pytest.fixture
def quick(monkeypatch):
    """Everything but the network and the images is real."""
    monkeypatch.setattr(run, "_build", lambda config, chosen, batch: stand_in(config, global_batch=batch))
    monkeypatch.setattr(run, "_batches", lambda this, dataset, step: batches(step))


def quick_config(**changes):
    return tiny_config(training__evaluate_every=0, training__steps=6, **changes)


def test_a_small_training_of_the_real_model(tmp_path):
    config = tiny_config(training__steps=3, training__evaluate_every=1, training__images_per_device=2)
    result = train(config.replace(class_names=()), data(4), data(2, seed=1), tmp_path, verbose=0)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == set(run.MADE) - {"weights.txt"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        *("curves.png", "000000000001.png", "000000000002.png")
    }
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "3")]
    wanted = ("loss", "rpn_objectness_loss", "rpn_box_loss", "box_class_loss", "box_delta_loss", "mask_loss")
    for name in (*wanted, "learning_rate", "images_per_second", "rpn_recall", "positive_rois"):
        assert np.isfinite(float(rows[0][name])), name
    assert 0 <= float(rows[1]["val_mask_AP"]) <= 1 and 0 <= float(rows[1]["val_box_AP50"]) <= 1
    saved = Config.from_json((tmp_path / "config.json").read_text())
    assert saved == config and saved.class_names == ("circle", "square", "triangle")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(reloaded.get_weights(), result.model.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert (result.steps, result.resumed_from) == (3, 0) and result.best_step in (2, 3)
    # Called again it has nothing left to do but gives the same.
    again = train(config, data(4), data(2, seed=1), tmp_path, verbose=0)
    assert again.resumed_from == again.steps == 3
    np.testing.assert_allclose(again.history["loss"], result.history["loss"], rtol=1e-5)
    np.testing.assert_array_equal(again.model.get_weights()[0], result.model.get_weights()[0])


def test_the_plan_lays_out_epochs_and_the_config_may_override_it(tmp_path, quick):
    train(quick_config(), data(7), run_dir=tmp_path / "a", batch_size=2, verbose=0)
    assert [line.split(",")[1] for line in (tmp_path / "a" / "log.csv").read_text().splitlines()[1:]] == ["4", "6"]
    config = quick_config(training__steps_per_epoch=3)
    train(config, data(7), run_dir=tmp_path / "b", batch_size=2, verbose=0)
    assert [line.split(",")[1] for line in (tmp_path / "b" / "log.csv").read_text().splitlines()[1:]] == ["3", "6"]


def test_more_steps_later_go_on_from_the_last_one(tmp_path, quick):
    train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    result = train(quick_config().replace(training__steps=9), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    assert (result.resumed_from, result.steps, result.history["step"]) == (6, 9, [4, 8, 9])


def test_a_model_of_fewer_steps_is_replaced_after_a_stop_in_the_last_evaluation(tmp_path, quick, monkeypatch):
    train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    longer = quick_config().replace(training__steps=9)

    def stopped(*_):
        raise SystemExit(130)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "_save", stopped)
        train(longer, data(), run_dir=tmp_path, batch_size=2, verbose=0)
    result = train(longer, data(), run_dir=tmp_path, batch_size=2, verbose=0)
    assert result.resumed_from == result.steps == 9
    kept = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(kept.get_weights()[0], result.model.get_weights()[0])
    # Whole, it is left as it is.
    written = (tmp_path / "model.keras").stat().st_mtime_ns
    train(longer, data(), run_dir=tmp_path, batch_size=2, verbose=0)
    assert (tmp_path / "model.keras").stat().st_mtime_ns == written


def test_starting_anew_moves_the_earlier_training_aside(tmp_path, quick, caplog):
    first = train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    again = train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0, resume=False)
    assert again.resumed_from == 0 and again.history["loss"] == pytest.approx(first.history["loss"])
    assert {path.name for path in (tmp_path / "earlier-1").iterdir()} >= {"checkpoints", "log.csv", "model.keras"}
    assert f"starting anew; the earlier training is now in {tmp_path / 'earlier-1'}" in caplog.text
    train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0, resume=False)
    assert (tmp_path / "earlier-2").is_dir()


def test_starting_anew_from_the_earlier_training_s_own_weights(tmp_path, quick):
    first = train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    arguments = {"run_dir": tmp_path, "batch_size": 2, "verbose": 0, "resume": False}
    with pytest.raises(WeightsError, match="there is no such weights file"):
        train(quick_config(), data(), initial_weights=tmp_path / "modle.keras", **arguments)
    assert not (tmp_path / "earlier-1").exists()  # nothing is moved for a slip of the pen
    first.model.save_weights(tmp_path / "best.weights.h5")
    started = train(quick_config(), data(), initial_weights=tmp_path / "best.weights.h5", **arguments)
    assert (tmp_path / "earlier-1" / "best.weights.h5").exists() and not (tmp_path / "best.weights.h5").exists()
    assert started.history["loss"][0] < first.history["loss"][0]


def test_results_without_checkpoints_are_not_trained_over(tmp_path, quick, caplog):
    train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {name: (tmp_path / name).read_bytes() for name in ("model.keras", "log.csv", "steps.jsonl")}
    again = train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    assert again.resumed_from == 0 and "starting anew; the earlier training is now in" in caplog.text
    assert {name: (tmp_path / "earlier-1" / name).read_bytes() for name in before} == before


def test_a_folder_of_another_training_is_refused(tmp_path, quick):
    train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0)
    with pytest.raises(CheckpointError, match="images per step: 2 then, 4 now(.|\n)*resume=False"):
        train(quick_config(), data(), run_dir=tmp_path, batch_size=4, verbose=0)


def test_classes_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"num_classes = 5, but shapes \(seed 0\) has 3 classes \(circle, square"):
        train(tiny_config(num_classes=5, class_names=()), data(), run_dir=tmp_path / "a")
    other = data()
    other.class_names = ("cat", "dog", "cow")
    with pytest.raises(ConfigError, match="are not those of"):
        train(tiny_config(), data(), other, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_batch_that_cannot_be_split(tmp_path):
    with pytest.raises(DistributionError, match="a batch of 0 images"):
        train(tiny_config(), data(), run_dir=tmp_path, batch_size=0)


def test_weights_are_loaded_at_the_start_only(tmp_path, quick, monkeypatch):
    source = stand_in(tiny_config(), seed=9)
    source.save_weights(tmp_path / "start.weights.h5")
    seen, load = [], run.load_weights
    monkeypatch.setattr(run, "load_weights", lambda model, path: (seen.append(path), load(model, path)))
    arguments = {"run_dir": tmp_path / "run", "batch_size": 2, "verbose": 0}
    train(quick_config(), data(), initial_weights=tmp_path / "start.weights.h5", **arguments)
    train(quick_config(), data(), initial_weights=tmp_path / "start.weights.h5", **arguments)
    assert seen == [tmp_path / "start.weights.h5"]
    with pytest.raises(WeightsError, match="no such weights file"):
        train(
            quick_config(), data(), initial_weights=tmp_path / "none.weights.h5", **{**arguments, "run_dir": tmp_path}
        )


def test_the_report_on_backbone_weights_is_kept(tmp_path, quick, monkeypatch):
    report = run.WeightsReport("resnet.npz", loaded=["stem/kernel"])
    calls = []
    monkeypatch.setattr(run, "load_backbone", lambda model, *arguments: (calls.append(arguments), report)[1])
    arguments = {"backbone_weights": "resnet.npz", "reinitialize_stages": ("res5",), "run_dir": tmp_path}
    result = train(quick_config(), data(), batch_size=2, verbose=0, **arguments)
    assert calls == [("resnet.npz", ("res5",), 0.2)] and result.weights is report
    assert (tmp_path / "weights.txt").read_text() == "weights from resnet.npz: 1 tensors loaded\n"
    assert train(quick_config(), data(), batch_size=2, verbose=0, **arguments).weights is None and len(calls) == 1


def test_own_callbacks_come_before_the_logs(tmp_path, quick):
    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["own"] = epoch + 0.5

    result = train(quick_config(), data(), run_dir=tmp_path, batch_size=2, verbose=0, callbacks=[Own()])
    assert result.history["own"] == [0.5, 1.5]
    assert ",own" in (tmp_path / "log.csv").read_text().splitlines()[0]


def test_bad_images_end_the_training_with_one_clear_error(tmp_path):
    broken = data(4)
    example = broken.example

    def unreadable(index):
        if index == 2:
            raise DataError("images/3.png: cut short; replace it", "image unreadable")
        return example(index)

    broken.example = unreadable
    with pytest.raises(DataError, match="^images/3.png: cut short; replace it$"):
        train(tiny_config(training__steps=4), broken, run_dir=tmp_path, batch_size=2, verbose=0)


def test_resuming_says_so(tmp_path, quick, caplog):
    arguments = {"run_dir": tmp_path, "batch_size": 2, "verbose": 0}
    train(quick_config(), data(), **arguments)
    with caplog.at_level(logging.INFO, logger="mrcnn_tf"):
        train(quick_config(), data(), **arguments)
    assert f"resuming from {tmp_path / 'checkpoints' / 'step_00000006'}: step 6 of 6" in caplog.text


def in_process(code, *arguments, timeout=900):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_checkpoints_of_several_replicas(tmp_path):
    """A training on two replicas resumes in the midst of an epoch, with the same weights and means."""
    done = in_process(
        """
        import json, sys
        from pathlib import Path
        import numpy as np
        from mrcnn_tf.data.shapes import shapes
        from mrcnn_tf.training import run
        from mrcnn_tf.training.distribution import split_cpu
        from tests.support.stand_in import batches, stand_in, weights_and_momenta
        from tests.support.tiny import tiny_config
        split_cpu(2)

        def build(config, chosen, batch):
            with chosen.scope():
                return stand_in(config)

        run._build = build
        run._batches = lambda this, dataset, step: batches(step, 4)
        found = []
        for name, stops in (("whole", [8]), ("parts", [3, 8])):
            for stop in stops:
                config = tiny_config(training__evaluate_every=0, training__steps=stop)
                folder, data = Path(sys.argv[1]) / name, shapes(16, (64, 64))
                result = run.train(config, data, run_dir=folder, devices=["CPU:0", "CPU:1"], batch_size=4, verbose=0)
            arrays = [array.tolist() for array in weights_and_momenta(result.model)]
            found.append({"weights": arrays, "loss": result.history["loss"], "steps": result.history["step"]})
        print(json.dumps(found))
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, parts = json.loads(done.stdout.splitlines()[-1])
    assert whole["steps"] == parts["steps"] == [4, 8]
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)
    for ours, theirs in zip(parts["weights"], whole["weights"]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_the_real_model_survives_kill_minus_nine(tmp_path):
    code = """
        import json, os, sys
        import keras
        import tensorflow as tf
        # Sums over several threads end differently each time, and ten steps blow the last digits up.
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        from mrcnn_tf.data.shapes import shapes
        from mrcnn_tf.training.run import train
        from tests.support.tiny import tiny_config

        class Kill(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                if int(self.model.optimizer.iterations) == int(sys.argv[2]):
                    os.kill(os.getpid(), 9)

        changes = dict(steps=10, images_per_device=2, evaluate_every=0, checkpoint_every=2, warmup_steps=4)
        config = tiny_config(**{f"training__{name}": value for name, value in changes.items()})
        result = train(config, shapes(8, (64, 64)), run_dir=sys.argv[1], callbacks=[Kill()], verbose=0)
        result.model.save_weights(sys.argv[1] + "/final.weights.h5")
        steps = int(result.model.optimizer.iterations)
        print(json.dumps({"steps": steps, "from": result.resumed_from, "loss": result.history["loss"]}))
    """
    whole, killed = in_process(code, tmp_path / "whole", -1), in_process(code, tmp_path / "parts", 7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    resumed = in_process(code, tmp_path / "parts", -1)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    whole, resumed = (json.loads(done.stdout.splitlines()[-1]) for done in (whole, resumed))
    assert (whole["steps"], resumed["steps"], resumed["from"]) == (10, 10, 6)
    np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=1e-3)
    models = [stored(tmp_path / name / "model.keras") for name in ("whole", "parts")]
    for ours, theirs in zip(*models):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def stored(path):
    assert os.path.getsize(path)
    return keras.saving.load_model(path).get_weights()
