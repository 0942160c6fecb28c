#!/usr/bin/env python3
"""Cityscapes as in the paper's appendix A: trains, measures the validation images, writes what the server takes.

A ResNet-50-FPN from ImageNet weights in 24,000 steps, or from a whole model's COCO weights in 4,000: seven of the eight
classes are carried over, riders are new. The presets "cityscapes" and "cityscapes_from_coco" hold all values. They are
for 8 GPUs with an image on each; where a step has fewer, the learning rate is lowered in proportion and the steps have
to be more.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import keras

import mrcnn_tf
from mrcnn_tf.data.cityscapes import COCO_CLASS_MAP
from mrcnn_tf.evaluation.coco import load_results

DATA = """the data:
  --data is the folder with leftImg8bit/ and gtFine/, as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip make
  them.

examples:
  from ImageNet weights, as the paper's fine-only model:
    samples/cityscapes/train.py --data cityscapes/ --weights resnet50.h5 --run-dir runs/cityscapes --devices 8

  from COCO weights (fetched once), then the test images for the server:
    samples/cityscapes/train.py --data cityscapes/ --coco coco --run-dir runs/from-coco --devices 8 --test

  on one GPU, 8 images a step one after the other:
    samples/cityscapes/train.py --data cityscapes/ --coco coco --run-dir runs/one-gpu training.accumulate=8

Given again, a command goes on where it was stopped. Any number of section.field=value changes the preset, for example
input.shorter_edge=512 training.images_per_device=2."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DATA, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="the data set's folder, see below")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--weights", metavar="FILE", help="ImageNet weights of ResNet-50 (Keras applications: .h5, .npz)"
    )
    start.add_argument(
        "--coco", metavar="MODEL", help="start from COCO weights: 'coco', a public checkpoint's name or file, or a run"
    )
    add("--run-dir", default="runs/cityscapes", metavar="DIR", help="where everything goes (default: %(default)s)")
    add("--steps", type=int, metavar="N", help="training steps (default: those of the preset, 24,000 or 4,000)")
    add("--devices", metavar="N", help="number of GPUs, or 'auto' for all of them")
    add("--val-images", type=int, metavar="N", help="measure on the first N validation images only (default: all)")
    add("--test", action="store_true", help="find objects in the test images too, and write them for the server")
    add("--skip-bad", action="store_true", help="leave images with bad or missing files out, and tell at the end")
    add("--fresh", action="store_true", help="start anew; an earlier training is moved to earlier-1/")
    add("overrides", nargs="*", metavar="section.field=value", help="a value of the configuration; see below")
    return parser.parse_intermixed_args()


def parse_overrides(texts: list[str]) -> dict[str, Any]:
    """`["input.shorter_edge=512"]` as {"input.shorter_edge": 512}; values are json, or plain text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise mrcnn_tf.ConfigError(f"'{text}' is not understood; a value is changed by section.field=value")
        try:
            values[name] = json.loads(f"[{value}]" if "," in value and "[" not in value else value)
        except ValueError:
            values[name] = value
    return values


def start_from_coco(source: str, run_dir: Path, fresh: bool, overrides: dict[str, Any]) -> tuple:
    """The configuration, with the conventions of the COCO weights, and a file of weights to start from.

    Raises:
        ConfigError: the training in this folder started from others.
    """
    start, note = run_dir / "from_coco.weights.h5", run_dir / "from_coco.txt"
    if start.exists() and not fresh:
        if note.exists() and note.read_text() != source:
            began = f"{run_dir}: this training started from --coco {note.read_text()}, not {source}"
            raise mrcnn_tf.ConfigError(f"{began}; give that, --fresh to start anew, or another --run-dir")
        return mrcnn_tf.load(start, **overrides).config, start
    config = mrcnn_tf.preset("cityscapes_from_coco").replace(**overrides)
    keras.utils.set_random_seed(config.training.seed)  # the rider, whom COCO does not know, is drawn anew
    model = mrcnn_tf.load(
        "cityscapes_from_coco", weights=source, class_names=config.class_names, class_map=COCO_CLASS_MAP, **overrides
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    mrcnn_tf.weights.save_weights(model, start)
    note.write_text(source)
    return model.config, start


def train(arguments: argparse.Namespace, train_set: mrcnn_tf.Dataset) -> Any:
    """The trained model."""
    run_dir, overrides = Path(arguments.run_dir), parse_overrides(arguments.overrides)
    start = None
    if arguments.coco:
        config, start = start_from_coco(arguments.coco, run_dir, arguments.fresh, overrides)
    else:
        config = mrcnn_tf.preset("cityscapes").replace(**overrides)
    if arguments.steps:
        config = config.with_steps(arguments.steps)
    result = mrcnn_tf.train(
        config,
        train_set,
        run_dir=run_dir,
        devices=arguments.devices,
        backbone_weights=arguments.weights,
        initial_weights=start,
        resume=not arguments.fresh,
    )
    return result.model


def main() -> int:
    arguments = parse_arguments()
    for name in ("steps", "val_images"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise mrcnn_tf.ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: should be at least 1")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    splits = ("train", "val", "test") if arguments.test else ("train", "val")
    sets = {split: mrcnn_tf.read_cityscapes(arguments.data, split, arguments.skip_bad) for split in splits}
    for split, dataset in sets.items():
        print(f"{split}: {len(dataset)} images, {dataset.object_counts().sum()} objects", flush=True)
    if arguments.val_images is not None:
        sets["val"] = sets["val"].subset(range(min(arguments.val_images, len(sets["val"]))))
    model = train(arguments, sets["train"])

    folder = Path(arguments.run_dir) / "evaluation"
    evaluation = mrcnn_tf.evaluation_report(model, sets["val"], folder)
    found = load_results(folder / "results.json", sets["val"])
    mrcnn_tf.write_cityscapes_results(found, sets["val"], folder / "server-val")
    benchmark = mrcnn_tf.evaluate_cityscapes(sets["val"], found)
    benchmark.save(folder / "cityscapes.json")
    print(f"{evaluation.table()}\n{benchmark.table()}")
    if arguments.test:
        found = mrcnn_tf.detect(model, sets["test"], progress=sys.stderr.isatty())
        mrcnn_tf.write_cityscapes_results(found, sets["test"], folder / "server-test")
    for dataset in sets.values():
        if dataset.problems:
            print(f"{dataset.name}: {dataset.problems.summary()}")
    print("made:")
    print(f"  COCO's measures                 {folder / 'evaluation.json'}")
    print(f"  the benchmark's measures        {folder / 'cityscapes.json'}")
    print(f"  validation images, for a server {folder / 'server-val'}")
    if arguments.test:
        print(f"  test images, for the server     {folder / 'server-test'}")
    print(f"  ground truth beside prediction  {folder / 'pictures'}")
    print(f"  model                           {Path(arguments.run_dir) / 'model.keras'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (
        mrcnn_tf.DataError,
        mrcnn_tf.WeightsError,
        mrcnn_tf.ConfigError,
        mrcnn_tf.CheckpointError,
        mrcnn_tf.DistributionError,
        mrcnn_tf.NonFiniteLossError,
        mrcnn_tf.WorkerLostError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
