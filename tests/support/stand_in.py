"""A model of a dozen weights with the interface of a Mask R-CNN's training, for tests of what surrounds it."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf.optimizer import make_optimizer
from mrcnn_tf.stepping import has_machines, shared_out, step_function


@keras.saving.register_keras_serializable("tests")
class StandIn(keras.Model):
    """Linear regression; the logs are each step's values, the epoch's are their means."""

    def __init__(self, **kwargs):
        inputs = keras.Input((3,))
        super().__init__(inputs, keras.layers.Dense(2, name="dense")(inputs), **kwargs)
        self.trackers = [keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="size")]

    @property
    def metrics(self):
        return self.trackers

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass

    def fit(self, x=None, *args, **kwargs):
        return super().fit(shared_out(x, self.distribute_strategy), *args, **kwargs)

    def make_train_function(self, force=False):
        if not has_machines(self.distribute_strategy):
            return super().make_train_function(force)
        self.train_function = step_function(self.distribute_strategy, self.train_step)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            values = self._values(data)
            # The replicas' gradients are added up.
            share = values["loss"] / tf.distribute.get_replica_context().num_replicas_in_sync
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(share, variables), variables)
        return self._logs(values)

    def test_step(self, data):
        return self._logs(self._values(data))

    def _values(self, data):
        outputs = self(data["x"])
        return {"loss": tf.reduce_mean(tf.square(outputs - data["y"])), "size": tf.reduce_mean(tf.square(outputs))}

    def _logs(self, values):
        values = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for tracker in self.trackers:
            tracker.update_state(values[tracker.name])
        return values

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def stand_in(config, seed: int = 0, global_batch: int = 2) -> StandIn:
    """A compiled stand-in with the optimiser of `config.training`."""
    keras.utils.set_random_seed(seed)
    model = StandIn()
    model.config = config
    model.compile(optimizer=make_optimizer(config.training, global_batch))
    model.optimizer.build(model.trainable_variables)
    return model


def batches(step: int = 0, batch_size: int = 2) -> tf.data.Dataset:
    """Batches without end from a step on, each a function of the step alone."""

    def part(machine=0, machines=1, devices=1):
        def batch(index):
            x = tf.random.stateless_normal([batch_size, 3], tf.stack([index, 7]))
            own = batch_size // machines
            x = x[machine * own : (machine + 1) * own]
            return {"x": x, "y": x[:, :2] * tf.constant([1.0, -2.0]) + 0.5}

        return tf.data.Dataset.counter(step).map(batch)

    whole = part()
    whole.part = part
    return whole


def weights_and_momenta(model) -> list[np.ndarray]:
    """Everything that a training changes."""
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]
