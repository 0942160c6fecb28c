#!/usr/bin/env python3
"""From nothing to a served model on the shapes data set: train, evaluate, look at pictures, export.

Circles, squares and triangles are drawn on the fly, so no data is needed. About eight minutes on two cores.
A training that was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import mrcnn_tf
from mrcnn_tf import visualize


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run-dir", default="runs/shapes", metavar="DIR", help="where everything goes (default: %(default)s)")
    add("--steps", type=int, metavar="N", help="training steps of 8 images (default: those of the preset 'shapes')")
    add("--images", type=int, default=100, metavar="N", help="held-out images to evaluate on (default: %(default)s)")
    add("--minimum-ap50", type=float, default=0.0, metavar="A", help="fail if box or mask AP50 is below (default: off)")
    add("--fresh", action="store_true", help="start anew; an earlier training is moved to earlier-1/")
    return parser.parse_args()


def make_config(steps: int | None) -> mrcnn_tf.Config:
    """The preset, shortened where asked for, with an epoch (a point in the curves) every twentieth of the training."""
    config = mrcnn_tf.preset("shapes")
    config = config.with_steps(steps or config.training.steps)
    return config.replace(training__steps_per_epoch=max(1, config.training.steps // 20))


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    run_dir = Path(arguments.run_dir)
    config = make_config(arguments.steps)

    # Every training image is seen once; the held-out images come from another seed.
    count = config.training.steps * config.training.images_per_device
    started = time.perf_counter()
    result = mrcnn_tf.train(config, mrcnn_tf.shapes(count, seed=0), run_dir=run_dir, resume=not arguments.fresh)
    seconds = time.perf_counter() - started
    if result.resumed_from >= result.steps:
        print(f"the training was complete: {result.steps} steps, made by an earlier command")
    else:
        print(f"{result.steps - result.resumed_from} training steps took {seconds:.0f} s")

    held_out = mrcnn_tf.shapes(arguments.images, seed=1)
    evaluation = mrcnn_tf.evaluation_report(result.model, held_out, run_dir / "evaluation", pictures=4)
    print(evaluation.table())

    pictures = [np.asarray(Image.open(path)) for path in sorted((run_dir / "evaluation" / "pictures").iterdir())]
    visualize.save(visualize.grid(pictures, columns=2), run_dir / "picture.png")
    saved_model = mrcnn_tf.export(result.model, run_dir / "saved_model")

    print("made:")
    print(f"  ground truth beside prediction  {run_dir / 'picture.png'}")
    print(f"  training curves                 {run_dir / 'pictures' / 'curves.png'}")
    print(f"  measures of each class          {run_dir / 'evaluation' / 'evaluation.json'}")
    print(f"  model for Keras                 {run_dir / 'model.keras'}")
    print(f"  SavedModel for TensorFlow       {saved_model}")
    return verdict(evaluation, arguments.minimum_ap50)


def verdict(evaluation, minimum: float) -> int:
    """Exit status 0 when box and mask AP50 reach `minimum`, else 1."""
    box, mask = evaluation.metrics["box/AP50"], evaluation.metrics["mask/AP50"]
    print(f"on {evaluation.image_count} held-out images: box AP50 {box:.3f}, mask AP50 {mask:.3f}")
    # Written so that a measure that is not a number fails as well.
    if not min(box, mask) >= minimum:
        print(f"error: an AP50 below {minimum:.2f}; train for more steps (--fresh --steps N)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (mrcnn_tf.ConfigError, mrcnn_tf.CheckpointError, mrcnn_tf.NonFiniteLossError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
