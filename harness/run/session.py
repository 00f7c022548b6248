"""The session of a run: probe the frameworks, open the run folder, and measure the schedule into its records."""

import itertools
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

import impls
from harness.errors import UsageError
from harness.machine import allocator, environment, folders
from harness.records import gates
from harness.records.schema import (
    BasisRecord,
    CellRecord,
    CodeRecord,
    HeaderRecord,
    MissingFrameworkRecord,
    RunHeaderRecord,
    RunRecord,
    SessionRecord,
)
from harness.records.store import (
    FILE,
    RUN,
    VERIFICATION,
    Format,
    Store,
    budgets,
    digest,
    lock_folder,
    read_records,
    read_verification,
)
from harness.run import jobs
from harness.run.launch import Worker, WorkerDied, expect
from harness.run.progress import ProgressReport
from harness.run.schedule import Clock, Schedule
from harness.study import matrix, weights
from harness.study.data import NONE_IN_TRAINING, cast
from harness.study.matrix import CACHE, Cell, Framework, Plan
from harness.study.study import Study, Workload
from harness.verify.output_check import OutputCheck, form_of
from harness.verify.tolerance import METHOD, oracle_memory_bytes, overflow_reason, program_data
from harness.worker.messages import FactsAnswer, FactsRequest
from impls.interface import DEVICES, IMPOSSIBLE, PASSES, Data

END = 3  # last lines of a dead worker's output that its reason keeps
VERIFIED = {VERIFICATION.file, f"{VERIFICATION.file}.gz"}  # files that a folder may hold before a run
BEGUN = {"weights", ".lock"}  # all that a run leaves when it ends before its first record
H = TypeVar("H", bound=HeaderRecord)
R = TypeVar("R", bound=BaseModel)


def probe(study: Study, threads: list[int]) -> list[Framework]:
    """Return what every selected framework offers on this machine, each asked in a process of its own.

    Raises UsageError, with the nearest name, when the study names an unknown framework.
    """
    names = impls.names()
    for name in study.frameworks or ():
        if name not in names:
            matrix.select_frameworks(study, [Framework(n) for n in names])  # raises UsageError with the nearest name
    selection = [name for name in names if not study.frameworks or name in study.frameworks]
    with ThreadPoolExecutor(len(selection)) as pool:
        return list(pool.map(lambda name: _probe_framework(name, study, threads), selection))


def _probe_framework(name: str, study: Study, threads: list[int]) -> Framework:
    """Ask a new worker for its framework's facts; a worker that dies makes the framework missing, with the reason."""
    request = FactsRequest(threads=threads, devices=list(DEVICES), cache=CACHE, library=study.library)
    with Worker(name, {}, study.timeout_s) as worker:
        try:
            return expect(worker.ask(request), FactsAnswer).framework
        except WorkerDied as error:
            if error.status == "timeout":
                reason = f"it did not answer within the timeout of {study.timeout_s:g} s (see --timeout)"
                return Framework(name, missing=reason)
            return Framework(name, missing=f"it does not start: {shorten_reason(str(error))}")


def shorten_reason(reason: str) -> str:
    """Shorten a dead worker's reason to how it ended and the last END lines of its output, on one line."""
    first_line, *other_lines = reason.strip().splitlines()
    ending, label, first_output = first_line.partition("words: ")
    return " ".join([ending + label, *[first_output, *other_lines][-END:]])


@contextmanager
def run_folder(folder: Path, resume: bool, file: str = FILE) -> Iterator[None]:
    """Create and lock a run folder: new or empty, or with `resume` one that holds records in `file`.

    Raises UsageError when the folder cannot be used.
    """
    check_folder(folder, resume, file)
    with ExitStack() as stack:
        folders.make_folder(folder)
        try:
            stack.enter_context(lock_folder(folder))
        except OSError as error:
            raise UsageError(f"{folder} cannot be written into: {error.strerror}") from None
        yield


def check_folder(folder: Path, resume: bool, file: str = FILE) -> None:
    """Raise UsageError when a run folder cannot be used. Creates nothing, so it can run before any work."""
    folders.check_writable(folder)
    names = {path.name for path in folder.iterdir()} - VERIFIED if folder.exists() else set()
    records = names & {file, f"{file}.gz"}
    if resume and not records and not (names and names <= BEGUN):
        raise UsageError(f"{folder} holds no records to continue")
    if not resume and names:
        hint = "or --resume to continue it" if records or names <= BEGUN else "because it holds no run to continue"
        raise UsageError(f"{folder} is not empty; give another --out, {hint}")
    if file in names and not os.access(folder / file, os.R_OK | os.W_OK):
        raise UsageError(f"{folder / file} cannot be written into: it is another's")


