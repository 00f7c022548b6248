"""The report's tables below the gaps: identity, first calls, the control, what is missing, and settings."""

import math
import statistics
from collections.abc import Iterable

import pandas as pd

from harness.analysis import sample_quality
from harness.analysis.gaps import ARM, ENGINE
from harness.analysis.stats import half_width, rate_interval
from harness.analysis.tables import Tables
from harness.machine import gpu
from harness.report.markdown import Row, execution_name, pluralize, seconds, table, with_threads
from harness.study.configuration import CONFIG
from harness.study.matrix import WorkerEnvironment
from harness.study.parts import BATCHED, TWIN
from harness.study.study import LOOPS

COLD_BREAK_EVEN = "break-even, from one cold call"
IDIOMATIC_LIMIT = 1.05  # a ratio above it is printed bold


def identity(tables: Tables) -> str:
    """Return a table of the errors by framework, execution, arm and pass.

    A row has the worst case over workloads, threads and quantities.
    """
    rows, program = [], [*ENGINE, *ARM, "pass"]
    cells = tables.identity.drop_duplicates([*CONFIG, "workload", "pass", *ARM])
    gates = {key: _gate_counts(part) for key, part in cells.groupby(program, sort=False).fp64_gate}
    for key, part in tables.identity.groupby(program, sort=True):
        *keys, recurrence, projection, pass_ = key
        bound_share = (part.rel_error / part.bound.where(part.bound > 0)).max()
        equal = part.bitwise_equal_to_batched.dropna()
        bitwise = "–" if equal.empty else f"{int(equal.sum())} of {len(equal)}"
        ulp = "–" if equal.empty else int(part.max_ulp.max())
        fp64_error = part.fp64_rel_error.max()
        wrong_count = int((part.status != "ok").sum())
        cells = [
            "not checked" if math.isnan(fp64_error) else f"{fp64_error:.1e}",
            "–" if math.isnan(bound_share) else f"{bound_share:.2f}",
        ]
        place = [execution_name(*keys), recurrence, projection, pass_, gates[key]]
        rows.append([*place, *cells, bitwise, ulp, "ok" if not wrong_count else f"wrong in {wrong_count}"])
    columns = ["execution", "recurrence", "projection", "pass", "fp64 gate: cells"]
    errors = ["fp64 error", "error / bound", "bitwise equal to batched", "max ULP to batched", "gates"]
    return table([*columns, *errors], rows)


def sampled_checks(tables: Tables) -> list[str]:
    """Return what was checked on a sample of its sequences: the workload, the pass, and how many of how many."""
    return sorted({block.sample_text for block in tables.blocks if block.sample_text})


def _gate_counts(cell_gates: pd.Series) -> str:
    """Return how many cells passed the fp64 gate in which way, as text."""
    return ", ".join(f"{gate}: {count}" for gate, count in cell_gates.value_counts(sort=False).items())


def first_calls(tables: Tables) -> str:
    """Return a table of what a loop's first call costs, and of the calls after which it breaks even with eager.

    Break-even is against the same framework's eager, unrolled form. Both first calls are those of the first process,
    whose caches were empty. There is one of each, so a break-even has no interval.
    """
    names = [workload.name for workload in tables.study.workloads]
    frame = tables.times[tables.times.recurrence.isin(LOOPS) & tables.times.workload.isin(names)]
    columns = ["framework", "device", "precision", "threads", "workload", "pass", "projection"]
    first_s = frame[frame.first_call_s.notna()].set_index([*columns, "execution", "recurrence"]).first_call_s
    steady_s = frame.groupby([*columns, "execution", "recurrence"], sort=True).median_s.median()
    rows = []
    for key, cost_s in first_s.sort_index().items():
        *place, execution, recurrence = key
        if execution == "eager" or place[-1] not in ("in_loop", BATCHED):
            continue
        eager_key = (*place, "eager", "unrolled")
        later_s, eager_s = steady_s.get(key), steady_s.get(eager_key)
        break_even = _break_even(cost_s, later_s, first_s.get(eager_key), eager_s)
        framework, device, precision, threads, *labels = place
        name = f"{execution_name(framework, execution, device, precision)} {recurrence}"
        program = with_threads(name, device, threads)
        rows.append([program, *labels, seconds(cost_s), seconds(later_s), seconds(eager_s), break_even])
    header = ["", "workload", "pass", "projection", "first call", "later call", "eager call", COLD_BREAK_EVEN]
    return table(header, rows)


def _break_even(first_s: float, later_s: float | None, eager_first_s: float | None, eager_later_s: float | None) -> str:
    """Return the number of calls after which compiling breaks even with eager, as text to two digits.

    It is the least n with first + (n-1) later <= eager_first + (n-1) eager_later. One cold call of each is too few for
    more digits.
    """
    if (
        later_s is None
        or eager_later_s is None
        or eager_first_s is None
        or any(map(math.isnan, (later_s, eager_later_s)))
    ):
        return "–"
    if later_s >= eager_later_s:
        return "never: eager is as fast"
    calls = max(1, math.ceil(1 + (first_s - eager_first_s) / (eager_later_s - later_s)))
    rounded = int(float(f"{calls:.1e}"))
    return f"{'about ' if calls >= 100 else ''}{pluralize(rounded, 'call')}"


