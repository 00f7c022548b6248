"""The report "On a GPU: counted, not timed": what XLA would launch, what that leaves open, and what is predicted."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.analysis.launch_predictions import constants, predictions
from harness.machine.folders import add_path_to_errors
from harness.records import counts
from harness.records.counts import CountRecord
from harness.report.markdown import FRAMEWORKS, table
from harness.report.pages import render

PAGE = "counted.md"
COLUMNS = (
    *("loop", "form", "from the host", "graphs", "kernels in graphs", "products"),
    *("trips", "memory", "leaves open"),
)
CSV = (
    *("card", "xla", "workload", "pass", "recurrence", "projection", "triton", "from_host", "graphs", "in_graphs"),
    *("products", "trips", "temp_bytes", "reason"),
)
AUTOTUNED, SPLIT, SECOND, BESIDE = "library", "split of K", "second kernels", "overlap"  # explained on the page
Programs = dict[bool, CountRecord]  # with Triton's products, and without


def write(folder: Path, evidence: pd.DataFrame | None) -> Path:
    """Write the page and its tables into a folder that holds counts, and return the page's path.

    `evidence`: that of a run on a CPU, from which eager frameworks are predicted; without it they are left out. Raises
    UsageError where the counts cannot be read.
    """
    records = counts.read(folder)
    predicted = predictions(records, evidence, list(dict.fromkeys(record.card for record in records)))
    with add_path_to_errors(folder):
        csv_rows(records).to_csv(folder / "counts.csv", index=False)
        predicted.to_csv(folder / "predictions.csv", index=False)
        constants().to_csv(folder / "constants.csv", index=False)
        (folder / PAGE).write_text(render(f"{PAGE}.j2", context(records, predicted)), encoding="utf-8")
    return folder / PAGE


def context(records: list[CountRecord], predicted: pd.DataFrame) -> dict[str, Any]:
    """Return the variables of the page."""
    return {
        "cards": list(dict.fromkeys(record.card for record in records)),
        "compilers": list(dict.fromkeys(record.xla for record in records)),
        "programs": len(records),
        "failed": [f"{record.card} {form_name(record)}: {record.reason}" for record in records if record.reason],
        "tables": list(count_tables(records)),
        "predictions": predicted_table(predicted),
        "not_predicted": not_predicted(predicted),
    }


def csv_rows(records: Iterable[CountRecord]) -> pd.DataFrame:
    """Return a row for each compiled program."""
    rows = [
        (
            *(r.card, r.xla, r.workload, r.pass_, r.recurrence, r.projection, r.triton, r.from_host),
            *(" ".join(map(str, r.graphs)), r.in_graphs, _products(r), " ".join(map(str, r.loops))),
            *(r.temp_bytes, r.reason),
        )
        for r in records
    ]
    return pd.DataFrame(rows, columns=list(CSV))


def count_tables(records: Iterable[CountRecord]) -> Iterable[dict[str, str]]:
    """Yield the title and the table of each card, compiler, workload and pass."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], Programs]] = {}
    for record in records:
        if not record.reason:
            place = (record.card, record.xla, record.workload, record.pass_)
            forms = groups.setdefault(place, {})
            forms.setdefault((record.recurrence, record.projection), {})[record.triton] = record
    for (card, xla, workload, pass_), forms in groups.items():
        rows = [count_row(programs) for programs in forms.values() if len(programs) == 2]
        yield {"title": f"{card.upper()}, {workload}, {pass_} ({xla})", "table": table(COLUMNS, rows)}


def count_row(programs: Programs) -> list[str]:
    """Return a row: each count with Triton's products and with cuBLASLt's, parted by a slash where they differ."""
    both = [programs[triton] for triton in (True, False)]
    return [
        both[0].recurrence,
        both[0].projection,
        _both(record.from_host for record in both),
        _both(" + ".join(map(str, record.graphs)) or "0" for record in both),
        _both(record.in_graphs for record in both),
        _both(_products(record) or "0" for record in both),
        _both(" ".join(map(str, record.loops)) or "–" for record in both),
        _both(f"{record.temp_bytes or 0:,}" for record in both),
        left_open(programs),
    ]


def left_open(programs: Programs) -> str:
    """Return what the counts of a form leave open, because only a GPU decides it."""
    triton, library = programs[True], programs[False]
    reasons = []
    if triton.products != library.products:
        reasons.append(AUTOTUNED)
    if any(launch.product and launch.product[0] > 1 for launch in triton.launches):
        reasons.append(SPLIT)
    if any(launch.library.startswith("cuBLAS") for record in programs.values() for launch in record.launches):
        reasons.append(SECOND)
    if any(launch.sliced for record in programs.values() for launch in record.launches):
        reasons.append(BESIDE)
    return ", ".join(reasons) or "–"


def predicted_table(predicted: pd.DataFrame) -> str:
    """Return the predicted ratios over the batched form, a row for each loop of an execution."""
    if "ratio_mid" not in predicted:
        return ""
    rows = predicted[predicted.ratio_mid.notna() & predicted.projection.isin(["in_loop", "per_step", "bmm"])]
    place = ["card", "framework", "execution", "counted_by", "workload", "pass", "recurrence"]
    lines = []
    for key, group in rows.groupby(place, sort=False):
        card, framework, execution, by, workload, pass_, recurrence = key
        ranges = {row["projection"]: _range(row) for row in group.to_dict("records")}
        name = f"{FRAMEWORKS.get(str(framework), str(framework))} {execution}"
        cells = [ranges.get(projection, "–") for projection in ("in_loop", "per_step", "bmm")]
        lines.append([str(card).upper(), name, workload, pass_, recurrence, *cells, by])
    columns = ("card", "execution", "workload", "pass", "loop", "in_loop", "per_step", "bmm", "counted by")
    return table(columns, lines)


def not_predicted(predicted: pd.DataFrame) -> list[str]:
    """Return what is not predicted, each with the reason."""
    rows = predicted[predicted.not_predicted.notna()].to_dict("records")
    return [
        f"{FRAMEWORKS[row['framework']]}, {_any(row['execution'], 'execution')}, {_any(row['recurrence'], 'loop')}: "
        f"{row['not_predicted']}"
        for row in rows
    ]


def form_name(record: CountRecord) -> str:
    """Return the words that name a compiled program."""
    library = "Triton" if record.triton else "cuBLASLt"
    return f"{record.workload} {record.pass_} {record.recurrence}_{record.projection} with {library}"


def _any(name: str, kind: str) -> str:
    return f"every {kind}" if name == "*" else f"{kind} {name}"


def _products(record: CountRecord) -> str:
    return ", ".join(f"{count} {library}" for library, count in record.products.items())


def _both(values: Iterable[Any]) -> str:
    return " / ".join(dict.fromkeys(map(str, values)))


def _range(row: Mapping[Any, Any]) -> str:
    return f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
