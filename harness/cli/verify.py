"""`verify` and `list`: what can be said without timing anything."""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from safetensors.numpy import save

from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.store import VERIFICATION, Record, Store, held
from harness.run import jobs, schedule, session
from harness.run.progress import Report, console
from harness.study import matrix, study, weights
from harness.study.matrix import BlockSpec, Cell, Framework, Job
from harness.study.study import Study
from harness.verify.output_check import OutputCheck, form_of, loaded
from impls.interface import RECURRENCES


def verify(
    made: Study, save_outputs: Path | None, bound: str | None = None, out: Path | None = None, command: str = ""
) -> int:
    """Verify every arm of a study at full size; prints a table; returns the exit status.

    `bound`: the precision whose bounds all are held to; None: their own. `out`: where the records are kept, beside
    those of a run or before it. Raises UsageError before any work.
    """
    for folder in filter(None, (save_outputs, out)):
        folders.check(folder)
    threads = matrix.thread_counts(made, environment.cores())
    frameworks = matrix.selected(made, session.probe(made, threads))
    planned = matrix.make(made, frameworks, threads)
    if not planned.cells:
        raise UsageError(f"nothing of this study can be verified here: {planned.absent[0][2]}")
    places = {} if save_outputs is None else output_files(save_outputs, planned)
    files = session.prepare(made)
    for folder in {path.parent: None for path in places.values()}:
        folders.make(folder)
    heading = session.heading_of(made, frameworks, planned, files, command)
    with folders.private() as place, _kept(out, heading) as keep_record:
        weights.store(place / "weights", files)
        keep = None if save_outputs is None else _saver(places)
        known = {framework.name: framework for framework in frameworks}
        judge = OutputCheck(place / "weights", bound)
        bench = jobs.RunContext(made, known, place / "weights", place / "cache", judge, heading["basis"], keep)
        records = _verified(bench, matrix.verifications(planned), keep_record)
    return _say(records, planned, frameworks)


def _verified(bench: jobs.RunContext, made: list[Job], keep: Callable[[Record], object]) -> list[Record]:
    """The records of jobs, in the order of their blocks; each is kept as soon as it is done."""
    done = {}
    with Report(sum(len(job.blocks) for job in made)) as report:
        for record in schedule.together(bench, made, lambda: math.inf, report):
            done[record["key"]] = record
            keep(record)
    keys = (jobs.block_key(bench.basis, job, todo) for job in made for todo in job.blocks)
    return [done[key] for key in keys]


@contextmanager
def _kept(out: Path | None, heading: Record) -> Iterator[Callable[[Record], object]]:
    """What keeps a record of a verification in a folder, whose heading is kept first; or keeps nothing.

    Raises UsageError where another's are there.
    """
    if out is None:
        yield lambda record: None
        return
    folders.make(out)
    with held(out):
        store = Store(out, VERIFICATION)
        if there := next((path for path in (store.path, store.packed) if os.path.lexists(path)), None):
            raise UsageError(f"{there} is there already and would be lost: give another --out, or remove it")
        store.append(heading)
        yield store.append


def output_files(folder: Path, planned: matrix.Plan) -> dict[Cell, Path]:
    """Where each cell's outputs go in a folder: no two into one file, and none into one that is there already.

    Workloads, where there are several, have a folder each, and thread counts are told in the files' names. Raises
    UsageError.
    """
    asked = [*planned.cells, *(cell for cell, _, _ in planned.absent)]
    many_workloads = len({cell.workload for cell in asked}) > 1
    many_threads = len({cell.configuration.threads for cell in asked}) > 1
    places = {}
    for cell in planned.cells:
        configuration, arm = cell.configuration, cell.arm
        device = [configuration.device, f"{configuration.threads}threads"] if many_threads else [configuration.device]
        parts = (
            configuration.framework,
            *device,
            configuration.execution,
            configuration.precision,
            arm.recurrence,
            arm.projection,
            cell.pass_,
        )
        place = folder / cell.workload.name if many_workloads else folder
        places[cell] = place / f"{'-'.join(parts)}.safetensors"
    if there := next((path for path in places.values() if path.exists() or path.is_symlink()), None):
        raise UsageError(f"{there} is there already and would be lost: give another --save-outputs")
    return places


