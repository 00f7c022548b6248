"""The chapter's training: every framework, both forms, from the same weights on the same batches.

    configurations -> the oracle's trajectories -> processes: each trains both forms in turns, is judged and recorded

What a process does is in harness.worker.training; what is made of the records, in harness.analysis.trajectories.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.analysis.trajectories import TRAINING, Absent, off
from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.store import Record, digest, latest
from harness.run import jobs, session
from harness.run.jobs import PROOFS, RunContext
from harness.run.launch import Answer, WorkerDied
from harness.run.progress import Report
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
class Schedule:
    """A training on its way: what its processes need, the first replicate's jobs, and what there is already."""

    bench: RunContext
    first: list[Job]
    done: list[Record]

    def records(self, report: Report) -> Iterator[Record]:
        """Records of everything not yet done, as it is done: the oracle's, then the processes'."""
        oracle = next((record for record in self.done if record["kind"] == "oracle"), None)
        complete = {r["key"].rpartition("-")[0] for r in latest(self.done, ("process",)) if r["status"] == "ok"}
        todo = [job for job in self._jobs() if _key(self.bench, job) not in complete]
        report.expect(len(todo))
        if oracle is None:
            oracle = oracle_of(self.bench, self.first[0].configuration.framework, report.stage)
            yield oracle
        for job in todo:
            record = process(self.bench, job, oracle, report.stage)
            report.block(f"[{job.replicate}] {_place(job)}: {record['status']}")
            yield record

    def _jobs(self) -> Iterator[Job]:
        """Every process: the replicates one after another, each in a random order."""
        study = self.bench.study
        for replicate in range(study.processes or 1):
            shuffled = random.Random(f"{study.seed}/{replicate}").sample(self.first, len(self.first))
            yield from (replace(job, replicate=replicate) for job in shuffled)


def train(study: Study, steps: int, folder: Path, resume: bool, command: str) -> list[Record]:
    """Train into a folder; returns its records. Raises UsageError before any work is done."""
    session.check(folder, resume, TRAINING.file)
    threads = matrix.thread_counts(study, environment.cores())
    frameworks = matrix.selected(study, session.probe(study, threads))
    first, absent = configurations(study, frameworks, threads[0])
    if not first:
        raise UsageError(f"nothing can be trained here: {absent[0].reason}")
    files = weights.training_files(BOOK, steps, study.seed)
    own = {"steps": steps, "seats": [_row(job) for job in first], "absent": [one.model_dump() for one in absent]}
    heading = session.begun("training", study, frameworks, files, command, own)
    with folders.private() as private, session.filled(folder, resume, heading, files, TRAINING) as (store, done):
        basis = heading["basis"] | {"training": heading["weights"]}
        bench = session.bench_of(study, frameworks, folder, private, basis)
        with Report(0, "processes") as report:
            for record in Schedule(bench, first, done).records(report):
                store.append(record)
    return store.recover()


def configurations(study: Study, frameworks: list[Framework], threads: int) -> tuple[list[Job], list[Absent]]:
    """The first replicate's jobs, and the executions that have none.

    Where none are selected, they are those in which a framework says that its users train.
    """
    made, absent = [], []
    for framework in frameworks:
        for name, execution in framework.executions.items():
            if study.executions and name not in study.executions:
                continue
            configuration = Configuration(framework.name, "cpu", threads, name, "fp32")
            arms = tuple(Arm(execution["loop"], form) for form in ("in_loop", BATCHED))
            cells = [Cell(configuration, BOOK, "train", arm) for arm in arms]
            reasons = [execution["missing"], *(matrix.without(execution, cell) for cell in cells)]
            if not study.executions and not execution["trains"]:
                reasons.append(f"few would train so; --execution {name} does")
            if reason := next(filter(None, reasons), None):
                absent.append(Absent(framework=framework.name, execution=name, reason=reason))
            else:
                made.append(Job(configuration, 0, (BlockSpec(BOOK, "train", arms, BOOK.T, timed=True),)))
    return made, absent


