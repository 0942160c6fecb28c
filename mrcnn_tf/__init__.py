"""Mask R-CNN for TensorFlow and Keras 3."""
