"""What the report says, from tables made up here; and that committed reports are what their records give."""

import math
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness import report
from harness.analysis import stats
from harness.analysis.gaps import GAPS
from harness.records.schema import RunHeaderRecord
from harness.report import appendix, sections, summary, training
from harness.report.markdown import ratio
from harness.study.study import Study

REPORTS = Path(__file__).parents[2] / "reports"
CONFIG = ("torch", "cpu", 1, "eager", "fp32", "book", "forward", "unrolled")


def header(budget_s):
    """The header of a run with this budget."""
    own = {"key": "k-0", "kind": "study", "status": "ok", "reason": "", "command": "c", "weights": {}, "missing": []}
    basis = {"machine": {}, "versions": {}, "code": {"commit": "c", "hash": "h"}}
    own |= {"study": {"budget_s": budget_s}, "basis": basis, "environments": {}, "cells": [], "absent": []}
    return RunHeaderRecord.model_validate(own)


def tables(*rows, label="default"):
    """Rows of contender, ratio, low, high, verdict, trusted."""
    made = []
    for contender, ratio_, low, high, verdict, trusted in rows:
        direction = stats.Gap(ratio_, low, high, 3, verdict, 1.0).direction
        gap = (ratio_, low, high, 3, 40, verdict, trusted, 7.0, direction)
        made.append((*CONFIG, contender, "batched", *gap))
    return SimpleNamespace(
        gaps=pd.DataFrame(made, columns=GAPS),
        study=SimpleNamespace(label=label, margin=0.02),
        blocks=[],
        sessions=[header(1.0)],
        prototypes=pd.DataFrame(columns=GAPS),
    )


SLOWER = ("in_loop", 1.5, 1.4, 1.6, "slower", True)
FASTER = ("in_loop", 0.8, 0.7, 0.9, "faster", True)
UNSURE = ("in_loop", 1.01, 0.9, 1.1, "inconclusive", True)
SAME = ("in_loop", 1.005, 1.002, 1.008, "equivalent", True)
BEYOND = ("in_loop", 1.06, 1.03, 1.09, "inconclusive", True)  # longer, and by how much is not shown
UNTRUSTED = ("in_loop", 1.9, 1.8, 2.0, "slower", False)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([SLOWER], "**yes, slower by more than 2% in every comparison**"),
        ([SLOWER, UNSURE], "**slower by more than 2% in some comparisons, not known in the others**"),
        ([FASTER, UNSURE], "**faster in some comparisons, not known in the others**"),
        ([FASTER, SAME], "**no, equivalent or faster in every comparison**"),
        ([SLOWER, FASTER], "**it depends: slower by more than 2% in some comparisons, faster in others**"),
        ([UNSURE], "**this run cannot tell**"),
        ([UNTRUSTED], "**this run cannot tell**"),
        ([SLOWER, UNTRUSTED], "Left out: 1 in blocks whose A/A control missed 1"),
        ([], "has no answer"),
    ],
)
def test_the_answer_is_that_of_the_verdicts(rows, said):
    assert said in summary.answer(tables(*rows))


def test_an_untrusted_verdict_is_not_counted():
    assert "ratio of 1.50" in summary.answer(tables(SLOWER, UNTRUSTED))
    assert "| 1 | 0 | 0 | 1 | 0 | 0 | 0 | 0 | 1 | 1.50 to 1.50 |" in summary.execution_table(tables(SLOWER, UNTRUSTED))


def test_direction_and_size_are_told_apart():
    said = summary.comparison_counts(tables(SLOWER, FASTER, UNSURE, SAME, BEYOND))
    assert "in_loop takes longer in 3, shorter in 1, unknown in 1 (the interval holds 1)" in said
    assert "slower in 1, faster in 1, equivalent in 1, inconclusive in 2" in said
    assert ratio(dict(zip(GAPS, tables(BEYOND).gaps.iloc[0], strict=True))).endswith(
        "[1.030, 1.090] longer, inconclusive"
    )


