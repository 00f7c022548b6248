"""The report's tables below the gaps: identity, first calls, the control, what is missing, settings."""

import math

import pandas as pd

from harness.analysis import ARM, SEAT, Tables
from harness.measure import BATCHED, TWIN
from harness.report.markdown import Row, seconds, table

IDIOMATIC_LIMIT = 1.05  # above it the report prints the ratio bold


def identity(tables: Tables) -> str:
    """For each framework, execution, arm and pass, the worst over workloads, threads and quantities."""
    rows = []
    for key, part in tables.identity.groupby(["framework", "execution", "device", *ARM, "pass"], sort=True):
        over = (part.fp32_rel_error / part.bound.where(part.bound > 0)).max()
        same = part.bitwise_equal_to_batched.dropna()
        bitwise = "–" if same.empty else f"{int(same.sum())} of {len(same)}"
        ulp = "–" if same.empty else int(part.max_ulp.max())
        fp64 = part.fp64_rel_error.max()
        bad = int((part.status != "ok").sum())
        cells = ["not checked" if math.isnan(fp64) else f"{fp64:.1e}", "–" if math.isnan(over) else f"{over:.2f}"]
        rows.append([*key, *cells, bitwise, ulp, "ok" if not bad else f"wrong in {bad}"])
    columns = ["framework", "execution", "device", "recurrence", "projection", "pass"]
    errors = ["fp64 error", "fp32 error / bound", "bitwise equal to batched", "max ULP to batched", "gates"]
    return table([*columns, *errors], rows)


def first_calls(tables: Tables) -> str:
    """What the first call costs, and after how many calls it has paid against the same framework's eager."""
    frame = tables.times
    keys = ["framework", "device", "threads", "precision", "workload", "pass", "projection"]
    first = frame[frame.first_call_s.notna()].set_index([*keys, "execution", "recurrence"]).first_call_s
    steady = frame.groupby([*keys, "execution", "recurrence"], sort=True).median_s.median()
    rows = []
    for key, cost in first.sort_index().items():
        *place, execution, recurrence = key
        if execution == "eager" or place[-1] not in ("in_loop", BATCHED):
            continue
        eager = (*place, "eager", "unrolled")
        now, before = steady.get(key), steady.get(eager)
        pays = _pays(cost, now, first.get(eager), before)
        where = f"{place[0]} {execution} {recurrence}, {place[2]} thread{'s' if place[2] > 1 else ''}"
        rows.append([where, place[4], place[5], place[6], seconds(cost), seconds(now), seconds(before), pays])
    columns = ["", "workload", "pass", "projection", "first call", "later call", "eager call", "has paid after"]
    return table(columns, rows)


def _pays(cost: float, now: float | None, eager_cost: float | None, eager: float | None) -> str:
    """Calls n with cost + (n-1) now <= eager_cost + (n-1) eager."""
    if now is None or eager is None or eager_cost is None or any(map(math.isnan, (now, eager))):
        return "–"
    if now >= eager:
        return "never: eager is as fast"
    calls = max(1, math.ceil(1 + (cost - eager_cost) / (eager - now)))
    return f"{calls:,} call{'s' if calls > 1 else ''}"


def twins(tables: Tables) -> str:
    """The A/A control: how many intervals hold 1, and how wide they are."""
    frame = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    rows = []
    for (framework, execution, pass_), part in frame.groupby(["framework", "execution", "pass"], sort=True):
        half = (part.ci_high / part.ci_low) ** 0.5 - 1
        low, high = part.ratio.min(), part.ratio.max()
        holds = f"{int(part.trusted.sum())} of {len(part)}"
        rows.append(
            [
                f"{framework} {execution}",
                pass_,
                f"{low:.3f} to {high:.3f}",
                holds,
                f"±{half.median():.1%}",
                f"±{half.max():.1%}",
            ]
        )
    columns = ["", "pass", "A/A ratios", "95% interval holds 1", "median half-width", "widest"]
    return table(columns, rows)


def absent(tables: Tables) -> str:
    """Every cell that was not measured, by reason."""
    frame = tables.times[tables.times.status != "ok"]
    rows = []
    for (status, reason), part in frame.groupby(["status", "reason"], sort=True, dropna=False):
        cells = part.drop_duplicates([*SEAT, "workload", "pass", *ARM])
        where = [_values(cells, name) for name in ("framework", "device", "threads", "execution", "workload", "pass")]
        rows.append([status, reason, len(cells), *where, _values(cells, "recurrence"), _values(cells, "projection")])
    columns = [
        "status",
        "reason",
        "cells",
        "framework",
        "device",
        "threads",
        "execution",
        "workload",
        "pass",
        "recurrence",
        "projection",
    ]
    return table(columns, rows)


def _values(frame: pd.DataFrame, column: str) -> str:
    """The distinct values of a column, as one writes them; a dash where the axis does not apply."""
    values = sorted({f"{v:g}" if isinstance(v, float) else str(v) for v in frame[column].dropna()})
    return ", ".join(values) or "–"


def threads_used(tables: Tables) -> str:
    """The proof of the thread counts: processor time over wall time of a large product."""
    seen: dict[tuple[str, str, int], list[float]] = {}
    for block in tables.blocks:
        if block["threads_used"] is not None:
            seen.setdefault((block["framework"], block["execution"], block["threads"]), []).append(
                block["threads_used"]
            )
    rows = [[*key, f"{min(used):.2f} to {max(used):.2f}"] for key, used in sorted(seen.items())]
    return table(["framework", "execution", "threads set", "cores used"], rows)


def environments(found: dict[str, list[Row]]) -> str:
    """The variables each framework's workers were started with."""
    rows = [
        [name, one["device"], one["threads"], " ".join(f"`{k}={v}`" for k, v in sorted(one["variables"].items()))]
        for name, all_of in sorted(found.items())
        for one in all_of
        if one["device"] == "cpu"
    ]
    return table(["framework", "device", "threads", "environment"], rows)


def idiomatic(rows: list[dict[str, str]]) -> str:
    """Each arm against the shortest idiomatic program for it; nothing when none was measured."""
    if not rows:
        return ""
    lines = []
    for row in rows:
        ratio = f"{float(row['ratio']):.3f} [{float(row['lowest']):.3f}, {float(row['highest']):.3f}]"
        if float(row["ratio"]) > IDIOMATIC_LIMIT:
            ratio = f"**{ratio}**"
        place = [f"{row['framework']} {row['execution']}", row["arm"], row["idiomatic"]]
        times = [seconds(float(row[name]) / 1e6) for name in ("ours_us", "its_us")]
        lines.append([*place, *times, ratio, row["note"]])
    columns = ["", "arm", "idiomatic program", "arm's time", "its time", "ratio [lowest, highest process]", "note"]
    return table(columns, lines)
