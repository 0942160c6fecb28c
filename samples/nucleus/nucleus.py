#!/usr/bin/env python3
"""Nuclei in microscope images: small, many, touching each other; learnt from 266 images in 400 steps.

A ResNet-50-FPN from ImageNet weights whose last stage (conv5) is drawn anew, at 256 pixels, with anchors of 8 to 128
pixels; the preset "nucleus" holds all values. About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import mrcnn_tf

DATA = """the data:
  --data is a folder with instances_train.json and instances_val.json (COCO format, one category) and the folders
  train/ and val/ with their images, as made of the 2018 Data Science Bowl's nuclei.
  --weights is an ImageNet ResNet-50 of Keras applications: its .h5 file, or a .npz keyed layer/weight.

example:
  samples/nucleus/nucleus.py --data nuclei/ --weights resnet50_imagenet.npz --run-dir runs/nucleus"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DATA, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the data set's folder, see below")
    add("--weights", metavar="FILE", help="ImageNet weights of ResNet-50; without them everything is drawn anew")
    add("--run-dir", default="runs/nucleus", metavar="DIR", help="where everything goes (default: %(default)s)")
    add("--steps", type=int, metavar="N", help="training steps (default: those of the preset, 400)")
    add("--val-images", type=int, metavar="N", help="evaluate on the first N validation images only (default: all)")
    add("--fresh", action="store_true", help="start anew; an earlier training is moved to earlier-1/")
    return parser.parse_args()


def make_config(steps: int | None) -> mrcnn_tf.Config:
    """The preset, with its schedule over `steps`."""
    config = mrcnn_tf.preset("nucleus")
    return config.with_steps(steps or config.training.steps)


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    data, run_dir = Path(arguments.data), Path(arguments.run_dir)
    train_set = mrcnn_tf.read_coco(data / "instances_train.json", data / "train")
    val_set = mrcnn_tf.read_coco(data / "instances_val.json", data / "val", class_names=train_set.class_names)
    if arguments.val_images is not None:
        val_set = val_set.subset(range(min(arguments.val_images, len(val_set))))

    started = time.perf_counter()
    result = mrcnn_tf.train(
        make_config(arguments.steps),
        train_set,
        run_dir=run_dir,
        backbone_weights=arguments.weights,
        # A trained conv5 is of use for ImageNet's large objects; drawn anew with its last norms at .2 it starts close
        # to the identity and learns what small ones need.
        reinitialize_stages=("res5",) if arguments.weights else (),
        last_norm_gamma=0.2,
        resume=not arguments.fresh,
    )
    seconds = time.perf_counter() - started

    evaluation = mrcnn_tf.evaluation_report(
        result.model, val_set, run_dir / "evaluation", max_detections=200, picture_score=0.5
    )
    print(evaluation.table())
    print(f"training: {result.steps - result.resumed_from} steps in {seconds:.0f} s")
    names = [f"{kind}/{name}" for kind in ("mask", "box") for name in ("AP", "AP50", "AP75")]
    print(", ".join(f"{name.replace('/', ' ')} {evaluation.metrics[name]:.3f}" for name in names))
    print("made:")
    print(f"  ground truth beside prediction  {run_dir / 'evaluation' / 'pictures'}")
    print(f"  measures                        {run_dir / 'evaluation' / 'evaluation.json'}")
    print(f"  results, COCO format            {run_dir / 'evaluation' / 'results.json'}")
    print(f"  training curves                 {run_dir / 'pictures' / 'curves.png'}")
    print(f"  model                           {run_dir / 'model.keras'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (
        mrcnn_tf.DataError,
        mrcnn_tf.WeightsError,
        mrcnn_tf.ConfigError,
        mrcnn_tf.CheckpointError,
        mrcnn_tf.NonFiniteLossError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
