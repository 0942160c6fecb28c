"""The paper's tables: their rows, and what is written of results."""

import importlib

import pytest

from mrcnn_tf import presets

# === The rows ===


def test_every_row_is_a_preset_with_a_number_for_each_column():
    tables = importlib.import_module("_paper_tables").TABLES
    assert list(tables) == ["1", "2a", "2b", "2c", "2d", "2e", "3", "4", "5", "6", "7"]
    for table in tables.values():
        assert len({row.name for row in table.rows}) == len(table.rows)
        for row in table.rows:
            assert len(row.paper) == len(table.metrics), (table.name, row.name)
            assert all(value is None or 0 < value < 100 for value in row.paper)
            assert row.preset in presets.names() or not row.preset


def test_the_papers_own_numbers_have_the_directions_it_tells():
    tables, sum_of = (importlib.import_module(name) for name in ("_paper_tables", "_table_text"))
    found = {
        f"{table.name}: {direction.text}": round(sum_of.paper_sum(direction), 1)
        for table in tables.TABLES.values()
        for direction in table.directions
    }
    assert all(value > 0 for value in found.values())
    # As section 4 tells them: 5.5 points for sigmoids, 10.5, .6 and 2.1, and 1.1 and .9 of box AP.
    assert found["2b: sigmoid above softmax"] == 5.5
    assert found["2d: RoIAlign above RoIPool: masks"] == 10.5
    assert found["2d: stride 32 above stride 16 (table 2c), with RoIAlign"] == 0.6
    assert found["2e: FCN above the MLP of two layers"] == 2.1
    assert found["3: RoIAlign above RoIPool"] == 1.1
    assert found["3: training masks does not hurt boxes"] == 0.9
    assert found["6: RoIAlign above RoIPool"] == 4.4


# === What a table says ===


def result(table: str, row: str, seed: int, **metrics: float | None) -> tuple[tuple, dict]:
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    told = {
        "metrics": values,
        "steps": 300,
        "data": "drawn shapes",
        "start": "a backbone",
        "command": "reproduce.py 2c",
    }
    return (table, row, seed), {"table": table, "row": row, "seed": seed, **told}


def test_a_table_has_the_papers_numbers_beside_ours():
    text, tables = importlib.import_module("_table_text"), importlib.import_module("_paper_tables").TABLES
    results = dict(
        result("2b", "sigmoid", seed, mask__AP=0.30 + 0.01 * seed, mask__AP50=0.5, mask__AP75=None)
        for seed in (0, 1, 2)
    )
    lines = text.write_table(tables["2b"], results, ["A note."]).splitlines()
    assert lines[0] == "# Table 2b. Multinomial against independent masks (ResNet-50-C4): mask AP"
    assert lines[2].startswith("| row | mask AP (paper) | mask AP (ours) | mask AP50 (paper) |")
    assert "| softmax | 24.8 | – | 44.1 | – | 25.1 | – | – | – |" in lines
    assert "| sigmoid | 30.3 | 31.0 ± 1.0 | 51.2 | 50.0 ± 0.0 | 31.5 | – | 0, 1, 2 | 300 |" in lines
    assert "A note." in lines and "Data: drawn shapes." in lines and "reproduce.py 2c" in lines
    expected = "- sigmoid above softmax, mask AP (paper +5.5): not measured, for want of 2b/softmax"
    assert lines[-2] == expected


@pytest.mark.parametrize(
    ("better", "worse", "or_equal", "expected"),
    [
        ((0.30, 0.34), (0.25, 0.25), False, "+7.0 ± 2.8, above zero with 2 of 2 seeds: **shown**"),
        ((0.30, 0.24), (0.25, 0.25), False, "1 of 2 seeds: **not shown** (above zero by less than its standard error)"),
        ((0.30, 0.34, 0.24), (0.25,) * 3, False, "above zero with 2 of 3 seeds: **shown in the mean only**"),
        ((0.24, 0.22), (0.25, 0.25), False, "-2.0 ± 1.4, above zero with 0 of 2 seeds: **not shown**"),
        ((0.24, 0.22), (0.25, 0.25), True, "-2.0 ± 1.4, above zero with 0 of 2 seeds: **not shown**"),
        ((0.26, 0.23), (0.25, 0.25), True, "seeds: **shown** (below zero by less than its standard error)"),
        ((0.26, 0.25), (0.25, 0.25), True, "+0.5 ± 0.7, above zero with 1 of 2 seeds: **shown**"),
        ((0.30,), (0.25, 0.25), False, "+5.0: **shown** by one seed"),
    ],
)
def test_verdicts_are_those_of_the_numbers(better, worse, or_equal, expected):
    direction = importlib.import_module("_paper_tables").Direction(
        "this above that", "mask/AP", ((1, "2b", "sigmoid"), (-1, "2b", "softmax")), or_equal
    )
    values = {"sigmoid": better, "softmax": worse}
    results = dict(
        result("2b", row, seed, mask__AP=value) for row, of in values.items() for seed, value in enumerate(of)
    )
    line = importlib.import_module("_table_text").verdict(direction, results)
    assert line.startswith("this above that, mask AP (paper +5.5): ") and line.endswith(expected)


def test_a_wider_gap_is_a_difference_of_differences_between_tables():
    direction = importlib.import_module("_paper_tables").TABLES["2d"].directions[2]
    values = {("2d", "roialign"): 0.3, ("2d", "roipool"): 0.1, ("2c", "roialign"): 0.4, ("2c", "roipool"): 0.35}
    results = dict(result(*row, 0, mask__AP75=value) for row, value in values.items())
    text = importlib.import_module("_table_text")
    assert text.differences(direction, results) == pytest.approx([15.0])
    assert "(paper +5.4): +15.0: **shown** by one seed" in text.verdict(direction, results)
    del results["2c", "roipool", 0]
    assert text.verdict(direction, results).endswith("not measured, for want of 2c/roipool")


def test_a_gain_that_the_text_alone_tells():
    direction = importlib.import_module("_paper_tables").TABLES["2d"].directions[4]
    results = dict(result("2d", row, 0, mask__AP=value) for row, value in (("roialign_fpn", 0.5), ("roipool_fpn", 0.3)))
    line = importlib.import_module("_table_text").verdict(direction, results)
    assert line.endswith("on the pyramid: masks, mask AP (paper +1.5): +20.0: **shown** by one seed")
