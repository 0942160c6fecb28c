"""Callbacks that measure the model on the validation images at the end of an epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from mrcnn_tf.training.checkpoints import write_atomically
from mrcnn_tf.training.progress import Progress

logger = logging.getLogger("mrcnn_tf")

KINDS = ("box", "mask", "keypoints")
MEASURES = ("AP", "AP50")
PICTURES = 4


def is_due(progress: Progress, epoch: int, every: int) -> bool:
    """Whether epoch `epoch` (from 0) is to be evaluated: every n-th and the last are.

    An n-th epoch is passed over where the training ends less than half an epoch later.
    """
    if progress.step >= progress.total_steps:
        return True
    return (epoch + 1) % every == 0 and progress.total_steps - progress.step >= progress.steps_per_epoch / 2


class CocoEvaluation(keras.callbacks.Callback):
    """COCO's AP of boxes, masks and keypoints every `every` epochs and at the end; the best weights are kept.

    Adds `val_box_AP`, `val_box_AP50` and, where they are measured, `val_mask_AP`, `val_keypoints_AP`, ... to the
    epoch's logs, so it comes before the callbacks that write logs. An evaluation that fails is logged, and the training
    goes on; what cannot be written ends it.

    Args:
        measure: gives an object with `metrics` {"box/AP": ..., "mask/AP50": ...} (an `Evaluation`) for a model.
        run_dir: gets `best.weights.h5` (the best mask AP) and
            `evaluation.json` (all measures of the last evaluation). Without masks, keypoint AP is the measure, and
            box AP without either.
        progress: shared with the other callbacks.
        every: epochs between two evaluations.
    """

    def __init__(self, measure: Callable[[Any], Any], run_dir: str | Path, progress: Progress, every: int = 1):
        super().__init__()
        self.measure = measure
        self.run_dir = Path(run_dir)
        self.progress = progress
        self.every = every

    def on_epoch_end(self, epoch, logs=None):
        if not is_due(self.progress, epoch, self.every):
            return
        started = time.perf_counter()
        try:
            evaluation = self.measure(self.model)
            metrics = {name: float(value) for name, value in evaluation.metrics.items()}
        except Exception:  # whatever it is: hours of training are worth more than one evaluation
            logger.exception("the evaluation after epoch %d failed; the training goes on", epoch + 1)
            return
        # A full disk ends the training: when it goes on, this evaluation is caught up on, and its weights are not lost.
        if hasattr(evaluation, "save"):
            write_atomically(self.run_dir / "evaluation.json", evaluation.save)
        self._keep_best(metrics)
        measured = {
            f"val_{kind}_{name}": metrics[f"{kind}/{name}"]
            for kind in KINDS
            for name in MEASURES
            if f"{kind}/{name}" in metrics
        }
        if logs is not None:
            logs.update(measured)
        text = ", ".join(
            f"{name.removeprefix('val_').replace('_', ' ')} {value:.3f}" for name, value in measured.items()
        )
        logger.info("epoch %d: %s (in %.0f s)", epoch + 1, text, time.perf_counter() - started)

    def _keep_best(self, metrics: dict[str, float]) -> None:
        ap = next((metrics[name] for name in ("mask/AP", "keypoints/AP", "box/AP") if name in metrics), math.nan)
        best = self.progress.best_ap
        path = self.run_dir / "best.weights.h5"
        # AP is not a number where there is nothing to find; some weights are better than none.
        if (math.isnan(ap) and path.exists()) or ap <= best:
            return
        write_atomically(path, self.model.save_weights)
        self.progress.best_ap, self.progress.best_step = ap, self.progress.step


def columns(kinds: Sequence[str]) -> list[str]:
    """What `CocoEvaluation` adds to the logs where these kinds ("box", "mask", "keypoints") are measured."""
    return [f"val_{kind}_{name}" for kind in kinds for name in MEASURES]


class ValidationLosses(keras.callbacks.Callback):
    """Adds the validation images' losses, `val_loss` and so on, to the logs every `every` epochs.

    Args:
        batches: makes the data set of batches for `model.evaluate`.
        progress: shared with the other callbacks.
        every: epochs between two evaluations.
    """

    def __init__(self, batches: Callable[[], Any], progress: Progress, every: int = 1):
        super().__init__()
        self.batches = batches
        self.progress = progress
        self.every = every

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or not is_due(self.progress, epoch, self.every):
            return
        try:
            losses = self.model.evaluate(self.batches(), return_dict=True, verbose=0)
        except Exception:
            logger.exception("the validation losses after epoch %d failed; the training goes on", epoch + 1)
            return
        logs.update({f"val_{name}": float(value) for name, value in losses.items()})


def coco_measure(dataset, run_dir: str | Path, batch_size: int = 1, show: bool = False) -> Callable[[Any], Any]:
    """The function that `CocoEvaluation` calls: detections on `dataset`, their AP, and a few pictures.

    Args:
        dataset: the validation images.
        run_dir: the pictures go to its folder `pictures`.
        batch_size: images at once.
        show: shows a progress bar.
    """

    def measure(model):
        from mrcnn_tf.evaluation.coco import evaluate_coco, kinds_of
        from mrcnn_tf.evaluation.detect import detect, detected_part

        detections = detect(model, dataset, batch_size=batch_size, progress=show)
        try:
            from mrcnn_tf.reporting import draw_comparisons

            draw_comparisons(dataset, detections, Path(run_dir) / "pictures", PICTURES)
        except Exception:  # no picture is worth an evaluation
            logger.warning("the validation pictures could not be drawn", exc_info=True)
        limit, kinds = model.config.detections.max_per_image, kinds_of(model.config, dataset)
        return evaluate_coco(detected_part(dataset, detections), detections, max_detections=limit, kinds=kinds)

    return measure
