"""A run, from a study to a report's records: what is there is asked, the folder opened, the course run."""

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import impls
from harness.errors import UsageError
from harness.machine import allocator, environment, folders
from harness.records import gates
from harness.records.store import (
    FILE,
    RUN,
    SCHEMA,
    VERIFICATION,
    Format,
    Record,
    Store,
    budgets,
    digest,
    held,
    read,
    verification,
)
from harness.run import jobs
from harness.run.launch import Worker, WorkerDied
from harness.run.progress import Report
from harness.run.schedule import Clock, Schedule
from harness.study import matrix, weights
from harness.study.data import NONE_IN_TRAINING, cast
from harness.study.matrix import CACHE, Framework, Plan
from harness.study.study import Study, Workload
from harness.verify.output_check import OutputCheck, form_of
from harness.verify.tolerance import METHOD, memory_bytes, overflow, program_data
from impls.interface import IMPOSSIBLE, Data

END = 3  # lines that a worker printed before it ended, which say why
VERIFIED = {VERIFICATION.file, f"{VERIFICATION.file}.gz"}  # what may lie in a folder before a run
BEGUN = {"weights", ".lock"}  # what a run that ended before its first record leaves


def probe(study: Study, threads: list[int]) -> list[Framework]:
    """Ask every framework there is, each in a process of its own, what it has on this machine."""
    names = impls.names()
    for name in study.frameworks or ():
        if name not in names:
            matrix.selected(study, [Framework(n) for n in names])  # refuses, with the nearest name
    wanted = [name for name in names if not study.frameworks or name in study.frameworks]
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda name: _facts(name, study, threads), wanted))


def _facts(name: str, study: Study, threads: list[int]) -> Framework:
    request = {"do": "facts", "threads": threads, "devices": ["cpu", "gpu"], "cache": CACHE}
    with Worker(name, {}, study.timeout_s) as worker:
        try:
            answer = worker.ask(request)
        except WorkerDied as lost:
            if lost.status == "timeout":
                why = f"it did not answer within the timeout of {study.timeout_s:g} s (see --timeout)"
                return Framework(name, missing=why)
            return Framework(name, missing=f"it does not start: {_shortened(str(lost))}")
    answer.pop("is")
    return Framework(name, **answer)


def _shortened(reason: str) -> str:
    """Why a worker ended, with the last of the lines that it printed."""
    first, *more = reason.strip().splitlines()
    how, mark, start = first.partition("words: ")
    return " ".join([how + mark, *[start, *more][-END:]])


@contextmanager
def opened(folder: Path, resume: bool, file: str = FILE) -> Iterator[None]:
    """A run's folder: new or empty, or with `resume` one that holds records, in `file`. Raises UsageError."""
    check(folder, resume, file)
    with ExitStack() as lock:
        folders.make(folder)
        try:
            lock.enter_context(held(folder))
        except OSError as error:
            raise UsageError(f"{folder} cannot be written into: {error.strerror}") from None
        yield


def check(folder: Path, resume: bool, file: str = FILE) -> None:
    """See, before any work, whether a run's folder can be had; nothing is made. Raises UsageError."""
    folders.check(folder)
    there = {path.name for path in folder.iterdir()} - VERIFIED if folder.exists() else set()
    records = there & {file, f"{file}.gz"}
    if resume and not records and not (there and there <= BEGUN):
        raise UsageError(f"{folder} holds no records to go on from")
    if not resume and there:
        how = "or --resume to go on with it" if records or there <= BEGUN else "for it holds no run to go on with"
        raise UsageError(f"{folder} is not empty; give another --out, {how}")
    if file in there and not os.access(folder / file, os.R_OK | os.W_OK):
        raise UsageError(f"{folder / file} cannot be written into: it is another's")


def run(study: Study, folder: Path, resume: bool, command: str, clock: Clock = time.monotonic) -> list[Record]:
    """Measure a study into a folder; returns its records. Raises UsageError before any work is done."""
    began = clock()
    check(folder, resume)
    threads = matrix.thread_counts(study, environment.cores())
    allocator.variables(study.memory)  # refuses what is not installed
    frameworks = matrix.selected(study, probe(study, threads))
    planned = matrix.make(study, frameworks, threads)
    if not planned.cells:
        raise UsageError(f"nothing of this study can be measured here: {planned.absent[0][2]}")
    files = prepare(study)
    heading = heading_of(study, frameworks, planned, files, command)
    verified, _ = gates.beside(heading, verification(folder))
    with folders.private() as private, filled(folder, resume, heading, files) as (store, done):
        bench = bench_of(study, frameworks, folder, private, heading["basis"])
        with Report(0) as report:
            course = Schedule(bench, planned, done, lambda: clock() - began, report, verified)
            for number, record in enumerate(course.records()):
                if number == 0 and done and budgets(done)[-1] != study.budget_s:
                    store.append(_resumed(study, command))
                store.append(record)
    return store.recover()


