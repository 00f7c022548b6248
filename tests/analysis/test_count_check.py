"""Counts of launches against what a card launched: on tables written out here, and on the first card's own run."""

from pathlib import Path

import pandas as pd
import pytest

from harness.analysis.count_check import check_counts
from harness.analysis.loading import load
from harness.records import counts
from harness.records.counts import CountRecord, LaunchCount

REPORTS = Path(__file__).parents[2] / "reports"
OLD, NEW = "jax-cuda12-pjrt 0.10.2", "jax-cuda13-pjrt 0.11.2"
PROGRAM = {"workload": "book", "pass": "forward", "recurrence": "scan", "projection": "in_loop"}


def launched(times, graph=0, product=None, library=""):
    return LaunchCount(
        kind="k", times=times, graph=graph, product=product, library=library, moved_bytes=0, sliced=False, alike=1
    )


def record(triton, kernels, xla=NEW, **more):
    library = "Triton" if triton else "cuBLASLt"
    launches = [launched(kernels - 3, graph=1), launched(3, product=(1, 2, 3, 4), library=library)]
    return CountRecord(card="h100", xla=xla, triton=triton, launches=launches, **(PROGRAM | more))


def evidence(kernels, products=3.0, **more):
    row = {"framework": "jax", "execution": "xla", "precision": "fp32", "device": "gpu", **PROGRAM}
    return pd.DataFrame([row | {"device_kernels": kernels, "products": products} | more])


@pytest.mark.parametrize(
    ("kernels", "products", "agrees"), [(25, 3, True), (20, 3, True), (22, 3, False), (25, 4, False), (25, None, False)]
)
def test_a_card_agrees_that_launches_as_many_as_with_one_of_the_libraries(kernels, products, agrees):
    (row,) = check_counts([record(True, 25), record(False, 20)], evidence(kernels, products), "0.11.2").to_dict(
        "records"
    )
    assert (row["kernels_triton"], row["kernels_cublaslt"], row["kernels_on_card"]) == (25, 20, kernels)
    assert row["agrees"] == agrees


@pytest.mark.parametrize("other", [{"device": "cpu"}, {"precision": "bf16"}, {"framework": "tf"}, {"workload": "x"}])
def test_only_the_same_program_on_a_gpu_is_compared(other):
    assert check_counts([record(True, 25), record(False, 20)], evidence(25, **other), "0.11.2").empty


def test_a_program_counted_with_one_library_alone_is_not_compared():
    assert check_counts([record(True, 25)], evidence(25), "0.11.2").empty
    assert check_counts(
        [record(True, 25), record(False, 20, reason="it does not compile")], evidence(25), "0.11.2"
    ).empty


def test_the_counts_of_the_version_that_ran_are_taken_and_all_where_none_is_of_it():
    records = [record(triton, kernels, xla) for triton in (True, False) for kernels, xla in ((25, OLD), (30, NEW))]
    for version, kernels in (("0.11.2", [30]), ("0.10.2", [25]), ("0.12.0", [25, 30])):
        assert sorted(check_counts(records, evidence(25), version).kernels_triton) == kernels


@pytest.mark.parametrize(("run", "programs"), [("2026-11-26-h100", 11), ("2026-11-26-h100-loops", 4)])
def test_every_program_of_the_first_card_launched_what_was_counted_without_it(run, programs):
    counted = counts.read(REPORTS / "2026-11-26-gpu-predictions")
    rows = check_counts(counted, load(REPORTS / run).evidence, "0.11.2")
    assert (len(rows), rows.agrees.sum()) == (programs, programs)
