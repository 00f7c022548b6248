"""The command `explain`: what one cell's program does in a call, with its text for a reader to look at."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table

import impls
from harness.analysis.operations import least_operations, work_from_evidence
from harness.errors import UsageError
from harness.machine import environment, folders
from harness.records.schema import ArmTiming
from harness.run import jobs, schedule, session
from harness.run.progress import ProgressReport, console
from harness.study import matrix, study, weights
from harness.study.configuration import Configuration
from harness.study.matrix import BlockSpec, Job
from harness.study.study import Study, validate_choice
from harness.verify.output_check import OutputCheck
from impls.evidence import ITEM_BYTES, Evidence, flops, issued
from impls.interface import (
    DEVICES,
    FAMILIES,
    IN_LOOP_LOSS,
    PASSES,
    PRECISIONS,
    PROJECTIONS,
    RECURRENCES,
    Arm,
    family_of,
)

UNKNOWN = "unknown"
HOIST_LOG = "hoist.txt"  # the text of a hoisted program that says what was moved, and why the rest was not
AXES = {  # axis -> its values, and the default, or None where a cell must name it; framework and execution are axes too
    "recurrence": (RECURRENCES, None),
    "projection": ((*PROJECTIONS, IN_LOOP_LOSS), None),
    "pass": (PASSES, "forward"),
    "precision": (PRECISIONS, "fp32"),
    "device": (DEVICES, "cpu"),
    "workload": (tuple(study.KNOWN), "book"),
}


@dataclass(frozen=True)
class RequestedCell:
    """The cell to explain."""

    framework: str
    execution: str
    arm: Arm
    pass_: str
    precision: str
    device: str
    workload: study.Workload


def split_cell(cell: list[str]) -> list[str]:
    """Return the words of a cell, split at blanks or at `/`. Raises UsageError where a word is empty."""
    words = [word.strip() for text in cell for word in text.split("/")]
    if "" in words:
        raise UsageError(
            f"{' '.join(cell)!r} has an empty word: the words of a cell are parted by one blank or one '/'"
        )
    return words


def parse_cell(words: list[str], executions: Sequence[str]) -> RequestedCell:
    """Return the cell that words name, in any order.

    Raises UsageError for an unknown word, for a second word of an axis, and for a missing axis without a default.
    """
    axes = {"framework": (tuple(impls.names()), None), "execution": (tuple(executions), None)} | AXES
    choices: dict[str, Any] = {}
    for word in words:
        axis = next((name for name, (values, _) in axes.items() if word in values), None)
        axis = "workload" if "=" in word else "projection" if family_of(word) in FAMILIES else axis
        try:
            if axis is None:
                validate_choice("word", word, [value for values, _ in axes.values() for value in values])
            assert axis is not None
            if axis in choices:
                raise UsageError(f"a cell has one {axis}, but {choices[axis]} and {word} were given")
            choices[axis] = study.parse_workload(word) if axis == "workload" else word
        except ValueError as error:
            raise UsageError(study.error_message(error)) from None
    for axis, (values, default) in axes.items():
        if axis not in choices and default is None:
            raise UsageError(f"a cell needs its {axis}: {', '.join(values)}")
        choices.setdefault(axis, study.NAMED["book"] if axis == "workload" else default)
    arm = Arm(choices["recurrence"], choices["projection"])
    settings = (choices["pass"], choices["precision"], choices["device"], choices["workload"])
    return RequestedCell(choices["framework"], choices["execution"], arm, *settings)


def explain(words: list[str], out: Path | None, as_json: bool = False) -> int:
    """Print a cell's evidence, write its program's text into `out`, and return the exit status.

    Where `out` is None, the text goes into a folder of its own in runs/explain.
    """
    if out is not None:
        folders.check_writable(out)
    names = [word for word in split_cell(words) if word in impls.names()]
    probed = session.probe(Study(frameworks=names or None), matrix.thread_counts(Study(), environment.cores()))
    cell = parse_cell(
        split_cell(words), list(dict.fromkeys(name for framework in probed for name in framework.executions))
    )
    cell_study = Study(
        frameworks=[cell.framework], executions=[cell.execution], threads=[environment.cores()],
        recurrences=[cell.arm.recurrence], projections=[cell.arm.projection], passes=[cell.pass_],
        precisions=[cell.precision], workloads=[cell.workload], devices=[cell.device], unroll_limit=None,
    )  # fmt: skip
    frameworks = matrix.select_frameworks(cell_study, probed)
    plan = matrix.make_plan(cell_study, frameworks, [environment.cores()])
    if not plan.cells:
        raise UsageError(f"this cell is not available: {plan.absent[0].reason}")
    place = _folder_name(cell)
    folder = out or Path("runs") / "explain" / place
    arm = _verify_and_count(cell_study, frameworks, plan.cells[0].configuration, cell, folder)
    if arm.status != "ok" or arm.evidence is None:
        console().print(f"{arm.status}: {arm.reason}", markup=False)
        return 1
    if as_json:
        _print_json(cell, arm.evidence, folder)
    else:
        _print_evidence(place, cell, arm.evidence, folder)
    return 0


def _folder_name(cell: RequestedCell) -> str:
    """Return a folder name that is unique to the cell: its words, without the device when that is the CPU."""
    parts = [cell.framework, cell.execution, cell.arm.name, cell.workload.name, cell.pass_, cell.precision]
    return "-".join([*parts, cell.device] if cell.device != "cpu" else parts)


def _verify_and_count(
    cell_study: Study,
    frameworks: list[matrix.Framework],
    configuration: Configuration,
    cell: RequestedCell,
    folder: Path,
) -> ArmTiming:
    """Verify and count one cell, write its program's text into `folder`, and return what was found.

    Raises UsageError where the text of an earlier call cannot be removed.
    """
    folders.make_folder(folder)
    try:
        for path in folder.glob(f"{cell.arm.name}.*"):
            path.unlink()
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be removed: {error.strerror}") from None
    block = BlockSpec(cell.workload, cell.pass_, (cell.arm,), cell.workload.T, timed=False)
    files = session.prepare_files(cell_study)
    with folders.private() as private:
        weights.write_files(private / "weights", files)
        by_name = {framework.name: framework for framework in frameworks}
        context = jobs.RunContext(
            cell_study,
            by_name,
            private / "weights",
            private / "cache",
            OutputCheck(private / "weights"),
            {},
            texts=folder,
        )
        with ProgressReport(1) as report:
            (record,) = schedule.run_in_parallel(context, [Job(configuration, 0, (block,))], lambda: math.inf, report)
    return record.arms[cell.arm.name]


def _print_json(cell: RequestedCell, evidence: Evidence, folder: Path) -> None:
    """Print what was counted, and where the text was written, as JSON."""
    texts = sorted(str(path) for path in folder.glob(f"{cell.arm.name}.*"))
    print(
        json.dumps(
            {
                "arm": cell.arm.name,
                "evidence": TypeAdapter(Evidence).dump_python(evidence, mode="json"),
                "texts": texts,
            },
            indent=1,
        )
    )


def _print_evidence(place: str, cell: RequestedCell, evidence: Evidence, folder: Path) -> None:
    """Print what was counted, and where the text was written."""
    out = console()
    least = least_operations(cell.workload, cell.pass_, cell.arm)
    counts = work_from_evidence(evidence, least, ITEM_BYTES[cell.precision])
    kernels = None if {"everything", "kernels"} & evidence.missing.keys() else evidence.kernels
    table = Table("one call of", place)
    shapes = f"{counts.products}: {', '.join(map(str, evidence.products)) or 'none'}"
    table.add_row("matrix products", UNKNOWN if counts.products is None else shapes)
    if counts.operations is not None and counts.operations > flops(evidence.products):
        written = f"{issued(evidence.written)}: {', '.join(map(str, evidence.written))}"
        table.add_row("products before compiling", written)
    table.add_row("operations of the products", UNKNOWN if counts.operations is None else f"{counts.operations:,}")
    table.add_row("bytes the products move", UNKNOWN if counts.moved_bytes is None else f"{counts.moved_bytes:,}")
    table.add_row("kernels", UNKNOWN if kernels is None else f"{sum(kernels.values())}: {_format_kernels(kernels)}")
    table.add_row("fusions", UNKNOWN if evidence.fusions is None else f"{evidence.fusions:,}")
    trips = ", ".join(f"{trips} trips" for trips in evidence.loops) or "none"
    table.add_row("loops", UNKNOWN if {"everything", "loops"} & evidence.missing.keys() else trips)
    table.add_row("temporary memory, bytes", UNKNOWN if evidence.temp_bytes is None else f"{evidence.temp_bytes:,}")
    if evidence.device_ns is not None:
        table.add_row("time of the GPU", f"{evidence.device_ns / 1e3:,.1f} µs, under the profiler")
        table.add_row("kernels of the GPU", _format_kernels(evidence.device_kernels))
        table.add_row("graph launches", f"{evidence.graph_launches}")
    if variables := evidence.variables:
        table.add_row("variables", f"{len(variables)}: {', '.join(map(str, variables))}")
    out.print(table, markup=False)
    for quantity, reason in counts.missing.items():
        out.print(f"{quantity} could not be counted: {reason}", markup=False)
    for log in folder.glob(f"{cell.arm.name}.{HOIST_LOG}"):
        for line in log.read_text(encoding="utf-8").splitlines():
            out.print(f"hoist: {line}", markup=False, highlight=False, soft_wrap=True)
    names = sorted(path.name for path in folder.glob(f"{cell.arm.name}.*"))
    out.print(f"program text: {', '.join(str(folder / name) for name in names) or 'none'}", markup=False)


def _format_kernels(kernels: dict[str, int]) -> str:
    """Return the kernels with their counts, the most frequent first."""
    ordered = sorted(kernels.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered) or "none"
