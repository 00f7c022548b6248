"""`explain`: what one cell's program does in a call, and its text for a reader to look at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

import impls
from harness.analysis.operations import least_operations, work
from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.store import Record
from harness.run import jobs, schedule, session
from harness.run.progress import Report, console
from harness.study import matrix, study, weights
from harness.study.matrix import BlockSpec, Configuration, Job
from harness.study.study import Study, nearest
from harness.verify.output_check import OutputCheck
from impls.evidence import ITEM_BYTES, Product, Variable, flops, issued
from impls.interface import DEVICES, PASSES, PRECISIONS, PROJECTIONS, RECURRENCES, Arm

UNKNOWN = "unknown"
AXES = {  # what a word of a cell may be, besides a framework and its executions; and what is meant where it is not said
    "recurrence": (RECURRENCES, None),
    "projection": (PROJECTIONS, None),
    "pass": (PASSES, "forward"),
    "precision": (PRECISIONS, "fp32"),
    "device": (DEVICES, "cpu"),
    "workload": (tuple(study.KNOWN), "book"),
}


@dataclass(frozen=True)
class Wanted:
    """A cell, by its words."""

    framework: str
    execution: str
    arm: Arm
    pass_: str
    precision: str
    device: str
    workload: study.Workload


def split(cell: list[str]) -> list[str]:
    """The words of a cell, parted by blanks or by `/`. Raises UsageError where one says nothing."""
    parts = [part.strip() for text in cell for part in text.split("/")]
    if "" in parts:
        raise UsageError(
            f"{' '.join(cell)!r} has an empty word: the words of a cell are parted by one blank or one '/'"
        )
    return parts


def wanted(words: list[str], executions: Sequence[str]) -> Wanted:
    """The cell that words name, in any order. Raises UsageError."""
    axes = {"framework": (tuple(impls.names()), None), "execution": (tuple(executions), None)} | AXES
    found: dict[str, Any] = {}
    for word in words:
        axis = "workload" if "=" in word else next((a for a, (values, _) in axes.items() if word in values), None)
        try:
            if axis is None:
                nearest("word", word, [value for values, _ in axes.values() for value in values])
            assert axis is not None
            if axis in found:
                raise UsageError(f"a cell has one {axis}, but {found[axis]} and {word} were given")
            found[axis] = study.workload(word) if axis == "workload" else word
        except ValueError as error:
            raise UsageError(study.sentence(error)) from None
    for axis, (values, usual) in axes.items():
        if axis not in found and usual is None:
            raise UsageError(f"a cell needs its {axis}: {', '.join(values)}")
        found.setdefault(axis, study.NAMED["book"] if axis == "workload" else usual)
    arm = Arm(found["recurrence"], found["projection"])
    where = (found["pass"], found["precision"], found["device"], found["workload"])
    return Wanted(found["framework"], found["execution"], arm, *where)


def explain(words: list[str], out: Path | None) -> int:
    """Print a cell's evidence and write its program's text into `out`; returns the exit status."""
    if out is not None:
        folders.check(out)
    names = [word for word in split(words) if word in impls.names()]
    known = session.probe(Study(frameworks=names or None), matrix.thread_counts(Study(), environment.cores()))
    cell = wanted(split(words), list(dict.fromkeys(name for framework in known for name in framework.executions)))
    made = Study(
        frameworks=[cell.framework], executions=[cell.execution], threads=[environment.cores()],
        recurrences=[cell.arm.recurrence], projections=[cell.arm.projection], passes=[cell.pass_],
        precisions=[cell.precision], workloads=[cell.workload], devices=[cell.device], unroll_limit=None,
    )  # fmt: skip
    frameworks = matrix.selected(made, known)
    planned = matrix.make(made, frameworks, [environment.cores()])
    if not planned.cells:
        raise UsageError(f"this cell is not to be had: {planned.absent[0][2]}")
    place = _place(cell)
    folder = out or Path("runs") / "explain" / place
    record = _counted(made, frameworks, planned.cells[0].configuration, cell, folder)
    arm = record["arms"][cell.arm.name]
    if arm["status"] != "ok":
        console().print(f"{arm['status']}: {arm['reason']}", markup=False)
        return 1
    _say(place, cell, arm["evidence"], folder)
    return 0


def _place(cell: Wanted) -> str:
    """The cell's words as a folder's name, which no other cell has; a CPU goes without saying."""
    parts = [cell.framework, cell.execution, cell.arm.name, cell.workload.name, cell.pass_, cell.precision]
    return "-".join([*parts, cell.device] if cell.device != "cpu" else parts)


def _counted(
    made: Study, frameworks: list[matrix.Framework], configuration: Configuration, cell: Wanted, folder: Path
) -> Record:
    """The record of the one cell, verified and counted, its program's text in `folder`."""
    folders.make(folder)
    try:
        for left in folder.glob(f"{cell.arm.name}.*"):
            left.unlink()
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be removed: {error.strerror}") from None
    todo = BlockSpec(cell.workload, cell.pass_, (cell.arm,), cell.workload.T, timed=False)
    files = session.prepare(made)
    with folders.private() as place:
        weights.store(place / "weights", files)
        known = {framework.name: framework for framework in frameworks}
        bench = jobs.RunContext(
            made, known, place / "weights", place / "cache", OutputCheck(place / "weights"), {}, texts=folder
        )
        with Report(1) as report:
            (record,) = schedule.together(bench, [Job(configuration, 0, (todo,))], lambda: math.inf, report)
    return record


