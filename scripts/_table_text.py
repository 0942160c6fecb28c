"""The markdown of a table: the paper's numbers beside ours, and which of the paper's directions ours show.

Results are dictionaries as `reproduce.py` stores them, keyed (table, row, seed); metrics there are 0..1 (None where one
is not defined), here percent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from _paper_tables import Direction, Table, paper_value

Results = Mapping[tuple[str, str, int], dict]
MISSING = "–"
NAMES = {"box": "box", "mask": "mask", "keypoints": "kp", "benchmark": "mask"}


def write_table(table: Table, results: Results, notes: Sequence[str] = ()) -> str:
    """The whole file of a table; rows without results have the paper's numbers alone."""
    head = [
        "row",
        *(f"{_column(metric)} {whose}" for metric in table.metrics for whose in ("(paper)", "(ours)")),
        "seeds",
        "steps",
    ]
    lines = [f"# Table {table.name}. {table.title}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in table.rows:
        of_row = _of_row(results, table.name, row.name)
        cells = []
        for metric, paper in zip(table.metrics, row.paper):
            cells += [_number(paper), spread([result["metrics"].get(metric) for result in of_row.values()])]
        seeds = ", ".join(map(str, of_row)) or MISSING
        steps = ", ".join(sorted({str(result.get("steps") or MISSING) for result in of_row.values()})) or MISSING
        lines.append(_line([row.text, *cells, seeds, steps]))
    lines += ["", "Percent; mean and standard deviation over the seeds, where there are several.", ""]
    lines += [line for note in notes if note for line in (note, "")]
    own = [result for key, result in sorted(results.items()) if key[0] == table.name]
    lines += _told("Data", own, "data") + _told("Weights at the start", own, "start")
    commands = list(dict.fromkeys(result["command"] for result in own))
    if commands:
        lines += ["Made by", "", "```sh", *commands, "```", ""]
    if table.directions:
        lines += ["What the paper says of it, and what this shows:", ""]
        lines += [f"- {verdict(direction, results)}" for direction in table.directions]
    return "\n".join(lines).rstrip() + "\n"


def spread(values: Sequence[float | None]) -> str:
    """Mean of 0..1 values in percent, with the standard deviation where there are several: "31.2 ± 0.4"."""
    defined = [100 * value for value in values if value is not None]
    if not defined:
        return MISSING
    mean = f"{statistics.mean(defined):.1f}"
    return f"{mean} ± {statistics.stdev(defined):.1f}" if len(defined) > 1 else mean


def verdict(direction: Direction, results: Results) -> str:
    """A line on one direction: its sum over the seeds that all its rows have, the paper's, and whether it is shown.

    The sum is taken seed by seed, for the rows of a seed have seen the same images. It is shown if it is above zero
    with every seed, in the mean only if it is above its standard error; with `or_equal` if its mean is not below zero
    by more than that.
    """
    paper = paper_sum(direction)
    said = f" (paper {paper:+.1f})" if paper is not None else ""
    text = f"{direction.text}, {_column(direction.metric)}{said}: "
    sums = differences(direction, results)
    if not sums:
        rows = sorted({f"{table}/{row}" for _, table, row in direction.terms if not _of_row(results, table, row)})
        return text + ("not measured" if not rows else f"not measured, for want of {', '.join(rows)}")
    mean = statistics.mean(sums)
    error = statistics.stdev(sums) / math.sqrt(len(sums)) if len(sums) > 1 else 0.0
    measured = f"{spread([value / 100 for value in sums])}"
    measured = measured if mean < 0 else f"+{measured}"
    above = sum(value > 0 for value in sums)
    if len(sums) > 1:
        measured += f", above zero with {above} of {len(sums)} seeds"
    by = "" if len(sums) > 1 else " by one seed"
    if direction.or_equal and mean >= -error:
        shown = f"**shown**{by}" if mean >= 0 else "**shown** (below zero by less than its standard error)"
    elif direction.or_equal or mean <= 0:
        shown = "**not shown**"
    elif above == len(sums):
        shown = f"**shown**{by}"
    elif mean > error:
        shown = "**shown in the mean only**"
    else:
        shown = "**not shown** (above zero by less than its standard error)"
    return f"{text}{measured}: {shown}"


def differences(direction: Direction, results: Results) -> list[float]:
    """The direction's sum in percent for each seed that all its rows have, in the order of the seeds."""
    values = []
    for _, table, row in direction.terms:
        of_row = _of_row(results, table, row)
        metrics = {seed: result["metrics"].get(direction.metric) for seed, result in of_row.items()}
        values.append({seed: value for seed, value in metrics.items() if value is not None})
    seeds = sorted(set.intersection(*(set(of_row) for of_row in values)))
    signs = [sign for sign, *_ in direction.terms]
    return [100 * sum(sign * of_row[seed] for sign, of_row in zip(signs, values)) for seed in seeds]


def _of_row(results: Results, table: str, row: str) -> dict[int, dict]:
    found = {seed: result for (t, r, seed), result in results.items() if (t, r) == (table, row)}
    return dict(sorted(found.items()))


def paper_sum(direction: Direction) -> float | None:
    """What a direction comes to in the paper, in points; None where it has no such numbers."""
    if direction.said is not None:
        return direction.said
    values = [paper_value(table, row, direction.metric) for _, table, row in direction.terms]
    if any(value is None for value in values):
        return None
    return sum(sign * value for (sign, *_), value in zip(direction.terms, values))


def _told(title: str, results: Sequence[dict], field: str) -> list[str]:
    """A paragraph with what the results say of themselves; each row by its name where they differ."""
    said: dict[str, list[str]] = {}
    for result in results:
        said.setdefault(result[field], []).append(f"{result['row']} {result['seed']}")
    if not said:
        return []
    if len(said) == 1:
        return [f"{title}: {next(iter(said))}.", ""]
    return [f"{title}:", "", *(f"- {text} ({', '.join(rows)})" for text, rows in said.items()), ""]


def _column(metric: str) -> str:
    kind, name, *of_class = metric.split("/")
    return " ".join([NAMES[kind], name, *of_class])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
