"""Count what XLA would launch on GPUs that this machine does not have, one program after another, in a worker."""

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.machine.folders import make_folder
from harness.records import counts
from harness.records.counts import CountRecord
from harness.run.launch import Worker, WorkerDied, expect
from harness.run.progress import ProgressReport
from harness.study.matrix import Framework
from harness.study.study import USUAL, Workload
from harness.worker.messages import CountAnswer, CountRequest, FactsAnswer, FactsRequest
from impls.interface import IMPOSSIBLE, Arm

FRAMEWORK, EXECUTION = "jax", "xla"
TIMEOUT_S = 600.0  # of a worker's silence: a long unrolled program compiles for a minute
GEMMS = (True, False)  # Triton may multiply, or cuBLASLt does


@dataclass(frozen=True)
class Counting:
    """What is to be counted. Unrolled programs of more steps than `unroll_limit` are left out; None for no limit.

    `projections`: of every recurrence; None for the usual ones of each.
    """

    cards: Sequence[str]
    workloads: Sequence[Workload]
    recurrences: Sequence[str]
    projections: Sequence[str] | None
    passes: Sequence[str]
    unroll_limit: int | None

    def requests(self, without: Container[str]) -> Iterator[CountRequest]:
        """Yield a request for each program; `without`: recurrences, projections and arms that the framework lacks."""
        places = itertools.product(self.recurrences, self.cards, self.workloads, self.passes)
        for recurrence, card, workload, pass_ in places:
            is_long = self.unroll_limit is not None and self.unroll_limit < workload.T
            if recurrence == "unrolled" and is_long:
                continue
            for projection in self.projections or USUAL[recurrence]:
                arm = Arm(recurrence, projection)
                if arm.name in IMPOSSIBLE or any(name in without for name in (recurrence, projection, arm.name)):
                    continue
                for triton in GEMMS:
                    yield CountRequest(card=card, workload=workload, arm=arm, pass_=pass_, triton=triton)


def count(counting: Counting, out: Path) -> list[CountRecord]:
    """Count every program that `out` does not hold yet, and return all that it then holds.

    What it holds is not counted again, whichever version of XLA counted it, unless that failed.

    Raises UsageError where the compiler for GPUs is not installed, or its worker ends.
    """
    make_folder(out)
    stored = counts.read(out) if counts.are_in(out) else []
    complete_keys = {record.key for record in stored if not record.reason}
    framework = _framework()
    without = framework.executions[EXECUTION].without
    requests = [request for request in counting.requests(without) if key_of(request) not in complete_keys]
    try:
        variables = framework.environments[0].variables
        with Worker(FRAMEWORK, variables, TIMEOUT_S) as worker, ProgressReport(len(requests), "programs") as progress:
            for request in requests:
                answer = expect(worker.ask(request), CountAnswer)
                if answer.record is None:
                    raise UsageError(answer.missing)
                counts.append(out, [answer.record])
                progress.block(f"{request.card} {request.workload.name} {request.pass_} {request.arm.name}")
    except WorkerDied as error:
        raise UsageError(f"the worker that compiles did not answer: {error.reason}") from None
    return counts.read(out)


def key_of(request: CountRequest) -> tuple[str | bool, ...]:
    """Return the key of the record that a request asks for."""
    arm = request.arm
    return (request.card, request.triton, request.workload.name, request.pass_, arm.recurrence, arm.projection)


def _framework() -> Framework:
    """Return the framework's facts about itself on a CPU, where its compiler runs. Raises UsageError without it."""
    request = FactsRequest(threads=[1], devices=["cpu"], cache="")
    with Worker(FRAMEWORK, {}, TIMEOUT_S) as worker:
        framework = expect(worker.ask(request), FactsAnswer).framework
    if framework.missing:
        raise UsageError(f"{FRAMEWORK} is needed to count: {framework.missing}")
    return framework
