import csv
import json
import math
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.training.logs import (
    Curves,
    EpochLog,
    ProgressBar,
    ProgressLines,
    StepLog,
    TensorBoardLog,
    joined_history,
)
from mrcnn_tf.training.progress import Progress, fit_steps
from tests.support.stand_in import batches, stand_in
from tests.support.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_epochs(log, *steps, **values):
    for step in steps:
        log.progress.step = step
        log.on_epoch_end((step - 1) // log.progress.steps_per_epoch, {"loss": step / 10, **values})


def test_one_row_per_epoch_with_stable_columns(tmp_path):
    log = EpochLog(tmp_path / "log.csv", Progress(12, 4), columns=["val_mask_AP"])
    write_epochs(log, 4, size=2.0, mask_loss=0.5)
    first = (tmp_path / "log.csv").read_text().splitlines()
    assert first == ["epoch,step,loss,mask_loss,size,val_mask_AP", "1,4,0.4,0.5,2,"]
    write_epochs(log, 8, size=3.0, val_mask_AP=0.25, val_loss=7.0)
    rows = table(tmp_path / "log.csv")
    assert list(rows[0]) == ["epoch", "step", "loss", "mask_loss", "size", "val_loss", "val_mask_AP"]
    assert rows[0]["val_mask_AP"] == "" and rows[1]["val_mask_AP"] == "0.25" and rows[1]["mask_loss"] == ""
    history = log.history
    assert history["epoch"] == [1, 2] and history["loss"] == [0.4, 0.8]
    assert math.isnan(history["val_mask_AP"][0]) and history["val_mask_AP"][1] == 0.25


def test_resuming_appends_without_duplicates(tmp_path):
    path = tmp_path / "log.csv"
    write_epochs(EpochLog(path, Progress(20, 4)), 4, 8, 12, size=1.0)
    log = EpochLog(path, Progress(20, 4, step=9))  # the checkpoint is of step 9, the third epoch is made again
    log.rewind(9)
    assert [row["step"] for row in table(path)] == ["4", "8"]
    write_epochs(log, 12, 16, size=1.0)
    assert [(row["epoch"], row["step"]) for row in table(path)] == [("1", "4"), ("2", "8"), ("3", "12"), ("4", "16")]


def test_a_pending_epoch_loses_its_row(tmp_path):
    path = tmp_path / "log.csv"
    write_epochs(EpochLog(path, Progress(20, 4)), 4, 8)
    log = EpochLog(path, Progress(20, 4, step=8))
    log.rewind(8, pending_epoch=1)
    assert [row["epoch"] for row in log.rows] == [1]
    log.rewind(4, pending_epoch=0)
    assert log.rows == []


def test_a_longer_training_replaces_the_row_of_the_shorter_last_epoch(tmp_path):
    path = tmp_path / "log.csv"
    write_epochs(EpochLog(path, Progress(10, 4)), 4, 8, 10)
    log = EpochLog(path, Progress(14, 4, step=10))
    log.rewind(10)
    write_epochs(log, 12, 14)
    assert [row["step"] for row in table(path)] == ["4", "8", "12", "14"]


def test_step_log_has_a_line_per_step_and_survives_a_cut(tmp_path):
    path = tmp_path / "steps.jsonl"
    progress = Progress(6, 3)
    fit_steps(stand_in(tiny_config()), batches, progress, [StepLog(path, progress)])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert set(records[0]) == {"step", "loss", "size", "learning_rate"}
    path.write_text(path.read_text() + '{"step": 7, "lo')
    StepLog(path, progress).rewind(4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    StepLog(tmp_path / "none.jsonl", progress).rewind(4)


@pytest.mark.parametrize(
    "content", [b"epoch;step;loss\n1;4;0,5\n", b"epoch,step\n1,4,5,6\n", b"\xff\xfe", b"epoch,step\na,b\n"]
)
def test_a_table_that_another_program_has_saved_hinders_no_training(tmp_path, content, caplog):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    log = EpochLog(path, Progress(8, 4, step=4))
    log.rewind(4)
    assert log.rows == [] and "is kept as log.csv.unreadable" in caplog.text
    assert (tmp_path / "log.csv.unreadable").read_bytes() == content
    log.on_epoch_end(1, {"loss": 0.5})
    assert path.read_text().startswith("epoch,step,loss")


def test_what_a_crash_of_the_machine_leaves_in_the_step_log_is_dropped(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n\x00\x00\xff\xfe{"st')
    StepLog(path, Progress(8, 4)).rewind(4)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_tensorboard_files_need_no_tensorboard(tmp_path):
    code = """
        import sys
        sys.modules["tensorboard"] = None  # importing it fails
        import glob, json
        import tensorflow as tf
        from mrcnn_tf.training.logs import TensorBoardLog
        from mrcnn_tf.training.progress import Progress
        progress = Progress(4, 2)
        board = TensorBoardLog(sys.argv[1], progress)
        for progress.step in (1, 2):
            board.on_train_batch_end(0, {"loss": progress.step / 2})
        board.on_epoch_end(0, {"loss": 0.75, "val_mask_AP": 0.25})
        board.close()
        for event in tf.compat.v1.train.summary_iterator(glob.glob(sys.argv[1] + "/events*.v2")[0]):
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                print(json.dumps([event.step, value.tag, plugin, float(tf.make_ndarray(value.tensor))]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [1, "step/loss", "scalars", 0.5],
        [2, "step/loss", "scalars", 1.0],
        [2, "epoch/loss", "scalars", 0.75],
        [2, "epoch/val_mask_AP", "scalars", 0.25],
    ], done.stderr


def test_tensorboard_shows_steps_that_were_made_again_once(tmp_path):
    """A training is killed after step 5, goes on from the checkpoint of step 2, is killed, and does the epoch's end."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    progress = Progress(9, 3)
    for start, (first, last, ends) in enumerate([(1, 5, (3,)), (3, 6, (3,)), (7, 6, (6,)), (7, 8, ())]):
        time.sleep(1.1)  # the files' names tell the second they were begun
        board = TensorBoardLog(tmp_path, progress)
        for progress.step in range(first, last + 1):
            board.on_train_batch_end(0, {"loss": 10 * start + progress.step})
            if progress.step in ends:
                board.on_epoch_end(0, {"loss": 100 + progress.step})
        if first > last:
            progress.step = last
            board.on_epoch_end(0, {"loss": 100 + progress.step})
        board.close()
    shown = EventAccumulator(str(tmp_path)).Reload()
    steps, epochs = (
        [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in shown.Tensors(tag)]
        for tag in ("step/loss", "epoch/loss")
    )
    assert steps == [(1, 1), (2, 2), (3, 13), (4, 14), (5, 15), (6, 16), (7, 37), (8, 38)]
    assert epochs == [(3, 103), (6, 106)]


def test_joined_history_averages_spans_of_steps(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": float(step)}) + "\n" for step in range(1, 11)))
    rows = [{"epoch": 1, "step": 6, "loss": 99.0, "val_box_AP": 0.5}]
    history = joined_history(path, rows, points=4)
    assert history["step"] == [3, 6, 6, 9, 10]
    np.testing.assert_array_equal(history["loss"], [2.0, 5.0, np.nan, 8.0, 10.0])
    np.testing.assert_array_equal(history["val_box_AP"], [np.nan, np.nan, 0.5, np.nan, np.nan])


def test_curves_are_drawn_at_the_end_and_seldom_before(tmp_path):
    progress = Progress(12, 4)
    log, steps = EpochLog(tmp_path / "log.csv", progress), StepLog(tmp_path / "steps.jsonl", progress)
    picture = tmp_path / "pictures" / "curves.png"
    curves, sizes = Curves(log, steps, picture), []
    for step in range(1, 13):
        progress.step = step
        steps.on_train_batch_end(0, {"loss": 1 / step})
        if step % 4 == 0:
            log.on_epoch_end(step // 4 - 1, {"loss": 1 / step, "val_mask_AP": step / 20})
            curves.on_epoch_end(step // 4 - 1)
            sizes.append(picture.stat().st_mtime_ns)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert sizes[0] == sizes[1] < sizes[2]


def test_a_picture_that_fails_ends_no_training(tmp_path, caplog):
    progress = Progress(4, 4, step=4)
    log, steps = EpochLog(tmp_path / "log.csv", progress), StepLog(tmp_path / "steps.jsonl", progress)
    Curves(log, steps, tmp_path / "curves.png").on_epoch_end(0)
    assert "the training curves could not be drawn" in caplog.text


@pytest.mark.parametrize("display", [ProgressLines, ProgressBar])
def test_progress_is_shown(display, capsys):
    progress = Progress(5, 3)
    keywords = {"seconds": 0.0} if display is ProgressLines else {}
    fit_steps(stand_in(tiny_config()), batches, progress, [display(progress, **keywords)])
    shown = capsys.readouterr().out
    if display is ProgressBar:
        assert "Epoch 1/2" in shown and "Epoch 2/2" in shown
    else:
        assert "step 4/5  loss " in shown and "learning rate 0.0025" in shown and "0:00:00 left" in shown
        assert "epoch 2/2 (step 5): loss " in shown
