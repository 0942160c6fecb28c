"""A training step: each loss and the gradient of each weight are those of a network in numpy, float64.

What was sampled is taken as given: anchors with their labels, RoIs with their classes and targets. The numpy network's
gradients, worked out by hand operation by operation, are compared with finite differences of its losses, and the
model's with them, number by number. A RoI's place is a constant there: a gradient that flowed through the places of
the proposals would show, as would one that reaches a branch from another branch's loss.
"""

import functools
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.model import MaskRCNN, _global_losses
from mrcnn_tf.optimizer import SGD
from tests.support.numpy_network import NumpyNetwork
from tests.support.tiny import random_batch, tiny_config

LEARNING_RATE, L2 = 0.1, 1e-3
# The model computes in float32: every layer adds an error of some 1e-7 of its values, which norms over few values
# multiply. Found were up to 2e-6 for losses, 4e-6 of a gradient's length with frozen norms and 3e-5 with others.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# What counts as 0 for a gradient that is 0 but for rounding, as that of a shift before a softmax.
GRADIENT_FLOOR = 1e-7
# Where a ReLU is nearly at 0, or two values of a pooling window are nearly equal, float32 may decide otherwise than
# float64 and give another gradient, which is no less right. So the weights are such that no value is that near.
MARGIN, POOL_MARGIN = 1e-4, 1e-5
# Differences are taken over a millionth of the weights, which meets no kink for the same reason.
STEP = 1e-6
SEED = 23  # of sixty, the one with the clearest winners in the windows of the pooling

SMALL = {"roi__canonical_size": 32.0, "rpn__anchors_per_image": 128}
KEYPOINTS = {"convs": (16,), "names": ("a", "b", "c"), "skeleton": (), "loss_weight": 0.5}
CASES = {
    "frozen norms": {},
    "batch and group norms": {
        "branches": ("mask", "keypoints"),
        "backbone__norm": "batch",
        "fpn": {"channels": 32, "norm": "group"},
        "rpn__convs": 2,
        "box_head": {"convs": (32,), "norm": "batch", "loss_beta": 0.0},
        "mask_head": {"convs": (32,), "norm": "group"},
        "keypoint_head": KEYPOINTS,
    },
    "res4 alone": {
        "branches": ("mask", "keypoints"),
        "backbone": {"features": "c4", "frozen_stages": 2},
        "anchors__sizes": ((8.0, 16.0, 32.0, 64.0),),
        "roi__rois_per_image": 8,
        "box_head": {"pool": 4, "res5_stride": 2},
        "mask_head": {"pool": 4, "convs": ()},
        "keypoint_head": KEYPOINTS,
    },
    "dilated res5": {
        "backbone": {"name": "resnet50", "features": "dc5", "stride_in": "3x3"},
        "anchors__sizes": ((8.0, 16.0, 32.0, 64.0),),
        "box_head": {"pool": 3},
        "mask_head": {"pool": 4},
    },
}
SLOW = ("dilated res5",)


