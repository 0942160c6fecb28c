"""Mask R-CNN as one Keras model: an inference graph, and a training graph over the same layers.

Shape letters: B images, H W pixels, C channels, D detections, J keypoints, M mask side.

Nothing here is numerical: the graphs are wired in `stages`, of what is in `networks` and `layers`; the losses are in
`losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf import losses, untrained
from mrcnn_tf.config import Config
from mrcnn_tf.custom_gradient import held_by_the_graph
from mrcnn_tf.data.images import check_images, load_image
from mrcnn_tf.data.transforms import prepare_image
from mrcnn_tf.detections import Detections
from mrcnn_tf.inference import inference_function
from mrcnn_tf.optimizer import SGD, make_optimizer
from mrcnn_tf.parts import freeze_others
from mrcnn_tf.replicas import sum_over_replicas
from mrcnn_tf.stages import Stages
from mrcnn_tf.stepping import has_machines, never_empty, shared_out, step_function
from mrcnn_tf.weights.files import is_own, load_weights, save_weights

INFERENCE_INPUTS = ("image", "image_size")


@keras.saving.register_keras_serializable("mrcnn_tf")
class MaskRCNN(keras.Model):
    """A Mask R-CNN: boxes, and a mask, keypoints or both for each, as `config.branches` says (sections 3 and 5).

    Called on {"image": [B, H, W, C] RGB 0..255, "image_size": [B, 2] real height and width}, it gives
    {"boxes": [B, D, 4] pixels of that image, "classes": [B, D] int32, "scores": [B, D]} and, with these branches,
    "masks": [B, D, M, M] probabilities within each box and "keypoints": [B, D, J, 3] (y, x in pixels, logit); places
    without a detection have class 0 and score 0.

    `fit`, `evaluate` and `predict` take the batches that `mrcnn_tf.training_batches` and
    `mrcnn_tf.evaluation_batches` make: one dictionary with `batch_keys` and `image_id`.

    Attributes:
        training_graph: the functional model from which `train_step` takes the losses.
        batch_keys: what of a batch the training graph takes; `image_id` beside it.
        loss_names, log_names: the losses, and all that `fit` and `evaluate` report.
        stages: for profiling, {stage: (its symbolic inputs, its symbolic outputs)} of the inference
            graph, in order; `keras.Model(*model.stages["fpn"])` is that stage alone.

        anew_layers: the layers that were started anew and are still to be trained, see `mrcnn_tf.untrained`.

    Args:
        config: the model's configuration.
        anew_layers: as above.
    """

    def __init__(self, config: Config | dict, name: str = "mask_rcnn", anew_layers: Sequence[str] = (), **kwargs):
        if isinstance(config, dict):
            config = Config.from_dict(config)
        stages = Stages(config)
        inputs = stages.inputs()
        super().__init__(
            inputs={key: inputs[key] for key in INFERENCE_INPUTS}, outputs=stages.inference(inputs), name=name, **kwargs
        )
        self.config = config
        self.stages = stages.tensors
        self.training_graph = keras.Model(inputs, stages.training(inputs), name="training_graph")
        self.batch_keys = tuple(key for key in inputs if key != "seed")
        self.loss_names = loss_names(config)
        self.log_names = ("loss", *self.loss_names, "rpn_recall", "positive_rois")
        self._trackers = [keras.metrics.Mean(name=log) for log in self.log_names]
        freeze_others(self)
        untrained.mark(self, anew_layers)

    # === Training ===

    def compile(self, optimizer=None, global_batch: int | None = None, **kwargs):
        """Keras' `compile`; without an optimiser, the one that `config.training` describes.

        Args:
            optimizer: any Keras optimiser. In mixed_float16 on several devices, Keras' own corrupt the weights.
            global_batch: images of a batch over all devices, for the learning rate's linear scaling.
        """
        # XLA has no CropAndResize, which Keras' "auto" could not know.
        kwargs.setdefault("jit_compile", False)
        with self.distribute_strategy.scope():
            if optimizer is None:
                optimizer = make_optimizer(self.config.training, global_batch)
            if isinstance(optimizer, SGD):
                kwargs.setdefault("auto_scale_loss", False)  # it scales by itself
            super().compile(optimizer=optimizer, **kwargs)
            self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Everything is built already; Keras would add up a first batch over the replicas to find out."""

    def fit(self, x=None, *args, **kwargs):
        """Keras' `fit`, by `mrcnn_tf.training_batches`: a step is an update and takes `optimizer.accumulate` batches.

        On several machines each loads its own part of them.
        """
        return super().fit(shared_out(x, self.distribute_strategy), *args, **kwargs)

    def make_train_function(self, force: bool = False):
        """Keras calls this whenever `fit` begins."""
        untrained.clear(self)
        batches = getattr(self.optimizer, "accumulate", 1)
        if batches == 1 and not has_machines(self.distribute_strategy):
            return super().make_train_function(force)
        self._check_single_steps()
        if self.train_function is None or force:
            give_up = getattr(self.optimizer, "forget_micro_batches", None)
            self.train_function = step_function(
                self.distribute_strategy, self.train_step, batches, give_up, self.run_eagerly
            )

    def make_test_function(self, force: bool = False):
        """Keras calls this whenever `evaluate` begins."""
        if not has_machines(self.distribute_strategy):
            return super().make_test_function(force)
        self._check_single_steps()
        if self.test_function is None or force:
            self.test_function = step_function(self.distribute_strategy, self.test_step, eager=self.run_eagerly)

    def _check_single_steps(self) -> None:
        if self.steps_per_execution != 1:
            raise ValueError(
                f"steps_per_execution = {self.steps_per_execution}: with micro-batches or several machines a call "
                "makes one step; compile the model without it"
            )

    @property
    def metrics(self) -> list:
        return self._trackers

    @held_by_the_graph()
    def train_step(self, data: dict) -> dict:
        """One batch, and at the end of each update's last one the update; the logs are averaged over an epoch by Keras.

        Every loss is a sum divided by its count over all replicas, and the random samples come from
        each image's id and the step: how a global batch is split over devices changes nothing. Of an update's
        micro-batches each has its own counts, as each device has in the published implementations: the update is
        that of one large batch where the counts are equal.
        """
        step = tf.cast(self.optimizer.iterations, tf.int32)
        with tf.GradientTape() as tape:
            outputs = self.training_graph(self._training_inputs(data, step), training=True)
            shares = _global_losses(outputs, self.config)
            total = self.optimizer.scale_loss(tf.add_n(list(shares.values())))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(total, variables), variables)
        return self._update_logs(shares, outputs)

    @held_by_the_graph()
    def test_step(self, data: dict) -> dict:
        """The losses of a batch, with the same random samples at every evaluation."""
        outputs = self.training_graph(self._training_inputs(never_empty(data), 0), training=False)
        return self._update_logs(_global_losses(outputs, self.config), outputs)

    def _training_inputs(self, data: dict, step) -> dict:
        """The training graph's inputs; the seed of an image's samples is (its id, the step)."""
        identity = tf.cast(data["image_id"], tf.int32)
        seed = tf.stack([identity, tf.fill(tf.shape(identity), step)], axis=-1)
        return {**{name: data[name] for name in self.batch_keys}, "seed": seed}

    def _update_logs(self, shares: dict, outputs: dict) -> dict:
        values = {name: sum_over_replicas(share) for name, share in shares.items()}
        logs = {"loss": tf.add_n(list(values.values())), **values}
        objects = tf.cast(outputs["gt_count"], tf.float32)
        logs["rpn_recall"] = _ratio(tf.reduce_sum(outputs["recall"] * objects), tf.reduce_sum(objects))
        sampled = tf.reduce_sum(tf.cast(outputs["roi_classes"] >= 0, tf.float32))
        positive = tf.reduce_sum(tf.cast(outputs["roi_classes"] > 0, tf.float32))
        logs["positive_rois"] = _ratio(positive, sampled)
        for tracker in self._trackers:
            tracker.update_state(logs[tracker.name])
        return logs

    # === Inference ===

    def make_predict_function(self, force: bool = False):
        """Keras calls this whenever `predict` begins."""
        untrained.warn_once(self)
        return super().make_predict_function(force)

    def predict_step(self, data: dict) -> dict:
        outputs = self(never_empty({key: data[key] for key in INFERENCE_INPUTS}), training=False)
        return {name: values[: tf.shape(data["image"])[0]] for name, values in outputs.items()}

    def predict_images(
        self, images: Sequence[Any], batch_size: int = 1, score_threshold: float | None = None
    ) -> list[Detections]:
        """Detections of pictures, in their own pixels.

        Args:
            images: paths, or arrays [H, W], [H, W, C] (uint8, uint16, or float 0..255; RGB), of any sizes.
            batch_size: how many are run at once; more needs more memory.
            score_threshold: drops detections below; None keeps all that the model gives.

        Raises:
            DataError: a file that is missing or no image, or an array of another number of channels.
            TypeError: one path or one image in place of a list.
        """
        check_images(images, self.config.input.channels)
        infer = inference_function(self)
        results: list[Detections] = []
        for start in range(0, len(images), batch_size):
            batch, sizes = self._prepare(images[start : start + batch_size])
            outputs = {key: np.asarray(value) for key, value in infer(batch).items()}
            results += Detections.from_batch(
                outputs,
                batch["image_size"].numpy(),
                sizes,
                self.config.class_names,
                self.config.detections.mask_threshold,
                self.config.detections.paste,
            )
        if score_threshold is not None:
            results = [detections.filter(score_threshold) for detections in results]
        return results

    def _prepare(self, images: Sequence[Any]) -> tuple[dict, np.ndarray]:
        """One padded batch of pictures, and their sizes [B, 2]."""
        config = self.config.input
        loaded = [load_image(image, config.channels) for image in images]
        prepared = [prepare_image(image, config, config.shorter_edge[-1]) for image in loaded]
        height, width = np.max([image.shape[:2] for image, _ in prepared], axis=0)
        padded = [tf.image.pad_to_bounding_box(image, 0, 0, height, width) for image, _ in prepared]
        batch = {"image": tf.stack(padded), "image_size": tf.stack([size for _, size in prepared])}
        return batch, np.array([image.shape[:2] for image in loaded])

    # === Saving ===

    def save_weights(self, filepath: str | Path, overwrite: bool = True, **kwargs):
        """Writes a `.weights.h5` file that holds the configuration too (see `mrcnn_tf.weights.save_weights`).

        `overwrite` False refuses to replace a file; other arguments, as for shards, are for Keras' own format.
        """
        if kwargs or not str(filepath).endswith(".weights.h5"):
            super().save_weights(filepath, overwrite, **kwargs)
        elif not overwrite and Path(filepath).exists():
            raise FileExistsError(f"{filepath} exists already")
        else:
            save_weights(self, filepath)

    def load_weights(self, filepath: str | Path, **kwargs):
        """Reads what `save_weights` wrote, and what Keras writes, as Keras does with its arguments."""
        if not is_own(filepath):
            super().load_weights(filepath, **kwargs)
            untrained.clear(self)
        elif any(kwargs.values()):
            raise ValueError(
                f"{', '.join(kwargs)} is for Keras' own format; mrcnn_tf.load takes weights of other classes"
            )
        else:
            load_weights(self, filepath)

    def get_config(self) -> dict:
        anew = {"anew_layers": list(self.anew_layers)} if self.anew_layers else {}
        return {"config": self.config.to_dict(), "name": self.name, **anew}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    def get_compile_config(self) -> dict | None:
        return {"optimizer": keras.optimizers.serialize(self.optimizer)} if self.compiled else None

    def compile_from_config(self, config: dict):
        self.compile(keras.optimizers.deserialize(config["optimizer"]))


