"""The commands `count` and `score`: what a GPU would launch, what is predicted from it, and how that turned out."""

import math
from pathlib import Path

import pandas as pd
from rich.table import Table

from harness.analysis import count_check, launch_scores
from harness.analysis.launch_model import CARDS
from harness.analysis.loading import load
from harness.cli.options import Selection, apply_limits
from harness.errors import UsageError
from harness.records import counts as stored_counts
from harness.report import counted
from harness.run import count as counts
from harness.run.progress import console
from harness.study.study import NAMED, load_study, validate_choice
from impls.interface import RECURRENCES

CHECKED = ("program", "kernels counted, Triton / cuBLASLt", "on the card", "products counted", "on the card", "outcome")
COLUMNS = ("framework", "execution", "ratios in their range", "off by", "no gap off by", "times in their range")


def count(
    cards: list[str] | None, selection: Selection, unroll_limit: int | None, evidence: Path | None, out: Path
) -> Path:
    """Count into `out`, write the page, and return its path. Raises UsageError."""
    for card in cards or ():
        try:
            validate_choice("card", card, CARDS)
        except ValueError as error:
            raise UsageError(str(error)) from None
    study = apply_limits(load_study(None, None, selection.fields()), None, unroll_limit)
    frame = load(evidence).evidence if evidence else None
    counting = counts.Counting(
        cards=cards or tuple(CARDS),
        workloads=study.workloads if selection.workload else tuple(NAMED.values()),
        recurrences=study.recurrences or RECURRENCES,
        projections=study.projections,
        passes=study.passes,
        unroll_limit=study.unroll_limit,
    )
    counts.count(counting, out)
    return counted.write(out, frame)


def score(predictions: Path, run: Path, out: Path | None) -> None:
    """Print how many predictions, or counts, a run on a GPU bore out, and write all rows to `out`.

    `predictions`: a file of predictions or a folder of counts. Raises UsageError where there is nothing to score.
    """
    rows, table = _score_counts(predictions, run) if predictions.is_dir() else _score_predictions(predictions, run)
    if out:
        rows.to_csv(out, index=False)
    console().print(table)


def _score_counts(folder: Path, run: Path) -> tuple[pd.DataFrame, Table]:
    """Return a row for each program that was counted for the run's GPU and profiled on it, and a table of them."""
    measured, records = load(run), stored_counts.read(folder)
    gpu, cards = str(measured.machine.get("gpu", "none")), sorted({record.card for record in records})
    if not (own := [record for record in records if record.card in gpu.lower()]):
        raise UsageError(f"{folder} has counts for {', '.join(cards)}, and the GPU of {run} is {gpu}")
    version = measured.versions.get("jax", {}).get("jax", "")
    rows = count_check.check_counts(own, measured.evidence, version)
    if rows.empty:
        raise UsageError(f"{run} has no profile of a program that {folder} counts")
    title = f"{rows.agrees.sum()} of {len(rows)} programs launch on the card what was counted without one"
    table = Table(*CHECKED, title=title)
    for row in rows.to_dict("records"):
        counted_kernels = dict.fromkeys((row["kernels_triton"], row["kernels_cublaslt"]))
        table.add_row(
            " ".join(row[name] for name in count_check.PROGRAM),
            " / ".join(map(str, counted_kernels)),
            str(row["kernels_on_card"]),
            str(row["products_counted"]),
            str(row["products_on_card"]),
            "as counted" if row["agrees"] else "differs",
        )
    return rows, table


def _score_predictions(predictions: Path, run: Path) -> tuple[pd.DataFrame, Table]:
    """Return a row for each predicted form that was measured, and a table that summarises them."""
    measured = load(run)
    version = measured.versions.get("jax", {}).get("jax", "")
    try:
        frame = pd.read_csv(predictions)
    except (OSError, ValueError) as error:
        raise UsageError(f"{predictions} cannot be read: {error}") from None
    if missing := {*launch_scores.FORM, launch_scores.COUNTED} - set(frame):
        raise UsageError(f"{predictions} holds no predictions: it has no column {min(missing)}")
    rows = launch_scores.scored(launch_scores.of_version(frame, version), measured.gaps, measured.times)
    if rows.empty:
        raise UsageError(f"{run} has no times of a GPU that {predictions} predicts")
    table = Table(*COLUMNS)
    for row in launch_scores.summarized(rows).to_dict("records"):
        table.add_row(
            str(row["framework"]),
            str(row["execution"]),
            f"{row['ratios_inside']} of {row['ratios']}",
            _percent(row["error"]),
            _percent(row["error_of_none"]),
            f"{row['times_inside']} of {row['times']}",
        )
    return rows, table


def _percent(factor: float) -> str:
    return "–" if math.isnan(factor) else f"{100 * (factor - 1):.0f} %"
