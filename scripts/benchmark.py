#!/usr/bin/env python3
"""Time and memory of inference, training and the data pipeline, printed as JSON.

Every case runs in a process of its own, so that its peak memory is its own. Seconds are the best of
a few runs. Compare ratios inside one report, not seconds of two: `efficiency` is the share of the
rate of a large matrix product, measured in the same process, at which the model's own arithmetic
(convolutions and matrix products, 2 operations a multiply-add) was done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import _cli

EXAMPLES = """examples:
  scripts/benchmark.py                              every case, about ten minutes on two cores
  scripts/benchmark.py --parts inference --sizes 800x1344 --batches 1
  scripts/benchmark.py --preset mask_rcnn_r101_fpn --output report.json
"""
PARTS = ("inference", "training", "pipeline")
MATRIX_SIDE = 4096


def main() -> int:
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(run_case(arguments)))
        return 0
    report = {"preset": arguments.preset, "cores": os.cpu_count(), "cases": []}
    for part in arguments.parts:
        sizes = arguments.sizes if part != "pipeline" else arguments.sizes[:1]
        batches = arguments.batches if part != "pipeline" else arguments.batches[:1]
        for size in sizes:
            for batch in batches:
                print(f"measuring {part} {size} batch {batch} ...", file=sys.stderr, flush=True)
                report["cases"].append(run_in_process(arguments, part, size, batch))
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        with open(arguments.output, "w") as file:
            file.write(text + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", default="mask_rcnn_r50_fpn", help="the model's configuration (default: %(default)s)"
    )
    parser.add_argument("--classes", type=int, default=90, help="classes beside the background (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument(
        "--sizes", nargs="+", default=["800x1344", "512x512"], help="HEIGHTxWIDTH (default: %(default)s)"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2], help="images per step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the best counts (default: %(default)s)")
    parser.add_argument("--output", help="also write the JSON to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_in_process(arguments: argparse.Namespace, part: str, size: str, batch: int) -> dict:
    command = [sys.executable, os.path.abspath(__file__), "--case", part, "--sizes", size, "--batches", str(batch)]
    command += ["--preset", arguments.preset, "--classes", str(arguments.classes), "--repeats", str(arguments.repeats)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"error: the case '{part} {size} batch {batch}' failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def run_case(arguments: argparse.Namespace) -> dict:
    height, width = (int(side) for side in arguments.sizes[0].split("x"))
    batch = arguments.batches[0]
    measure = {"inference": inference, "training": training, "pipeline": pipeline}[arguments.case]
    result = {"part": arguments.case, "height": height, "width": width, "batch": batch}
    result.update(measure(arguments, height, width, batch))
    result["peak_memory_gb"] = round(_cli.peak_memory() / 2**30, 3)
    return result


def inference(arguments: argparse.Namespace, height: int, width: int, batch: int) -> dict:
    """Whole-model seconds, each stage's seconds and share, and the efficiency."""
    import keras
    import tensorflow as tf

    model = build_model(arguments)
    inputs = random_images(height, width, batch)
    signature = {key: tf.TensorSpec(value.shape, value.dtype) for key, value in inputs.items()}
    function = tf.function(lambda data: model(data, training=False), input_signature=[signature])
    rate = matrix_rate()
    seconds = best_time(lambda: function(inputs), arguments.repeats)
    rate = max(rate, matrix_rate())
    peak = _cli.peak_memory() / 2**30
    operations = arithmetic(function.get_concrete_function(inputs).graph, model.config, batch)
    known = {id(tensor): inputs[tensor.name] for tensor in model.inputs}
    stages = {}
    for name, (sources, results) in model.stages.items():
        stage = tf.function(keras.Model(sources, results))
        values = keras.tree.map_structure(lambda tensor: known[id(tensor)], sources)
        stages[name] = best_time(lambda: stage(values), arguments.repeats)  # noqa: B023
        for tensor, value in zip(keras.tree.flatten(results), keras.tree.flatten(stage(values))):
            known[id(tensor)] = value
    boxes = known[id(model.stages["proposals"][1])]
    real_proposals = int(tf.math.count_nonzero(boxes[..., 2] > boxes[..., 0])) // batch
    real_detections = int(tf.math.count_nonzero(function(inputs)["classes"])) // batch
    stages["rest"] = max(0.0, seconds - sum(stages.values()))
    return {
        "seconds_per_batch": round(seconds, 3),
        "seconds_per_image": round(seconds / batch, 3),
        "proposals_per_image": real_proposals,
        "detections_per_image": real_detections,
        "gflop_per_image": round(operations / batch / 1e9, 1),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "efficiency": round(operations / seconds / rate, 3),
        "stages_seconds": {name: round(value, 4) for name, value in stages.items()},
        "stages_share": {name: round(value / seconds, 4) for name, value in stages.items()},
        "inference_peak_memory_gb": round(peak, 3),
    }


