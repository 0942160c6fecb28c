"""How a step runs on the devices of a strategy, where Keras' own way does not do.

Keras reduces the logs of several machines along an axis that scalars have not, and its step takes one batch. Here a
step may take several batches (the micro-batches of one update), and each machine loads its own images only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


def has_machines(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy spans several processes, each with its own devices."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return len(tf.nest.flatten(strategy.cluster_resolver.cluster_spec().as_dict())) > 1


def step_function(
    strategy: tf.distribute.Strategy,
    step: Callable[[dict], dict],
    batches: int = 1,
    give_up: Callable[[], None] = lambda: None,
    eager: bool = False,
) -> Callable[[Iterator], dict]:
    """The function that Keras calls with its iterator for every step.

    Args:
        strategy: runs `step` on each of its devices.
        step: takes a batch, gives logs (scalars) that are the same on all devices, as those of `MaskRCNN` are.
        batches: taken one after the other in one call; the logs are their means.
        give_up: called where the iterator ends between them.
        eager: without tracing, to look for faults.
    """

    @tf.autograph.experimental.do_not_convert
    def on_devices(data):
        # The same on all devices, hence no exchange.
        return tf.nest.map_structure(
            lambda log: strategy.experimental_local_results(log)[0], strategy.run(step, args=(data,))
        )

    run = on_devices if eager else tf.function(on_devices, reduce_retracing=True)

    def function(iterator):
        logs = []
        for _ in range(batches):
            try:
                data = next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                if logs:
                    give_up()
                raise
            logs.append(run(data))
        if batches == 1:
            return logs[0]
        return {name: tf.add_n([log[name] for log in logs]) / batches for name in logs[0]}

    return function


def never_empty(batch: dict) -> dict:
    """The batch; with an image of no size in it where a device gets none, as of a last batch that is small.

    Nothing is found in that image and nothing in it counts. (Of no image at all, convolutions fail on a CPU.)
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return batch

    def filled(values: tf.Tensor) -> tf.Tensor:
        missing = tf.maximum(1 - tf.shape(values)[0], 0)
        return tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))

    return tf.nest.map_structure(filled, batch)


def shared_out(batches: Any, strategy: tf.distribute.Strategy) -> Any:
    """Batches for `fit` of which every machine loads its own part, where `batches` can be parted.

    Args:
        batches: of `data.pipeline.training_batches`; all else stays as it is.
        strategy: of the model.
    """
    part = getattr(batches, "part", None)
    if part is None or not has_machines(strategy):
        return batches

    def of_this_machine(context: tf.distribute.InputContext) -> tf.data.Dataset:
        machines = context.num_input_pipelines
        return part(context.input_pipeline_id, machines, context.num_replicas_in_sync // machines)

    return strategy.distribute_datasets_from_function(of_this_machine)
