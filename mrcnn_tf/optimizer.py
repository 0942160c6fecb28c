"""SGD with momentum and a true L2 penalty, as the paper trains (section 3.1).

Keras' own `SGD(weight_decay=)` shrinks the weights beside the momentum, which for a momentum of .9 is a
tenth of the penalty that the published schedules mean; it also clips each replica's gradient before
the replicas are added up, so that the update would depend on how a batch was split.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.config import TrainingConfig
from mrcnn_tf.schedules import WarmupStepDecay, scaled_learning_rate

NOT_DECAYED = ("bias", "gamma", "beta")


@keras.saving.register_keras_serializable("mrcnn_tf")
class SGD(keras.optimizers.Optimizer):
    """g' = clip(g) + l2 * w;  m = momentum * m + g';  w = w - learning_rate * m.

    Args:
        learning_rate: a float or a schedule.
        momentum: share of the previous update that is kept.
        l2: the penalty's factor ("weight decay" in the paper).
        clip_norm: the gradient, summed over all replicas, is scaled down to this global norm; 0 leaves it.
        decay_norms_and_biases: whether the penalty also holds for norms' scales, shifts and biases.
    """

    def __init__(
        self,
        learning_rate=0.02,
        momentum: float = 0.9,
        l2: float = 1e-4,
        clip_norm: float = 0.0,
        decay_norms_and_biases: bool = False,
        name: str = "sgd",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.l2 = l2
        self.clip_norm = clip_norm
        self.decay_norms_and_biases = decay_norms_and_biases

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momenta = self.add_optimizer_variables(variables, "momentum")
        self._is_decayed = [
            self.decay_norms_and_biases or variable.name.split(":")[0] not in NOT_DECAYED for variable in variables
        ]

    def apply(self, grads, trainable_variables=None):
        if self.clip_norm:
            grads = self._clipped(list(grads))
        return super().apply(grads, trainable_variables)

    def _clipped(self, grads):
        """Clipped shares of the summed gradient: the replicas' shares still add up to the whole."""
        present = [grad for grad in grads if grad is not None]
        context = tf.distribute.get_replica_context()
        replicas = 1
        if context is not None and context.num_replicas_in_sync > 1:
            replicas = context.num_replicas_in_sync
            present = context.all_reduce(tf.distribute.ReduceOp.SUM, present)
        clipped, _ = tf.clip_by_global_norm(present, self.clip_norm)
        clipped = iter([grad / replicas for grad in clipped])
        return [None if grad is None else next(clipped) for grad in grads]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.l2 and self._is_decayed[index]:
            gradient = gradient + tf.cast(self.l2, variable.dtype) * variable
        momentum = self.momenta[index]
        updated = tf.cast(self.momentum, variable.dtype) * momentum + gradient
        self.assign(momentum, updated)
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * updated)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "l2": self.l2,
            "clip_norm": self.clip_norm,
            "decay_norms_and_biases": self.decay_norms_and_biases,
        }


def make_optimizer(config: TrainingConfig, global_batch: int | None = None) -> SGD:
    """The optimiser and schedule of a `TrainingConfig`.

    Args:
        config: the schedule.
        global_batch: images per step over all devices, by which the learning rate is scaled;
            None stands for one device.
    """
    schedule = WarmupStepDecay(
        scaled_learning_rate(config, global_batch or config.images_per_device),
        warmup_steps=config.warmup_steps,
        warmup_start=config.warmup_start,
        decay_steps=config.decay_steps,
        decay_factor=config.decay_factor,
    )
    return SGD(
        learning_rate=schedule,
        momentum=config.momentum,
        l2=config.weight_decay,
        clip_norm=config.clip_norm,
        decay_norms_and_biases=config.decay_norms_and_biases,
    )
