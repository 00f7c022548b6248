"""What changed between two runs, as Markdown for people and as JSON for programs."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.loading import read_tables
from harness.analysis.run_changes import GAP, TIME, Agreement, RunChanges, run_changes
from harness.errors import UsageError
from harness.report.markdown import execution_name, interval, pluralize, seconds, table, with_threads
from harness.study.configuration import CONFIG

SHOWN = 40  # cells that came or went, and facts, that the Markdown lists; JSON has all of them
OWN = ("study: ", "workload: ", "code: commit")  # beginnings of the names of facts in which repeated runs may differ


def compare(folders: tuple[Path, Path], limit: float | None, as_json: bool, is_repeated: bool) -> tuple[str, bool]:
    """Return the comparison of two runs, as text, and whether a change past a limit (a fraction) was found.

    `is_repeated`: they are runs of the same, of which the agreement is asked. Raises UsageError on records that cannot
    be read, and where repeated runs differ in code, versions or machine.
    """
    comparison = run_changes(*map(read_tables, folders))
    if is_repeated and (differing := [name for name in comparison.environment if _is_basis(name)]):
        raise UsageError(f"{folders[1]} is no repetition of {folders[0]}: they differ in {differing[0]}")
    failures = comparison.larger_than(limit) if limit is not None else comparison.changes.iloc[:0]
    write = _as_json if as_json else _as_markdown
    return write(folders, comparison, failures, limit), bool(len(failures))


def _is_basis(name: str) -> bool:
    """Return whether a fact is one that repeated runs share: the code, the machine, and the versions."""
    return not name.startswith(OWN)


def _as_json(folders: tuple[Path, Path], comparison: RunChanges, failures: pd.DataFrame, limit: float | None) -> str:
    share, low, high = comparison.agreement.interval
    content: dict[str, Any] = {
        "a": str(folders[0]),
        "b": str(folders[1]),
        "environment": {name: {"a": a, "b": b} for name, (a, b) in comparison.environment.items()},
        "changes": json.loads(comparison.changes.to_json(orient="records")),
        "appeared": comparison.appeared,
        "gone": comparison.gone,
        "no_times": comparison.no_times,
        "agreement": {
            "compared": comparison.agreement.compared,
            "agreeing": comparison.agreement.agreeing,
            "opposite": comparison.agreement.opposite,
            "share": None if math.isnan(share) else share,
            "ci_low": None if math.isnan(low) else low,
            "ci_high": None if math.isnan(high) else high,
        },
        "fail_on": limit,
        "failed": bool(len(failures)),
    }
    return json.dumps(content, indent=1)


def _as_markdown(
    folders: tuple[Path, Path], comparison: RunChanges, failures: pd.DataFrame, limit: float | None
) -> str:
    a, b = folders
    parts = [f"# What changed from {a} to {b}", _summary(comparison), agreement_sentence(comparison.agreement)]
    if limit is not None:
        count, percent = pluralize(len(failures), "change"), f"{100 * limit:.4g}%"
        parts.append(f"**{count} past {percent}**" if len(failures) else f"No change is past {percent}.")
    for kind, title in ((GAP, "Gaps"), (TIME, "Times")):
        rows = comparison.changes[comparison.changes.changed & (comparison.changes.kind == kind)]
        if len(rows):
            ordered = rows.sort_values("change", key=lambda change: -abs(change.map(math.log)))
            parts += [f"## {title} that changed", table(["", "a", "b", "b / a"], map(_row, ordered.to_dict("records")))]
    for title, cells in (
        ("Cells that only b measured", comparison.appeared),
        ("Cells that only a measured", comparison.gone),
    ):
        if cells:
            more = [f"- and {len(cells) - SHOWN} more"] if len(cells) > SHOWN else []
            parts += [f"## {title}", "\n".join([*(f"- {cell}" for cell in cells[:SHOWN]), *more])]
    if comparison.environment:
        facts = [[name, *(value[:SHOWN] for value in pair)] for name, pair in comparison.environment.items()]
        parts += ["## What differs in the environments", table(["", "a", "b"], facts)]
    return "\n\n".join(parts) + "\n"


def _summary(comparison: RunChanges) -> str:
    """Say how many cells were compared, and how many changed."""
    parts = []
    for kind, noun in ((GAP, "gap"), (TIME, "time")):
        frame = comparison.changes[comparison.changes.kind == kind]
        parts.append(f"{int(frame.changed.sum())} of {pluralize(len(frame), noun)}")
    note = f" Times were not compared: {comparison.no_times}." if comparison.no_times else ""
    return (
        f"Changed beyond their joint interval, by Welch's t at 5%, Holm-corrected over all of a kind: {parts[0]} and "
        f"{parts[1]}.{note}"
    )


def agreement_sentence(agreement: Agreement) -> str:
    """Say how far two runs agree."""
    if not agreement.compared:
        return "No gap was measured in two processes or more by both."
    share, low, high = agreement.interval
    return (
        f"The runs agree on {agreement.agreeing} of {pluralize(agreement.compared, 'gap')}, {share:.1%} "
        f"[{low:.1%}, {high:.1%}], by uncorrected 95% intervals of their change: repeated runs of the same do on 95%. "
        f"{pluralize(agreement.opposite, 'gap')} changed to the other side of 1."
    )


def _row(row: dict[Any, Any]) -> list[str]:
    """Return a change as a row of the Markdown's table."""
    where = execution_name(*(row[name] for name in (CONFIG[0], "execution", "device", "precision")))
    place = with_threads(f"{where} {row['recurrence']} {row['contender']}", row["device"], row["threads"])
    is_gap = row["kind"] == GAP
    over = f"/{row['baseline']}" if is_gap else ""
    values = [f"{row[run]:.3f}" if is_gap else seconds(row[run]) for run in "ab"]
    name = f"{place}{over}, {row['workload']} {row['pass']}"
    return [name, *values, interval(row["change"], row["ci_low"], row["ci_high"])]