def heading_of(study: Study, frameworks: list[Framework], planned: Plan, files: weights.Files, command: str) -> Record:
    """The first record of a run, or of a verification."""
    absent = [cell.row() | {"status": status, "reason": reason} for cell, status, reason in planned.absent]
    cells = [cell.row() for cell in planned.cells]
    own = {"cells": cells, "absent": absent, "none_in_training": NONE_IN_TRAINING}
    return begun("study", study, frameworks, files, command, own)


def _resumed(study: Study, command: str) -> Record:
    """That a run is gone on with under the study's budget."""
    what: Record = {"command": command, "budget_s": study.budget_s}
    return {"key": digest(what), "kind": "resumed", "status": "ok", "reason": "", **what}


def prepare(study: Study) -> weights.Files:
    """Every workload's and the sweep's weights and inputs, as files to be stored.

    Raises UsageError, before any work, also where no bound could be made of them: what overflows, or needs more memory.
    """
    made: weights.Files = {}
    for workload in [*study.workloads, *study.swept]:
        _refuse_large(workload, study)
    for workload in study.workloads:
        made |= weights.files(workload, study.seed, study.weights, study.inputs)
    for point in study.swept:
        made |= weights.files(point, study.seed, None, None)
    if study.weights or study.inputs:  # those that we make are of ordinary size
        for workload in study.workloads:
            _refuse_overflow(study, workload, weights.unpacked(made, workload))
    return made


def _refuse_large(workload: Workload, study: Study) -> None:
    """Raise UsageError where the oracle would take more memory than is free."""
    needed = max(memory_bytes(workload, pass_) for pass_ in study.passes)
    if needed > (free := environment.free_bytes()):
        sizes = f"about {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free"
        raise UsageError(f"workload {workload.name} cannot be verified here: the oracle needs {sizes}")


def _refuse_overflow(study: Study, workload: Workload, data: Data) -> None:
    """Raise UsageError when a program of the study overflows: a bound that is not finite verifies nothing."""
    pass_ = "train" if "train" in study.passes else "forward"
    forms = sorted({form_of(arm.name) for arm in study.arms if arm.name not in IMPOSSIBLE})
    for precision, form, moment in itertools.product(study.precisions, forms, ("after", "before")):
        put = cast(program_data(data, precision, form, moment), "float64")
        if why := overflow(put, workload.cell, pass_, form, precision):
            where = " on the probe's inputs" if moment == "before" else ""
            raise UsageError(f"workload {workload.name} cannot be verified{where}: {why}")


def bench_of(
    study: Study, frameworks: list[Framework], folder: Path, private: Path, basis: dict[str, Any]
) -> jobs.RunContext:
    """What a run's jobs need: in its folder what is kept, in the private one what ends with the run."""
    known = {framework.name: framework for framework in frameworks}
    judge = OutputCheck(folder / "weights")
    return jobs.RunContext(study, known, folder / "weights", private / "cache", judge, basis)


def begun(
    kind: str, study: Study, frameworks: list[Framework], files: weights.Files, command: str, own: Record
) -> Record:
    """A first record: the study, what it is measured on, what can not be measured and why; and what its kind has of
    its own.
    """
    basis = {
        "code": environment.code(),
        "machine": environment.machine(),
        "versions": {f.name: f.versions for f in frameworks} | {"libraries": environment.libraries()},
    }
    what = own | {
        "study": study.model_dump(),
        "prototypes": matrix.prototypes(study, frameworks),
        "missing": [{"framework": f.name, "reason": matrix.advice(f)} for f in frameworks if f.missing],
        "basis": basis,
        "environments": {f.name: f.environments for f in frameworks},
        "weights": weights.hashes(files),
        "command": command,
        "output_check": METHOD,
    }
    return {"schema": SCHEMA, "key": digest(what), "kind": kind, "status": "ok", "reason": "", **what}


@contextmanager
def filled(
    folder: Path, resume: bool, heading: Record, files: weights.Files, format_: Format = RUN
) -> Iterator[tuple[Store, list[Record]]]:
    """A run's folder while it is measured into: the store, and the records there are already. Raises UsageError."""
    with opened(folder, resume, format_.file):
        store = Store(folder, format_)
        done = store.recover() if store.path.exists() else read(folder, format_) if store.packed.exists() else []
        if done and (why := _foreign(done[0], heading, format_.same)) is not None:
            raise UsageError(f"{folder} can not be resumed: {why}")
        if not store.path.exists() and done:
            done = store.unpack()
        weights.store(folder / "weights", files)
        if not done:
            store.append(heading)
        yield store, done


def _foreign(found: Record, mine: Record, names: tuple[str, ...]) -> str | None:
    """Why records can not be added to, by their heading and mine, which must agree in `names`; or None."""
    for name, what in (("machine", "another machine"), ("versions", "other versions"), ("code", "other code")):
        if found["basis"][name] != mine["basis"][name]:
            return f"its records come from {what}"
    if (then := found["study"].get("memory")) != (now := mine["study"]["memory"]):
        return f"its workers took memory otherwise: {then}, and now {now}"
    for name in names:
        if found[name] != mine[name]:
            return "its records belong to another study"
    return None
