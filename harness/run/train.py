"""The chapter's training: every framework trains both forms, from the same weights on the same batches.

    configurations -> the oracle's trajectories -> processes: each trains both forms in turns, is checked and recorded

harness.worker.training does the training itself; harness.analysis.trajectories computes the results from the records.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from harness.analysis.trajectories import excess_reason
from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.store import digest, latest_records
from harness.records.training import (
    TRAINING,
    AbsentExecutionRecord,
    OracleRecord,
    ProcessRecord,
    TrainingConfigurationRecord,
    TrainingHeaderRecord,
    TrainingRecord,
    Trajectory,
)
from harness.run import jobs, session
from harness.run.jobs import PROOFS, OpenWorker, RunContext
from harness.run.launch import WorkerDied, expect
from harness.run.progress import ProgressReport
from harness.study import matrix, weights
from harness.study.configuration import Configuration
from harness.study.matrix import BlockSpec, Cell, Framework, Job
from harness.study.parts import BATCHED
from harness.study.study import NAMED, Study
from harness.worker.messages import OpenAnswer, OracleAnswer, OracleRequest, TrainAnswer, TrainRequest
from harness.worker.training import FORMS
from impls.interface import Arm

BOOK = NAMED["book"]
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
Stage = Callable[[str], None]


@dataclass(frozen=True)
class TrainingSchedule:
    """The schedule of a training: the first replicate's jobs, and the records of earlier sessions."""

    context: RunContext
    first_jobs: list[Job]
    earlier_records: list[TrainingRecord]

    def records(self, report: ProgressReport) -> Iterator[TrainingRecord]:
        """Yield the records of everything not yet done, each as it is done: the oracle's, then the processes'."""
        oracle = next((record for record in self.earlier_records if isinstance(record, OracleRecord)), None)
        processes = latest_records(self.earlier_records, ProcessRecord)
        complete = {record.key.rpartition("-")[0] for record in processes if record.status == "ok"}
        pending = [job for job in self._jobs() if _key(self.context, job) not in complete]
        report.expect(len(pending))
        if oracle is None:
            oracle = oracle_record(self.context, self.first_jobs[0].configuration.framework, report.stage)
            yield oracle
        for job in pending:
            record = run_process(self.context, job, oracle, report.stage)
            report.block(f"[{job.replicate}] {_job_label(job)}: {record.status}")
            yield record

    def _jobs(self) -> Iterator[Job]:
        """Yield a job for every process: the replicates one after another, each in a random order."""
        study = self.context.study
        for replicate in range(study.processes or 1):
            shuffled = random.Random(f"{study.seed}/{replicate}").sample(self.first_jobs, len(self.first_jobs))
            yield from (replace(job, replicate=replicate) for job in shuffled)


def train(study: Study, steps: int, folder: Path, resume: bool, command: str) -> list[TrainingRecord]:
    """Train into a folder and return its records. Raises UsageError before any work is done."""
    session.check_folder(folder, resume, TRAINING.file)
    threads = matrix.thread_counts(study, environment.cores())
    frameworks = matrix.select_frameworks(study, session.probe(study, threads))
    first, absent = select_jobs(study, frameworks, threads[0])
    if not first:
        raise UsageError(f"nothing can be trained here: {absent[0].reason}")
    files = weights.training_files(BOOK, steps, study.seed)
    configurations = [
        TrainingConfigurationRecord(configuration=job.configuration, recurrence=_recurrence(job)) for job in first
    ]
    fields = session.header_fields(study, frameworks, files, command)
    header = session.with_key(
        TrainingHeaderRecord(kind="training", steps=steps, configurations=configurations, absent=absent, **fields)
    )
    with folders.private() as private, session.open_store(folder, resume, header, files, TRAINING) as (store, earlier):
        basis = header.basis.model_dump() | {"training": header.weights}
        context = session.make_context(study, frameworks, folder, private, basis)
        with ProgressReport(0, "processes") as report:
            for record in TrainingSchedule(context, first, earlier).records(report):
                store.append(record)
    return store.recover()


def select_jobs(
    study: Study, frameworks: list[Framework], threads: int
) -> tuple[list[Job], list[AbsentExecutionRecord]]:
    """Return the first replicate's jobs, and the executions that have none, with the reason.

    When the study selects no executions, the jobs are those of the executions in which, by the framework's own account,
    its users train.
    """
    first, absent = [], []
    for framework in frameworks:
        for name, execution in framework.executions.items():
            if not study.selects(framework.name, name):
                continue
            configuration = Configuration(framework.name, "cpu", threads, name, "fp32")
            arms = tuple(Arm(execution.loop, form) for form in ("in_loop", BATCHED))
            cells = [Cell(configuration, BOOK, "train", arm) for arm in arms]
            reasons = [execution.missing, *(matrix.missing_requirement(execution, cell) for cell in cells)]
            if not study.executions and not execution.trains:
                reasons.append(f"few would train so; --execution {name} does")
            if reason := next(filter(None, reasons), None):
                absent.append(AbsentExecutionRecord(framework=framework.name, execution=name, reason=reason))
            else:
                first.append(Job(configuration, 0, (BlockSpec(BOOK, "train", arms, BOOK.T, timed=True),)))
    return first, absent