def run(study: Study, folder: Path, resume: bool, command: str, clock: Clock = time.monotonic) -> list[RunRecord]:
    """Measure a study into a folder and return its records. Raises UsageError before any work is done."""
    start_s = clock()
    check_folder(folder, resume)
    threads = matrix.thread_counts(study, environment.cores())
    allocator.variables(study.memory)  # raises UsageError when the allocator is not installed
    frameworks = matrix.select_frameworks(study, probe(study, threads))
    plan = matrix.make_plan(study, frameworks, threads)
    if not plan.cells:
        raise UsageError(f"nothing of this study can be measured here: {plan.absent[0].reason}")
    files = prepare_files(study)
    header = make_study_header(study, frameworks, plan, files, command)
    verification_records, _ = gates.fp64_checks(header, read_verification(folder))
    with folders.private() as private, open_store(folder, resume, header, files, RUN) as (store, earlier):
        basis = header.basis.model_dump() | ({"shard": study.shard} if study.shard else {})
        context = make_context(study, frameworks, folder, private, basis)
        with ProgressReport(0) as report:
            schedule = Schedule(context, plan, earlier, lambda: clock() - start_s, report, verification_records)
            for number, record in enumerate(schedule.records()):
                if number == 0 and earlier and budgets(earlier)[-1] != study.budget_s:
                    store.append(_session_record(study, command))
                store.append(record)
    return store.recover()


def make_study_header(
    study: Study, frameworks: list[Framework], plan: Plan, files: weights.Files, command: str
) -> RunHeaderRecord:
    """Return the header, the first record, of a run or of a verification."""
    header = RunHeaderRecord(
        kind="study",
        cells=[_cell_record(cell) for cell in plan.cells],
        absent=[_cell_record(cell, status, reason) for cell, status, reason in plan.absent],
        none_in_training=NONE_IN_TRAINING,
        loops={f.name: {name: execution.loop for name, execution in f.executions.items()} for f in frameworks},
        **header_fields(study, frameworks, files, command),
    )
    return with_key(header)


def _cell_record(cell: Cell, status: str = "", reason: str = "") -> CellRecord:
    return CellRecord.model_validate(cell.row() | {"status": status, "reason": reason})


def _session_record(study: Study, command: str) -> SessionRecord:
    """Return the record that says that a run was resumed under the study's budget."""
    key = digest([command, study.budget_s])
    return SessionRecord(key=key, kind="resumed", status="ok", reason="", command=command, budget_s=study.budget_s)


def prepare_files(study: Study) -> weights.Files:
    """Return the weights and inputs of every workload and of the sweep, as files to be stored.

    Raises UsageError, before any work, when no bound can be computed from them: when a program overflows, or when the
    oracle needs more memory than is free.
    """
    files: weights.Files = {}
    for workload in [*study.workloads, *study.swept]:
        _refuse_large(workload, study)
    for workload in study.workloads:
        files |= weights.workload_files(workload, study.seed, study.weights, study.inputs)
    for point in study.swept:
        files |= weights.workload_files(point, study.seed, None, None)
    if study.weights or study.inputs:  # generated values are of ordinary size and need no check
        for workload in study.workloads:
            _refuse_overflow(study, workload, weights.data_from_files(files, workload))
    return files


def _refuse_large(workload: Workload, study: Study) -> None:
    """Raise UsageError when the oracle, or the outputs of the forward pass, would take more memory than is free.

    What an arm takes of memory is no reason: that is measured, and an arm that gets no more is a record.
    """
    oracle_bytes = max(oracle_memory_bytes(workload, pass_) for pass_ in study.passes)
    outputs_bytes = math.prod((4, workload.T, workload.B, workload.O)) if "forward" in study.passes else 0
    whose, required_bytes = max(
        ("the oracle needs", oracle_bytes), ("its outputs take", outputs_bytes), key=itemgetter(1)
    )
    if required_bytes > (free_bytes := environment.free_memory_bytes()):
        sizes = f"about {required_bytes / 2**30:.1f} GiB, but {free_bytes / 2**30:.1f} GiB are free"
        raise UsageError(f"workload {workload.name} cannot be verified here: {whose} {sizes}")


