"""What a seat's programs are expected to take, told from two sizes of one workload before any other is measured.

A call of an arm is expected to take, over T steps,

    none     call + T (step + least.step)
    in_loop  none + in_loop + T (product + least.one)
    batched  none + after + least.once

with `least` the roofline's times (harness.roof) and five costs of everything else: dispatch, copies, loops. They are
solved for from the sweep's first two points, which differ in T alone, once for each pass. Those of a call and of a step
are none where the roofline alone is above what was seen; those of projecting may be below nothing, where projecting
saves something else.
"""

import statistics
from dataclasses import asdict, dataclass

import numpy as np

from harness.plan import Cell, Seat
from harness.records import Record, digest
from harness.roof import Roof, least, roof
from harness.study import CALIBRATING, SWEPT, Study, Workload

LEAST = 0.2  # of the recurrence alone, in which no form of it is expected to be done
MEASURED_IN = ("fp32", "tf32", "as_shipped")  # precisions whose arrays are float32, of which rates are measured


@dataclass(frozen=True)
class Costs:
    """Seconds beside the roofline's: of a call, of a step, of projecting in the loop at all and each time, and of
    projecting after it.
    """

    call_s: float
    step_s: float
    in_loop_s: float
    product_s: float
    after_s: float


@dataclass(frozen=True)
class Seen:
    """One measured point: its workload, seconds of none, and what the two projections add to it in the same rounds."""

    workload: Workload
    none: float
    in_loop: float
    batched: float


def record(seat: Seat, blocks: list[Record], cells: list[Cell], study: Study) -> Record:
    """The forecast of a seat's planned cells, from the blocks of its first process that it is told from."""
    what: Record = {"kind": "forecast", "status": "ok", "reason": "", **asdict(seat)}
    what |= {"recurrence": _recurrence(blocks), "costs": [], "expected": []}
    if seat.precision not in MEASURED_IN:
        what |= {"status": "unavailable", "reason": "rates are measured of float32 alone"}
    elif lacking := _lacking(blocks):
        what |= {"status": "unavailable", "reason": lacking}
    else:
        for pass_ in study.passes:
            top = roof(blocks[0]["rates"])
            costs = solved([_seen(block) for block in blocks if block["pass"] == pass_], top, pass_)
            what["costs"].append({"pass": pass_, **asdict(costs)})
            told = {point.name for point in study.swept[:CALIBRATING]}
            for workload in _workloads(seat, pass_, what["recurrence"], cells):
                if workload.name not in told:
                    row = expected(costs, top, workload, pass_)
                    what["expected"].append({"workload": workload.name, "pass": pass_, **row})
    return {"key": digest([what, study.seed])} | what


def solved(points: list[Seen], top: Roof, pass_: str) -> Costs:
    """The costs that two points with different T were seen to have."""
    few, many = sorted(points, key=lambda seen: seen.workload.T)
    steps, further = many.workload.T, many.workload.T - few.workload.T
    floors = [least(top, seen.workload, pass_) for seen in (few, many)]
    step = max((many.none - few.none) / further - floors[1].step, 0.0)
    product = (many.in_loop - few.in_loop) / further - floors[1].one
    after = statistics.mean(seen.batched - floor.once for seen, floor in zip((few, many), floors, strict=True))
    return Costs(
        call_s=max(many.none - steps * (step + floors[1].step), 0.0),
        step_s=step,
        in_loop_s=many.in_loop - steps * (product + floors[1].one),
        product_s=product,
        after_s=after,
    )


def expected(costs: Costs, top: Roof, workload: Workload, pass_: str) -> dict[str, float]:
    """Seconds of a call with each projection, at least some part of the recurrence's alone."""
    floor = least(top, workload, pass_)
    none = costs.call_s + workload.T * (costs.step_s + floor.step)
    in_loop = none + costs.in_loop_s + workload.T * (costs.product_s + floor.one)
    batched = none + costs.after_s + floor.once
    bottom = LEAST * none
    return {"none_s": none, "in_loop_s": max(in_loop, bottom), "batched_s": max(batched, bottom)}


def _workloads(seat: Seat, pass_: str, recurrence: str, cells: list[Cell]) -> list[Workload]:
    """Those that both forms are planned for, in the plan's order."""
    mine = [c for c in cells if (c.seat, c.pass_, c.arm.recurrence) == (seat, pass_, recurrence)]
    forms = [{c.workload: None for c in mine if c.arm.projection == form} for form in ("in_loop", "batched")]
    return [workload for workload in forms[0] if workload in forms[1]]


def _seen(block: Record) -> Seen:
    recurrence = _recurrence([block])
    none, in_loop, batched = (_per_call(block["arms"][f"{recurrence}_{projection}"]) for projection in SWEPT)
    added = (float(np.median(form - none)) for form in (in_loop, batched))
    return Seen(Workload(**block["workload"]), float(np.median(none)), *added)


def _per_call(arm: Record) -> np.ndarray:
    """Seconds of every sample."""
    return np.array(arm["samples_ns"], float) / arm["calls"] / 1e9


def _lacking(blocks: list[Record]) -> str:
    """Why nothing can be told from blocks; nothing when it can."""
    for block in blocks:
        for projection in SWEPT:
            arm = block["arms"].get(name := f"{_recurrence(blocks)}_{projection}")
            if not arm or not arm["samples_ns"]:
                why = arm["reason"] if arm else "it is not there"
                return f"it is told from {name}, {block['workload']['name']} {block['pass']}, and {why}"
        if not block.get("rates"):
            return "no rates were measured"
    return ""


def _recurrence(blocks: list[Record]) -> str:
    """The one recurrence of a sweep's blocks."""
    return next(name.partition("_")[0] for block in blocks for name in block["arms"])
