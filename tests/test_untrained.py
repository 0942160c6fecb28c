"""Layers that were started anew are remembered, told when they predict, and forgotten when they are trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mrcnn_tf import MaskRCNN, untrained
from mrcnn_tf.weights import files
from tests.support.tiny import calm, random_batch, tiny_config


def model():
    inputs = keras.Input((2,))
    x = inputs
    for number in range(20):
        x = keras.layers.Dense(1, name=f"layer{number}")(x)
    return keras.Model(inputs, x)


def test_marks_are_sorted_and_cleared():
    one = model()
    untrained.mark(one, ["layer3", "layer1", "unknown"])
    assert one.anew_layers == ("layer1", "layer3")
    untrained.clear(one)
    assert one.anew_layers == ()


def test_loading_changes_the_mark():
    one = model()
    untrained.update(one, ["layer1/kernel", "layer1/bias"], ["layer2", "layer3/norm"])
    assert one.anew_layers == ("layer2", "layer3")
    untrained.update(one, ["layer2/kernel"], [])
    assert one.anew_layers == ("layer3",)


def test_a_warning_comes_once_for_each_mark(caplog):
    one = model()
    untrained.warn_once(one)  # never marked
    untrained.mark(one, [])
    untrained.warn_once(one)
    assert caplog.text == ""
    untrained.mark(one, ["layer1", "layer3"])
    untrained.warn_once(one)
    untrained.warn_once(one)
    assert caplog.text.count("predicting with layer1, layer3, started anew and not trained since") == 1
    untrained.mark(one, ["layer2"])
    untrained.warn_once(one)
    assert "predicting with layer2, started anew" in caplog.text


def test_many_layers_are_counted(caplog):
    one = model()
    assert untrained.listed(untrained.layer_names(one), one) == "all layers"
    text = untrained.listed(untrained.layer_names(one)[:-1], one)
    assert text.endswith("layer10, layer11 and 7 more layers")


# === The whole model ===

WARNING = "predicting with box_classes, mask_logits, started anew"


def batches():
    return tf.data.Dataset.from_tensors(random_batch(1))


@pytest.fixture(scope="module")
def whole():
    model = MaskRCNN(tiny_config())
    calm(model)
    return model


@pytest.fixture
def marked(whole):
    untrained.mark(whole, ["mask_logits", "box_classes"])
    return whole


def test_predicting_warns_once(marked, caplog):
    image = np.zeros((64, 64, 3), np.uint8)
    marked.predict_images([image])
    assert caplog.text.count(WARNING) == 1
    marked.predict_images([image])
    marked.predict(batches(), verbose=0)
    assert caplog.text.count(WARNING) == 1
    untrained.mark(marked, ["mask_logits", "box_classes"])
    marked.predict(batches(), verbose=0)
    assert caplog.text.count(WARNING) == 2


def test_training_clears_the_mark(marked, caplog):
    marked.compile(global_batch=1)
    marked.fit(batches(), verbose=0)
    assert marked.anew_layers == ()
    untrained.mark(marked, ["mask_logits"])  # the function that trains is traced already
    marked.fit(batches(), verbose=0)
    assert marked.anew_layers == ()
    marked.predict(batches(), verbose=0)
    assert caplog.text == ""


def test_saving_keeps_the_mark(marked, tmp_path):
    again = MaskRCNN.from_config(marked.get_config())
    assert again.anew_layers == ("box_classes", "mask_logits")
    marked.save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").anew_layers == ("box_classes", "mask_logits")
    untrained.clear(again)
    files.load_weights(again, tmp_path / "m.keras")
    assert again.anew_layers == ("box_classes", "mask_logits")
    untrained.clear(again)
    marked.save_weights(tmp_path / "m.weights.h5")
    again.load_weights(tmp_path / "m.weights.h5")
    assert again.anew_layers == ("box_classes", "mask_logits")
    assert "anew_layers" not in MaskRCNN(marked.config).get_config()


def test_keras_saves_and_loads_weights_in_the_own_format(whole, tmp_path):
    path = tmp_path / "m.weights.h5"
    callback = keras.callbacks.ModelCheckpoint(str(path), save_weights_only=True)
    callback.set_model(whole)
    callback.on_epoch_end(0, {})
    assert files.read_header(path).config == whole.config
    with pytest.raises(FileExistsError):
        whole.save_weights(path, overwrite=False)
    untrained.mark(whole, ["box_classes"])
    before = whole.get_weights()
    whole.get_layer("box_classes").bias.assign(np.ones(4))
    keras.Model.save_weights(whole, tmp_path / "keras.weights.h5")
    untrained.clear(whole)
    whole.load_weights(path)
    for old, new in zip(before, whole.get_weights()):
        np.testing.assert_array_equal(old, new)
    untrained.mark(whole, ["box_classes"])
    whole.load_weights(tmp_path / "keras.weights.h5")
    np.testing.assert_array_equal(whole.get_layer("box_classes").bias, np.ones(4))
    assert whole.anew_layers == ()
    with pytest.raises(ValueError, match="mrcnn_tf.load takes weights of other classes"):
        whole.load_weights(path, skip_mismatch=True)
