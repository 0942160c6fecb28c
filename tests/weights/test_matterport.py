"""Matterport's networks: their files, what becomes of each tensor, and that the model computes what they do.

Their network is written once more in tests/support/matterport_network.py, from the raw tensors.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.config import Config
from mrcnn_tf.geometry import boxes as box_ops
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import matterport
from mrcnn_tf.weights.matterport import assign_matterport, count_classes, guess_depth, read_matterport
from mrcnn_tf.weights.matterport_files import plain_name
from mrcnn_tf.weights.report import WeightsError
from tests.support import matterport_network as theirs

SIDE, CLASSES = 192, 3
ROIS, DETECTIONS = 200, 20


def config(**changes):
    """The preset with ResNet-50 at a small square; there the side counts as 191 pixels of 192, not 1023 of 1024."""
    small = {"shorter_edge": SIDE, "longer_edge": SIDE, "size_divisor": 64}
    values = {"num_classes": CLASSES, "input": small, "roi__canonical_size": 224 / 2**0.5 * (SIDE - 1) / SIDE}
    return preset("matterport/mask_rcnn_coco", **{"backbone__name": "resnet50", **values, **changes})


@pytest.fixture(scope="module")
def tensors():
    tensors = theirs.random_tensors(CLASSES, seed=2)
    tensors["mrcnn_class_logits/bias"][0] += 4  # so that every class wins somewhere, the background too
    return tensors


@pytest.fixture(scope="module")
def model():
    numbers = {"rpn.post_nms_test": ROIS, "detections.max_per_image": DETECTIONS}
    return MaskRCNN(config(**{"detections.score_threshold": 0.3, **numbers}))


@pytest.fixture(scope="module")
def report(model, tensors):
    return assign_matterport(model, tensors)


@pytest.fixture(scope="module")
def network(tensors):
    return theirs.Network(tensors)


@pytest.fixture(scope="module")
def image():
    smooth = np.random.default_rng(1).uniform(0, 255, (1, 12, 12, 3)).astype(np.float32)
    return tf.image.resize(smooth, [SIDE, SIDE])


@pytest.fixture(scope="module")
def features(network, image):
    return network.features(image)


@pytest.fixture(scope="module")
def ours(model, report, image):
    """Our features and RPN outputs, each level's by itself."""
    stage = keras.Model(model.inputs, [model.stages["rpn"][0], *model.stages["rpn"][1]])
    return stage([image, tf.constant([[SIDE, SIDE]])])


@pytest.fixture(scope="module")
def rois():
    """Boxes [200, 4] in pixels, of all levels; the first ones lie at the borders."""
    random = np.random.default_rng(3)
    low = random.uniform(0, 100, (ROIS, 2))
    boxes = np.concatenate([low, low + random.uniform(5, 90, (ROIS, 2))], axis=1)
    boxes[:3] = [0, 0, SIDE - 1, SIDE - 1], [100, 90, SIDE - 1, 189.5], [0, 100.5, 30, SIDE - 1]
    assert set(theirs.levels(normalised(boxes), SIDE)) == {2, 3, 4}
    return boxes.astype(np.float32)


def normalised(boxes):
    return (boxes / (SIDE - 1)).astype(np.float32)


def difference(first, second):
    """The largest difference, relative to the largest value."""
    first, second = np.asarray(first), np.asarray(second)
    assert first.shape == second.shape
    return np.abs(first - second).max() / np.abs(second).max()


# === The same answers ===


def test_features(ours, features):
    assert len(ours[0]) == len(features) == 5
    for mine, other in zip(ours[0], features):
        assert difference(mine, other) < 1e-4
        assert float(tf.math.reduce_std(other)) > 0.1


def test_proposal_network(ours, network, features):
    probabilities, deltas = network.rpn(features)
    _, logits, own_deltas, anchors = ours
    objects = probabilities[..., 1].numpy()
    assert 0.02 < objects.std() < 0.48  # neither all alike nor all certain
    assert difference(tf.sigmoid(tf.concat(logits, 1)), objects) < 1e-4
    assert difference(tf.concat(own_deltas, 1), deltas * theirs.UNITS) < 1e-4
    their_anchors = theirs.normalised_anchors(SIDE)
    np.testing.assert_allclose(tf.concat(anchors, 0), their_anchors * (SIDE - 1), atol=1e-3)
    boxes = box_ops.decode(tf.concat(own_deltas, 1), tf.concat(anchors, 0))
    assert difference(boxes, theirs.moved(their_anchors, deltas) * (SIDE - 1)) < 1e-4


