"""Where the time goes: the cost of each projection and of one issued product, the floor of a call, and predictions.

A projection's cost is what it adds to the loop alone. The floor is the lower bound of a call's time: its roofline and
the null call. The scores say how far measured gaps are from their predictions. Pure: the same records give the same
tables.

Costs and slopes are of each process by itself, and their intervals are over processes (harness.analysis.stats). Each is
a difference from none's time in that process, so the error of that time is in it too.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis import forecast, stats
from harness.analysis.forecast import SweepPoint
from harness.analysis.gaps import ARM, GAP_KEYS, configuration_key, is_included, none_pairs, paired_times
from harness.analysis.roofline import MEASURED_IN, Roofline, lower_bound_s, roofline_from_rates, roofline_times
from harness.records.schema import BlockRecord, ForecastRecord
from harness.study.configuration import CONFIG
from harness.study.study import Study

COSTS = [*GAP_KEYS, "none_s", "cost_s", "low_s", "high_s", "product_s", "call_s", "floor_s", "trusted"]
SLOPES = [
    *CONFIG,
    "pass",
    "recurrence",
    "product_s",
    "low_s",
    "high_s",
    "roof_s",
    "once_s",
    "sizes",
    "processes",
]
SCORES = [*GAP_KEYS, "forecast", "ratio", "ci_low", "ci_high", "verdict", "error", "share", "forecast_share"]
Interval = tuple[float, float, float]  # a mean over processes, and its 95% interval
ISSUES_EACH = ("in_loop", "per_step")  # projections that issue a product a step


def projection_costs(blocks: list[BlockRecord], times: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """Return what each projection adds to the loop alone, in seconds, one row per measured gap over none.

    `cost_s`, with its 95% interval, is the mean over processes of what a call took longer than none in the same rounds.
    `product_s` is the same for each of T products, where so many are issued. `none_s` and `call_s` are the medians of
    none and of the whole call. `floor_s` is the lower bound of a call: its roofline and the null call.
    """
    calls, floors = (
        times.groupby([*CONFIG, "workload", "pass", *ARM]).median_s.median().to_dict(),
        _lower_bounds(blocks),
    )
    intervals = _cost_intervals(blocks)
    workloads = {block.workload.name: block.workload for block in blocks}
    rows = []
    for row in added.to_dict("records"):
        place = tuple(row[key] for key in (*CONFIG, "workload", "pass", "recurrence"))
        cost, low, high = intervals[(*place, row["contender"], "none")]
        workload = workloads[row["workload"]]
        product = cost / workload.T if row["contender"] in ISSUES_EACH else math.nan
        floor = floors.get(place[: len(CONFIG)])
        least_s = floor(workload, row["pass"], row["contender"]) if floor else math.nan
        none = calls[(*place, "none")]
        interval = {"none_s": none, "cost_s": cost, "low_s": low, "high_s": high, "product_s": product}
        rows.append({**row, **interval, "call_s": calls[(*place, row["contender"])], "floor_s": least_s})
    return pd.DataFrame(rows, columns=COSTS)


def _cost_intervals(blocks: list[BlockRecord]) -> dict[tuple[Any, ...], Interval]:
    """Return the seconds that each form adds to none, by the values of GAP_KEYS and "none".

    Each process gives its median over rounds.
    """
    return {
        key: stats.mean_interval(
            stats.node_means(
                [m / 1e9 for m in stats.row_medians([p.contender - p.baseline for p in processes])],
                [p.node for p in processes],
            )
        )
        for key, processes in paired_times(blocks, none_pairs).items()
    }


def _lower_bounds(blocks: list[BlockRecord]) -> dict[tuple[Any, ...], Any]:
    """Return functions of a call's floor in seconds, by configuration.

    They use the rates of the first process and the median null call.
    """
    rates: dict[tuple[Any, ...], Roofline] = {}
    nulls: dict[tuple[Any, ...], list[float]] = {}
    for block in blocks:
        configuration = configuration_key(block.configuration)
        if block.rates and block.configuration.precision in MEASURED_IN and configuration not in rates:
            rates[configuration] = roofline_from_rates(block.rates)
        if block.floors.null_ns:
            nulls.setdefault(configuration, []).append(block.floors.null_ns)
    null_s = {configuration: statistics.median(values) / 1e9 for configuration, values in nulls.items()}

    def floor_of(configuration: tuple[Any, ...]) -> Any:
        return lambda workload, pass_, form: (
            null_s.get(configuration, 0.0) + lower_bound_s(rates[configuration], workload, pass_, form)
        )

    return {configuration: floor_of(configuration) for configuration in rates}


Key = tuple[Any, ...]  # the values of CONFIG, the pass and the recurrence
SweepPoints = dict[Key, dict[int, list[SweepPoint]]]  # by process


def slopes(blocks: list[BlockRecord], study: Study) -> pd.DataFrame:
    """Return the cost of one product issued in the loop: the slope over T of what in_loop adds to none.

    What in_loop adds is taken in the same rounds. Each process has a line of its own by least squares, weighted by
    none's time, through one point for each T of the sweep. `product_s` is the mean slope, with its 95% interval.
    `roof_s` is the roofline's part of it, and `once_s` what projecting once adds, the median over the same points.
    """
    points, roofs = _sweep_points(blocks, study)
    nodes = {block.replicate: block.node for block in blocks}
    rows = []
    for key, processes in points.items():
        all_points = [point for line in processes.values() for point in line]
        once = statistics.median(point.batched for point in all_points)
        steps = {point.workload.T for point in all_points}
        units = stats.node_means(list(map(_slope, processes.values())), [nodes[number] for number in processes])
        rows.append([*key, *stats.mean_interval(units), roofs.get(key, math.nan), once, len(steps), len(units)])
    return pd.DataFrame(rows, columns=SLOPES).sort_values(SLOPES[:7], kind="stable", ignore_index=True)


def _sweep_points(blocks: list[BlockRecord], study: Study) -> tuple[SweepPoints, dict[Key, float]]:
    """Return the points of processes that were measured at several T, and the roofline's seconds of one product."""
    centre, points, roofs = study.sweep, SweepPoints(), dict[Key, float]()
    if centre is None:
        return points, roofs
    fixed_sizes = {name: value for name, value in centre.model_dump().items() if name not in ("name", "T")}
    names = {w.name for w in study.swept if fixed_sizes.items() <= w.model_dump().items()}
    for block in blocks:
        if block.workload.name in names and not forecast.missing_form(block):
            key = (*configuration_key(block.configuration), block.pass_, forecast.recurrence_of(block))
            points.setdefault(key, {}).setdefault(block.replicate, []).append(forecast.sweep_point(block))
            if block.rates and block.configuration.precision in MEASURED_IN and key not in roofs:
                roofs[key] = roofline_times(roofline_from_rates(block.rates), centre, block.pass_).in_loop
    lines = {
        key: {number: line for number, line in processes.items() if len({point.workload.T for point in line}) > 1}
        for key, processes in points.items()
    }
    return {key: processes for key, processes in lines.items() if processes}, roofs


