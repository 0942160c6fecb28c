"""Reading images: encoded bytes, files and arrays to one form.

Shape letters: H W pixels, C channels.

An image is RGB (or grey, RGBA, or any number of channels) with values 0..255. Grey becomes RGB where 3
channels are asked for, an alpha channel is dropped, 16-bit values are divided by 257; whole numbers of 32
bits and floats are taken as they are. Other numbers of channels than 1, 3 and 4 come from `.npy` files or arrays.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from mrcnn_tf.data.errors import DataError

FILE_CHANNELS = (1, 3, 4)
_ORIENTATION_TAG = 0x0112
# What TensorFlow writes around the reason of an error, and PIL's name for the bytes that it was given.
_NOT_FOR_PEOPLE = re.compile(r"\{\{[^}]*\}\}|\[Op:\w+\]|image file <[^>]*>")


def decode_image(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """Decodes the bytes of a JPEG or PNG file, in TensorFlow operations only.

    As RGB, the first picture of a GIF file and a BMP file without a palette are read too.

    Args:
        encoded: scalar string.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA; opaque where the file has no alpha).

    Returns:
        [H, W, C] float32, 0..255.

    Raises:
        ValueError: another number of channels.
        tf.errors.InvalidArgumentError: bytes that are no such image, or cut short.
    """
    if channels not in FILE_CHANNELS:
        raise ValueError(f"image files have 1, 3 or 4 channels, not {channels}: give arrays instead")
    is_jpeg, is_deep = _kinds(encoded)

    def deep():
        return _decode_deep(encoded, channels)

    def plain():
        return tf.cast(_decode_plain(encoded, channels), tf.float32)

    def jpeg():
        return tf.cast(_decode_jpeg(encoded, channels), tf.float32)

    image = tf.cond(is_jpeg, jpeg, lambda: tf.cond(is_deep, deep, plain))
    image.set_shape([None, None, channels])
    return image


def _kinds(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether the bytes are a JPEG, and whether a PNG of 16 bits (its 25th byte is the bit depth)."""
    head = tf.strings.join([tf.strings.substr(encoded, 0, 26), tf.constant(b"\0" * 26)])
    is_png = tf.equal(tf.strings.substr(head, 0, 4), b"\x89PNG")
    is_deep = tf.logical_and(is_png, tf.equal(tf.strings.substr(head, 24, 1), b"\x10"))
    return tf.equal(tf.strings.substr(head, 0, 3), b"\xff\xd8\xff"), is_deep


def _decode_jpeg(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    # The accurate inverse transform gives what other readers (PIL, OpenCV) give.
    image = tf.io.decode_jpeg(encoded, channels=min(channels, 3), dct_method="INTEGER_ACCURATE")
    return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=255) if channels == 4 else image


