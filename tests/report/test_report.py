"""Committed reports are what their records give, and claim no more than that."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from harness import report
from harness.report import training

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


class TablesAlone:
    """Instead of drawing: figures are looked at elsewhere, and take longer than all the rest."""

    def draw(self, figures):
        pass

    def run(self, tasks):
        for task in tasks:
            task()


@pytest.mark.parametrize("folder", [f.parent.name for f in REPORTS.glob("*/records.jsonl*")])
def test_a_committed_report_is_what_its_records_give(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "drawers_started", nullcontext)
    monkeypatch.setattr(report.figures, "in_background", lambda folder, started: nullcontext(TablesAlone()))
    kept = ("records.jsonl", "records.jsonl.gz", "idiomatic.csv", "kills.json", "apart.json", "repeat.json")
    (tmp_path / "again").mkdir()
    for name in kept:
        if (REPORTS / folder / name).exists():
            shutil.copy(REPORTS / folder / name, tmp_path / "again")
    report.write(tmp_path / "again", html=False)
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
