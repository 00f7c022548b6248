"""Where the time goes: what each projection adds to the loop alone, what one issued product costs, how far a call is
from its floor; and how far measured gaps are from what was forecast. Pure: the same records, the same tables.

Costs and slopes are told of each process by itself, and their intervals are over processes (harness.stats): what none
took there is part of each, and so is its error. Their variances are moderated as those of gaps are, in parts of the
whole call's time: its noise is much the same whatever a call takes.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness import forecast, stats
from harness.forecast import Seen
from harness.gaps import ARM, DEVICE, GAP_KEYS, SEAT, Found, against_none, paired, priors, usable
from harness.measure import calls_ns
from harness.records import Record
from harness.roof import MEASURED_IN, Roof, floor_s, least, roof
from harness.study import Study, Workload

COSTS = [*GAP_KEYS, "none_s", "cost_s", "low_s", "high_s", "product_s", "call_s", "floor_s", "trusted"]
SLOPES = [*SEAT, "pass", "recurrence", "product_s", "low_s", "high_s", "roof_s", "once_s", "sizes", "processes"]
SCORES = [*GAP_KEYS, "forecast", "ratio", "ci_low", "ci_high", "verdict", "error", "share", "forecast_share"]
Interval = tuple[float, float, float]  # a mean over processes, and its 95% interval
ISSUES_EACH = ("in_loop", "per_step")  # projections that issue a product a step


def costs(blocks: list[Record], times: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """What each projection adds to the loop alone, in seconds: a row for each ratio to none that was measured.

    `cost_s`, with its 95% interval, is the mean over processes of what a call took longer than none in the same rounds;
    `product_s` the same for each of T products, where so many are issued; `none_s` and `call_s` the medians of none and
    of the whole call; `floor_s` what no call can be faster than: its roofline and the null call.
    """
    calls, floors = times.groupby([*SEAT, "workload", "pass", *ARM]).median_s.median().to_dict(), _floors(blocks)
    intervals = _intervals(blocks, calls)
    known = {block["workload"]["name"]: block["workload"] for block in blocks}
    workloads = {name: Workload(**workload) for name, workload in known.items()}
    rows = []
    for row in added.to_dict("records"):
        place = tuple(row[key] for key in (*SEAT, "workload", "pass", "recurrence"))
        cost, low, high = intervals[(*place, row["contender"], "none")]
        workload = workloads[row["workload"]]
        each = cost / workload.T if row["contender"] in ISSUES_EACH else math.nan
        floor = floors.get(place[: len(SEAT)])
        least_s = floor(workload, row["pass"], row["contender"]) if floor else math.nan
        found = {"none_s": calls[(*place, "none")], "cost_s": cost, "low_s": low, "high_s": high, "product_s": each}
        rows.append({**row, **found, "call_s": calls[(*place, row["contender"])], "floor_s": least_s})
    return pd.DataFrame(rows, columns=COSTS)


def _intervals(blocks: list[Record], calls: dict[tuple[Any, ...], float]) -> dict[tuple[Any, ...], Interval]:
    """Seconds that each form adds to none, by GAP_KEYS' values and "none"; `calls`: each arm's median seconds."""
    samples: Found = {}
    for key, processes in paired(blocks, against_none).items():
        call_ns = 1e9 * calls[key[:-1]]
        samples[key] = stats.of_rounds([(form - none) / call_ns for form, none in processes]), math.nan
    before = priors(samples)
    shares = {key: stats.interval(sample, before[key[DEVICE]]) for key, (sample, _) in samples.items()}
    return {key: _scaled(share, calls[key[:-1]]) for key, share in shares.items()}


def _scaled(interval: Interval, factor: float) -> Interval:
    mean, low, high = interval
    return factor * mean, factor * low, factor * high


def _floors(blocks: list[Record]) -> dict[tuple[Any, ...], Any]:
    """By seat, what gives a call's floor in seconds: from the first process's rates, and the median null call."""
    rates: dict[tuple[Any, ...], Roof] = {}
    nulls: dict[tuple[Any, ...], list[float]] = {}
    for block in blocks:
        seat = tuple(block[name] for name in SEAT)
        if block.get("rates") and block["precision"] in MEASURED_IN:
            rates.setdefault(seat, roof(block["rates"]))
        if null_ns := block.get("floors", {}).get("null_ns"):
            nulls.setdefault(seat, []).append(null_ns)
    null_s = {seat: statistics.median(each) / 1e9 for seat, each in nulls.items()}

    def of(seat: tuple[Any, ...]) -> Any:
        return lambda workload, pass_, form: null_s.get(seat, 0.0) + floor_s(rates[seat], workload, pass_, form)

    return {seat: of(seat) for seat in rates}


@dataclass(frozen=True)
class Point:
    """One process's medians at one T, and the sampling variance of in_loop's."""

    seen: Seen
    noise: float


Key = tuple[Any, ...]  # the values of SEAT, the centre's name, the pass, the recurrence, in_loop and none
Points = dict[Key, dict[int, list[Point]]]  # of each process


def slopes(blocks: list[Record], study: Study) -> pd.DataFrame:
    """What one product issued in the loop costs: the slope over T of what in_loop adds to none, in the same rounds.

    Each process has a line of its own by least squares, weighted by none's time, through one point for each T of the
    sweep; `product_s` is their mean, with its 95% interval. `roof_s` is the roofline's part of it; `once_s` what
    projecting once adds, the median over the same points.
    """
    points, roofs = _points(blocks, study)
    steps = {key: _per_step(processes) for key, processes in points.items()}
    samples: Found = {key: (_slope_sample(points[key], step_s), math.nan) for key, step_s in steps.items()}
    before, rows = priors(samples), []
    for key, (sample, _) in samples.items():
        *seat, _, pass_, recurrence, _, _ = key
        medians = [point.seen for process in points[key].values() for point in process]
        once, sizes = statistics.median(seen.batched for seen in medians), {seen.workload.T for seen in medians}
        interval = _scaled(stats.interval(sample, before[key[DEVICE]]), steps[key])
        numbers = [roofs.get(key, math.nan), once, len(sizes), len(points[key])]
        rows.append([*seat, pass_, recurrence, *interval, *numbers])
    return pd.DataFrame(rows, columns=SLOPES).sort_values(SLOPES[:7], kind="stable", ignore_index=True)


def _points(blocks: list[Record], study: Study) -> tuple[Points, dict[Key, float]]:
    """The points of processes that were measured at several T, and the roofline's seconds of one product."""
    centre, points, roofs = study.sweep, Points(), dict[Key, float]()
    if centre is None:
        return points, roofs
    other = {name: value for name, value in centre.model_dump().items() if name not in ("name", "T")}
    names = {w.name for w in study.swept if other.items() <= w.model_dump().items()}
    for block in blocks:
        if block["workload"]["name"] in names and not forecast.missing(block):
            place = (centre.name, block["pass"], forecast.recurrence_of(block), "in_loop", "none")
            key = (*(block[name] for name in SEAT), *place)
            points.setdefault(key, {}).setdefault(block["replicate"], []).append(_point(block))
            if block.get("rates") and block["precision"] in MEASURED_IN:
                roofs.setdefault(key, least(roof(block["rates"]), centre, block["pass"]).one)
    several = {
        key: {number: line for number, line in processes.items() if len({point.seen.workload.T for point in line}) > 1}
        for key, processes in points.items()
    }
    return {key: processes for key, processes in several.items() if processes}, roofs