def _decode_plain(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def _decode_deep(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.cast(tf.io.decode_png(encoded, channels=channels, dtype=tf.uint16), tf.float32) / 257.0


def load_image(source, channels: int = 3, size: tuple[int, int] | None = None, record: str = "") -> np.ndarray:
    """Reads an image from a file, or brings an array to the same form.

    The EXIF orientation of a photograph is applied, unless `size` is given and the file agrees with it
    as it stands: annotations were then made on the image as stored.

    Args:
        source: a path (JPEG, PNG, `.npy`, and whatever PIL opens) or an array [H, W] or [H, W, C].
        channels: C of the result; 1, 3 or 4 for image files.
        size: the (height, width) that the image has to have.
        record: names the record in messages, in addition to the file.

    Returns:
        [H, W, C] uint8, or float32 where the source has more than 8 bits; 0..255.

    Raises:
        DataError: no such file, a file that is no image or is cut short, another size or number of
            channels; the message names the file.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        name = f"{path} ({record})" if record else path
        image = _load_file(path, name, channels, size)
    else:
        name = record or "the array given as image"
        image = _from_array(np.asarray(source), channels, name)
    if size is not None and image.shape[:2] != tuple(size):
        message = (
            f"{name}: the image is {image.shape[0]} x {image.shape[1]} (height x width), but its record says "
            f"{size[0]} x {size[1]}; correct the record, or put the right image there"
        )
        raise DataError(message, "image of another size")
    return image


def check_images(images: Sequence, channels: int) -> None:
    """Refuses one image where several are expected: its path would be taken letter by letter, its array row by row.

    Raises:
        TypeError: a path, or an array that can only be one image.
    """
    shape = images.shape if isinstance(images, np.ndarray) else ()
    is_one = len(shape) == 2 or (len(shape) == 3 and shape[2] in (*FILE_CHANNELS, channels))
    if is_one or isinstance(images, (str, bytes, os.PathLike)):
        what = f"an array {list(shape)}" if shape else repr(images)
        raise TypeError(f"images should be a list of paths or arrays, not {what}; for one image give [image]")


def _load_file(path: str, name: str, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    try:
        if path.endswith(".npy"):
            return _from_array(np.load(path, allow_pickle=False), channels, name)
        with open(path, "rb") as file:
            encoded = file.read()
    except FileNotFoundError:
        raise DataError(f"{name}: the image is missing; put it there or correct the path", "image missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(name, error) from None
    if channels not in FILE_CHANNELS:
        message = f"{name}: image files give 1, 3 or 4 channels, input.channels is {channels}; use .npy files"
        raise DataError(message, "wrong number of channels")
    try:
        image = _decode_eagerly(encoded, channels, name)
    except DataError:
        raise
    except Exception as error:  # TensorFlow and PIL have a dozen error classes for bad bytes
        raise _unreadable(name, error) from None
    if size is None or image.shape[:2] != tuple(size):
        image = _upright(image, encoded)
    return image


def _unreadable(name: str, error: Exception) -> DataError:
    reason = " ".join(_NOT_FOR_PEOPLE.sub(" ", str(getattr(error, "message", error))).split())[:160]
    message = f"{name}: the image is cut short or no image ({reason}); replace the file or remove its record"
    return DataError(message, "image unreadable")


def _decode_eagerly(encoded: bytes, channels: int, name: str) -> np.ndarray:
    with tf.device("CPU:0"):
        if encoded[:3] == b"\xff\xd8\xff":
            return _decode_jpeg(encoded, channels).numpy()
        if encoded[:4] == b"\x89PNG":
            return (_decode_deep if encoded[24:25] == b"\x10" else _decode_plain)(encoded, channels).numpy()
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode[0] in "IF":  # PIL would cut off what is above 255
            is_16 = image.mode.startswith("I;16")
            return _from_array(np.asarray(image, np.uint16 if is_16 else np.float32), channels, name)
        return np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(*image.size[::-1], channels)


def _from_array(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    image = array[:, :, None] if array.ndim == 2 else array
    if image.ndim != 3 or 0 in image.shape:
        message = f"{name}: an image array is [H, W] or [H, W, C] and not empty, got shape {array.shape}"
        raise DataError(message, "wrong number of channels")
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype == np.uint16:
        image = image.astype(np.float32) / np.float32(257)
    elif image.dtype != np.uint8:
        if image.dtype.kind not in "iuf":
            message = f"{name}: an image array holds numbers 0..255, not {image.dtype}"
            raise DataError(message, "image unreadable")
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise DataError(f"{name}: the image holds values that are not finite; correct them", "image unreadable")
    have = image.shape[2]
    if have != channels and channels in FILE_CHANNELS and have in (1, 2, 3, 4):
        image = _change_channels(image, channels)
    if image.shape[2] != channels:
        message = f"{name}: the image has {have} channels, input.channels is {channels}; change one of them"
        raise DataError(message, "wrong number of channels")
    return image


def _change_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey (1, or 2 with alpha), RGB and RGBA into each other, as the decoders do it."""
    colours = image[:, :, :1] if image.shape[2] <= 2 else image[:, :, :3]
    if channels == 1:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return colours if colours.shape[2] == 1 else (colours @ weights)[:, :, None].round().astype(image.dtype)
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    if channels == 3:
        return colours
    alpha = image[:, :, 1:2] if image.shape[2] == 2 else np.full_like(image[:, :, :1], 255)
    return np.concatenate([colours, alpha], axis=2)


def _upright(image: np.ndarray, encoded: bytes) -> np.ndarray:
    """The image turned as its EXIF orientation says."""
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            orientation = file.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is no reason to refuse an image that decodes
        return image
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    return np.ascontiguousarray(turns[orientation](image)) if orientation in turns else image
