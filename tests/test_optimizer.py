"""The SGD step by step against numpy."""

import keras
import numpy as np
import pytest

from mrcnn_tf.config import TrainingConfig
from mrcnn_tf.optimizer import SGD, make_optimizer


def variables():
    return [
        keras.Variable(np.array([1.0, -2.0], "float32"), name="kernel"),
        keras.Variable(np.array([3.0], "float32"), name="bias"),
    ]


@pytest.mark.parametrize("decay_all", [False, True])
def test_momentum_and_penalty(decay_all):
    kernel, bias = variables()
    optimizer = SGD(0.1, momentum=0.9, l2=0.01, decay_norms_and_biases=decay_all)
    expected = [np.array([1.0, -2.0]), np.array([3.0])]
    momenta = [np.zeros(2), np.zeros(1)]
    for step in range(3):
        gradients = [np.array([0.5, 1.0]) * (step + 1), np.array([-1.0])]
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], [kernel, bias])
        for i, decayed in enumerate((True, decay_all)):
            momenta[i] = 0.9 * momenta[i] + gradients[i] + (0.01 * expected[i] if decayed else 0)
            expected[i] = expected[i] - 0.1 * momenta[i]
    np.testing.assert_allclose(kernel.numpy(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected[1], rtol=1e-6)


def test_clipping_by_the_global_norm():
    kernel, bias = variables()
    optimizer = SGD(1.0, momentum=0.0, l2=0.0, clip_norm=1.0)
    optimizer.apply([keras.ops.array([3.0, 0.0]), keras.ops.array([4.0])], [kernel, bias])
    np.testing.assert_allclose(kernel.numpy(), [1.0 - 0.6, -2.0], rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), [3.0 - 0.8], rtol=1e-6)


def test_the_schedule_of_a_configuration():
    config = TrainingConfig(
        learning_rate=0.02, reference_batch=16, warmup_steps=10, warmup_start=0.1, decay_steps=(20,)
    )
    optimizer = make_optimizer(config, global_batch=8)
    rates = [float(optimizer._learning_rate(step)) for step in (0, 10, 19, 20)]
    np.testing.assert_allclose(rates, [0.001, 0.01, 0.01, 0.001], rtol=1e-6)


def test_config_round_trip():
    optimizer = SGD(0.1, momentum=0.8, l2=0.5, clip_norm=2.0, decay_norms_and_biases=True)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for name in ("momentum", "l2", "clip_norm", "decay_norms_and_biases"):
        assert getattr(again, name) == getattr(optimizer, name)
