"""The layers of all stages of a Mask R-CNN, and the two graphs that wire them: inference and training.

Shape letters: B images, H W pixels, N anchors, P proposals, R sampled RoIs, D detections, G ground-truth objects,
J keypoints, K classes, M mask side, S side of a ground-truth crop.
"""

from __future__ import annotations

import keras

from mrcnn_tf.config import Config
from mrcnn_tf.layers.anchors import Anchors, MoveFarCorner
from mrcnn_tf.layers.detection_targets import DetectionTargets
from mrcnn_tf.layers.detections import DetectBoxes, SelectMasks
from mrcnn_tf.layers.keypoints import DecodeKeypoints, KeypointTargets
from mrcnn_tf.layers.normalize import Normalize
from mrcnn_tf.layers.proposals import Proposals
from mrcnn_tf.layers.roi_pool import make_roi_layer
from mrcnn_tf.layers.rois import FlattenRoIs, MaskTargets, UnflattenRoIs
from mrcnn_tf.layers.rpn_targets import RPNTargets
from mrcnn_tf.networks import fpn as pyramid
from mrcnn_tf.networks.box_head import BoxHead
from mrcnn_tf.networks.keypoint_head import KeypointHead
from mrcnn_tf.networks.mask_head import MaskHead
from mrcnn_tf.networks.resnet import Res5, resnet
from mrcnn_tf.networks.rpn import RPNHead

# Pixels per cell of the maps on which anchors stand.
STRIDES = {"fpn": pyramid.STRIDES, "c4": (16,), "c5": (32,), "dc5": (16,)}
PYRAMID_TOP = 4  # RoIs are read from P2..P5


class Branch:
    """One branch on RoIs: the RoI layer, res5 where that is the head, and the branch's own layers."""

    def __init__(self, name: str, config: Config, pool: int, res5: Res5 | None, head):
        roi = config.roi
        self.align = make_roi_layer(
            roi.layer,
            pool,
            strides=STRIDES[config.backbone.features][:PYRAMID_TOP],
            samples=roi.samples,
            reduce=roi.reduce,
            half_pixel=roi.half_pixel,
            canonical_size=roi.canonical_size,
            canonical_level=roi.canonical_level,
            name=f"{name}_align",
        )
        self.res5 = res5
        self.head = head

    def features(self, maps: list, rois: keras.KerasTensor, image_index: keras.KerasTensor) -> keras.KerasTensor:
        """What the head sees of RoIs [N, 4]: [N, S, S, C]."""
        pooled = self.align(maps[:PYRAMID_TOP], rois, image_index)
        return pooled if self.res5 is None else self.res5(pooled)

    def __call__(self, maps: list, rois: keras.KerasTensor, image_index: keras.KerasTensor):
        return self.head(self.features(maps, rois, image_index))


