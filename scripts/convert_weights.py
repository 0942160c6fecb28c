#!/usr/bin/env python3
"""Converts another implementation's weights into a .weights.h5 file that mrcnn_tf.load reads.

Neither that implementation nor its framework is needed, and nothing in the file is run. Which network the weights are
of is told from their names and shapes; at the end every tensor of the file and every weight of the model is accounted
for."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import _cli

EXAMPLES = """examples:
  scripts/convert_weights.py torchvision maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth mask_rcnn.weights.h5
  scripts/convert_weights.py detectron2 model_final_f10217.pkl mask_rcnn.weights.h5
  scripts/convert_weights.py detectron2 R-50.pkl start.weights.h5 --preset mask_rcnn_r50_fpn --num-classes 3
  scripts/convert_weights.py matterport mask_rcnn_balloon_0030.h5 balloon.weights.h5
Then, in Python:
  model = mrcnn_tf.load("mask_rcnn.weights.h5")"""

SOURCES = """sources and their files:
  torchvision   .pth: Mask, Keypoint and Faster R-CNN with ResNet-FPN (both versions); ResNets and ResNeXts of ImageNet
  detectron2    .pkl of its model zoo or .pth of a training: Faster, Mask and Keypoint R-CNN with C4, DC5 and FPN;
                R-50.pkl, R-101.pkl and X-101-32x8d.pkl of ImageNet
  matterport    .h5: mask_rcnn_coco.h5, and what was trained with Matterport's Mask_RCNN
  keras         .h5 or .npz: ResNet50, ResNet101 and ResNet152 of Keras applications
Weights of ImageNet are a backbone's alone: the other layers start anew, and have to be trained."""


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, SOURCES, _cli.OVERRIDES)
    add = parser.add_argument
    add(
        "source", choices=("torchvision", "detectron2", "matterport", "keras"), help="whose weights they are; see below"
    )
    add("file", help="the file of weights")
    add("out", help="the file to write, ending in .weights.h5; one that is there is replaced")
    add("--preset", metavar="NAME", help="the network and its settings, instead of what the weights look like")
    add("--num-classes", type=int, metavar="N", help="other classes: the layers that depend on them start anew")
    add("--partial", action="store_true", help="write the file although weights are missing or left over")
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def choose_config(arguments: argparse.Namespace, overrides: dict[str, Any], found: Any) -> Any:
    """The configuration of the model: the preset that was asked for, or the one that the weights look like."""
    import mrcnn_tf
    from mrcnn_tf.weights import compare
    from mrcnn_tf.weights.guess import BACKBONE_CONVENTIONS

    theirs = found.config()
    if arguments.preset:
        config = mrcnn_tf.preset(arguments.preset)
        if "/" not in found.preset:  # ImageNet: any network can start from it that takes its pictures alike
            config = config.replace(**{name: compare.value(theirs, name) for name in BACKBONE_CONVENTIONS})
        elif config.num_classes != theirs.num_classes:
            config = mrcnn_tf.preset(arguments.preset, num_classes=theirs.num_classes)
    else:
        config = theirs
        print(f"network: {found.preset} ({mrcnn_tf.presets.describe(found.preset)})")
        for name, value in found.changes.items():
            print(f"  with {name}={value}")
    classes = arguments.num_classes
    if classes is not None and classes != config.num_classes:
        config = config.replace(num_classes=classes, class_names=())
    return config.replace(**overrides)


def convert(tensors: dict, source: str, config: Any, theirs: Any) -> tuple[Any, Any]:
    """The model, and the report; layers of other classes or keypoints than the weights' stay as drawn."""
    import mrcnn_tf
    from mrcnn_tf import weights

    model = mrcnn_tf.MaskRCNN(config)
    there = {weight.path.split("/")[0] for weight in model.weights}
    skip = []
    if config.num_classes != theirs.num_classes:
        skip += [layer for layer in weights.CLASS_LAYERS if layer in there and layer != "keypoint_deconv"]
    if len(config.keypoint_head.names) != len(theirs.keypoint_head.names) and "keypoint_deconv" in there:
        skip.append("keypoint_deconv")
    # The report is printed here, complete or not; it need not be logged as well.
    logging.getLogger("mrcnn_tf").setLevel(logging.CRITICAL)
    report = weights.assign(model, tensors, source, skip=skip)
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    return model, report


def main() -> int:
    start = time.monotonic()
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    if not arguments.out.endswith(".weights.h5"):
        raise _cli.UsageError(f"{arguments.out}: the file to write has to end in .weights.h5")
    if not Path(arguments.out).absolute().parent.is_dir():
        raise _cli.UsageError(f"{arguments.out}: there is no such folder")
    from mrcnn_tf import WeightsError, weights
    from mrcnn_tf.weights.files import save_weights
    from mrcnn_tf.weights.guess import guess

    tensors = weights.read_tensors(arguments.file, arguments.source)
    print(f"{arguments.file}: {len(tensors)} tensors")
    try:
        found = guess(tensors, arguments.source)
        config = choose_config(arguments, overrides, found)
        model, report = convert(tensors, arguments.source, config, found.config())
    except WeightsError as error:
        raise WeightsError(f"{arguments.file}: {error}") from error
    print(report.summary())
    if (report.missing or report.unused) and not arguments.partial:
        raise WeightsError(
            f"{arguments.file}: nothing was written, because {len(report.missing)} weights are missing and "
            f"{len(report.unused)} tensors left over (see above); --partial writes the file all the same"
        )
    save_weights(model, arguments.out)
    print(f"converted in {time.monotonic() - start:.1f} s, with {_cli.peak_memory() / 1e9:.2f} GB of memory at most")
    _cli.made(weights=arguments.out)
    return 0


if __name__ == "__main__":
    _cli.run(main)
