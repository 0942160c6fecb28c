"""Mixed precision: what stays float32, what files hold, and a gradient that is not finite on one replica of many."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import PRECISIONS
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.layers.base import Float32Layer
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.training import run
from mrcnn_tf.training.precision import precision
from mrcnn_tf.training.run import train
from tests.support.tiny import calm, random_batch, tiny_config

ROOT = Path(__file__).resolve().parents[1]
FLOAT32 = ("anchors", "proposals", "rpn_targets", "detection_targets", "detect_boxes", "box_classes", "box_deltas")


def test_boxes_scores_and_losses_are_float32_and_features_are_not():
    with precision("mixed_float16"):
        model = MaskRCNN(tiny_config())
    assert keras.config.dtype_policy().name == "float32"
    layers = {layer.name: layer for layer in [*model.layers, *model.training_graph.layers]}
    assert all(layers[name].compute_dtype == "float32" for name in FLOAT32)
    assert all(layer.compute_dtype == "float32" for layer in layers.values() if isinstance(layer, Float32Layer))
    assert all(weight.dtype == "float32" for weight in model.weights)
    outputs = {**model.output, **model.training_graph.output}
    assert "float16" not in {value.dtype for value in outputs.values()}
    assert all(value.dtype == "float32" for value in model.stages["box_head"][1])
    assert model.stages["backbone"][1][0].dtype == model.stages["fpn"][1][0].dtype == "float16"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "mixed_bfloat16")) for name in PRECISIONS]
)
def test_a_short_training_in_each_precision(tmp_path, monkeypatch, name):
    """The loss falls; the file gives a float32 model whose answers are those of the weights; a run resumes.

    In float16 each update takes two micro-batches, until it is resumed on one.
    """
    build = run._build

    def calmed(*args):
        model = build(*args)
        calm(model)
        return model

    monkeypatch.setattr(run, "_build", calmed)
    config = tiny_config(training__steps=6, training__precision=name, training__evaluate_every=0)
    config = config.replace(training__learning_rate=0.04, training__checkpoint_every=4, data__flip=False)
    config = config.replace(training__accumulate=1 + (name == "mixed_float16"))
    data = shapes(2, (64, 64))
    result = train(config, data, run_dir=tmp_path, batch_size=2, verbose=0)
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").open()]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert result.model.get_layer("res3_block1_conv1").dtype_policy.name == name
    assert len(rows) == int(result.model.optimizer.iterations) == 6
    assert ("loss_scale" in rows[0]) == (name == "mixed_float16")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("res3_block1_conv1").dtype_policy.name == "float32"
    for ours, theirs in zip(loaded.weights, result.model.weights):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert keras.config.dtype_policy().name == "float32"
    if name == "mixed_float16":  # in another precision the training goes on from the same weights
        on = train(
            config.replace(training__steps=7, training__precision="float32", training__accumulate=1),
            data,
            run_dir=tmp_path,
            batch_size=2,
            verbose=0,
        )
        assert (on.resumed_from, on.steps) == (6, 7)
        back = train(config.replace(training__steps=8), data, run_dir=tmp_path, batch_size=2, verbose=0)
        assert back.resumed_from == 7 and back.model.optimizer.scale is not None


# === An infinite gradient on one replica ===

SCRIPT = """
import json
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from mrcnn_tf.optimizer import SGD

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
results = {}
for accumulate in (1, 2):
    with strategy.scope():
        weights = [keras.Variable(np.ones([3], "float32"), name="kernel"), keras.Variable([2.0], name="bias")]
        optimizer = SGD(0.1, loss_scale=1024.0, accumulate=accumulate, clip_norm=5.0)
        optimizer.build(weights)

    @tf.function
    def step(bad):
        def replica(bad):
            me = tf.distribute.get_replica_context().replica_id_in_sync_group
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(weights[0])) + tf.reduce_sum(weights[1] * weights[1])
                loss = loss * tf.where(tf.equal(me, 1) & bad, np.inf, 0.5)
                loss = optimizer.scale_loss(loss)
            optimizer.apply(tape.gradient(loss, [w.value for w in weights]), weights)
        strategy.run(replica, args=(bad,))

    def state():
        parts = [strategy.experimental_local_results(v.value) for v in [*weights, *optimizer.momenta]]
        return [[part.numpy().tolist() for part in both] for both in parts]

    found = []
    for bad in (False, True, False, False):
        for micro in range(accumulate):
            step(tf.constant(bad and micro == 0))
        found.append([state(), float(optimizer.scale.numpy()), int(optimizer.iterations.numpy())])
    results[accumulate] = found
print(json.dumps(results))
"""


def test_an_infinity_on_one_replica_stops_the_update_on_all():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for found in results.values():
        for values, _, _ in found:
            assert all(first == second for first, second in values)  # the replicas agree
            assert np.isfinite([value for both in values for one in both for value in one]).all()
        first, skipped, third, fourth = (values for values, _, _ in found)
        assert skipped == first and third != first and fourth != third
        assert [scale for _, scale, _ in found] == [1024.0, 512.0, 512.0, 512.0]
        assert [count for *_, count in found] == [1, 2, 3, 4]
    # Micro-batches of equal gradients change nothing.
    np.testing.assert_allclose(results["1"][-1][0][0], results["2"][-1][0][0], rtol=1e-6)


def test_under_half_precision_the_models_optimizer_scales_by_itself():
    with precision("mixed_float16"):
        model = MaskRCNN(tiny_config(training__precision="mixed_float16"))
        model.compile()
    assert type(model.optimizer).__name__ == "SGD" and model.optimizer.loss_scale == 2.0**15
    loss = model.optimizer.scale_loss(tf.constant(2.0))
    assert float(loss) == 2.0**16
    outputs = model.training_graph(model._training_inputs(random_batch(1), 0), training=True)
    assert all(value.dtype != tf.float16 for value in outputs.values())
