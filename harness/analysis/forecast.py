"""Predict what a configuration's programs take, from two sizes of one workload, before any other is measured.

A call of an arm is expected to take, over T steps,

    none     call + T (step + least.step)
    in_loop  none + in_loop + T (product + least.one) + least.loss
    batched  none + after + least.once + least.loss

with `least` the roofline's times (harness.analysis.roofline) and five costs of everything else: dispatch, copies,
loops. They are solved for from the sweep's first two points, which differ in T alone, once for each pass. Those of a
call and of a step are none where the roofline alone is above what was seen; those of projecting may be below nothing,
where projecting saves something else.
"""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from harness.analysis.roofline import MEASURED_IN, Roof, least, roof
from harness.records.samples import calls_ns
from harness.records.schema import Costs
from harness.records.store import Record, digest
from harness.study.matrix import Cell, Configuration
from harness.study.study import SWEPT, Study, Workload

LEAST = 0.2  # of the recurrence alone, in which no form of it is expected to be done


@dataclass(frozen=True)
class Seen:
    """One measured point: its workload, seconds of none, and what the two projections add to it in the same rounds."""

    workload: Workload
    none: float
    in_loop: float
    batched: float


def record(configuration: Configuration, blocks: list[Record], cells: Iterable[Cell], study: Study) -> Record:
    """The forecast of `cells` of a configuration, none of them measured yet, from the blocks that it is told from."""
    recurrence = recurrence_of(blocks[0])
    what: Record = {"kind": "forecast", "status": "ok", "reason": "", **asdict(configuration), "recurrence": recurrence}
    what |= {"costs": [], "expected": []}
    if lacking := _lacking(configuration, blocks):
        what |= {"status": "unavailable", "reason": lacking}
    else:
        top = roof(blocks[0]["rates"])
        mine = [cell for cell in cells if cell.configuration == configuration and cell.arm.recurrence == recurrence]
        for pass_ in study.passes:
            costs = solved([seen(block) for block in blocks if block["pass"] == pass_], top, pass_)
            what["costs"].append(costs.model_dump(by_alias=True))
            for workload in _workloads([cell for cell in mine if cell.pass_ == pass_]):
                what["expected"].append({"workload": workload.name, "pass": pass_, **expected(costs, top, workload)})
    return {"key": digest([asdict(configuration), recurrence, study.seed])} | what


def solved(points: list[Seen], top: Roof, pass_: str) -> Costs:
    """The costs that two points with different T were seen to have."""
    few, many = sorted(points, key=lambda seen: seen.workload.T)
    steps, further = many.workload.T, many.workload.T - few.workload.T
    floors = [least(top, seen.workload, pass_) for seen in (few, many)]
    step = max((many.none - few.none) / further - floors[1].step, 0.0)
    pairs = list(zip((few, many), floors, strict=True))
    few_s, many_s = (seen.in_loop - floor.loss for seen, floor in pairs)
    product = (many_s - few_s) / further - floors[1].one
    after = statistics.mean(seen.batched - floor.once - floor.loss for seen, floor in pairs)
    return Costs.model_validate(
        {
            "pass": pass_,
            "call_s": max(many.none - steps * (step + floors[1].step), 0.0),
            "step_s": step,
            "in_loop_s": many_s - steps * (product + floors[1].one),
            "product_s": product,
            "after_s": after,
        }
    )


def expected(costs: Costs, top: Roof, workload: Workload) -> dict[str, float]:
    """Seconds of a call with each projection, at least some part of the recurrence's alone."""
    floor = least(top, workload, costs.pass_)
    none = costs.call_s + workload.T * (costs.step_s + floor.step)
    in_loop = none + costs.in_loop_s + workload.T * (costs.product_s + floor.one) + floor.loss
    batched = none + costs.after_s + floor.once + floor.loss
    bottom = LEAST * none
    return {"none_s": none, "in_loop_s": max(in_loop, bottom), "batched_s": max(batched, bottom)}


def seen(block: Record) -> Seen:
    """A sweep's block that nothing is missing of, as a point."""
    recurrence = recurrence_of(block)
    none, *forms = (calls_ns(block["arms"][f"{recurrence}_{projection}"]) / 1e9 for projection in SWEPT)
    in_loop, batched = (float(np.median(form - none)) for form in forms)
    return Seen(Workload(**block["workload"]), float(np.median(none)), in_loop, batched)


def missing(block: Record) -> str:
    """Which form a sweep's block has no times of, and why; nothing when it has all."""
    for projection in SWEPT:
        arm = block["arms"].get(name := f"{recurrence_of(block)}_{projection}")
        if not arm or not arm["samples_ns"] or arm["status"] != "ok":
            why = arm["reason"] if arm else "it is not there"
            return f"{name}, {block['workload']['name']} {block['pass']}, and {why}"
    return ""


def recurrence_of(block: Record) -> str:
    """The one recurrence of a sweep's block."""
    return next(name.partition("_")[0] for name in block["arms"])


def _lacking(configuration: Configuration, blocks: list[Record]) -> str:
    """Why nothing can be told from blocks; nothing when it can."""
    if configuration.precision not in MEASURED_IN:
        return "rates are measured of float32 alone"
    if lacking := next(filter(None, map(missing, blocks)), ""):
        return f"it is told from {lacking}"
    return "" if blocks[0].get("rates") else "no rates were measured"


def _workloads(cells: list[Cell]) -> list[Workload]:
    """Those that both forms are planned for, in the plan's order."""
    in_loop, batched = ({c.workload: None for c in cells if c.arm.projection == form} for form in SWEPT[1:])
    return [workload for workload in in_loop if workload in batched]
