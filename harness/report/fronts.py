"""Time against peak memory: the front over all forms of a place, as figures, a table and an advice."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd

from harness.analysis.gaps import CHUNKS
from harness.analysis.peaks import GROUP
from harness.analysis.tables import Tables
from harness.report.causes import rows_with_fewest_threads
from harness.report.figures import Figures, configuration_name, contender_style, execution_rank, program_name
from harness.report.markdown import Row, amount, interval, table
from harness.study.parts import BATCHED
from harness.study.study import LOOPS, Workload
from impls.interface import IN_LOOP_LOSS, TRAIN, TRAIN_NONE, chunk_count, family_of

TOLERATED = 1.05  # ratio of times up to which an advice looks for less memory
WORTH = 0.9  # share of batched's memory above which nothing is saved to speak of
CUT = ("chunked", IN_LOOP_LOSS)  # what forms begin with whose memory is their point
FIGURE = "front-{}-{}"
MOST_PANELS = 9
TICKS_MB = [factor * 10**power for power in range(-1, 6) for factor in (1, 2, 3, 5, 7)]


def section(tables: Tables) -> Row | None:
    """Return what the report says of time against memory, or None where no memory was measured."""
    frame = tables.fronts
    if tables.peaks.empty:
        return None
    first = [row for row in _advice_rows(tables) if row["is_cut"]]
    return {
        "advice": [row["sentence"] for row in first],
        "loop": _loop_sentence(frame),
        "figures": list(drawings(tables)),
        "tables": {
            f"{workload}, {pass_}": _table(rows) for (workload, pass_), rows in frame.groupby(["workload", "pass"])
        },
        "sources": _source_sentence(tables),
        "all_advice": [row["sentence"] for row in _advice_rows(tables)],
    }


def drawings(tables: Tables) -> Figures:
    """Return a figure for each workload and pass that has forms whose point is their memory."""
    frame = _in_users_loops(tables)
    figures: Figures = {}
    for (workload, pass_), rows in frame.groupby(["workload", "pass"], sort=True):
        if rows.projection.str.startswith(CUT).any():
            figures[FIGURE.format(workload, pass_)] = partial(_draw, rows, f"{workload}, {pass_}")
    return figures


def _in_users_loops(tables: Tables) -> pd.DataFrame:
    """Return the fronts of the loop that users of each execution write, with the fewest threads."""
    frame = tables.fronts
    keys = zip(frame.framework, frame.execution, strict=True)
    loops = pd.Series([tables.loops.get(key) for key in keys], index=frame.index, dtype=object)
    return rows_with_fewest_threads(frame[frame.recurrence == loops])


def _advice_rows(tables: Tables) -> list[Row]:
    """Return an advice for each place in a loop that users write, and whether forms are in it that are about memory."""
    rows = []
    for _, forms in _in_users_loops(tables).groupby(["workload", "pass", *GROUP[:-3]], sort=True):
        first = forms.iloc[0]
        is_cut = bool(forms.projection.str.startswith(CUT).any())
        start = f"{configuration_name(first)}, {first.workload} {first['pass']}"
        rows.append({"sentence": f"{start}: {advice(forms)}", "is_cut": is_cut})
    return rows


def advice(forms: pd.DataFrame) -> str:
    """Return which forms to take where memory is short, each with its memory and its time.

    They are the smallest of those that take little longer than batched, the one with the least product of time and
    memory, and the smallest of all.
    """
    batched = forms[forms.projection == BATCHED].iloc[0]
    by_memory = forms.sort_values(["peak_bytes", "ratio"])
    choices = {
        f"for at most {TOLERATED - 1:.0%} more time": by_memory[by_memory.ratio <= TOLERATED].iloc[0],
        "by the product of time and memory": forms.loc[(forms.ratio * forms.share).idxmin()],
        "by memory alone": by_memory.iloc[0],
    }
    reasons: dict[str, list[str]] = {}
    for reason, row in choices.items():
        if row.share <= WORTH:
            reasons.setdefault(_form(row), []).append(reason)
    start = f"batched takes {amount(batched.peak_bytes, 'B')}"
    if not reasons:
        return f"{start}, and no form saves a tenth of that."
    return "; ".join([start, *(f"best {_listed(names)} is {form}" for form, names in reasons.items())]) + "."


def _listed(names: list[str]) -> str:
    """Return names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _form(row: Any) -> str:
    """Return a form with what it saves and costs."""
    chunks = f" (k={chunk_count(row.projection)})" if family_of(row.projection) in CHUNKS else ""
    memory, times = amount(row.peak_bytes, "B"), interval(row.ratio, row.ci_low, row.ci_high)
    return f"{row.projection}{chunks}: {row.share:.0%} of the memory ({memory}), {times} times the time"


def _loop_sentence(frame: pd.DataFrame) -> str:
    """Say how much memory in_loop takes of batched's, over all places; "" where neither was measured."""
    shares = frame[(frame.projection == "in_loop") & frame.recurrence.isin(LOOPS)].share
    if shares.empty:
        return ""
    return (
        f"Peak memory of *in_loop* is {shares.min():.2f} to {shares.max():.2f} of *batched*'s "
        f"(median {shares.median():.2f}, {len(shares)} places)."
    )


