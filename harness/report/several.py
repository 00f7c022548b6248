"""One report of several runs: a comparison that links to each run's own report. No records are merged or averaged."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness.analysis.loading import read_tables
from harness.analysis.tables import Tables
from harness.errors import UsageError
from harness.machine.folders import add_path_to_errors
from harness.report import (
    comparison,
    figures,
    make_folders,
    no_garbage_collection,
    summary,
    write_html,
    write_pages,
    write_report,
)
from harness.report.markdown import sizes, table
from harness.report.pages import FIRST, render
from harness.study.study import first_duplicate, slugify

UNHELPFUL = ("", "latest", "run", "runs", "out", "report", "reports", "figures")  # as a run's label
Value = TypeVar("Value")
SHOWN = 12  # characters of a SHA-256


@dataclass(frozen=True)
class MeasuredRun:
    """A run's tables and the folder that they were read from."""

    folder: Path
    tables: Tables


Runs = dict[str, MeasuredRun]  # by label, sorted by label


@no_garbage_collection()
def write(folders: list[Path], out: Path | None, html: bool = True) -> Path:
    """Write report.md of several runs into `out`, and each run's own report into `out` / its label.

    With `html` each folder has its report.html, and that of all leads to those of the runs. Returns the path of the
    report.md of all. Nothing is changed in `folders`. Raises UsageError on records that cannot be read, on a folder
    that is given twice, and on an `out` that is None or cannot be created.
    """
    if out is None:
        raise UsageError("a report of several runs needs a folder of its own: give --out")
    _check_folders(folders, out)
    runs = label_runs([MeasuredRun(folder, read_tables(folder)) for folder in folders])
    make_folders([out, *(out / label for label in runs)])
    gaps = comparison.shared_gaps({label: run.tables for label, run in runs.items()})
    variables = {
        "runs": [{"label": label, "sentence": summary.short_answer(run.tables)} for label, run in runs.items()],
        "machines": machine_table(runs),
        "differences": differences(runs),
        "comparison": comparison.context(gaps),
    }
    with add_path_to_errors(out):
        if drawings := comparison.drawings(gaps, {run.tables.study.margin for run in runs.values()}):
            with figures.in_background(out / "figures", html) as background:
                background.draw(drawings)
        for label, run in runs.items():
            write_report(run.tables, run.folder, out / label, html)
        pages = {FIRST: render("several.md.j2", variables)}
        path = write_pages(pages, out)
        if html:
            write_html(pages, out)
        return path


def _check_folders(folders: list[Path], out: Path) -> None:
    """Raise UsageError on a folder that is given twice, and on an `out` that contains one of them or lies in one."""
    target, resolved_folders = _real_path(out), set[Path]()
    for folder in folders:
        resolved = _real_path(folder)
        if resolved in resolved_folders:
            raise UsageError(f"{folder} is given twice")
        if target.is_relative_to(resolved) or resolved.is_relative_to(target):
            raise UsageError(f"--out {out} must lie apart from the runs, and not hold {folder} or lie in it")
        resolved_folders.add(resolved)


def _real_path(folder: Path) -> Path:
    """Return a folder's path without symbolic links; circular links, which have no target, stay as they are."""
    return Path(os.path.realpath(folder))


def label_runs(runs: list[MeasuredRun]) -> Runs:
    """Label the runs, independently of their order, by their folders' names.

    Where two runs share a name, or it is one of UNHELPFUL, the label is made of the day and the machine. Runs that
    share this label too are numbered in the order they were measured.
    """
    names = [slugify(run.folder.resolve().name) for run in runs]
    count = Counter(map(str.lower, names))
    labelled_runs: Runs = {}
    unnamed = []
    for name, run in zip(names, runs, strict=True):
        if count[name.lower()] == 1 and name.lower() not in UNHELPFUL:
            labelled_runs[name] = run
        else:
            unnamed.append((_machine_label(run.tables), run))
    for label, run in sorted(unnamed, key=_sort_key):
        number, unique = 1, label
        while first_duplicate([*labelled_runs, unique]):
            number += 1
            unique = f"{label}-{number}"
        labelled_runs[unique] = run
    return dict(sorted(labelled_runs.items()))


def _sort_key(item: tuple[str, MeasuredRun]) -> tuple[str, ...]:
    label, run = item
    return label, *summary.measurement_span(run.tables), str(run.folder.resolve())


def _machine_label(tables: Tables) -> str:
    """Return the day and the processor as a label, in the form of the names of report folders."""
    machine = tables.header.basis.machine
    day = summary.measurement_span(tables)[0].partition("T")[0]
    return slugify(f"{day} {machine.get('cpu', 'machine')} {machine.get('cores', '')} cores".lower())


def machine_table(runs: Runs) -> str:
    """Tabulate the facts of the runs: a row for each fact, a column for each run."""
    facts = {label: _run_facts(run.tables) for label, run in runs.items()}
    names = dict.fromkeys(name for values in facts.values() for name in values)
    return table(["", *facts], [[name, *(values.get(name, "–") for values in facts.values())] for name in names])


def _run_facts(tables: Tables) -> dict[str, Any]:
    """Return the facts about a run that a reader needs to judge its numbers."""
    basis, blocks = tables.header.basis, tables.blocks
    versions = {
        framework: ", ".join(f"{name} {version}" for name, version in versions_by_package.items()) or "not there"
        for framework, versions_by_package in basis.versions.items()
        if framework != "libraries"
    }
    began, ended = summary.measurement_span(tables)
    return {
        "devices": ", ".join(sorted({block.configuration.device for block in blocks})) or "–",
        **basis.machine,
        **versions,
        "code": f"{basis.code.commit} (hash {basis.code.hash})",
        "measured": f"{began} to {ended}",
        "blocks": len(blocks),
        "scale": tables.study.label,
        "margin": f"{tables.study.margin:.0%}",
    }


def differences(runs: Runs) -> list[str]:
    """List the ways in which the runs are not the same study, a line for each."""
    # Label -> name -> value
    sizes_by_run = _map_runs(runs, lambda t: {w.name: sizes(w.model_dump()) for w in t.study.workloads})
    weights = _map_runs(runs, lambda t: {file: hash_[:SHOWN] for file, hash_ in t.header.weights.items()})
    lines = [
        _describe_difference("the code that measured (its hash)", _map_runs(runs, lambda t: t.header.basis.code.hash)),
        _describe_difference("how workers take memory", _map_runs(runs, lambda t: t.study.memory)),
        _describe_difference("the margin", _map_runs(runs, lambda t: f"{t.study.margin:.2%}")),
        *_describe_differences("workload {}", sizes_by_run),
        *_describe_differences("`{}` (its SHA-256)", weights),
    ]
    return [line for line in lines if line]


def _describe_differences(what: str, values: dict[str, dict[str, str]]) -> list[str]:
    """Describe the differences under each name; `values` maps a label to the values by name."""
    names = sorted({name for entries in values.values() for name in entries})
    return [
        _describe_difference(
            what.format(name), {label: entries[name] for label, entries in values.items() if name in entries}
        )
        for name in names
    ]


def _map_runs(runs: Runs, fact: Callable[[Tables], Value]) -> dict[str, Value]:
    return {label: fact(run.tables) for label, run in runs.items()}


def _describe_difference(what: str, values: dict[str, str]) -> str:
    """Describe which labels have which value; return an empty string where all have the same."""
    if len(set(values.values())) < 2:
        return ""
    parts = (
        f"{value} in {' and '.join(label for label, own in values.items() if own == value)}"
        for value in sorted(set(values.values()))
    )
    return f"{what}: {'; '.join(parts)}"
