"""Framework against framework: the table of the fastest program of each, and of the program that its users write."""

from typing import Any

import pandas as pd

from harness.analysis.frameworks import FASTEST, USUAL
from harness.analysis.gaps import GAP_KEYS, is_included
from harness.analysis.tables import Tables
from harness.report.causes import rows_with_fewest_threads
from harness.report.figures import configuration_name
from harness.report.markdown import FRAMEWORKS, Row, interval, pluralize, ratio, seconds, table, with_threads

TITLES = {FASTEST: "the fastest program of each", USUAL: "the loop that its users write, projected once"}


def section(tables: Tables) -> Row | None:
    """Return the template variables of the comparison of frameworks; None where the run has fewer than two."""
    frame = tables.frameworks
    if frame.empty:
        return None
    first = rows_with_fewest_threads(frame)
    others = frame.drop(first.index)
    return {
        "sentence": summary(frame),
        "first": {TITLES[kind]: _table(first[first.kind == kind]) for kind in (USUAL, FASTEST)},
        "modules": modules_table(tables),
        "others": {TITLES[kind]: _table(others[others.kind == kind]) for kind in (USUAL, FASTEST)},
    }


def summary(frame: pd.DataFrame) -> str:
    """Say how often which framework is shown to be the fastest, in the loop that its users write."""
    usual = frame[frame.kind == USUAL]
    sizes = usual.groupby(["device", "threads", "precision", "workload", "pass"]).size()
    winners = usual[usual.is_fastest]
    counts = winners.groupby("framework", sort=True).size().sort_values(ascending=False, kind="stable")
    named = ", ".join(f"{FRAMEWORKS.get(name, name)} in {count}" for name, count in counts.items())
    start = (
        f"In the loop that users write, projected once, one framework is shown to be the fastest in {len(winners)} of "
        f"{pluralize(int((sizes > 1).sum()), 'comparison')}"
    )
    return f"{start}: {named}." if len(winners) else f"{start}."


def modules_table(tables: Tables) -> str:
    """Return the gap of the framework's own modules beside that of the loop that users write; "" without the former.

    A row is a configuration, workload and pass.
    """
    gaps = tables.gaps[is_included(tables.gaps) & (tables.gaps.contender == "in_loop")]
    rows = []
    for row in gaps[gaps.recurrence == "modules"].to_dict("records"):
        place = [name for name in GAP_KEYS if name not in ("recurrence", "contender")]
        loop = tables.loops.get((row["framework"], row["execution"]))
        others = gaps[(gaps.recurrence == loop) & (gaps[place] == [row[name] for name in place]).all(axis=1)]
        functional = [ratio(other) for other in others.to_dict("records")]
        rows.append([configuration_name(row), f"{row['workload']} {row['pass']}", *(functional or ["–"]), ratio(row)])
    return table(["in_loop / batched", "", "functions", "modules"], rows) if rows else ""


def _table(frame: pd.DataFrame) -> str:
    """Return a table with a row for each place and a column for each framework; "" without rows."""
    if frame.empty:
        return ""
    names = sorted(frame.framework.unique())
    rows = []
    for keys, part in frame.groupby(["workload", "pass", "threads", "device", "precision"], sort=True):
        cells = {row["framework"]: _cell(row) for row in part.to_dict("records")}
        rows.append([_place(*keys), *(cells.get(name, "–") for name in names)])
    return table(["", *(FRAMEWORKS.get(name, name) for name in names)], rows)


def _place(workload: str, pass_: str, threads: int, device: str, precision: str) -> str:
    extra = [device] * (device != "cpu") + [precision] * (precision != "fp32")
    return " ".join([with_threads(f"{workload} {pass_}", device, threads), *extra])


def _cell(row: dict[Any, Any]) -> str:
    """Return a program's time, its ratio to the fastest program, and its name; bold where it is shown to be fastest."""
    name = f"{row['execution']} {row['recurrence']} {row['projection']}"
    time = f"**{seconds(row['time_s'])}**" if row["is_fastest"] else seconds(row["time_s"])
    if row["ratio"] == row["ci_low"] == 1:
        return f"{time}, {name}"
    return f"{time}, {interval(row['ratio'], row['ci_low'], row['ci_high'])}, {name}"
