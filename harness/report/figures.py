"""Figures, as PNG and SVG: forest plots of the gaps of each workload and pass, the intervals of the A/A controls, and
the same gaps in several runs and on several devices.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.gaps import is_included
from harness.analysis.tables import Tables
from harness.machine.parent import end_with_parent
from harness.report.markdown import with_threads
from harness.study.parts import BATCHED, TWIN, chunk_order
from harness.study.study import LOOPS
from impls.interface import CHUNKED, CHUNKED_LOSS, IN_LOOP_LOSS, chunk_count, family_of

COLOURS = {
    "in_loop": "#c0392b",
    "per_step": "#2c6fbb",
    "bmm": "#27815a",
    "vmap": "#8e5bb5",
    "library": "#d08a1d",
    "time_distributed": "#17a2b8",
    "hoisted": "#5c940d",
    IN_LOOP_LOSS: "#a61e4d",
    TWIN: "#888888",
}
MARKS = {
    "in_loop": "o", "per_step": "s", "bmm": "^", "vmap": "v", "library": "D", "time_distributed": "P",
    "hoisted": "*", IN_LOOP_LOSS: "h", TWIN: "|",
}  # fmt: skip
LABELS = {name: f"{name} / batched" for name in COLOURS} | {TWIN: "batched / batched (A/A)"}
# In every figure that compares frameworks: a colour for each of them, a mark for each execution.
FRAMEWORK_COLOURS = {"jax": "#8e5bb5", "tf": "#d9730d", "torch": "#2c6fbb"}
OTHER_COLOUR = "#666666"  # of a framework that is not ours
EXECUTION_ORDER = ("v1", "eager", "graph", "inductor", "inductor-batched", "cudagraph", "xla")  # least compiled first
EXECUTION_MARKS = {
    "eager": "o", "graph": "s", "v1": "X", "xla": "^", "inductor": "^", "inductor-batched": "v", "cudagraph": "D",
}  # fmt: skip
CHUNK_COLOURS = {CHUNKED: "#0b7285", CHUNKED_LOSS: "#a61e4d"}  # of contenders with chunks, whose mark is their number
CONTROLS = "controls"  # the figure of all A/A intervals
# Colours, one for each run and device.
PLACES = ("#2c6fbb", "#c0392b", "#27815a", "#d08a1d", "#8e5bb5", "#17a2b8", "#7f5539", "#888888")
COUNTS = ("o", "s", "^", "D", "v", "P")  # marks of the thread counts of a run and device
FigureNames = dict[tuple[str, str, str], str]  # group of recurrences, workload, pass -> file name without suffix
DRAWERS = 8  # processes that draw, at most: each of them imports matplotlib
# File name without suffix -> function that draws the figure into a path without suffix.
Figures = dict[str, Callable[[], Any]]  # name -> the function that draws a matplotlib Figure

LOOP, ALONE = "loop", "alone"
TITLES = {LOOP: "{}, {}", ALONE: "{}, {}: after a layer, and with hidden states given"}


def figure_group(gaps: pd.DataFrame) -> pd.Series:
    """Return LOOP or ALONE for each gap: the group of its figure and table."""
    return gaps.recurrence.isin((*LOOPS, "modules")).map({True: LOOP, False: ALONE})


class Background:
    """What processes beside this one do: figures that they draw into a folder, and other tasks."""

    def __init__(self, pool: ProcessPoolExecutor, folder: Path, svg: bool) -> None:
        self._pool, self._folder, self._svg = pool, folder, svg
        self._futures: list[Future[None]] = []

    def draw(self, figures: Figures) -> None:
        """Have figures drawn."""
        self._futures += [
            self._pool.submit(_draw, draw, self._folder / name, self._svg) for name, draw in figures.items()
        ]

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Have tasks run."""
        self._futures += [self._pool.submit(task) for task in tasks]

    def wait(self) -> None:
        """Wait until all is done. Raises what a figure or task raised."""
        for future in self._futures:
            future.result()


