"""Ends with an error that nobody caught, while images are being loaded: the error holds the iterator.

usage: python -m tests.support.uncaught
"""

from __future__ import annotations

import time

from mrcnn_tf.data import training_batches
from mrcnn_tf.data.shapes import ShapesDataset
from tests.support.tiny import tiny_config


class Failing(ShapesDataset):
    """Slow images, one of which cannot be drawn."""

    def example(self, index):
        time.sleep(0.3)
        if index == 5:
            raise ValueError("no image 5")
        return super().example(index)


for _ in training_batches(Failing(20, (64, 64), 0, 3, 0.0), tiny_config(), 2):
    pass
