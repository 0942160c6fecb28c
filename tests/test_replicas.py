"""A step on eight replicas is the step on one: in a process of its own, since devices are cut up at the start."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
replicas, norm, clip, side = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 8)
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.optimizer import SGD
from tests.support.tiny import calm, random_batch, tiny_config

def step(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = MaskRCNN(tiny_config(backbone__norm=norm))
        calm(model)
        # With this optimiser the change of a weight is its gradient.
        model.compile(SGD(1.0, momentum=0.0, l2=0.0, clip_norm=clip))
    before = [weight.numpy() for weight in model.trainable_weights]
    batch = random_batch(8, side, side, objects=3)
    # Uneven on purpose: one image without objects, one crowd, one of fewer real pixels.
    batch["classes"] = tf.tensor_scatter_nd_update(batch["classes"], [[1]], [[0, 0, 0]])
    batch["crowd"] = tf.tensor_scatter_nd_update(batch["crowd"], [[2, 0]], tf.constant([1], tf.uint8))
    batch["image_size"] = tf.tensor_scatter_nd_update(batch["image_size"], [[3]], [[48, 40]])
    data = tf.data.Dataset.from_tensors(batch)
    history = model.fit(data, epochs=1, verbose=0).history
    gradients = [old - new.numpy() for old, new in zip(before, model.trainable_weights)]
    return gradients, [w.path for w in model.trainable_weights], {k: v[0] for k, v in history.items()}

one, names, logs = step(tf.distribute.get_strategy())
many, _, many_logs = step(tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)]))
errors = [float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12)) for a, b in zip(one, many)]
worst = max(zip(errors, names))
norms = float(np.sqrt(sum(np.sum(g**2) for g in one)))
print(json.dumps({"worst": worst, "logs": logs, "many_logs": many_logs, "norm": norms, "count": len(one)}))
"""


@pytest.mark.parametrize(
    ("replicas", "norm", "clip", "side"),
    [
        (2, "frozen", 0.0, 64),
        pytest.param(8, "frozen", 0.0, 64, marks=pytest.mark.slow),
        pytest.param(4, "group", 0.5, 64, marks=pytest.mark.slow),
        pytest.param(2, "sync_batch", 0.0, 64, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_the_same_on_one_replica_and_on_many(replicas, norm, clip, side):
    command = [sys.executable, "-c", SCRIPT, str(replicas), norm, str(clip), str(side)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["count"] > 50 and result["norm"] > 1e-3
    if clip:
        assert result["norm"] == pytest.approx(clip, rel=1e-3)
    assert result["worst"][0] < 1e-4, result["worst"]
    for name, value in result["logs"].items():
        assert result["many_logs"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


FEW = """
import json
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from mrcnn_tf.data.pipeline import evaluation_batches
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.model import MaskRCNN
from tests.support.tiny import calm, tiny_config

config = tiny_config(branches=())
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = MaskRCNN(config)
        calm(model)
        model.compile()
    batches = evaluation_batches(shapes(3, (64, 64)), config, 2)
    outputs = {name: values.tolist() for name, values in model.predict(batches, verbose=0).items()}
    print(json.dumps([model.evaluate(batches, return_dict=True, verbose=0), outputs]))
"""


def test_a_last_batch_of_fewer_images_than_devices():
    """Its losses and detections are those on one device."""
    done = subprocess.run([sys.executable, "-c", FEW], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (one, found), (two, found_by_two) = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert one["loss"] > 0.1 and two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert np.shape(found["boxes"]) == (3, 8, 4) and found_by_two.keys() == found.keys()
    np.testing.assert_allclose(found_by_two["scores"], found["scores"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found_by_two["boxes"], found["boxes"], rtol=1e-3, atol=1e-2)
