"""The record of problems, and data errors that come back through TensorFlow."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.data import DataError, Problems, clear_data_errors


def test_nothing_skipped():
    problems = Problems()
    assert not problems and problems.total == 0
    assert problems.summary() == "nothing was skipped"


def test_counting():
    problems = Problems(keep=2)
    for number in range(4):
        problems.add("box of no area", f"annotation {number}")
    problems.add("image missing", "a.png", key="a")
    problems.add("image missing", "a.png", key="a")
    assert problems and problems.total == 5
    assert problems.counts == {"box of no area": 4, "image missing": 1}
    assert problems.summary().splitlines() == [
        "skipped 5 bad records:",
        "  4 x box of no area",
        "    annotation 0",
        "    annotation 1",
        "    ... and 2 more",
        "  1 x image missing",
        "    a.png",
    ]


def test_counting_from_many_threads():
    problems = Problems()
    threads = [
        threading.Thread(target=lambda: [problems.add("kind", "text", key=i) for i in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems.counts == {"kind": 500}


def test_errors_come_back_out_of_tensorflow():
    def load(position):
        if position == 2:
            raise DataError("[image missing] a [b].png: the image is missing; put it there", "image missing")
        return np.float32(position)

    data = tf.data.Dataset.range(4).map(lambda p: tf.numpy_function(load, [p], tf.float32), num_parallel_calls=2)
    with pytest.raises(DataError) as caught, clear_data_errors():
        list(data.prefetch(1))
    assert str(caught.value) == "a [b].png: the image is missing; put it there"
    assert caught.value.kind == "image missing"


def test_other_errors_pass():
    with pytest.raises(KeyError), clear_data_errors():
        raise KeyError("x")
    with pytest.raises(DataError, match="^as it is$"), clear_data_errors():
        raise DataError("as it is")
