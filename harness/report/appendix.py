"""The report's tables below the gaps: identity, first calls, the control, what is missing, settings."""

import math
import statistics
from collections.abc import Iterable

import pandas as pd

from harness.analysis import sample_quality
from harness.analysis.gaps import ARM, CONFIG, ENGINE
from harness.analysis.stats import half_width, rate
from harness.analysis.tables import Tables
from harness.machine import gpu
from harness.report.markdown import Row, counted, engine, seconds, table
from harness.study.parts import BATCHED, LOOPS, TWIN

COLD_BREAK_EVEN = "break-even, from one cold call"
IDIOMATIC_LIMIT = 1.05  # above it the report prints the ratio bold


def identity(tables: Tables) -> str:
    """For each framework, execution, arm and pass, the worst over workloads, threads and quantities."""
    rows = []
    for (*by, recurrence, projection, pass_), part in tables.identity.groupby([*ENGINE, *ARM, "pass"], sort=True):
        over = (part.rel_error / part.bound.where(part.bound > 0)).max()
        same = part.bitwise_equal_to_batched.dropna()
        bitwise = "–" if same.empty else f"{int(same.sum())} of {len(same)}"
        ulp = "–" if same.empty else int(part.max_ulp.max())
        fp64 = part.fp64_rel_error.max()
        bad = int((part.status != "ok").sum())
        cells = ["not checked" if math.isnan(fp64) else f"{fp64:.1e}", "–" if math.isnan(over) else f"{over:.2f}"]
        place = [engine(*by), recurrence, projection, pass_, _fp64_gates(part)]
        rows.append([*place, *cells, bitwise, ulp, "ok" if not bad else f"wrong in {bad}"])
    columns = ["execution", "recurrence", "projection", "pass", "fp64 gate: cells"]
    errors = ["fp64 error", "error / bound", "bitwise equal to batched", "max ULP to batched", "gates"]
    return table([*columns, *errors], rows)


def _fp64_gates(part: pd.DataFrame) -> str:
    """How many of some cells were verified how in fp64."""
    cells = part.drop_duplicates([*CONFIG, "workload", "pass", *ARM])
    return ", ".join(f"{gate}: {count}" for gate, count in cells.fp64_gate.value_counts(sort=False).items())


def first_calls(tables: Tables) -> str:
    """What a loop's first call costs, and the calls after which that breaks even with the same framework's eager.

    Both first calls are the first process's, whose caches were empty: one of each, so a break-even has no interval.
    """
    own = [workload.name for workload in tables.study.workloads]
    frame = tables.times[tables.times.recurrence.isin(LOOPS) & tables.times.workload.isin(own)]
    keys = ["framework", "device", "precision", "threads", "workload", "pass", "projection"]
    first = frame[frame.first_call_s.notna()].set_index([*keys, "execution", "recurrence"]).first_call_s
    steady = frame.groupby([*keys, "execution", "recurrence"], sort=True).median_s.median()
    rows = []
    for key, cost in first.sort_index().items():
        *place, execution, recurrence = key
        if execution == "eager" or place[-1] not in ("in_loop", BATCHED):
            continue
        eager = (*place, "eager", "unrolled")
        now, before = steady.get(key), steady.get(eager)
        even = _break_even(cost, now, first.get(eager), before)
        framework, device, precision, threads, *what = place
        where = f"{engine(framework, execution, device, precision)} {recurrence}, {counted(threads, 'thread')}"
        rows.append([where, *what, seconds(cost), seconds(now), seconds(before), even])
    columns = ["", "workload", "pass", "projection", "first call", "later call", "eager call", COLD_BREAK_EVEN]
    return table(columns, rows)


def _break_even(cost: float, now: float | None, eager_cost: float | None, eager: float | None) -> str:
    """Calls n with cost + (n-1) now <= eager_cost + (n-1) eager, to two digits: more, one cold call does not tell."""
    if now is None or eager is None or eager_cost is None or any(map(math.isnan, (now, eager))):
        return "–"
    if now >= eager:
        return "never: eager is as fast"
    calls = max(1, math.ceil(1 + (cost - eager_cost) / (eager - now)))
    rounded = int(float(f"{calls:.1e}"))
    return f"{'about ' if calls >= 100 else ''}{counted(rounded, 'call')}"


