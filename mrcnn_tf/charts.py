"""Charts of a training and of an evaluation, by matplotlib's figure objects alone (no window, no pyplot state)."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, RULE = "#1d232b", "#66707c", "#dfe3e8"
LINES = ("#2478c8", "#e0663c", "#129873", "#8b5bd0", "#c08a00", "#d2447f")
PARTS = ("rpn_objectness_loss", "rpn_box_loss", "box_class_loss", "box_delta_loss", "mask_loss", "keypoint_loss")
KINDS = ("box", "mask", "keypoints")
AXES = ("step", "epoch")


def plot_history(history: Any, path: str | os.PathLike | None = None) -> Figure:
    """The curves of a training: losses, average precision, learning rate, sampling and speed.

    Each panel is drawn only where there is something to draw in it. Validation is dashed where it stands beside
    training.

    Args:
        history: the path of a log (CSV with a header, or one json object a line), what `model.fit` returned, or a
            dictionary of equally long lists. A column "step" or "epoch" is the horizontal axis; cells may be empty.
        path: where the picture is written (its folder is made), if it is.

    Returns:
        The figure.

    Raises:
        ValueError: a log without any number.
    """
    columns = _columns(history)
    axis = next((name for name in AXES if np.isfinite(columns.get(name, np.array([]))).any()), None)
    x = columns[axis] if axis else np.arange(1, 1 + max((len(values) for values in columns.values()), default=0))
    panels = _panels(columns)
    if not panels:
        raise ValueError(f"nothing to draw in {history if isinstance(history, (str, os.PathLike)) else 'the history'}")
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    first, last = (0 if axis == "step" else np.nanmin(x)), np.nanmax(x)
    limits = (first - 0.03 * (last - first) - 1e-3, last + 0.03 * (last - first) + 1e-3)
    figure, axes = _figure(4.4 * across, 3.1 * down, down, across)
    for place, plot in enumerate(axes):
        if place >= len(panels):
            plot.set_visible(False)
            continue
        _draw_panel(plot, panels[place], x, columns)
        plot.set_xlabel(axis or "row", color=MUTED, fontsize=8.5)
        plot.set_xlim(*limits)
        plot.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    return _finish(figure, path)


def plot_per_class(evaluation: Any, path: str | os.PathLike | None = None, metric: str = "AP") -> Figure:
    """Bars of each class's AP, the best (by the last kind measured) first, with the number of its objects.

    Classes without any object, whose AP is not defined, are counted below the chart.

    Args:
        evaluation: an `evaluation.coco.Evaluation`, or its `per_class`.
        path: where the picture is written (its folder is made), if it is.
        metric: "AP", "AP50" or "AP75".

    Raises:
        ValueError: an unknown metric.
    """
    per_class: Mapping[str, Mapping[str, float]] = getattr(evaluation, "per_class", evaluation)
    first = next(iter(per_class.values()), {})
    kinds = [kind for kind in KINDS if f"{kind}/{metric}" in first]
    if per_class and not kinds:
        raise ValueError(f"metric = {metric!r}: one of {', '.join(sorted({name.split('/')[-1] for name in first}))}")
    rows = [(name, values) for name, values in per_class.items() if values["objects"]]
    # The keypoint AP of a class that has boxes alone is not defined.
    rows.sort(key=lambda row: -np.nan_to_num(row[1][f"{kinds[-1]}/{metric}"]))
    figure, (plot,) = _figure(7.2, 1.5 + 0.34 * max(1, len(rows)), 1, 1)
    places = np.arange(len(rows))
    thick = 0.72 / max(1, len(kinds))
    for number, kind in enumerate(kinds):
        offset = (number - (len(kinds) - 1) / 2) * thick
        lengths = [values[f"{kind}/{metric}"] for _, values in rows]
        plot.barh(places + offset, np.nan_to_num(lengths), 0.92 * thick, color=LINES[number], label=kind)
        for place, length in zip(places + offset, lengths, strict=True):
            text = "-" if math.isnan(length) else f"{length:.2f}"
            plot.text(np.nan_to_num(length) + 0.008, place, text, va="center", fontsize=7.5, color=MUTED)
    names = [f"{name}  ({values['objects']})" for name, values in rows]
    plot.set_yticks(places, names, fontsize=8.5, color=INK, parse_math=False)
    plot.set_xlim(0, 1.08)
    plot.set_ylim(len(rows) - 0.4, -0.6)
    plot.grid(axis="y", visible=False)
    left_out = len(per_class) - len(rows)
    note = f"; {left_out} class{'es' * (left_out > 1)} without objects left out" if left_out else ""
    plot.set_xlabel(f"{metric} (in brackets: objects{note})", color=MUTED, fontsize=8.5)
    plot.set_title(f"{metric} by class", loc="left", fontsize=11, color=INK, weight="bold")
    if len(kinds) > 1:
        plot.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return _finish(figure, path)


def _columns(history: Any) -> dict[str, np.ndarray]:
    """Column name to numbers; nan where a cell is empty or no number."""
    if isinstance(history, (str, os.PathLike)):
        with open(history, newline="") as handle:
            text = handle.read()
        if text.lstrip().startswith("{"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines()))
        names = dict.fromkeys(name for row in rows for name in row if name is not None)
        columns: Mapping[str, Sequence[Any]] = {name: [row.get(name) for row in rows] for name in names}
    else:
        columns = getattr(history, "history", history)
        epochs = getattr(history, "epoch", None)
        if epochs and "epoch" not in columns:
            columns = {"epoch": [epoch + 1 for epoch in epochs], **columns}  # Keras counts from 0
    return {name: np.array([_number(value) for value in values], np.float64) for name, values in columns.items()}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


class _Curve(NamedTuple):
    column: str
    label: str
    colour: int
    dashed: bool = False
    faint: bool = False


class _Panel(NamedTuple):
    title: str
    curves: list[_Curve]
    top: float | None = None  # of the vertical axis; by default what the curves need
    smooth: bool = True


def _panels(columns: Mapping[str, np.ndarray]) -> list[_Panel]:
    """The panels of which something can be drawn."""
    losses = [_Curve("loss", "training", 0), _Curve("val_loss", "validation", 1, dashed=True)]
    parts = [_Curve(name, name.removesuffix("_loss").replace("_", " "), i) for i, name in enumerate(PARTS)]
    parts += [_Curve(f"val_{name}", "", i, dashed=True) for i, name in enumerate(PARTS)]
    precision = [
        _Curve(f"{prefix}{kind}{joint}{measure}", f"{kind} {measure}", i, faint=measure != "AP")
        for measure in ("AP", "AP50")
        for i, kind in enumerate(KINDS)
        for prefix in ("", "val_")
        for joint in ("_", "/")
    ]
    sampling = [_Curve("rpn_recall", "objects that have a proposal", 0), _Curve("positive_rois", "positive RoIs", 1)]
    panels = [
        _Panel("Loss", losses),
        _Panel("Parts of the loss", parts),
        _Panel("Average precision (validation)", precision, top=1.02),
        _Panel("Learning rate", [_Curve("learning_rate", "", 3)], smooth=False),
        _Panel("Sampling", sampling, top=1.02),
        _Panel("Images per second", [_Curve("images_per_second", "", 2)]),
    ]
    drawn = {name for name, values in columns.items() if np.isfinite(values).any()}
    panels = [panel._replace(curves=[curve for curve in panel.curves if curve.column in drawn]) for panel in panels]
    return [panel for panel in panels if panel.curves]


def _draw_panel(plot: Any, panel: _Panel, x: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
    highest = []
    for curve in panel.curves:
        values = columns[curve.column]
        real = np.isfinite(values) & np.isfinite(x[: len(values)])
        across, up = x[: len(values)][real], values[real]
        style = {"color": LINES[curve.colour % len(LINES)], "alpha": 0.45 if curve.faint else 1.0}
        highest.append(np.percentile(up, 99.5) if len(up) else 0)
        if panel.smooth and len(up) > 60:  # rows of single steps: the trend over their noise
            plot.plot(across, up, color=style["color"], linewidth=0.6, alpha=0.3)
            up = _smooth(up)
        if len(up) <= 30:
            style |= {"marker": "o", "markersize": 3.2}
        dashes = (0, (3, 2)) if curve.dashed else "solid"
        plot.plot(across, up, linewidth=1.6, linestyle=dashes, label=curve.label or None, **style)
    dashed = any(curve.dashed and not curve.label for curve in panel.curves)
    plot.set_title(panel.title + dashed * " (dashed: validation)", loc="left", fontsize=10.5, color=INK, weight="bold")
    plot.set_ylim(0, panel.top or 1.08 * max(highest) or 1)
    if any(curve.label for curve in panel.curves):
        plot.legend(frameon=False, fontsize=7.5, labelcolor=INK, handlelength=1.8)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The centred mean over a fortieth of the curve, over what there is of it at the ends."""
    reach = max(1, len(values) // 80)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12)
    FigureCanvasAgg(figure)
    axes = list(np.reshape(figure.subplots(rows, columns), -1))
    for plot in axes:
        plot.set_facecolor("white")
        plot.set_axisbelow(True)
        plot.grid(True, color=RULE, linewidth=0.8)
        plot.spines[["top", "right", "left"]].set_visible(False)
        plot.spines["bottom"].set_color(RULE)
        plot.tick_params(colors=MUTED, labelsize=8, length=0)
    return figure, axes


def _finish(figure: Figure, path: str | os.PathLike | None) -> Figure:
    if path is not None:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path)
    return figure