def test_box_branch(model, report, network, features, rois):
    probabilities, deltas = network.box_branch(theirs.crops(features, normalised(rois), 7, SIDE))
    head = keras.Model(model.stages["box_align"][0], model.stages["box_head"][1])
    logits, own_deltas = head([features[:4], tf.constant(rois[None])])
    assert difference(tf.nn.softmax(logits)[0], probabilities) < 1e-4
    assert difference(own_deltas[0], deltas[:, 1:]) < 1e-4  # the background's box is left out
    found = box_ops.decode(own_deltas[0], rois[:, None], model.config.box_head.delta_weights)
    assert difference(found, theirs.moved(normalised(rois)[:, None], deltas[:, 1:]) * (SIDE - 1)) < 1e-4


def test_mask_branch(model, report, network, features, rois):
    boxes = rois[:DETECTIONS]
    masks = network.mask_branch(theirs.crops(features, normalised(boxes), 14, SIDE))
    branch = keras.Model(model.stages["mask_align"][0], model.stages["mask_head"][1])
    assert difference(tf.sigmoid(branch([features[:4], tf.constant(boxes[None])])), masks[..., 1:]) < 1e-4


def test_detections(model, report, network, features, rois):
    """The likeliest class, a least score, NMS class by class, on boxes cut to the first and the last pixel."""
    values = network.box_branch(theirs.crops(features, normalised(rois), 7, SIDE))
    probabilities, deltas = (value.numpy() for value in values)
    best = probabilities.argmax(axis=1)
    assert set(best) == set(range(CLASSES + 1))
    refined = np.clip(theirs.moved(normalised(rois), deltas[np.arange(ROIS), best]), 0, 1)
    expected = []
    for label in range(1, CLASSES + 1):
        place = np.flatnonzero((best == label) & (probabilities[:, label] >= 0.3))
        kept = tf.image.non_max_suppression(refined[place], probabilities[place, label], DETECTIONS, 0.3)
        expected += [(probabilities[i, label], label, refined[i] * (SIDE - 1)) for i in place[kept.numpy()]]
    expected = sorted(expected, key=lambda detection: -detection[0])[:DETECTIONS]
    assert len(expected) > 5 and len({label for _, label, _ in expected}) > 1
    head = keras.Model(model.stages["box_align"][0], model.stages["box_head"][1])
    layer, last_pixel = model.get_layer("detect_boxes"), np.array([[SIDE - 1, SIDE - 1]], np.int32)
    found, classes, scores = layer(*head([features[:4], tf.constant(rois[None])]), rois[None], last_pixel)
    number = len(expected)
    np.testing.assert_array_equal(classes[0, :number], [label for _, label, _ in expected])
    np.testing.assert_allclose(scores[0, :number], [score for score, _, _ in expected], atol=1e-4)
    np.testing.assert_allclose(found[0, :number], [box for _, _, box in expected], atol=0.02)
    assert not classes[0, number:].numpy().any()


# === The report ===


def test_every_tensor_and_every_weight_is_accounted_for(model, tensors, report):
    assert sorted(report.loaded) == sorted(weight.path for weight in model.weights)
    assert report.missing == report.left == report.unused == report.warnings == report.reinitialized == []
    assert report.complete
    background = "(the background's, which nothing uses)"
    assert sorted(report.left_out) == [
        f"mrcnn_bbox_fc/bias[..., 0:4] {background}",
        f"mrcnn_bbox_fc/kernel[..., 0:4] {background}",
        f"mrcnn_mask/bias[..., 0:1] {background}",
        f"mrcnn_mask/kernel[..., 0:1] {background}",
    ]


# === The pieces ===


def test_a_folded_norm_by_hand():
    # y = 2 (x w + b - 1) / sqrt(3.999 + .001) + 5 = x w + b + 4.
    values = {"gamma": [2.0], "beta": [5.0], "moving_mean": [1.0], "moving_variance": [3.999]}
    norm = {name: np.array(value) for name, value in values.items()}
    kernel, bias = matterport.fold_norm(np.array([[3.0]]), np.array([0.25]), **norm)
    np.testing.assert_allclose((kernel[0, 0], bias[0]), (3.0, 4.25))


