"""Image files of every kind, through TensorFlow operations and through `load_image`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mrcnn_tf.data import DataError, decode_image, load_image
from mrcnn_tf.data.images import check_images

RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (13, 17, 3), np.uint8)
GREY = RNG.integers(0, 256, (13, 17), np.uint8)
DEEP = RNG.integers(0, 65536, (13, 17), np.uint16)
SMOOTH = np.repeat(np.repeat(RNG.integers(60, 200, (2, 3, 3), np.uint8), 16, 0), 16, 1)


def encoded(pixels, kind="PNG", mode=None, **options) -> bytes:
    image = Image.fromarray(pixels)
    image = image.convert(mode) if mode else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def expected_rgb(pixels):
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels[:, :, :3]


LOSSLESS = {
    "png": (encoded(RGB), RGB),
    "grey png": (encoded(GREY), GREY),
    "rgba png": (encoded(np.dstack([RGB, GREY])), RGB),
    "grey and alpha png": (encoded(np.dstack([GREY, GREY]), mode="LA"), GREY),
    "bmp": (encoded(RGB, "BMP"), RGB),
    "palette png": (encoded(SMOOTH, mode="P"), SMOOTH),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files(tmp_path, name):
    content, pixels = LOSSLESS[name]
    decoded = decode_image(tf.constant(content), 3)
    assert decoded.dtype == tf.float32
    if name == "palette png":
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decoded.numpy(), expected_rgb(pixels))
    path = tmp_path / "image"
    path.write_bytes(content)
    loaded = load_image(path, 3)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, expected_rgb(pixels))


@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_is_what_pil_reads(tmp_path, grey):
    content = encoded(SMOOTH[:, :, 0] if grey else SMOOTH, "JPEG", quality=95)
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    theirs = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_allclose(load_image(path, 3), theirs, atol=2)
    np.testing.assert_array_equal(decode_image(tf.constant(content), 3), load_image(path, 3))


def test_sixteen_bits(tmp_path):
    content = encoded(DEEP)
    path = tmp_path / "deep.png"
    path.write_bytes(content)
    wanted = np.repeat(DEEP[:, :, None], 3, axis=2) / np.float32(257)
    np.testing.assert_allclose(decode_image(tf.constant(content), 3), wanted, rtol=1e-6)
    np.testing.assert_allclose(load_image(path, 3), wanted, rtol=1e-6)
    np.testing.assert_allclose(load_image(path, 1), wanted[:, :, :1], rtol=1e-6)
    Image.fromarray(DEEP).save(tmp_path / "deep.tif")
    np.testing.assert_allclose(load_image(tmp_path / "deep.tif", 3), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_of_32_bits_are_taken_as_they_are(tmp_path, kind):
    pixels = DEEP.astype(kind) - kind(1.5)
    Image.fromarray(pixels).save(tmp_path / "wide.tif")
    loaded = load_image(tmp_path / "wide.tif", 3)
    np.testing.assert_array_equal(loaded, np.repeat(pixels[:, :, None], 3, axis=2))
    np.save(tmp_path / "wide.npy", pixels)
    np.testing.assert_array_equal(loaded, load_image(tmp_path / "wide.npy", 3))
    if kind is np.float32:
        pixels[0, 0] = np.nan
        Image.fromarray(pixels).save(tmp_path / "nan.tif")
        with pytest.raises(DataError, match=r"nan\.tif: the image holds values that are not finite"):
            load_image(tmp_path / "nan.tif", 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_channels(tmp_path, channels, kind):
    content = encoded(SMOOTH, kind)
    path = tmp_path / "image"
    path.write_bytes(content)
    decoded, loaded = decode_image(tf.constant(content), channels).numpy(), load_image(path, channels)
    assert decoded.shape == loaded.shape == (32, 48, channels)
    np.testing.assert_array_equal(decoded, loaded)
    from_array = load_image(np.asarray(Image.open(path)), channels)
    np.testing.assert_allclose(from_array, loaded, atol=2)
    if channels == 4:
        assert (loaded[:, :, 3] == 255).all()


def test_decoding_inside_a_graph():
    function = tf.function(lambda content: decode_image(content, 3), input_signature=[tf.TensorSpec([], tf.string)])
    np.testing.assert_array_equal(function(encoded(RGB)), RGB)
    np.testing.assert_array_equal(function(encoded(GREY)), expected_rgb(GREY))
    np.testing.assert_allclose(function(encoded(DEEP))[:, :, 0], DEEP / np.float32(257), rtol=1e-6)
    assert function(encoded(SMOOTH, "JPEG")).shape == (32, 48, 3)
    for content in (b"", b"abc", encoded(RGB)[:60]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(content)


def test_decode_refuses_other_channels():
    with pytest.raises(ValueError, match="1, 3 or 4"):
        decode_image(tf.constant(b""), 5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """With no size to agree with, a photograph stands upright; annotated images stay as they agree."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(SMOOTH, "JPEG", quality=95, exif=exif))
    raw = load_image(path, 3, size=(32, 48)).astype(int)
    upright = load_image(path, 3)
    turn = {
        1: raw,
        2: raw[:, ::-1],
        3: raw[::-1, ::-1],
        4: raw[::-1],
        5: raw.transpose(1, 0, 2),
        6: raw[::-1].transpose(1, 0, 2),
        7: raw[::-1, ::-1].transpose(1, 0, 2),
        8: raw[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    np.testing.assert_array_equal(upright, turn)
    if orientation >= 5:
        np.testing.assert_array_equal(load_image(path, 3, size=(48, 32)), upright)
    else:
        with pytest.raises(DataError, match="32 x 48"):
            load_image(path, 3, size=(48, 32))


def test_arrays():
    np.testing.assert_array_equal(load_image(GREY, 3), expected_rgb(GREY))
    np.testing.assert_array_equal(load_image(GREY > 100, 1)[:, :, 0], (GREY > 100) * 255)
    np.testing.assert_allclose(load_image(DEEP, 1)[:, :, 0], DEEP / 257, rtol=1e-6)
    assert load_image(RGB.astype(np.float64), 3).dtype == np.float32
    many = RNG.integers(0, 256, (4, 5, 12), np.uint8)
    np.testing.assert_array_equal(load_image(many, 12), many)


def test_npy_files(tmp_path):
    many = RNG.normal(100, 20, (4, 5, 6)).astype(np.float32)
    np.save(tmp_path / "many.npy", many)
    np.testing.assert_array_equal(load_image(tmp_path / "many.npy", 6), many)
    np.testing.assert_array_equal(load_image(str(tmp_path / "many.npy"), 6, size=(4, 5)), many)


BAD_ARRAYS = {
    "shape": (np.zeros(5), 3, "H, W"),
    "empty": (np.zeros((0, 5, 3)), 3, "not empty"),
    "text": (np.array([["a"]]), 3, "numbers"),
    "not finite": (np.full((2, 2), np.nan), 1, "finite"),
    "channels": (np.zeros((4, 4, 5)), 3, "5 channels, input.channels is 3"),
    "few channels": (np.zeros((4, 4, 3)), 6, "3 channels, input.channels is 6"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name):
    array, channels, text = BAD_ARRAYS[name]
    with pytest.raises(DataError, match=text):
        load_image(array, channels)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="image is missing") as caught:
        load_image(tmp_path / "gone.png", 3, record="image id 5")
    assert str(tmp_path / "gone.png") in str(caught.value) and "image id 5" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "empty", "text", "npy"])