def _saver(places: dict[Cell, Path]) -> Callable[[Job, BlockSpec, Path], None]:
    """A function that keeps a block's outputs, one file an arm."""

    def keep(job: Job, todo: BlockSpec, outputs: Path) -> None:
        arrays = loaded(outputs)
        for arm in todo.arms:
            start = f"{arm.name}/after/"
            mine = {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
            if arm.projection == "none" and "y" in mine:
                mine["h"] = mine.pop("y")  # the hidden states: there is no projection, so no y
            if mine:
                path = places[Cell(job.configuration, todo.workload, todo.pass_, arm)]
                with folders.naming(path):
                    path.write_bytes(save(mine))

    return keep


def _say(records: list[Record], planned: matrix.Plan, frameworks: list[Framework]) -> int:
    """Print what passed and what did not; 1 when anything did not."""
    table = Table("framework", "execution", "precision", "workload", "pass", "arms ok", "worst error / bound")
    bad: list[str] = []
    absent = Counter((status, reason) for _, status, reason in planned.absent)
    for record in records:
        arms = record["arms"]
        found = [
            (error[1], record["bounds"][form_of(name)][quantity][1])
            for name, arm in arms.items()
            for quantity, error in arm.get("quantities", {}).items()
        ]
        over = max((error / (bound or 1) for error, bound in found), default=math.nan)
        ok = sum(arm["status"] == "ok" for arm in arms.values())
        absent.update((arm["status"], arm["reason"]) for arm in arms.values() if arm["status"] == "unavailable")
        place = [
            record["framework"],
            record["execution"],
            record["precision"],
            record["workload"]["name"],
            record["pass"],
        ]
        table.add_row(*place, f"{ok} of {len(arms)}", f"{over:.2f}")
        bad += [
            f"{arm['status']}: {' '.join(place)} {name}: {arm['reason']}"
            for name, arm in arms.items()
            if arm["status"] not in ("ok", "unavailable")
        ]
    out = console()
    out.print(table)
    for (status, reason), count in absent.items():
        out.print(f"{status}: {count} cells: {reason}", markup=False)
    for framework in frameworks:
        if framework.missing:
            out.print(f"unavailable: {matrix.advice(framework)}", markup=False)
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if bad else 0


def listing() -> None:
    """Print frameworks, executions, devices and workloads, and what is missing with its reason."""
    everything = Study()
    threads = matrix.thread_counts(everything, environment.cores())
    out = console()
    table = Table("framework", "version", "device", "execution", *RECURRENCES)
    notes: list[str] = []
    for framework in session.probe(everything, threads):
        if framework.missing:
            table.add_row(framework.name, "missing", *["–"] * (2 + len(RECURRENCES)))
            notes.append(f"{framework.name}: {matrix.advice(framework)}")
        for device, no_device in framework.devices.items():
            for name, execution in framework.executions.items():
                place = (framework.name, next(iter(framework.versions.values())), device, name)
                whole = no_device or execution["missing"] or execution["without"].get(device)
                why = [whole or execution["without"].get(recurrence) for recurrence in RECURRENCES]
                on_request = {} if whole else execution["on_request"]
                words = ("on request" if recurrence in on_request else "yes" for recurrence in RECURRENCES)
                table.add_row(*place, *("no" if reason else word for reason, word in zip(why, words, strict=True)))
                told = [f"{name}: {whole}"] if whole else []
                told += [f"{name} {r}: {y}" for r, y in zip(RECURRENCES, why, strict=True) if y and not whole]
                told += [f"{name} {recurrence}: on request, for {reason}" for recurrence, reason in on_request.items()]
                notes += [f"{framework.name} {device} {note}" for note in told]
    out.print(table)
    for note in notes:
        out.print(note, markup=False, highlight=False)
    sizes = Table("workload", "B", "T", "I", "H", "O", "cell")
    for w in study.KNOWN.values():
        sizes.add_row(w.name, *(str(getattr(w, size)) for size in "BTIHO"), w.cell)
    out.print(sizes)
    out.print(f"threads: {', '.join(map(str, threads))}")