@contextmanager
def in_background(folder: Path, svg: bool, started: ProcessPoolExecutor | None = None) -> Iterator[Background]:
    """Draw figures into a folder, and run tasks, in processes beside the body of the `with` statement.

    Figures are PNG, and with `svg` SVG too, which report.html holds and which take as long again to draw.
    The processes are those of `started`, which end here, or else new ones. On leaving, all files are written and all
    tasks done. Raises what a figure or task raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with started or drawers() as pool:
        background = Background(pool, folder, svg)
        yield background
        background.wait()


def forest_plots(tables: Tables) -> tuple[FigureNames, Figures]:
    """Return the names of the figures of gaps, and the functions that draw them.

    Each workload and pass has a figure of the recurrences with our own loops, and one of hidden states that come from a
    layer or are precomputed. CONTROLS shows all A/A controls; a run of nothing but controls has that figure alone.
    """
    controls = tables.gaps.contender.eq(TWIN)
    gaps = tables.gaps[~controls.all() | ~controls]
    groups = gaps.groupby([figure_group(gaps), "workload", "pass"], sort=True)
    parts = {(str(key[0]), str(key[1]), str(key[2])): part for key, part in groups}
    names = {key: f"{'gap' if key[0] == LOOP else 'alone'}-{'-'.join(key[1:])}" for key in parts}
    figures: Figures = {
        names[key]: partial(_draw_forest, part, TITLES[key[0]].format(*key[1:]), tables.study.margin)
        for key, part in parts.items()
    }
    intervals = tables.gaps[controls & tables.gaps.ci_low.notna()]
    if len(intervals):
        figures[CONTROLS] = partial(_draw_controls, intervals)
    return names, figures


@contextmanager
def drawers_started() -> Iterator[ProcessPoolExecutor]:
    """Start the processes to draw in, which import matplotlib beside the body of the `with` statement."""
    pool = drawers()
    pool.submit(int)  # the first task starts all processes
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an error is told without waiting for an import


def drawers() -> ProcessPoolExecutor:
    """Return a pool of processes to draw in; they end when this process is killed.

    Raises ModuleNotFoundError where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    count = min(DRAWERS, max(1, len(os.sched_getaffinity(0)) - 1))  # one core is left to what makes the tables
    return ProcessPoolExecutor(count, mp_context=get_context("fork"), initializer=_prepare_to_draw)


def _prepare_to_draw() -> None:
    """Tie this process to its parent, and import what takes longer than to draw a figure."""
    end_with_parent()
    from harness.report import style  # noqa: F401  before all else of matplotlib, for its settings

    for module in ("figure", "backends.backend_agg", "backends.backend_svg"):
        import_module(f"matplotlib.{module}")


def _draw(draw: Callable[[], Any], path: Path, svg: bool) -> None:
    """Draw a figure into a path without suffix, in this project's style."""
    from harness.report.style import draw_styled  # late: the report itself needs no matplotlib

    draw_styled(draw, path, svg)