def test_files_cut_short(tmp_path, kind):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    content = {"empty": b"", "text": b"not an image at all", "npy": b"\x93NUMPY\x01"}.get(kind) or b""
    if kind in ("PNG", "JPEG", "BMP"):
        content = encoded(noise, kind)
        content = content[: len(content) // 2]
    path = tmp_path / ("image.npy" if kind == "npy" else "image.bin")
    path.write_bytes(content)
    with pytest.raises(DataError, match="cut short or no image") as caught:
        load_image(path, 3, record="image id 5 of x.json")
    message = str(caught.value)
    assert caught.value.kind == "image unreadable"
    assert str(path) in message and "image id 5 of x.json" in message and "\n" not in message
    assert not any(text in message for text in ("{{", "[Op:", "BytesIO"))


def test_another_size(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB))
    with pytest.raises(DataError, match="13 x 17 .*says 17 x 20") as caught:
        load_image(path, 3, size=(17, 20))
    assert caught.value.kind == "image of another size" and str(path) in str(caught.value)


def test_files_with_many_channels_need_npy(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB))
    with pytest.raises(DataError, match=r"use \.npy"):
        load_image(path, 6)


@pytest.mark.parametrize("images", ["photo.jpg", Path("photo.jpg"), RGB, GREY, np.dstack([RGB, GREY])])
def test_one_image_is_no_list_of_images(images):
    with pytest.raises(TypeError, match=r"for one image give \[image\]"):
        check_images(images, 3)


def test_lists_of_images():
    for images in (["photo.jpg"], (RGB, GREY), [], np.stack([RGB, RGB]), np.stack([GREY, GREY])):
        check_images(images, 3)
