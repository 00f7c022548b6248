"""Committed reports are what their records give, and claim no more than that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import report
from harness.report import training
from harness.run import session
from tests.run.test_session import study

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize(
    "file", sorted(REPORTS.glob("*-cores/appendix/settings.md")), ids=lambda file: file.parents[1].name
)
def test_no_proof_is_claimed_for_intervals_whose_variance_is_estimated_anew(file):
    """Of committed reports, which are what their records give."""
    said = " ".join(file.read_text().split())
    assert "Stein" not in said
    assert (
        "the last interval estimates the variance anew from all processes; `selftest` counts how often it then holds"
        in said
    )


@pytest.mark.parametrize("folder", [f.parent.name for f in REPORTS.glob("*/records.jsonl*")])
def test_a_committed_report_is_what_its_records_give(folder, tmp_path, undrawn):
    kept = ("records.jsonl", "records.jsonl.gz", "idiomatic.csv", "kills.json", "apart.json", "repeat.json")
    (tmp_path / "again").mkdir()
    for name in kept:
        if (REPORTS / folder / name).exists():
            shutil.copy(REPORTS / folder / name, tmp_path / "again")
    report.write(tmp_path / "again")
    made = {file.name for file in (REPORTS / folder).glob("*.csv")} - {"idiomatic.csv"}
    assert made >= {"gaps.csv", "contrasts.csv", "times.csv", "identity.csv", "evidence.csv"}
    pages = {str(page.relative_to(REPORTS / folder)) for page in (REPORTS / folder).glob("appendix/*.md")}
    assert pages >= {"appendix/identity.md", "appendix/settings.md"}
    assert ("appendix/gaps.md" in pages) == ("selftest" not in folder)
    for name in ("report.md", "environment.json", *pages, *made):
        assert (tmp_path / "again" / name).read_bytes() == (REPORTS / folder / name).read_bytes(), name


@pytest.mark.parametrize("folder", [f.parent.name for f in REPORTS.glob("*/train.jsonl*")])
def test_a_committed_training_is_what_its_records_give(folder, tmp_path):
    shutil.copytree(REPORTS / folder, tmp_path / "again", ignore=shutil.ignore_patterns("*.png", "*.svg", "*.md"))
    training.write(tmp_path / "again")
    assert (tmp_path / "again" / "train.md").read_bytes() == (REPORTS / folder / "train.md").read_bytes()


def test_the_same_records_give_the_same_bytes(numpy_backend, tmp_path):
    session.run(study(processes=1), tmp_path / "run", False, "")
    for name in ("a", "b"):
        report.write(tmp_path / "run", tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) >= 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.slow
def test_no_figure_depends_on_how_python_orders_sets(tmp_path):
    """Of a report whose forms are many: the hash of a text differs from process to process."""
    processes = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        shutil.copy(REPORTS / "2026-11-26-vocab-chunks-jax" / "records.jsonl.gz", tmp_path / seed)
        command = [sys.executable, "-m", "harness", "report", "--no-html", str(tmp_path / seed)]
        processes.append(subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": seed}))
    assert [process.wait() for process in processes] == [0, 0]
    figures = sorted(file.name for file in (tmp_path / "1" / "figures").glob("*.png"))
    assert len(figures) >= 4
    for name in figures:
        first, second = ((tmp_path / seed / "figures" / name).read_bytes() for seed in ("1", "2"))
        assert first == second, name