def oracle_record(context: RunContext, framework: str, stage: Stage) -> OracleRecord:
    """Return the record of the oracle's trajectories, with bounds of the first losses.

    The oracle is NumPy's alone. A worker computes it, because its environment keeps BLAS to one thread: more threads
    make products this small slow. Raises UsageError when the worker dies.
    """
    request = OracleRequest(workload=BOOK, weights=str(context.weights))
    with context.worker(framework, ONE_THREAD, context.study.timeout_s) as worker:
        try:
            answer = expect(worker.ask(request, lambda message: stage(f"the oracle: {message.what}")), OracleAnswer)
        except WorkerDied as error:
            raise UsageError(f"the oracle's trajectory could not be made: {error}") from None
    losses = answer.losses.model_dump()
    return OracleRecord(key=digest("oracle"), kind="oracle", status="ok", reason="", **losses)


def run_process(context: RunContext, job: Job, oracle: OracleRecord, stage: Stage) -> ProcessRecord:
    """Have one process train its configuration's forms, check their losses, and return its record."""
    record = _empty_record(context, job)
    try:
        trained = _train_in_worker(context, job, record.seed, stage)
    except WorkerDied as error:
        forms = {form: Trajectory.empty(error.status, str(error)) for form in FORMS}
        return record.model_copy(update={"status": "failed", "reason": _reason(forms), "forms": forms})
    forms = {name: _apply_check(form, trained.worker.answer, oracle) for name, form in trained.forms.items()}
    results = {
        "status": "ok" if all(form.status in ("ok", "unavailable") for form in forms.values()) else "failed",
        "reason": _reason(forms),
        "start_s": trained.worker.start_s,
        "seconds": trained.seconds,
        "threads_used": trained.worker.answer.threads_used,
        "forms": forms,
    }
    return record.model_copy(update=results)


def _reason(forms: dict[str, Trajectory]) -> str:
    return "; ".join(f"{name}: {form.reason}" for name, form in forms.items() if form.reason)


class Trained(NamedTuple):
    """A worker that has trained, the trajectory of each form, and the seconds that the training took."""

    worker: OpenWorker
    forms: dict[str, Trajectory]
    seconds: float


def _train_in_worker(context: RunContext, job: Job, seed: int, stage: Stage) -> Trained:
    """Have a worker train. It has PROOFS tries to prove its threads. Raises WorkerDied."""
    request = TrainRequest(
        workload=BOOK,
        weights=str(context.weights),
        execution=job.configuration.execution,
        recurrence=_recurrence(job),
        seed=seed,
    )
    for tries_left in reversed(range(PROOFS)):
        start_s = context.clock()
        with jobs.worker_of(context, job) as worker:
            opened = jobs.open_(context, job, worker)
            if opened.proven is False and tries_left:
                continue  # something else may have kept the cores busy
            opened_s = context.clock()
            answer = worker.ask(request, lambda message: stage(f"{_job_label(job)}: {message.what}"))
            break
    seconds = context.clock() - opened_s
    return Trained(OpenWorker(worker, opened, opened_s - start_s), expect(answer, TrainAnswer).forms, seconds)


def _apply_check(form: Trajectory, opened: OpenAnswer, oracle: OracleRecord) -> Trajectory:
    """Return a form with the result of its output check.

    The times of a wrong form are withheld. A form whose threads were not proven is refused.
    """
    if form.status not in ("ok", "refused"):
        return form
    if reason := excess_reason(form.losses, oracle):
        return form.marked("wrong", reason).model_copy(update={"first_call_ns": None, "samples_ns": []})
    if opened.proven is False and form.status == "ok":
        return form.marked("refused", f"threads not proven: {opened.threads_used:.2f} cores used")
    return form


def _empty_record(context: RunContext, job: Job) -> ProcessRecord:
    """Return the record of a process that begins now, with the machine's load and its seed, without results."""
    key = _key(context, job)
    return ProcessRecord(
        key=key,
        kind="process",
        status="",
        reason="",
        configuration=job.configuration,
        recurrence=_recurrence(job),
        replicate=job.replicate,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        load=environment.load_average(),
        seed=int(digest([context.study.seed, key]), 16) % 2**31,
        start_s=None,
        seconds=None,
        threads_used=None,
        forms={},
    )


def _key(context: RunContext, job: Job) -> str:
    return jobs.block_key(context.basis, job, job.blocks[0])


def _recurrence(job: Job) -> str:
    return job.blocks[0].arms[0].recurrence


def _job_label(job: Job) -> str:
    return f"{job.configuration.framework} {job.configuration.execution} {_recurrence(job)}"