def _draw_controls(controls: pd.DataFrame) -> Any:
    """Draw all A/A intervals, in order of their ratios: 19 of 20 should contain 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    frame = controls.sort_values("ratio", kind="stable").reset_index(drop=True)
    for passed, colour in ((True, COLOURS[TWIN]), (False, COLOURS["in_loop"])):
        rows = frame[frame.trusted == passed]
        error = [rows.ratio - rows.ci_low, rows.ci_high - rows.ratio]
        label = f"{len(rows)} that {'hold' if passed else 'miss'} 1"
        axes.errorbar(
            rows.index, rows.ratio, yerr=error, fmt=".", color=colour, markersize=3, linewidth=0.8, label=label
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", xticks=[], ylabel="batched / batched")
    axes.set_ylim(limits := (frame.ci_low.min() / 1.05, frame.ci_high.max() * 1.05))
    _set_ticks(axes.yaxis, *limits)
    axes.set_title(f"{len(controls)} controls in order of their ratio, 95% intervals over processes", loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_forest(part: pd.DataFrame, title: str, margin: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot, which takes longer to import than a figure to draw
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    part = part.assign(configuration=[configuration_name(row) for row in part.to_dict("records")])
    configurations = list(
        dict.fromkeys(part.sort_values(["device", "framework", "execution", "recurrence", "threads"]).configuration)
    )
    layout = ConstrainedLayoutEngine()
    wide = part.contender.nunique() > 3
    figure = Figure(figsize=(8, 1.5 + (0.55 if wide else 0.34) * len(configurations)), layout=layout)
    axes = figure.subplots()
    _draw_margin(axes, margin)
    contenders = [contender for contender in COLOURS if (part.contender == contender).any()]
    contenders += sorted(set(part.contender) - set(COLOURS), key=lambda name: (family_of(name), chunk_order(name)))
    offsets = [0.6 * (index / max(1, len(contenders) - 1) - 0.5) for index in range(len(contenders))]
    for offset, contender in zip(offsets, contenders, strict=True):
        for mask, alpha in ((is_included(part), 1.0), (~is_included(part), 0.3)):
            rows = part[mask & (part.contender == contender)]
            style = contender_style(contender) | {"alpha": alpha}
            label = contender_label(contender) if alpha == 1 else None
            _draw_intervals(
                axes, rows, [configurations.index(name) + offset for name in rows.configuration], label=label, **style
            )
    axes.set_xscale("log")
    low, high = part.ratio.min(), part.ratio.max()
    axes.set_xlim(limits := (min(0.9, low / 1.05), max(1.1, high * 1.05)))
    _set_ticks(axes.xaxis, *limits)
    axes.set_yticks(range(len(configurations)), configurations)
    axes.set_ylim(len(configurations) - 0.5, -0.5)
    axes.grid(axis="y", color="#f0f0f0")
    axes.set_xlabel("ratio of times, log scale (95% interval over processes)\nright of 1: projecting once is faster")
    axes.set_title(title, loc="left", fontweight="bold", y=1.0)  # without y, matplotlib would look for labels above
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    layout.execute(figure)
    figure.set_layout_engine(None)  # laid out once, for both files
    return figure


def contender_style(contender: str) -> dict[str, Any]:
    """Return the colour and the mark of a contender in figures of gaps."""
    if contender in COLOURS:
        return {"marker": MARKS[contender], "color": COLOURS[contender], "linestyle": "", "markersize": 4}
    style = {"color": CHUNK_COLOURS[family_of(contender)], "markersize": 6}
    return style | {"marker": f"${chunk_count(contender)}$", "linestyle": ""}


def contender_label(contender: str) -> str:
    """Return what a contender's ratio is called in figures of gaps."""
    return LABELS.get(contender, f"{contender} / {BATCHED}")


def draw_side_by_side(rows: pd.DataFrame, title: str, margin: float | None) -> Any:
    """Draw the same gaps in several columns: a panel for each contender, a colour for each run and device.

    Columns of `rows`: program, contender, column, place (its run and device), ratio, ci_low, ci_high, kept.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    programs, contenders = list(dict.fromkeys(rows.program)), list(dict.fromkeys(rows.contender))
    styles = _column_styles(rows)
    height = 1.6 + 0.17 * len(styles) + (0.14 + 0.1 * len(styles)) * len(programs)
    layout = ConstrainedLayoutEngine()
    figure = Figure(figsize=(9, height), layout=layout)
    panels = figure.subplots(1, len(contenders), sharey=True, squeeze=False)[0]
    for axes, contender in zip(panels, contenders, strict=True):
        _draw_panel(axes, rows[rows.contender == contender], programs, styles, margin)
        axes.set_title(contender_label(contender))
        axes.set_xlabel("ratio of times, log scale (95% interval)\nright of 1: projecting once is faster")
    figure.suptitle(title, fontweight="bold")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    layout.execute(figure)
    figure.set_layout_engine(None)
    return figure


def _column_styles(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return each column's style: a colour for its run and device, a mark for its thread count."""
    styles: dict[str, dict[str, Any]] = {}
    for index, (_, part) in enumerate(rows.groupby("place", sort=True)):
        for mark, column in zip(cycle(COUNTS), dict.fromkeys(part.column), strict=False):
            styles[column] = {"color": PLACES[index % len(PLACES)], "fmt": mark}
    return styles


