"""Where a gap comes from: the table and the figure of its steps, with what each form's program did."""

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.changes import users_rows
from harness.analysis.gaps import is_included
from harness.analysis.stats import LONGER
from harness.analysis.steps import FORMS, PLACE
from harness.analysis.tables import Tables
from harness.report.causes import format_by_form, rows_with_fewest_threads
from harness.report.figures import Figures, configuration_name, engine_of, engines_of
from harness.report.markdown import Row, bold_interval, execution_name, table
from harness.study.parts import BATCHED
from harness.study.study import LOOPS

FIGURE = "steps"
LOOP_NAMES = {"unrolled": "unrolled loops", "scan": "symbolic loops"}
SHOWN = 10  # gaps on the first page
OUT, OWN_LOOP = "out of the loop", "into a loop of its own"
STEPS = {  # a step's forms -> what is changed in it; of a symbolic loop see step_name
    ("in_loop", "per_step"): OUT,
    ("per_step", "bmm"): "into one call",
    ("bmm", BATCHED): "into one product",
    ("per_step", BATCHED): "into one product",
    ("in_loop", "bmm"): f"{OUT}, into one call",
    ("in_loop", BATCHED): "all at once",
}
COLOURS = {OUT: "#c0392b", OWN_LOOP: "#8e5bb5", "into one call": "#d08a1d", "into one product": "#2c6fbb"}
OTHER = "#888888"
PALE = 0.35  # opacity of a step that costs time


def step_name(step: Row) -> str:
    """Return what is changed in a step. After a symbolic loop, products of their own step are in a second such loop."""
    name = STEPS[step["form"], step["next_form"]]
    return OWN_LOOP if name == OUT and step["recurrence"] == "scan" else name


def section(tables: Tables) -> Row | None:
    """Return the template variables of the steps; None where the run has no gap with more than one step."""
    frame = users_steps(tables)
    if frame.groupby(PLACE).size().max() == 1 or frame.empty:
        return None
    rows = _rows(frame)
    fewest = rows_with_fewest_threads(frame).groupby("device").threads.first()
    first = [row for row in rows if row["threads"] == fewest[row["device"]] and row["is_shown"]]
    first.sort(key=lambda row: -abs(np.log(row["gap"])))  # a GPU's beside a CPU's, whatever their hosts' threads
    return {
        "first": _table(tables, first[:SHOWN]),
        "count": len(rows),
        "forms": counted_forms(tables),
        "all": _table(tables, rows),
        "figures": list(drawings(tables)),
    }


def counted_forms(tables: Tables) -> list[str]:
    """Return the forms of which any program with a loop of ours was counted."""
    evidence = tables.evidence[tables.evidence.recurrence.isin(LOOPS)]
    return [form for form in FORMS if (evidence.projection == form).any()]


def users_steps(tables: Tables) -> pd.DataFrame:
    """Return the steps of the included gaps of in_loop, in the loop that each execution's users write."""
    gaps = tables.gaps[(tables.gaps.contender == "in_loop") & is_included(tables.gaps)]
    gaps = gaps[[*PLACE, "ratio", "direction"]].rename(columns={"ratio": "gap"})
    return users_rows(tables.steps.merge(gaps, on=PLACE), tables.loops)


def summary(tables: Tables) -> str:
    """Say which step saves the most in how many of the gaps that are above 1; "" where none has several steps."""
    frame = users_steps(tables)
    known = frame[(frame.direction == LONGER) & (frame.groupby(PLACE).form.transform("size") > 1)]
    if known.empty:
        return ""
    sentences = []
    for recurrence, part in known.groupby("recurrence", sort=False):
        largest = part.loc[part.ratio.groupby([part[name] for name in PLACE]).idxmax()]
        counts = Counter(step_name(row) for row in largest.to_dict("records"))
        named = ", ".join(f"*{name}* in {count}" for name, count in counts.most_common())
        sentences.append(f"of the {len(largest)} in {LOOP_NAMES[str(recurrence)]} it is {named}")
    return (
        "Gaps in which projecting inside takes longer were taken apart into steps, of which one saves the most: "
        f"{'; '.join(sentences)}."
    )


