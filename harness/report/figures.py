"""Figures, as SVG and PNG: forest plots of the gaps of each workload and pass, every control's interval, and the
same gaps in several runs and on several devices.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis import Tables
from harness.gaps import usable
from harness.launch import end_with_parent
from harness.parts import LOOPS, TWIN
from harness.report.style import draw_styled

COLOURS = {
    "in_loop": "#c0392b",
    "per_step": "#2c6fbb",
    "bmm": "#27815a",
    "vmap": "#8e5bb5",
    "library": "#d08a1d",
    "time_distributed": "#17a2b8",
    TWIN: "#888888",
}
MARKS = {
    "in_loop": "o", "per_step": "s", "bmm": "^", "vmap": "v", "library": "D", "time_distributed": "P", TWIN: "|",
}  # fmt: skip
LABELS = {name: f"{name} / batched" for name in COLOURS} | {TWIN: "batched / batched (A/A)"}
CONTROLS = "controls"  # the figure of every A/A interval
PLACES = ("#2c6fbb", "#c0392b", "#27815a", "#d08a1d", "#8e5bb5", "#17a2b8", "#7f5539", "#888888")  # run and device
COUNTS = ("o", "s", "^", "D", "v", "P")  # thread counts of one run and device
Drawn = dict[tuple[str, str, str], str]  # group of recurrences, workload, pass -> file name without ending
Figures = dict[str, Callable[[Path], None]]  # file name without ending -> what draws it into a path without ending

LOOP, ALONE = "loop", "alone"
TITLES = {LOOP: "{}, {}", ALONE: "{}, {}: after a layer, and with hidden states given"}


def group_of(gaps: pd.DataFrame) -> pd.Series:
    """Which figure and table a gap belongs to."""
    return gaps.recurrence.isin(LOOPS).map({True: LOOP, False: ALONE})


@contextmanager
def drawing(figures: Figures, folder: Path, others: Iterable[Callable[[], None]] = ()) -> Iterator[None]:
    """Draw into a folder, and do the others, in processes beside what the caller does meanwhile; on leaving, the files
    are there and the others done.

    Raises what any of it raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with drawers() as pool:
        waiting = [pool.submit(other) for other in others]
        waiting += [pool.submit(draw_styled, draw, folder / name) for name, draw in figures.items()]
        yield
        for one in waiting:
            one.result()


def forests(tables: Tables) -> tuple[Drawn, Figures]:
    """A figure for every workload and pass that has gaps.

    One for the recurrences with a loop of ours, one for hidden states that a layer made or that were given, and
    CONTROLS for all the twins. A run of nothing but twins has that one alone.
    """
    twins = tables.gaps.contender.eq(TWIN)
    gaps = tables.gaps[~twins.all() | ~twins]
    grouped = gaps.groupby([group_of(gaps), "workload", "pass"], sort=True)
    parts = {(str(key[0]), str(key[1]), str(key[2])): part for key, part in grouped}
    drawn = {key: f"{'gap' if key[0] == LOOP else 'alone'}-{'-'.join(key[1:])}" for key in parts}
    figures: Figures = {
        drawn[key]: partial(_forest, part, TITLES[key[0]].format(*key[1:]), tables.study.margin)
        for key, part in parts.items()
    }
    known = tables.gaps[twins & tables.gaps.ci_low.notna()]
    if len(known):
        figures[CONTROLS] = partial(_controls, known)
    return drawn, figures


def drawers() -> ProcessPoolExecutor:
    """Processes to draw in, which end when this one is killed."""
    return ProcessPoolExecutor(mp_context=get_context("fork"), initializer=end_with_parent)


def _controls(twins: pd.DataFrame, path: Path) -> None:
    """Every A/A interval, in order of its ratio: 19 of 20 should hold 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    ordered = twins.sort_values("ratio", kind="stable").reset_index(drop=True)
    for holds, colour in ((True, COLOURS[TWIN]), (False, COLOURS["in_loop"])):
        rows = ordered[ordered.trusted == holds]
        error = [rows.ratio - rows.ci_low, rows.ci_high - rows.ratio]
        label = f"{len(rows)} that {'hold' if holds else 'miss'} 1"
        axes.errorbar(
            rows.index, rows.ratio, yerr=error, fmt=".", color=colour, markersize=3, linewidth=0.8, label=label
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", xticks=[], ylabel="batched / batched")
    axes.set_ylim(limits := (ordered.ci_low.min() / 1.05, ordered.ci_high.max() * 1.05))
    _ticks(axes.yaxis, *limits)
    axes.set_title(f"{len(twins)} controls in order of their ratio, 95% intervals over processes", loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """As SVG and PNG, the same bytes each time."""
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})


def _forest(part: pd.DataFrame, title: str, margin: float, path: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot, which takes longer to import than a figure to draw
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    part = part.assign(seat=[seat(row) for row in part.to_dict("records")])
    seats = list(dict.fromkeys(part.sort_values(["device", "framework", "execution", "recurrence", "threads"]).seat))
    layout = ConstrainedLayoutEngine()
    wide = part.contender.nunique() > 3
    figure = Figure(figsize=(8, 1.5 + (0.55 if wide else 0.34) * len(seats)), layout=layout)
    axes = figure.subplots()
    _around_1(axes, margin)
    there = [contender for contender in COLOURS if (part.contender == contender).any()]
    offsets = [0.6 * (at / max(1, len(there) - 1) - 0.5) for at in range(len(there))]
    for offset, contender in zip(offsets, there, strict=True):
        for kept, alpha in ((usable(part), 1.0), (~usable(part), 0.3)):
            rows = part[kept & (part.contender == contender)]
            style: dict[str, Any] = {"fmt": MARKS[contender], "color": COLOURS[contender], "alpha": alpha}
            label = LABELS[contender] if alpha == 1 else None
            _intervals(axes, rows, [seats.index(s) + offset for s in rows.seat], label=label, **style)
    axes.set_xscale("log")
    low, high = part.ratio.min(), part.ratio.max()
    axes.set_xlim(limits := (min(0.9, low / 1.05), max(1.1, high * 1.05)))
    _ticks(axes.xaxis, *limits)
    axes.set_yticks(range(len(seats)), seats)
    axes.set_ylim(len(seats) - 0.5, -0.5)
    axes.grid(axis="y", color="#f0f0f0")
    axes.set_xlabel("ratio of times, log scale (95% interval over processes)\nright of 1: projecting once is faster")
    axes.set_title(title, loc="left", fontweight="bold", y=1.0)  # with y unsaid it would look for labels above
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    layout.execute(figure)
    figure.set_layout_engine(None)  # laid out once, for both files
    save(figure, path)


def sides(rows: pd.DataFrame, title: str, margin: float | None, path: Path) -> None:
    """The same gaps in several columns, a panel a contender: a colour for each run and device.

    Columns of `rows`: program, contender, column, place (its run and device), ratio, ci_low, ci_high, kept.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    programs, contenders = list(dict.fromkeys(rows.program)), list(dict.fromkeys(rows.contender))
    styles = _styles(rows)
    height = 1.6 + 0.17 * len(styles) + (0.14 + 0.1 * len(styles)) * len(programs)
    layout = ConstrainedLayoutEngine()
    figure = Figure(figsize=(9, height), layout=layout)
    panels = figure.subplots(1, len(contenders), sharey=True, squeeze=False)[0]
    for axes, contender in zip(panels, contenders, strict=True):
        _panel(axes, rows[rows.contender == contender], programs, styles, margin)
        axes.set_title(LABELS[contender])
        axes.set_xlabel("ratio of times, log scale (95% interval)\nright of 1: projecting once is faster")
    figure.suptitle(title, fontweight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    layout.execute(figure)
    figure.set_layout_engine(None)
    save(figure, path)


def _styles(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Column -> how it is drawn: the colour is its run's and device's, the mark its thread count's."""
    found: dict[str, dict[str, Any]] = {}
    for at, (_, part) in enumerate(rows.groupby("place", sort=True)):
        for mark, column in zip(cycle(COUNTS), dict.fromkeys(part.column), strict=False):
            found[column] = {"color": PLACES[at % len(PLACES)], "fmt": mark}
    return found


def _panel(
    axes: Any, rows: pd.DataFrame, programs: list[str], styles: dict[str, dict[str, Any]], margin: float | None
) -> None:
    """One contender's gaps, a row a program; pale what is not counted."""
    if margin is not None:
        _around_1(axes, margin)
    for at in range(0, len(programs), 2):
        axes.axhspan(at - 0.5, at + 0.5, color="#f6f6f6", zorder=-1)
    offsets = [0.7 * (at / max(1, len(styles) - 1) - 0.5) for at in range(len(styles))]
    for offset, (column, style) in zip(offsets, styles.items(), strict=True):
        for kept, alpha in ((rows.kept, 1.0), (~rows.kept, 0.3)):
            part = rows[kept & (rows.column == column)]
            y = [programs.index(program) + offset for program in part.program]
            _intervals(axes, part, y, label=column if alpha == 1 else None, alpha=alpha, **style)
    axes.set_xscale("log")
    axes.set_xlim(limits := (min(0.9, rows.ratio.min() / 1.05), max(1.1, rows.ratio.max() * 1.05)))
    _ticks(axes.xaxis, *limits)
    axes.set_yticks(range(len(programs)), programs)
    axes.set_ylim(len(programs) - 0.5, -0.5)


def _around_1(axes: Any, margin: float) -> None:
    axes.axvspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0, label=f"±{margin:.0%} margin")
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)


def _intervals(axes: Any, rows: pd.DataFrame, y: list[float], **style: Any) -> None:
    """Ratios with their intervals, where they have one."""
    error = [(rows.ratio - rows.ci_low).fillna(0), (rows.ci_high - rows.ratio).fillna(0)]
    axes.errorbar(rows.ratio, y, xerr=error, markersize=4, linewidth=1.2, **style)


def _ticks(axis: Any, low: float, high: float) -> None:
    """Ticks at round ratios, named as ratios; intervals that leave the axis are cut at its edge."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if high / low < 6:
        step = 0.05 if high / low < 1.5 else 0.1 if high / low < 2 else 0.25 if high / low < 4 else 0.5
        ticks = [round(step * i, 2) for i in range(1, int(high / step) + 2)]
    else:
        ticks = [digit * 10.0**power for power in (-1, 0, 1, 2) for digit in (1, 2, 5)]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def seat(row: dict[str, Any]) -> str:
    """How a row of a figure or table is called."""
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{program(row, '' if row['device'] == 'cpu' else row['device'])}, {threads}"


def program(row: dict[str, Any], device: str = "") -> str:
    """How a row is called that several devices and thread counts have."""
    precision = "" if row["precision"] == "fp32" else row["precision"]
    return " ".join(filter(None, (row["framework"], row["execution"], device, precision, row["recurrence"])))
