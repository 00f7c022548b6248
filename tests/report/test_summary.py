"""The first part of the report, from tables made up here."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness.analysis import stats
from harness.analysis.changes import CHANGES
from harness.analysis.gaps import GAPS
from harness.analysis.steps import STEPS
from harness.records.schema import RunHeaderRecord
from harness.report import summary
from harness.report.markdown import ratio
from harness.study.study import Study

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
        changes=pd.DataFrame(columns=CHANGES),
        steps=pd.DataFrame(columns=STEPS),
        loops={},
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
        "[1.03, 1.09] longer, inconclusive"
    )


def test_of_how_many_gaps_equivalence_could_have_been_shown_is_told():
    narrow = ("in_loop", 1.03, 1.012, 1.048, "inconclusive", True)  # ±1.8%
    said = summary.comparison_counts(tables(SAME, narrow, UNSURE, SLOWER))
    assert (
        "Equivalence could have been shown in 2, whose interval's half-width is below the margin, before the "
        "correction for several comparisons, and was in 1." in said
    )


def test_no_count_of_cells_is_in_the_answer():
    assert not re.search(r"in \d+", summary.short_answer(tables(SLOWER, FASTER, UNSURE, SAME)))


def test_a_smoke_run_makes_no_claim():
    assert "makes no claim" in summary.answer(tables(SLOWER, label="quick"))


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