def control_table(tables: Tables) -> str:
    """Return a table of the A/A control: how many of its intervals hold 1, and how wide they are."""
    frame = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    rows = []
    for (*keys, pass_), part in frame.groupby([*ENGINE, "pass"], sort=True):
        half_widths = half_width(part.ci_low, part.ci_high)
        low, high = part.ratio.min(), part.ratio.max()
        hits = f"{int(part.trusted.sum())} of {len(part)}"
        rows.append(
            [
                execution_name(*keys),
                pass_,
                f"{low:.3f} to {high:.3f}",
                hits,
                f"±{half_widths.median():.1%}",
                f"±{half_widths.max():.1%}",
            ]
        )
    columns = ["", "pass", "A/A ratios", "95% interval holds 1", "median half-width", "widest"]
    return table(columns, rows)


def false_alarm_table(tables: Tables) -> str:
    """Return a table of how often the A/A interval misses 1, by framework and in all: a 95% interval's false alarms."""
    frame = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    rows = []
    for framework, part in [*frame.groupby("framework", sort=True), ("all", frame)]:
        if len(part):
            miss_rate, low, high = rate_interval(int((~part.trusted).sum()), len(part))
            rows.append([framework, len(part), int((~part.trusted).sum()), f"{miss_rate:.1%} [{low:.1%}, {high:.1%}]"])
    return table(["framework", "controls", "that miss 1", "rate [95% interval]"], rows)


def sample_quality_table(tables: Tables) -> str:
    """Return a table of the samples' quality, and of what calling and measuring themselves cost."""
    frame = sample_quality.quality_table(tables.blocks, tables.study.margin)
    if frame.empty:
        return "No samples were taken."
    null_calls_s = null_calls(tables)
    rows = []
    for (*keys, pass_), part in frame.groupby([*ENGINE, "pass"], sort=True):
        flags = part[part.drifts.notna()]
        shares = [f"{int(flags[name].sum())} of {len(flags)}" if len(flags) else "–" for name in ("drifts", "bimodal")]
        correlation = f"{flags.autocorrelation.median():.2f}" if len(flags) else "–"
        outliers = f"{part.outliers.sum() / part.samples.sum():.1%}"
        above = f"{flags.above.median():.0%}" if len(flags) else "–"
        overhead = (part.own_ns / part.median_ns).max()
        costs = [seconds(null_calls_s.get((*keys, pass_))), "–" if math.isnan(overhead) else f"{overhead:.2%}"]
        rows.append([execution_name(*keys), pass_, len(part), *shares, correlation, above, outliers, *costs])
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
    """Return the median null call in seconds, by framework, execution, device, precision and pass."""
    times_ns: dict[tuple[str, ...], list[float]] = {}
    for block in tables.blocks:
        if block.floors.null_ns:
            times_ns.setdefault((*block.configuration.engine, block.pass_), []).append(block.floors.null_ns)
    return {place: statistics.median(place_ns) / 1e9 for place, place_ns in times_ns.items()}


def absent_cells(tables: Tables) -> str:
    """Return a table of the cells that were not measured, grouped by status and reason."""
    frame = tables.times[tables.times.status != "ok"]
    rows = []
    for (status, reason), part in frame.groupby(["status", "reason"], sort=True, dropna=False):
        cells = part.drop_duplicates([*CONFIG, "workload", "pass", *ARM])
        axes = [
            _distinct_values(cells, name)
            for name in ("framework", "device", "threads", "execution", "workload", "pass")
        ]
        rows.append(
            [
                status,
                reason,
                len(cells),
                *axes,
                _distinct_values(cells, "recurrence"),
                _distinct_values(cells, "projection"),
            ]
        )
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


def _distinct_values(frame: pd.DataFrame, column: str) -> str:
    """Return the distinct values of a column as text; a dash if the axis does not apply."""
    values = sorted({f"{value:g}" if isinstance(value, float) else str(value) for value in frame[column].dropna()})
    return ", ".join(values) or "–"


def threads_used(tables: Tables) -> str:
    """Return a table that proves the thread counts: processor time over wall time of a large product."""
    cores_used: dict[tuple[str, str, int], list[float]] = {}
    for block in tables.blocks:
        if block.threads_used is not None:
            c = block.configuration
            cores_used.setdefault((c.framework, c.execution, c.threads), []).append(block.threads_used)
    rows = [[*key, f"{min(cores):.2f} to {max(cores):.2f}"] for key, cores in sorted(cores_used.items())]
    return table(["framework", "execution", "threads set", "cores used"], rows)


def numeric_settings(tables: Tables) -> str:
    """Return a table of the frameworks' numeric settings, as each worker read them back.

    Returns "" for records that are older than these settings.
    """
    settings = {
        (block.configuration.framework, block.configuration.device, block.configuration.precision, name, value)
        for block in [*tables.blocks, *tables.checks]
        for name, value in block.numerics.items()
    }
    return table(["framework", "device", "precision", "setting", "value"], sorted(settings)) if settings else ""


