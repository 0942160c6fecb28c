"""The seconds of section 4.4 that scripts/reproduce.py measures."""

import importlib

import pytest
import tensorflow as tf


def test_timing_compares_c4_with_fpn():
    timing = importlib.import_module("_timing")
    text = timing.text(
        timing.MEASURES, (0.2, 0.01, 0.3, 0.5, 0.6), "a processor, 2 cores", "reproduce.py timing", (8, 9)
    )
    assert "| inference, ResNet-101-FPN | 0.195 | Tesla M40 | 0.200 |" in text
    assert "Ours on a processor, 2 cores: images of 8 x 9 pixels" in text
    assert "1.5 times: **shown**" in text
    assert timing.hardware().endswith(" cores") == (not tf.config.list_physical_devices("GPU"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inference", "resize", "step"])
def test_seconds_are_measured(kind, monkeypatch):
    timing = importlib.import_module("_timing")
    monkeypatch.setattr(timing, "REPEATS", 1)
    assert 0 < timing.measure("shapes", kind, (64, 96)) < 60