def _say(place: str, cell: Wanted, found: dict[str, Any], folder: Path) -> None:
    """Print what was counted, and where the text lies."""
    out = console()
    products = [Product(*product) for product in found["products"]]
    least = least_operations(cell.workload.model_dump(), cell.pass_, cell.arm)
    done = work(found, least, ITEM_BYTES[cell.precision])
    kernels = None if {"everything", "kernels"} & found["missing"].keys() else found["kernels"]
    table = Table("one call of", place)
    shapes = f"{done.products}: {', '.join(map(str, products)) or 'none'}"
    table.add_row("matrix products", UNKNOWN if done.products is None else shapes)
    if done.operations is not None and done.operations > flops(products):
        written = [Product(*product) for product in found["written"]]
        table.add_row("products before compiling", f"{issued(written)}: {', '.join(map(str, written))}")
    table.add_row("operations of the products", UNKNOWN if done.operations is None else f"{done.operations:,}")
    table.add_row("bytes the products move", UNKNOWN if done.moved_bytes is None else f"{done.moved_bytes:,}")
    table.add_row("kernels", UNKNOWN if kernels is None else f"{sum(kernels.values())}: {_listed(kernels)}")
    table.add_row("fusions", UNKNOWN if found["fusions"] is None else f"{found['fusions']:,}")
    trips = ", ".join(f"{trips} trips" for trips in found["loops"]) or "none"
    table.add_row("loops", UNKNOWN if {"everything", "loops"} & found["missing"].keys() else trips)
    table.add_row("temporary memory, bytes", UNKNOWN if found["temp_bytes"] is None else f"{found['temp_bytes']:,}")
    if found["device_ns"] is not None:
        table.add_row("time of the GPU", f"{found['device_ns'] / 1e3:,.1f} µs, under the profiler")
        table.add_row("kernels of the GPU", _listed(found["device_kernels"]))
        table.add_row("graph launches", f"{found['graph_launches']}")
    if variables := found.get("variables"):
        table.add_row("variables", f"{len(variables)}: {', '.join(str(Variable(*one)) for one in variables)}")
    out.print(table, markup=False)
    for what, why in done.missing.items():
        out.print(f"{what} could not be had: {why}", markup=False)
    texts = sorted(path.name for path in folder.glob(f"{cell.arm.name}.*"))
    out.print(f"program text: {', '.join(str(folder / name) for name in texts) or 'none'}", markup=False)


def _listed(kernels: dict[str, int]) -> str:
    ordered = sorted(kernels.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered) or "none"
