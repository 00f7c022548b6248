"""Figures of a sweep: the gap along each size, a map of all ratios, and forecast against measured gaps."""

import math
from functools import partial
from typing import Any

import pandas as pd

from harness.analysis.gaps import is_included
from harness.analysis.stats import FASTER, SLOWER
from harness.analysis.tables import Tables
from harness.report import causes
from harness.report.figures import PLACES, Figures, program_name

SIZES = "TBHO"
COLOURS = (*PLACES, "black")
TICKS = (0.2, 0.33, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5)
FORECASTS = "forecasts"  # the name of their figure
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
    return frame.assign(program=names)


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
    figure = Figure(figsize=(max(8.5, 5 * column_count), 3.75 * row_count), layout="constrained")
    centre = frame[frame.workload.str.endswith("-centre")]
    programs = sorted(frame.program.unique())
    panels = figure.subplots(row_count, column_count, sharey=True, squeeze=False)
    for spare in panels.flat[len(varied) :]:
        spare.set_axis_off()
    for axes, size in zip(panels.flat, varied, strict=False):
        axes.axhspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0)
        axes.axhline(1, color="black", linewidth=0.8)
        points = _points_along(frame, size)
        for name, colour in zip(programs, COLOURS * 3, strict=False):
            part = pd.concat([centre, points])
            part = part[part.program == name].sort_values(size)
            error = [(part.ratio - part.ci_low).fillna(0), (part.ci_high - part.ratio).fillna(0)]
            style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.1, "color": colour}
            axes.errorbar(part[size], part.ratio, yerr=error, label=name, **style)
        values = sorted({*centre[size], *points[size]})
        axes.set(xscale="log", yscale="log", xlabel=size)
        axes.set_xticks(values, [f"{value}" for value in values], minor=False)
        axes.set_xticks([], minor=True)
        _set_ratio_ticks(axes.yaxis, frame.ratio)
        axes.grid(color="#f0f0f0")
    for axes in panels[:, 0]:
        axes.set_ylabel("in_loop / batched")
    figure.suptitle(f"The gap along each size {title} (95% intervals; above 1: projecting once is faster)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _set_ratio_ticks(axis: Any, ratios: pd.Series) -> None:
    """Set ticks at the round ratios within the range, named as ratios."""
    low, high = ratios.min() / 1.05, ratios.max() * 1.05
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_ticks([], minor=True)


def _draw_map(frame: pd.DataFrame, title: str) -> Any:
    """Draw a map of programs and points, coloured by the ratio; bold where the verdict is slower or faster."""
    from matplotlib.figure import Figure

    points = list(dict.fromkeys(frame.sort_values([*SIZES]).workload))
    points.sort(key=lambda name: (_size_index(name), int("0" + "".join(filter(str.isdigit, name.rpartition("-")[2])))))
    programs = sorted(frame.program.unique())
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
    axes.set_title(f"{title}\nbold: judged slower (red) or faster (blue)", loc="left")
    bar = figure.colorbar(colours, ax=axes, ticks=[math.log(tick) for tick in (0.67, 0.8, 1, 1.25, 1.5)])
    bar.ax.set_yticklabels(["≤ 0.67", "0.8", "1", "1.25", "≥ 1.5"])
    return figure


def _size_index(name: str) -> int:
    """Return the index in SIZES of the size that a point varies; -1 for the centre."""
    return SIZES.find(name.rpartition("-")[2][0])


def _draw_forecasts(scores: pd.DataFrame) -> Any:
    """Draw forecast against measured ratios, a colour for each framework and execution; ±10% around the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    ratios = pd.concat([scores.ratio, scores.forecast])
    ends = [ratios.min() / 1.05, ratios.max() * 1.05]
    axes.fill_between(ends, [e / 1.1 for e in ends], [e * 1.1 for e in ends], color="#e8e8e8", label="within 10%")
    axes.plot(ends, ends, color="black", linewidth=0.8)
    names = scores.framework + " " + scores.execution
    for name, colour in zip(sorted(names.unique()), COLOURS * 2, strict=False):
        part = scores[names == name]
        error = [(part.ratio - part.ci_low).fillna(0), (part.ci_high - part.ratio).fillna(0)]
        axes.errorbar(
            part.ratio, part.forecast, xerr=error, fmt="o", markersize=3, linewidth=0.6, color=colour, label=name
        )
    axes.set(
        xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured", ylabel="forecast, before it was measured"
    )
    _set_ratio_ticks(axes.xaxis, ratios)
    _set_ratio_ticks(axes.yaxis, ratios)
    axes.set_title("in_loop / batched", loc="left")
    axes.legend(frameon=False)
    return figure
