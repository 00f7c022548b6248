"""The report: a pure function of a run's records. The same records give the same bytes."""

import csv
import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.analysis.tables import Tables
from harness.errors import UsageError
from harness.machine import folders
from harness.records.store import FILE, PACKED, read, verification
from harness.report import comparison, figures, prediction, sweeps, words
from harness.report.markdown import Row


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: it would search the records, millions of objects, for cycles they have not."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@uncollected()
def write(folder: Path, out: Path | None = None) -> Path:
    """Write report.md, figures/, the tables and environment.json of the records in `folder`.

    They go into `out` (by default `folder`); returns the report's path. Raises UsageError on records
    that can not be read, and on an `out` that can not be had.
    """
    found = tables(folder)
    if out and os.path.realpath(out) != os.path.realpath(folder):
        make([out])
    else:
        folders.check(folder)
    with folders.naming(out or folder):
        return written(body(found, folder, out or folder), out or folder)


def tables(folder: Path) -> Tables:
    """The tables of a run's records. Raises UsageError when there are none, or none that can be read."""
    records = read(folder)
    if not records:
        raise UsageError(f"{folder / FILE} is empty")
    return Tables(records, verification(folder))


def make(wanted: list[Path]) -> None:
    """Make folders for reports. Raises UsageError, before any is made, where another run's records lie in one."""
    for folder in wanted:
        if any(os.path.lexists(folder / name) for name in (FILE, PACKED)):
            raise UsageError(f"{folder} holds a run's records and is not among what is reported: give another --out")
    for folder in wanted:
        folders.make(folder)


def body(found: Tables, folder: Path, out: Path) -> str:
    """A run's report as Markdown; its figures, tables and environment.json are written into `out`.

    What scripts have put beside the records is read from `folder`.
    """
    drawn, every = figures.forests(found)
    sides = comparison.compared({"": found}) if comparison.both_devices(found) else None
    if sides is not None:
        every |= comparison.drawings(sides, {found.study.margin})
    swept = sweeps.drawings(found)
    with figures.drawing(every | swept, out / "figures", found.files(out)):
        heading = found.heading
        facts = {name: heading[name] for name in ("basis", "environments", "weights", "study", "command")}
        (out / "environment.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return said(found, folder, drawn, list(swept), sides)


def said(found: Tables, folder: Path, drawn: figures.Drawn, swept: list[str], sides: comparison.Compared | None) -> str:
    """The words and tables of a report, with the names of its figures."""
    beside = {name: _beside(folder / f"{name}.json") for name in ("kills", "apart", "repeat")}
    everything = words.everything(found, drawn, _idiomatic(folder), beside)
    everything["comparison"] = comparison.everything(sides) if sides is not None else None
    everything["prediction"] = prediction.everything(found, swept)
    return rendered("report.md.j2", everything)


def rendered(template: str, variables: Row) -> str:
    """A template of this package, filled in."""
    environment = Environment(
        loader=PackageLoader("harness.report", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(variables)


def written(text: str, out: Path, name: str = "report.md") -> Path:
    """The path of the report, now that its text is there."""
    path = out / name
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # bytes of a path may be no text
    return path


def _beside(file: Path) -> Any:
    """The result of a script, if it was put beside the records."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _idiomatic(folder: Path) -> list[dict[str, str]]:
    """The rows of scripts/idiomatic.py, if they were put beside the records."""
    file = folder / "idiomatic.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []
