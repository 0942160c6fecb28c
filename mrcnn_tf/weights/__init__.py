"""Weights of public checkpoints, and of our own."""

from mrcnn_tf.weights.assign import assign
from mrcnn_tf.weights.keras_applications import load_backbone
from mrcnn_tf.weights.report import WeightsError, WeightsReport

__all__ = ["WeightsError", "WeightsReport", "assign", "load_backbone"]
