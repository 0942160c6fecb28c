"""Collecting garbage where other threads may be doing it at the same time."""

from __future__ import annotations

import time

from mrcnn_tf.data.iterators import _collected


def collect() -> None:
    """As `gc.collect()`, but done when it returns, whichever thread began it; fails where that never comes."""
    end = time.monotonic() + 30
    while not _collected():
        assert time.monotonic() < end, "no garbage can be collected: a thread has been at it for 30 s"
        time.sleep(0.1)
