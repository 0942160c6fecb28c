"""Section 4.4 once more: seconds of inference and of a training step, beside the paper's.

Weights are drawn, not trained; every proposal and all detections are computed, whatever the weights say. Seconds are
the least of a few runs; those of inference bring the results back to the processor.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import benchmark

HEIGHT, WIDTH = 800, 1088  # of a COCO image of 480 x 640 pixels at 800, padded
REPEATS = 3
CLASSES = 80


@dataclass(frozen=True)
class Measure:
    """What is timed: "inference" of an image, "resize" of its masks, or a training "step" of two images."""

    text: str
    preset: str
    kind: str
    paper: float
    paper_text: str


MEASURES = (
    Measure("inference, ResNet-101-FPN", "mask_rcnn_r101_fpn", "inference", 0.195, "Tesla M40"),
    Measure("its masks at the image's size", "mask_rcnn_r101_fpn", "resize", 0.015, "CPU"),
    Measure("inference, ResNet-101-C4", "mask_rcnn_r101_c4", "inference", 0.4, "Tesla M40"),
    Measure("training step, ResNet-50-FPN", "mask_rcnn_r50_fpn", "step", 0.72, "8 GPUs, 16 images"),
    # 44 hours for the 160,000 steps.
    Measure("training step, ResNet-101-FPN", "mask_rcnn_r101_fpn", "step", 0.99, "8 GPUs, 16 images"),
)


def write(run_dir: Path, command: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    """Measures everything and writes RUN_DIR/timing.md."""
    seconds = [measure(one.preset, one.kind, size) for one in MEASURES]
    path = Path(run_dir) / "timing.md"
    path.write_text(text(MEASURES, seconds, hardware(), command, size), encoding="utf-8")
    return path


def text(
    measures: Sequence[Measure], seconds: Sequence[float], machine: str, command: str, size: tuple[int, int]
) -> str:
    """The table in markdown."""
    lines = ["# Timing (section 4.4)", "", "| what | paper, seconds | on | ours, seconds |", "|---|---:|---|---:|"]
    for one, value in zip(measures, seconds):
        lines.append(f"| {one.text} | {one.paper} | {one.paper_text} | {value:.3f} |")
    lines += [
        "",
        f"Ours on {machine}: images of {size[0]} x {size[1]} pixels, {CLASSES} classes, weights drawn anew.",
        "",
    ]
    lines += ["A training step is of 2 images here, the share of each of the paper's 8 GPUs.", ""]
    lines += ["Made by", "", "```sh", command, "```", ""]
    by_name = {(one.kind, one.preset): value for one, value in zip(measures, seconds)}
    fpn, c4 = (by_name[("inference", f"mask_rcnn_r101_{features}")] for features in ("fpn", "c4"))
    shown = "**shown**" if c4 > fpn else "**not shown**"
    lines += [f"- C4 is slower than FPN for its heavier head (paper about 2.1 times): {c4 / fpn:.1f} times: {shown}"]
    return "\n".join(lines) + "\n"


def measure(preset: str, kind: str, size: tuple[int, int]) -> float:
    """Seconds of one `Measure`."""
    arguments = argparse.Namespace(preset=preset, classes=CLASSES, repeats=REPEATS)
    if kind == "step":
        return benchmark.training(arguments, *size, 2)["seconds_per_step"]
    return _inference(arguments, size, pasting=kind == "resize")


def _inference(arguments: argparse.Namespace, size: tuple[int, int], pasting: bool) -> float:
    import numpy as np

    import mrcnn_tf
    from mrcnn_tf.inference import inference_function

    model = benchmark.build_model(arguments)
    infer, inputs = inference_function(model), benchmark.random_images(*size, 1)

    def answer() -> dict:
        return {name: value.numpy() for name, value in infer(inputs).items()}

    if not pasting:
        return benchmark.best_time(answer, REPEATS)
    original = np.array([[480, 640]])
    found = answer()
    names = model.config.class_names or tuple(map(str, range(1, CLASSES + 1)))
    real = inputs["image_size"].numpy()
    return benchmark.best_time(lambda: mrcnn_tf.Detections.from_batch(found, real, original, names)[0].masks, REPEATS)


def hardware() -> str:
    """The processor and its cores, or the GPU, as the platform itself calls them."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "a GPU"))
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
