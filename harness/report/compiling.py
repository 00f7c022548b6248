"""Page one's table and figure: the gap in every execution, and what compiling does to it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.changes import BLURS, NARROWS, NOT_SHOWN, OPENS, REMOVES, REVERSES, WIDENS, users_gaps
from harness.analysis.tables import Tables
from harness.report.figures import Figures, save_figure
from harness.report.markdown import FRAMEWORKS, execution_name, pluralize, table

FIGURE = "compiling"
ORDER = ("v1", "eager", "graph", "inductor", "inductor-batched", "cudagraph", "xla")  # from the least compiled on
TICKS = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 4)
COLOURS = ("#c0392b", "#2c6fbb", "#27815a", "#d08a1d", "#8e5bb5", "#17a2b8")  # one for each workload
DASHES = {"forward": "-", "train": (0, (4, 2))}
EFFECTS = {
    REMOVES: "removed",
    REVERSES: "reversed",
    NARROWS: "narrowed",
    WIDENS: "widened",
    OPENS: "opened",
    BLURS: "changed to one whose side of 1 is not shown",
}


def gap_table(tables: Tables) -> str:
    """Return a table of the gap in the loop that users write: a row for each workload, pass and thread count.

    A column is an execution. Bold gaps have an interval that does not hold 1. Returns "" without such gaps.
    """
    return _side_by_side(
        users_gaps(tables.gaps, tables.loops),
        "in_loop / batched",
        lambda row: _interval(row["ratio"], row["ci_low"], row["ci_high"]),
    )


def change_table(tables: Tables) -> str:
    """Return a table of what each other execution does to the eager gap, as a ratio of gaps; "" without any."""
    return _side_by_side(
        tables.changes,
        "gap / eager gap",
        lambda row: f"{_interval(row['change'], row['ci_low'], row['ci_high'])} {row['effect']}",
    )


def _side_by_side(frame: pd.DataFrame, title: str, describe: Callable[[dict[Any, Any]], str]) -> str:
    """Return a table with a column for each execution and a row for each place; `describe` writes a cell."""
    if frame.empty:
        return ""
    engines = _engines(frame)
    rows = []
    for keys, part in frame.groupby(["workload", "pass", "threads"], sort=True):
        cells = {engine_of(row): describe(row) for row in part.to_dict("records")}
        rows.append([_place(*keys), *(cells.get(engine, "–") for engine in engines)])
    return table([title, *(execution_name(*engine) for engine in engines)], rows)


def sentences(tables: Tables) -> list[str]:
    """Return for each execution what it does to the eager gap, and where."""
    lines = []
    for engine in _engines(tables.changes):
        part = tables.changes[[engine_of(row) == engine for row in tables.changes.to_dict("records")]]
        clauses = [
            f"{words} at {', '.join(_place(*keys) for keys in places)}"
            for effect, words in EFFECTS.items()
            if (places := _places(part[part.effect == effect]))
        ]
        if clauses:
            clauses[0] = f"the gap is {clauses[0]}"
        unknown = int((part.effect == NOT_SHOWN).sum())
        if unknown:
            clauses.append(f"a change is not shown in {unknown} of {pluralize(len(part), 'case')}")
        lines.append(f"**{execution_name(*engine)}**: {'; '.join(clauses)}.")
    return lines


def _places(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame[["workload", "pass", "threads"]].itertuples(index=False, name=None))


def _place(workload: str, pass_: str, threads: int) -> str:
    return f"{workload} {pass_}, {pluralize(threads, 'thread')}"


def engine_of(row: dict[Any, Any]) -> tuple[str, str, str, str]:
    """Return framework, execution, device and precision of a row."""
    return row["framework"], row["execution"], row["device"], row["precision"]


def _engines(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return what ran the rows' programs, by framework, and from the least compiled execution on."""
    engines = {engine_of(row) for row in frame.to_dict("records")}
    return sorted(engines, key=lambda engine: (engine[0], engine[2:], _rank(engine[1]), engine[1]))


def _rank(execution: str) -> int:
    return ORDER.index(execution) if execution in ORDER else len(ORDER)


def _interval(ratio: float, low: float, high: float) -> str:
    text = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if low > 1 or high < 1 else text


def drawings(tables: Tables) -> Figures:
    """Return the figure of page one, where a framework has the gap in two executions."""
    frame = users_gaps(tables.gaps, tables.loops)
    first = frame[["device", "precision", "threads"]].drop_duplicates().sort_values(["device", "precision", "threads"])
    frame = frame.merge(first.head(1))  # one device, precision and thread count
    counts = frame.groupby("framework").execution.nunique()
    frame = frame[frame.framework.isin(counts[counts > 1].index)]
    return {FIGURE: partial(_draw, frame, tables.study.margin)} if len(frame) else {}


def _draw(frame: pd.DataFrame, margin: float, path: Path) -> None:
    """Draw a panel for each framework: the gap from execution to execution, a line for each workload and pass."""
    from matplotlib.figure import Figure

    frameworks = sorted(frame.framework.unique())
    workloads = sorted(frame.workload.unique())
    figure = Figure(figsize=(4.2 * len(frameworks), 4.6), layout="constrained")
    panels = figure.subplots(1, len(frameworks), sharey=True, squeeze=False)[0]
    for axes, framework in zip(panels, frameworks, strict=True):
        part = frame[frame.framework == framework]
        executions = sorted(part.execution.unique(), key=lambda name: (_rank(name), name))
        axes.axhspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0)
        axes.axhline(1, color="black", linewidth=0.8)
        for (workload, pass_), line in part.groupby(["workload", "pass"], sort=True):
            line = line.sort_values("execution", key=lambda names: names.map(_rank))
            places = [executions.index(name) for name in line.execution]
            colour = COLOURS[workloads.index(workload) % len(COLOURS)]
            error = [line.ratio - line.ci_low, line.ci_high - line.ratio]
            axes.errorbar(
                places, line.ratio, yerr=error, color=colour, linestyle=DASHES[pass_], marker="o", markersize=4,
                linewidth=1.3, elinewidth=0.7, label=f"{workload} {pass_}",
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xticks(range(len(executions)), executions)
        axes.set_xlim(-0.3, len(executions) - 0.7)
        axes.set_title(FRAMEWORKS.get(framework, framework), loc="left", fontweight="bold")
        axes.grid(axis="y", color="#f0f0f0")
    low, high = frame.ci_low.min() / 1.03, frame.ci_high.max() * 1.03
    ticks = [tick for tick in TICKS if low <= tick <= high]
    panels[0].set_ylim(low, high)
    panels[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    panels[0].set_yticks([], minor=True)
    panels[0].set_ylabel("in_loop / batched, log scale (95% interval)\nabove 1: projecting once is faster")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def section(tables: Tables) -> dict[str, Any] | None:
    """Return the template variables of page one's table and figure; None where the run has no such gaps."""
    gaps = gap_table(tables)
    if not gaps:
        return None
    figures = list(drawings(tables))
    return {"gaps": gaps, "changes": change_table(tables), "sentences": sentences(tables), "figures": figures}
