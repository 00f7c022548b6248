"""The report: a pure function of a run's records. The same records give the same bytes."""

import csv
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.analysis import Tables
from harness.records import FILE, read
from harness.refused import Refused
from harness.report import figures, words


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: it would search the records, millions of objects, for cycles they have not."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_uncollected()
def write(folder: Path, out: Path | None = None) -> Path:
    """Write report.md, figures/, the tables and environment.json of the records in `folder`.

    They go into `out` (by default `folder`); returns the report's path. Raises Refused on records
    that can not be read.
    """
    made = tables(folder)
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    with figures.forests(made, out / "figures") as drawn:
        made.save(out)
        heading = made.heading
        facts = {name: heading[name] for name in ("basis", "environments", "weights", "study", "command")}
        (out / "environment.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        environment = Environment(
            loader=PackageLoader("harness.report", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        beside = {name: _beside(folder / f"{name}.json") for name in ("kills", "apart")}
        everything = words.everything(made, drawn, _idiomatic(folder), beside)
    text = environment.get_template("report.md.j2").render(everything)
    path = out / "report.md"
    path.write_text(text, encoding="utf-8")
    return path


def tables(folder: Path) -> Tables:
    """The tables of a run's records. Raises Refused when there are none, or none that can be read."""
    records = read(folder)
    if not records:
        raise Refused(f"{folder / FILE} is empty")
    return Tables(records)


def _beside(file: Path) -> Any:
    """The result of a script, if it was put beside the records."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _idiomatic(folder: Path) -> list[dict[str, str]]:
    """The rows of scripts/idiomatic.py, if they were put beside the records."""
    file = folder / "idiomatic.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []
