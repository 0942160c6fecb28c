#!/usr/bin/env python3
"""The persons of 20 images of a small COCO, boxes and keypoints, learnt by heart; then the validation images.

A check that keypoints work from end to end on real photographs, with crowds and persons without labelled keypoints.
OKS AP on the 20 images shows that they can be learnt; AP on the others means little after 20 images. The network is
that of the paper's section 5 with a thinner keypoint branch (four convolutions of 256 in the place of eight of 512),
smaller images and one more frozen stage, so that two cores finish in a quarter of an hour.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import mrcnn_tf

DATA = """the data:
  --data is a folder with annotations/person_keypoints_train2017.json and person_keypoints_val2017.json and the folders
  train2017/ and val2017/ with their images: the whole of COCO 2017 does as well as a part of it. The first images that
  show persons with labelled keypoints are taken.
  --weights is an ImageNet ResNet-50 of Keras applications: its .h5 file, or a .npz keyed layer/weight.

example:
  samples/keypoints/overfit.py --data coco_mini/ --weights resnet50_imagenet.npz --run-dir runs/keypoints"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DATA, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the data set's folder, see below")
    add("--weights", metavar="FILE", help="ImageNet weights of ResNet-50; without them everything is drawn anew")
    add("--run-dir", default="runs/keypoints", metavar="DIR", help="where everything goes (default: %(default)s)")
    add("--images", type=int, default=20, metavar="N", help="training images (default: %(default)s)")
    add("--val-images", type=int, metavar="N", help="evaluate on the first N validation images only (default: all)")
    add("--steps", type=int, default=300, metavar="N", help="training steps (default: %(default)s)")
    add("--fresh", action="store_true", help="start anew; an earlier training is moved to earlier-1/")
    return parser.parse_args()


def make_config(dataset: mrcnn_tf.Dataset, steps: int) -> mrcnn_tf.Config:
    """The preset for learning by heart, with a keypoint branch in the place of the mask branch."""
    config = mrcnn_tf.preset(
        "coco_mini",
        num_classes=1,
        class_names=dataset.class_names,
        branches=("keypoints",),
        input={"shorter_edge": 320, "longer_edge": 512},
        backbone={"frozen_stages": 3},
        keypoint_head={"convs": (256,) * 4, "names": dataset.keypoint_names, "skeleton": dataset.skeleton},
        roi={"rois_per_image": 64},
        detections={"max_per_image": 20},
    )
    return config.with_steps(steps)


def with_keypoints(dataset: mrcnn_tf.Dataset, count: int | None) -> mrcnn_tf.Dataset:
    """The first `count` images that show a labelled keypoint; all such images where `count` is None."""
    examples = (dataset.example(index) for index in range(len(dataset)))
    shown = [index for index, example in enumerate(examples) if (example.keypoints[..., 2] > 0).any()]
    return dataset.subset(shown[:count])


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    data, run_dir = Path(arguments.data), Path(arguments.run_dir)
    annotations = data / "annotations"
    # COCO itself has a box without height.
    whole = mrcnn_tf.read_coco(annotations / "person_keypoints_train2017.json", data / "train2017", skip_bad=True)
    if whole.problems:
        print(f"{whole.name}: {whole.problems.summary()}")
    train_set = with_keypoints(whole, arguments.images)
    val_set = mrcnn_tf.read_coco(annotations / "person_keypoints_val2017.json", data / "val2017")
    if arguments.val_images is not None:
        val_set = val_set.subset(range(min(arguments.val_images, len(val_set))))

    started = time.perf_counter()
    result = mrcnn_tf.train(
        make_config(train_set, arguments.steps),
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
        box, keypoints = evaluation.metrics["box/AP50"], evaluation.metrics["keypoints/AP"]
        print(f"{title}: box AP50 {box:.3f}, OKS AP {keypoints:.3f}")
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
