"""Iterators that are ended while they load."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("devices", ["one", "replicas"])
def test_garbage_is_collected_after_a_loader_met_its_own_iterator(devices):
    command = [sys.executable, "-m", "tests.support.abandoned", devices]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert child.stdout == "collected by a loader: True, by the main thread: True\n"