def loss_names(config: Config) -> tuple[str, ...]:
    """The losses of a model, in the order in which they are reported."""
    names = ["rpn_objectness_loss", "rpn_box_loss"] if "rpn" in config.training.parts else []
    if "heads" in config.training.parts:
        names += ["box_class_loss", "box_delta_loss"]
        names += ["mask_loss"] if "mask" in config.branches else []
        names += ["keypoint_loss"] if "keypoints" in config.branches else []
    return tuple(names)


def _ratio(part: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
    """part / whole over all replicas; 0 where the whole is 0."""
    return tf.math.divide_no_nan(sum_over_replicas(part), sum_over_replicas(whole))


def _global_losses(outputs: dict, config: Config) -> dict:
    """This replica's share of each loss: over the replicas the shares add up to the loss."""
    sums: dict = {}
    if "rpn" in config.training.parts:
        sums |= _rpn_losses(outputs, config)
    if "heads" in config.training.parts:
        sums |= _head_losses(outputs, config)
    # A batch in which nothing counts (no object in any image) has losses of zero, not of 0 / 0.
    return {name: total / tf.maximum(sum_over_replicas(count), 1.0) for name, (total, count) in sums.items()}


def _rpn_losses(outputs: dict, config: Config) -> dict:
    return {
        "rpn_objectness_loss": losses.rpn_objectness_loss(outputs["rpn_logits"], outputs["rpn_labels"]),
        "rpn_box_loss": losses.rpn_box_loss(
            outputs["rpn_deltas"], outputs["rpn_targets"], outputs["rpn_labels"], config.rpn.box_loss_beta
        ),
    }


def _head_losses(outputs: dict, config: Config) -> dict:
    classes = tf.reshape(outputs["roi_classes"], [-1])
    sums = {
        "box_class_loss": losses.box_class_loss(outputs["class_logits"], classes),
        "box_delta_loss": losses.box_delta_loss(
            outputs["box_deltas"], tf.reshape(outputs["roi_targets"], [-1, 4]), classes, config.box_head.loss_beta
        ),
    }
    if "mask" in config.branches:
        sums["mask_loss"] = _mask_loss(outputs, config)
    if "keypoints" in config.branches:
        total, count = losses.keypoint_loss(
            outputs["keypoint_logits"], outputs["keypoint_index"], outputs["keypoint_valid"]
        )
        sums["keypoint_loss"] = total * config.keypoint_head.loss_weight, count
    return sums


def _mask_loss(outputs: dict, config: Config) -> tuple[tf.Tensor, tf.Tensor]:
    logits, targets, classes = (outputs[f"mask_{name}"] for name in ("logits", "targets", "classes"))
    if config.mask_head.activation == "softmax":
        return losses.softmax_mask_loss(logits, targets, classes)
    # One mask for all classes: every object is of the only class that there is a mask for.
    classes = tf.minimum(classes, 1) if config.mask_head.class_agnostic else classes
    return losses.mask_loss(logits, targets, classes)
