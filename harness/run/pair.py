"""A comparison of a user's own functions: check that they are the same, then time them as arms of a study are.

    file -> checks in its own precision and in float64 -> processes: each times all functions in turns, and is recorded

The user's file runs in workers alone (harness.worker.pair_file). harness.analysis.pairs computes the results.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.machine import allocator, environment, folders
from harness.records.pair import (
    PAIR,
    AbsentRecord,
    AgreementRecord,
    PairHeaderRecord,
    PairRecord,
    TimedRecord,
)
from harness.records.schema import ArmTiming
from harness.records.store import digest, latest_records
from harness.run import jobs, session
from harness.run.jobs import PROOFS, RunContext
from harness.run.launch import Worker, WorkerDied, end_all, expect
from harness.run.progress import ProgressReport
from harness.run.schedule import Clock
from harness.study import matrix
from harness.study.configuration import Configuration
from harness.study.matrix import Framework, Job
from harness.study.pair import PairFile, PairStudy
from harness.verify import agreement
from harness.worker.messages import (
    PairCheckAnswer,
    PairCheckRequest,
    PairRefusedAnswer,
    PairTimeAnswer,
    PairTimeRequest,
    Request,
)
from harness.worker.timing import RoundLimits
from impls.interface import USUAL_PASSES

Stage = Callable[[str], None]
NO_GRADIENTS = "the file has no GRADIENTS, whose names pass train takes"
NOT_FOR_FUNCTIONS = "runs the harness's own programs alone"
SOUND = ("ok", "unavailable")
LOST = ("failed", "wrong", "timeout", "unavailable")  # statuses of functions that an execution is not tried with again


@dataclass(frozen=True)
class Checked:
    """A file whose functions were shown to be the same: what it holds, and how that was shown.

    `expected` is the file with the baseline's outputs and bounds, which later workers read.
    """

    file: PairFile
    answer: PairCheckAnswer
    agreement: AgreementRecord
    expected: Path


def compare(
    study: PairStudy, file: PairFile, folder: Path, resume: bool, command: str, clock: Clock = time.monotonic
) -> list[PairRecord]:
    """Compare a file's functions into a folder and return the records.

    Raises UsageError before anything is timed: where the file cannot be used, and where its functions are not the same.
    """
    start_s = clock()
    session.check_folder(folder, resume, PAIR.file)
    threads = matrix.thread_counts(study, environment.cores())
    allocator.variables(study.memory)  # raises UsageError when the allocator is not installed
    frameworks = matrix.select_frameworks(study, session.probe(study, threads))
    configurations, absent = select_configurations(study, frameworks[0], threads[0])
    with folders.private() as private:
        context = session.make_context(study, frameworks, folder, private, {})
        with ProgressReport(0, "processes") as report:
            checked = check(context, file, configurations[0], private / "expected.safetensors", report.stage)
            passes = _passes(study, checked.answer)
            fields = session.header_fields(study, frameworks, {}, command)
            header = make_header(fields, checked, passes, configurations, absent)
            context = replace(context, basis=header.basis.model_dump() | {"sources": header.sources})
            with session.open_store(folder, resume, header, {}, PAIR) as (store, earlier):
                schedule = PairSchedule(context, checked, header, earlier, lambda: clock() - start_s)
                for record in schedule.records(report):
                    store.append(record)
            return store.recover()


def select_configurations(
    study: PairStudy, framework: Framework, threads: int
) -> tuple[list[Configuration], list[AbsentRecord]]:
    """Return the configurations to time in, and the executions that have none, with the reason. Raises UsageError."""
    if reason := framework.devices.get("cpu"):
        raise UsageError(f"functions are compared on a CPU, but {reason}")
    configurations, absent = [], []
    for name, execution in framework.executions.items():
        if not study.selects(framework.name, name):
            continue
        if not execution.takes_functions:
            if study.executions:
                absent.append(AbsentRecord(execution=name, reason=f"{name} {NOT_FOR_FUNCTIONS}"))
        elif execution.missing:
            absent.append(AbsentRecord(execution=name, reason=execution.missing))
        else:
            configurations.append(Configuration(framework.name, "cpu", threads, name, study.precisions[0]))
    if not configurations:
        raise UsageError(f"the functions can be run in no execution here: {absent[0].reason}")
    return configurations, absent


def _passes(study: PairStudy, answer: PairCheckAnswer) -> list[str]:
    """Return the passes to time. Raises UsageError where train is asked for by itself and has no gradients."""
    passes = [pass_ for pass_ in USUAL_PASSES if pass_ in study.passes and (pass_ == "forward" or answer.gradients)]
    if not passes:
        raise UsageError(f"pass train was asked for, but {NO_GRADIENTS}")
    return passes


def make_header(
    fields: dict[str, Any],
    checked: Checked,
    passes: list[str],
    configurations: list[Configuration],
    absent: list[AbsentRecord],
) -> PairHeaderRecord:
    """Return the header, the first record."""
    answer = checked.answer
    header = PairHeaderRecord(
        kind="pair",
        file=checked.file.path.name,
        text=checked.file.text,
        sources=answer.sources,
        functions=answer.functions,
        inputs=answer.inputs,
        gradients=answer.gradients,
        passes=passes,
        configurations=configurations,
        absent=absent,
        agreement=checked.agreement,
        hoisted=answer.hoisted,
        **fields | {"output_check": agreement.METHOD},
    )
    return session.with_key(header)


def check(context: RunContext, file: PairFile, configuration: Configuration, expected: Path, stage: Stage) -> Checked:
    """Have workers check that a file's functions are the same, in their own precision and in float64.

    Raises UsageError where the file cannot be used, and where the functions differ.
    """
    precision, seed = configuration.precision, context.study.seed
    request = PairCheckRequest(
        file=str(file.path.resolve()),
        seed=seed,
        precision=precision,
        hoist=_hoists(context),
        exact=False,
        expected=str(expected),
    )
    requests = [request]
    if precision != "fp64":
        requests.append(request.model_copy(update={"exact": True, "expected": None}))
    own, *exact = _ask_checks(context, configuration, requests, stage)
    answer = _unless_refused(own)
    record = AgreementRecord(method="rounding", rounding=answer.differences)
    if not exact:
        record = AgreementRecord(method="fp64", fp64=answer.differences)
    elif isinstance(exact[0], PairRefusedAnswer):
        record.reason = exact[0].reason
    else:
        record.method, record.fp64 = "fp64", exact[0].differences
    _refuse_different(file, answer, record, precision)
    return Checked(file, answer, record, expected)


def _hoists(context: RunContext) -> bool:
    """Return whether the hoisted baseline is one of the functions."""
    assert isinstance(context.study, PairStudy)
    return context.study.hoist


def _ask_checks(
    context: RunContext, configuration: Configuration, requests: list[PairCheckRequest], stage: Stage
) -> list[PairCheckAnswer | PairRefusedAnswer]:
    """Return the answers to checks, each by a worker of its own, side by side. A worker that dies is a refusal."""

    def ask(request: PairCheckRequest) -> PairCheckAnswer | PairRefusedAnswer:
        precision = "fp64" if request.exact else configuration.precision
        job = Job(replace(configuration, execution="eager", precision=precision), 0, ())
        try:
            with jobs.worker_of(context, job) as worker:
                jobs.open_(context, job, worker)
                answer = worker.ask(request, lambda message: stage(f"{message.arm} in {precision}: {message.what}"))
        except WorkerDied as error:
            reason = f"{Path(request.file).name} ended the process that it ran in: {session.shorten_reason(str(error))}"
            return PairRefusedAnswer(reason=reason)
        return answer if isinstance(answer, PairRefusedAnswer) else expect(answer, PairCheckAnswer)

    with ThreadPoolExecutor(len(requests)) as pool:
        try:
            return list(pool.map(ask, requests))
        except BaseException:  # Ctrl-C too: the threads end when their workers do
            end_all()
            raise


def _unless_refused(answer: PairCheckAnswer | PairRefusedAnswer) -> PairCheckAnswer:
    """Return an answer. Raises UsageError where it is a refusal."""
    if isinstance(answer, PairRefusedAnswer):
        raise UsageError(answer.reason)
    return answer


def _refuse_different(file: PairFile, answer: PairCheckAnswer, record: AgreementRecord, precision: str) -> None:
    """Raise UsageError where a function differs from the baseline: in float64, or by more than rounding may do."""
    baseline = answer.functions[0]
    checks = [("in float64", record.fp64), (f"in {precision}, by more than rounding does", record.rounding)]
    for where, differences in checks:
        for name, quantities in differences.items():
            if excess := agreement.first_excess(quantities.values()):
                raise UsageError(
                    f"{file.path.name}: {name} is not {baseline} {where}: {excess.place} is {excess.value:.6g} and not "
                    f"{excess.true:.6g}, a difference of {excess.error:.2g} where {excess.bound:.2g} is allowed"
                )


def needs_proof(configuration: Configuration) -> bool:
    """Return whether a worker must prove its threads before it times anything."""
    return configuration.device == "cpu"


@dataclass
class PairSchedule:
    """The schedule of a comparison. `earlier`: records of earlier sessions; `spent_s` returns the seconds so far.

    `calls`: calls per sample; `lost`: functions that failed, by configuration and pass.
    """

    context: RunContext
    checked: Checked
    header: PairHeaderRecord
    earlier: list[PairRecord]
    spent_s: Clock
    calls: dict[tuple[Configuration, str], int] = field(default_factory=dict)
    lost: dict[tuple[Configuration, str], list[str]] = field(default_factory=dict)

    def records(self, report: ProgressReport) -> Iterator[TimedRecord]:
        """Yield the records of every pass of every process that is not yet done, while the budget lasts."""
        timed = latest_records(self.earlier, TimedRecord)
        done = {record.key.rpartition("-")[0] for record in timed if record.status == "ok"}
        for record in timed:
            self._note_calls(record)
            self._note_lost(record, ("unavailable",))  # what failed is tried again
        processes = [(job, self._pending(job, done)) for job in self._jobs()]
        report.expect(sum(bool(passes) for _, passes in processes))
        budget_s = self.context.study.budget_s or math.inf
        for job, passes in processes:
            if passes and self.spent_s() < budget_s:
                for record in self._run_process(job, passes, report.stage):
                    self._note_calls(record)
                    self._note_lost(record, LOST)
                    yield record
                report.block(f"[{job.replicate}] {job.configuration}")

    def _jobs(self) -> Iterator[Job]:
        """Yield a job for every process: the replicates one after another, each in a random order."""
        study = self.context.study
        for replicate in range(study.processes or 1):
            order = random.Random(f"{study.seed}/{replicate}").sample(
                self.header.configurations, len(self.header.configurations)
            )
            yield from (Job(configuration, replicate, ()) for configuration in order)

    def _pending(self, job: Job, done: set[str]) -> list[str]:
        return [pass_ for pass_ in self.header.passes if self._key(job, pass_) not in done]

    def _key(self, job: Job, pass_: str) -> str:
        return digest([self.context.basis, job.configuration.row(), job.replicate, pass_])

    def _note_calls(self, record: TimedRecord) -> None:
        """Keep how many calls a sample has, which is the same in all processes."""
        if timed := [arm.calls for arm in record.arms.values() if arm.samples_ns]:
            self.calls.setdefault((record.configuration, record.pass_), max(timed))

    def _note_lost(self, record: TimedRecord, statuses: Sequence[str]) -> None:
        """Keep which functions have one of the statuses; they are not tried again in the configuration and pass."""
        lost = self.lost.setdefault((record.configuration, record.pass_), [])
        lost += [name for name, arm in record.arms.items() if arm.status in statuses and name not in lost]

    def _run_process(self, job: Job, passes: list[str], stage: Stage) -> Iterator[TimedRecord]:
        """Yield the records of a process's passes. It has PROOFS tries to prove its threads."""
        pending = [pass_ for pass_ in passes if self._has_pair(job, pass_)]
        for tries_left in reversed(range(PROOFS if pending else 0)):
            start_s = self.context.clock()
            try:
                with jobs.worker_of(self.context, job) as worker:
                    opened = jobs.open_(self.context, job, worker)
                    fields = {"start_s": self.context.clock() - start_s, "numerics": opened.numerics}
                    while pending:
                        record = self._time(worker, job, pending[0], fields, stage)
                        if record.status == "refused" and not record.arms and tries_left:
                            break  # threads not proven: something else may have kept the cores busy
                        yield record
                        pending.pop(0)
            except WorkerDied as error:
                yield self._died_record(job, pending.pop(0), error)
            if not pending:
                return

    def _has_pair(self, job: Job, pass_: str) -> bool:
        """Return whether the baseline and another function are left in a configuration and pass."""
        lost = self.lost.get((job.configuration, pass_), [])
        return self.header.baseline not in lost and any(name not in lost for name in self.header.contenders)

    def _time(self, worker: Worker, job: Job, pass_: str, fields: dict[str, Any], stage: Stage) -> TimedRecord:
        """Have a worker time one pass, and return its record. Raises WorkerDied."""
        record, start_s = self._empty_record(job, pass_), self.context.clock()
        request = self._request(job, pass_, record.seed)
        label = f"[{job.replicate}] {job.configuration} {pass_}"
        answer = worker.ask(request, lambda message: stage(f"{label} {message.arm}: {message.what}"))
        seconds = self.context.clock() - start_s
        if isinstance(answer, PairRefusedAnswer):  # the file ran before: it depends on more than it is given
            return record.model_copy(update={"status": "failed", "reason": answer.reason, "seconds": seconds})
        timed = expect(answer, PairTimeAnswer)
        results = fields | {
            "seconds": seconds,
            "threads_used": timed.threads_used,
            "timer_ns": timed.timer_ns,
            "differences": timed.differences,
            "arms": timed.arms,
        }
        if timed.proven is False:
            reason = f"threads not proven: {job.configuration.threads} set, {timed.threads_used:.2f} cores used"
            return record.model_copy(update=results | {"status": "refused", "reason": reason})
        reasons = [f"{name}: {arm.reason}" for name, arm in timed.arms.items() if arm.reason]
        status = "ok" if all(arm.status in SOUND for arm in timed.arms.values()) else "failed"
        return record.model_copy(update=results | {"status": status, "reason": "; ".join(reasons)})

    def _request(self, job: Job, pass_: str, seed: int) -> Request:
        study, place = self.context.study, (job.configuration, pass_)
        return PairTimeRequest(
            file=str(self.checked.file.path.resolve()),
            seed=study.seed,
            precision=job.configuration.precision,
            hoist=_hoists(self.context),
            execution=job.configuration.execution,
            pass_=pass_,
            expected=str(self.checked.expected),
            left_out=self.lost.get(place, []),
            rounds=RoundLimits(min(study.rounds_min, study.rounds), study.rounds, study.block_s),
            order_seed=seed,
            calls=self.calls.get(place),
            counted=job.replicate == 0,
            prove=needs_proof(job.configuration),
        )

    def _died_record(self, job: Job, pass_: str, error: WorkerDied) -> TimedRecord:
        """Return the record of a process that died, at the function that it was working on."""
        arms = {error.arm: ArmTiming.without_times(error.status, str(error))} if error.arm else {}
        record = self._empty_record(job, pass_)
        reason = f"{error.arm}: {error}" if error.arm else str(error)
        return record.model_copy(update={"status": "failed", "reason": reason, "arms": arms})

    def _empty_record(self, job: Job, pass_: str) -> TimedRecord:
        """Return the record of a pass that begins now, with the machine's load and its seed, without results."""
        key = self._key(job, pass_)
        return TimedRecord(
            key=key,
            kind="timed",
            status="",
            reason="",
            configuration=job.configuration,
            pass_=pass_,
            replicate=job.replicate,
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            load=environment.load_average(),
            seed=int(digest([self.context.study.seed, key]), 16) % 2**31,
            arms={},
        )