def _rows(frame: pd.DataFrame) -> list[Row]:
    """Return a row for each gap: first those of the fewest threads, and of these the largest that are shown."""
    rows = []
    for keys, part in frame.groupby(PLACE, sort=True):
        steps = {(step["form"], step["next_form"]): step for step in part.to_dict("records")}
        row = dict(zip(PLACE, keys, strict=True)) | {"steps": steps, "gap": part.gap.iloc[0]}
        rows.append(row | {"is_shown": any(step["ci_low"] > 1 or step["ci_high"] < 1 for step in steps.values())})
    return sorted(rows, key=lambda row: (row["threads"], not row["is_shown"], -abs(np.log(row["gap"]))))


def _table(tables: Tables, rows: list[Row]) -> str:
    """Return a table with a row for each gap: its steps, and each form's products and kernels."""
    if not rows:
        return ""
    pairs = [pair for pair in STEPS if any(pair in row["steps"] for row in rows)]
    evidence = {tuple(row[name] for name in (*PLACE, "projection")): row for row in tables.evidence.to_dict("records")}
    names = counted_forms(tables)
    lines = []
    for row in rows:
        place = tuple(row[name] for name in PLACE)
        forms = {form: counts for form in FORMS if (counts := evidence.get((*place, form)))}
        steps = [
            bold_interval(step["ratio"], step["ci_low"], step["ci_high"]) if (step := row["steps"].get(pair)) else "–"
            for pair in pairs
        ]
        kernels = "device_kernels" if row["device"] == "gpu" else "kernels"  # a CUDA graph hides the others
        counts = [format_by_form(forms, column, "{:g}".format, names) for column in ("products", kernels)]
        label = f"{configuration_name(row)}, {row['workload']} {row['pass']}"
        lines.append([label, f"{row['gap']:.2f}", *steps, *counts])
    titles = [f"{STEPS[pair]}: {' / '.join(pair)}" for pair in pairs]
    counted = [f"{what}: {' · '.join(names)}" for what in ("products", "kernels")]
    return table(["", "gap", *titles, *counted], lines)


def drawings(tables: Tables) -> Figures:
    """Return the figure of the steps with the fewest threads; none where no gap has more than one step."""
    frame = rows_with_fewest_threads(users_steps(tables))
    if frame.empty or frame.groupby(PLACE).size().max() == 1:
        return {}
    return {FIGURE: partial(_draw, frame)}


def _draw(frame: pd.DataFrame) -> Any:
    """Draw a waterfall for each gap, from its ratio down to 1: a panel for each workload and pass."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = {(str(key[0]), str(key[1])): part for key, part in frame.groupby(["workload", "pass"], sort=True)}
    names = [execution_name(*engine) for engine in engines_of(frame)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.4 + 3.6 * columns, 1.0 + rows * (0.6 + 0.34 * len(names))), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (key, part) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, part, names)
        axes.set_title(" ".join(key), loc="left", fontweight="bold")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    steps = {step_name(row) for row in frame.to_dict("records")}
    used = [name for name in COLOURS if name in steps]
    handles = [Patch(color=COLOURS[name], label=name) for name in used]
    handles += [
        Patch(color=OTHER, label="no form between"),
        Patch(color=OTHER, alpha=PALE, label="a step that costs time"),
    ]
    title = "time over batched, log scale: each bar goes from one form's time to the next one's, until 1 is left"
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, title=title)
    return figure


def _draw_panel(axes: Any, part: pd.DataFrame, names: list[str]) -> None:
    """Draw the waterfalls of one workload and pass: a row for each execution, a lane in it for each step."""
    for _, steps in part.groupby(PLACE, sort=True):
        rows = steps.to_dict("records")
        level = float(np.prod([row["ratio"] for row in rows]))
        y = names.index(execution_name(*engine_of(rows[0])))
        for lane, row in enumerate(rows):
            end = level / row["ratio"]
            middle = y + 0.56 * ((lane + 0.5) / len(rows) - 0.5)
            colour = COLOURS.get(step_name(row), OTHER)
            alpha = PALE if row["ratio"] < 1 else 1.0
            axes.barh(middle, level - end, left=end, height=0.56 / len(rows), color=colour, alpha=alpha)
            if not np.isnan(row["ci_low"]):  # the step's own interval, around where its bar begins
                limits = [end * row["ci_low"], end * row["ci_high"]]
                axes.plot(limits, [middle, middle], color="black", linewidth=0.6)
            level = end
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    low, high = min(0.95, axes.get_xlim()[0]), axes.get_xlim()[1]
    ticks = [0.5, 0.7, 1, 1.5, 2, 3, 4] if high / low > 3 else [0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2, 3, 4]
    axes.set_xlim(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high], [f"{t:g}" for t in ticks if low <= t <= high])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", color="#f0f0f0")
