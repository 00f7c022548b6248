"""The chapter's training: every framework trains both forms, from the same weights on the same batches.

    configurations -> the oracle's trajectories -> processes: each trains both forms in turns, is checked and recorded

harness.worker.training does the training itself; harness.analysis.trajectories computes the results from the records.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.analysis.trajectories import TRAINING, AbsentExecutionRecord, excess_reason
from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.store import Record, digest, latest_records
from harness.run import jobs, session
from harness.run.jobs import PROOFS, RunContext
from harness.run.launch import Answer, WorkerDied
from harness.run.progress import ProgressReport
from harness.study import matrix, weights
from harness.study.matrix import BlockSpec, Cell, Configuration, Framework, Job
from harness.study.parts import BATCHED
from harness.study.study import NAMED, Study
from harness.worker.training import FORMS, Trajectory
from impls.interface import Arm

BOOK = NAMED["book"]
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
Stage = Callable[[str], None]


@dataclass(frozen=True)
class TrainingSchedule:
    """The schedule of a training: the first replicate's jobs, and in `done` the records of earlier sessions."""

    context: RunContext
    first_jobs: list[Job]
    earlier_records: list[Record]

    def records(self, report: ProgressReport) -> Iterator[Record]:
        """Yield the records of everything not yet done, each as it is done: the oracle's, then the processes'."""
        oracle = next((record for record in self.earlier_records if record["kind"] == "oracle"), None)
        complete = {
            r["key"].rpartition("-")[0]
            for r in latest_records(self.earlier_records, ("process",))
            if r["status"] == "ok"
        }
        pending = [job for job in self._jobs() if _key(self.context, job) not in complete]
        report.expect(len(pending))
        if oracle is None:
            oracle = oracle_record(self.context, self.first_jobs[0].configuration.framework, report.stage)
            yield oracle
        for job in pending:
            record = run_process(self.context, job, oracle, report.stage)
            report.block(f"[{job.replicate}] {_job_label(job)}: {record['status']}")
            yield record

    def _jobs(self) -> Iterator[Job]:
        """Yield a job for every process: the replicates one after another, each in a random order."""
        study = self.context.study
        for replicate in range(study.processes or 1):
            shuffled = random.Random(f"{study.seed}/{replicate}").sample(self.first_jobs, len(self.first_jobs))
            yield from (replace(job, replicate=replicate) for job in shuffled)


def train(study: Study, steps: int, folder: Path, resume: bool, command: str) -> list[Record]:
    """Train into a folder and return its records. Raises UsageError before any work is done."""
    session.check_folder(folder, resume, TRAINING.file)
    threads = matrix.thread_counts(study, environment.cores())
    frameworks = matrix.select_frameworks(study, session.probe(study, threads))
    first, absent = select_jobs(study, frameworks, threads[0])
    if not first:
        raise UsageError(f"nothing can be trained here: {absent[0].reason}")
    files = weights.training_files(BOOK, steps, study.seed)
    fields = {"steps": steps, "seats": [_row(job) for job in first], "absent": [entry.model_dump() for entry in absent]}
    header = session.make_header("training", study, frameworks, files, command, fields)
    with folders.private() as private, session.open_store(folder, resume, header, files, TRAINING) as (store, earlier):
        basis = header["basis"] | {"training": header["weights"]}
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
            if study.executions and name not in study.executions:
                continue
            configuration = Configuration(framework.name, "cpu", threads, name, "fp32")
            arms = tuple(Arm(execution["loop"], form) for form in ("in_loop", BATCHED))
            cells = [Cell(configuration, BOOK, "train", arm) for arm in arms]
            reasons = [execution["missing"], *(matrix.missing_requirement(execution, cell) for cell in cells)]
            if not study.executions and not execution["trains"]:
                reasons.append(f"few would train so; --execution {name} does")
            if reason := next(filter(None, reasons), None):
                absent.append(AbsentExecutionRecord(framework=framework.name, execution=name, reason=reason))
            else:
                first.append(Job(configuration, 0, (BlockSpec(BOOK, "train", arms, BOOK.T, timed=True),)))
    return first, absent


