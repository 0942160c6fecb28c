"""The learning rate: linear warm-up, steps down, and its linear scaling with the batch."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from mrcnn_tf.config import TrainingConfig


@keras.saving.register_keras_serializable("mrcnn_tf")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of section 3.1 (a tenth after 120k steps), with the warm-up of Goyal et al. 2017.

    Step t (0 is the first update) is trained at `learning_rate` times
    `warmup_start + (1 - warmup_start) * t / warmup_steps` while t < `warmup_steps`, and times
    `decay_factor` for every one of `decay_steps` that is not above t.

    Args:
        learning_rate: the rate after the warm-up.
        warmup_steps: length of the warm-up; 0 leaves it out.
        warmup_start: share of the learning rate at step 0.
        decay_steps: steps from which on the rate is multiplied with `decay_factor`, each time again.
        decay_factor: the factor.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int = 500,
        warmup_start: float = 0.001,
        decay_steps: Sequence[int] = (),
        decay_factor: float = 0.1,
    ):
        super().__init__()
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.warmup_start = float(warmup_start)
        self.decay_steps = tuple(int(step) for step in decay_steps)
        self.decay_factor = float(decay_factor)

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.learning_rate, tf.float32)
        if self.warmup_steps:
            share = tf.minimum(step / self.warmup_steps, 1.0)
            rate *= self.warmup_start + (1.0 - self.warmup_start) * share
        if self.decay_steps:
            passed = tf.reduce_sum(tf.cast(step >= tf.constant(self.decay_steps, tf.float32), tf.float32))
            rate *= self.decay_factor**passed
        return rate

    def get_config(self) -> dict:
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "warmup_start": self.warmup_start,
            "decay_steps": self.decay_steps,
            "decay_factor": self.decay_factor,
        }


def scaled_learning_rate(config: TrainingConfig, global_batch: int) -> float:
    """The linear scaling rule: the rate of `config.reference_batch` images, for `global_batch` images.

    A `reference_batch` of 0 takes the configured rate as it is.
    """
    if not config.reference_batch:
        return config.learning_rate
    return config.learning_rate * global_batch / config.reference_batch