def _source_sentence(tables: Tables) -> str:
    """Say who counted, and where the kernel and the framework's own numbers can be compared."""
    rows = tables.peaks
    known, kept = rows[rows.peak_bytes.notna()], rows[rows.framework_bytes.notna()]
    parts = [f"{len(known)} of {len(rows)} are known"]
    if len(kept):
        names = _names(kept.framework)
        parts.append(
            f"what the allocator of {names}, which keeps large arrays, counts is added to what the kernel does"
        )
    parts += sorted(set(rows[rows.peak_bytes.isna()].missing))
    compared = _beside_compiler(tables)
    text = f"{'; '.join(parts)}."
    if compared.empty:
        return text
    ratios = compared.peak_bytes.astype(float) / compared.stated_bytes
    spread = f"{ratios.min():.2f} to {ratios.max():.2f} of that (median {ratios.median():.2f})"
    return (
        f"{text} JAX's compiler states its temporary memory and its outputs: of {len(compared)} programs that take "
        f"more than 10 MB the measured peak is {spread}."
    )


def _names(frameworks: Iterable[str]) -> str:
    return ", ".join(sorted(set(frameworks)))


def _beside_compiler(tables: Tables) -> pd.DataFrame:
    """Return JAX's compiled programs with the bytes that its compiler states, where they are more than 10 MB."""
    places = [*GROUP, "projection"]
    evidence = tables.evidence[(tables.evidence.framework == "jax") & tables.evidence.temp_bytes.notna()]
    frame = tables.peaks.merge(evidence[[*places, "temp_bytes"]], on=places)
    sizes = {workload.name: workload for workload in tables.study.workloads}
    outputs = [_output_bytes(sizes[row["workload"]], row) for row in frame.to_dict("records")]
    frame = frame.assign(
        stated_bytes=frame.temp_bytes.astype(float) + pd.Series(outputs, index=frame.index, dtype=float)
    )
    return frame[(frame.stated_bytes > 1e7) & frame.peak_bytes.notna()]


def _output_bytes(workload: Workload, row: Row) -> float:
    """Return the bytes of a program's outputs in float32."""
    is_alone = row["projection"] == "none"
    if row["pass"] == "forward":
        return 4.0 * workload.T * workload.B * (workload.H if is_alone else workload.O)
    names = () if row["pass"] == "loss" else TRAIN_NONE if is_alone else TRAIN[1:]
    return 4.0 * (1 + sum(math.prod(workload.shapes[name.removeprefix("d_")]) for name in names))


def _table(rows: pd.DataFrame) -> str:
    """Return the table of one workload and pass: a row for each form, the largest memory first."""
    cells = []
    for row in rows.itertuples():
        place = configuration_name(row._asdict())
        cells.append(
            [
                place,
                f"{row.recurrence}_{row.projection}",
                interval(row.ratio, row.ci_low, row.ci_high) if row.projection != BATCHED else "1",
                amount(row.peak_bytes, "B"),
                f"{row.share:.0%}",
                "yes" if row.on_front else "",
            ]
        )
    return table(["", "form", "time / batched", "peak memory", "of batched's", "on the front"], cells)


def _draw(rows: pd.DataFrame, title: str) -> Any:
    """Draw a panel for each program: the ratio of times over peak memory, with the front as a line."""
    from matplotlib.figure import Figure

    rows = rows.assign(rank=rows.execution.map(execution_rank)).sort_values(["framework", "rank"], kind="stable")
    groups = list(rows.groupby(GROUP, sort=False))[:MOST_PANELS]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(max(5.0, 3.6 * columns), 3.1 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for spare in panels.flat[len(groups) :]:
        spare.set_axis_off()
    for axes, (_, forms) in zip(panels.flat, groups, strict=False):
        _draw_panel(axes, forms)
    figure.suptitle(f"{title}: peak memory against time; the line is the front")
    figure.supxlabel("peak memory of a call, MB, log scale", fontsize=9)
    figure.supylabel("time / batched", fontsize=9)
    return figure


def _draw_panel(axes: Any, forms: pd.DataFrame) -> None:
    """Draw one program's forms."""
    first = forms.iloc[0].to_dict()
    axes.axhline(1, color="black", linewidth=0.8)
    front = forms[forms.on_front].sort_values("peak_bytes")
    axes.plot(front.peak_bytes.astype(float) / 1e6, front.ratio, color="#bbbbbb", linewidth=1, zorder=1)
    for row in forms.itertuples():
        megabytes = float(row.peak_bytes) / 1e6
        style = contender_style(row.projection) if row.projection != BATCHED else {"marker": "o", "color": "black"}
        error = [[max(0.0, row.ratio - row.ci_low)], [max(0.0, row.ci_high - row.ratio)]]
        has_interval = pd.notna(row.ci_low) and row.projection != BATCHED
        axes.errorbar(megabytes, row.ratio, yerr=error if has_interval else None, linewidth=0.7, **style)
        if family_of(row.projection) not in CHUNKS:
            axes.annotate(
                row.projection, (megabytes, row.ratio), xytext=(4, 4), textcoords="offset points", fontsize=6.5
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.15)  # room for the names
    ticks = [tick for tick in TICKS_MB if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title(program_name(first, "" if first["device"] == "cpu" else first["device"]), loc="left", fontsize=9)
    axes.grid(color="#f0f0f0")
