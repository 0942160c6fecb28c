#!/usr/bin/env python3
"""Writes a trained model as a SavedModel, which TensorFlow and TensorFlow Serving run without mrcnn_tf."""

from __future__ import annotations

import argparse

import _cli

EXAMPLES = """examples:
  scripts/export.py runs/first served/1
  scripts/export.py runs/first served/1 --paste-masks detections.score_threshold=0.5

The SavedModel takes pictures of any size and answers in their own pixels; resizing is inside. Signatures:
  serving_default   images uint8 [B, H, W, 3], RGB, of one size
  encoded           the bytes of B JPEG or PNG files, of any sizes
  class_names       no input: the names of the classes 1, 2, ...
Both answer with boxes [B, D, 4] (y1, x1, y2, x2), classes [B, D] (0: no detection), scores [B, D], image_size [B, 2]
and what else the model finds: masks, [B, D, 28, 28] probabilities inside each box or, with --paste-masks, [B, D, H, W]
of 0 and 1 on the whole picture; keypoints [B, D, J, 3] (y, x, how sure)."""

HOW_TO_USE = """use it:
  import tensorflow as tf
  found = tf.saved_model.load("{path}").signatures["encoded"](encoded=tf.constant([open("photo.jpg", "rb").read()]))"""


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _cli.OVERRIDES)
    add = parser.add_argument
    add("model", help="folder of a training (its best weights are taken), or a .keras file")
    add("path", help="folder to write; a SavedModel that is there is replaced")
    add("--paste-masks", action="store_true", help="masks of the picture's size instead of 28 x 28 in the box")
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    import mrcnn_tf

    model = _cli.load(arguments.model, overrides)
    path = mrcnn_tf.export(model, arguments.path, paste_masks=arguments.paste_masks)
    _cli.made(savedmodel=path)
    print(HOW_TO_USE.format(path=path))
    return 0


if __name__ == "__main__":
    _cli.run(main)
