"""The commands `verify` and `list`, which report what can be said without timing anything."""

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from safetensors.numpy import save

from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.schema import BlockRecord, RunRecord
from harness.records.store import VERIFICATION, Store, lock_folder
from harness.run import jobs, schedule, session
from harness.run.progress import ProgressReport, console
from harness.study import matrix, study, weights
from harness.study.matrix import BlockSpec, Cell, Framework, Job
from harness.study.study import Study
from harness.verify.output_check import OutputCheck, form_of, load_outputs
from impls.interface import RECURRENCES


def verify(
    study_: Study, save_outputs: Path | None, bound: str | None = None, out: Path | None = None, command: str = ""
) -> int:
    """Verify every arm of a study at full size, print a table, and return the exit status.

    `bound` is the precision whose bounds all outputs are held to; None means each output's own precision. `out` is the
    folder for the records, beside those of a run or before it; None keeps none. Raises UsageError before any work.
    """
    for folder in filter(None, (save_outputs, out)):
        folders.check_writable(folder)
    threads = matrix.thread_counts(study_, environment.cores())
    frameworks = matrix.select_frameworks(study_, session.probe(study_, threads))
    plan = matrix.make_plan(study_, frameworks, threads)
    if not plan.cells:
        raise UsageError(f"nothing of this study can be verified here: {plan.absent[0].reason}")
    paths = {} if save_outputs is None else output_files(save_outputs, plan)
    files = session.prepare_files(study_)
    for folder in {path.parent: None for path in paths.values()}:
        folders.make_folder(folder)
    header = session.make_study_header(study_, frameworks, plan, files, command)
    with folders.private() as private, _open_appender(out, header) as append:
        weights.write_files(private / "weights", files)
        save_block = None if save_outputs is None else _output_saver(paths)
        by_name = {framework.name: framework for framework in frameworks}
        check = OutputCheck(private / "weights", bound)
        context = jobs.RunContext(
            study_, by_name, private / "weights", private / "cache", check, header.basis.model_dump(), save_block
        )
        records = _run_jobs(context, matrix.verification_jobs(plan), append)
    return _print_results(records, plan, frameworks)


def _run_jobs(
    context: jobs.RunContext, untimed_jobs: list[Job], append: Callable[[RunRecord], object]
) -> list[BlockRecord]:
    """Return the records of jobs in the order of their blocks; `append` gets each record as soon as it is done."""
    records = {}
    with ProgressReport(sum(len(job.blocks) for job in untimed_jobs)) as report:
        for record in schedule.run_in_parallel(context, untimed_jobs, lambda: math.inf, report):
            records[record.key] = record
            append(record)
    keys = (jobs.block_key(context.basis, job, block) for job in untimed_jobs for block in job.blocks)
    return [records[key] for key in keys]


@contextmanager
def _open_appender(out: Path | None, header: RunRecord) -> Iterator[Callable[[RunRecord], object]]:
    """Yield a function that stores a record in the folder `out`, after storing the header there.

    Where `out` is None the function stores nothing. Raises UsageError where the folder holds a verification already.
    """
    if out is None:
        yield lambda record: None
        return
    folders.make_folder(out)
    with lock_folder(out):
        store = Store(out, VERIFICATION)
        if existing := next((path for path in (store.path, store.packed) if os.path.lexists(path)), None):
            raise UsageError(f"{existing} is there already and would be lost: give another --out, or remove it")
        store.append(header)
        yield store.append


def output_files(folder: Path, plan: matrix.Plan) -> dict[Cell, Path]:
    """Return the file of each cell's outputs in a folder; every cell has a file of its own.

    If the study has several workloads, each gets a folder. If it has several thread counts, the names of the files hold
    them. Raises UsageError where a file exists already.
    """
    cells = [*plan.cells, *(cell for cell, _, _ in plan.absent)]
    several_workloads = len({cell.workload for cell in cells}) > 1
    several_threads = len({cell.configuration.threads for cell in cells}) > 1
    paths = {}
    for cell in plan.cells:
        configuration, arm = cell.configuration, cell.arm
        device = (
            [configuration.device, f"{configuration.threads}threads"] if several_threads else [configuration.device]
        )
        parts = (
            configuration.framework,
            *device,
            configuration.execution,
            configuration.precision,
            arm.recurrence,
            arm.projection,
            cell.pass_,
        )
        parent = folder / cell.workload.name if several_workloads else folder
        paths[cell] = parent / f"{'-'.join(parts)}.safetensors"
    if existing := next((path for path in paths.values() if path.exists() or path.is_symlink()), None):
        raise UsageError(f"{existing} is there already and would be lost: give another --save-outputs")
    return paths