def test_of_how_many_gaps_equivalence_could_have_been_shown_is_told():
    narrow = ("in_loop", 1.03, 1.012, 1.048, "inconclusive", True)  # ±1.8%
    said = summary.comparison_counts(tables(SAME, narrow, UNSURE, SLOWER))
    assert (
        "Equivalence could have been shown in 2, whose interval's half-width is below the margin, and was in 1." in said
    )


def test_no_count_of_cells_is_in_the_answer():
    assert not re.search(r"in \d+", summary.short_answer(tables(SLOWER, FASTER, UNSURE, SAME)))


def test_a_smoke_run_makes_no_claim():
    assert "makes no claim" in summary.answer(tables(SLOWER, label="quick"))


def test_a_block_is_marked_by_its_control():
    def marked(low, high, trusted):
        return sections.control_mark({"ci_low": low, "ci_high": high, "trusted": trusted}, 0.02)

    assert marked(0.99, 1.01, True) == ""
    assert marked(0.97, 1.03, True) == "coarse"
    assert marked(1.01, 1.03, False) == "⚠ untrusted"


def test_the_idiomatic_comparison_is_shown_and_what_costs_more_is_bold():
    row = {"framework": "tf", "execution": "graph", "arm": "scan_batched", "idiomatic": "keras", "note": "n"}
    row |= {"ours_us": "1000", "its_us": "900", "lowest": "1.1", "highest": "1.12"}
    assert appendix.idiomatic_table([]) == ""
    assert "| 1 ms | 900 µs | **1.110 [1.100, 1.120]** |" in appendix.idiomatic_table([row | {"ratio": "1.11"}])
    assert "**" not in appendix.idiomatic_table([row | {"ratio": "1.04"}])


def first_calls(cost_s, later_s, eager_s):
    """What is said of one compiled arm and of the eager one beside it, whose first call takes 1 s."""
    rows = [("inductor", replicate, later_s, cost_s if replicate == 0 else math.nan) for replicate in range(2)]
    rows += [("eager", replicate, eager_s, 1.0 if replicate == 0 else math.nan) for replicate in range(2)]
    place = {"framework": "torch", "device": "cpu", "precision": "fp32", "threads": 1, "workload": "book"}
    place |= {"pass": "forward", "projection": "batched", "recurrence": "unrolled"}
    names = ("execution", "process", "median_s", "first_call_s")
    times = pd.DataFrame([place | dict(zip(names, row, strict=True)) for row in rows])
    study = SimpleNamespace(workloads=[SimpleNamespace(name="book")])
    heading, _, row = appendix.first_calls(SimpleNamespace(times=times, study=study)).splitlines()
    return heading, row


@pytest.mark.parametrize(
    ("cost_s", "later_s", "said"),
    [
        (1.0, 1e-3, "| 1 call |"),
        (1.0495, 1e-3, "| 51 calls |"),
        (13.345, 1e-3, "| about 12,000 calls |"),
        (2.0, 2e-3, "| never: eager is as fast |"),
    ],
)
def test_a_break_even_is_marked_as_from_one_cold_call_and_has_no_more_digits_than_that_tells(cost_s, later_s, said):
    heading, row = first_calls(cost_s, later_s, 2e-3)
    assert heading.endswith("| break-even, from one cold call |")
    assert row.endswith(said)


@pytest.mark.parametrize("file", sorted(REPORTS.glob("*-cores/report.md")), ids=lambda file: file.parent.name)
def test_no_proof_is_claimed_for_intervals_whose_variance_is_estimated_anew(file):
    """Of committed reports, which are what their records give."""
    said = " ".join(file.read_text().partition("## Method")[2].split())
    assert "Stein" not in said
    assert (
        "the last interval estimates the variance anew from all processes; `selftest` counts how often it then holds"
        in said
    )


KILLED = {
    "kills": {"parent": 60, "worker": 40},
    "lost": 0,
    "doubled": 0,
    "finished": True,
    "same_blocks": True,
    "left_running": 0,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "60 times its parent and 40 times its worker, each time gone on with by `--resume`, and came to the same"),
        ({"same_blocks": False}, "**other blocks than** a run left alone"),
        ({"finished": False, "same_blocks": False}, "came to **no end, and to other blocks than** a run left alone"),
        ({"lost": 2, "doubled": 1}, "Records lost: 2; doubled: 1;"),
    ],
)
def test_what_kills_did_is_said_as_it_was(changed, said):
    assert said in appendix.kill_summary(KILLED | {"blocks": 12} | changed)


