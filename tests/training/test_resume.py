"""A training that is killed over and over ends like one that was left alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(folder, *ways):
    command = [sys.executable, "-m", "tests.support.resumable", str(folder), *ways]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"status"')]
    assert len(outcomes) == len(ways) and outcomes[-1]["status"] == 0, done.stderr + str(outcomes)
    return outcomes


def saved(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ways = ["step-8", "write-9", "evaluation-12", "term-14", "on"]
    whole, *outcomes = start(folder, "whole:on", *(f"broken:{way}" for way in ways))
    return folder, whole["result"], outcomes, outcomes[-1]["result"]


def test_each_interruption_leaves_what_it_should(runs):
    _, _, (killed, writing, evaluating, stopped, _), _ = runs
    assert [killed["status"], writing["status"], evaluating["status"], stopped["status"]] == [-9, -9, -9, 143]
    assert killed["checkpoints"] == ["step_00000004", "step_00000006"]  # epochs of 4 steps, and every 3
    assert writing["checkpoints"] == ["step_00000006", "step_00000008"]  # that of step 9 was never finished
    assert evaluating["checkpoints"] == ["step_00000009", "step_00000012"] and evaluating["rows"] == ["4", "8"]
    assert stopped["checkpoints"] == ["step_00000012", "step_00000014"]
    assert "SIGTERM: stopped after step 14 of 14, saved in " in stopped["text"]
    assert "Start the same command again to go on from there." in stopped["text"]


def test_steps_weights_and_momenta_are_those_of_an_undisturbed_run(runs):
    _, whole, _, last = runs
    assert whole["steps"] == last["steps"] == 14
    assert whole["resumed_from"] == 0 and last["resumed_from"] == 14  # all that was left was the epoch's end
    assert len(whole["weights"]) == len(last["weights"]) == 5  # kernel, bias, iterations, two momenta
    for ours, theirs in zip(last["weights"], whole["weights"]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_logs_are_those_of_an_undisturbed_run(runs):
    folder, whole, _, last = runs
    for name in ("epoch", "step", "loss", "learning_rate", "val_mask_AP"):
        np.testing.assert_allclose(last["history"][name], whole["history"][name], rtol=1e-5, err_msg=name)
    assert last["history"]["epoch"] == [1, 2, 3, 4]
    assert last["best"] == whole["best"] and last["best_ap"] == pytest.approx(whole["best_ap"])
    steps = [[json.loads(line) for line in (folder / n / "steps.jsonl").open()] for n in ("whole", "broken")]
    assert [record["step"] for record in steps[1]] == list(range(1, 15))
    np.testing.assert_allclose([r["loss"] for r in steps[1]], [r["loss"] for r in steps[0]], rtol=1e-5)


def test_the_folder_holds_everything_and_no_leftovers(runs):
    folder = runs[0]
    for name in ("whole", "broken"):
        found = sorted(path.name for path in (folder / name).iterdir())
        expected = ["best.weights.h5", "checkpoints", "config.json", "log.csv", "model.keras", "pictures"]
        assert found == [*expected, "steps.jsonl", "tensorboard"]
        assert (folder / name / "pictures" / "curves.png").exists()
        assert saved(folder / name) == ["step_00000012", "step_00000014"]
        assert not list(folder.rglob(".unfinished-*"))
