"""Data sets, and the batches that the network takes."""

from mrcnn_tf.data.batch_plan import BatchPlan
from mrcnn_tf.data.coco import read_coco
from mrcnn_tf.data.errors import DataError, Problems, clear_data_errors
from mrcnn_tf.data.images import decode_image, load_image
from mrcnn_tf.data.masks import full_masks, mask_crops
from mrcnn_tf.data.pipeline import evaluation_batches, training_batches
from mrcnn_tf.data.schema import Dataset, Example
from mrcnn_tf.data.shapes import shapes
from mrcnn_tf.data.transforms import prepare_image

__all__ = [
    "BatchPlan",
    "DataError",
    "Dataset",
    "Example",
    "Problems",
    "clear_data_errors",
    "decode_image",
    "evaluation_batches",
    "full_masks",
    "load_image",
    "mask_crops",
    "prepare_image",
    "read_coco",
    "shapes",
    "training_batches",
]