class Stages:
    """The layers of all stages; each graph is made of them by one of the methods.

    Attributes:
        tensors: {stage: (its symbolic inputs, its symbolic outputs)} of the inference graph, for profiling.
    """

    def __init__(self, config: Config):
        self.config = config
        epsilon = config.backbone.norm_epsilon
        is_c4 = config.backbone.features == "c4"
        res5 = Res5(config.backbone, config.box_head.res5_stride) if is_c4 else None
        box_head = BoxHead(config.box_head, config.num_classes, pool_mean=is_c4, epsilon=epsilon)
        self.box = Branch("box", config, config.box_head.pool, res5, box_head)
        self.mask = self.keypoints = None
        if "mask" in config.branches:
            mask_head = MaskHead(config.mask_head, config.num_classes, epsilon, config.mask_side)
            self.mask = Branch("mask", config, config.mask_head.pool, res5, mask_head)
        if "keypoints" in config.branches:
            head = KeypointHead(config.keypoint_head)
            # On the map of res4, since res5 makes 7 x 7 of it: heat maps want resolution.
            self.keypoints = Branch("keypoint", config, config.keypoint_head.pool, None, head)
        rpn = config.rpn
        self.proposals = Proposals(
            rpn.pre_nms_train,
            rpn.pre_nms_test,
            rpn.post_nms_train,
            rpn.post_nms_test,
            rpn.nms_iou,
            rpn.min_size,
            name="proposals",
        )
        self.detect_boxes = DetectBoxes(
            config.detections.score_threshold,
            config.detections.nms_iou,
            config.detections.max_per_image,
            config.box_head.delta_weights,
            config.detections.one_class_per_box,
            config.detections.min_size,
            config.detections.drop_small,
            name="detect_boxes",
        )
        self.tensors: dict = {}
        self._shared = None

    def inputs(self) -> dict:
        """The symbolic inputs of both graphs."""
        config = self.config
        side = config.data.mask_crop
        spec = {
            "image": ((None, None, config.input.channels), "float32"),
            "image_size": ((2,), "int32"),
            "boxes": ((None, 4), "float32"),
            "classes": ((None,), "int32"),
            "crowd": ((None,), "uint8"),
        }
        if self.mask:
            spec["masks"] = ((None, side, side), "uint8")
        if self.keypoints:
            spec["keypoints"] = ((None, len(config.keypoint_head.names), 3), "float32")
        if "rpn" not in config.training.parts:
            spec["proposals"] = ((None, 4), "float32")
        spec["seed"] = ((2,), "int32")
        return {key: keras.Input(shape, dtype=dtype, name=key) for key, (shape, dtype) in spec.items()}

    # === What both graphs share ===

    def shared(self, inputs: dict) -> tuple:
        """Feature maps, anchors, RPN logits and deltas per level: made once, used by both graphs."""
        if self._shared is None:
            config = self.config
            image = Normalize(
                mean=config.input.mean,
                std=config.input.std,
                channel_order=config.input.channel_order,
                size_divisor=config.input.size_divisor,
                name="normalize",
            )(inputs["image"], inputs["image_size"])
            maps = features = resnet(image, config.backbone)
            if config.backbone.features == "fpn":
                features = pyramid.fpn(maps, config.fpn, config.backbone.norm_epsilon)
            anchors = Anchors(
                config.anchors.sizes,
                config.anchors.ratios,
                config.anchors.offset,
                config.anchors.rounded,
                strides=STRIDES[config.backbone.features],
                stride_rule=config.anchors.stride_rule,
                shrink=config.anchors.shrink,
                name="anchors",
            )(features)
            rpn = RPNHead(config.rpn.channels, config.anchors.per_position, config.rpn.convs, name="rpn")
            logits, deltas = rpn(features)
            self._shared = features, anchors, logits, deltas
            self.tensors["normalize"] = ([inputs["image"], inputs["image_size"]], image)
            self.tensors["backbone"] = (image, maps)
            if config.backbone.features == "fpn":
                self.tensors["fpn"] = (maps, features)
            self.tensors["rpn"] = (features, [logits, deltas, anchors])
        return self._shared

    def _last_pixel(self, inputs: dict) -> keras.KerasTensor:
        """What boxes are cut to: the images' sizes, less what anchors lose of theirs (`MoveFarCorner`)."""
        shrink = self.config.anchors.shrink
        return keras.ops.cast(inputs["image_size"], "float32") - shrink if shrink else inputs["image_size"]

    def _moved(self, boxes: keras.KerasTensor, sign: int, name: str) -> keras.KerasTensor:
        """Boxes from outside made smaller (sign -1) as the anchors are, or detections made whole again (sign 1)."""
        shrink = self.config.anchors.shrink
        return MoveFarCorner(sign * shrink, name=name)(boxes) if shrink else boxes

    # === Inference ===

    def inference(self, inputs: dict) -> dict:
        """Proposals, box branch, NMS, and the other branches on the detections alone (section 3.1)."""
        features, anchors, logits, deltas = self.shared(inputs)
        maps, size = features[:PYRAMID_TOP], self._last_pixel(inputs)
        rois, _ = self.proposals(logits, deltas, anchors, size, training=False)
        box_features = self.box.features(maps, *FlattenRoIs()(rois))
        class_logits, box_deltas = self.box.head(box_features)
        scored = [UnflattenRoIs()(class_logits, rois), UnflattenRoIs()(box_deltas, rois)]
        boxes, classes, scores = self.detect_boxes(*scored, rois, size)
        self.tensors["proposals"] = ([logits, deltas, anchors, size], rois)
        self.tensors["box_align"] = ([maps, rois], box_features)
        self.tensors["box_head"] = ([box_features, rois], scored)
        self.tensors["detections"] = ([*scored, rois, size], [boxes, classes, scores])
        outputs = {"boxes": self._moved(boxes, 1, "outer_boxes"), "classes": classes, "scores": scores}
        flat_boxes, image_index = FlattenRoIs()(boxes)
        flat_classes, _ = FlattenRoIs()(classes)
        if self.mask:
            mask_features = self.mask.features(maps, flat_boxes, image_index)
            mask_logits = self.mask.head(mask_features)
            masks = SelectMasks(self.config.mask_head.activation, name="select_masks")(mask_logits, flat_classes)
            outputs["masks"] = UnflattenRoIs()(masks, boxes)
            self.tensors["mask_align"] = ([maps, boxes], mask_features)
            self.tensors["mask_head"] = (mask_features, mask_logits)
        if self.keypoints:
            keypoint_features = self.keypoints.features(maps, flat_boxes, image_index)
            heatmaps = self.keypoints.head(keypoint_features)
            decoded = DecodeKeypoints(name="decode_keypoints")(heatmaps, flat_boxes, flat_classes)
            outputs["keypoints"] = UnflattenRoIs()(decoded, boxes)
            self.tensors["keypoint_align"] = ([maps, boxes], keypoint_features)
            self.tensors["keypoint_head"] = (keypoint_features, heatmaps)
        return outputs

    # === Training ===

    def training(self, inputs: dict) -> dict:
        """Everything the losses of the parts in training need: predictions and targets of RPN and branches."""
        parts = self.config.training.parts
        features, anchors, logits, deltas = self.shared(inputs)
        boxes = self._moved(inputs["boxes"], -1, "inner_boxes")
        inputs = {**inputs, "image_size": self._last_pixel(inputs), "boxes": boxes}
        maps = features[:PYRAMID_TOP]
        truth = [inputs[key] for key in ("boxes", "classes", "crowd")]
        outputs = {}
        if "rpn" in parts:
            outputs |= self._rpn_training(logits, deltas, anchors, truth, inputs)
            rois, scores = self.proposals(logits, deltas, anchors, inputs["image_size"], training=True)
        else:
            rois = self._moved(inputs["proposals"], -1, "inner_proposals")
            scores = rois[..., 0]  # they have no say in the sample
        sampled = DetectionTargets(
            self.config.roi.rois_per_image,
            self.config.roi.positive_fraction,
            self.config.roi.positive_iou,
            self.config.box_head.delta_weights,
            name="detection_targets",
        )(rois, scores, *truth, inputs["seed"])
        outputs |= {
            "roi_classes": sampled["classes"],
            "roi_targets": sampled["deltas"],
            "recall": sampled["recall"],
            "gt_count": sampled["gt_count"],
        }
        if "heads" in parts:
            outputs["class_logits"], outputs["box_deltas"] = self.box(maps, *FlattenRoIs()(sampled["rois"]))
            if self.mask:
                outputs |= self._mask_training(maps, sampled, inputs)
            if self.keypoints:
                outputs |= self._keypoint_training(maps, sampled, inputs)
        return outputs

    def _rpn_training(self, logits: list, deltas: list, anchors: list, truth: list, inputs: dict) -> dict:
        rpn_labels, rpn_targets = self._rpn_targets(anchors, truth, inputs)
        return {
            "rpn_logits": keras.layers.Concatenate(axis=1, dtype="float32")(logits) if len(logits) > 1 else logits[0],
            "rpn_deltas": keras.layers.Concatenate(axis=1, dtype="float32")(deltas) if len(deltas) > 1 else deltas[0],
            "rpn_labels": rpn_labels,
            "rpn_targets": rpn_targets,
        }

    def _rpn_targets(self, anchors: list, truth: list, inputs: dict) -> tuple:
        rpn = self.config.rpn
        return RPNTargets(
            positive_iou=rpn.positive_iou,
            negative_iou=rpn.negative_iou,
            low_quality_matches=rpn.low_quality_matches,
            anchors_per_image=rpn.anchors_per_image,
            positive_fraction=rpn.positive_fraction,
            name="rpn_targets",
        )(anchors, *truth, inputs["image_size"], inputs["seed"])

    def _mask_training(self, maps: list, sampled: dict, inputs: dict) -> dict:
        positives = MaskTargets(self.config.mask_side, name="mask_targets")(
            sampled["rois"], sampled["classes"], sampled["matched"], inputs["boxes"], inputs["masks"]
        )
        return {
            "mask_logits": self.mask(maps, positives["rois"], positives["image_index"]),
            "mask_targets": positives["targets"],
            "mask_classes": positives["classes"],
        }

    def _keypoint_training(self, maps: list, sampled: dict, inputs: dict) -> dict:
        targets = KeypointTargets(self.config.keypoint_head.side, name="keypoint_targets")(
            sampled["rois"], sampled["classes"], sampled["matched"], inputs["keypoints"]
        )
        return {
            "keypoint_logits": self.keypoints(maps, targets["rois"], targets["image_index"]),
            "keypoint_index": targets["index"],
            "keypoint_valid": targets["valid"],
        }
