"""The complete tables of a run as report.html has them: gaps, changes, times by program, evidence and identity.

Digits are trimmed: an interval's ends have those that its width leaves meaning, everything else has DIGITS.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.analysis.gaps import ARM
from harness.analysis.tables import Tables
from harness.report.markdown import bold_interval, seconds
from harness.study.configuration import CONFIG

# What a cell holds: a value that is shown as it is, or the Markdown shown ("3.4 ms") and the number that it sorts by.
Cell = str | int | float | None | tuple[str, float | None]
DIGITS = 3
# Columns by which rows are chosen from a list.
FILTERS = ("framework", "execution", "workload", "pass", "threads", "verdict", "effect", "status")
# Columns that are said once, above the table, where all its rows have the same there.
SAID_ONCE = ("device", "precision", "baseline")
PROGRAM = [*CONFIG, "workload", "pass", *ARM]


@dataclass(frozen=True)
class DataTable:
    """A table: its name, its title, one sentence on its rows, its columns and its rows."""

    name: str
    title: str
    about: str
    columns: Sequence[str]
    rows: list[list[Cell]]


def data_tables(tables: Tables) -> list[DataTable]:
    """Return the complete tables of a run that have rows."""
    interval = "ratio with its 95% interval over processes, bold where that does not hold 1"
    data = [
        _data_table(
            "gaps",
            f"Every gap: contender over baseline, after the same recurrence; {interval} (gaps.csv).",
            _gaps(tables.gaps),
        ),
        _data_table(
            "changes",
            f"What each execution does to the eager gap, in the loop that users write; {interval} (changes.csv).",
            _with_interval(tables.changes, "change"),
        ),
        _data_table(
            "times",
            "A row for each program that was measured: the median, the shortest and the longest over its processes of "
            "the median call (times.csv has every process, and what was not measured with the reason).",
            _program_times(tables.times),
            {"time": seconds, "shortest": seconds, "longest": seconds, "first call": seconds},
        ),
        _data_table("evidence", "What each program did in one call (evidence.csv).", tables.evidence),
        _data_table(
            "identity",
            "The worst error of each output and gradient against the oracle (identity.csv).",
            tables.identity,
        ),
    ]
    return [table for table in data if table.rows]


def _gaps(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the gaps with what is concluded of them next to their ratios."""
    concluded = ["direction", "verdict", "trusted"]
    frame = _with_interval(gaps, "ratio")
    others = [column for column in frame if column not in concluded]
    after_ratio = others.index("ratio") + 1
    frame = frame[[*others[:after_ratio], *concluded, *others[after_ratio:]]]
    return frame.rename(columns={"trusted": "A/A holds 1", "needs": "processes needed"})


def _with_interval(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return the table with its interval's ends in the column of the value: (Markdown, value)."""
    numbers = zip(frame[value], frame.ci_low, frame.ci_high, strict=True)
    cells = [(bold_interval(*row), trim(row[0], DIGITS + 1)) for row in numbers]
    whole = pd.Series(cells, index=frame.index, dtype=object)
    return frame.assign(**{value: whole}).drop(columns=["ci_low", "ci_high"])


def _program_times(times: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each program that a process was begun for, with what befell it and why. Times in seconds."""
    begun = times[times.process.notna()]
    groups = begun.groupby(PROGRAM, sort=False)
    aggregated = groups.agg(
        processes=("median_s", "count"),
        time=("median_s", "median"),
        shortest=("median_s", "min"),
        longest=("median_s", "max"),
        first=("first_call_s", "first"),
    )
    texts = {name: _join_distinct(begun, name) for name in ("status", "reason")}
    return aggregated.assign(**texts).rename(columns={"first": "first call"}).reset_index()


def _join_distinct(times: pd.DataFrame, name: str) -> pd.Series:
    """Return what a column has of each program, each text once."""
    texts = times.loc[times[name].notna() & (times[name] != ""), [*PROGRAM, name]].drop_duplicates()
    return texts.groupby(PROGRAM, sort=False)[name].agg("; ".join)


def _data_table(
    name: str, about: str, frame: pd.DataFrame, units: dict[str, Callable[[float], str]] | None = None
) -> DataTable:
    """Return a table without the columns that are empty throughout or said once; `units` write numbers with a unit."""
    once = [column for column in SAID_ONCE if column in frame and frame[column].nunique(dropna=False) == 1]
    if once:
        said = ", ".join(f"{column} {frame[column].iloc[0]}" for column in once)
        about, frame = f"{about} In all rows: {said}.", frame.drop(columns=once)
    columns = [_column(frame[name], (units or {}).get(name)) for name in frame]
    kept = {
        str(name).replace("_", " "): cells
        for name, cells in zip(frame, columns, strict=True)
        if any(cell not in (None, "") for cell in cells)
    }
    rows = [list(row) for row in zip(*kept.values(), strict=True)]
    return DataTable(name, name.capitalize(), about, list(kept), rows)


def _column(values: pd.Series, unit: Callable[[float], str] | None) -> list[Cell]:
    cells = [_cell(value) for value in values.tolist()]
    if unit is None:
        return cells
    return [(unit(value), value) if isinstance(value, int | float) else None for value in cells]


def _cell(value: Any) -> Cell:
    """Return a table's value as a cell: missing ones as None, numbers in DIGITS, yes and no for truth."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return trim(value, DIGITS) if isinstance(value, float) else value if isinstance(value, int) else str(value)


def trim(value: float, digits: int) -> float | int | None:
    """Return a number rounded to some significant digits, as an integer where it is one; None if it is not finite."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
