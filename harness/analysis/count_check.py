"""Compare what XLA was counted to launch for a card with what that card launched. Pure functions.

A call's kernels are counted twice, because only the card decides which library multiplies: with Triton's products and
with cuBLASLt's. The card agrees if it launched as many as one of the two.
"""

from collections.abc import Iterable

import pandas as pd

from harness.analysis.launch_scores import COUNTED as COUNTED_BY
from harness.analysis.launch_scores import of_version
from harness.records.counts import CountRecord

PROGRAM = ["workload", "pass", "recurrence", "projection"]
COUNTED = [COUNTED_BY, "kernels_triton", "kernels_cublaslt", "products_counted"]
LAUNCHED = {"device_kernels": "kernels_on_card", "products": "products_on_card"}  # columns of a run's evidence
COLUMNS = [*PROGRAM, *COUNTED, *LAUNCHED.values(), "agrees"]


def check_counts(records: Iterable[CountRecord], evidence: pd.DataFrame, version: str) -> pd.DataFrame:
    """Return a row for each counted program whose kernels a profiler counted on the card.

    `records`: counts for one card. `evidence`: that of a run on it (harness.analysis.loading), with a version of JAX.
    The kernels are those of one call, copies and library calls included; `agrees` holds where kernels and products are
    as many as counted.
    """
    counted = of_version(pd.DataFrame(_counted_rows(records), columns=[*PROGRAM, *COUNTED]), version)
    is_counted = (evidence.framework == "jax") & (evidence.execution == "xla") & (evidence.precision == "fp32")
    on_card = evidence[is_counted & (evidence.device == "gpu") & evidence.device_kernels.notna()]
    launched = on_card.drop_duplicates(PROGRAM)[[*PROGRAM, *LAUNCHED]].rename(columns=LAUNCHED)
    rows = counted.merge(launched, on=PROGRAM, how="inner")
    kernels = rows.kernels_on_card
    is_one_of_both = (kernels == rows.kernels_triton) | (kernels == rows.kernels_cublaslt)
    rows["agrees"] = is_one_of_both & (rows.products_on_card == rows.products_counted)
    return rows[COLUMNS].sort_values(PROGRAM, kind="stable", ignore_index=True)


def _counted_rows(records: Iterable[CountRecord]) -> list[tuple[object, ...]]:
    """Return the values of PROGRAM and COUNTED of each program that was counted with both libraries."""
    by_program: dict[tuple[str, ...], dict[bool, CountRecord]] = {}
    for record in records:
        if not record.reason:
            program = (record.workload, record.pass_, record.recurrence, record.projection)
            by_program.setdefault((record.xla, *program), {})[record.triton] = record
    rows = []
    for (xla, *program_key), counts in by_program.items():
        if len(counts) == 2:
            kernels = [counts[triton].from_host + counts[triton].in_graphs for triton in (True, False)]
            rows.append((*program_key, xla, *kernels, sum(counts[True].products.values())))
    return rows
