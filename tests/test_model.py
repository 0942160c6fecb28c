"""The whole model: both graphs, losses, logs, saving, odd batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf.model import MaskRCNN, loss_names
from mrcnn_tf.optimizer import SGD
from mrcnn_tf.presets import preset
from tests.support.tiny import calm, random_batch, tiny_config

LOSSES = loss_names(tiny_config())
LOGS = ("loss", *LOSSES, "rpn_recall", "positive_rois")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = MaskRCNN(tiny_config())
    calm(model)
    model.compile()
    return model


def losses_of(model, batch):
    return {name: float(value) for name, value in model.test_step(batch).items()}


def empty(batch):
    return {**batch, "classes": tf.zeros_like(batch["classes"])}


def test_published_number_of_weights():
    """44,401,393 are torchvision's Mask R-CNN R50-FPN with 91 classes, its frozen norms not counted.

    It also predicts a box and a mask for the background, which nothing ever uses.
    """
    model = MaskRCNN(preset("mask_rcnn_r50_fpn", num_classes=90))
    norms = ("gamma", "beta", "moving_mean", "moving_variance")
    count = sum(int(np.prod(weight.shape)) for weight in model.weights if weight.name not in norms)
    background = 4 * (1024 + 1) + (256 + 1)
    assert count == 44_401_393 - background


def test_outputs(model):
    batch = random_batch(2)
    outputs = model.predict_step(batch)
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "boxes": (2, 8, 4),
        "classes": (2, 8),
        "scores": (2, 8),
        "masks": (2, 8, 28, 28),
    }
    boxes, scores = outputs["boxes"].numpy(), outputs["scores"].numpy()
    assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (np.diff(scores, axis=1) <= 0).all() and (scores >= 0).all() and (scores <= 1).all()
    assert set(np.unique(outputs["classes"])) <= {0, 1, 2, 3}
    masks = outputs["masks"].numpy()
    assert (masks >= 0).all() and (masks <= 1).all()


def test_both_graphs_hold_the_same_weights(model):
    inference = {id(weight) for weight in model.weights}
    assert {id(weight) for weight in model.training_graph.weights} == inference
    assert len(inference) == len(model.weights)


def test_the_loss_is_the_sum_of_the_five(model):
    values = losses_of(model, random_batch(2))
    assert list(values) == list(LOGS)
    assert values["loss"] == pytest.approx(sum(values[name] for name in LOSSES), rel=1e-5)
    assert all(values[name] > 0 for name in LOSSES)
    # Untrained: near-even odds for objectness, four classes and mask pixels.
    assert values["mask_loss"] == pytest.approx(np.log(2), rel=0.05)
    assert values["rpn_objectness_loss"] == pytest.approx(np.log(2), rel=0.3)
    assert values["box_class_loss"] == pytest.approx(np.log(4), rel=0.3)
    assert 0 < values["positive_rois"] <= 0.25


def test_the_same_batch_and_step_give_the_same_loss(model):
    batch = random_batch(2)
    assert losses_of(model, batch) == losses_of(model, batch)


def test_a_batch_is_the_average_of_its_images_whatever_their_order(model):
    batch = random_batch(2)
    turned = {key: value[::-1] for key, value in batch.items()}
    first, second = losses_of(model, batch), losses_of(model, turned)
    for name in LOGS:
        assert first[name] == pytest.approx(second[name], rel=1e-4), name


def test_images_without_objects_train(model):
    values = losses_of(model, empty(random_batch(2)))
    assert values["rpn_box_loss"] == values["box_delta_loss"] == values["mask_loss"] == 0.0
    assert values["rpn_objectness_loss"] > 0 and values["box_class_loss"] > 0
    with tf.GradientTape() as tape:
        outputs = model.training_graph(model._training_inputs(empty(random_batch(1)), 0), training=True)
        total = tf.reduce_sum(outputs["class_logits"]) + 0.0 * tf.reduce_sum(outputs["mask_logits"])
    gradients = tape.gradient(total, model.trainable_variables)
    assert all(np.isfinite(g).all() for g in gradients if g is not None)


def test_a_crowd_is_no_object(model):
    batch = random_batch(1)
    crowded = {**batch, "crowd": tf.ones_like(batch["crowd"])}
    values = losses_of(model, crowded)
    assert values["mask_loss"] == values["box_delta_loss"] == values["rpn_recall"] == 0.0


def test_padding_objects_change_nothing(model):
    batch = random_batch(2)
    pad = {"boxes": [[0, 0], [0, 3], [0, 0]], "classes": [[0, 0], [0, 3]], "crowd": [[0, 0], [0, 3]]}
    pad["masks"] = [[0, 0], [0, 3], [0, 0], [0, 0]]
    padded = {key: tf.pad(value, pad[key]) if key in pad else value for key, value in batch.items()}
    first, second = losses_of(model, batch), losses_of(model, padded)
    for name in LOGS:
        assert first[name] == pytest.approx(second[name], rel=1e-5), name


def test_an_object_of_one_pixel(model):
    batch = random_batch(1, objects=1)
    small = {**batch, "boxes": tf.constant([[[10.0, 10.0, 11.0, 11.0]]])}
    values = losses_of(model, small)
    assert all(np.isfinite(value) for value in values.values()) and values["rpn_box_loss"] > 0


def test_any_image_size_is_padded_to_the_divisor(model):
    outputs = model.predict_step(random_batch(1, height=50, width=75))
    assert (outputs["boxes"].numpy() <= [50, 75, 50, 75]).all()


def test_fit_learns_a_batch_by_heart():
    keras.utils.set_random_seed(1)
    model = MaskRCNN(tiny_config(backbone__norm="group"))
    model.compile(SGD(0.02, clip_norm=5.0))
    batch = random_batch(4, objects=2)
    data = tf.data.Dataset.from_tensors(batch).repeat()
    history = model.fit(data, steps_per_epoch=15, epochs=2, verbose=0).history
    assert set(LOGS) <= set(history)
    assert history["loss"][1] < 0.8 * history["loss"][0]
    validation = model.evaluate(data.take(1), verbose=0, return_dict=True)
    assert set(validation) == set(LOGS) and np.isfinite(list(validation.values())).all()


@pytest.mark.parametrize("norm", ["batch", "sync_batch", "group"])
def test_every_norm_takes_a_step(norm):
    model = MaskRCNN(tiny_config(backbone__norm=norm))
    model.compile(SGD(0.001))
    before = model.get_layer("res3_block1_conv1").kernel.numpy()
    logs = tf.function(model.train_step)(random_batch(2))
    assert np.isfinite(float(logs["loss"]))
    assert not np.allclose(before, model.get_layer("res3_block1_conv1").kernel.numpy())


def test_keras_predict_takes_the_pipelines_batches(model):
    data = tf.data.Dataset.from_tensors(random_batch(2)).repeat(2)
    outputs = model.predict(data, verbose=0)
    assert outputs["boxes"].shape == (4, 8, 4)
    np.testing.assert_allclose(outputs["scores"][:2], outputs["scores"][2:])


def test_predict_images_of_several_sizes_and_kinds(model):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, size, "uint8") for size in ((80, 60, 3), (50, 100, 3), (64, 64))]
    results = model.predict_images(images, batch_size=2)
    assert [result.image_size for result in results] == [(80, 60), (50, 100), (64, 64)]
    for result in results:
        height, width = result.image_size
        assert (result.boxes >= 0).all() and (result.boxes <= [height, width, height, width]).all()
        assert result.masks.shape == (len(result), height, width)
    assert all((result.scores >= 0.4).all() for result in model.predict_images(images, score_threshold=0.4))
    assert model.predict_images([]) == []
    with pytest.raises(TypeError, match=r"array \[50, 70, 3\]; for one image give \[image\]"):
        model.predict_images(np.zeros((50, 70, 3), np.uint8))


def test_a_saved_model_answers_the_same(model, tmp_path):
    batch = random_batch(2)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    for key, value in model.predict_step(batch).items():
        np.testing.assert_array_equal(value, again.predict_step(batch)[key])
    assert again.config == model.config
    assert again.optimizer.get_config() == model.optimizer.get_config()


def test_weights_stand_once_in_the_file(model, tmp_path):
    path = tmp_path / "model.weights.h5"
    keras.Model.save_weights(model, path)
    values = sum(int(np.prod(weight.shape)) for weight in model.weights)
    momenta = sum(int(np.prod(weight.shape)) for weight in model.optimizer.variables)
    assert 4 * (values + momenta) <= path.stat().st_size < 1.2 * 4 * (values + momenta) + 2**20


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (5, 90)])
def test_other_channels_and_class_counts(channels, classes):
    means = (100.0,) * channels
    config = tiny_config(num_classes=classes, class_names=(), input={"channels": channels, "mean": means, "std": means})
    model = MaskRCNN(config)
    calm(model)
    image = np.random.default_rng(0).uniform(0, 255, (70, 64, channels)).astype("float32")
    (result,) = model.predict_images([image])
    assert result.masks.shape[1:] == (70, 64) and set(result.classes) <= set(range(1, classes + 1))