def _refuse_overflow(study: Study, workload: Workload, data: Data) -> None:
    """Raise UsageError when a program of the study overflows: a bound that is not finite verifies nothing."""
    pass_ = max(study.passes, key=PASSES.index)  # which computes all that the others do
    forms = sorted({form_of(arm.name) for arm in study.arms if arm.name not in IMPOSSIBLE})
    # "after" checks the real inputs, "before" the probe inputs
    for precision, form, moment in itertools.product(study.precisions, forms, ("after", "before")):
        operands = cast(program_data(data, precision, form, moment), "float64")
        if reason := overflow_reason(operands, workload, pass_, form, precision):
            inputs = " on the probe's inputs" if moment == "before" else ""
            raise UsageError(f"workload {workload.name} cannot be verified{inputs}: {reason}")


def make_context(
    study: Study, frameworks: list[Framework], folder: Path, private: Path, basis: dict[str, Any]
) -> jobs.RunContext:
    """Return the run context of a study's jobs.

    `folder` is the run folder, which keeps the weights; `private` holds the caches, which end with the run.
    """
    by_name = {framework.name: framework for framework in frameworks}
    output_check = OutputCheck(folder / "weights")
    return jobs.RunContext(study, by_name, folder / "weights", private / "cache", output_check, basis)


def header_fields(study: Study, frameworks: list[Framework], files: weights.Files, command: str) -> dict[str, Any]:
    """Return the fields that every header has: the study, what it is measured on, what is missing and why.

    The key is that of an empty header; see `with_key`.
    """
    versions = {f.name: f.versions for f in frameworks} | {"libraries": environment.library_versions()}
    code = CodeRecord(**environment.code_version())
    missing = [
        MissingFrameworkRecord(framework=f.name, reason=matrix.missing_reason(f)) for f in frameworks if f.missing
    ]
    return {
        "key": "",
        "status": "ok",
        "reason": "",
        "study": type(study)(**study.model_dump()),  # with every setting set, so that the record states it
        "prototypes": matrix.prototypes(study, frameworks),
        "missing": missing,
        "basis": BasisRecord(code=code, machine=environment.machine_facts(), versions=versions),
        "environments": {f.name: f.environments for f in frameworks},
        "weights": weights.file_hashes(files),
        "command": command,
        "output_check": METHOD,
    }


def with_key(header: H) -> H:
    """Return a header with its key, a hash of everything else in it."""
    return header.model_copy(update={"key": digest(header.model_dump())})


@contextmanager
def open_store(
    folder: Path, resume: bool, header: Any, files: weights.Files, format_: Format[R]
) -> Iterator[tuple[Store[R], list[R]]]:
    """Open a run folder to measure into; yield its store and the records that it holds already.

    Raises UsageError when the folder cannot be used, or when its records cannot be added to.
    """
    with run_folder(folder, resume, format_.file):
        store = Store(folder, format_)
        records = (
            store.recover() if store.path.exists() else read_records(folder, format_) if store.packed.exists() else []
        )
        if records and (reason := _mismatch_reason(records[0], header, format_.same)) is not None:
            raise UsageError(f"{folder} cannot be resumed: {reason}")
        if not store.path.exists() and records:
            records = store.unpack()
        if files:  # a user's functions have none
            weights.write_files(folder / "weights", files)
        if not records:
            store.append(header)
        yield store, records


def _mismatch_reason(stored: Any, header: HeaderRecord, names: tuple[str, ...]) -> str | None:
    """Return why the records under the `stored` header cannot be added to by a run with `header`, or None.

    The two headers must agree in every field of `names`, and in machine, versions, code, memory allocator and library.
    """
    for name, origin in (("machine", "another machine"), ("versions", "other versions"), ("code", "other code")):
        if getattr(stored.basis, name) != getattr(header.basis, name):
            return f"its records come from {origin}"
    if (stored_memory := stored.whole_study.memory) != (memory := header.study.memory):
        return f"its workers took memory otherwise: {stored_memory}, and now {memory}"
    if (stored_library := stored.whole_study.library) != (library := header.study.library):
        return f"its frameworks multiplied with other libraries: {stored_library}, and now {library}"
    if (stored_shard := stored.study.shard) != (shard := header.study.shard):
        shards = [f"shard {name}" if name else "all shards" for name in (stored_shard, shard)]
        return f"its records are those of {shards[0]}, and not of {shards[1]}"
    if getattr(stored, "shards", None):
        return "it was merged from shards: continue those, and merge them again"
    for name in names:
        if getattr(stored, name) != getattr(header, name):
            return "its records belong to another study"
    return None