def _slope(points: list[SweepPoint]) -> float:
    """Return the slope of one process's line by weighted least squares.

    Uses exact sums, not LAPACK, whose last digit depends on the machine.
    """
    steps, cost = [point.workload.T for point in points], [point.in_loop for point in points]
    weights = [1 / point.none**2 for point in points]
    mean_step = _weighted_mean(steps, weights)
    spread = math.fsum(w * (x - mean_step) ** 2 for w, x in zip(weights, steps, strict=True))
    points_weighted = zip(weights, steps, cost, strict=True)
    return math.fsum(w * (x - mean_step) * y for w, x, y in points_weighted) / spread


def _weighted_mean(values: Sequence[float], weights: list[float]) -> float:
    return math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)


def forecast_scores(forecasts: list[ForecastRecord], gaps: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each predicted gap that was measured afterwards and is included.

    `error` is log(forecast / ratio). `share` is what in_loop adds to none, as a fraction of none, and `forecast_share`
    is its prediction.
    """
    included = gaps[is_included(gaps) & (gaps.contender == "in_loop")]
    measured = {tuple(row[key] for key in GAP_KEYS): row for row in included.to_dict("records")}
    added = {tuple(row[key] for key in GAP_KEYS): row["cost_s"] / row["none_s"] for row in costs.to_dict("records")}
    rows = []
    for record in forecasts:
        configuration = configuration_key(record.configuration)
        for times in record.expected:
            key = (*configuration, times.workload, times.pass_, record.recurrence, "in_loop")
            if key not in measured:
                continue
            gap, ratio = measured[key], times.in_loop_s / times.batched_s
            shares = {"share": added.get(key, math.nan), "forecast_share": times.in_loop_s / times.none_s - 1}
            rows.append({**gap, "forecast": ratio, "error": math.log(ratio / gap["ratio"]), **shares})
    frame = pd.DataFrame(rows, columns=SCORES)
    return frame.sort_values(GAP_KEYS, kind="stable", ignore_index=True)
