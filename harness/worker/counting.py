"""Count what a program would launch on a GPU that this machine need not have: compile it ahead, and run nothing."""

import importlib
from collections.abc import Callable

from harness.records.counts import CountRecord, group_alike
from harness.worker.messages import CountAnswer, CountRequest

NOT_AHEAD = "no compiler for a GPU that is not here is known for this framework"


def count(framework: str, request: CountRequest, clock_s: Callable[[], float]) -> CountAnswer:
    """Compile a program for a card and return its count. The first request of a worker also opens the card."""
    try:
        ahead = importlib.import_module(f"impls.{framework}.ahead")
    except ModuleNotFoundError:
        return CountAnswer(missing=NOT_AHEAD)
    try:
        version, card = ahead.open_card(request.card)
    except ahead.Missing as error:
        return CountAnswer(missing=str(error))
    arm, workload = request.arm, request.workload
    record = CountRecord(
        card=request.card,
        framework=framework,
        xla=version,
        triton=request.triton,
        workload=workload.name,
        pass_=request.pass_,
        recurrence=arm.recurrence,
        projection=arm.projection,
    )
    begin = clock_s()
    try:
        program, evidence, _ = ahead.compile_arm(
            workload.shapes, workload.cell, arm, request.pass_, card, request.triton
        )
    except Exception as error:  # whatever a compiler raises is a record, not a crash
        message = (str(error).splitlines() or [""])[0]
        return CountAnswer(record=record.model_copy(update={"reason": f"{type(error).__name__}: {message}"}))
    record.launches, record.graphs = group_alike(program), list(program.graphs)
    record.loops, record.temp_bytes = evidence.loops, evidence.temp_bytes
    record.compile_s = round(clock_s() - begin, 2)
    return CountAnswer(record=record)
