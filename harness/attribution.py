"""Where the time goes: what each projection adds to the loop alone, what one issued product costs, how far a call is
from its floor; and how far measured gaps are from what was forecast. Pure: the same records, the same tables.
"""

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from harness import forecast
from harness.forecast import Seen
from harness.gaps import GAP_KEYS, SEAT, block_key, usable
from harness.measure import median_s
from harness.records import Record
from harness.roof import MEASURED_IN, Roof, floor_s, least, roof
from harness.stats import LEVEL
from harness.study import Study

COSTS = [*GAP_KEYS, "none_s", "cost_s", "low_s", "high_s", "product_s", "call_s", "floor_s", "trusted"]
SLOPES = [*SEAT, "pass", "recurrence", "product_s", "low_s", "high_s", "roof_s", "once_s", "sizes", "processes"]
SCORES = [*GAP_KEYS, "forecast", "ratio", "ci_low", "ci_high", "verdict", "error", "share", "forecast_share"]
ISSUES_EACH = ("in_loop", "per_step")  # projections that issue a product a step


def costs(blocks: list[Record], added: pd.DataFrame, study: Study) -> pd.DataFrame:
    """What each projection adds to the loop alone, in seconds: a row for each ratio to none that was measured.

    `cost_s`, with its 95% interval, is none's median time by the ratio less 1; `product_s` the same for each of T
    products, where so many are issued; `call_s` the whole call's median; `floor_s` what no call can be faster than: its
    roofline and the null call.
    """
    calls, floors = _calls(blocks), _floors(blocks)
    known = {workload.name: workload for workload in [*study.workloads, *study.swept]}
    rows = []
    for row in added.to_dict("records"):
        place, name = tuple(row[key] for key in (*SEAT, "workload", "pass")), f"{row['recurrence']}_{row['contender']}"
        none_s = calls[(*place, f"{row['recurrence']}_none")]
        cost, low, high = (none_s * (row[column] - 1) for column in ("ratio", "ci_low", "ci_high"))
        workload = known[row["workload"]]
        each = cost / workload.T if row["contender"] in ISSUES_EACH else math.nan
        floor = floors.get(place[: len(SEAT)])
        least_s = floor(workload, row["pass"], row["contender"]) if floor else math.nan
        found = {"none_s": none_s, "cost_s": cost, "low_s": low, "high_s": high, "product_s": each}
        rows.append({**row, **found, "call_s": calls[(*place, name)], "floor_s": least_s})
    return pd.DataFrame(rows, columns=COSTS)


def _calls(blocks: list[Record]) -> dict[tuple[Any, ...], float]:
    """Seconds of a call: the median over processes of each one's median; by seat, workload, pass and arm."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for block in blocks:
        for name, arm in block["arms"].items():
            if arm["samples_ns"] and arm["status"] == "ok":
                found.setdefault((*block_key(block), name), []).append(median_s(arm))
    return {key: statistics.median(each) for key, each in found.items()}


def _floors(blocks: list[Record]) -> dict[tuple[Any, ...], Any]:
    """By seat, what gives a call's floor in seconds: from the first process's rates, and the median null call."""
    rates: dict[tuple[Any, ...], Roof] = {}
    nulls: dict[tuple[Any, ...], list[float]] = {}
    for block in blocks:
        seat = tuple(block[name] for name in SEAT)
        if block.get("rates") and block["precision"] in MEASURED_IN:
            rates.setdefault(seat, roof(block["rates"]))
        if block.get("floors") and block["floors"]["null_ns"]:
            nulls.setdefault(seat, []).append(block["floors"]["null_ns"])
    null_s = {seat: statistics.median(each) / 1e9 for seat, each in nulls.items()}

    def of(seat: tuple[Any, ...]) -> Any:
        return lambda workload, pass_, form: null_s.get(seat, 0.0) + floor_s(rates[seat], workload, pass_, form)

    return {seat: of(seat) for seat in rates}


def slopes(blocks: list[Record], study: Study) -> pd.DataFrame:
    """What one product issued in the loop costs: the slope over T of what in_loop adds to none, in the same rounds.

    A line by least squares, weighted by none's time, through one point for each T of the sweep and process; the 95%
    interval is Student's t on what the points leave over. `roof_s` is the roofline's part of it; `once_s` what
    projecting once adds, the median over the same points.
    """
    centre = study.sweep
    if centre is None:
        return pd.DataFrame(columns=SLOPES)
    other = {name: value for name, value in centre.model_dump().items() if name not in ("name", "T")}
    names = {w.name for w in study.swept if other.items() <= w.model_dump().items()}
    points: dict[tuple[Any, ...], list[Seen]] = {}
    roofs: dict[tuple[Any, ...], float] = {}
    processes: dict[tuple[Any, ...], set[int]] = {}
    for block in blocks:
        if block["workload"]["name"] in names and not forecast.missing(block):
            key = (*(block[name] for name in (*SEAT, "pass")), forecast.recurrence_of(block))
            points.setdefault(key, []).append(forecast.seen(block))
            processes.setdefault(key, set()).add(block["replicate"])
            if block.get("rates") and block["precision"] in MEASURED_IN:
                roofs.setdefault(key, least(roof(block["rates"]), centre, block["pass"]).one)
    rows = []
    for key, each in points.items():
        sizes = {point.workload.T for point in each}
        if len(sizes) > 1:
            once = statistics.median(point.batched for point in each)
            numbers = [roofs.get(key, math.nan), once, len(sizes), len(processes[key])]
            rows.append([*key, *_slope(each), *numbers])
    return pd.DataFrame(rows, columns=SLOPES).sort_values(SLOPES[:7], kind="stable", ignore_index=True)


def _slope(points: list[Seen]) -> tuple[float, float, float]:
    """The slope and its interval; no interval from two points."""
    columns = ([point.workload.T, point.none, point.in_loop] for point in points)
    steps, none, cost = (np.array(column, float) for column in zip(*columns, strict=True))
    if len(points) < 3:
        return float(np.polyfit(steps, cost, 1, w=1 / none)[0]), math.nan, math.nan
    (slope, _), covariance = np.polyfit(steps, cost, 1, w=1 / none, cov=True)
    half = float(special.stdtrit(len(points) - 2, 1 - LEVEL / 2)) * math.sqrt(covariance[0, 0])
    return float(slope), float(slope - half), float(slope + half)


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
