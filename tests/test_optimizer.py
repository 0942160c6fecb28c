"""The SGD step by step against numpy."""

import keras
import numpy as np
import pytest

from mrcnn_tf.config import TrainingConfig
from mrcnn_tf.optimizer import SGD, make_optimizer
from mrcnn_tf.schedules import WarmupStepDecay


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
    options = {"accumulate": 3, "loss_scale": 4.0, "loss_scale_growth": 7}
    optimizer = SGD(0.1, momentum=0.8, l2=0.5, clip_norm=2.0, decay_norms_and_biases=True, **options)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for name in ("momentum", "l2", "clip_norm", "decay_norms_and_biases", *options):
        assert getattr(again, name) == getattr(optimizer, name)


# === Micro-batches ===


def gradients(step):
    rng = np.random.default_rng(step)
    return [rng.normal(size=2).astype("float32"), rng.normal(size=1).astype("float32")]


def applied(optimizer, steps, together=1):
    """Weights after `steps` micro-batches, or after the means of `together` of them."""
    weights = variables()
    for first in range(0, steps, together):
        parts = [gradients(step) for step in range(first, first + together)]
        optimizer.apply([keras.ops.array(np.mean(part, axis=0)) for part in zip(*parts)], weights)
    return [weight.numpy() for weight in weights]


SCHEDULE = {"warmup_steps": 2, "warmup_start": 0.1, "decay_steps": (3,)}


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("loss_scale", [0.0, 1.0])
def test_micro_batches_make_the_update_of_their_mean(clip_norm, loss_scale):
    """Momentum, penalty, clipping and schedule act once an update."""
    options = {"l2": 0.1, "clip_norm": clip_norm, "loss_scale": loss_scale}
    joined = SGD(WarmupStepDecay(0.1, **SCHEDULE), **options)
    split = SGD(WarmupStepDecay(0.1, **SCHEDULE), accumulate=3, **options)
    for ours, theirs in zip(applied(split, 15), applied(joined, 15, together=3)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert int(split.iterations) == int(joined.iterations) == 5
    assert all(not np.any(variable.numpy()) for variable in split.variables_within_update)


def test_nothing_moves_within_an_update_and_one_that_was_begun_can_be_given_up():
    optimizer = SGD(0.1, accumulate=2)
    weights = variables()
    start = [weight.numpy() for weight in weights]
    optimizer.apply([keras.ops.array(grad) for grad in gradients(0)], weights)
    for weight, before, total, grad in zip(weights, start, optimizer.accumulators, gradients(0)):
        np.testing.assert_array_equal(weight.numpy(), before)
        np.testing.assert_allclose(total.numpy(), grad)
    assert (int(optimizer.iterations), int(optimizer.micro_batches)) == (0, 1)
    optimizer.forget_micro_batches()
    assert all(not np.any(variable.numpy()) for variable in optimizer.variables_within_update)


def test_the_rate_is_scaled_with_the_images_of_all_micro_batches():
    config = TrainingConfig(learning_rate=0.02, reference_batch=16, warmup_steps=0, accumulate=4)
    optimizer = make_optimizer(config, global_batch=2)
    assert float(optimizer.learning_rate) == pytest.approx(0.01) and optimizer.accumulate == 4


# === Loss scale ===


def test_a_gradient_that_is_not_finite_changes_the_scale_alone():
    optimizer = SGD(0.1, loss_scale=8.0, loss_scale_growth=3)
    weights = variables()
    optimizer.build(weights)
    assert float(optimizer.scale_loss(keras.ops.array(2.0))) == 16.0
    scales, moved = [], []
    for bad in (None, np.inf, np.nan, None, None, None):
        before = [weight.numpy() for weight in [*weights, *optimizer.momenta]]
        scale = float(optimizer.scale.numpy())
        first = [scale, scale] if bad is None else [1.0, bad]
        optimizer.apply([keras.ops.array(first), keras.ops.array([scale])], weights)
        scales.append(float(optimizer.scale.numpy()))
        moved.append(any(np.any(old != new.numpy()) for old, new in zip(before, [*weights, *optimizer.momenta])))
    assert scales == [8.0, 4.0, 2.0, 2.0, 2.0, 4.0]
    assert moved == [True, False, False, True, True, True]
    assert int(optimizer.iterations) == 6
    # Four updates by a gradient of one, whatever the scale.
    expected, momentum = 3.0, 0.0
    for _ in range(4):
        momentum = 0.9 * momentum + 1.0
        expected -= 0.1 * momentum
    assert weights[1].numpy()[0] == pytest.approx(expected, rel=1e-6)


def test_one_bad_micro_batch_passes_over_its_whole_update():
    optimizer = SGD(0.1, loss_scale=8.0, accumulate=2)
    weights = variables()
    start = [weight.numpy() for weight in weights]
    for first in (np.inf, 1.0):
        optimizer.apply([keras.ops.array([first, 1.0]), keras.ops.array([1.0])], weights)
        assert all(np.array_equal(weight.numpy(), old) for weight, old in zip(weights, start))
    assert float(optimizer.scale.numpy()) == 4.0 and int(optimizer.iterations) == 1
    for _ in range(2):
        optimizer.apply([keras.ops.array([4.0, 4.0]), keras.ops.array([4.0])], weights)
    np.testing.assert_allclose(weights[1].numpy(), [3.0 - 0.1], rtol=1e-6)


def test_options_of_other_optimisers_are_refused():
    with pytest.raises(ValueError, match="weight_decay, clipnorm: this SGD takes l2, clip_norm"):
        SGD(0.1, weight_decay=0.1, clipnorm=1.0)
    with pytest.raises(ValueError, match="accumulate = 0: at least 1"):
        SGD(0.1, accumulate=0)
