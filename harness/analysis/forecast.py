"""Predict what a configuration's programs take, from two sizes of one workload, before any other is measured.

A call of an arm is predicted to take, over T steps,

    none     call + T (step + least.step)
    in_loop  none + in_loop + T (product + least.in_loop) + least.loss
    batched  none + after + least.batched + least.loss

where `least` is the roofline's times (harness.analysis.roofline). The five others are costs of everything else:
dispatch, copies, loops. They are solved for from the sweep's first two points, which differ in T alone, once for each
pass. The costs of a call and of a step are 0 where the roofline alone is above what was measured. The costs of
projecting may be negative, where projecting saves something else.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from harness.analysis.roofline import MEASURED_IN, Roofline, roofline_from_rates, roofline_times
from harness.records.samples import call_times_ns
from harness.records.schema import BlockRecord, Costs, ForecastRecord, PredictedTimes
from harness.records.store import digest
from harness.study.configuration import Configuration
from harness.study.matrix import Cell
from harness.study.study import SWEPT, Study, Workload

LEAST = 0.2  # of the time of the recurrence alone; no form is predicted to take less


@dataclass(frozen=True)
class SweepPoint:
    """Measured point: its workload, seconds of none, and what the two projections add to none in the same rounds."""

    workload: Workload
    none: float
    in_loop: float
    batched: float


def forecast_record(
    configuration: Configuration, blocks: list[BlockRecord], cells: Iterable[Cell], study: Study
) -> ForecastRecord:
    """Return the forecast record of a configuration's `cells`, none of them measured yet, fitted on `blocks`.

    Its status is "unavailable", with the reason, where the blocks cannot be fitted on.
    """
    recurrence = recurrence_of(blocks[0])
    record = ForecastRecord(
        key=digest([configuration.row(), recurrence, study.seed]),
        kind="forecast",
        status="ok",
        reason="",
        configuration=configuration,
        recurrence=recurrence,
        costs=[],
        expected=[],
    )
    if reason := _unavailable_reason(configuration, blocks):
        return record.model_copy(update={"status": "unavailable", "reason": reason})
    assert blocks[0].rates is not None
    roofline = roofline_from_rates(blocks[0].rates)
    plan = [cell for cell in cells if cell.configuration == configuration and cell.arm.recurrence == recurrence]
    for pass_ in study.passes:
        costs = solve_costs([sweep_point(block) for block in blocks if block.pass_ == pass_], roofline, pass_)
        record.costs.append(costs)
        workloads = _forecast_workloads([cell for cell in plan if cell.pass_ == pass_])
        record.expected.extend(predict_times(costs, roofline, workload) for workload in workloads)
    return record


def solve_costs(points: list[SweepPoint], roofline: Roofline, pass_: str) -> Costs:
    """Solve for the costs of two points with different T."""
    short, long = sorted(points, key=lambda point: point.workload.T)
    steps, extra_steps = long.workload.T, long.workload.T - short.workload.T
    floors = [roofline_times(roofline, point.workload, pass_) for point in (short, long)]
    step = max((long.none - short.none) / extra_steps - floors[1].step, 0.0)
    pairs = list(zip((short, long), floors, strict=True))
    short_s, long_s = (point.in_loop - floor.loss for point, floor in pairs)
    product = (long_s - short_s) / extra_steps - floors[1].in_loop
    after_s = statistics.mean(point.batched - floor.batched - floor.loss for point, floor in pairs)
    return Costs(
        pass_=pass_,
        call_s=max(long.none - steps * (step + floors[1].step), 0.0),
        step_s=step,
        in_loop_s=long_s - steps * (product + floors[1].in_loop),
        product_s=product,
        after_s=after_s,
    )


def predict_times(costs: Costs, roofline: Roofline, workload: Workload) -> PredictedTimes:
    """Return the predicted seconds of a call with each projection, at least `LEAST` of the recurrence's alone."""
    floor = roofline_times(roofline, workload, costs.pass_)
    none = costs.call_s + workload.T * (costs.step_s + floor.step)
    in_loop = none + costs.in_loop_s + workload.T * (costs.product_s + floor.in_loop) + floor.loss
    batched = none + costs.after_s + floor.batched + floor.loss
    minimum = LEAST * none
    return PredictedTimes(
        workload=workload.name,
        pass_=costs.pass_,
        none_s=none,
        in_loop_s=max(in_loop, minimum),
        batched_s=max(batched, minimum),
    )


def sweep_point(block: BlockRecord) -> SweepPoint:
    """Return the point of a sweep's block that nothing is missing from."""
    names = [f"{recurrence_of(block)}_{projection}" for projection in SWEPT]
    none, *forms = (times_ns / 1e9 for times_ns in call_times_ns(block, names).values())
    medians = np.median(np.stack([none, *(form - none for form in forms)]), axis=1)
    return SweepPoint(block.workload, *medians.tolist())


def missing_form(block: BlockRecord) -> str:
    """Return the first form that a sweep's block has no times of, with the reason, or nothing when it has all."""
    for projection in SWEPT:
        arm = block.arms.get(name := f"{recurrence_of(block)}_{projection}")
        if not arm or not arm.has_times:
            reason = arm.reason if arm else "it is not there"
            return f"{name}, {block.workload.name} {block.pass_}, and {reason}"
    return ""


def recurrence_of(block: BlockRecord) -> str:
    """Return the only recurrence of a sweep's block."""
    return next(name.partition("_")[0] for name in block.arms)


def _unavailable_reason(configuration: Configuration, blocks: list[BlockRecord]) -> str:
    """Return why the blocks cannot be fitted on, or nothing when they can."""
    if configuration.precision not in MEASURED_IN:
        return "rates are measured of float32 alone"
    if form := next(filter(None, map(missing_form, blocks)), ""):
        return f"it is fitted on {form}"
    return "" if blocks[0].rates else "no rates were measured"


def _forecast_workloads(cells: list[Cell]) -> list[Workload]:
    """Return the workloads that both forms are planned for, in the plan's order."""
    in_loop, batched = ({c.workload: None for c in cells if c.arm.projection == form} for form in SWEPT[1:])
    return [workload for workload in in_loop if workload in batched]
