"""Two pictures of all programs: inside the loop against once, and what a form saves in time against memory."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.tables import Tables
from harness.report.figures import Figures, program_style
from harness.report.markdown import FRAMEWORKS
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED
from harness.study.study import LOOPS

TIMES, MEMORY = "scatter-times", "scatter-memory"
PLACE = [*CONFIG, "workload", "pass", "recurrence"]


def drawings(tables: Tables) -> Figures:
    """Return the figures, each only where something was measured for it."""
    pairs = form_pairs(tables)
    with_memory = pairs[(pairs.in_loop_bytes > 0) & (pairs.batched_bytes > 0)]
    figures: Figures = {}
    if len(pairs):
        figures[TIMES] = partial(_draw_times, pairs)
    if len(with_memory):
        figures[MEMORY] = partial(_draw_memory, with_memory)
    return figures


def form_pairs(tables: Tables) -> pd.DataFrame:
    """Return a row for each of our loops with both forms: their median seconds a call, and their temporary bytes."""
    times = tables.times[tables.times.recurrence.isin(LOOPS) & tables.times.median_s.notna()]
    seconds = times.groupby([*PLACE, "projection"]).median_s.median().unstack("projection")
    evidence = tables.evidence.set_index([*PLACE, "projection"]).temp_bytes.astype(float)
    temp_bytes = evidence[~evidence.index.duplicated()].unstack("projection").reindex(seconds.index)
    forms = ["in_loop", BATCHED]
    frame = pd.DataFrame(
        {f"{form}_s": seconds.reindex(columns=forms)[form] for form in forms}
        | {f"{form}_bytes": temp_bytes.reindex(columns=forms)[form] for form in forms}
    )
    return frame[frame.in_loop_s.notna() & frame.batched_s.notna()].reset_index()


def _draw_times(pairs: pd.DataFrame) -> Any:
    """Draw each program's time inside the loop over its time projected once; on the diagonal both are the same."""
    figure, axes = _figure()
    limits = [pairs[["in_loop_s", "batched_s"]].min().min() / 1.3, pairs[["in_loop_s", "batched_s"]].max().max() * 1.3]
    axes.plot(limits, limits, color="black", linewidth=0.8)
    axes.plot(limits, [2 * limit for limit in limits], color="#bbbbbb", linewidth=0.8, linestyle="--")
    axes.text(limits[1], limits[1], " ×1", va="center")
    axes.text(limits[1] / 2, limits[1], "×2", va="bottom", ha="center", color="#777777")
    _scatter(axes, pairs, pairs.batched_s, pairs.in_loop_s)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="projected once (batched), seconds a call")
    axes.set_ylabel("projected inside the loop (in_loop), seconds a call")
    return _finish(figure)


def _draw_memory(pairs: pd.DataFrame) -> Any:
    """Draw the ratio of times over the ratio of temporary memory, in_loop over batched."""
    figure, axes = _figure()
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    _scatter(axes, pairs, pairs.in_loop_bytes / pairs.batched_bytes, pairs.in_loop_s / pairs.batched_s)
    axes.set(xscale="log", yscale="log", xlabel="temporary memory, in_loop / batched: left of 1, inside needs less")
    axes.set_ylabel("time, in_loop / batched: above 1, inside takes longer")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    return _finish(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    return figure, figure.subplots()


def _scatter(axes: Any, pairs: pd.DataFrame, x: pd.Series, y: pd.Series) -> None:
    """Draw a point for each row: a colour for its framework, a mark for its execution, hollow where it trains."""
    for (framework, execution), rows in pairs.groupby(["framework", "execution"], sort=True):
        program = program_style(framework, execution)
        colour = program["color"]
        is_train = np.array(rows["pass"] == "train")
        faces = np.where(is_train, "none", colour)
        label = f"{FRAMEWORKS.get(framework, framework)} {execution}"
        style = {"marker": program["marker"], "edgecolors": colour, "linewidths": 0.9, "s": 26}
        axes.scatter(x[rows.index], y[rows.index], facecolors=faces, **style)
        axes.scatter([], [], facecolors=colour, label=label, **style)


def _finish(figure: Any) -> Any:
    title = "filled: forward; hollow: training"
    figure.legend(loc="outside right upper", frameon=False, title=title, fontsize=8, title_fontsize=8)
    return figure
