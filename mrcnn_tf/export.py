"""Export: a SavedModel that needs TensorFlow alone, from pictures to objects in the pictures' own pixels.

Shape letters: B images, H W pixels of the original images, C channels, D detections, K classes, M mask side,
J keypoints.

The graph decodes, resizes, pads, detects and scales back with the very functions that `MaskRCNN.predict_images` uses.
Signatures:

- `serving_default`: "images" uint8 [B, H, W, C], RGB, of one size per batch.
- `encoded`: "encoded" string [B], JPEG or PNG files of any sizes (only for 1, 3 and 4 channels). The EXIF orientation
  of a photograph is not applied.
- `class_names`: no input; "class_names" string [K]. They also lie in `assets/class_names.txt`.

Both detecting signatures answer with "boxes" [B, D, 4] float32 (y1, x1, y2, x2 in original pixels), "classes" [B, D]
int32 (1..K, 0 where there is no detection), "scores" [B, D] float32 (0 there), "image_size" [B, 2] int32 (height and
width of each original image) and, of a model with these branches, "masks": [B, D, M, M] float32 probabilities inside
each box or, pasted, uint8 0 and 1 [B, D, H, W] (H and W of the largest image), and "keypoints": [B, D, J, 3] float32
(y, x in original pixels, the network's logit; zeros where there is no detection), whose names lie in
`assets/keypoint_names.txt`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import keras
import tensorflow as tf

from mrcnn_tf import untrained
from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.custom_gradient import forward_only
from mrcnn_tf.data.images import FILE_CHANNELS, decode_image
from mrcnn_tf.data.transforms import prepare_image
from mrcnn_tf.geometry import masks as mask_ops


def export(model: Any, path: str | os.PathLike, paste_masks: bool = False) -> str:
    """Writes the model as a SavedModel with the signatures that stand at the top of this module.

    Args:
        model: a `MaskRCNN`.
        path: the folder to write; a SavedModel that is there is replaced, once the new one is complete.
        paste_masks: masks of the original image's size, cut at `config.detections.mask_threshold`, in place of
            [M, M] probabilities. Simpler to use, and B * D * H * W bytes large.

    Returns:
        The path.

    Raises:
        FileExistsError: `path` is something else than a SavedModel or an empty folder.
        ConfigError: `paste_masks` of a model without masks.
    """
    if paste_masks and "mask" not in model.config.branches:
        raise ConfigError("paste_masks: the model has no mask branch; export it without")
    untrained.warn_once(model)
    path = os.path.abspath(os.fspath(path))
    _check_replaceable(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".export-") as folder:
        # Files of different names, so that each gets its own in the assets' folder.
        names = {"class_names": _class_names(model.config)}
        if "keypoints" in model.config.branches:
            names["keypoint_names"] = list(model.config.keypoint_head.names)
        for kind, lines in names.items():
            with open(os.path.join(folder, f"{kind}.txt"), "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        server = _Server(_on_one_device(model), paste_masks, [os.path.join(folder, f"{kind}.txt") for kind in names])
        written = os.path.join(folder, "model")
        tf.saved_model.save(server, written, signatures=server.signatures())
        if os.path.isdir(path):
            shutil.rmtree(path)
        os.rename(written, path)
    return path


def _check_replaceable(path: str) -> None:
    is_folder = os.path.isdir(path)
    if os.path.exists(path) and not is_folder:
        raise FileExistsError(f"{path} is a file; a SavedModel is a folder: give another path")
    if is_folder and os.listdir(path) and not os.path.exists(os.path.join(path, "saved_model.pb")):
        raise FileExistsError(f"{path} is there and is no SavedModel; give another path, or remove it")


def _on_one_device(model: Any) -> Any:
    """The model, or a copy of it with plain variables where it was trained on several devices."""
    if not any(isinstance(weight.value, tf.distribute.DistributedValues) for weight in model.weights):
        return model
    copy = type(model)(model.config, name=model.name)
    copy.set_weights(model.get_weights())
    return copy


def _class_names(config: Config) -> list[str]:
    return list(config.class_names) or [f"class {number}" for number in range(1, config.num_classes + 1)]


class _Server(tf.Module):
    """What is saved: the model's variables and the three functions."""

    def __init__(self, model: Any, paste: bool, names_files: list[str]):
        super().__init__(name="mask_rcnn")
        self._model = _Untracked(model)
        self._paste = paste
        self._config = model.config
        # The variables alone: the model itself would bring its optimiser's state and Keras' own objects.
        self.model_variables = [weight.value for weight in model.weights]
        self.names_files = [tf.saved_model.Asset(file) for file in names_files]

    def signatures(self) -> dict:
        channels = self._config.input.channels
        signatures = {
            "serving_default": tf.function(
                self.detect_images,
                input_signature=[tf.TensorSpec([None, None, None, channels], tf.uint8, name="images")],
            ),
            "class_names": tf.function(self.class_names, input_signature=[]),
        }
        if channels in FILE_CHANNELS:
            spec = tf.TensorSpec([None], tf.string, name="encoded")
            signatures["encoded"] = tf.function(self.detect_encoded, input_signature=[spec])
        return signatures

    def class_names(self) -> dict:
        """The K names, in the order of the class numbers from 1."""
        return {"class_names": tf.constant(_class_names(self._config))}

    def detect_images(self, images: tf.Tensor) -> dict:
        """Detects in uint8 [B, H, W, C]."""
        return self._detect(images, lambda image: tf.cast(image, tf.float32))

    def detect_encoded(self, encoded: tf.Tensor) -> dict:
        """Detects in the bytes of B image files."""
        return self._detect(encoded, lambda data: decode_image(data, self._config.input.channels))

    def _detect(self, sources: tf.Tensor, read) -> dict:
        """`read` turns one element of `sources` into a float32 [H, W, C]."""
        settings = self._config.input

        def prepare(source):
            image = read(source)
            resized, size = prepare_image(image, settings, settings.shorter_edge[-1])
            # Ragged, since the images of a batch end in different sizes.
            return tf.RaggedTensor.from_tensor(resized), size, tf.shape(image)[:2]

        specs = (
            tf.RaggedTensorSpec([None, None, settings.channels], tf.float32, ragged_rank=1),
            tf.TensorSpec([2], tf.int32),
            tf.TensorSpec([2], tf.int32),
        )
        images, size, original_size = tf.map_fn(prepare, sources, fn_output_signature=specs)
        # Zeros at the bottom and the right; the network pads on to a multiple of 32 by itself.
        batch = {"image": images.to_tensor(), "image_size": size}
        batch["image"].set_shape([None, None, None, settings.channels])
        with forward_only():
            outputs = self._model.it(batch, training=False)
        return self._to_original(outputs, size, original_size)

    def _to_original(self, outputs: dict, size: tf.Tensor, original_size: tf.Tensor) -> dict:
        """The network's outputs in pixels of the original images; what is not finite counts as no detection."""
        limits = tf.tile(tf.cast(original_size, tf.float32), [1, 2])[:, None]
        factors = limits / tf.tile(tf.cast(size, tf.float32), [1, 2])[:, None]
        boxes = tf.clip_by_value(tf.cast(outputs["boxes"], tf.float32) * factors, 0.0, limits)
        scores = tf.cast(outputs["scores"], tf.float32)
        finite = tf.reduce_all(tf.math.is_finite(outputs["boxes"]), axis=-1) & tf.math.is_finite(scores)
        real = finite & (outputs["classes"] > 0)
        boxes = tf.where(real[..., None], boxes, 0.0)
        found = {
            "boxes": boxes,
            "classes": tf.where(real, outputs["classes"], 0),
            "scores": tf.where(real, scores, 0.0),
            "image_size": original_size,
        }
        if "masks" in outputs:
            masks = tf.where(real[..., None, None], tf.cast(outputs["masks"], tf.float32), 0.0)
            found["masks"] = self._pasted(masks, boxes, original_size) if self._paste else masks
        if "keypoints" in outputs:
            both_axes = tf.pad(factors[..., None, :2], [[0, 0], [0, 0], [0, 0], [0, 1]], constant_values=1.0)
            keypoints = tf.cast(outputs["keypoints"], tf.float32) * both_axes
            found["keypoints"] = tf.where(real[..., None, None], keypoints, 0.0)
        return found

    def _pasted(self, masks: tf.Tensor, boxes: tf.Tensor, original_size: tf.Tensor) -> tf.Tensor:
        """[B, D, H, W] uint8, one detection at a time: all at once would hold B * D * H * W floats."""
        height, width = tf.unstack(tf.reduce_max(original_size, axis=0))
        batch, count = tf.shape(boxes)[0], tf.shape(boxes)[1]
        threshold = self._config.detections.mask_threshold
        if self._config.detections.paste == "torchvision":
            boxes = mask_ops.torchvision_boxes(boxes, masks.shape[2])

        def paste(values):
            mask, box, size = values
            pasted = mask_ops.paste_masks(mask[None], box[None], height, width)[0] >= threshold
            # A mask may reach half a cell past its box, which is past the image where another one is larger.
            inside = (tf.range(height) < size[0])[:, None] & (tf.range(width) < size[1])[None]
            return tf.cast(pasted & inside, tf.uint8)

        def paste_if_any(values):
            return tf.cond(values[1][2] > values[1][0], lambda: paste(values), lambda: nothing)

        nothing = tf.zeros([height, width], tf.uint8)
        flat = (
            tf.reshape(masks, [-1, *masks.shape[2:]]),
            tf.reshape(boxes, [-1, 4]),
            tf.repeat(original_size, count, axis=0),
        )
        pasted = tf.map_fn(paste_if_any, flat, fn_output_signature=tf.TensorSpec([None, None], tf.uint8))
        return tf.reshape(pasted, [batch, count, height, width])


class _Untracked:
    """Holds the Keras model where TensorFlow's saving does not look for it."""

    def __init__(self, it: keras.Model):
        self.it = it
