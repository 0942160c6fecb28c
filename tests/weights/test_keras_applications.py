import logging
import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest

from mrcnn_tf.config import BackboneConfig, Config, InputConfig
from mrcnn_tf.networks.resnet import resnet
from mrcnn_tf.weights.keras_applications import load_backbone, read_tensors
from mrcnn_tf.weights.report import WeightsError

OLD_LETTERS = {1: "2a", 2: "2b", 3: "2c", 0: "1"}


def backbone(name="resnet50", channels=3, **options):
    images = keras.Input((None, None, channels))
    return keras.Model(images, resnet(images, BackboneConfig(name=name, **options)), name="backbone")


@pytest.fixture(scope="module")
def source():
    """Keras' own ResNet-50 with random weights, statistics and biases, such that none is at its default."""
    keras.utils.set_random_seed(3)
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    random = np.random.default_rng(3)
    for variable in network.variables:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return network


@pytest.fixture(scope="module")
def tensors(source):
    return {variable.path: variable.numpy() for variable in source.variables}


@pytest.fixture(scope="module")
def fresh():
    """A backbone as it was drawn; building one for every test would take most of the time."""
    model = backbone()
    return model, model.get_weights()


@pytest.fixture
def model(fresh):
    model, drawn = fresh
    model.set_weights(drawn)
    model.config = None
    return model


@pytest.fixture
def archive(tmp_path, tensors):
    """Writes the tensors, changed or without some, as .npz."""

    def write(drop=(), **changes):
        kept = {name: value for name, value in {**tensors, **changes}.items() if not name.startswith(tuple(drop))}
        np.savez(tmp_path / "weights.npz", **kept)
        return tmp_path / "weights.npz"

    return write


def write_h5(path, tensors, rename=lambda layer: layer):
    """The layout of the files that keras.applications caches: layer/layer/kernel:0."""
    with h5py.File(path, "w") as file:
        for name, value in tensors.items():
            layer, tensor = name.split("/")
            file[f"{rename(layer)}/{rename(layer)}/{tensor}:0"] = value
    return path


def old_layer(layer):
    """`conv2_block1_1_conv` as the first Keras releases called it: `res2a_branch2a`."""
    if layer.startswith("conv1"):
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[layer]
    stage, block, part, kind = layer.replace("conv", "", 1).replace("block", "").split("_")
    return f"{'res' if kind == 'conv' else 'bn'}{stage}{chr(96 + int(block))}_branch{OLD_LETTERS[int(part)]}"


