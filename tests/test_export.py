import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.config import ConfigError
from mrcnn_tf.export import export
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset

# Runs where neither the package nor Keras can be imported: TensorFlow alone has to do.
ALONE = """
import json, sys
sys.modules["mrcnn_tf"] = None
sys.modules["keras"] = None
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
found = loaded.signatures["serving_default"](images=tf.constant(images))
names = loaded.signatures["class_names"]()["class_names"]
answer = {name: value.numpy().tolist() for name, value in found.items() if name in ("scores", "keypoints")}
print(json.dumps({**answer, "names": [n.decode() for n in names.numpy()]}))
"""
KEYPOINTS = {"names": ("nose", "left_hand", "right_hand"), "skeleton": (), "convs": (8,)}


def tiny_model(**changes) -> MaskRCNN:
    keras.utils.set_random_seed(3)
    config = preset(
        "shapes",
        input={"shorter_edge": 64, "longer_edge": 96},
        fpn={"channels": 16},
        rpn={"channels": 16, "pre_nms_test": 60, "post_nms_test": 24},
        box_head={"fc": (16,)},
        mask_head={"convs": (8,), "deconv": 8},
        # Threshold 0: weights that nobody trained give detections too.
        detections={"score_threshold": 0.0, "max_per_image": 6},
    )
    model = MaskRCNN(config.replace(**changes))
    # Boxes away from their proposals, mask probabilities on both sides of .5.
    model.get_layer("box_deltas").kernel.assign(model.get_layer("box_deltas").kernel * 30)
    if "mask" in model.config.branches:
        # Large, since a probability next to .5 falls to either side in half precision.
        signs = np.where(np.arange(8) % 2, 20.0, -20.0)[:, None] * np.ones((1, 1, 8, 3))
        model.get_layer("mask_logits").kernel.assign(signs)
    return model


def pictures(*sizes) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    coarse = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in sizes]
    return [np.asarray(Image.fromarray(c).resize(size[::-1], Image.BILINEAR)) for c, size in zip(coarse, sizes)]


def encode(image: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def assert_equal(found: dict, expected: list) -> None:
    assert sum(map(len, expected)) > 0
    for index, detections in enumerate(expected):
        count = len(detections)
        np.testing.assert_array_equal(found["image_size"][index], detections.image_size)
        np.testing.assert_array_equal(found["classes"][index, :count], detections.classes)
        np.testing.assert_array_equal(found["classes"][index, count:], 0)
        np.testing.assert_allclose(found["scores"][index, :count], detections.scores, atol=1e-3)
        np.testing.assert_allclose(found["boxes"][index, :count], detections.boxes, atol=1e-3)
        for name, own in (("masks", detections.mask_crops), ("keypoints", detections.keypoints)):
            assert (name in found) == (own is not None)
            if own is not None:
                np.testing.assert_allclose(found[name][index, :count], own, atol=1e-3)
                assert not np.any(found[name][index, count:])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("export") / "saved")


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(exported).signatures


def test_images_of_one_size(model, signatures):
    images = pictures((50, 75), (50, 75))
    found = signatures["serving_default"](images=np.stack(images))
    assert_equal(found, model.predict_images(images))


def test_images_larger_than_the_network_takes(model, signatures):
    images = pictures((200, 333))
    found = signatures["serving_default"](images=np.stack(images))
    assert_equal(found, model.predict_images(images))
    assert np.max(found["boxes"]) > 96  # boxes are in the original's pixels


def test_encoded_images_of_different_sizes(model, signatures):
    images = pictures((50, 75), (120, 90), (64, 64))
    found = signatures["encoded"](encoded=tf.constant([encode(image, "PNG") for image in images]))
    # In one batch too: how far a smaller image is padded reaches its border's features.
    assert_equal(found, model.predict_images(images, batch_size=3))


