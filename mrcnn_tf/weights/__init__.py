"""Weights of public checkpoints, and of our own."""

from mrcnn_tf.weights.assign import CLASS_LAYERS, assign
from mrcnn_tf.weights.files import load_weights, save_weights
from mrcnn_tf.weights.keras_applications import load_backbone
from mrcnn_tf.weights.report import WeightsError, WeightsReport
from mrcnn_tf.weights.sources import read_tensors

__all__ = [
    "CLASS_LAYERS",
    "WeightsError",
    "WeightsReport",
    "assign",
    "load_backbone",
    "load_weights",
    "read_tensors",
    "save_weights",
]
