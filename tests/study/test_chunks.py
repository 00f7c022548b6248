"""Chunks of time: how steps are cut, which cells there are, what they are compared with, and how they are shown."""

import re

import pytest
from pydantic import ValidationError

from harness.analysis.gaps import gaps_and_contrasts
from harness.errors import UsageError
from harness.report import figures, sections
from harness.study import matrix
from harness.study.matrix import Cell, Framework
from harness.study.parts import arms_by_part
from harness.study.study import Study, load_study
from impls.interface import CHUNKED, Arm, chunk_sizes, family_of
from tests.conftest import SMALL
from tests.made import block, execution
from tests.study.test_parts import CONFIG


@pytest.mark.parametrize(
    ("projection", "steps", "sizes"),
    [
        ("chunked_1", 7, [7]),
        ("chunked_2", 7, [4, 3]),
        ("chunked_3", 7, [3, 2, 2]),
        ("chunked_16", 20, [2] * 4 + [1] * 12),
        ("chunked_T", 3, [1, 1, 1]),
        ("chunked_9", 3, [1, 1, 1]),  # of a verification in few steps
        ("chunked_1", 1, [1]),
    ],
)
def test_steps_are_cut_into_as_many_chunks_as_said(projection, steps, sizes):
    assert chunk_sizes(projection, steps) == sizes


@pytest.mark.parametrize("name", ["chunked", "chunked_", "chunked_0", "chunked_-1", "chunked_t", "chunked_1.5", "bmm"])
def test_other_names_are_of_no_chunks(name):
    assert family_of(name) == name
    if name != "bmm":
        with pytest.raises(ValidationError, match=r"unknown projection|needs --chunks"):
            Study(projections=[name])


def test_chunks_come_beside_the_ends_of_their_line_and_the_projections_that_are_selected():
    arms = Study(chunks=[1, 4, "T"]).arms
    assert {arm.recurrence for arm in arms} == {"unrolled", "scan"}
    forms = ["in_loop", "per_step", "batched", "chunked_1", "chunked_4", "chunked_T"]
    assert [arm.projection for arm in arms if arm.recurrence == "scan"] == forms
    arms = Study(chunks=[2], projections=["bmm", "chunked_2"], recurrences=["given"]).arms
    assert arms == [Arm("given", "bmm"), Arm("given", "chunked_2")]
    assert load_study(None, None, {"chunks": [2]}).sweep is None  # it narrows a study
    assert "-others" in [*arms_by_part([Arm("scan", "chunked_2"), Arm("scan", "batched")])][-1]


def absences(chunks, unroll_limit=None, **facts):
    """Status and reason of each absent arm of a study of SMALL, which has five steps, by its name."""
    framework = Framework("jax", executions={"xla": execution(**facts)}, devices={"cpu": None})
    study = Study(workloads=[SMALL], passes=["forward"], chunks=chunks, recurrences=["scan"], unroll_limit=unroll_limit)
    plan = matrix.make_plan(study, [framework], [1])
    return {cell.arm.projection: (status, reason) for cell, status, reason in plan.absent}


def test_what_cannot_be_cut_or_compiled_is_absent_with_its_reason():
    assert absences([5, "T"]) == {}
    assert absences([5, 6]) == {"chunked_6": ("impossible", "5 steps make no 6 chunks")}
    assert absences([2], without={CHUNKED: "it has no slices"}) == {"chunked_2": ("unavailable", "it has no slices")}
    skipped = absences([2, 3, "T"], unroll_limit=2, traced=True)
    assert {name: reason.partition(" take")[0] for name, (_, reason) in skipped.items()} == {
        "chunked_3": "3 unrolled chunks",
        "chunked_T": "5 unrolled chunks",
    }


def gaps_of_chunks():
    """Gaps of arms with chunks, of two processes."""
    times = {"batched": 100, "chunked_10": 108, "chunked_2": 102, "chunked_T": 150, "per_step": 150, "twin": 100}
    blocks = [
        block({"replicate": n, "arms": {f"scan_{name}": {"samples_ns": [ns + n] * 5} for name, ns in times.items()}})
        for n in range(2)
    ]
    return gaps_and_contrasts(blocks, Study(workloads=[SMALL]))[0]


def test_each_number_of_chunks_has_a_gap_over_one_product_shown_in_the_order_of_the_numbers():
    gaps = gaps_of_chunks().set_index("contender")
    assert gaps.ratio["chunked_2"] == pytest.approx(1.02, abs=1e-3)
    assert sections._contenders(gaps.reset_index()) == ["per_step", "chunked_2", "chunked_10", "chunked_T"]
    (axes,) = figures._draw_forest(gaps.reset_index(), "", 0.02).axes
    labels = [label for label in axes.get_legend_handles_labels()[1] if label.startswith("chunked")]
    assert labels == ["chunked_2 / batched", "chunked_10 / batched", "chunked_T / batched"]
    assert figures.contender_style("chunked_10")["marker"] == "$10$"


@pytest.mark.parametrize("text", ["0", "-1", "x", "t", "1.5", "100000", "1,,2"])
def test_a_wrong_number_of_chunks_is_named(text):
    from harness.cli.options import Selection

    with pytest.raises(UsageError, match=re.escape(text if "," in text else repr(text))):
        Selection(chunks=[text]).fields()


def test_a_cell_of_too_many_chunks_names_both_numbers():
    framework = Framework("jax", executions={"xla": execution()}, devices={"cpu": None})
    cell = Cell(CONFIG, SMALL, "forward", Arm("scan", "chunked_300"))
    cell = Cell(CONFIG.__class__("jax", "cpu", 1, "xla", "fp32"), *[cell.workload, cell.pass_, cell.arm])
    assert matrix.cell_absence(Study(), framework, cell) == ("impossible", "5 steps make no 300 chunks")
