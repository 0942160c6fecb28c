"""What the command lines share: help that shows examples, `section.field=value`, errors in one line.

TensorFlow is not imported here, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import ast
import errno
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

OVERRIDES = """values of the configuration:
  Any number of section.field=value, for example
    input.shorter_edge=640,800  detections.score_threshold=0.3  backbone.norm=group  data.flip=false
  Every field stands with its default in mrcnn_tf/config.py and config_stages.py, and in the config.json of a training's
  folder."""


FULL = (errno.ENOSPC, errno.EDQUOT)
SMALLER = (
    "for training try, in this order, training.images_per_device=1 (training.accumulate=N keeps the batch), "
    "roi.rois_per_image=128, training.precision=mixed_bfloat16, a smaller input.shorter_edge or backbone; for "
    "prediction one image at a time and fewer detections.max_per_image"
)


class UsageError(ValueError):
    """Arguments that do not go together."""


def make_parser(description: str, *notes: str) -> argparse.ArgumentParser:
    """A parser whose help shows `description` and, at its end, the notes (examples first) as they are."""
    return argparse.ArgumentParser(
        description=description,
        epilog="\n\n".join(notes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Takes `section.field=value` anywhere among the arguments, as `arguments.overrides`."""
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="a value of the configuration; see below"
    )


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """`["input.shorter_edge=640,800", "backbone.norm=group"]` as {"input.shorter_edge": (640, 800), ...}.

    Values are read as json, then as Python literals; what is neither is a string, or several with commas between.

    Raises:
        UsageError: an argument without "=".
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"'{text}' is not understood; a value of the configuration is section.field=value")
        values[name] = _parse_value(value)
    return values


def load(model: str, overrides: dict[str, Any]) -> Any:
    """The model of a training's folder or a file, with values of its configuration changed.

    Raises:
        UsageError: a name that is none of the configuration.
        ConfigError, WeightsError: see `mrcnn_tf.load`.
    """
    import mrcnn_tf

    for name in ("name_or_path", "weights", "class_map"):  # other arguments of that function
        if name in overrides:
            raise UsageError(f"unknown option '{name}'; a value of the configuration is section.field=value")
    return mrcnn_tf.load(model, **overrides)


def check_least(least: int, arguments: argparse.Namespace, *names: str) -> None:
    """Refuses numbers below `least` in the arguments of these names; None stands for no number.

    Raises:
        UsageError: there is one.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: should be at least {least}")


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Takes --tta-scales and --tta-flip, for `augmentation`."""
    group = parser.add_argument_group("several views of each image (test-time augmentation)")
    group.add_argument("--tta-scales", metavar="PIXELS", help="shorter edges, for example 600,800,1000")
    group.add_argument("--tta-flip", action="store_true", help="look at each mirrored left to right as well")


def augmentation(arguments: argparse.Namespace, shorter_edge: int) -> Any:
    """The `Augmentation` that was asked for; None without one. `shorter_edge` is that of plain prediction.

    Raises:
        UsageError: edges that are no numbers.
    """
    if arguments.tta_scales is None and not arguments.tta_flip:
        return None
    from mrcnn_tf.augmented import Augmentation

    try:
        edges = tuple(int(edge) for edge in (arguments.tta_scales or str(shorter_edge)).split(","))
    except ValueError:
        text = f"--tta-scales {arguments.tta_scales}: should be whole numbers of pixels, as in 600,800,1000"
        raise UsageError(text) from None
    return Augmentation(edges, arguments.tta_flip)


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):  # TypeError: of a dictionary whose names are lists
        return text.split(",") if "," in text and not set(text) & set("[](){}\"'") else text


def run(main: Callable[[], int | None]) -> None:
    """Runs a command and ends the program: 0 done, 1 failed, 2 wrong input (told in one line)."""
    # TensorFlow's notes on the machine say nothing about the job.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mrcnn_tf").setLevel(logging.INFO)
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        print(f"error: {_text(error)}", file=sys.stderr)
        sys.exit(status)


def _status(error: Exception) -> int | None:
    """The exit status of an error that a user can do something about; None for any other."""
    if isinstance(error, (UsageError, OSError)):
        return 2
    from mrcnn_tf import (
        CheckpointError,
        ConfigError,
        DataError,
        DistributionError,
        NonFiniteLossError,
        WeightsError,
        WorkerLostError,
    )

    if isinstance(error, (ConfigError, DataError, WeightsError, CheckpointError, DistributionError)):
        return 2
    return 1 if isinstance(error, (NonFiniteLossError, WorkerLostError)) or _is_memory(error) else None


def _is_memory(error: Exception) -> bool:
    tensorflow = sys.modules.get("tensorflow")  # who has not imported it has no such error
    # That too many files are open, or a queue is full, is called so as well.
    return (
        tensorflow is not None and isinstance(error, tensorflow.errors.ResourceExhaustedError) and "OOM" in str(error)
    )


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        full = "; free some space, then give the same command again" * (error.errno in FULL)
        return f"{error.filename}: {error.strerror}{full}" if error.filename else f"{error.strerror}{full}"
    if _is_memory(error):
        found = re.search(r"shape ?(?P<shape>\[[^\]]*\]).*?(?P<device>(GPU|CPU):\d+)", str(error), re.DOTALL)
        what = f" ({found['device']}: a tensor of shape {found['shape']} did not fit)" if found else ""
        return f"out of memory{what}; {SMALLER}"
    return str(error)


def read_dataset(
    path: str,
    images: str | None,
    skip_bad: bool,
    class_names: Sequence[str] | None = None,
    annotated: bool = True,
) -> Any:
    """A COCO json with its images, the classes in the order of `class_names`; tells how many there are.

    Raises:
        UsageError: the folder of the images was not named.
        DataError: what cannot be used.
    """
    import mrcnn_tf

    if images is None:
        raise UsageError(f"{path}: the folder of its images is needed as well")
    dataset = mrcnn_tf.read_coco(path, images, skip_bad, class_names or None, annotated)
    print(f"{path}: {len(dataset)} images, {len(dataset.class_names)} classes", flush=True)
    return dataset


def read_cityscapes(root: str, split: str, skip_bad: bool) -> Any:
    """A split of Cityscapes; tells how many images it has.

    Raises:
        DataError: what cannot be used.
    """
    import mrcnn_tf

    dataset = mrcnn_tf.read_cityscapes(root, split, skip_bad=skip_bad)
    print(f"{dataset.name}: {len(dataset)} images, {len(dataset.class_names)} classes", flush=True)
    return dataset


def print_problems(*datasets: Any) -> None:
    """Tells, at the end of a command, what was skipped of each data set."""
    for dataset in datasets:
        if dataset is not None and dataset.problems:
            print(f"{dataset.name}: {dataset.problems.summary()}")


def peak_memory() -> int:
    """Bytes that this process has held at most.

    Not from the resource counters where the system tells otherwise: those of a process begin with the
    memory of the one that started it.
    """
    try:
        with open("/proc/self/status") as file:
            (kilobytes,) = [line.split()[1] for line in file if line.startswith("VmHWM:")]
        return int(kilobytes) * 1024
    except (OSError, ValueError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def made(**things: Any) -> None:
    """The closing lines of a command: what was made and where."""
    print("made:")
    width = max(map(len, things)) + 2
    for name, place in things.items():
        print(f"  {name.replace('_', ' '):{width}}{place}")
