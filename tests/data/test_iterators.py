"""Iterators that are ended while they load."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mrcnn_tf.data.iterators import _Loading

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("devices", ["one", "replicas"])
def test_garbage_is_collected_after_a_loader_met_its_own_iterator(devices):
    command = [sys.executable, "-m", "tests.support.abandoned", devices]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert child.stdout == "collected by a loader: True, by the main thread: True\n"


def test_a_program_ends_after_an_error_that_nobody_caught():
    command = [sys.executable, "-m", "tests.support.uncaught"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 1 and "ValueError: no image 5" in child.stderr


def test_no_image_is_loaded_once_the_program_ends():
    loading, held, let = _Loading(), threading.Event(), threading.Event()

    def load(number):
        held.set()
        assert let.wait(60)
        return number

    found = []
    loader = threading.Thread(target=lambda: found.append(loading(load, 7)))
    loader.start()
    assert held.wait(60)
    end = threading.Thread(target=loading.end)
    end.start()
    while not loading.over:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="the program is ending"):
        loading(load, 8)
    assert end.is_alive()  # it waits for the image that had been begun
    let.set()
    for thread in (loader, end):
        thread.join(60)
        assert not thread.is_alive()
    assert found == [7]