def _output_saver(paths: dict[Cell, Path]) -> Callable[[Job, BlockSpec, Path], None]:
    """Return a function that saves a block's outputs, one file for each arm."""

    def save_block(job: Job, block: BlockSpec, outputs: Path) -> None:
        arrays = load_outputs(outputs)
        for arm in block.arms:
            prefix = f"{arm.name}/after/"  # the outputs on the real inputs
            quantities = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            if arm.projection == "none" and "y" in quantities:
                quantities["h"] = quantities.pop("y")  # the hidden states: there is no projection, so no y
            if quantities:
                path = paths[Cell(job.configuration, block.workload, block.pass_, arm)]
                with folders.add_path_to_errors(path):
                    path.write_bytes(save(quantities))

    return save_block


def _print_results(records: list[BlockRecord], plan: matrix.Plan, frameworks: list[Framework]) -> int:
    """Print which arms passed and which did not, and return the exit status: 1 when any did not."""
    table = Table("framework", "execution", "precision", "workload", "pass", "arms ok", "worst error / bound")
    failures: list[str] = []
    absent = Counter((status, reason) for _, status, reason in plan.absent)
    for record in records:
        configuration, arms = record.configuration, record.arms
        errors = [
            (error.worst, record.bounds[form_of(name)][quantity][1])
            for name, arm in arms.items()
            for quantity, error in arm.quantities.items()
        ]
        worst = max((error / (bound or 1) for error, bound in errors), default=math.nan)
        ok_count = sum(arm.status == "ok" for arm in arms.values())
        absent.update((arm.status, arm.reason) for arm in arms.values() if arm.status == "unavailable")
        engine = [configuration.framework, configuration.execution, configuration.precision]
        place = [*engine, record.workload.name, record.pass_]
        table.add_row(*place, f"{ok_count} of {len(arms)}", f"{worst:.2f}")
        failures += [
            f"{arm.status}: {' '.join(place)} {name}: {arm.reason}"
            for name, arm in arms.items()
            if arm.status not in ("ok", "unavailable")
        ]
    out = console()
    out.print(table)
    for text in sorted({record.sample_text for record in records if record.sample_text}):
        out.print(f"checked on a sample drawn afterwards: {text}", markup=False)
    for (status, reason), count in absent.items():
        out.print(f"{status}: {count} cells: {reason}", markup=False)
    for framework in frameworks:
        if framework.missing:
            out.print(f"unavailable: {matrix.missing_reason(framework)}", markup=False)
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def _framework_facts(framework: Framework) -> dict[str, Any]:
    """Return what a framework offers, as a program would read it: without a reason, it can be run."""
    executions = [
        {
            "device": device,
            "execution": name,
            "missing": no_device or execution.missing or execution.without.get(device),
            "recurrences": {r: execution.without.get(r) or execution.on_request.get(r) for r in RECURRENCES},
        }
        for device, no_device in framework.devices.items()
        for name, execution in framework.executions.items()
    ]
    missing = matrix.missing_reason(framework) if framework.missing else None
    return {"name": framework.name, "missing": missing, "versions": framework.versions, "executions": executions}


def listing(as_json: bool = False) -> None:
    """Print frameworks, executions, devices and workloads, and what is missing with its reason."""
    default_study = Study()
    threads = matrix.thread_counts(default_study, environment.cores())
    if as_json:
        frameworks = [_framework_facts(framework) for framework in session.probe(default_study, threads)]
        workloads = [workload.model_dump(mode="json") for workload in study.KNOWN.values()]
        print(json.dumps({"frameworks": frameworks, "workloads": workloads, "threads": threads}, indent=1))
        return
    out = console()
    table = Table("framework", "version", "device", "execution", *RECURRENCES)
    notes: list[str] = []
    for framework in session.probe(default_study, threads):
        if framework.missing:
            table.add_row(framework.name, "missing", *["–"] * (2 + len(RECURRENCES)))
            notes.append(f"{framework.name}: {matrix.missing_reason(framework)}")
        for device, no_device in framework.devices.items():
            for name, execution in framework.executions.items():
                place = (framework.name, next(iter(framework.versions.values())), device, name)
                missing = no_device or execution.missing or execution.without.get(device)
                reasons = [missing or execution.without.get(recurrence) for recurrence in RECURRENCES]
                on_request = {} if missing else execution.on_request
                words = ("on request" if recurrence in on_request else "yes" for recurrence in RECURRENCES)
                table.add_row(*place, *("no" if reason else word for reason, word in zip(reasons, words, strict=True)))
                lines = [f"{name}: {missing}"] if missing else []
                lines += [f"{name} {r}: {y}" for r, y in zip(RECURRENCES, reasons, strict=True) if y and not missing]
                lines += [f"{name} {recurrence}: on request, for {reason}" for recurrence, reason in on_request.items()]
                notes += [f"{framework.name} {device} {line}" for line in lines]
    out.print(table)
    for note in notes:
        out.print(note, markup=False, highlight=False)
    sizes = Table("workload", "B", "T", "I", "H", "O", "cell", "loss")
    for w in study.KNOWN.values():
        sizes.add_row(w.name, *(str(getattr(w, size)) for size in "BTIHO"), w.cell, w.loss)
    out.print(sizes)
    out.print(f"threads: {', '.join(map(str, threads))}")