def scattered(path, shape):
    """Weights of ordinary size, every one different from 0, the same wherever this runs."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    layer, kind = path.split("/")[0], path.split("/")[-1]
    if kind == "gamma":
        return rng.uniform(0.5, 1.0, shape) * (0.5 if layer.endswith(("conv2", "conv3")) else 1.0)
    if kind == "moving_variance":
        return rng.uniform(0.5, 2.0, shape)
    if kind != "kernel":
        return 0.1 * rng.standard_normal(shape)
    inputs = shape[-1] if "deconv" in layer else np.prod(shape[:-1])
    is_output = any(word in path for word in ("objectness", "deltas", "classes", "logits"))
    return rng.standard_normal(shape) * np.sqrt((0.2 if is_output else 2.0) / inputs)


def uneven_batch():
    """One image with objects and a crowd; one without objects, of fewer real pixels."""
    batch = random_batch(2, objects=5, seed=SEED)
    batch["classes"] = tf.tensor_scatter_nd_update(batch["classes"], [[1]], [[0] * 5])
    batch["crowd"] = tf.tensor_scatter_nd_update(batch["crowd"], [[0, 0]], tf.constant([1], tf.uint8))
    batch["image_size"] = tf.tensor_scatter_nd_update(batch["image_size"], [[1]], [[52, 60]])
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 2, (2, 5, 7, 7)) * 255
    batch["masks"] = tf.constant(patches.repeat(16, 2).repeat(16, 3), tf.uint8)
    low, high = (batch["boxes"].numpy()[:, :, None, part] for part in (slice(0, 2), slice(2, 4)))
    places = low + rng.uniform(0, 1, (2, 5, 3, 2)) * (high - low)
    batch["keypoints"] = tf.constant(np.concatenate([places, rng.integers(0, 3, (2, 5, 3, 1))], -1), tf.float32)
    return batch


def weights_of(model):
    return {weight.path: weight.numpy().astype(np.float64) for weight in model.weights}


def assign(model, values):
    for weight in model.weights:
        weight.assign(values[weight.path])


def numbers(gradient):
    """A gradient in float64; 0 where there is no way from the weight to the loss."""
    return np.float64(0) if gradient is None else tf.convert_to_tensor(gradient).numpy().astype(np.float64)


def spy(layer):
    """Makes the layer keep what it answers: its `seen`."""
    call = layer.call

    @functools.wraps(call)
    def watched(*args, **kwargs):
        layer.seen = SimpleNamespace(outputs=call(*args, **kwargs))
        return layer.seen.outputs

    layer.call = watched


class KeepingSGD(SGD):
    """SGD that keeps the gradients it was given."""

    def apply(self, grads, trainable_variables=None):
        self.gradients = [numbers(gradient) for gradient in grads]
        return super().apply(grads, trainable_variables)


def samples_of(graph):
    """What the training graph sampled when it ran last."""
    outputs = graph.seen.outputs
    samples = {name: value for name, value in outputs.items() if not name.endswith(("logits", "deltas"))}
    samples["rois"] = seen_by(graph, "detection_targets")["rois"]
    for branch in ("mask", "keypoint"):
        if f"{branch}_logits" in outputs:
            positives = seen_by(graph, f"{branch}_targets")
            samples |= {f"{branch}_rois": positives["rois"], f"{branch}_images": positives["image_index"]}
    return {name: value.numpy() for name, value in samples.items()}


def seen_by(graph, name):
    return graph.get_layer(name).seen.outputs


def settle(model, batch):
    """Gives the model its weights, none of which leaves a ReLU near its kink."""
    graph = model.training_graph
    assign(model, {weight.path: scattered(weight.path, tuple(weight.shape)) for weight in model.weights})
    early = NumpyNetwork(model.config, batch, weights_of(model), settle=True).weights
    assign(model, {path: value.data for path, value in early.items()})
    before = weights_of(model)
    graph(model._training_inputs(batch, 0), training=True)  # the RoIs are known only now
    late = NumpyNetwork(model.config, batch, before, samples_of(graph), settle=True).weights
    assign(model, {path: value.data for path, value in late.items()})


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def step(request):
    # GPUs may round products to the 10 bits of TF32, which has nothing to do with what is shown here.
    with tf.device("CPU"):
        return take_step(tiny_config(**{**SMALL, **CASES[request.param]}))


def take_step(config):
    """One step of a model, and the numpy network at the weights before it."""
    model = MaskRCNN(config)
    graph, batch = model.training_graph, uneven_batch()
    for layer in (graph, *(layer for layer in graph.layers if layer.name.endswith("_targets"))):
        spy(layer)
    settle(model, batch)
    before = weights_of(model)
    model.compile(KeepingSGD(LEARNING_RATE, momentum=0.9, l2=L2))
    with tf.GradientTape(persistent=True) as tape:
        logs = model.train_step(batch)
        shares = _global_losses(graph.seen.outputs, model.config)
    paths = [weight.path for weight in model.trainable_variables]
    gradients = {name: tape.gradient(share, model.trainable_variables) for name, share in shares.items()}
    samples = samples_of(graph)
    network = NumpyNetwork(model.config, batch, before, samples)
    assert network.margin > MARGIN and network.pool_margin > POOL_MARGIN
    return SimpleNamespace(
        model=model,
        logs={name: float(value) for name, value in logs.items()},
        gradients={name: dict(zip(paths, map(numbers, values))) for name, values in gradients.items()},
        applied=dict(zip(paths, model.optimizer.gradients)),
        before=before,
        after=weights_of(model),
        network=network,
        expected={name: network.gradients(name) for name in network.losses},
        again=lambda weights: NumpyNetwork(model.config, batch, weights, samples).losses,
    )


def test_losses(step):
    expected = {name: float(loss.data) for name, loss in step.network.losses.items()}
    assert set(expected) == set(step.model.loss_names) and min(expected.values()) > 0
    for name, value in expected.items():
        assert step.logs[name] == pytest.approx(value, rel=LOSS_TOLERANCE), name
    assert step.logs["loss"] == pytest.approx(sum(expected.values()), rel=LOSS_TOLERANCE)


def test_gradient_of_each_loss_for_each_weight(step):
    wrong = []
    for path, total in step.applied.items():
        for name, expected in step.expected.items():
            length = np.linalg.norm(expected[path])
            error = np.linalg.norm(step.gradients[name][path] - expected[path])
            if error > GRADIENT_TOLERANCE * length + GRADIENT_FLOOR:
                wrong.append(f"{name} by {path}: off by {error}, its length being {length}")
        # A shift of a whole heat map changes no share of its softmax: the one weight that learns nothing.
        assert np.linalg.norm(total) > GRADIENT_FLOOR or path == "keypoint_deconv/bias", path
    assert not wrong, "\n".join(wrong)


def test_the_expected_gradients_are_finite_differences(step):
    """All weights are moved at once, each at random by a millionth of its length.

    The differences are right to 1e-9 of the sum, in which the least weight has a share of far more.
    """
    rng = np.random.default_rng(0)
    for _ in range(2):
        moves = {path: rng.standard_normal(step.before[path].shape) for path in step.applied}
        for path, move in moves.items():
            move *= STEP * np.linalg.norm(step.before[path]) / np.linalg.norm(move)
        ahead, behind = (
            step.again({**step.before, **{path: step.before[path] + sign * move for path, move in moves.items()}})
            for sign in (1, -1)
        )
        for name, expected in step.expected.items():
            parts = np.array([np.sum(expected[path] * move) for path, move in moves.items()])
            difference = (ahead[name].data - behind[name].data) / 2
            assert abs(parts.sum() - difference) < 1e-7 * np.abs(parts).sum(), name


def test_the_step_takes_the_sum_of_the_gradients_of_all_losses(step):
    for path, total in step.applied.items():
        expected = sum(of[path] for of in step.gradients.values())
        assert np.linalg.norm(total - expected) <= 1e-5 * np.linalg.norm(total) + GRADIENT_FLOOR, path


def test_a_branch_learns_from_its_own_losses(step):
    own = {"rpn": "rpn_", "box": "box_", "mask": "mask_", "keypoint": "keypoint_"}
    for name, gradients in step.gradients.items():
        for path, gradient in gradients.items():
            branch = own.get(path.split("/")[0].split("_")[0])
            assert branch is None or name.startswith(branch) or not np.any(gradient), (name, path)


def test_weights_after_the_step(step):
    """The first step of SGD with an L2 penalty on kernels; batch norms also move their statistics."""
    for path, before in step.before.items():
        layer, kind = path.rsplit("/", 1)
        change = 0.0
        if path in step.applied:
            change = -LEARNING_RATE * (step.applied[path] + (L2 * before if kind == "kernel" else 0.0))
        elif layer in step.network.statistics:
            mean, variance = step.network.statistics[layer]
            change = 0.1 * ((mean if kind == "moving_mean" else variance) - before)
        np.testing.assert_allclose(step.after[path], before + change, rtol=1e-5, atol=1e-6, err_msg=path)


# === Padding ===


@pytest.fixture(scope="module")
def pointwise():
    """A model that sees each place by itself: of its 3x3 kernels only the centre, and no shift that fills the padding.

    An ordinary network sees from the real image whether canvas or padding is behind its border, as every detector of
    this kind does: what is 0 in the image is so no longer after the first shift.
    """
    model = MaskRCNN(tiny_config(**SMALL))
    for weight in model.weights:
        value = scattered(weight.path, tuple(weight.shape))
        if weight.path.endswith(("beta", "moving_mean", "bias")):
            value = np.zeros(weight.shape)
        elif value.ndim == 4 and value.shape[0] in (3, 7):
            middle = value.shape[0] // 2
            value, kept = np.zeros(weight.shape), value[middle, middle]
            value[middle, middle] = kept * weight.shape[0]
        weight.assign(value)
    spy(model.training_graph)
    spy(model.training_graph.get_layer("anchors"))
    model.compile()
    return model


def rpn_step(model, batch):
    """The RPN's two losses, and of every image the sampled anchors with their places, labels and targets."""
    logs = model.test_step(batch)
    outputs = model.training_graph.seen.outputs
    boxes = np.concatenate([level.numpy() for level in model.training_graph.get_layer("anchors").seen.outputs])
    samples = []
    for labels, targets in zip(outputs["rpn_labels"].numpy(), outputs["rpn_targets"].numpy()):
        chosen = labels >= 0
        rows = zip(boxes[chosen].tolist(), labels[chosen].tolist(), targets[chosen].tolist())
        samples.append({(*box, label, *target) for box, label, target in rows})
    return np.array([float(logs[name]) for name in ("rpn_objectness_loss", "rpn_box_loss")]), samples


@pytest.mark.parametrize(("height", "width"), [(96, 64), (64, 128), (128, 160)])
def test_a_larger_canvas_changes_neither_the_rpns_samples_nor_its_losses(pointwise, height, width):
    batch = uneven_batch()
    larger = {**batch, "image": tf.image.pad_to_bounding_box(batch["image"], 0, 0, height, width)}
    losses, samples = rpn_step(pointwise, batch)
    larger_losses, larger_samples = rpn_step(pointwise, larger)
    assert larger_samples == samples and all(samples)
    assert (losses > 0.01).all()
    np.testing.assert_allclose(larger_losses, losses, rtol=1e-5)


def test_what_lies_in_the_padding_never_matters(pointwise):
    batch = uneven_batch()
    rows, columns = np.arange(64)[:, None, None], np.arange(64)[None, :, None]
    image = batch["image"].numpy()
    image[1] = np.where((rows < 52) & (columns < 60), image[1], 12345.0)
    clean, filled = pointwise.test_step(batch), pointwise.test_step({**batch, "image": tf.constant(image)})
    for name, value in clean.items():
        assert float(filled[name]) == pytest.approx(float(value), rel=1e-6), name
