"""Every form of the network, small: it learns, predicts and comes back from its file. The presets themselves: long."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mrcnn_tf
from mrcnn_tf.presets import checkpoints, names, preset
from tests.support.tiny import calm, random_batch, tiny_config

ONE_MAP = {"anchors": {"sizes": ((8.0, 16.0, 32.0),)}}
C4_HEADS = {"box_head": {"pool": 7, "fc": ()}, "mask_head": {"pool": 7, "convs": (), "deconv": 16}}
THIN_KEYPOINTS = {"keypoint_head": {"convs": (16,), "pool": 7}}
FORMS = {
    "c4": {"backbone": {"features": "c4"}, **C4_HEADS, **ONE_MAP},
    "c4 with stride 2": {
        "backbone": {"features": "c4"},
        "box_head": {"pool": 14, "res5_stride": 2, "fc": ()},
        "mask_head": {"pool": 14, "convs": (), "deconv": 16},
        **ONE_MAP,
    },
    "c5": {"backbone": {"features": "c5"}, **ONE_MAP},
    "dilated c5": {"backbone": {"features": "dc5", "name": "resnet50"}, **ONE_MAP},
    "resnext": {"backbone": {"name": "resnext50_32x4d", "stride_in": "3x3"}},
    "boxes alone": {"branches": ()},
    "keypoints": {"branches": ("keypoints",), **THIN_KEYPOINTS},
    "keypoints and masks": {"branches": ("mask", "keypoints"), **THIN_KEYPOINTS},
    "softmax masks": {"mask_head": {"activation": "softmax"}},
    "one mask for all classes": {"mask_head": {"class_agnostic": True}},
    "perceptron masks": {"mask_head": {"fc": (32,)}},
    "roipool": {"roi": {"layer": "pool"}},
    "roiwarp, max": {"roi": {"layer": "warp", "reduce": "max"}},
    "norms and convolutions in the heads": {
        "fpn": {"norm": "group", "channels": 32},
        "rpn": {"convs": 2},
        "box_head": {"convs": (32,), "norm": "batch"},
        "mask_head": {"convs": (32,), "norm": "group"},
    },
}


def batch_for(config, images=2):
    batch = random_batch(images)
    batch["classes"] = (batch["classes"] - 1) % config.num_classes + 1
    if "keypoints" in config.branches:
        boxes = batch["boxes"][:, :, None]
        shares = tf.random.stateless_uniform([images, 4, len(config.keypoint_head.names), 2], [1, 2])
        places = boxes[..., :2] + shares * (boxes[..., 2:] - boxes[..., :2])
        batch["keypoints"] = tf.concat([places, tf.fill([*places.shape[:3], 1], 2.0)], axis=-1)
    if "mask" not in config.branches:
        del batch["masks"]
    return batch


def learning_model(config):
    """A model of random weights that a step of this optimiser changes a little, whatever the gradients are."""
    keras.utils.set_random_seed(0)
    model = mrcnn_tf.MaskRCNN(config)
    calm(model)
    model.compile(keras.optimizers.SGD(0.05, global_clipnorm=1.0))
    return model


def check_outputs(config, found):
    assert {"masks": "mask" in config.branches, "keypoints": "keypoints" in config.branches} == {
        name: name in found for name in ("masks", "keypoints")
    }
    assert all(np.isfinite(value).all() for value in found.values())


def check_equal(found, again):
    for name, value in found.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns_and_returns(form, tmp_path):
    config = tiny_config(**FORMS[form])
    model, batch = learning_model(config), batch_for(config)
    before = {name: float(value) for name, value in model.test_step(batch).items()}
    assert set(before) == set(model.log_names) and np.isfinite(list(before.values())).all()
    for _ in range(2):
        model.train_step(batch)
    assert float(model.test_step(batch)["loss"]) < before["loss"]
    found = model.predict_step(batch)
    check_outputs(config, found)
    mrcnn_tf.weights.save_weights(model, tmp_path / "model.weights.h5")
    check_equal(found, mrcnn_tf.load(tmp_path / "model.weights.h5").predict_step(batch))


# Of torchvision's documentation. It counts what is trained, and predicts a box and a mask for the background too.
PUBLISHED = {
    "torchvision/maskrcnn_resnet50_fpn": 44_401_393,
    "torchvision/maskrcnn_resnet50_fpn_v2": 46_359_409,
    "torchvision/keypointrcnn_resnet50_fpn": 59_137_258,
    "torchvision/fasterrcnn_resnet50_fpn": 41_755_286,
    "torchvision/fasterrcnn_resnet50_fpn_v2": 43_712_278,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_number_of_weights(name):
    config = preset(name)
    model = mrcnn_tf.MaskRCNN(config)
    left = {"moving_mean", "moving_variance"}
    left |= {"gamma", "beta"} if config.backbone.norm == "frozen" else set()
    count = sum(int(np.prod(weight.shape)) for weight in model.weights if weight.name not in left)
    background = 4 * (1024 + 1) + ((256 + 1) if "mask" in config.branches else 0)
    assert count + background == PUBLISHED[name]


def small(name):
    """The preset on images of 64 pixels with few regions; its layers as they are."""
    config = preset(name)
    levels = len(config.anchors.sizes)
    sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)) if levels == 5 else ((8.0, 16.0, 32.0, 64.0, 128.0),)
    return config.replace(
        input={"shorter_edge": 64, "longer_edge": 96, "size_divisor": 32},
        anchors={"sizes": sizes},
        rpn={"post_nms_train": 40, "post_nms_test": 30, "anchors_per_image": 32},
        roi={"rois_per_image": 16},
        detections={"max_per_image": 8, "score_threshold": 0.0},
        training={"warmup_steps": 0},
    )


def settled_loss(model, data):
    """What the model has to learn of `data`: the sum of the losses but that of the boxes of regions.

    What these boxes have to learn is decided by the proposals, and the same two steps change them: at first hardly any
    overlaps an object. (On proposals that stay it has to fall: `test_heads_of_every_preset_learn_on_fixed_proposals`.)
    """
    settle_norms(model, data)
    logs = model.evaluate(data, verbose=0, return_dict=True)
    return logs["loss"] - logs["box_delta_loss"]


def settle_norms(model, data):
    """Gives norms that learn their statistics those of `data`, by a step of length zero.

    Training lowers the loss with a batch's own statistics; with stored ones, which follow slowly, it need not fall.
    """
    for layer in model.layers:
        if isinstance(getattr(layer, "norm", None), keras.layers.BatchNormalization):
            layer.norm.momentum = 0.0
    rate = float(model.optimizer.learning_rate.numpy())
    model.optimizer.learning_rate.assign(0.0)
    model.fit(data, verbose=0)
    model.optimizer.learning_rate.assign(rate)


@pytest.mark.long
@pytest.mark.parametrize("name", names() + checkpoints())
def test_every_preset_learns_returns_and_is_exported(name, tmp_path):
    config = small(name)
    model, batch = learning_model(config), batch_for(config)
    data = tf.data.Dataset.from_tensors(batch)
    before = settled_loss(model, data)
    model.fit(data.repeat(2), steps_per_epoch=2, epochs=1, verbose=0)
    assert settled_loss(model, data) < before
    found = model.predict(data, verbose=0)
    check_outputs(config, found)
    model.save(tmp_path / "model.keras")
    check_equal(found, keras.saving.load_model(tmp_path / "model.keras").predict(data, verbose=0))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (expected,) = model.predict_images([image])
    served = tf.saved_model.load(mrcnn_tf.export(model, tmp_path / "served"))
    answers = served.signatures["serving_default"](images=tf.constant(image[None]))
    real = answers["classes"][0].numpy() > 0
    np.testing.assert_array_equal(answers["classes"][0].numpy()[real], expected.classes)
    np.testing.assert_allclose(answers["boxes"][0].numpy()[real], expected.boxes, atol=1e-2)
    np.testing.assert_allclose(answers["scores"][0].numpy()[real], expected.scores, atol=1e-4)


def near_objects(config, batch):
    """[B, P, 4] proposals: three of each object, its edges moved by up to an eighth of its extent, and empty ones."""
    boxes = np.tile(batch["boxes"].numpy(), (1, 3, 1))
    moves = np.random.default_rng(0).uniform(-1 / 8, 1 / 8, boxes.shape)
    boxes = boxes + moves * np.tile(boxes[..., 2:] - boxes[..., :2], 2)
    return tf.constant(np.pad(boxes, [[0, 0], [0, config.rpn.post_nms_train - boxes.shape[1]], [0, 0]]), tf.float32)


@pytest.mark.long
@pytest.mark.parametrize("name", names() + checkpoints())
def test_heads_of_every_preset_learn_on_fixed_proposals(name):
    """With none of their losses left out: before and after the steps, all of them are of the same regions.

    These are 12 proposals and 4 objects in an image, as many as 64 RoIs may have positives.
    """
    config = small(name).replace(training={"parts": ("heads",)}, roi={"rois_per_image": 64})
    model, batch = learning_model(config), batch_for(config)
    model.optimizer.learning_rate.assign(0.005)  # all regions are objects: a longer step overshoots their boxes
    batch["proposals"] = near_objects(config, batch)
    data = tf.data.Dataset.from_tensors(batch)

    def losses():
        settle_norms(model, data)
        return model.evaluate(data, verbose=0, return_dict=True)

    before = losses()
    assert before["box_delta_loss"] > 0 and before["positive_rois"] > 0
    model.fit(data.repeat(2), steps_per_epoch=2, epochs=1, verbose=0)
    assert losses()["loss"] < before["loss"]