def oracle_of(bench: RunContext, framework: str, stage: Stage) -> Record:
    """The oracle's trajectories, and bounds of the first losses.

    NumPy's alone, but made by a worker, whose environment keeps BLAS to one thread: more make products this small slow.
    Raises UsageError when the worker is lost.
    """
    request = {"do": "oracle", "workload": BOOK.model_dump(), "weights": str(bench.weights)}
    with bench.worker(framework, ONE_THREAD, bench.study.timeout_s) as worker:
        try:
            found = worker.ask(request, lambda said: stage(f"the oracle: {said['what']}"))["found"]
        except WorkerDied as lost:
            raise UsageError(f"the oracle's trajectory could not be made: {lost}") from None
    return {"key": digest("oracle"), "kind": "oracle", "status": "ok", "reason": "", **found}


def process(bench: RunContext, job: Job, oracle: Record, stage: Stage) -> Record:
    """Have one process train its configuration's forms, judge what it gave, and return its record."""
    begun = _begun(bench, job)
    try:
        answer, proof = _answer(bench, job, begun["seed"], stage)
    except WorkerDied as lost:
        answer, proof = (
            {"forms": {form: asdict(Trajectory(lost.status, str(lost))) for form in FORMS}, "seconds": None},
            {},
        )
    forms = {name: _judged(form, proof, oracle) for name, form in answer["forms"].items()}
    sound = all(form["status"] in ("ok", "unavailable") for form in forms.values())
    end = {
        "status": "ok" if sound else "failed",
        "reason": "; ".join(f"{name}: {form['reason']}" for name, form in forms.items() if form["reason"]),
        "start_s": proof.get("start_s"),
        "seconds": answer["seconds"],
        "threads_used": proof.get("threads_used"),
        "forms": forms,
    }
    return begun | end


def _answer(bench: RunContext, job: Job, seed: int, stage: Stage) -> tuple[Answer, Answer]:
    """What a worker answers, and its proof of threads, for which it has several tries. Raises WorkerDied."""
    request = {
        "do": "train",
        "workload": BOOK.model_dump(),
        "weights": str(bench.weights),
        "execution": job.configuration.execution,
        "recurrence": _recurrence(job),
        "seed": seed,
    }
    for tries_left in reversed(range(PROOFS)):
        began = bench.clock()
        with jobs.worker_of(bench, job) as worker:
            proof = jobs.open_(bench, job, worker)
            if proof["proven"] is False and tries_left:
                continue  # something else may have kept the cores busy
            opened = bench.clock()
            answer = worker.ask(request, lambda said: stage(f"{_place(job)}: {said['what']}"))
            break
    return answer | {"seconds": bench.clock() - opened}, proof | {"start_s": opened - began}


def _judged(form: dict[str, Any], proof: Answer, oracle: Record) -> dict[str, Any]:
    """A form with what the gate says. The times of a wrong one are withheld; threads must have been proven."""
    if form["status"] not in ("ok", "refused"):
        return form
    if reason := off(form["losses"], oracle):
        return form | {"status": "wrong", "reason": reason, "first_call_ns": None, "samples_ns": []}
    if proof["proven"] is False and form["status"] == "ok":
        return form | {"status": "refused", "reason": f"threads not proven: {proof['threads_used']:.2f} cores used"}
    return form


def _begun(bench: RunContext, job: Job) -> Record:
    """What identifies a process, and the circumstances it began in."""
    key = _key(bench, job)
    begun = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "load": environment.load()}
    seed = int(digest([bench.study.seed, key]), 16) % 2**31
    return {"key": key, "kind": "process", **_row(job), "replicate": job.replicate, "seed": seed} | begun


def _key(bench: RunContext, job: Job) -> str:
    return jobs.block_key(bench.basis, job, job.blocks[0])


def _row(job: Job) -> dict[str, Any]:
    return asdict(job.configuration) | {"recurrence": _recurrence(job)}


def _recurrence(job: Job) -> str:
    return job.blocks[0].arms[0].recurrence


def _place(job: Job) -> str:
    return f"{job.configuration.framework} {job.configuration.execution} {_recurrence(job)}"
