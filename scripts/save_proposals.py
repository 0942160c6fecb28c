#!/usr/bin/env python3
"""Writes the proposals of a model's RPN on annotated images to a file, for heads that are trained on them alone."""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli

EXAMPLES = """examples:
  the paper's ablations, an RPN that shares no features with the heads (section 3.1):
    scripts/train.py ... --run-dir runs/rpn training.parts=rpn
    scripts/save_proposals.py runs/rpn --data train.json --images train/ --output train.proposals.h5
    scripts/save_proposals.py runs/rpn --data val.json --images val/ --output val.proposals.h5
    scripts/train.py ... --run-dir runs/heads training.parts=heads \\
        --proposals train.proposals.h5 --val-proposals val.proposals.h5
    scripts/evaluate.py runs/heads --data val.json --images val/ --proposals val.proposals.h5

A file that was begun is gone on with, one that is there already for this model and these images is left as it is."""


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _cli.OVERRIDES)
    add = parser.add_argument
    add("model", help="folder of a training (its best weights are taken), or a .keras file")
    add("--data", metavar="JSON", help="annotations, COCO format")
    add("--images", metavar="DIR", help="the folder of their images")
    add("--cityscapes", metavar="DIR", help="images of Cityscapes instead")
    add("--split", choices=("train", "val"), help="which of Cityscapes' images")
    add("--output", required=True, metavar="FILE", help="the file, for example train.proposals.h5")
    add("--skip-bad", action="store_true", help="leave bad records and images out, and tell at the end")
    add("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    _cli.check_least(1, arguments, "batch_size")
    if Path(arguments.output).is_dir():
        raise _cli.UsageError(f"--output {arguments.output}: is a folder; name the file to write")
    if (arguments.data is None) == (arguments.cityscapes is None):
        raise _cli.UsageError(
            "give either --data JSON with --images DIR, or --cityscapes DIR with --split train or val"
        )
    if (arguments.cityscapes is None) != (arguments.split is None):
        raise _cli.UsageError("--cityscapes DIR and --split train or val belong together")
    import mrcnn_tf

    model = _cli.load(arguments.model, overrides)
    if arguments.cityscapes is not None:
        dataset = _cli.read_cityscapes(arguments.cityscapes, arguments.split, arguments.skip_bad)
    else:
        dataset = _cli.read_dataset(arguments.data, arguments.images, arguments.skip_bad, model.config.class_names)
    path = mrcnn_tf.save_proposals(model, dataset, arguments.output, arguments.batch_size)
    _cli.print_problems(dataset)
    _cli.made(proposals=path)
    return 0


if __name__ == "__main__":
    _cli.run(main)