@pytest.mark.parametrize("layout", ["npz", "cached h5", "old h5", "keras 3 weights", "whole model h5"])
def test_features_equal_those_of_keras_applications(model, source, tensors, archive, tmp_path, layout):
    path = tmp_path / ("file.weights.h5" if layout == "keras 3 weights" else "file.h5")
    if layout == "npz":
        path = archive()
    elif layout == "cached h5":
        write_h5(path, tensors)
    elif layout == "old h5":
        write_h5(path, tensors, old_layer)
    elif layout == "keras 3 weights":
        source.save_weights(path)
    else:
        source.save(path)
    report = load_backbone(model, path)
    assert report.complete and not report.unused and not report.reinitialized
    assert len(report.loaded) == 53 * 5  # 53 convolutions: a kernel and the four tensors of a norm each
    image = np.random.default_rng(0).uniform(-100, 100, (1, 64, 64, 3)).astype(np.float32)
    expected = keras.Model(source.input, source.get_layer("conv4_block6_out").output)(image)
    np.testing.assert_allclose(model(image)[2], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(model(image)[3], source(image), rtol=1e-3, atol=1e-4 * np.abs(source(image)).max())


def test_reinitialized_stage_stays_as_drawn_except_for_the_last_norms(model, archive, tensors):
    drawn = {name: model.get_layer(name).kernel.numpy() for name in ("res5_block1_conv1", "res5_block3_conv2")}
    report = load_backbone(model, archive(), reinitialize=("res5",), last_norm_gamma=0.2)
    for name, kernel in drawn.items():
        np.testing.assert_array_equal(model.get_layer(name).kernel, kernel)
    for block in (1, 2, 3):
        np.testing.assert_allclose(model.get_layer(f"res5_block{block}_conv3").norm.gamma, np.full(2048, 0.2))
        np.testing.assert_array_equal(model.get_layer(f"res5_block{block}_conv2").norm.gamma, np.ones(512))
    np.testing.assert_array_equal(model.get_layer("res5_block1_shortcut").norm.gamma, np.ones(2048))
    np.testing.assert_array_equal(model.get_layer("res4_block6_conv3").kernel, tensors["conv4_block6_3_conv/kernel"])
    assert len(report.reinitialized) == 10 and report.complete
    assert all(name.startswith("conv5") for name in report.unused)


def test_gamma_is_left_alone_without_a_value(model, archive):
    load_backbone(model, archive(), reinitialize="res5", last_norm_gamma=None)
    np.testing.assert_array_equal(model.get_layer("res5_block1_conv3").norm.gamma, np.ones(2048))


def test_layer_without_its_kernel_is_left_whole_and_listed_loudly(model, archive, caplog):
    with caplog.at_level(logging.WARNING, logger="mrcnn_tf"):
        report = load_backbone(model, archive(drop=["conv5_block1_2_conv/kernel"]))
    assert report.missing == ["conv5_block1_2_conv/kernel (for res5_block1_conv2)"]
    assert report.left == ["res5_block1_conv2"]
    assert "conv5_block1_2_bn/gamma" in report.unused
    # A norm's statistics belong to the convolution before it: without that they stay at their start.
    np.testing.assert_array_equal(model.get_layer("res5_block1_conv2").norm.moving_mean, np.zeros(512))
    assert "NOT FOUND IN THE FILE: 1 tensors" in caplog.text
    assert "conv5_block1_2_conv/kernel (for res5_block1_conv2)" in caplog.text


def test_missing_tensors_may_be_forbidden(model, archive):
    with pytest.raises(WeightsError, match="conv3_block1_1_bn/gamma"):
        load_backbone(model, archive(drop=["conv3_block1_1_bn/gamma"]), allow_missing=False)


def test_bias_is_optional(model, archive, tensors):
    report = load_backbone(model, archive(drop=["conv1_conv/bias"]))
    assert report.complete
    np.testing.assert_array_equal(model.get_layer("stem").norm.moving_mean, tensors["conv1_bn/moving_mean"])


def test_other_shape_names_tensor_and_shapes(model, archive):
    path = archive(**{"conv2_block1_2_conv/kernel": np.zeros((3, 3, 64, 32), np.float32)})
    with pytest.raises(
        WeightsError, match=r"conv2_block1_2_conv/kernel has the shape \(3, 3, 64, 32\).*\(3, 3, 64, 64\)"
    ):
        load_backbone(model, path)


def test_other_number_of_channels_says_what_to_do(archive):
    with pytest.raises(WeightsError, match="images of 4 channels, the weights of 3; reinitialize 'stem'"):
        load_backbone(backbone(channels=4), archive())
    assert load_backbone(backbone(channels=4), archive(), reinitialize=["stem"]).reinitialized == ["stem"]


def test_group_norm_takes_the_kernels_alone_and_says_so(archive, tensors):
    model = backbone(norm="group")
    report = load_backbone(model, archive())
    assert len(report.loaded) == 53 and not report.complete
    assert "WARNING: the model has group norms" in report.summary()
    np.testing.assert_array_equal(model.get_layer("stem").kernel, tensors["conv1_conv/kernel"])
    np.testing.assert_array_equal(model.get_layer("stem").norm.gamma, np.ones(64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv4_block7_1_conv/kernel": np.zeros(1)}, "deeper network: it has 7 blocks in stage 4"),
        ({"conv2_block1_preact_bn/gamma": np.zeros(1)}, "ResNet V2"),
    ],
)
def test_file_of_another_network(model, archive, changes, message):
    with pytest.raises(WeightsError, match=message):
        load_backbone(model, archive(**changes))


def test_unusable_files(model, tmp_path, archive):
    with pytest.raises(WeightsError, match="no such weights file"):
        load_backbone(model, tmp_path / "nothing.npz")
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match="are read from .npz and .h5 files"):
        load_backbone(model, tmp_path / "weights.pt")
    for name in ("cut.npz", "cut.h5"):
        (tmp_path / name).write_bytes(archive().read_bytes()[:50_000])
        with pytest.raises(WeightsError, match="cannot be read"):
            load_backbone(model, tmp_path / name)
    np.savez(tmp_path / "other.npz", **{"dense/kernel": np.zeros(3)})
    with pytest.raises(WeightsError, match="none of the 1 tensors"):
        load_backbone(model, tmp_path / "other.npz")


def test_models_without_such_a_backbone(model, archive):
    with pytest.raises(WeightsError, match="ResNet-18 or 34"):
        load_backbone(backbone("resnet18"), archive())
    with pytest.raises(WeightsError, match="no ResNet backbone"):
        load_backbone(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), archive())
    with pytest.raises(WeightsError, match="unknown stage res6; stages are stem"):
        load_backbone(model, archive(), reinitialize=["res6"])


def test_conventions_of_the_input_are_compared(model, archive):
    config = Config(input=InputConfig(channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4)))
    model.config = SimpleNamespace(input=config.input, backbone=BackboneConfig(stride_in="3x3"))
    report = load_backbone(model, archive())
    assert [warning.split()[0] for warning in report.warnings] == [
        "input.channel_order",
        "input.mean",
        "input.std",
        "backbone.stride_in",
    ]
    assert "WARNING: input.channel_order is 'rgb', but these weights were trained with 'bgr'" in report.summary()
    model.config = Config()
    assert not load_backbone(model, archive()).warnings


def test_given_imagenet_file(model):
    data = os.environ.get("MRCNN_TF_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data")
    path = Path(data) / "weights" / "resnet50_imagenet_keras_partial.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert len(read_tensors(path)) == 300
    report = load_backbone(model, path, reinitialize=("res5",))
    assert report.complete and len(report.loaded) == 43 * 5
    incomplete = load_backbone(model, path)
    assert len(incomplete.left) == 9 and all(name.startswith("res5") for name in incomplete.left)
    # ImageNet features of a plain image are of a moderate size: neither vanished nor exploded.
    features = model(np.zeros((1, 64, 64, 3), np.float32))
    assert all(0.01 < float(keras.ops.std(level)) < 10 for level in features)
