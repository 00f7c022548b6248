"""Figures of a sweep: the gap along each size, a map of all ratios, and forecast against measured gaps."""

import math
from functools import partial
from typing import Any

import pandas as pd

from harness.analysis.gaps import is_included
from harness.analysis.stats import FASTER, SLOWER
from harness.analysis.tables import Tables
from harness.report import causes
from harness.report.figures import Figures, execution_rank, program_name, program_style, spread
from harness.study.study import LOOPS

SIZES = "TBHO"
LINES = ("-", "--", ":")  # of our loops in their order, and of any other recurrence
TICKS = (0.2, 0.33, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5)
FORECASTS = "forecasts"  # the name of their figure
RATIOS = ("ratio", "ci_low", "ci_high")
LIMIT = math.log(1.5)  # log ratio at which the map's colours saturate, on either side of 0


def drawings(tables: Tables) -> Figures:
    """Return the figures: curves and a map for each pass, and one of the forecasts where there are any."""
    frame = sweep_rows(tables)
    figures: Figures = {}
    for pass_, part in frame.groupby("pass", sort=True):
        if varied := [size for size in SIZES if len(_points_along(part, size))]:
            title = f"around {_centre_name(tables)}, {pass_}"
            figures[f"sweep-{pass_}"] = partial(_draw_curves, part, varied, title, tables.study.margin)
        figures[f"map-{pass_}"] = partial(_draw_map, part, f"in_loop / batched around {_centre_name(tables)}, {pass_}")
    if not tables.scores.empty:
        figures[FORECASTS] = partial(_draw_forecasts, tables.scores)
    return figures


def sweep_rows(tables: Tables) -> pd.DataFrame:
    """Return the sweep's included gaps of in_loop, with their points' sizes; only those with the fewest threads."""
    frame = tables.swept[is_included(tables.swept) & (tables.swept.contender == "in_loop")]
    sizes = pd.DataFrame(
        [{"workload": w.name, **{size: getattr(w, size) for size in SIZES}} for w in tables.study.swept],
        columns=["workload", *SIZES],
    )
    frame = causes.rows_with_fewest_threads(frame.merge(sizes, on="workload"))
    names = [program_name(row, "" if row["device"] == "cpu" else row["device"]) for row in frame.to_dict("records")]
    return frame.assign(program=names, rank=frame.execution.map(execution_rank))


def _programs(frame: pd.DataFrame) -> list[str]:
    """Return the names of the rows' programs: by framework, and from the least compiled execution on."""
    return list(dict.fromkeys(frame.sort_values(["framework", "device", "rank", "program"]).program))


def _centre_name(tables: Tables) -> str:
    """Return the name of the workload around which sizes were swept."""
    assert tables.study.sweep is not None
    return tables.study.sweep.name


def _points_along(frame: pd.DataFrame, size: str) -> pd.DataFrame:
    """Return the rows of the points that differ from the centre in one size."""
    return frame[frame.workload.str.contains(rf"-{size}\d+$")]


def _draw_curves(frame: pd.DataFrame, varied: list[str], title: str, margin: float) -> Any:
    """Draw a panel for each varied size: the ratio against it, a line for each program, other sizes the centre's."""
    from matplotlib.figure import Figure

    row_count, column_count = math.ceil(len(varied) / 2), min(2, len(varied))
    figure = Figure(figsize=(max(8.5, 5.5 * column_count), 3.75 * row_count), layout="constrained")
    centre = frame[frame.workload.str.endswith("-centre")]
    low, high = (frame[[*RATIOS]].min().min() / 1.05, frame[[*RATIOS]].max().max() * 1.05)
    panels = figure.subplots(row_count, column_count, sharey=True, squeeze=False)
    for spare in panels.flat[len(varied) :]:
        spare.set_axis_off()
    for axes, size in zip(panels.flat, varied, strict=False):
        axes.axhspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0)
        axes.axhline(1, color="black", linewidth=0.8)
        rows = pd.concat([centre, _points_along(frame, size)])
        axes.set(xscale="log", yscale="log", ylim=(low, high), xlabel=size)
        _draw_lines(axes, rows, size)
        values = sorted(set(rows[size]))
        axes.set_xticks(values, [f"{value}" for value in values], minor=False)
        axes.set_xticks([], minor=True)
        _set_ratio_ticks(axes.yaxis, low, high)
        axes.grid(color="#f0f0f0")
    for axes in panels[:, 0]:
        axes.set_ylabel("in_loop / batched")
    has_intervals = frame.ci_low.notna()
    intervals = "95% intervals" if has_intervals.all() else "95% intervals where several processes measured it"
    also = f"{intervals}; " if has_intervals.any() else "one process each, no intervals; "
    figure.suptitle(f"The gap along each size {title}\n{also}above 1: projecting once is faster")
    return figure


