import keras

from mrcnn_tf import untrained


def model():
    inputs = keras.Input((2,))
    x = inputs
    for number in range(20):
        x = keras.layers.Dense(1, name=f"layer{number}")(x)
    return keras.Model(inputs, x)


def test_marks_keep_the_models_order_and_are_cleared():
    one = model()
    untrained.mark(one, {"layer3", "layer1", "unknown"})
    assert one.anew_layers == ("layer1", "layer3")
    untrained.clear(one)
    assert one.anew_layers == ()


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