def twins(tables: Tables) -> str:
    """The A/A control: how many intervals hold 1, and how wide they are."""
    frame = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    rows = []
    for (*by, pass_), part in frame.groupby([*ENGINE, "pass"], sort=True):
        half = half_width(part.ci_low, part.ci_high)
        low, high = part.ratio.min(), part.ratio.max()
        holds = f"{int(part.trusted.sum())} of {len(part)}"
        rows.append(
            [
                engine(*by),
                pass_,
                f"{low:.3f} to {high:.3f}",
                holds,
                f"±{half.median():.1%}",
                f"±{half.max():.1%}",
            ]
        )
    columns = ["", "pass", "A/A ratios", "95% interval holds 1", "median half-width", "widest"]
    return table(columns, rows)


def alarms(tables: Tables) -> str:
    """How often the A/A interval misses 1, for each framework and all together: the false alarms of a 95% interval."""
    frame = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    rows = []
    for framework, part in [*frame.groupby("framework", sort=True), ("all", frame)]:
        if len(part):
            found, low, high = rate(int((~part.trusted).sum()), len(part))
            rows.append([framework, len(part), int((~part.trusted).sum()), f"{found:.1%} [{low:.1%}, {high:.1%}]"])
    return table(["framework", "controls", "that miss 1", "rate [95% interval]"], rows)


def steadiness(tables: Tables) -> str:
    """What the samples were like, and what calling and measuring itself costs."""
    frame = sample_quality.of_blocks(tables.blocks, tables.study.margin)
    if frame.empty:
        return "No samples were taken."
    nulls = null_calls(tables)
    rows = []
    for (*by, pass_), part in frame.groupby([*ENGINE, "pass"], sort=True):
        told = part[part.drifts.notna()]
        shares = [f"{int(told[flag].sum())} of {len(told)}" if len(told) else "–" for flag in ("drifts", "bimodal")]
        correlation = f"{told.autocorrelation.median():.2f}" if len(told) else "–"
        outliers = f"{part.outliers.sum() / part.samples.sum():.1%}"
        above = f"{told.above.median():.0%}" if len(told) else "–"
        own = (part.own_ns / part.median_ns).max()
        costs = [seconds(nulls.get((*by, pass_))), "–" if math.isnan(own) else f"{own:.2%}"]
        rows.append([engine(*by), pass_, len(part), *shares, correlation, above, outliers, *costs])
    columns = [
        "",
        "pass",
        "arms × processes",
        "drift",
        "two modes",
        "autocorrelation",
        "above the shortest",
        "outliers",
        "null call",
        "harness, at most",
    ]
    return table(columns, rows)


def null_calls(tables: Tables) -> dict[tuple[str, ...], float]:
    """Seconds of the median null call, by what runs the programs and the pass."""
    found: dict[tuple[str, ...], list[float]] = {}
    for block in tables.blocks:
        if null_ns := block.get("floors", {}).get("null_ns"):
            found.setdefault(tuple(block[name] for name in (*ENGINE, "pass")), []).append(null_ns)
    return {place: statistics.median(each) / 1e9 for place, each in found.items()}


def absent(tables: Tables) -> str:
    """Every cell that was not measured, by reason."""
    frame = tables.times[tables.times.status != "ok"]
    rows = []
    for (status, reason), part in frame.groupby(["status", "reason"], sort=True, dropna=False):
        cells = part.drop_duplicates([*CONFIG, "workload", "pass", *ARM])
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


def numerics(tables: Tables) -> str:
    """The frameworks' numeric settings, as each worker read them back; nothing in records of before they were."""
    found = {
        (block["framework"], block["device"], block["precision"], name, value)
        for block in [*tables.blocks, *tables.checks]
        for name, value in block.get("numerics", {}).items()
    }
    return table(["framework", "device", "precision", "setting", "value"], sorted(found)) if found else ""


