"""Loading a run from its folder: its tables for reports, its frames for notebooks."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.tables import ALWAYS, WHERE_THERE_ARE, Tables
from harness.errors import UsageError
from harness.records.store import FILE, read_run, read_verification
from harness.study.study import Study

FRAMES = (*ALWAYS, *WHERE_THERE_ARE)


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A measured run as pandas frames, those that `report` writes as CSV.

    docs/data.md has the unit and the meaning of every column. A frame without rows has its columns.
    `machine`: the facts of the machine, by name. `versions`: the versions of each framework's packages, by framework.
    """

    folder: Path
    study: Study
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    times: pd.DataFrame
    gaps: pd.DataFrame
    contrasts: pd.DataFrame
    identity: pd.DataFrame
    evidence: pd.DataFrame
    changes: pd.DataFrame
    steps: pd.DataFrame
    frameworks: pd.DataFrame
    rates: pd.DataFrame
    faults: pd.DataFrame
    variables: pd.DataFrame
    costs: pd.DataFrame
    swept: pd.DataFrame
    slopes: pd.DataFrame
    scores: pd.DataFrame
    prototypes: pd.DataFrame
    peaks: pd.DataFrame
    fronts: pd.DataFrame
    nodes: pd.DataFrame

    def __repr__(self) -> str:
        """Return the folder and the number of rows of each frame."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = [f"{name} {len(value)}" for name, value in values.items() if isinstance(value, pd.DataFrame)]
        return f"<Run {self.folder}: rows of {', '.join(rows)}>"


def load(folder: str | Path) -> Run:
    """Return a run's frames from its folder. Raises UsageError if its records cannot be read."""
    tables = read_tables(Path(folder))
    basis = tables.header.basis
    frames = {name: getattr(tables, name) for name in FRAMES}
    return Run(Path(folder), tables.study, basis.machine, basis.versions, **frames)


def read_tables(folder: Path) -> Tables:
    """Return the tables of a run's records. Raises UsageError if there are no records or they cannot be read."""
    records = read_run(folder)
    if not records:
        raise UsageError(f"{folder / FILE} is empty")
    return Tables(records, read_verification(folder))
