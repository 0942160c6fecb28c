"""Charts: which panels, curves and bars are drawn, from which logs."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from mrcnn_tf import charts


def panels(figure):
    return {plot.get_title(loc="left"): plot for plot in figure.axes if plot.get_visible()}


def curve(plot, label):
    line = next(line for line in plot.get_lines() if line.get_label() == label)
    return line.get_xdata().tolist(), line.get_ydata().tolist()


def test_an_epoch_log(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(
        "epoch,step,loss,mask_loss,learning_rate,images_per_second,rpn_recall,positive_rois,val_loss,val_box_AP,val_mask_AP50\n"
        "1,50,2.5,0.6,0.001,1.5,0.5,0.1,2.6,,\n"
        "2,100,1.5,0.4,0.002,1.6,0.75,0.2,1.9,0.25,0.5\n"
    )
    figure = charts.plot_history(log, tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").stat().st_size > 10_000
    shown = panels(figure)
    titles = ["Loss", "Parts of the loss", "Average precision (validation)", "Learning rate", "Sampling"]
    assert list(shown) == [*titles, "Images per second"]
    assert curve(shown["Loss"], "training") == ([50, 100], [2.5, 1.5])
    assert curve(shown["Loss"], "validation") == ([50, 100], [2.6, 1.9])
    assert curve(shown["Parts of the loss"], "mask") == ([50, 100], [0.6, 0.4])
    # Where a cell is empty, there is no point.
    assert curve(shown["Average precision (validation)"], "box AP") == ([100], [0.25])
    assert curve(shown["Average precision (validation)"], "mask AP50") == ([100], [0.5])
    assert curve(shown["Sampling"], "positive RoIs") == ([50, 100], [0.1, 0.2])
    assert {plot.get_xlabel() for plot in shown.values()} == {"step"}
    assert {plot.get_ylim()[0] for plot in shown.values()} == {0.0}


def test_a_step_log_and_dictionaries(tmp_path):
    log = tmp_path / "steps.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (1, 2, 4)))
    assert curve(panels(charts.plot_history(log))["Loss"], "training") == ([1, 2, 4], [1, 0.5, 0.25])
    # Validation losses of the parts are dashed, in the colour of the training's.
    history = {"step": [10, 20], "mask_loss": [3, 2], "val_mask_loss": [math.nan, 2.5], "box/AP": [0.1, 0.2]}
    shown = panels(charts.plot_history(history))
    assert list(shown) == ["Parts of the loss (dashed: validation)", "Average precision (validation)"]
    solid, dashed = shown["Parts of the loss (dashed: validation)"].get_lines()
    assert solid.get_color() == dashed.get_color() and dashed.get_ydata().tolist() == [2.5]
    assert dashed.is_dashed() and not solid.is_dashed()


def test_what_fit_returns_counts_epochs_from_one():
    figure = charts.plot_history(SimpleNamespace(history={"loss": [3.0, 2.0]}, epoch=[0, 1]))
    (plot,) = panels(figure).values()
    assert curve(plot, "training") == ([1, 2], [3, 2]) and plot.get_xlabel() == "epoch"


def test_many_rows_are_smoothed_but_not_the_learning_rate():
    steps = np.arange(1, 401)
    noise = np.where(steps % 2, 1.0, 3.0)
    shown = panels(charts.plot_history({"step": steps, "loss": noise, "learning_rate": noise, "other": noise}))
    raw, trend = (line.get_ydata() for line in shown["Loss"].get_lines())
    np.testing.assert_array_equal(raw, noise)
    # Centred means of 11 rows: 6 of the one and 5 of the other value.
    assert np.unique(np.round(trend[5:-5], 9)).tolist() == pytest.approx([21 / 11, 23 / 11])
    assert trend[0] == pytest.approx(2.0)  # rows 1 to 6
    assert [line.get_ydata().tolist() for line in shown["Learning rate"].get_lines()] == [noise.tolist()]


def test_infinite_values_and_empty_logs(tmp_path):
    shown = panels(charts.plot_history({"epoch": [1, 2, 3], "loss": [2, math.inf, 1]}))
    assert curve(shown["Loss"], "training") == ([1, 3], [2, 1])
    with pytest.raises(ValueError, match="nothing to draw in the history"):
        charts.plot_history({"epoch": [], "loss": []})
    (tmp_path / "log.csv").write_text("epoch,loss\n")
    with pytest.raises(ValueError, match="nothing to draw in .*log.csv"):
        charts.plot_history(tmp_path / "log.csv")


def test_bars_of_classes(tmp_path):
    def values(objects, box, mask):
        return {"objects": objects, "images": 1, "box/AP": box, "mask/AP": mask}

    per_class = {"cat": values(3, 0.5, 0.2), "owl": values(0, math.nan, math.nan), "d$g": values(7, 0.1, 0.6)}
    figure = charts.plot_per_class(SimpleNamespace(per_class=per_class), tmp_path / "per_class.png")
    assert (tmp_path / "per_class.png").stat().st_size > 5_000
    (plot,) = figure.axes
    assert [label.get_text() for label in plot.get_yticklabels()] == ["d$g  (7)", "cat  (3)"]
    box, mask = plot.containers
    assert [bar.get_width() for bar in box] == [0.1, 0.5] and [bar.get_width() for bar in mask] == [0.6, 0.2]
    assert "1 class without objects left out" in plot.get_xlabel()
    assert [text.get_text() for text in plot.texts] == ["0.10", "0.50", "0.60", "0.20"]
    with pytest.raises(ValueError, match="metric = 'AP75'"):
        charts.plot_per_class(per_class, metric="AP75")


def test_keypoints_have_their_bars_and_curves():
    def values(objects, box, keypoints):
        return {"objects": objects, "images": 1, "box/AP": box, "keypoints/AP": keypoints}

    (plot,) = charts.plot_per_class({"dog": values(1, 0.9, math.nan), "person": values(2, 0.5, 0.4)}).axes
    assert [label.get_text() for label in plot.get_yticklabels()] == ["person  (2)", "dog  (1)"]
    assert [text.get_text() for text in plot.texts] == ["0.50", "0.90", "0.40", "-"]
    history = {"step": [1, 2], "keypoint_loss": [8.0, 6.0], "val_keypoints_AP": [0.1, 0.2]}
    shown = panels(charts.plot_history(history))
    assert curve(shown["Parts of the loss"], "keypoint") == ([1, 2], [8.0, 6.0])
    assert curve(shown["Average precision (validation)"], "keypoints AP") == ([1, 2], [0.1, 0.2])


def test_bars_of_boxes_alone_and_of_nothing():
    (plot,) = charts.plot_per_class({"cat": {"objects": 1, "box/AP": 0.5}}).axes
    assert len(plot.containers) == 1 and plot.get_legend() is None
    for nothing in ({}, {"cat": {"objects": 0, "box/AP": math.nan, "mask/AP": math.nan}}):
        (plot,) = charts.plot_per_class(nothing).axes
        assert not len(plot.patches)
