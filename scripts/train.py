#!/usr/bin/env python3
"""Trains a Mask R-CNN on a COCO-format data set (or on drawn shapes) in a folder of its own.

The folder gets the configuration, logs, TensorBoard files, checkpoints, pictures and, at the end, model.keras.
A training that was stopped, in whatever way, goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli
import _presets

EXAMPLES = """examples:
  your own data, from ImageNet weights, evaluated while it trains:
    scripts/train.py --preset mask_rcnn_r50_fpn --train train.json --train-images train/ \\
        --val val.json --val-images val/ --backbone-weights resnet50.h5 --run-dir runs/first

  shorter, with smaller images and a rate that fits (the rate belongs to 16 images a step and is scaled):
    scripts/train.py --train train.json --train-images train/ --run-dir runs/short \\
        input.shorter_edge=512 training.steps=5000 training.decay_steps=3500,4500

  keypoints of persons; any other COCO file by its persons alone, as a Faster R-CNN:
    scripts/train.py --preset keypoint_rcnn_r50_fpn --train person_keypoints.json --train-images train/ --run-dir ...
    scripts/train.py --train instances.json --train-images train/ --classes person --run-dir ... \\
        'branches=[]' data.drop_empty=true

  something to try it out with, without any data:
    scripts/train.py --preset shapes --shapes 500 --run-dir runs/shapes training.steps=200

  on two GPUs; on two machines with Slurm; 16 images a step on one small GPU; from another training's weights:
    scripts/train.py ... --devices 2
    srun --nodes=2 --ntasks-per-node=1 scripts/train.py ...
    scripts/train.py ... training.images_per_device=2 training.accumulate=8 training.precision=mixed_bfloat16
    scripts/train.py ... --weights runs/first/best.weights.h5"""


def parse_arguments() -> argparse.Namespace:
    parser = _cli.make_parser(__doc__, EXAMPLES, _presets.PRESETS, _cli.OVERRIDES)
    add_arguments(parser)
    more = parser.add_argument_group("further")
    more.add_argument("--weights", metavar="FILE", help="weights of a whole model (.weights.h5, .keras) to start from")
    more.add_argument("--val-losses", action="store_true", help="compute the losses on the validation images as well")
    more.add_argument("--proposals", metavar="FILE", help="of save_proposals.py, for training.parts=heads")
    more.add_argument("--val-proposals", metavar="FILE", help="the same of the validation images")
    _cli.add_overrides(parser)
    return parser.parse_intermixed_args()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every training takes, the one in four steps as well."""
    add = parser.add_argument
    add("--run-dir", required=True, metavar="DIR", help="folder of this training (made if it is not there)")
    add("--preset", metavar="NAME", help="named configuration, see below (default: mask_rcnn_r50_fpn, or cityscapes)")
    add("--config", metavar="FILE", help="a config.json in place of a preset")
    data = parser.add_argument_group("data")
    data.add_argument("--train", metavar="JSON", help="training annotations, COCO format")
    data.add_argument("--train-images", metavar="DIR", help="the folder of their images")
    data.add_argument("--val", metavar="JSON", help="validation annotations; without them nothing is evaluated")
    data.add_argument("--val-images", metavar="DIR", help="the folder of their images")
    data.add_argument("--shapes", type=int, metavar="N", help="train on N drawn images of shapes instead")
    data.add_argument(
        "--cityscapes", metavar="DIR", help="train on Cityscapes instead: the folder with leftImg8bit/ and gtFine/"
    )
    data.add_argument("--classes", nargs="+", metavar="NAME", help="take these categories only, in this order")
    data.add_argument("--skip-bad", action="store_true", help="leave bad records and images out, and tell at the end")
    start = parser.add_argument_group("where the training starts")
    start.add_argument("--backbone-weights", metavar="FILE", help="ResNet of Keras applications (.h5, .npz)")
    start.add_argument(
        "--reinitialize",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="stages of the backbone to draw anew all the same: stem res2 res3 res4 res5",
    )
    start.add_argument("--fresh", action="store_true", help="start anew; an earlier training is moved to earlier-1/")
    run = parser.add_argument_group("how it runs")
    run.add_argument(
        "--devices",
        metavar="N",
        default="auto",
        help="number of GPUs, 'auto' for all of them (the default), or names: GPU:0,GPU:2",
    )
    run.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images a step over all devices and micro-batches (default: of the preset)",
    )


