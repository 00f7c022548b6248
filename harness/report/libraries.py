"""Which library multiplies in each framework and execution, what proves it, and at what rate."""

import re
from typing import Any

import pandas as pd

from harness.analysis.gaps import ENGINE
from harness.analysis.tables import Tables
from harness.report.causes import rows_with_fewest_threads
from harness.report.figures import execution_rank
from harness.report.markdown import execution_name, table, with_threads
from harness.study.configuration import CONFIG
from harness.study.study import Workload
from impls.libraries import PLAIN

SHOWN = ("vocab", "book")  # workloads; where a run has neither, its first ones
MOST = 2  # workloads shown
NAME = re.compile(r"(\d+)×(\S+)")
NOT_KNOWN = "not known"
Shape = tuple[int, int, int]


def section(tables: Tables) -> str:
    """Return a table with a row for each configuration, the first thread count first; "" if nothing is known.

    For each workload and both shapes of its projection (a step's [B, H] x [H, O] and all steps' [T*B, H] x [H, O]) it
    has the library, the rate and the rate's share of the best that any framework reached with as many threads.
    """
    evidence = tables.evidence
    if tables.rates.empty and (evidence.library == "").all():
        return ""
    workloads = _shown_workloads(tables)
    columns = [f"{w.name} [{shape[0]}×{shape[1]}×{shape[2]}]" for w in workloads for shape in _shapes(w)]
    configurations = pd.concat([evidence[CONFIG], tables.rates[CONFIG]]).drop_duplicates().to_dict("records")
    rows = []
    for place in sorted(
        configurations, key=lambda c: (c["threads"], execution_rank(c["execution"]), *map(str, c.values()))
    ):
        programs, rates = (_rows_of(frame, place) for frame in (evidence, tables.rates))
        cells = [_cell(programs, rates, w, shape) for w in workloads for shape in _shapes(w)]
        name = execution_name(place["framework"], place["execution"], place["device"], place["precision"])
        rows.append([with_threads(name, place["device"], place["threads"]), *cells, _proofs(programs)])
    return table(["", *columns, "shown by"], rows)


def summary(tables: Tables) -> str:
    """Say with what and how fast each execution multiplies a workload's product of all steps, with one thread count.

    Returns "" where no rate was measured.
    """
    if tables.rates.empty:
        return ""
    workload = _shown_workloads(tables)[0]
    shape = _shapes(workload)[1]
    configurations = rows_with_fewest_threads(tables.rates)[CONFIG].drop_duplicates().to_dict("records")
    configurations.sort(key=lambda c: (c["framework"], execution_rank(c["execution"]), *map(str, c.values())))
    cells = []
    for place in configurations:
        programs, rates = (_rows_of(frame, place) for frame in (tables.evidence, tables.rates))
        name = execution_name(place["framework"], place["execution"], place["device"], place["precision"])
        cells.append(f"{name} {_cell(programs, rates, workload, shape)}")
    text = "×".join(map(str, shape))
    start = f"The product of all steps of {workload.name} [{text}], with the share of the best rate of any framework"
    return f"{start}: {'; '.join(cells)}."


def problems(tables: Tables) -> list[str]:
    """Return where `plain` took nothing out, one line for each framework and execution; none as shipped."""
    if tables.study.library != "plain":
        return []
    lines = []
    for (framework, execution, device, precision), programs in tables.evidence.groupby(ENGINE, sort=True):
        shown = {name for text in programs.library for name in _names(text)}
        name = execution_name(framework, execution, device, precision)
        if others := sorted(shown - set(PLAIN)):
            lines.append(f"library plain did not take effect: {name} still multiplies with {' and '.join(others)}")
        elif not shown and (programs.products != 0).any():
            lines.append(f"library plain: nothing shows whether it took effect in {name}")
    return lines


def _names(text: str) -> list[str]:
    """Return the libraries of a program, as the column `library` writes them: 3×MKL; 2×oneDNN."""
    return [name for _, name in NAME.findall(text.replace(";", ""))]


def _shown_workloads(tables: Tables) -> list[Workload]:
    by_name = {workload.name: workload for workload in tables.study.workloads}
    return [by_name[name] for name in SHOWN if name in by_name] or list(by_name.values())[:MOST]


def _shapes(workload: Workload) -> tuple[Shape, ...]:
    """Return rows, inner and columns of projecting one step and all steps."""
    return workload.products[1:]


def _rows_of(frame: pd.DataFrame, place: dict[Any, Any]) -> pd.DataFrame:
    return frame[(frame[CONFIG] == pd.Series(place)[CONFIG]).all(axis=1)]


def _cell(programs: pd.DataFrame, rates: pd.DataFrame, workload: Workload, shape: Shape) -> str:
    """Return the library of a product, its rate, and the rate's share of the best."""
    of_shape = (rates[["rows", "inner", "columns"]] == list(shape)).all(axis=1)
    measured = rates[(rates.workload == workload.name) & of_shape]
    library = libraries_of(programs[programs.workload == workload.name], shape)
    if measured.empty:
        return f"{library}, –"
    row = measured.iloc[0]
    return f"{library}, {row.gflops:.3g} GFLOP/s ({row.share_of_best:.0%})"


def libraries_of(programs: pd.DataFrame, shape: Shape) -> str:
    """Return the library of a product, from programs that have no other product, or else from any that have it.

    Where these have several libraries, it is one of them. A program of which some products' library is missing tells
    nothing.
    """
    text = f"[{'×'.join(map(str, shape))}]"
    alone, among_others = set[str](), set[str]()
    for row in programs.to_dict("records"):
        shapes = {product.partition("×")[2] for product in row["shapes"].split("; ")}
        if text in shapes and row["library"] and "libraries:" not in row["missing"]:
            (alone if shapes == {text} else among_others).update(_names(row["library"]))
    return " or ".join(sorted(alone or among_others)) or NOT_KNOWN


def _proofs(programs: pd.DataFrame) -> str:
    """Return the first text that shows each library of a configuration's programs."""
    texts: dict[str, str] = {}
    for proof in programs.library_proof:
        for library, text in re.findall(r"(\w+): (.*?)(?=; \w+: |$)", proof):
            texts.setdefault(library, text)
    return "; ".join(f"{library}: `{text}`" for library, text in sorted(texts.items())) or NOT_KNOWN