def oracle_record(context: RunContext, framework: str, stage: Stage) -> Record:
    """Return the record of the oracle's trajectories, with bounds of the first losses.

    The oracle is NumPy's alone. A worker computes it, because its environment keeps BLAS to one thread: more threads
    make products this small slow. Raises UsageError when the worker dies.
    """
    request = {"do": "oracle", "workload": BOOK.model_dump(), "weights": str(context.weights)}
    with context.worker(framework, ONE_THREAD, context.study.timeout_s) as worker:
        try:
            fields = worker.ask(request, lambda message: stage(f"the oracle: {message['what']}"))["found"]
        except WorkerDied as error:
            raise UsageError(f"the oracle's trajectory could not be made: {error}") from None
    return {"key": digest("oracle"), "kind": "oracle", "status": "ok", "reason": "", **fields}


def run_process(context: RunContext, job: Job, oracle: Record, stage: Stage) -> Record:
    """Have one process train its configuration's forms, check their losses, and return its record."""
    header = _process_header(context, job)
    try:
        answer, proof = _train_in_worker(context, job, header["seed"], stage)
    except WorkerDied as error:
        answer, proof = (
            {"forms": {form: asdict(Trajectory(error.status, str(error))) for form in FORMS}, "seconds": None},
            {},
        )
    forms = {name: _apply_check(form, proof, oracle) for name, form in answer["forms"].items()}
    ok = all(form["status"] in ("ok", "unavailable") for form in forms.values())
    results = {
        "status": "ok" if ok else "failed",
        "reason": "; ".join(f"{name}: {form['reason']}" for name, form in forms.items() if form["reason"]),
        "start_s": proof.get("start_s"),
        "seconds": answer["seconds"],
        "threads_used": proof.get("threads_used"),
        "forms": forms,
    }
    return header | results


def _train_in_worker(context: RunContext, job: Job, seed: int, stage: Stage) -> tuple[Answer, Answer]:
    """Return a worker's answer and its proof of threads, for which it has PROOFS tries. Raises WorkerDied."""
    request = {
        "do": "train",
        "workload": BOOK.model_dump(),
        "weights": str(context.weights),
        "execution": job.configuration.execution,
        "recurrence": _recurrence(job),
        "seed": seed,
    }
    for tries_left in reversed(range(PROOFS)):
        start_s = context.clock()
        with jobs.worker_of(context, job) as worker:
            proof = jobs.open_(context, job, worker)
            if proof["proven"] is False and tries_left:
                continue  # something else may have kept the cores busy
            opened_s = context.clock()
            answer = worker.ask(request, lambda message: stage(f"{_job_label(job)}: {message['what']}"))
            break
    return answer | {"seconds": context.clock() - opened_s}, proof | {"start_s": opened_s - start_s}


def _apply_check(form: dict[str, Any], proof: Answer, oracle: Record) -> dict[str, Any]:
    """Return a form with the result of its output check.

    The times of a wrong form are withheld. A form whose threads were not proven is refused.
    """
    if form["status"] not in ("ok", "refused"):
        return form
    if reason := excess_reason(form["losses"], oracle):
        return form | {"status": "wrong", "reason": reason, "first_call_ns": None, "samples_ns": []}
    if proof["proven"] is False and form["status"] == "ok":
        return form | {"status": "refused", "reason": f"threads not proven: {proof['threads_used']:.2f} cores used"}
    return form


def _process_header(context: RunContext, job: Job) -> Record:
    """Return the fields that identify a process, with when it began, the machine's load and the process's seed."""
    key = _key(context, job)
    circumstances = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "load": environment.load_average()}
    seed = int(digest([context.study.seed, key]), 16) % 2**31
    return {"key": key, "kind": "process", **_row(job), "replicate": job.replicate, "seed": seed} | circumstances


def _key(context: RunContext, job: Job) -> str:
    return jobs.block_key(context.basis, job, job.blocks[0])


def _row(job: Job) -> dict[str, Any]:
    return asdict(job.configuration) | {"recurrence": _recurrence(job)}


def _recurrence(job: Job) -> str:
    return job.blocks[0].arms[0].recurrence


def _job_label(job: Job) -> str:
    return f"{job.configuration.framework} {job.configuration.execution} {_recurrence(job)}"