def main() -> int:
    arguments = parse_arguments()
    overrides = _cli.parse_overrides(arguments.overrides)
    check(arguments)
    import mrcnn_tf

    config = base_config(arguments)
    train_set, val_set = datasets(arguments)
    if arguments.proposals is not None:
        train_set = mrcnn_tf.with_proposals(train_set, arguments.proposals)
    if arguments.val_proposals is not None:
        val_set = mrcnn_tf.with_proposals(val_set, arguments.val_proposals)
    config = fit_to_data(config, train_set, overrides.get("branches", config.branches)).replace(**overrides)
    check_with_config(arguments, config)
    result = mrcnn_tf.train(
        config,
        train_set,
        val_set,
        arguments.run_dir,
        devices=arguments.devices,
        batch_size=arguments.batch_size,
        backbone_weights=arguments.backbone_weights,
        reinitialize_stages=arguments.reinitialize,
        initial_weights=arguments.weights,
        resume=not arguments.fresh,
        validation_losses=arguments.val_losses,
    )
    if not result.is_chief:
        return 0  # of several workers one does the rest
    run_dir = Path(arguments.run_dir)
    things = {
        "model": run_dir / "model.keras",
        "log": run_dir / "log.csv",
        "curves": run_dir / "pictures" / "curves.png",
    }
    if val_set is not None and "heads" in config.training.parts:
        # With the weights that `mrcnn_tf.load` takes from the folder: the best ones, where some were kept.
        model = mrcnn_tf.load(run_dir) if result.best_step else result.model
        print(mrcnn_tf.evaluation_report(model, val_set, run_dir / "evaluation").table())
        things["evaluation"] = run_dir / "evaluation"
    _cli.print_problems(train_set, val_set)
    print(f"trained for {result.steps} steps")
    _cli.made(**things)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuses arguments that do not go together, before TensorFlow's slow start."""
    if sum(given is not None for given in (arguments.train, arguments.shapes, arguments.cityscapes)) != 1:
        raise _cli.UsageError("give either --train JSON with --train-images DIR, or --shapes N, or --cityscapes DIR")
    if arguments.preset and arguments.config:
        raise _cli.UsageError("give either --preset or --config")
    if arguments.shapes is not None and arguments.shapes < 1:
        raise _cli.UsageError(f"--shapes {arguments.shapes}: at least one image is needed")
    if arguments.shapes is not None and arguments.val:
        raise _cli.UsageError("--shapes draws its validation images itself; leave --val out")
    if arguments.reinitialize and arguments.backbone_weights is None:
        raise _cli.UsageError("--reinitialize is for stages that --backbone-weights FILE has weights for")
    if arguments.shapes is not None and arguments.classes:
        raise _cli.UsageError("--classes chooses categories of a json; --shapes has its own three")
    validated = any(given is not None for given in (arguments.val, arguments.shapes, arguments.cityscapes))
    if getattr(arguments, "val_proposals", None) is not None and not validated:
        raise _cli.UsageError("--val-proposals are those of validation images: --val JSON with --val-images DIR")
    if getattr(arguments, "val_losses", False) and not validated:
        raise _cli.UsageError("--val-losses are those of validation images: --val JSON with --val-images DIR")
    if getattr(arguments, "weights", None) is not None and arguments.backbone_weights is not None:
        raise _cli.UsageError("give either --weights, of a whole model, or --backbone-weights")
    if arguments.cityscapes is not None and (arguments.val or arguments.classes):
        raise _cli.UsageError("--cityscapes has its own validation images and classes; leave --val and --classes out")
    for name in ("train", "val"):
        if (getattr(arguments, name) is None) != (getattr(arguments, f"{name}_images") is None):
            raise _cli.UsageError(f"--{name} JSON and --{name}-images DIR belong together")


def check_with_config(arguments: argparse.Namespace, config) -> None:
    """Refuses options that would have no effect with this configuration."""
    if arguments.val_losses and not config.training.evaluate_every:
        raise _cli.UsageError("--val-losses come with the evaluations: set training.evaluate_every=1, say")
    if "rpn" in config.training.parts and (arguments.proposals or arguments.val_proposals):
        raise _cli.UsageError("--proposals are for heads that are trained alone: set training.parts=heads")


def base_config(arguments: argparse.Namespace):
    import mrcnn_tf

    if arguments.config is None:
        return mrcnn_tf.preset(arguments.preset or ("cityscapes" if arguments.cityscapes else "mask_rcnn_r50_fpn"))
    return mrcnn_tf.Config.from_file(arguments.config)


def fit_to_data(config, train_set, branches):
    """The configuration with the data set's classes and, where these branches want some, its keypoints."""
    config = config.replace(class_names=(), num_classes=len(train_set.class_names))
    config = config.replace(class_names=train_set.class_names)
    names, known = train_set.keypoint_names, config.keypoint_head.names
    # A file without names has numbered ones, which do not tell left from right.
    numbered = names == tuple(f"keypoint {number}" for number in range(1, len(names) + 1))
    if "keypoints" not in branches or not names or (numbered and len(names) == len(known)):
        return config
    return config.replace(keypoint_head={"names": names, "skeleton": train_set.skeleton})


def datasets(arguments: argparse.Namespace) -> tuple:
    """Training and validation images; the latter may be None."""
    import mrcnn_tf

    if arguments.shapes is not None:
        return mrcnn_tf.shapes(arguments.shapes, seed=0), mrcnn_tf.shapes(max(20, arguments.shapes // 10), seed=1)
    if arguments.cityscapes is not None:
        root, skip_bad = arguments.cityscapes, arguments.skip_bad
        return _cli.read_cityscapes(root, "train", skip_bad), _cli.read_cityscapes(root, "val", skip_bad)
    train_set = _cli.read_dataset(arguments.train, arguments.train_images, arguments.skip_bad, arguments.classes)
    if arguments.val is None:
        return train_set, None
    names = train_set.class_names
    return train_set, _cli.read_dataset(arguments.val, arguments.val_images, arguments.skip_bad, names)


if __name__ == "__main__":
    _cli.run(main)