def graphics(tables: Tables) -> str:
    """How the GPU did around the blocks: clocks, temperature, other processes, throttling; nothing without one."""
    rows = []
    if not any(block["device"] == "gpu" for block in tables.blocks):
        return ""
    found = [block for block in tables.blocks if block.get("gpu")]
    if not found:
        return "NVML could not be asked: its clocks, its temperature and who else used it are not known."
    for by in sorted({tuple(block[name] for name in ENGINE) for block in found}):
        mine = [block for block in found if tuple(block[name] for name in ENGINE) == by]
        states = [state for block in mine for state in block["gpu"].values()]
        others = [gpu.foreign(state) for state in states]
        hot = [block for block in mine if block["throttled"]]
        why = ", ".join(sorted({reason for block in hot for reason in block["throttled"]}))
        ranges = [_range(state[name] for state in states) for name in ("sm_mhz", "memory_mhz", "temperature_c")]
        throttled = f"{len(hot)} of {len(mine)}" + (f": {why}" if why else "")
        rows.append([engine(*by), *ranges, max((n for n in others if n is not None), default="not told"), throttled])
    columns = ["", "SM clock, MHz", "memory clock, MHz", "°C", "other processes, at most", "blocks throttled"]
    return table(columns, rows)


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):g} to {max(known):g}" if known else "not told"


def environments(found: dict[str, list[Row]], devices: Iterable[str]) -> str:
    """The variables each framework's workers were started with on some devices."""
    rows = [
        [name, one["device"], one["threads"], " ".join(f"`{k}={v}`" for k, v in sorted(one["variables"].items()))]
        for name, all_of in sorted(found.items())
        for one in all_of
        if one["device"] in devices
    ]
    return table(["framework", "device", "threads", "environment"], rows)


def kills(found: Row) -> str:
    """What became of a run that was killed again and again."""
    whom = " and ".join(f"{count} times its {name}" for name, count in found["kills"].items())
    end = "the same blocks with the same statuses as" if found["same_blocks"] else "**other blocks than**"
    if not found["finished"]:
        end = "**no end, and to other blocks than**"
    return (
        f"A run of {found['blocks']} blocks was killed (`kill -9`) at random instants, {whom}, each time gone on "
        f"with by `--resume`, and came to {end} a run left alone. "
        f"Records lost: {found['lost']}; doubled: {found['doubled']}; processes left running: {found['left_running']}."
    )


def repeated(found: Row) -> str:
    """How often two runs of a study agree on its gaps, as scripts/repeat.py counted."""
    (first, its), (second, others) = found["runs"].items()
    unlike = f" They are not of the same {' and '.join(found['other'])}." if found["other"] else ""
    start = f"{first} ({its['began']} to {its['ended']}) and {second} ({others['began']} to {others['ended']})"
    rows = []
    for name, group in found["groups"].items():
        share, low, high = rate(group["beyond"], group["gaps"])
        beyond = f"{group['beyond']}: {share:.1%} [{low:.1%}, {high:.1%}]"
        overlap = f"{1 - group['apart'] / group['gaps']:.1%}"
        rows.append([name, group["gaps"], beyond, overlap, group["same_verdict"], group["opposite"]])
    columns = [
        "gaps",
        "in both runs",
        "differ at 95% [95% interval]",
        "intervals overlap",
        "same verdict",
        "other sign",
    ]
    return f"{start}.{unlike}\n\n{table(columns, rows)}"


def apart(found: list[Row]) -> str:
    """The same gaps with arms alternating in a process, and with each arm in processes of its own; and how often the
    two disagree.
    """
    kinds = ["alternating", "apart", "apart / alternating"]
    rows = []
    for row in found:
        framework, execution, recurrence, contender, pass_, *workload = row["cell"]
        program = f"{framework} {execution} {recurrence}, {' '.join([*(workload or ['book']), pass_])}"
        place = [program, row.get("memory", "default"), f"{contender}/batched", row["processes"]]
        rows.append([*place, *("{:.3f} [{:.3f}, {:.3f}]".format(*row[kind]) for kind in kinds)])
    biased = [row for row in found if not row["apart / alternating"][1] <= 1 <= row["apart / alternating"][2]]
    said = (
        f"**They disagree in {len(biased)} of {len(found)}.**" if biased else f"They disagree in none of {len(found)}."
    )
    return f"{said}\n\n{table(['', 'memory', 'gap', 'processes of each kind', *kinds], rows)}"


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