def test_two_scores_of_an_anchor_become_one():
    scores = np.array([0.5, 2.0, -1.0, -3.0])  # background, object; background, object
    ones = matterport.foreground_over_background(scores)
    np.testing.assert_allclose(ones, [1.5, -2.0])
    np.testing.assert_allclose(1 / (1 + np.exp(-ones)), tf.nn.softmax(scores.reshape(2, 2))[:, 1])


@dataclass
class Weight:
    """What the conversion needs of a weight of a model."""

    path: str
    shape: tuple
    value: np.ndarray = field(default=None, repr=False)

    def assign(self, value):
        assert value.shape == self.shape and value.dtype == np.float32
        self.value = value


HEAD_SHAPES = {
    "box_fc1": (49 * 4, 8),
    "box_fc2": (8, 8),
    "rpn/conv": (3, 3, 4, 6),
    "rpn/objectness": (1, 1, 6, 2),
    "rpn/deltas": (1, 1, 6, 8),
    "mask_conv1": (3, 3, 4, 5),
    "mask_deconv": (2, 2, 7, 5),
}


def thin(classes, **changes):
    """A model of heads alone, and random tensors for it."""
    own = {**HEAD_SHAPES, "box_classes": (8, classes + 1), "box_deltas": (8, 4 * classes)}
    own["mask_logits"] = (1, 1, 7, classes)
    biases = {layer: (shape[2] if layer == "mask_deconv" else shape[-1],) for layer, shape in own.items()}
    weights = [Weight(f"{layer}/kernel", shape) for layer, shape in own.items()]
    weights += [Weight(f"{layer}/bias", shape) for layer, shape in biases.items()]
    kernels = {
        "mrcnn_class_conv1": (7, 7, 4, 8),
        "mrcnn_class_conv2": (1, 1, 8, 8),
        "mrcnn_class_logits": (8, classes + 1),
        "mrcnn_bbox_fc": (8, 4 * classes + 4),
        "rpn_conv_shared": (3, 3, 4, 6),
        "rpn_class_raw": (1, 1, 6, 4),
        "rpn_bbox_pred": (1, 1, 6, 8),
        "mrcnn_mask_conv1": (3, 3, 4, 5),
        "mrcnn_mask_deconv": (2, 2, 7, 5),
        "mrcnn_mask": (1, 1, 7, classes + 1),
    }
    random = np.random.default_rng(classes)
    shapes = {f"{layer}/kernel": shape for layer, shape in kernels.items()}
    shapes |= {f"{layer}/bias": (7 if "deconv" in layer else shape[-1],) for layer, shape in kernels.items()}
    for layer in ("mrcnn_class_conv1", "mrcnn_class_conv2", "mrcnn_mask_conv1"):
        norm = layer.replace("conv", "bn")
        shapes |= {
            f"{norm}/{name}": (kernels[layer][-1],) for name in ("gamma", "beta", "moving_mean", "moving_variance")
        }
    tensors = {name: random.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    values = {"num_classes": classes, "class_names": (), **changes}
    return SimpleNamespace(config=config(**values), weights=weights), tensors


def value(model, path):
    return next(weight.value for weight in model.weights if weight.path == path)


@pytest.mark.parametrize("classes", [1, 80, 90, 1000])
def test_each_class_finds_its_place(classes):
    model, tensors = thin(classes)
    assert count_classes(tensors) == classes
    report = assign_matterport(model, tensors)
    assert report.complete and report.unused == [] and len(report.loaded) == len(model.weights)
    np.testing.assert_array_equal(value(model, "box_classes/kernel"), tensors["mrcnn_class_logits/kernel"])
    np.testing.assert_array_equal(value(model, "box_deltas/kernel")[:, -4:], tensors["mrcnn_bbox_fc/kernel"][:, -4:])
    np.testing.assert_array_equal(value(model, "box_deltas/bias")[:4], tensors["mrcnn_bbox_fc/bias"][4:8])
    np.testing.assert_array_equal(value(model, "mask_logits/kernel")[..., 0], tensors["mrcnn_mask/kernel"][..., 1])
    np.testing.assert_array_equal(value(model, "mask_logits/bias")[-1], tensors["mrcnn_mask/bias"][-1])


def test_cells_and_units_of_the_thin_heads():
    model, tensors = thin(2)
    assign_matterport(model, tensors)
    pooled = np.random.default_rng(0).normal(size=(1, 7, 7, 4)).astype(np.float32)
    scale = tensors["mrcnn_class_bn1/gamma"] / np.sqrt(tensors["mrcnn_class_bn1/moving_variance"] + 1e-3)
    convolved = np.einsum("nhwc,hwcf->nf", pooled, tensors["mrcnn_class_conv1/kernel"]) * scale
    np.testing.assert_allclose(pooled.reshape(1, -1) @ value(model, "box_fc1/kernel"), convolved, rtol=1e-4)
    deltas = value(model, "rpn/deltas/bias") / tensors["rpn_bbox_pred/bias"]
    np.testing.assert_allclose(deltas, [0.1, 0.1, 0.2, 0.2] * 2, rtol=1e-6)
    raw = tensors["rpn_class_raw/kernel"]
    np.testing.assert_allclose(value(model, "rpn/objectness/kernel")[..., 1], raw[..., 3] - raw[..., 2], atol=1e-6)


# === What does not fit ===


def test_another_number_of_classes_is_told_and_sets_nothing():
    model, _ = thin(2)
    with pytest.raises(WeightsError, match="they are of 80 classes and the background, its num_classes is 2") as caught:
        assign_matterport(model, thin(80)[1])
    assert "mrcnn_bbox_fc/kernel has the shape (8, 324), but box_deltas needs (8, 12)" in str(caught.value)
    assert "mrcnn_mask/bias has the shape (81,), but mask_logits needs (3,)" in str(caught.value)
    assert all(weight.value is None for weight in model.weights)


def test_skipped_layers_stay_as_drawn():
    model, _ = thin(2)
    skip = ("box_classes", "box_deltas", "mask_logits")
    report = assign_matterport(model, thin(80)[1], skip=skip)
    assert sorted(report.reinitialized) == sorted(skip) and report.complete and report.unused == []
    assert {weight.path.split("/")[0] for weight in model.weights if weight.value is None} == set(skip)
    assert "mrcnn_bbox_fc/kernel (box_deltas stays as drawn)" in report.left_out and len(report.left_out) == 6
    with pytest.raises(WeightsError, match="the model has no layer called box_clases"):
        assign_matterport(model, thin(2)[1], skip=["box_clases"])


def test_a_missing_tensor_leaves_its_layer_and_is_told():
    model, tensors = thin(2)
    del tensors["mrcnn_class_bn2/beta"], tensors["rpn_bbox_pred/bias"]
    model.weights.append(Weight("mask_conv2/norm/gamma", (5,)))
    report = assign_matterport(model, {**tensors, "anchors/Variable": np.zeros(3), "more/kernel": np.zeros(2)})
    assert sorted(report.missing) == [
        "mrcnn_class_bn2/beta (for box_fc2)",
        "no tensor (for mask_conv2/norm/gamma)",
        "rpn_bbox_pred/bias (for rpn/deltas)",
    ]
    assert report.left == ["box_fc2", "rpn", "mask_conv2"] and not report.complete  # the whole of the RPN
    left = {weight.path for weight in model.weights if weight.value is None}
    assert {path.split("/")[0] for path in left} == {"box_fc2", "rpn", "mask_conv2"} and len(left) == 9
    assert "anchors/Variable" in report.left_out
    assert "more/kernel" in report.unused and "mrcnn_class_bn2/gamma" in report.unused


def test_tensors_of_something_else():
    model, _ = thin(2)
    with pytest.raises(WeightsError, match="no tensors of Matterport's Mask_RCNN: only 0 of the 20 weights"):
        assign_matterport(model, {"roi_heads.box_head.fc6.weight": np.zeros(3)})
    with pytest.raises(WeightsError, match="is there twice, the second time as rpn_model/rpn_class_raw/bias:0"):
        assign_matterport(model, {"rpn_class_raw/bias": 0, "rpn_model/rpn_class_raw/bias:0": 0})


def test_depth_and_number_of_classes_are_read_from_the_tensors(tensors):
    assert guess_depth(tensors) == "resnet50" and count_classes(tensors) == CLASSES
    deeper = theirs.shapes(80, ((2, 3), (3, 4), (4, 23), (5, 3)))
    names = [f"{layer}/bias" for layer in deeper]
    assert "res4w_branch2c/bias" in names and guess_depth(names) == "resnet101"
    with pytest.raises(WeightsError, match="has 1 blocks; ResNet-50 has 6 there and ResNet-101 23"):
        guess_depth(["res4a_branch2a/kernel"])
    with pytest.raises(WeightsError, match="none of mrcnn_class_logits, mrcnn_bbox_fc, mrcnn_mask"):
        count_classes({"conv1/bias": np.zeros(3)})
    with pytest.raises(WeightsError, match="different numbers of classes: mrcnn_class_logits 2, mrcnn_mask 3"):
        count_classes({"mrcnn_class_logits/bias": np.zeros(3), "mrcnn_mask/bias": np.zeros(4)})


def test_another_depth():
    model, tensors = thin(2, backbone__name="resnet50")
    blocks = {f"res4{letter}_branch2a/kernel": np.zeros(1) for letter in "abcdefghijklmnopqrstuvw"}
    with pytest.raises(WeightsError, match="are of a resnet101, but the model's backbone.name is resnet50"):
        assign_matterport(model, {**tensors, **blocks})


def test_conventions_are_compared():
    model, tensors = thin(2)
    assert assign_matterport(model, tensors).warnings == []
    model.config = Config(num_classes=2)
    warnings = assign_matterport(model, tensors).warnings
    expected = {"input.channel_order", "input.mean", "backbone.norm_epsilon", "backbone.pool_padding"}
    expected |= {"anchors.ratios", "anchors.shrink", "roi.layer", "roi.canonical_size"}
    assert {warning.split(" ")[0] for warning in warnings} == expected


# === Files ===

SOME = (
    "conv1",
    "bn_conv1",
    "res2a_branch2b",
    "bn2a_branch2b",
    "fpn_c5p5",
    "rpn_class_raw",
    "mrcnn_class_bn1",
    "mrcnn_mask",
)


@pytest.mark.parametrize("layout", [{}, {"group": "model_weights"}, {"suffix": "_1"}])
def test_files_in_the_layout_of_keras_2(layout, tensors, tmp_path):
    some = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] in SOME and tensor.size < 1e5}
    path = theirs.write_h5(tmp_path / "mask_rcnn.h5", some, **layout)
    with h5py.File(path, "a") as file:
        file["optimizer_weights/training/SGD/conv1/kernel/momentum:0"] = np.zeros(1) if "group" in layout else 0
        if "group" not in layout:
            del file["optimizer_weights"]
    found = read_matterport(path)
    assert sorted(found) == sorted(some)
    assert all((found[name] == tensor).all() for name, tensor in some.items())


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("mrcnn_class_conv1/mrcnn_class_conv1/kernel:0", "mrcnn_class_conv1/kernel"),
        ("rpn_model/rpn_bbox_pred/bias:0", "rpn_bbox_pred/bias"),
        ("rpn_model/rpn_bbox_pred_2/bias:0", "rpn_bbox_pred/bias"),
        ("mask_rcnn/mrcnn_mask_bn4/batch_normalization_3/moving_variance:0", "mrcnn_mask_bn4/moving_variance"),
        ("res4w_branch2c/res4w_branch2c_1/kernel:0", "res4w_branch2c/kernel"),
        ("anchors/anchors/Variable:0", "anchors/Variable"),
        ("bn_conv1/gamma", "bn_conv1/gamma"),
        ("predictions/predictions/kernel:0", "predictions/kernel"),
    ],
)
def test_names(name, plain):
    assert plain_name(name) == plain


def test_unusable_files(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_matterport(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("no hdf5")
    with pytest.raises(WeightsError, match="cannot be read .* cut short, or no .h5 file"):
        read_matterport(tmp_path / "text.h5")
    theirs.write_h5(tmp_path / "other.h5", {"predictions/kernel": np.zeros(3)})
    with pytest.raises(WeightsError, match="none of the 1 tensors in it belongs to Matterport's Mask_RCNN"):
        read_matterport(tmp_path / "other.h5")
    path = theirs.write_h5(tmp_path / "twice.h5", {"conv1/kernel": np.zeros(3)})
    with h5py.File(path, "a") as file:
        file["conv1/conv1_1/kernel:0"] = np.zeros(3)
    with pytest.raises(WeightsError, match="has conv1/kernel twice, the second time as conv1/conv1"):
        read_matterport(path)
