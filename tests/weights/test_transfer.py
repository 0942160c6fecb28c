"""Weights from one model to another of other classes, keypoints or branches."""

import keras
import numpy as np
import pytest

from mrcnn_tf import untrained
from mrcnn_tf.presets import preset
from mrcnn_tf.weights import compare
from mrcnn_tf.weights import transfer as transfers
from mrcnn_tf.weights.report import WeightsError
from mrcnn_tf.weights.transfer import class_rows, transfer


def built(seed, names=(), classes=None, keypoints=0, fc=3, branches=("mask",), **changes):
    """The layers that matter here, with random weights and the configuration of a whole model."""
    keras.utils.set_random_seed(seed)
    classes = classes or len(names)
    inputs, maps = keras.Input((2,)), keras.Input((2, 2, 5))
    x = keras.layers.Dense(fc, name="box_fc1")(inputs)
    outputs = [
        keras.layers.Dense(classes + 1, name="box_classes")(x),
        keras.layers.Dense(4 * classes, name="box_deltas")(x),
    ]
    if "mask" in branches:
        outputs.append(keras.layers.Conv2D(classes, 1, name="mask_logits")(maps))
    if "keypoints" in branches:
        outputs.append(keras.layers.Conv2D(keypoints, 4, padding="same", name="keypoint_deconv")(maps))
    model = keras.Model([inputs, maps], outputs)
    for weight in model.weights:  # the biases, too
        weight.assign(np.random.normal(size=weight.shape))
    points = {"names": tuple(f"k{place}" for place in range(keypoints or 17)), "skeleton": ()}
    head = {"num_classes": classes, "class_names": tuple(names), "box_head": {"fc": (fc,)}, "keypoint_head": points}
    model.config = preset("shapes", **head).replace(branches=branches, **changes)
    return model


def values(model, layer):
    return [weight.numpy() for weight in model.get_layer(layer).weights]


