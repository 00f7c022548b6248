"""The page of counts: every number beside what it leaves open, nothing that looks like a time."""

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.records import counts
from harness.records.counts import CountRecord, LaunchCount
from harness.report import counted
from tests.impls.test_thunks import BY_HAND

COMMITTED = Path(__file__).parents[2] / "reports" / "2026-11-26-gpu-counted"


def launch(**changed) -> LaunchCount:
    fields = {"kind": "kCustomKernel", "times": 20, "graph": 1, "product": None, "library": "", "moved_bytes": 8}
    return LaunchCount(**(fields | {"sliced": False, "alike": 1} | changed))


def program(triton: bool, projection: str = "batched", **changed) -> CountRecord:
    gemm = {"product": (4, 50, 25, 100), "library": "Triton"} if triton else {}
    gemm = gemm or {"product": (1, 50, 100, 100), "library": "cuBLASLt", "kind": "kCublasLtMatmul"}
    fields = {"card": "h100", "xla": "xla 1", "workload": "book", "pass_": "forward", "recurrence": "scan"}
    fields |= {
        "launches": [launch(**gemm), launch(graph=0, times=3)],
        "graphs": [20],
        "loops": [20],
        "temp_bytes": 1234,
    }
    return CountRecord(**(fields | {"triton": triton, "projection": projection} | changed))


@pytest.fixture
def folder(tmp_path):
    forms = [program(triton, form) for form in ("batched", "in_loop") for triton in (True, False)]
    broken = [program(True, "bmm", launches=[], reason="ValueError: it does not compile")]
    counts.append(tmp_path, [*forms, *broken])
    return tmp_path


def test_both_ways_to_multiply_are_beside_each_other_where_they_differ():
    row = counted.count_row({triton: program(triton) for triton in (True, False)})
    assert row[:6] == ["scan", "batched", "3", "20", "20", "20 Triton / 20 cuBLASLt"]
    assert row[6:8] == ["20", "1,234"]


def test_each_number_has_what_it_leaves_open():
    everything = {triton: program(triton) for triton in (True, False)}
    assert counted.left_open(everything) == "library, split of K, second kernels"
    sliced = [launch(sliced=True)]
    assert counted.left_open(dict.fromkeys((True, False), program(True, launches=sliced))) == "overlap"
    assert counted.left_open(dict.fromkeys((True, False), program(True, launches=[launch()]))) == "–"


def test_the_page_has_counts_and_predictions_and_says_what_is_missing(folder):
    page = counted.write(folder, None).read_text()
    assert "## H100, book, forward (xla 1)" in page
    assert "| scan | in_loop | 3 | 20 | 20 | 20 Triton / 20 cuBLASLt | 20 | 1,234 |" in page
    assert "- h100 book forward scan_bmm with Triton: ValueError: it does not compile" in page
    assert re.search(r"\| H100 \| JAX xla \| book \| forward \| scan \| 0\.9\d to 1\.0\d \| – \| – \| xla 1 \|", page)
    assert "- TensorFlow, every execution, every loop: what TensorFlow launches on a GPU was not counted" in page
    assert {file.name for file in folder.iterdir()} >= {"counts.csv", "predictions.csv", "constants.csv"}
    assert pd.read_csv(folder / "counts.csv").from_host.tolist() == [3, 3, 3, 3, 0]


@pytest.mark.parametrize("card", ["h100", "a100"])
@pytest.mark.parametrize("form", BY_HAND)
def test_the_committed_counts_are_what_was_worked_out_by_hand(card, form):
    records = counts.read(COMMITTED)
    (record,) = (record for record in records if record.key == (card, False, "vocab", "forward", "scan", form))
    assert {each.product: each.total for each in record.launches if each.product} == BY_HAND[form]
    assert record.products == {"cuBLASLt": sum(BY_HAND[form].values())}


def test_the_committed_tables_are_of_the_committed_counts():
    made = counted.csv_rows(counts.read(COMMITTED)).to_csv(index=False)
    assert made == (COMMITTED / "counts.csv").read_text()
    page = (COMMITTED / "counted.md").read_text()
    for table in counted.count_tables(counts.read(COMMITTED)):
        assert table["title"] in page
        assert table["table"] in page


def test_every_word_of_the_last_column_is_explained(folder):
    page = counted.write(folder, None).read_text()
    for word in (counted.AUTOTUNED, counted.SPLIT, counted.SECOND, counted.BESIDE):
        assert f"- **{word}**: " in page


def test_nothing_on_the_page_looks_like_a_time(folder):
    page = counted.write(folder, None).read_text()
    assert not re.search(r"\d\s*(?:[mµn]s|us|s|seconds|microseconds)\b", page)
