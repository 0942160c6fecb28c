#!/usr/bin/env python3
"""The first 20 training images of a small COCO, learnt by heart, then the validation images.

A check that the whole path works on real photographs, with crowds, grey images, tiny objects and images without any:
AP on the 20 images shows that everything can be learnt; AP on the others means little after 20 images.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import mrcnn_tf

DATA = """the data:
  --data is a folder with annotations/instances_train2017.json and instances_val2017.json and the folders train2017/ and
  val2017/ with their images: the whole of COCO 2017 does as well as a part of it.
  --weights is an ImageNet ResNet-50 of Keras applications: its .h5 file, or a .npz keyed layer/weight.

example:
  samples/coco/overfit.py --data coco_mini/ --weights resnet50_imagenet.npz --run-dir runs/overfit"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DATA, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the data set's folder, see below")
    add("--weights", metavar="FILE", help="ImageNet weights of ResNet-50; without them everything is drawn anew")
    add("--run-dir", default="runs/overfit", metavar="DIR", help="where everything goes (default: %(default)s)")
    add("--images", type=int, default=20, metavar="N", help="training images (default: %(default)s)")
    add("--val-images", type=int, metavar="N", help="evaluate on the first N validation images only (default: all)")
    add("--steps", type=int, metavar="N", help="training steps (default: those of the preset 'coco_mini')")
    add("--fresh", action="store_true", help="start anew; an earlier training is moved to earlier-1/")
    return parser.parse_args()


def make_config(class_names: tuple[str, ...], steps: int | None) -> mrcnn_tf.Config:
    """The preset for these classes, with its schedule over `steps`."""
    config = mrcnn_tf.preset("coco_mini", num_classes=len(class_names), class_names=class_names)
    return config.with_steps(steps or config.training.steps)


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    data, run_dir = Path(arguments.data), Path(arguments.run_dir)
    annotations = data / "annotations"
    # COCO itself has a box without height.
    whole = mrcnn_tf.read_coco(annotations / "instances_train2017.json", data / "train2017", skip_bad=True)
    if whole.problems:
        print(f"{whole.name}: {whole.problems.summary()}")
    train_set = whole.subset(range(min(arguments.images, len(whole))))
    names = train_set.class_names
    val_set = mrcnn_tf.read_coco(annotations / "instances_val2017.json", data / "val2017", class_names=names)
    if arguments.val_images is not None:
        val_set = val_set.subset(range(min(arguments.val_images, len(val_set))))

    started = time.perf_counter()
    result = mrcnn_tf.train(
        make_config(names, arguments.steps),
        train_set,
        run_dir=run_dir,
        backbone_weights=arguments.weights,
        reinitialize_stages=("res5",) if arguments.weights else (),
        resume=not arguments.fresh,
    )
    seconds = time.perf_counter() - started

    learnt = mrcnn_tf.evaluation_report(result.model, train_set, run_dir / "evaluation-train")
    others = mrcnn_tf.evaluation_report(result.model, val_set, run_dir / "evaluation-val")
    print(learnt.table(classes=False))
    print(others.table(classes=False))
    print(f"training: {result.steps - result.resumed_from} steps in {seconds:.0f} s")
    for title, evaluation in ((f"{len(train_set)} training images", learnt), (f"{len(val_set)} others", others)):
        box, mask = evaluation.metrics["box/AP50"], evaluation.metrics["mask/AP50"]
        print(f"{title}: box AP50 {box:.3f}, mask AP50 {mask:.3f}")
    print("made:")
    print(f"  on the training images   {run_dir / 'evaluation-train'}")
    print(f"  on the other images      {run_dir / 'evaluation-val'}")
    print(f"  training curves          {run_dir / 'pictures' / 'curves.png'}")
    print(f"  model                    {run_dir / 'model.keras'}")
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