def assert_equal(first, second, layer):
    for ours, theirs in zip(values(first, layer), values(second, layer), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_same_classes_take_everything(caplog):
    source, target = built(1, "abc"), built(2, "abc")
    assert transfer(source, target) == () and caplog.text == ""
    target = built(2, "xyz")
    assert transfer(source, target) == ()
    assert "the classes are x, y, z, but those of the weights are a, b, c" in caplog.text
    for layer in ("box_fc1", "box_classes", "box_deltas", "mask_logits"):
        assert_equal(source, target, layer)


@pytest.mark.parametrize(("then", "now"), [(3, 1), (1, 3), (80, 90), (90, 80), (3, 1000)])
def test_another_number_of_classes_starts_its_layers_anew(then, now, caplog):
    source, target, drawn = built(1, classes=then), built(2, classes=now), built(2, classes=now)
    anew = ("box_classes", "box_deltas", "mask_logits")
    assert transfer(source, target) == anew == target.anew_layers
    assert_equal(source, target, "box_fc1")
    for layer in anew:
        assert_equal(drawn, target, layer)
    assert len(caplog.records) == 1
    text = f"box_classes, box_deltas, mask_logits start anew (the weights are of {then} classes, the model has {now})"
    assert text in caplog.text


def test_classes_are_carried_over_by_name(caplog):
    source = built(1, ("person", "bicycle", "car"))
    names = ("car", "rider", "person", "my bicycle")
    target, drawn = built(2, names), built(2, names)
    anew = transfer(source, target, {"person": "person", "my bicycle": "bicycle", "car": "car"})
    assert anew == ("box_classes", "box_deltas", "mask_logits")
    place = {0: 2, 2: 0, 3: 1}  # of the target's classes in the source
    for old, new, fresh in zip(*(values(model, "box_classes") for model in (source, target, drawn))):
        np.testing.assert_array_equal(new[..., 0], old[..., 0])  # the background
        np.testing.assert_array_equal(new[..., 2], fresh[..., 2])  # the rider
        for ours, theirs in place.items():
            np.testing.assert_array_equal(new[..., 1 + ours], old[..., 1 + theirs])
    for old, new, fresh in zip(*(values(model, "box_deltas") for model in (source, target, drawn))):
        np.testing.assert_array_equal(new[..., 4:8], fresh[..., 4:8])
        for ours, theirs in place.items():
            np.testing.assert_array_equal(new[..., 4 * ours : 4 * ours + 4], old[..., 4 * theirs : 4 * theirs + 4])
    for old, new, fresh in zip(*(values(model, "mask_logits") for model in (source, target, drawn))):
        np.testing.assert_array_equal(new[..., 1], fresh[..., 1])
        for ours, theirs in place.items():
            np.testing.assert_array_equal(new[..., ours], old[..., theirs])
    assert "of the 4 classes 3 are taken over, rider are new" in caplog.text


def test_all_classes_carried_over_leave_nothing_to_warn_of(caplog):
    source, target = built(1, "abc"), built(2, "ca")
    assert transfer(source, target, {name: name for name in "ca"}) == () and caplog.text == ""
    np.testing.assert_array_equal(values(target, "box_classes")[1], values(source, "box_classes")[1][[0, 3, 1]])


def test_unknown_class_names_are_told_with_the_nearest():
    known = ("person", "traffic light", "bicycle")
    with pytest.raises(WeightsError, match="'Trafic Light' is no class of the weights; did you mean 'traffic light'"):
        class_rows(known, ("a",), {"a": "Trafic Light"})
    with pytest.raises(WeightsError, match="'persons' is no class of the model; did you mean 'person'"):
        class_rows(known, known, {"persons": "person"})
    with pytest.raises(
        WeightsError, match="'zzz' is no class of the weights; there are person, traffic light, bicycle"
    ):
        class_rows(known, ("a",), {"a": "zzz"})
    with pytest.raises(WeightsError, match="the class names of the weights are not known"):
        class_rows((), ("a",), {"a": "a"})
    with pytest.raises(WeightsError, match="the class names of the model .class_names. are not known"):
        class_rows(("a",), (), {"a": "a"})


def test_other_keypoints_start_the_last_layer_anew(caplog):
    both = ("mask", "keypoints")
    source, target = built(1, "a", keypoints=17, branches=both), built(2, "a", keypoints=5, branches=both)
    drawn = built(2, "a", keypoints=5, branches=both)
    assert transfer(source, target) == ("keypoint_deconv",)
    assert_equal(drawn, target, "keypoint_deconv")
    assert_equal(source, target, "mask_logits")
    assert "keypoint_deconv start anew (the weights are of 17 keypoints, the model has 5)" in caplog.text


def test_a_branch_that_the_weights_have_not_starts_anew(caplog):
    source, target = built(1, "ab"), built(2, "ab", keypoints=5, branches=("mask", "keypoints"))
    assert transfer(source, target) == ("keypoint_deconv",)
    assert "the weights have no branch for keypoints" in caplog.text
    caplog.clear()
    assert transfer(built(1, "ab"), built(2, "ab", branches=())) == () and caplog.text == ""


def test_what_was_anew_in_the_source_stays_so():
    source, target = built(1, "ab"), built(2, "ab")
    untrained.mark(source, ["box_fc1"])
    assert transfer(source, target) == ("box_fc1",)


def test_another_network_is_refused_with_the_values_that_differ():
    with pytest.raises(WeightsError) as caught:
        transfer(built(1, "ab"), built(2, "abc", fc=4, backbone__name="resnet34"))
    assert str(caught.value) == (
        "the weights do not fit the model: backbone.name is 'resnet18' there, 'resnet34' here; "
        "box_head.fc is (3,) there, (4,) here"
    )


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        ({"activation": "softmax"}, ((1, 1, 5, 4), (1, 1, 5, 3))),  # the background first
        ({"fc": (6,)}, ((6, 4 * 3), (6, 4 * 2))),  # 2 x 2 pixels, the classes of each
        ({"fc": (6,), "activation": "softmax"}, ((6, 4 * 4), (6, 4 * 3))),
    ],
)
def test_classes_of_the_other_mask_branches(head, shapes):
    then = preset("shapes", class_names=("a", "b", "c"), mask_head=head)
    now = preset("shapes", num_classes=2, class_names=("c", "x"), mask_head=head)
    old, new = (np.random.default_rng(seed).normal(size=shape) for seed, shape in enumerate(shapes))
    outputs = (transfers._outputs("mask_logits", then), transfers._outputs("mask_logits", now))
    value = transfers._with_rows("mask_logits", new, old, outputs, [(0, 2)])
    softmax = int(then.mask_head.activation == "softmax")
    by_class = [array.reshape(*array.shape[:-1], -1, k + softmax) for array, k in ((old, 3), (new, 2), (value, 2))]
    old, new, value = by_class
    np.testing.assert_array_equal(value[..., softmax], old[..., softmax + 2])
    np.testing.assert_array_equal(value[..., softmax + 1], new[..., softmax + 1])
    np.testing.assert_array_equal(value[..., :softmax], old[..., :softmax])
    assert value[..., softmax].size == (4 * 6 if "fc" in head else 5)


def test_one_mask_for_all_classes_does_not_depend_on_them():
    config = preset("shapes", mask_head__class_agnostic=True)
    assert transfers.class_layers(config) == ("box_classes", "box_deltas")
    assert [name for name, *_ in compare.shapes(preset("shapes"), config)] == ["mask_head.class_agnostic"]
    with pytest.raises(WeightsError, match="mask_head.fc is .. there, .32,. here"):
        transfer(built(1, "ab"), built(2, "ab", mask_head__fc=(32,)))