def _draw_panel(
    axes: Any, rows: pd.DataFrame, programs: list[str], styles: dict[str, dict[str, Any]], margin: float | None
) -> None:
    """Draw one contender's gaps, a row for each program; gaps that are not included are pale."""
    if margin is not None:
        _draw_margin(axes, margin)
    for index in range(0, len(programs), 2):
        axes.axhspan(index - 0.5, index + 0.5, color="#f6f6f6", zorder=-1)
    offsets = [0.7 * (index / max(1, len(styles) - 1) - 0.5) for index in range(len(styles))]
    for offset, (column, style) in zip(offsets, styles.items(), strict=True):
        for mask, alpha in ((rows.kept, 1.0), (~rows.kept, 0.3)):
            part = rows[mask & (rows.column == column)]
            y = [programs.index(program) + offset for program in part.program]
            _draw_intervals(axes, part, y, label=column if alpha == 1 else None, alpha=alpha, **style)
    axes.set_xscale("log")
    axes.set_xlim(limits := (min(0.9, rows.ratio.min() / 1.05), max(1.1, rows.ratio.max() * 1.05)))
    _set_ticks(axes.xaxis, *limits)
    axes.set_yticks(range(len(programs)), programs)
    axes.set_ylim(len(programs) - 0.5, -0.5)


def _draw_margin(axes: Any, margin: float) -> None:
    """Draw the margin and a line at a ratio of 1."""
    axes.axvspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0, label=f"±{margin:.0%} margin")
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)


def _draw_intervals(axes: Any, rows: pd.DataFrame, y: list[float], **style: Any) -> None:
    """Draw ratios with their intervals, where they have one."""
    error = [(rows.ratio - rows.ci_low).fillna(0), (rows.ci_high - rows.ratio).fillna(0)]
    axes.errorbar(rows.ratio, y, xerr=error, **({"markersize": 4, "linewidth": 1.2} | style))


def _set_ticks(axis: Any, low: float, high: float) -> None:
    """Set ticks at round ratios between two limits, named as ratios."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if high / low < 6:
        step = 0.05 if high / low < 1.5 else 0.1 if high / low < 2 else 0.25 if high / low < 4 else 0.5
        ticks = [round(step * i, 2) for i in range(1, int(high / step) + 2)]
    else:
        ticks = [digit * 10.0**power for power in (-1, 0, 1, 2) for digit in (1, 2, 5)]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def program_style(framework: str, execution: str) -> dict[str, Any]:
    """Return the colour of a framework and the mark of an execution, the same in every figure that compares them."""
    return {
        "color": FRAMEWORK_COLOURS.get(framework, OTHER_COLOUR),
        "marker": EXECUTION_MARKS.get(execution, "P"),
    }


def spread(heights: list[float], gap: float) -> list[float]:
    """Return the heights moved apart, in their order, until neighbours are at least `gap` from each other."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved = list(heights)
    for _ in range(100):
        for below, above in pairwise(order):
            lack = gap - (moved[above] - moved[below])
            if lack > 1e-9:
                moved[below] -= lack / 2
                moved[above] += lack / 2
    return moved


def execution_rank(execution: str) -> int:
    """Return an execution's place in EXECUTION_ORDER; those that are not in it come last."""
    return EXECUTION_ORDER.index(execution) if execution in EXECUTION_ORDER else len(EXECUTION_ORDER)


def engine_of(row: dict[Any, Any]) -> tuple[str, str, str, str]:
    """Return framework, execution, device and precision of a row."""
    return row["framework"], row["execution"], row["device"], row["precision"]


def engines_of(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return what ran the rows' programs, by framework, and from the least compiled execution on."""
    engines = {engine_of(row) for row in frame.to_dict("records")}
    return sorted(engines, key=lambda engine: (engine[0], engine[2:], execution_rank(engine[1]), engine[1]))


def configuration_name(row: dict[str, Any]) -> str:
    """Return the name of a row of a figure or table: program, device and threads."""
    return with_threads(engine_name(row), row["device"], row["threads"])


def engine_name(row: dict[str, Any]) -> str:
    """Return the name of a row that several thread counts share: program and device."""
    return program_name(row, "" if row["device"] == "cpu" else row["device"])


def program_name(row: dict[str, Any], device: str = "") -> str:
    """Return the name of a row that several devices and thread counts share."""
    precision = "" if row["precision"] == "fp32" else row["precision"]
    return " ".join(filter(None, (row["framework"], row["execution"], device, precision, row["recurrence"])))