def gpu_states(tables: Tables) -> str:
    """Return a table of the GPU's state around the blocks: clocks, temperature, other processes, throttling.

    Returns "" if no block ran on a GPU.
    """
    rows = []
    if not any(block.configuration.device == "gpu" for block in tables.blocks):
        return ""
    gpu_blocks = [block for block in tables.blocks if block.gpu]
    if not gpu_blocks:
        return "NVML could not be asked: its clocks, its temperature and who else used it are not known."
    for keys in sorted({block.configuration.engine for block in gpu_blocks}):
        blocks = [block for block in gpu_blocks if block.configuration.engine == keys]
        states = [state for block in blocks if block.gpu for state in block.gpu.values()]
        counts = [gpu.other_process_count(state) for state in states]
        throttled_blocks = [block for block in blocks if block.throttled]
        reasons = ", ".join(sorted({reason for block in throttled_blocks for reason in block.throttled}))
        ranges = [
            _range(getattr(state, name) for state in states) for name in ("sm_mhz", "memory_mhz", "temperature_c")
        ]
        throttled = f"{len(throttled_blocks)} of {len(blocks)}" + (f": {reasons}" if reasons else "")
        rows.append(
            [
                execution_name(*keys),
                *ranges,
                max((count for count in counts if count is not None), default="not reported"),
                throttled,
            ]
        )
    columns = ["", "SM clock, MHz", "memory clock, MHz", "°C", "other processes, at most", "blocks throttled"]
    return table(columns, rows)


def _range(values: Iterable[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{min(numbers):g} to {max(numbers):g}" if numbers else "not reported"


def environments(by_framework: dict[str, list[WorkerEnvironment]], devices: Iterable[str]) -> str:
    """Return a table of the environment variables that each framework's workers were started with on `devices`."""
    rows = [
        [
            name,
            environment.device,
            environment.threads,
            " ".join(f"`{key}={value}`" for key, value in sorted(environment.variables.items())),
        ]
        for name, environments in sorted(by_framework.items())
        for environment in environments
        if environment.device in devices
    ]
    return table(["framework", "device", "threads", "environment"], rows)


def kill_summary(result: Row) -> str:
    """Say what became of a run that was killed again and again."""
    victims = " and ".join(f"{count} times its {name}" for name, count in result["kills"].items())
    end = "the same blocks with the same statuses as" if result["same_blocks"] else "**other blocks than**"
    if not result["finished"]:
        end = "**no end, and to other blocks than**"
    return (
        f"A run of {result['blocks']} blocks was killed (`kill -9`) at random instants, {victims}, each time gone on "
        f"with by `--resume`, and came to {end} a run left alone. "
        f"Records lost: {result['lost']}; doubled: {result['doubled']}; "
        f"processes left running: {result['left_running']}."
    )


def repeat_summary(result: Row) -> str:
    """Say how often two runs of a study agree on its gaps, as scripts/repeat.py counted."""
    (first, first_times), (second, second_times) = result["runs"].items()
    difference = f" They are not of the same {' and '.join(result['other'])}." if result["other"] else ""
    start = (
        f"{first} ({first_times['began']} to {first_times['ended']}) "
        f"and {second} ({second_times['began']} to {second_times['ended']})"
    )
    rows = []
    for name, group in result["groups"].items():
        share, low, high = rate_interval(group["beyond"], group["gaps"])
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
    return f"{start}.{difference}\n\n{table(columns, rows)}"


def alternation_bias(gaps: list[Row]) -> str:
    """Return a table of gaps with arms that alternate in a process, and with each arm in processes of its own."""
    kinds = ["alternating", "apart", "apart / alternating"]
    rows = []
    for row in gaps:
        framework, execution, recurrence, contender, pass_, *workload = row["cell"]
        program = f"{framework} {execution} {recurrence}, {' '.join([*(workload or ['book']), pass_])}"
        place = [program, row.get("memory", "default"), f"{contender}/batched", row["processes"]]
        rows.append([*place, *("{:.3f} [{:.3f}, {:.3f}]".format(*row[kind]) for kind in kinds)])
    return table(["", "memory", "gap", "processes of each kind", *kinds], rows)


def alternation_sentence(gaps: list[Row]) -> str:
    """Say how often a gap differs between arms that alternate and arms in processes of their own."""
    biased = [row for row in gaps if not row["apart / alternating"][1] <= 1 <= row["apart / alternating"][2]]
    count = f"**{len(biased)} of {len(gaps)} gaps**" if biased else f"none of {len(gaps)} gaps"
    widths = [(high / low) ** 0.5 - 1 for _, low, high in (row["apart / alternating"] for row in gaps)]
    return (
        f"Arms that alternate in a process, and arms in processes of their own, disagree on {count}; the median gap "
        f"could have shown a disagreement of more than {statistics.median(widths):.0%}"
    )


def idiomatic_table(rows: list[dict[str, str]]) -> str:
    """Return a table of each arm against the shortest idiomatic program for it; "" if none was measured."""
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
