"""Functional builders of the parts that have weights: backbone, pyramid, RPN and the heads."""
