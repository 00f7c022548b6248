"""One report of several runs: side by side, and then each by itself. Nothing is merged, nothing averaged."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness.analysis.tables import Tables
from harness.errors import UsageError
from harness.machine.folders import naming
from harness.report import body, comparison, figures, make, rendered, tables, uncollected, words, written
from harness.report.markdown import sizes, table
from harness.study.study import plain, repeated

UNHELPFUL = ("", "latest", "run", "runs", "out", "report", "reports", "figures")  # as a run's label
Value = TypeVar("Value")
SHOWN = 12  # characters of a SHA-256


@dataclass(frozen=True)
class Measured:
    """A run and the folder that it was read from."""

    folder: Path
    tables: Tables


Runs = dict[str, Measured]  # by their labels, in the labels' order


@uncollected()
def write(folders: list[Path], out: Path | None) -> Path:
    """Write report.md of several runs into `out`, and each one's figures and tables into a folder of its label there.

    Returns the report's path. Raises UsageError on records that can not be read, on a folder given twice, and on an
    `out` that can not be had: nothing is changed in `folders`.
    """
    if out is None:
        raise UsageError("a report of several runs needs a folder of its own: give --out")
    _check(folders, out)
    runs = labelled([Measured(folder, tables(folder)) for folder in folders])
    make([out, *(out / label for label in runs)])
    found = comparison.compared({label: run.tables for label, run in runs.items()})
    variables = {
        "runs": [{"label": label, "sentence": words.sentence(run.tables)} for label, run in runs.items()],
        "machines": machines(runs),
        "differences": differences(runs),
        "comparison": comparison.everything(found),
    }
    with naming(out):
        if drawn := comparison.drawings(found, {run.tables.study.margin for run in runs.values()}):
            with figures.drawing(drawn, out / "figures"):
                pass
        bodies = [within(body(run.tables, run.folder, out / label), label) for label, run in runs.items()]
        return written(rendered("several.md.j2", variables | {"bodies": bodies}), out)


def _check(folders: list[Path], out: Path) -> None:
    """Raises UsageError on a folder given twice, and on an `out` that holds one of them or lies in one."""
    place, seen = _real(out), set[Path]()
    for folder in folders:
        mine = _real(folder)
        if mine in seen:
            raise UsageError(f"{folder} is given twice")
        if place.is_relative_to(mine) or mine.is_relative_to(place):
            raise UsageError(f"--out {out} must lie apart from the runs, and not hold {folder} or lie in it")
        seen.add(mine)


def _real(folder: Path) -> Path:
    """Where a folder really lies; links in a circle, which have no such place, stay as they are."""
    return Path(os.path.realpath(folder))


def labelled(runs: list[Measured]) -> Runs:
    """The runs under labels that do not depend on their order: the folder's name, where it tells them apart.

    Where two have the same, or it says nothing, the label is made of the day and the machine; where that does not tell
    them apart either, they are numbered in the order they were measured.
    """
    names = [plain(run.folder.resolve().name) for run in runs]
    count = Counter(map(str.lower, names))
    found: Runs = {}
    unnamed = []
    for name, run in zip(names, runs, strict=True):
        if count[name.lower()] == 1 and name.lower() not in UNHELPFUL:
            found[name] = run
        else:
            unnamed.append((_machine(run.tables), run))
    for label, run in sorted(unnamed, key=_order):
        number, unique = 1, label
        while repeated([*found, unique]):
            number += 1
            unique = f"{label}-{number}"
        found[unique] = run
    return dict(sorted(found.items()))


def _order(told: tuple[str, Measured]) -> tuple[str, ...]:
    label, run = told
    return label, *words.measured(run.tables), str(run.folder.resolve())


def _machine(tables: Tables) -> str:
    """The day and the processor, as folders of reports are named."""
    machine = tables.heading["basis"]["machine"]
    day = words.measured(tables)[0].partition("T")[0]
    return plain(f"{day} {machine.get('cpu', 'machine')} {machine.get('cores', '')} cores".lower())


def machines(runs: Runs) -> str:
    """A row for each fact, a column for each run."""
    facts = {label: _facts(run.tables) for label, run in runs.items()}
    names = dict.fromkeys(name for each in facts.values() for name in each)
    return table(["", *facts], [[name, *(each.get(name, "–") for each in facts.values())] for name in names])


def _facts(tables: Tables) -> dict[str, Any]:
    """What a reader must know of a run to judge its numbers."""
    basis, blocks = tables.heading["basis"], tables.blocks
    versions = {
        framework: ", ".join(f"{name} {version}" for name, version in found.items()) or "not there"
        for framework, found in basis["versions"].items()
        if framework != "libraries"
    }
    began, ended = words.measured(tables)
    return {
        "devices": ", ".join(sorted({block["device"] for block in blocks})) or "–",
        **basis["machine"],
        **versions,
        "code": f"{basis['code']['commit']} (hash {basis['code']['hash']})",
        "measured": f"{began} to {ended}",
        "blocks": len(blocks),
        "scale": tables.study.label,
        "margin": f"{tables.study.margin:.0%}",
    }


def differences(runs: Runs) -> list[str]:
    """In what the runs are not the same study, a line each."""
    of = _each(runs, lambda t: {w.name: sizes(w.model_dump()) for w in t.study.workloads})
    weights = _each(runs, lambda t: {file: hash_[:SHOWN] for file, hash_ in t.heading["weights"].items()})
    every = [
        _differ("the code that measured (its hash)", _each(runs, lambda t: t.heading["basis"]["code"]["hash"])),
        _differ("how workers take memory", _each(runs, lambda t: t.study.memory)),
        _differ("the margin", _each(runs, lambda t: f"{t.study.margin:.2%}")),
        *_differ_in("workload {}", of),
        *_differ_in("`{}` (its SHA-256)", weights),
    ]
    return [line for line in every if line]


def _differ_in(what: str, values: dict[str, dict[str, str]]) -> list[str]:
    """Of each name that two labels have."""
    names = sorted({name for one in values.values() for name in one})
    return [
        _differ(what.format(name), {label: one[name] for label, one in values.items() if name in one}) for name in names
    ]


def _each(runs: Runs, fact: Callable[[Tables], Value]) -> dict[str, Value]:
    return {label: fact(run.tables) for label, run in runs.items()}


def _differ(what: str, values: dict[str, str]) -> str:
    """Which value which label has; nothing where all have the same."""
    if len(set(values.values())) < 2:
        return ""
    each = (
        f"{value} in {' and '.join(label for label, its in values.items() if its == value)}"
        for value in sorted(set(values.values()))
    )
    return f"{what}: {'; '.join(each)}"


def within(text: str, label: str) -> str:
    """A run's report as a part of a larger one.

    Its title begins with the label, its headings are one level lower, its figures lie in the label's folder.
    """
    lines, code = [], False
    for line in text.replace("# ", f"# {label}: ", 1).split("\n"):
        code ^= line.startswith("```")
        if not code and line.startswith("#"):
            lines.append(f"#{line}")
        elif not code and line.startswith("!["):
            said, _, path = line.rpartition("](")
            lines.append(f"{said}]({label}/{path}")
        else:
            lines.append(line)
    return "\n".join(lines)
