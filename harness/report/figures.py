"""Figures, as SVG and PNG: forest plots of the gaps of each workload and pass, and every control's interval."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from harness.analysis import LOOPS, Tables, usable
from harness.measure import TWIN

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
STYLE: Any = {"svg.hashsalt": "fusegap", "font.family": "DejaVu Sans", "font.size": 9}
CONTROLS = "controls"  # the figure of every A/A interval
Drawn = dict[tuple[str, str, str], str]  # group of recurrences, workload, pass -> file name without ending


LOOP, ALONE = "loop", "alone"
TITLES = {LOOP: "{}, {}", ALONE: "{}, {}: after a layer, and with hidden states given"}


def group_of(gaps: pd.DataFrame) -> pd.Series:
    """Which figure and table a gap belongs to."""
    return gaps.recurrence.isin(LOOPS).map({True: LOOP, False: ALONE})


@contextmanager
def forests(tables: Tables, folder: Path) -> Iterator[Drawn]:
    """Draw every workload and pass that has gaps, in processes beside what the caller does meanwhile.

    One figure for the recurrences with a loop of ours, one for hidden states that a layer made or that were given, and
    CONTROLS for all the twins. A run of nothing but twins has that one alone. The file names are there at once; on
    leaving, the files are. Raises what drawing raised.
    """
    mpl.rcParams.update(STYLE)
    folder.mkdir(parents=True, exist_ok=True)
    twins = tables.gaps.contender.eq(TWIN)
    gaps = tables.gaps[~twins.all() | ~twins]
    grouped = gaps.groupby([group_of(gaps), "workload", "pass"], sort=True)
    parts = {(str(key[0]), str(key[1]), str(key[2])): part for key, part in grouped}
    drawn = {key: f"{'gap' if key[0] == LOOP else 'alone'}-{'-'.join(key[1:])}" for key in parts}
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        waiting = [
            pool.submit(_forest, part, TITLES[key[0]].format(*key[1:]), tables.study.margin, folder / drawn[key])
            for key, part in parts.items()
        ]
        known = tables.gaps[twins & tables.gaps.ci_low.notna()]
        if len(known):
            waiting.append(pool.submit(_controls, known, folder / CONTROLS))
        yield drawn
        for one in waiting:
            one.result()


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
    axes.set_xticks([])
    axes.set_ylabel("batched / batched")
    axes.set_title(f"{len(twins)} controls in order of their ratio, 95% intervals over processes", loc="left")
    axes.legend(frameon=False, loc="upper left")
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
    axes.axvspan(1 / (1 + margin), 1 + margin, color="#e8e8e8", zorder=0, label=f"±{margin:.0%} margin")
    axes.axvline(1, color="black", linewidth=0.8, zorder=1)
    there = [contender for contender in COLOURS if (part.contender == contender).any()]
    offsets = [0.6 * (at / max(1, len(there) - 1) - 0.5) for at in range(len(there))]
    for offset, contender in zip(offsets, there, strict=True):
        for kept, alpha in ((usable(part), 1.0), (~usable(part), 0.3)):
            rows = part[kept & (part.contender == contender)]
            y = [seats.index(s) + offset for s in rows.seat]
            error = [(rows.ratio - rows.ci_low).fillna(0), (rows.ci_high - rows.ratio).fillna(0)]
            style: dict[str, Any] = {"fmt": MARKS[contender], "color": COLOURS[contender], "alpha": alpha}
            label = LABELS[contender] if alpha == 1 else None
            axes.errorbar(rows.ratio, y, xerr=error, label=label, markersize=4, linewidth=1.2, **style)
    axes.set_xscale("log")
    low, high = part.ratio.min(), part.ratio.max()
    _ticks(axes, min(0.9, low / 1.05), max(1.1, high * 1.05))
    axes.set_yticks(range(len(seats)), seats)
    axes.set_ylim(len(seats) - 0.5, -0.5)
    axes.grid(axis="y", color="#f0f0f0")
    axes.set_xlabel("ratio of times, log scale (95% interval over processes)\nright of 1: projecting once is faster")
    axes.set_title(title, loc="left", fontweight="bold", y=1.0)  # with y unsaid it would look for labels above
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    layout.execute(figure)
    figure.set_layout_engine(None)  # laid out once, for both files
    save(figure, path)


def _ticks(axes: Any, low: float, high: float) -> None:
    """Ticks at round ratios, named as ratios; intervals that leave the axis are cut at its edge."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xlim(low, high)
    if high / low < 6:
        step = 0.05 if high / low < 1.5 else 0.1 if high / low < 2 else 0.25 if high / low < 4 else 0.5
        ticks = [round(step * i, 2) for i in range(1, int(high / step) + 2)]
    else:
        ticks = [digit * 10.0**power for power in (-1, 0, 1, 2) for digit in (1, 2, 5)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def seat(row: dict[str, Any]) -> str:
    """How a row of a figure or table is called."""
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    device = "" if row["device"] == "cpu" else f" {row['device']}"
    precision = "" if row["precision"] == "fp32" else f" {row['precision']}"
    return f"{row['framework']} {row['execution']}{device}{precision} {row['recurrence']}, {threads}"