def test_arms_apart_stand_beside_arms_that_alternate():
    row = {"cell": ["torch", "eager", "unrolled", "in_loop", "forward"], "processes": 10}
    row |= {"alternating": [1.1, 1.05, 1.15], "apart": [1.2, 1.0, 1.4], "apart / alternating": [1.09, 0.9, 1.3]}
    assert "1.100 [1.050, 1.150] | 1.200 [1.000, 1.400] | 1.090 [0.900, 1.300] |" in appendix.alternation_bias([row])


@contextmanager
def tables_alone(figures, folder, tasks=()):
    """Instead of drawing: figures are looked at elsewhere, and take longer than all the rest."""
    for task in tasks:
        task()
    yield


@pytest.mark.parametrize("folder", [f.parent.name for f in REPORTS.glob("*/records.jsonl*")])
def test_a_committed_report_is_what_its_records_give(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "draw_in_background", tables_alone)
    kept = ("records.jsonl", "records.jsonl.gz", "idiomatic.csv", "kills.json", "apart.json", "repeat.json")
    (tmp_path / "again").mkdir()
    for name in kept:
        if (REPORTS / folder / name).exists():
            shutil.copy(REPORTS / folder / name, tmp_path / "again")
    report.write(tmp_path / "again")
    made = {file.name for file in (REPORTS / folder).glob("*.csv")} - {"idiomatic.csv"}
    assert made >= {"gaps.csv", "contrasts.csv", "times.csv", "identity.csv", "evidence.csv"}
    for name in ("report.md", "environment.json", *made):
        assert (tmp_path / "again" / name).read_bytes() == (REPORTS / folder / name).read_bytes(), name


class OtherProcessor:
    """NumPy with a logarithm whose last digit is another, as that of other vector instructions is."""

    def __getattr__(self, name):
        return getattr(np, name)

    def log(self, a):
        found = np.log(a)
        return np.where(found == 0, found, np.nextafter(found, np.inf))


def test_tables_do_not_depend_on_the_processors_last_digits(tmp_path, monkeypatch):
    folder = REPORTS / "2026-11-24-amd-epyc-2-cores-selftest"
    monkeypatch.setattr(stats, "np", OtherProcessor())
    for write in report.read_tables(folder).files(tmp_path):
        write()
    tables = list(tmp_path.glob("*.csv"))
    assert len(tables) == 5
    for table in tables:
        assert table.read_bytes() == (folder / table.name).read_bytes(), table.name


@pytest.mark.parametrize("folder", [f.parent.name for f in REPORTS.glob("*/train.jsonl*")])
def test_a_committed_training_is_what_its_records_give(folder, tmp_path):
    shutil.copytree(REPORTS / folder, tmp_path / "again", ignore=shutil.ignore_patterns("*.png", "*.svg", "*.md"))
    training.write(tmp_path / "again")
    assert (tmp_path / "again" / "train.md").read_bytes() == (REPORTS / folder / "train.md").read_bytes()


@pytest.mark.parametrize(
    ("misses", "said"),
    [
        (0, "fewer than that, so that the contenders' intervals too are wider than they need be"),
        (10, "as many as that, as far as so many blocks can tell"),
        (30, "**more than that, so that the contenders' intervals too are narrower than they should be**"),
    ],
)
def test_what_the_control_s_rate_means_is_said_in_both_directions(misses, said):
    gaps = pd.DataFrame({"contender": "twin", "ci_low": 0.99, "ci_high": 1.01, "trusted": np.arange(200) >= misses})
    text = summary.control_summary(SimpleNamespace(gaps=gaps, study=Study()))
    assert f"misses 1 in {misses} of 200 blocks" in text
    assert f"where 5% is what 95% intervals promise): {said}." in text