def test_encoded_jpeg_and_grey_png(model, signatures, tmp_path):
    colour, grey = pictures((90, 60), (40, 70))
    files = {"colour.jpg": encode(colour, "JPEG"), "grey.png": encode(grey[:, :, 0], "PNG")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = signatures["encoded"](encoded=tf.constant(list(files.values())))
    assert_equal(found, model.predict_images([tmp_path / name for name in files], batch_size=2))


def test_bytes_that_are_no_image_are_refused(signatures):
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["encoded"](encoded=tf.constant([b"no image"]))


def test_class_names_are_in_a_signature_and_a_file(exported, signatures):
    names = signatures["class_names"]()["class_names"].numpy().tolist()
    assert names == [b"circle", b"square", b"triangle"]
    with open(f"{exported}/assets/class_names.txt") as file:
        assert file.read() == "circle\nsquare\ntriangle\n"


@pytest.mark.parametrize("paste", ["exact", "torchvision"])
def test_pasted_masks_have_the_original_size(paste, model, tmp_path):
    model = model if paste == "exact" else tiny_model(detections__paste=paste)
    images = pictures((50, 75), (120, 90))
    path = export(model, tmp_path / "pasted", paste_masks=True)
    encoded = tf.constant([encode(image, "PNG") for image in images])
    found = tf.saved_model.load(path).signatures["encoded"](encoded=encoded)
    masks = found["masks"].numpy()
    assert masks.shape == (2, 6, 120, 90) and masks.dtype == np.uint8
    assert 0.02 < masks.mean() < 0.98
    for index, detections in enumerate(model.predict_images(images, batch_size=2)):
        height, width = detections.image_size
        inside = masks[index, : len(detections), :height, :width]
        # Crops are kept in half precision there: a pixel at .5 may fall to the other side.
        assert np.mean(inside != detections.masks) < 1e-3
        assert not masks[index, :, height:].any() and not masks[index, :, :, width:].any()


def run_alone(saved: str, images) -> dict:
    """What a SavedModel answers in a process that has TensorFlow only."""
    command = [sys.executable, "-c", ALONE, saved, str(images)]
    done = subprocess.run(command, cwd=images.parent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_runs_with_tensorflow_alone(model, exported, tmp_path):
    images = np.stack(pictures((50, 75), (50, 75)))
    np.save(tmp_path / "images.npy", images)
    answer = run_alone(exported, tmp_path / "images.npy")
    assert answer["names"] == ["circle", "square", "triangle"]
    expected = [detections.scores for detections in model.predict_images(list(images))]
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-3)


@pytest.fixture(scope="module")
def keypoint_model():
    # Boxes that hardly overlap, and more places than there can be of these: some stay empty.
    detections = {"nms_iou": 0.05, "max_per_image": 40}
    return tiny_model(branches=("keypoints",), keypoint_head=KEYPOINTS, detections=detections)


def test_keypoints_in_the_pixels_of_the_originals(keypoint_model, tmp_path):
    path = export(keypoint_model, tmp_path / "saved")
    signatures = tf.saved_model.load(path).signatures
    images = pictures((50, 75), (120, 90))
    found = signatures["encoded"](encoded=tf.constant([encode(image, "PNG") for image in images]))
    assert_equal(found, keypoint_model.predict_images(images, batch_size=2))
    counts = (found["classes"].numpy() > 0).sum(axis=1)
    assert found["keypoints"].shape == (2, 40, 3, 3) and 0 < counts.min() and counts.max() < 40
    # In the second, larger image keypoints lie in their boxes, beyond what the network's input had.
    points, boxes = found["keypoints"].numpy()[1, : counts[1]], found["boxes"].numpy()[1, : counts[1]]
    assert (points[..., :2] >= boxes[:, None, :2] - 1).all() and (points[..., :2] <= boxes[:, None, 2:] + 1).all()
    with open(f"{path}/assets/keypoint_names.txt") as file:
        assert file.read() == "nose\nleft_hand\nright_hand\n"
    with pytest.raises(ConfigError, match="no mask branch"):
        export(keypoint_model, tmp_path / "pasted", paste_masks=True)

    # And with TensorFlow alone.
    np.save(tmp_path / "images.npy", images[0][None])
    answer = run_alone(path, tmp_path / "images.npy")
    (expected,) = keypoint_model.predict_images(images[:1])
    np.testing.assert_allclose(answer["keypoints"][0][: len(expected)], expected.keypoints, atol=1e-3)


def test_boxes_alone_are_exported(tmp_path):
    model = tiny_model(branches=())
    found = tf.saved_model.load(export(model, tmp_path / "saved")).signatures["serving_default"]
    images = pictures((50, 75))
    answer = found(images=images[0][None])
    assert set(answer) == {"boxes", "classes", "scores", "image_size"}
    assert_equal(answer, model.predict_images(images))


def test_model_of_a_strategy_is_exported_with_plain_variables(tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = tiny_model()
    path = export(model, tmp_path / "saved")
    images = pictures((50, 75))
    found = tf.saved_model.load(path).signatures["serving_default"](images=np.stack(images))
    assert_equal(found, model.predict_images(images))


def test_five_channels_and_classes_without_names(tmp_path):
    changes = {"channels": 5, "mean": (100.0,) * 5, "std": (50.0,) * 5}
    model = tiny_model(input=changes, class_names=())
    signatures = tf.saved_model.load(export(model, tmp_path / "saved")).signatures
    # No image file has five channels.
    assert sorted(signatures) == ["class_names", "serving_default"]
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 5), np.uint8)
    assert_equal(signatures["serving_default"](images=image[None]), model.predict_images([image]))
    assert signatures["class_names"]()["class_names"].numpy().tolist() == [b"class 1", b"class 2", b"class 3"]


def test_replaces_a_saved_model_and_nothing_else(model, exported, tmp_path):
    with pytest.raises(FileExistsError, match="no SavedModel"):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "precious.txt").write_text("kept")
        export(model, tmp_path / "notes")
    with pytest.raises(FileExistsError, match="is a file"):
        export(model, tmp_path / "notes" / "precious.txt")
    assert (tmp_path / "notes" / "precious.txt").read_text() == "kept"
    assert export(model, exported) == exported
    assert "encoded" in tf.saved_model.load(exported).signatures


def test_keras_file_reloads_with_equal_outputs(model, tmp_path):
    model.save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras")
    assert reloaded.config == model.config
    images = pictures((50, 75), (90, 60))
    for first, second in zip(model.predict_images(images), reloaded.predict_images(images)):
        np.testing.assert_array_equal(first.classes, second.classes)
        # Two compilations of one network: the last bit may differ.
        for name in ("boxes", "scores", "mask_crops"):
            np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5, atol=1e-5)
