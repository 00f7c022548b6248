"""What the report says: every sentence and table, from the tables of a run. Units are written here."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from harness.analysis import ARM, SEAT, Tables
from harness.measure import BATCHED, TWIN
from harness.report.figures import Drawn
from harness.report.figures import seat as seat_name
from harness.stats import EQUIVALENT, FASTER, INCONCLUSIVE, SLOWER

FRAMEWORKS = {"tf": "TensorFlow", "torch": "PyTorch", "jax": "JAX"}
VERDICTS = (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE)
Row = dict[str, Any]


def everything(tables: Tables, drawn: Drawn) -> dict[str, Any]:
    """The template's variables."""
    return {
        "label": tables.study.label,
        "study": tables.study,
        "heading": tables.heading,
        "answer": answer(tables),
        "per_execution": per_execution(tables),
        "correct": correct(tables),
        "problems": problems(tables),
        "sections": [section(tables, workload, pass_, name) for (workload, pass_), name in sorted(drawn.items())],
        "identity": identity(tables),
        "checked": sorted({f"{c['workload']['name']} at {c['steps']} steps" for c in tables.checks}),
        "first_calls": first_calls(tables),
        "twins": twins(tables),
        "absent": absent(tables),
        "environments": environments(tables.heading["environments"]),
        "began": min((b["began"] for b in tables.blocks), default="never"),
        "ended": max((b["began"] for b in tables.blocks), default="never"),
        "load": max((b["load"] for b in tables.blocks), default=math.nan),
        "threads_used": threads_used(tables),
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def seconds(value: float | None) -> str:
    """A time with its unit, three significant digits."""
    if value is None or math.isnan(value):
        return "–"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def ratio(row: Row) -> str:
    """A ratio, its interval and its verdict."""
    if math.isnan(row["ci_low"]):
        return f"{row['ratio']:.3f} (one process)"
    return f"{row['ratio']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] {row['verdict']}"


def answer(tables: Tables) -> str:
    """The question's answer, from the verdicts."""
    gaps = tables.gaps[tables.gaps.contender == "in_loop"]
    if gaps.empty:
        return "Nothing was measured in both forms, so this run has no answer."
    if tables.study.label == "quick":
        return (
            "This was a smoke run: it shows that everything works and **makes no claim** about any gap. "
            "The ratios below come from one process each and have no interval."
        )
    count = Counter(gaps.verdict)
    judged = len(gaps) - count[INCONCLUSIVE]
    lead = "it depends"
    if judged == 0:
        lead = "this run can not tell"
    elif count[SLOWER] == judged:
        lead = "yes, wherever this run can tell"
    elif count[SLOWER] == 0:
        lead = "no, nowhere that this run can tell"
    said = ", ".join(f"{verdict} in {count[verdict]}" for verdict in VERDICTS)
    extreme = " ".join(_extreme(gaps, verdict) for verdict in (SLOWER, FASTER) if count[verdict])
    return (
        f"Is projecting inside the loop slower than projecting once? On this machine **{lead}**: of {len(gaps)} "
        f"comparisons (framework, execution, recurrence, threads, workload, pass), the in-loop form was {said}, "
        f"against a margin of {tables.study.margin:.0%}. {extreme}"
    )


def _extreme(gaps: pd.DataFrame, verdict: str) -> str:
    part = gaps[gaps.verdict == verdict]
    row = part.loc[part.ratio.idxmax() if verdict == SLOWER else part.ratio.idxmin()].to_dict()
    most = "largest loss" if verdict == SLOWER else "largest gain"
    place = f"{seat_name(row)}, {row['workload']} {row['pass']}"
    return f"The {most} was a ratio of {row['ratio']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] in {place}."


def per_execution(tables: Tables) -> str:
    """Verdicts of both contenders, counted for each framework and execution."""
    gaps = tables.gaps[tables.gaps.contender != TWIN]
    rows = []
    for (framework, execution, device, contender), part in gaps.groupby(
        ["framework", "execution", "device", "contender"], sort=True
    ):
        count = Counter(part.verdict)
        low, high = part.ratio.min(), part.ratio.max()
        name = f"{FRAMEWORKS.get(framework, framework)} {execution}"
        rows.append([name, device, contender, *(count[v] for v in VERDICTS), f"{low:.2f} to {high:.2f}"])
    return table(["execution", "device", "contender", *VERDICTS, "ratios seen"], rows)


def correct(tables: Tables) -> str:
    """Whether all compute the same, in a sentence."""
    frame = tables.identity
    if frame.empty:
        return "No output was verified."
    good = frame[frame.status == "ok"]
    cells = [*SEAT, "workload", "pass", *ARM]
    every, wrong = len(frame[cells].drop_duplicates()), len(frame[frame.status != "ok"][cells].drop_duplicates())
    fp32 = (good.fp32_rel_error / good.bound).max()
    fp64 = good.fp64_rel_error.max()
    start = "All compute the same" if wrong == 0 else f"**{wrong} of {every} cells are wrong** and their times withheld"
    return (
        f"{start}: {every - wrong} cells passed both gates, with outputs and gradients at most {fp64:.1e} from the "
        f"float64 oracle in fp64, and at most {fp32:.0%} of the rounding bound away in fp32."
    )


def problems(tables: Tables) -> list[str]:
    """What went wrong in measured cells, one line each, the reason with it."""
    bad = tables.times[tables.times.status.isin(["wrong", "failed", "timeout", "refused"])]
    rows = bad.drop_duplicates([*SEAT, "workload", "pass", *ARM, "status"]).to_dict("records")
    return [
        f"{row['status']}: {seat_name(row)}, {row['projection']}, {row['workload']} {row['pass']}: {row['reason']}"
        for row in rows
    ]


def section(tables: Tables, workload: str, pass_: str, figure: str) -> Row:
    """One workload and pass: its sizes, its figure, and the table behind it."""
    times = tables.times[(tables.times.workload == workload) & (tables.times["pass"] == pass_)]
    gaps = tables.gaps[(tables.gaps.workload == workload) & (tables.gaps["pass"] == pass_)]
    key = [*SEAT, "recurrence"]
    absolute = times.groupby([*key, "projection"], sort=True).median_s.median()
    rows = []
    for values, part in gaps.groupby(key, sort=True):
        place = dict(zip(key, values, strict=True))
        by = {row["contender"]: row for row in part.to_dict("records")}
        each = [seconds(absolute.get((*values, p))) for p in ("none", "in_loop", "per_step", BATCHED)]
        ratios = [ratio(by[c]) if c in by else "–" for c in ("in_loop", "per_step")]
        processes = part.processes.max()
        mark = "" if part.trusted.all() or processes < 2 else " ⚠ untrusted"
        twin = (ratio(by[TWIN] | {"verdict": ""}) + mark) if TWIN in by else "–"
        rows.append([seat_name(place), *each, *ratios, twin, f"{processes} × {part.rounds.median():g}"])
    columns = [
        "",
        "none",
        "in_loop",
        "per_step",
        "batched",
        "in_loop/batched",
        "per_step/batched",
        "A/A",
        "processes × rounds",
    ]
    first = times.iloc[0]
    sizes = ", ".join(f"{size}={int(first[size])}" for size in "BTIHO")
    return {
        "workload": workload,
        "pass": pass_,
        "figure": figure,
        "table": table(columns, rows),
        "sizes": f"{sizes}, {first.cell}",
    }


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
    return f"{max(1, math.ceil(1 + (cost - eager_cost) / (eager - now))):,} calls"


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
