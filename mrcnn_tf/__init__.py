"""Mask R-CNN for TensorFlow and Keras 3: the public face of the package."""

from mrcnn_tf import presets, visualize, weights
from mrcnn_tf.augmented import Augmentation, predict_augmented
from mrcnn_tf.config import Config, ConfigError
from mrcnn_tf.data.cityscapes import read_cityscapes
from mrcnn_tf.data.coco import read_coco
from mrcnn_tf.data.errors import DataError, Problems
from mrcnn_tf.data.images import load_image
from mrcnn_tf.data.pipeline import evaluation_batches, training_batches
from mrcnn_tf.data.proposals import with_proposals
from mrcnn_tf.data.schema import Dataset, Example
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.detections import Detections
from mrcnn_tf.evaluation.cityscapes import read_cityscapes_results, write_cityscapes_results
from mrcnn_tf.evaluation.cityscapes_measure import CityscapesEvaluation, evaluate_cityscapes
from mrcnn_tf.evaluation.coco import Evaluation, evaluate_coco
from mrcnn_tf.evaluation.detect import detect
from mrcnn_tf.export import export
from mrcnn_tf.loading import load
from mrcnn_tf.model import MaskRCNN
from mrcnn_tf.presets import preset
from mrcnn_tf.proposing import save_proposals
from mrcnn_tf.reporting import evaluation_report, server_results
from mrcnn_tf.training.alternating import AlternatingResult, train_alternating
from mrcnn_tf.training.distribution import strategy
from mrcnn_tf.training.errors import (
    CheckpointError,
    DistributionError,
    NonFiniteLossError,
    TrainingInterrupted,
    WorkerLostError,
)
from mrcnn_tf.training.run import TrainingResult, train
from mrcnn_tf.weights.keras_applications import load_backbone
from mrcnn_tf.weights.report import WeightsError

__version__ = "0.1.0"

__all__ = [
    "AlternatingResult",
    "Augmentation",
    "CheckpointError",
    "CityscapesEvaluation",
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "Detections",
    "DistributionError",
    "Evaluation",
    "Example",
    "MaskRCNN",
    "NonFiniteLossError",
    "Problems",
    "TrainingInterrupted",
    "TrainingResult",
    "WeightsError",
    "WorkerLostError",
    "detect",
    "evaluate_cityscapes",
    "evaluate_coco",
    "evaluation_batches",
    "evaluation_report",
    "export",
    "load",
    "load_backbone",
    "load_image",
    "predict_augmented",
    "preset",
    "presets",
    "read_cityscapes",
    "read_cityscapes_results",
    "read_coco",
    "save_proposals",
    "server_results",
    "shapes",
    "strategy",
    "train",
    "train_alternating",
    "training_batches",
    "visualize",
    "weights",
    "with_proposals",
    "write_cityscapes_results",
]
