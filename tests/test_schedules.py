import keras
import numpy as np
import pytest

from mrcnn_tf.config import TrainingConfig
from mrcnn_tf.schedules import WarmupStepDecay, scaled_learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.002), (5, 0.011), (9, 0.0182), (10, 0.02), (99, 0.02), (100, 0.002), (149, 0.002), (150, 0.0002)],
)
def test_rate_at_each_part_of_the_schedule(step, rate):
    schedule = WarmupStepDecay(0.02, warmup_steps=10, warmup_start=0.1, decay_steps=(100, 150))
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5)


def test_decay_may_fall_into_the_warm_up():
    schedule = WarmupStepDecay(1.0, warmup_steps=10, warmup_start=0.0, decay_steps=(4,), decay_factor=0.5)
    np.testing.assert_allclose([schedule(3), schedule(4), schedule(10)], [0.3, 0.2, 0.5], rtol=1e-6)


def test_no_warm_up_and_no_decay_is_constant():
    schedule = WarmupStepDecay(0.5, warmup_steps=0)
    assert float(schedule(0)) == float(schedule(1_000_000)) == 0.5


def test_optimizer_with_the_schedule_survives_serialisation():
    optimizer = keras.optimizers.SGD(WarmupStepDecay(0.02, 10, 0.1, (100, 150), 0.2))
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    np.testing.assert_allclose(restored.learning_rate, 0.002, rtol=1e-6)
    assert restored._learning_rate.get_config() == optimizer._learning_rate.get_config()


def test_learning_rate_scales_with_the_batch():
    config = TrainingConfig(learning_rate=0.02, reference_batch=16)
    assert scaled_learning_rate(config, 16) == 0.02
    assert scaled_learning_rate(config, 2) == pytest.approx(0.0025)
    assert scaled_learning_rate(TrainingConfig(learning_rate=0.005, reference_batch=0), 2) == 0.005