def training(arguments: argparse.Namespace, height: int, width: int, batch: int) -> dict:
    """Seconds of one training step (forward, backward, update) with the preset's RoIs per image.

    There are as many objects as an image may have positive RoIs, so that the branches have all they can get.
    """
    import numpy as np
    import tensorflow as tf

    model = build_model(arguments)
    model.compile()
    rng = np.random.default_rng(0)
    roi = model.config.roi
    objects, side = int(roi.rois_per_image * roi.positive_fraction), model.config.data.mask_crop
    corner = rng.uniform(0, 0.6, (batch, objects, 2)) * [height, width]
    extent = rng.uniform(0.1, 0.4, (batch, objects, 2)) * [height, width]
    data = {
        **random_images(height, width, batch),
        "image_id": tf.range(batch, dtype=tf.int64),
        "boxes": tf.constant(np.concatenate([corner, corner + extent], axis=-1), tf.float32),
        "classes": tf.constant(rng.integers(1, arguments.classes + 1, (batch, objects)), tf.int32),
        "crowd": tf.zeros((batch, objects), tf.uint8),
    }
    if "mask" in model.config.branches:
        data["masks"] = tf.fill((batch, objects, side, side), tf.constant(255, tf.uint8))
    if "keypoints" in model.config.branches:
        count = len(model.config.keypoint_head.names)
        place = corner[:, :, None] + rng.uniform(0, 1, (batch, objects, count, 2)) * extent[:, :, None]
        data["keypoints"] = tf.constant(np.insert(place, 2, 2.0, axis=-1), tf.float32)
    step = tf.function(model.train_step)
    rate = matrix_rate()
    seconds = best_time(lambda: step(data), arguments.repeats)
    rate = max(rate, matrix_rate())
    return {
        "rois_per_image": roi.rois_per_image,
        "positive_rois_per_image": round(float(step(data)["positive_rois"]) * roi.rois_per_image),
        "seconds_per_step": round(seconds, 3),
        "seconds_per_image": round(seconds / batch, 3),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "matrix_products_per_step": round(seconds * rate / (2 * MATRIX_SIDE**3), 2),
    }


def pipeline(arguments: argparse.Namespace, height: int, width: int, batch: int) -> dict:
    """Images per second of the training pipeline over made-up pictures of this size."""
    import mrcnn_tf

    count = 64
    dataset = mrcnn_tf.shapes(count, size=(height, width), seed=0)
    config = mrcnn_tf.preset(
        arguments.preset, input={"shorter_edge": min(height, width), "longer_edge": max(height, width)}
    )
    batches = iter(mrcnn_tf.training_batches(dataset, config, batch, seed=0, steps=count // batch))
    next(batches)  # starting the threads is not the pipeline's speed
    start, images = time.perf_counter(), 0
    for data in batches:
        images += data["image"].shape[0]
    return {"images_per_second": round(images / (time.perf_counter() - start), 2)}


def build_model(arguments: argparse.Namespace):
    import mrcnn_tf

    # Threshold 0: every proposal and all detections are computed, whatever the weights say.
    changes = {"num_classes": arguments.classes, "detections__score_threshold": 0.0}
    model = mrcnn_tf.MaskRCNN(mrcnn_tf.preset(arguments.preset, **changes))
    for layer in model.layers:
        # Weights drawn anew and frozen norms would let values grow block by block, until no box is finite.
        if layer.name.startswith("res") and hasattr(layer, "norm") and layer.activation is None:
            layer.norm.gamma.assign([0.2] * layer.filters)
    return model


def random_images(height: int, width: int, batch: int) -> dict:
    import tensorflow as tf

    image = tf.random.stateless_uniform((batch, height, width, 3), (0, 0), 0, 255)
    return {"image": image, "image_size": tf.constant([[height, width]] * batch, tf.int32)}


def best_time(function: Callable, repeats: int) -> float:
    """Least seconds of `repeats` runs, after one that builds the graph; a GPU's work is waited for."""
    import tensorflow as tf

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        tf.test.experimental.sync_devices()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def matrix_rate() -> float:
    """Operations per second of a product of two square float32 matrices."""
    import tensorflow as tf

    matrix = tf.random.stateless_normal((MATRIX_SIDE, MATRIX_SIDE), (0, 0))
    return 2 * MATRIX_SIDE**3 / best_time(lambda: tf.linalg.matmul(matrix, matrix).numpy(), 3)


def arithmetic(graph, config, batch: int) -> float:
    """Operations of the convolutions and matrix products in a graph of known image size.

    The number of RoIs is the one thing the graph leaves open: proposals in the box branch, detections
    in the others.
    """
    total = 0.0
    for operation in graph.get_operations():
        if operation.type not in ("Conv2D", "MatMul", "Conv2DBackpropInput"):
            continue
        # A deconvolution multiplies each input, not each output, with the whole kernel but its last axis.
        deconvolution = operation.type == "Conv2DBackpropInput"
        output = (operation.inputs[2] if deconvolution else operation.outputs[0]).shape.as_list()
        weights = operation.inputs[1].shape.as_list()
        if output[0] is None:
            branches = ("mask_conv", "mask_deconv", "mask_logits", "keypoint_conv", "keypoint_deconv")
            on_detections = any(f"/{layer}" in operation.name for layer in branches)
            rois = config.detections.max_per_image if on_detections else config.rpn.post_nms_test
            output[0] = batch * rois
        if None in output or None in weights:
            raise SystemExit(f"error: the shape of {operation.name} is not known: {output}, {weights}")
        products = 1.0
        for length in (*output, *weights[:-1]):
            products *= length
        total += 2 * products
    return total


if __name__ == "__main__":
    sys.exit(main())
