"""Which devices train: one, several GPUs, several machines, or (to try things out) several logical CPU devices."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import tensorflow as tf

from mrcnn_tf.training.cluster import multi_worker_strategy, workers_named
from mrcnn_tf.training.errors import DistributionError


def strategy(devices: int | str | Sequence[str] | None = None) -> tf.distribute.Strategy:
    """The distribution strategy for some devices of this machine, or of several.

    One device gives TensorFlow's default strategy; several give a `MirroredStrategy`, the same at each call. Without a
    GPU, a number n > 1 stands for n logical devices on the CPU.

    Where TF_CONFIG, or the Slurm step that this process belongs to, names several workers, they train together by a
    `MultiWorkerMirroredStrategy`, each on all its GPUs or its CPU; this is then to be called before anything else.

    Args:
        devices: None or 1 for one device; a number; "auto" for all GPUs there are; or names, such as
            ["GPU:0", "GPU:2"].

    Raises:
        DistributionError: there are not as many devices, or a name is unknown; workers that do not find each other.
    """
    if workers_named(os.environ) > 1:
        return _of_workers(devices)
    gpus = tf.config.list_physical_devices("GPU")
    if devices == "auto":
        devices = max(1, len(gpus))
    elif isinstance(devices, str):
        devices = int(devices) if devices.isdecimal() else devices.split(",")
    if devices is None:
        devices = 1
    if not isinstance(devices, int):
        return _named([str(name).strip() for name in devices])
    if devices < 1:
        raise DistributionError(f"devices = {devices}: at least one device is needed")
    if devices == 1:
        return tf.distribute.get_strategy()
    if gpus:
        if len(gpus) < devices:
            raise DistributionError(f"devices = {devices}, but this machine has {len(gpus)} GPU(s)")
        return _mirrored(*(f"GPU:{index}" for index in range(devices)))
    split_cpu(devices)
    return _mirrored(*(f"CPU:{index}" for index in range(devices)))


@functools.cache
def _mirrored(*names: str) -> tf.distribute.Strategy:
    """Each call gives the same one: TensorFlow numbers exchanges by strategy, and takes a second's for the first's."""
    return tf.distribute.MirroredStrategy(names)


def _of_workers(devices: int | str | Sequence[str] | None) -> tf.distribute.Strategy:
    made = multi_worker_strategy()
    own = len(made.extended.worker_devices)
    if devices not in (None, "auto") and str(devices) != str(own):
        raise DistributionError(
            f"devices = {devices}: of several machines each trains on all its devices, here {own}; "
            "CUDA_VISIBLE_DEVICES chooses among them"
        )
    return made


def split_cpu(count: int) -> None:
    """Makes the CPU into at least `count` logical devices.

    Raises:
        DistributionError: TensorFlow has started with fewer; it divides the CPU only before it
            runs the first operation.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu)
    if configured is None or len(configured) < count:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        except RuntimeError as error:
            present = len(tf.config.list_logical_devices("CPU"))
            raise DistributionError(
                f"{count} logical CPU devices are wanted, but TensorFlow has started with {present}: call "
                f"mrcnn_tf.training.distribution.split_cpu({count}) at the start of the program, before "
                "the first model or tensor is made"
            ) from error
    if len(tf.config.list_logical_devices("CPU")) < count:  # configured, but started before that
        raise DistributionError(f"TensorFlow started with fewer than {count} logical CPU devices")


def _named(names: list[str]) -> tf.distribute.Strategy:
    known = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    names = [name.removeprefix("/device:") for name in names]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise DistributionError(f"no device {', '.join(unknown) or 'was named'}; there are {', '.join(known)}")
    if len(set(names)) < len(names):
        raise DistributionError(f"devices = {', '.join(names)}: each device once")
    return tf.distribute.OneDeviceStrategy(names[0]) if len(names) == 1 else _mirrored(*names)


def global_batch_size(
    strategy: tf.distribute.Strategy, images_per_device: int, batch_size: int | None = None, accumulate: int = 1
) -> int:
    """Images of one step over all devices and micro-batches.

    Args:
        strategy: see `strategy`.
        images_per_device: of the configuration; counts when `batch_size` is None.
        batch_size: the images of a step, if they are given.
        accumulate: micro-batches of a step.

    Raises:
        DistributionError: `batch_size` is no positive multiple of devices and micro-batches.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size is None:
        return images_per_device * replicas * accumulate
    if batch_size < 1 or batch_size % (replicas * accumulate):
        micro = f" in {accumulate} micro-batches" * (accumulate > 1)
        raise DistributionError(
            f"a batch of {batch_size} images cannot be split evenly over {replicas} device(s){micro}"
        )
    return batch_size
