#!/usr/bin/env python3
"""Trains a Mask R-CNN in the four steps of Faster R-CNN, after which RPN and branches share their features.

1 the RPN alone; 2 the branches alone, on a backbone of their own and the proposals of 1; 3 the RPN anew on the
backbone of 2, which stays as it is; 4 the branches again on that backbone and the proposals of 3. Each step takes
training.steps steps, in a folder of its own; the model of all is model.keras in the folder that was named. A training
that was stopped, in whatever way, goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli
import _presets
import train

EXAMPLES = """examples:
  as the paper's section 4.4, from ImageNet weights:
    scripts/train_alternating.py --preset mask_rcnn_r101_fpn --train train.json --train-images train/ \\
        --val val.json --val-images val/ --backbone-weights resnet101.h5 --run-dir runs/shared

  something to try it out with, without any data:
    scripts/train_alternating.py --preset shapes --shapes 500 --run-dir runs/shapes training.steps=200"""


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _presets.PRESETS, _cli.OVERRIDES)
    train.add_arguments(parser)
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    train.check(arguments)
    import mrcnn_tf

    config = train.base_config(arguments)
    train_set, val_set = train.datasets(arguments)
    config = train.fit_to_data(config, train_set, overrides.get("branches", config.branches)).replace(**overrides)
    run_dir = Path(arguments.run_dir)
    result = mrcnn_tf.train_alternating(
        config,
        train_set,
        val_set,
        run_dir,
        devices=arguments.devices,
        batch_size=arguments.batch_size,
        backbone_weights=arguments.backbone_weights,
        reinitialize_stages=arguments.reinitialize,
        resume=not arguments.fresh,
    )
    things = {"model": run_dir / "model.keras", "steps": ", ".join(result.histories)}
    if val_set is not None:
        print(mrcnn_tf.evaluation_report(result.model, val_set, run_dir / "evaluation").table())
        things["evaluation"] = run_dir / "evaluation"
    _cli.print_problems(train_set, val_set)
    _cli.made(**things)
    return 0


if __name__ == "__main__":
    _cli.run(main)
