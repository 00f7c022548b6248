"""The report of a run on a GPU, made from the committed records of one."""

import json
import shutil
import statistics
from pathlib import Path

import pytest

from harness import report
from harness.analysis.tables import Tables
from harness.records.store import read_run
from harness.report import causes, summary

FOLDER = Path(__file__).parents[2] / "reports" / "2026-11-26-h100"
EAGER = ("torch", "eager", "book", "forward", "unrolled", "batched")


@pytest.fixture(scope="module")
def records():
    return read_run(FOLDER)


@pytest.fixture(scope="module")
def tables(records):
    return Tables(records)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    shutil.copy(next(FOLDER.glob("records.jsonl*")), folder)
    report.write(folder, html=False)
    return folder


def test_the_share_of_a_call_that_kernels_take_is_that_of_the_records(tables, records):
    arms = [
        (record.replicate, record.arms["unrolled_batched"])
        for record in records
        if record.kind == "block"
        and (record.configuration.framework, record.configuration.execution, record.workload.name) == EAGER[:3]
        and (record.pass_, record.part) == EAGER[3:5]
    ]
    call_ns = statistics.median(statistics.median(arm.samples_ns) / arm.calls for _, arm in arms)
    device_ns = next(arm.evidence.device_ns for replicate, arm in arms if replicate == 0)
    names = ("framework", "execution", "workload", "pass", "recurrence", "projection")
    row = next(row for row in causes._gpu_programs(tables) if tuple(row[name] for name in names) == EAGER)
    assert row["share"] == pytest.approx(device_ns / call_ns)
    assert f"{row['share']:.0%}" in causes.gpu_summary(tables)


def test_page_one_says_what_decides_on_a_gpu_and_names_no_thread_count(made):
    text = (made / "report.md").read_text()
    assert "The GPU's kernels take this share of a call: " in text
    for name in ("JAX eager", "JAX xla", "PyTorch eager", "PyTorch inductor", "PyTorch cudagraph"):
        assert f"{name} on gpu " in text
    assert "16 threads" not in text
    assert "16.0" not in text


def test_graphs_that_a_profiler_hides_are_not_known(tables):
    rows = causes._gpu_programs(tables)
    graphs = {(row["framework"], row["execution"]): row["graph_launches"] for row in rows}
    assert graphs["torch", "cudagraph"] >= 1
    assert graphs["torch", "eager"] == 0
    table = causes.gpu_time_table(tables)
    jax_lines = [line for line in table.splitlines() if "| jax " in line]
    assert jax_lines
    assert all(line.endswith("| not known |") for line in jax_lines)


def test_intervals_that_lack_what_compilers_choose_are_said_to(records, tables):
    assert summary.shares_compilation(tables)
    anew = [
        record.model_copy(update={"compiled_anew": True}) if record.kind == "block" else record for record in records
    ]
    assert not summary.shares_compilation(Tables(anew))


def test_a_layer_that_is_wrong_has_no_times(made):
    text = (made / "report.md").read_text()
    assert "- wrong: torch eager gpu layer, batched, vocab forward: " in text
    facts = json.loads((made / "environment.json").read_text())
    assert "H100" in json.dumps(facts)
