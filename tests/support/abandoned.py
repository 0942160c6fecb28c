"""Lets go of an iterator while it loads, so that a thread that loads for it finds it among the garbage.

usage: python abandoned.py one|replicas; prints who could collect garbage, then and afterwards.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

import tensorflow as tf

from mrcnn_tf.data import training_batches
from mrcnn_tf.data.iterators import _collected
from mrcnn_tf.data.shapes import ShapesDataset
from tests.support.tiny import tiny_config

abandoned, by_a_loader = threading.Event(), threading.Event()


class Collecting(ShapesDataset):
    """Collects garbage at each image from the moment on that the iterator is left alone."""

    def example(self, index):
        if abandoned.is_set():
            gc.collect()
            by_a_loader.set()
        time.sleep(0.05)
        return super().example(index)


def abandon(devices: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    dataset = Collecting(8, (64, 64), 0, 3, 0.0)
    batches = training_batches(dataset, tiny_config(), 2)
    if devices == "replicas":
        batches = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).experimental_distribute_dataset(batches)
    held = [iter(batches)]
    held.append(held)
    next(held[0])


gc.disable()  # so that a thread that loads is the first to collect
abandon(sys.argv[1])
abandoned.set()
loader = by_a_loader.wait(10)
end = time.monotonic() + 20
main = False
while not main and time.monotonic() < end:
    main = _collected()
    time.sleep(0.1)
print(f"collected by a loader: {loader}, by the main thread: {main}", flush=True)
os._exit(0)  # a thread that waits for itself would keep the process
