"""Mask R-CNN as one Keras model: an inference graph, and a training graph over the same layers.

Shape letters: B images, H W pixels, L levels, N anchors, P proposals, R sampled RoIs, D detections,
G ground-truth objects, K classes, M mask side, S side of a ground-truth crop.

Nothing here is numerical: the stages are in `networks` and `layers`, the losses in `losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mrcnn_tf import losses
from mrcnn_tf.config import Config
from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.transforms import prepare_image
from mrcnn_tf.detections import Detections
from mrcnn_tf.inference import inference_function
from mrcnn_tf.layers.anchors import Anchors
from mrcnn_tf.layers.detection_targets import DetectionTargets
from mrcnn_tf.layers.detections import DetectBoxes, SelectMasks
from mrcnn_tf.layers.normalize import Normalize
from mrcnn_tf.layers.proposals import Proposals
from mrcnn_tf.layers.roi_align import RoIAlign
from mrcnn_tf.layers.rois import FlattenRoIs, MaskTargets, UnflattenRoIs
from mrcnn_tf.layers.rpn_targets import RPNTargets
from mrcnn_tf.networks.box_head import BoxHead
from mrcnn_tf.networks.fpn import STRIDES, fpn
from mrcnn_tf.networks.mask_head import MaskHead
from mrcnn_tf.networks.resnet import resnet
from mrcnn_tf.networks.rpn import RPNHead
from mrcnn_tf.optimizer import make_optimizer

LOSSES = ("rpn_objectness_loss", "rpn_box_loss", "box_class_loss", "box_delta_loss", "mask_loss")
LOGS = ("loss", *LOSSES, "rpn_recall", "positive_rois")
INFERENCE_INPUTS = ("image", "image_size")
TRAINING_INPUTS = (*INFERENCE_INPUTS, "boxes", "classes", "crowd", "masks")


@keras.saving.register_keras_serializable("mrcnn_tf")
class MaskRCNN(keras.Model):
    """A Mask R-CNN with a ResNet-FPN backbone (section 3).

    Called on {"image": [B, H, W, C] RGB 0..255, "image_size": [B, 2] real height and width}, it gives
    {"boxes": [B, D, 4] pixels of that image, "classes": [B, D] int32, "scores": [B, D], "masks":
    [B, D, M, M] probabilities within each box}; places without a detection have class 0 and score 0.

    `fit`, `evaluate` and `predict` take the batches that `mrcnn_tf.training_batches` and
    `mrcnn_tf.evaluation_batches` make: one dictionary with the keys of `TRAINING_INPUTS` and `image_id`.

    Attributes:
        training_graph: the functional model from which `train_step` takes the losses.
        stages: for profiling, {stage: (its symbolic inputs, its symbolic outputs)} of the inference
            graph, in order; `keras.Model(*model.stages["fpn"])` is that stage alone.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: Config | dict, name: str = "mask_rcnn", **kwargs):
        if isinstance(config, dict):
            config = Config.from_dict(config)
        stages = _Stages(config)
        inputs = stages.inputs()
        super().__init__(
            inputs={key: inputs[key] for key in INFERENCE_INPUTS}, outputs=stages.inference(inputs), name=name, **kwargs
        )
        self.config = config
        self.stages = stages.tensors
        self.training_graph = keras.Model(inputs, stages.training(inputs), name="training_graph")
        self._trackers = [keras.metrics.Mean(name=log) for log in LOGS]

    # === Training ===

    def compile(self, optimizer=None, global_batch: int | None = None, **kwargs):
        """Keras' `compile`; without an optimiser, the one that `config.training` describes.

        Args:
            optimizer: any Keras optimiser.
            global_batch: images per step over all devices, for the learning rate's linear scaling.
        """
        # XLA has no CropAndResize, which Keras' "auto" could not know.
        kwargs.setdefault("jit_compile", False)
        with self.distribute_strategy.scope():
            if optimizer is None:
                optimizer = make_optimizer(self.config.training, global_batch)
            super().compile(optimizer=optimizer, **kwargs)
            self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Everything is built already; Keras would add up a first batch over the replicas to find out."""

    @property
    def metrics(self) -> list:
        return self._trackers

    def train_step(self, data: dict) -> dict:
        """One update; the logs are this step's losses, averaged over an epoch by Keras.

        Every loss is a sum divided by its count over all replicas, and the random samples come from
        each image's id and the step: how a global batch is split changes nothing.
        """
        step = tf.cast(self.optimizer.iterations, tf.int32)
        with tf.GradientTape() as tape:
            outputs = self.training_graph(_training_inputs(data, step), training=True)
            shares = _global_losses(outputs, self.config)
            total = tf.add_n(list(shares.values()))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(total, variables), variables)
        return self._update_logs(shares, outputs)

    def test_step(self, data: dict) -> dict:
        """The losses of a batch, with the same random samples at every evaluation."""
        outputs = self.training_graph(_training_inputs(data, 0), training=False)
        return self._update_logs(_global_losses(outputs, self.config), outputs)

    def _update_logs(self, shares: dict, outputs: dict) -> dict:
        values = {name: _sum_over_replicas(share) for name, share in shares.items()}
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

    def predict_step(self, data: dict) -> dict:
        return self({key: data[key] for key in INFERENCE_INPUTS}, training=False)

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
        """
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

    def get_config(self) -> dict:
        return {"config": self.config.to_dict(), "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    def get_compile_config(self) -> dict | None:
        return {"optimizer": keras.optimizers.serialize(self.optimizer)} if self.compiled else None

    def compile_from_config(self, config: dict):
        self.compile(keras.optimizers.deserialize(config["optimizer"]))


def _training_inputs(data: dict, step) -> dict:
    """The training graph's inputs; the seed of an image's samples is (its id, the step)."""
    identity = tf.cast(data["image_id"], tf.int32)
    seed = tf.stack([identity, tf.fill(tf.shape(identity), step)], axis=-1)
    return {**{key: data[key] for key in TRAINING_INPUTS}, "seed": seed}


def _sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _ratio(part: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
    """part / whole over all replicas; 0 where the whole is 0."""
    return tf.math.divide_no_nan(_sum_over_replicas(part), _sum_over_replicas(whole))


def _global_losses(outputs: dict, config: Config) -> dict:
    """This replica's share of each loss: over the replicas the shares add up to the loss."""
    sums = {
        "rpn_objectness_loss": losses.rpn_objectness_loss(outputs["rpn_logits"], outputs["rpn_labels"]),
        "rpn_box_loss": losses.rpn_box_loss(
            outputs["rpn_deltas"], outputs["rpn_targets"], outputs["rpn_labels"], config.rpn.box_loss_beta
        ),
        "box_class_loss": losses.box_class_loss(outputs["class_logits"], tf.reshape(outputs["roi_classes"], [-1])),
        "box_delta_loss": losses.box_delta_loss(
            outputs["box_deltas"],
            tf.reshape(outputs["roi_targets"], [-1, 4]),
            tf.reshape(outputs["roi_classes"], [-1]),
            config.box_head.loss_beta,
        ),
        "mask_loss": losses.mask_loss(outputs["mask_logits"], outputs["mask_targets"], outputs["mask_classes"]),
    }
    # A batch in which nothing counts (no object in any image) has losses of zero, not of 0 / 0.
    return {name: total / tf.maximum(_sum_over_replicas(count), 1.0) for name, (total, count) in sums.items()}


class _Stages:
    """The layers of all stages, and the two graphs that wire them."""

    def __init__(self, config: Config):
        self.config = config
        roi = config.roi
        align = {
            "samples": roi.samples,
            "half_pixel": roi.half_pixel,
            "canonical_size": roi.canonical_size,
            "canonical_level": roi.canonical_level,
        }
        self.box_align = RoIAlign(config.box_head.pool, name="box_align", **align)
        self.box_head = BoxHead(config.box_head, config.num_classes)
        self.mask_align = RoIAlign(config.mask_head.pool, name="mask_align", **align)
        self.mask_head = MaskHead(config.mask_head, config.num_classes)
        self.proposals = Proposals(
            config.rpn.pre_nms_train,
            config.rpn.pre_nms_test,
            config.rpn.post_nms_train,
            config.rpn.post_nms_test,
            config.rpn.nms_iou,
            config.rpn.min_size,
            name="proposals",
        )
        self.detect_boxes = DetectBoxes(
            config.detections.score_threshold,
            config.detections.nms_iou,
            config.detections.max_per_image,
            config.box_head.delta_weights,
            name="detect_boxes",
        )
        self.tensors: dict = {}
        self._shared = None

    def inputs(self) -> dict:
        side = self.config.data.mask_crop
        spec = {
            "image": ((None, None, self.config.input.channels), "float32"),
            "image_size": ((2,), "int32"),
            "boxes": ((None, 4), "float32"),
            "classes": ((None,), "int32"),
            "crowd": ((None,), "uint8"),
            "masks": ((None, side, side), "uint8"),
            "seed": ((2,), "int32"),
        }
        return {key: keras.Input(shape, dtype=dtype, name=key) for key, (shape, dtype) in spec.items()}

    def shared(self, inputs: dict) -> tuple:
        """Features P2..P6, anchors, RPN logits and deltas per level: made once, used by both graphs."""
        if self._shared is None:
            config = self.config
            image = Normalize(
                mean=config.input.mean,
                std=config.input.std,
                channel_order=config.input.channel_order,
                size_divisor=config.input.size_divisor,
                name="normalize",
            )(inputs["image"], inputs["image_size"])
            maps = resnet(image, config.backbone)
            features = fpn(maps, config.fpn)
            anchors = Anchors(
                config.anchors.sizes,
                config.anchors.ratios,
                config.anchors.offset,
                config.anchors.rounded,
                strides=STRIDES,
                stride_rule=config.anchors.stride_rule,
                name="anchors",
            )(features)
            logits, deltas = RPNHead(config.rpn.channels, config.anchors.per_position, name="rpn")(features)
            self._shared = features, anchors, logits, deltas
            self.tensors["normalize"] = ([inputs["image"], inputs["image_size"]], image)
            self.tensors["backbone"] = (image, maps)
            self.tensors["fpn"] = (maps, features)
            self.tensors["rpn"] = (features, [logits, deltas, anchors])
        return self._shared

    def inference(self, inputs: dict) -> dict:
        """Proposals, box branch, NMS, and the mask branch on the detections alone (section 3.1)."""
        features, anchors, logits, deltas = self.shared(inputs)
        size = inputs["image_size"]
        rois, _ = self.proposals(logits, deltas, anchors, size, training=False)
        box_features = self.box_align(features[:4], *FlattenRoIs()(rois))
        class_logits, box_deltas = self.box_head(box_features)
        scored = [UnflattenRoIs()(class_logits, rois), UnflattenRoIs()(box_deltas, rois)]
        boxes, classes, scores = self.detect_boxes(*scored, rois, size)
        mask_features = self.mask_align(features[:4], *FlattenRoIs()(boxes))
        mask_logits = self.mask_head(mask_features)
        masks = SelectMasks(name="select_masks")(mask_logits, FlattenRoIs()(classes)[0])
        self.tensors["proposals"] = ([logits, deltas, anchors, size], rois)
        self.tensors["box_align"] = ([features[:4], rois], box_features)
        self.tensors["box_head"] = ([box_features, rois], scored)
        self.tensors["detections"] = ([*scored, rois, size], [boxes, classes, scores])
        self.tensors["mask_align"] = ([features[:4], boxes], mask_features)
        self.tensors["mask_head"] = (mask_features, mask_logits)
        return {"boxes": boxes, "classes": classes, "scores": scores, "masks": UnflattenRoIs()(masks, boxes)}

    def training(self, inputs: dict) -> dict:
        """Everything the losses need: predictions and targets of the RPN, the box and mask branches."""
        config = self.config
        features, anchors, logits, deltas = self.shared(inputs)
        truth = [inputs[key] for key in ("boxes", "classes", "crowd")]
        rpn_labels, rpn_targets = RPNTargets(
            positive_iou=config.rpn.positive_iou,
            negative_iou=config.rpn.negative_iou,
            low_quality_matches=config.rpn.low_quality_matches,
            anchors_per_image=config.rpn.anchors_per_image,
            positive_fraction=config.rpn.positive_fraction,
            name="rpn_targets",
        )(anchors, *truth, inputs["image_size"], inputs["seed"])
        rois, scores = self.proposals(logits, deltas, anchors, inputs["image_size"], training=True)
        sampled = DetectionTargets(
            config.roi.rois_per_image,
            config.roi.positive_fraction,
            config.roi.positive_iou,
            config.box_head.delta_weights,
            name="detection_targets",
        )(rois, scores, *truth, inputs["seed"])
        class_logits, box_deltas = self.box_head(self.box_align(features[:4], *FlattenRoIs()(sampled["rois"])))
        positives = MaskTargets(config.mask_side, name="mask_targets")(
            sampled["rois"], sampled["classes"], sampled["matched"], inputs["boxes"], inputs["masks"]
        )
        mask_features = self.mask_align(features[:4], positives["rois"], positives["image_index"])
        return {
            "rpn_logits": keras.layers.Concatenate(axis=1, dtype="float32")(logits),
            "rpn_deltas": keras.layers.Concatenate(axis=1, dtype="float32")(deltas),
            "rpn_labels": rpn_labels,
            "rpn_targets": rpn_targets,
            "class_logits": class_logits,
            "box_deltas": box_deltas,
            "roi_classes": sampled["classes"],
            "roi_targets": sampled["deltas"],
            "mask_logits": self.mask_head(mask_features),
            "mask_targets": positives["targets"],
            "mask_classes": positives["classes"],
            "recall": sampled["recall"],
            "gt_count": sampled["gt_count"],
        }
