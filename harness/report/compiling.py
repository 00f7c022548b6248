"""Page one's table and figure: the gap in every execution, and what compiling does to it."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.changes import (
    BLURS,
    NARROWS,
    NOT_SHOWN,
    OPENS,
    REMOVES,
    REVERSES,
    SAME,
    USUAL,
    WIDENS,
    users_gaps,
)
from harness.analysis.tables import Tables
from harness.report.causes import rows_with_fewest_threads
from harness.report.figures import (
    Figures,
    engine_of,
    engines_of,
    execution_rank,
    program_style,
    spread,
)
from harness.report.markdown import FRAMEWORKS, bold_interval, execution_name, pluralize, table, with_threads

FIGURE = "compiling"
STAGES = ("eager", "graph", "compiled")
STAGE = {"eager": 0, "graph": 1, "v1": 1, "xla": 2, "inductor": 2, "inductor-batched": 2, "cudagraph": 2}
PLACE = ["workload", "pass", "device", "threads"]
BESIDE = {"v1": -0.1, "inductor-batched": 0.1, "cudagraph": -0.1}  # executions beside a framework's line
TICKS = (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4)
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
        lambda row: bold_interval(row["ratio"], row["ci_low"], row["ci_high"]),
    )


def change_table(tables: Tables, loop: str = USUAL) -> str:
    """Return a table of what each other execution does to the eager gap, as a ratio of gaps; "" without any."""
    return _side_by_side(
        tables.changes[tables.changes.loop == loop],
        "gap / eager gap",
        lambda row: f"{bold_interval(row['change'], row['ci_low'], row['ci_high'])} {row['effect']}",
    )


def _side_by_side(frame: pd.DataFrame, title: str, describe: Callable[[dict[Any, Any]], str]) -> str:
    """Return a table with a column for each execution and a row for each place; `describe` writes a cell."""
    if frame.empty:
        return ""
    engines = engines_of(frame)
    rows = []
    for keys, part in frame.groupby(PLACE, sort=True):
        cells = {engine_of(row): describe(row) for row in part.to_dict("records")}
        rows.append([_place(*keys), *(cells.get(engine, "–") for engine in engines)])
    return table([title, *(execution_name(*engine) for engine in engines)], rows)


def sentences(tables: Tables) -> list[str]:
    """Return for each execution what it does to the eager gap, and where."""
    lines = []
    changes = tables.changes[tables.changes.loop == USUAL]
    for engine in engines_of(changes):
        part = changes[[engine_of(row) == engine for row in changes.to_dict("records")]]
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


def summary(tables: Tables) -> str:
    """Say in how many cases another execution changes the eager gap, and how; "" where none was compared."""
    changes = tables.changes[tables.changes.loop == USUAL]
    if changes.empty:
        return ""
    counts = Counter(changes.effect)
    unknown = counts.pop(NOT_SHOWN, 0)
    named = ", ".join(f"{EFFECTS[effect]} in {counts[effect]}" for effect in EFFECTS if counts[effect])
    start = f"Against the eager gap of the same framework, that of another execution is {named or 'changed in none'}"
    return f"{start} of {pluralize(len(changes), 'case')}; in {unknown} a change is not shown."


def _places(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame[PLACE].itertuples(index=False, name=None))


def _place(workload: str, pass_: str, device: str, threads: int) -> str:
    return with_threads(f"{workload} {pass_}", device, threads)


def drawings(tables: Tables) -> Figures:
    """Return the figure of page one for each device on which a framework has the gap in two executions."""
    frame = rows_with_fewest_threads(users_gaps(tables.gaps, tables.loops))
    figures: Figures = {}
    for device, part in frame.groupby("device", sort=True):
        part = part[part.precision == part.precision.iloc[0]]
        if (part.groupby("framework").execution.nunique() > 1).any():
            name = FIGURE if device == "cpu" else f"{FIGURE}-{device}"
            figures[name] = partial(_draw, part, tables.study.margin)
    return figures


def _draw(frame: pd.DataFrame, margin: float) -> Any:
    """Draw a panel for each workload and pass: the gap from eager to compiled, a line for each framework."""
    from matplotlib.figure import Figure

    places = sorted(set(zip(frame.workload, frame["pass"], strict=True)))
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    low, high = frame.ci_low.min() / 1.05, frame.ci_high.max() * 1.05
    ticks = [tick for tick in TICKS if low <= tick <= high]
    for axes, (workload, pass_) in zip(panels, places, strict=False):
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.axhspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0)
        axes.axhline(1, color="black", linewidth=0.8)
        _draw_lines(axes, frame[(frame.workload == workload) & (frame["pass"] == pass_)])
        axes.set_xticks(range(len(STAGES)), STAGES)
        axes.set_xlim(-1.05, len(STAGES) + 0.2)
        axes.set_title(f"{workload} {pass_}", loc="left", fontweight="bold")
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_yticks([], minor=True)
        axes.grid(axis="y", color="#f0f0f0")
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    parts = "in_loop / batched, log scale, 95% interval:", "above 1, projecting once is faster"
    figure.supylabel(("\n" if rows == 1 else " ").join(parts), fontsize=9)  # a single row has no room for one line
    return figure


def _draw_lines(axes: Any, gaps: pd.DataFrame) -> None:
    """Draw one panel's gaps: a line through each framework's executions, and their names beside their last points."""
    labels = []
    for framework, rows in gaps.groupby("framework", sort=True):
        rows = rows.sort_values("execution", key=lambda names: names.map(execution_rank))
        line = rows[~rows.execution.isin(BESIDE)]
        colour = program_style(framework, "")["color"]
        axes.plot(line.execution.map(_stage), line.ratio, color=colour, linewidth=1.4)
        for row in rows.to_dict("records"):
            x, error = _stage(row["execution"]), [[row["ratio"] - row["ci_low"]], [row["ci_high"] - row["ratio"]]]
            style = program_style(framework, row["execution"])
            axes.errorbar(x, row["ratio"], yerr=error, linestyle="", markersize=5, elinewidth=0.8, **style)
            if row["execution"] in BESIDE or row["execution"] == line.execution.iloc[-1]:
                name = f"{FRAMEWORKS.get(framework, framework)} {row['execution']}"
                labels.append((round(x), float(np.log(row["ratio"])), name, colour))
    gap = float(np.diff(np.log(axes.get_ylim()))[0]) / 17
    for stage in range(len(STAGES)):
        beside = [label for label in labels if label[0] == stage]
        for height, (_, _, name, colour) in zip(spread([label[1] for label in beside], gap), beside, strict=True):
            side = 1 if stage == len(STAGES) - 1 else -1  # on the side where the fewest lines are
            style = {"ha": "left" if side > 0 else "right", "va": "center", "color": colour, "fontsize": 7.5}
            style["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
            axes.text(stage + 0.16 * side, np.exp(height), name, **style)


def _stage(execution: str) -> float:
    """Return an execution's place on the axis from eager to compiled."""
    return STAGE.get(execution, len(STAGES) - 1) + BESIDE.get(execution, 0.0)


def section(tables: Tables) -> dict[str, Any] | None:
    """Return the template variables of page one's table and figure; None where the run has no such gaps."""
    gaps = gap_table(tables)
    if not gaps:
        return None
    same = change_table(tables, SAME)
    texts = {"gaps": gaps, "changes": change_table(tables), "same": same, "sentences": sentences(tables)}
    return texts | {"figures": list(drawings(tables))}
