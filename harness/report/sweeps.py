"""Figures of a sweep: the gap along each size, a map of where batching wins, and forecasts beside what was measured."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import Tables
from harness.gaps import usable
from harness.report import causes
from harness.report.figures import PLACES, Figures, program, save
from harness.stats import FASTER, SLOWER

SIZES = "TBHO"
COLOURS = (*PLACES, "black")
TICKS = (0.2, 0.33, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5)
FORECASTS = "forecasts"  # the figure of them
LIMIT = math.log(1.5)  # of the map's colours, either way


def drawings(tables: Tables) -> Figures:
    """What there is to draw: a figure of curves and a map for each pass, one of the forecasts."""
    frame = rows(tables)
    drawn: Figures = {}
    for pass_, part in frame.groupby("pass", sort=True):
        if varied := [size for size in SIZES if len(_along(part, size))]:
            title = f"around {_centre(tables)}, {pass_}"
            drawn[f"sweep-{pass_}"] = partial(_curves, part, varied, title, tables.study.margin)
        drawn[f"map-{pass_}"] = partial(_map, part, f"in_loop / batched around {_centre(tables)}, {pass_}")
    if not tables.scores.empty:
        drawn[FORECASTS] = partial(_forecasts, tables.scores)
    return drawn


def rows(tables: Tables) -> pd.DataFrame:
    """The sweep's gaps of in_loop that may be counted, with the sizes of their points; of the fewest threads."""
    frame = tables.swept[usable(tables.swept) & (tables.swept.contender == "in_loop")]
    sizes = pd.DataFrame(
        [{"workload": w.name, **{size: getattr(w, size) for size in SIZES}} for w in tables.study.swept],
        columns=["workload", *SIZES],
    )
    frame = causes.once(frame.merge(sizes, on="workload"))
    names = [program(row, "" if row["device"] == "cpu" else row["device"]) for row in frame.to_dict("records")]
    return frame.assign(program=names)


def _centre(tables: Tables) -> str:
    assert tables.study.sweep is not None
    return tables.study.sweep.name


def _along(frame: pd.DataFrame, size: str) -> pd.DataFrame:
    """The points that differ from the centre in one size."""
    return frame[frame.workload.str.contains(rf"-{size}\d+$")]


def _curves(frame: pd.DataFrame, varied: list[str], title: str, margin: float, path: Path) -> None:
    """A panel for each size that varied: the ratio along it, a line for each program, other sizes as in the centre."""
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
        along = _along(frame, size)
        for name, colour in zip(programs, COLOURS * 3, strict=False):
            part = pd.concat([centre, along])
            part = part[part.program == name].sort_values(size)
            error = [(part.ratio - part.ci_low).fillna(0), (part.ci_high - part.ratio).fillna(0)]
            style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.1, "color": colour}
            axes.errorbar(part[size], part.ratio, yerr=error, label=name, **style)
        values = sorted({*centre[size], *along[size]})
        axes.set(xscale="log", yscale="log", xlabel=size)
        axes.set_xticks(values, [f"{value}" for value in values], minor=False)
        axes.set_xticks([], minor=True)
        _ratios(axes.yaxis, frame.ratio)
        axes.grid(color="#f0f0f0")
    for axes in panels[:, 0]:
        axes.set_ylabel("in_loop / batched")
    figure.suptitle(f"The gap along each size {title} (95% intervals; above 1: projecting once is faster)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def _ratios(axis: Any, ratios: pd.Series) -> None:
    low, high = ratios.min() / 1.05, ratios.max() * 1.05
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_ticks([], minor=True)


def _map(frame: pd.DataFrame, title: str, path: Path) -> None:
    """Every program and point: coloured by the ratio, which is bold where it was judged slower or faster."""
    from matplotlib.figure import Figure

    points = list(dict.fromkeys(frame.sort_values([*SIZES]).workload))
    points.sort(key=lambda name: (_axis(name), int("0" + "".join(filter(str.isdigit, name.rpartition("-")[2])))))
    programs = sorted(frame.program.unique())
    figure = Figure(figsize=(max(6.0, 2.5 + 0.75 * len(points)), 1.6 + 0.36 * len(programs)), layout="constrained")
    axes = figure.subplots()
    by = {(row["program"], row["workload"]): row for row in frame.to_dict("records")}
    image = [[math.log(by[p, w]["ratio"]) if (p, w) in by else math.nan for w in points] for p in programs]
    shown = axes.imshow(image, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
    for (name, point), row in by.items():
        judged = row["verdict"] in (SLOWER, FASTER)
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
        style["color"] = "white" if abs(math.log(row["ratio"])) > 0.75 * LIMIT else "black"
        style["fontweight"] = "bold" if judged else "normal"
        axes.text(points.index(point), programs.index(name), f"{row['ratio']:.2f}", **style)
    axes.set_xticks(range(len(points)), [point.rpartition("-")[2] for point in points])
    axes.set_yticks(range(len(programs)), programs)
    axes.set_title(f"{title}\nbold: judged slower (red) or faster (blue)", loc="left")
    bar = figure.colorbar(shown, ax=axes, ticks=[math.log(tick) for tick in (0.67, 0.8, 1, 1.25, 1.5)])
    bar.ax.set_yticklabels(["≤ 0.67", "0.8", "1", "1.25", "≥ 1.5"])
    save(figure, path)


def _axis(name: str) -> int:
    """The place of a point's size among SIZES; of the centre before all."""
    return SIZES.find(name.rpartition("-")[2][0])


def _forecasts(scores: pd.DataFrame, path: Path) -> None:
    """Forecast against measured ratio, a colour for each framework and execution; ±10% beside the diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    every = pd.concat([scores.ratio, scores.forecast])
    ends = [every.min() / 1.05, every.max() * 1.05]
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
    _ratios(axes.xaxis, every)
    _ratios(axes.yaxis, every)
    axes.set_title("in_loop / batched", loc="left")
    axes.legend(frameon=False)
    save(figure, path)