def _point(block: Record) -> Point:
    """A sweep's block that nothing is missing of."""
    recurrence = forecast.recurrence_of(block)
    in_loop, none = (calls_ns(block["arms"][f"{recurrence}_{form}"]) / 1e9 for form in ("in_loop", "none"))
    return Point(forecast.seen(block), float(stats.median_variance(in_loop - none)))


def _per_step(processes: dict[int, list[Point]]) -> float:
    """Seconds of a step with its projection in the loop, the mean over points."""
    medians = [point.seen for process in processes.values() for point in process]
    return math.fsum((seen.none + seen.in_loop) / seen.workload.T for seen in medians) / len(medians)


def _slope_sample(processes: dict[int, list[Point]], step_s: float) -> stats.Sample:
    """The processes' slopes, in parts of a step's time, and the mean of their sampling variances."""
    slopes, noises = zip(*map(_slope, processes.values()), strict=True)
    return stats.Sample(tuple(slope / step_s for slope in slopes), math.fsum(noises) / len(noises) / step_s**2)


def _slope(points: list[Point]) -> tuple[float, float]:
    """The slope of one process's line by weighted least squares, and its sampling variance from that of the points.

    By exact sums, not by LAPACK, whose last digit is the machine's.
    """
    steps, cost = [point.seen.workload.T for point in points], [point.seen.in_loop for point in points]
    weights = [1 / point.seen.none**2 for point in points]
    mean_step = _mean(steps, weights)
    spread = math.fsum(w * (x - mean_step) ** 2 for w, x in zip(weights, steps, strict=True))
    factors = [w * (x - mean_step) / spread for w, x in zip(weights, steps, strict=True)]
    slope = math.fsum(factor * y for factor, y in zip(factors, cost, strict=True))
    return slope, math.fsum(factor**2 * point.noise for factor, point in zip(factors, points, strict=True))


def _mean(values: Sequence[float], weights: list[float]) -> float:
    return math.fsum(w * value for w, value in zip(weights, values, strict=True)) / math.fsum(weights)


def scores(forecasts: list[Record], gaps: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Every forecast gap that was measured afterwards and may be counted.

    `error` is log(forecast / ratio); `share` what in_loop adds to none, as a fraction of it, and `forecast_share` what
    it was expected to.
    """
    found = gaps[usable(gaps) & (gaps.contender == "in_loop")]
    measured = {tuple(row[key] for key in GAP_KEYS): row for row in found.to_dict("records")}
    added = {tuple(row[key] for key in GAP_KEYS): row["cost_s"] / row["none_s"] for row in costs.to_dict("records")}
    rows = []
    for record in forecasts:
        seat = tuple(record[name] for name in SEAT)
        for each in record["expected"]:
            key = (*seat, each["workload"], each["pass"], record["recurrence"], "in_loop")
            if key not in measured:
                continue
            gap, told = measured[key], each["in_loop_s"] / each["batched_s"]
            shares = {"share": added.get(key, math.nan), "forecast_share": each["in_loop_s"] / each["none_s"] - 1}
            rows.append({**gap, "forecast": told, "error": math.log(told / gap["ratio"]), **shares})
    frame = pd.DataFrame(rows, columns=SCORES)
    return frame.sort_values(GAP_KEYS, kind="stable", ignore_index=True)
