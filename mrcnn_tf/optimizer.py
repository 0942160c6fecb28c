"""SGD with momentum and a true L2 penalty, as the paper trains (section 3.1).

Keras' own `SGD(weight_decay=)` shrinks the weights beside the momentum, which for a momentum of .9 is a
tenth of the penalty that the published schedules mean; it also clips each replica's gradient before
the replicas are added up, so that the update would depend on how a batch was split. Its accumulation branches
where replicas must not, and its `LossScaleOptimizer` asks the first replica alone whether gradients are finite.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from mrcnn_tf.config import TrainingConfig
from mrcnn_tf.replicas import sum_over_replicas
from mrcnn_tf.schedules import WarmupStepDecay, scaled_learning_rate

NOT_DECAYED = ("bias", "gamma", "beta")
# Keras' optimisers' options that mean something else beside those of this one, or nothing.
REFUSED = (
    *("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema"),
    *("loss_scale_factor", "gradient_accumulation_steps"),
)
FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24


@keras.saving.register_keras_serializable("mrcnn_tf")
class SGD(keras.optimizers.Optimizer):
    """g = mean of the micro-batches' gradients;  g' = clip(g) + l2 * w;  m = momentum * m + g';  w = w - rate * m.

    A micro-batch's gradient is the sum over all replicas. `apply` is called once for each micro-batch; the last of
    `accumulate` makes the update. `iterations` counts updates, also those that the loss scale passes over, so that
    the schedule follows the steps.

    Args:
        learning_rate: a float or a schedule.
        momentum: share of the previous update that is kept.
        l2: the penalty's factor ("weight decay" in the paper).
        clip_norm: the gradient, summed over all replicas, is scaled down to this global norm; 0 leaves it.
        decay_norms_and_biases: whether the penalty also holds for norms' scales, shifts and biases.
        accumulate: micro-batches of one update.
        loss_scale: for float16, the factor of the losses (`scale_loss`) to begin with; 0 scales nothing. If the
            gradient of an update is not finite, on whichever replica, nothing changes but the scale, which is halved.
        loss_scale_growth: finite updates in a row after which the scale is doubled.

    Raises:
        ValueError: an option of Keras' optimisers that this one has no use for.
    """

    def __init__(
        self,
        learning_rate=0.02,
        momentum: float = 0.9,
        l2: float = 1e-4,
        clip_norm: float = 0.0,
        decay_norms_and_biases: bool = False,
        accumulate: int = 1,
        loss_scale: float = 0.0,
        loss_scale_growth: int = 2000,
        name: str = "sgd",
        **kwargs,
    ):
        refused = [option for option in REFUSED if kwargs.get(option)]
        if refused:
            raise ValueError(f"{', '.join(refused)}: this SGD takes l2, clip_norm, accumulate and loss_scale instead")
        if accumulate < 1:
            raise ValueError(f"accumulate = {accumulate}: at least 1")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.l2 = l2
        self.clip_norm = clip_norm
        self.decay_norms_and_biases = decay_norms_and_biases
        self.accumulate = int(accumulate)
        self.loss_scale = float(loss_scale)
        self.loss_scale_growth = int(loss_scale_growth)
        self.accumulators: list = []
        self.micro_batches = self.scale = self.finite_updates = None

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momenta = self.add_optimizer_variables(variables, "momentum")
        self._is_decayed = [
            self.decay_norms_and_biases or variable.name.split(":")[0] not in NOT_DECAYED for variable in variables
        ]
        if self.accumulate > 1:
            self.accumulators = self.add_optimizer_variables(variables, "gradient_sum")
            self.micro_batches = self._number("micro_batches", 0, "int")
        if self.loss_scale:
            self.scale = self._number("loss_scale", self.loss_scale, "float32")
            self.finite_updates = self._number("finite_updates", 0, "int")

    def _number(self, name: str, value: float, dtype: str) -> keras.Variable:
        initializer = keras.initializers.Constant(value)
        return self.add_variable((), initializer, dtype, aggregation="only_first_replica", name=name)

    @property
    def variables_of_scale(self) -> list:
        """The loss scale and what it depends on; nothing without one."""
        return [] if self.scale is None else [self.scale, self.finite_updates]

    @property
    def variables_within_update(self) -> list:
        """What is zero between two updates; nothing without accumulation."""
        return [] if self.micro_batches is None else [*self.accumulators, self.micro_batches]

    def forget_micro_batches(self) -> None:
        """Gives up an update that was begun."""
        for variable in self.variables_within_update:
            variable.assign(tf.zeros(variable.shape, variable.dtype))

    def scale_loss(self, loss):
        """The loss whose gradients `apply` takes."""
        return loss if self.scale is None else loss * tf.cast(tf.convert_to_tensor(self.scale), loss.dtype)

    def apply(self, grads, trainable_variables=None):
        """Takes one micro-batch's gradients of this replica; called by all replicas together."""
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        grads, variables = self._filter_empty_gradients(list(grads), variables)
        sums = [tf.convert_to_tensor(grad) for grad in sum_over_replicas(list(grads))]
        ends = None  # whether the update is made now; None stands for a plain yes
        if self.accumulate > 1:
            ends = tf.equal(tf.convert_to_tensor(self.micro_batches) + 1, self.accumulate)
            sums = [self._accumulator(variable) + grad for variable, grad in zip(variables, sums)]
        grads = self._unscaled(sums)
        proceed, finite = ends, None
        if self.scale is not None:
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(grad)) for grad in grads])
            proceed = finite if ends is None else ends & finite
        if self.clip_norm:
            grads, _ = tf.clip_by_global_norm(grads, self.clip_norm)
        # No branches: the replicas meet in here, which they cannot do within one.
        flags = [flag for flag in (proceed, ends) if flag is not None]
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._update_all, self._distribution_strategy, grads, sums, variables, self.learning_rate, flags
        )
        self._count(ends, finite)

    def _accumulator(self, variable) -> tf.Tensor:
        return tf.convert_to_tensor(self.accumulators[self._get_variable_index(variable)])

    def _unscaled(self, sums: list) -> list:
        """The mean over the micro-batches of what the gradients are without the loss scale."""
        if self.scale is not None:
            # Powers of two, by which a division loses nothing.
            factor = 1.0 / (tf.convert_to_tensor(self.scale) * float(self.accumulate))
        elif self.accumulate > 1:
            factor = tf.constant(1.0 / self.accumulate)
        else:
            return sums
        return [grad * tf.cast(factor, grad.dtype) for grad in sums]

    def _update_all(self, distribution, grads, sums, variables, learning_rate, flags):
        """Runs `_update` for every variable, on every device that has it."""
        for grad, total, variable in zip(grads, sums, variables):
            variable = variable.value if isinstance(variable, keras.Variable) else variable
            distribution.extended.update(variable, self._update, args=(grad, total, learning_rate, *flags), group=False)

    def _update(self, variable, grad, total, learning_rate, proceed=None, ends=None):
        if self.accumulate > 1:
            accumulator = self.accumulators[self._get_variable_index(variable)]
            self.assign(accumulator, tf.where(ends, tf.zeros_like(total), total))
        self.update_step(grad, variable, learning_rate, proceed)

    def update_step(self, gradient, variable, learning_rate, proceed=None):
        """One variable's update; with `proceed`, a bool tensor, only if that is true."""
        index = self._get_variable_index(variable)
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.l2 and self._is_decayed[index]:
            gradient = gradient + tf.cast(self.l2, variable.dtype) * variable
        momentum = self.momenta[index]
        updated = tf.cast(self.momentum, variable.dtype) * momentum + gradient
        change = tf.cast(learning_rate, variable.dtype) * updated
        if proceed is not None:
            updated = tf.where(proceed, updated, tf.convert_to_tensor(momentum))
            change = tf.where(proceed, change, tf.zeros_like(change))
        self.assign(momentum, updated)
        self.assign_sub(variable, change)

    def _count(self, ends, finite) -> None:
        if ends is None:
            self._iterations.assign_add(1)
        else:
            self._iterations.assign_add(tf.cast(ends, self._iterations.dtype))
            following = tf.convert_to_tensor(self.micro_batches) + 1
            self.micro_batches.assign(tf.where(ends, tf.zeros_like(following), following))
        if finite is None:
            return
        scale, count = (tf.convert_to_tensor(variable) for variable in self.variables_of_scale)
        grows = finite & tf.equal(count + 1, self.loss_scale_growth)
        larger = tf.where(grows, tf.minimum(scale * 2.0, LARGEST_SCALE), scale)
        scales = tf.where(finite, larger, scale / 2.0), scale
        counts = tf.where(finite & ~grows, count + 1, tf.zeros_like(count)), count
        for variable, (new, old) in zip(self.variables_of_scale, (scales, counts)):
            variable.assign(new if ends is None else tf.where(ends, new, old))

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "l2": self.l2,
            "clip_norm": self.clip_norm,
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "accumulate": self.accumulate,
            "loss_scale": self.loss_scale,
            "loss_scale_growth": self.loss_scale_growth,
        }


def make_optimizer(config: TrainingConfig, global_batch: int | None = None) -> SGD:
    """The optimiser and schedule of a `TrainingConfig`.

    Args:
        config: the schedule.
        global_batch: images at once over all devices; with those of all `config.accumulate` micro-batches the
            learning rate is scaled. None stands for one device.
    """
    images = (global_batch or config.images_per_device) * config.accumulate
    schedule = WarmupStepDecay(
        scaled_learning_rate(config, images),
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
        accumulate=config.accumulate,
        loss_scale=FIRST_SCALE if config.precision == "mixed_float16" else 0.0,
    )