def _draw_lines(axes: Any, rows: pd.DataFrame, size: str) -> None:
    """Draw a panel's lines, and the program's name beside the last point of each.

    A colour is a framework, a mark an execution, and dashes a loop.
    """
    values = sorted(set(rows[size]))
    names = _programs(rows)
    ends = []
    for name in names:
        part = rows[rows.program == name].sort_values(size)
        program = part.iloc[-1]
        error = [(part.ratio - part.ci_low).fillna(0), (part.ci_high - part.ratio).fillna(0)]
        style = program_style(program.framework, program.execution) | {"markersize": 4, "linewidth": 1.1}
        style["linestyle"] = LINES[LOOPS.index(program.recurrence) if program.recurrence in LOOPS else len(LOOPS)]
        axes.errorbar(part[size], part.ratio, yerr=error, **style)
        ends.append((program[size], program.ratio, style["color"]))
    reach = values[-1] / values[0]
    low, high = axes.get_ylim()
    heights = spread([math.log(ratio) for _, ratio, _ in ends], math.log(high / low) / 24)
    beside = values[-1] * reach**0.03
    for name, height, (x, ratio, colour) in zip(names, heights, ends, strict=True):
        axes.plot([x, beside], [ratio, math.exp(height)], color=colour, linewidth=0.4)
        axes.text(beside, math.exp(height), f" {name}", va="center", color=colour, fontsize=7.5)
    axes.set_xlim(values[0] / reach**0.04, values[-1] * reach**0.5)


def _set_ratio_ticks(axis: Any, low: float, high: float) -> None:
    """Set ticks at the round ratios between two limits, named as ratios."""
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_ticks([], minor=True)


def _draw_map(frame: pd.DataFrame, title: str) -> Any:
    """Draw a map of programs and points, coloured by the ratio; bold where the verdict is slower or faster."""
    from matplotlib.figure import Figure

    points = list(dict.fromkeys(frame.sort_values([*SIZES]).workload))
    points.sort(key=lambda name: (_size_index(name), int("0" + "".join(filter(str.isdigit, name.rpartition("-")[2])))))
    programs = _programs(frame)
    figure = Figure(figsize=(max(6.0, 2.5 + 0.75 * len(points)), 1.6 + 0.36 * len(programs)), layout="constrained")
    axes = figure.subplots()
    cells = {(row["program"], row["workload"]): row for row in frame.to_dict("records")}
    image = [[math.log(cells[p, w]["ratio"]) if (p, w) in cells else math.nan for w in points] for p in programs]
    colours = axes.imshow(image, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
    for (name, point), row in cells.items():
        bold = row["verdict"] in (SLOWER, FASTER)
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
        style["color"] = "white" if abs(math.log(row["ratio"])) > 0.75 * LIMIT else "black"
        style["fontweight"] = "bold" if bold else "normal"
        axes.text(points.index(point), programs.index(name), f"{row['ratio']:.2f}", **style)
    axes.set_xticks(range(len(points)), [point.rpartition("-")[2] for point in points])
    axes.set_yticks(range(len(programs)), programs)
    frameworks = dict(zip(frame.program, frame.framework, strict=True))
    for label, name in zip(axes.get_yticklabels(), programs, strict=True):
        label.set_color(program_style(frameworks[name], "")["color"])
    judged = frame.verdict.isin((SLOWER, FASTER)).any()
    legend = "bold: judged slower (red) or faster (blue)" if judged else "none is judged slower or faster"
    axes.set_title(f"{title}\n{legend}", loc="left")
    bar = figure.colorbar(colours, ax=axes, ticks=[math.log(tick) for tick in (0.67, 0.8, 1, 1.25, 1.5)])
    bar.ax.set_yticklabels(["≤ 0.67", "0.8", "1", "1.25", "≥ 1.5"])
    return figure


def _size_index(name: str) -> int:
    """Return the index in SIZES of the size that a point varies; -1 for the centre."""
    return SIZES.find(name.rpartition("-")[2][0])


def _draw_forecasts(scores: pd.DataFrame) -> Any:
    """Draw forecast against measured ratios, with ±10% around the diagonal.

    A colour is a framework, and a mark an execution.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    low, high = scores[[*RATIOS, "forecast"]].min().min() / 1.05, scores[[*RATIOS, "forecast"]].max().max() * 1.05
    ends = [low, high]
    axes.fill_between(ends, [e / 1.1 for e in ends], [e * 1.1 for e in ends], color="#e8e8e8", label="within 10%")
    axes.plot(ends, ends, color="black", linewidth=0.8)
    ranked = scores.assign(rank=scores.execution.map(execution_rank))
    for (framework, _, execution), part in ranked.groupby(["framework", "rank", "execution"], sort=True):
        error = [(part.ratio - part.ci_low).fillna(0), (part.ci_high - part.ratio).fillna(0)]
        style = program_style(framework, execution) | {"linestyle": "", "markersize": 4.5, "elinewidth": 0.6}
        axes.errorbar(part.ratio, part.forecast, xerr=error, label=f"{framework} {execution}", **style)
    axes.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured", ylabel="forecast, before it was measured"
    )
    _set_ratio_ticks(axes.xaxis, low, high)
    _set_ratio_ticks(axes.yaxis, low, high)
    axes.set_title("in_loop / batched", loc="left")
    axes.legend(frameon=False)
    return figure
