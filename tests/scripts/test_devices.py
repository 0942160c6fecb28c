"""The command line on eight devices, in a process of its own: the CPU is divided at the start."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support.commands import ROOT, TINY


@pytest.mark.long
def test_eight_devices_with_two_images_each(tmp_path):
    command = [sys.executable, "scripts/train.py", "--preset", "shapes", "--shapes", "16", "--devices", "8"]
    values = [*TINY, "training.images_per_device=2", "training.steps=2", "training.evaluate_every=0"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path), *values], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained for 2 steps" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2] and np.isfinite([row["loss"] for row in rows]).all()
    state = json.loads((tmp_path / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert state["identity"]["global_batch"] == 16
