"""What a framework marks as a prototype: in the run's header, in a table of its own, and nowhere that answers.

The blocks are a few committed ones, of a run whose header marks nothing; here it marks the symbolic loop.
"""

from pathlib import Path

import pytest

from harness import report
from harness.analysis.tables import Tables
from harness.records.schema import KNOWN
from harness.records.store import read_run
from harness.report import claims, comparison, figures, summary
from harness.run import session
from harness.study import matrix
from harness.study.matrix import Framework, Plan, Prototype
from harness.study.study import Study
from tests.made import execution

RECORDS = Path(__file__).parents[2] / "reports" / "2026-11-25-amd-epyc-2-cores"
MARK = Prototype("torch", "inductor", "scan", "it is marked prototype upstream")


@pytest.fixture(scope="module")
def records():
    """The heading, its cells cut, and the blocks of one execution and workload."""
    heading, *others = read_run(RECORDS)
    kept = [r for r in others if r.kind == "block" and (r.workload.name, r.pass_) == ("book", "forward")]
    kept = [r for r in kept if (r.configuration.framework, r.configuration.execution) == ("torch", "inductor")]
    return [heading.model_copy(update={"cells": [], "absent": []}), *kept]


def mark(heading):
    return heading.model_copy(update={"prototypes": [MARK]})


@pytest.fixture(scope="module")
def marked(records):
    return Tables([mark(records[0]), *records[1:]])


def test_a_prototype_is_out_of_answer_counts_claims_advice_and_figures(records, marked):
    plain = Tables(records)  # as older records are, which mark nothing
    assert "scan" in set(plain.gaps.recurrence)
    assert "torch inductor scan" in summary.answer(plain)
    assert "scan" not in set(marked.gaps.recurrence) | set(marked.contrasts.recurrence) | set(marked.costs.recurrence)
    said = [
        summary.answer(marked),
        summary.comparison_counts(marked),
        claims.claims_table(marked),
        claims.advice(marked),
    ]
    assert "inductor scan" not in "".join(said)
    assert "The 2 comparisons" in summary.comparison_counts(marked)
    assert "The 4 comparisons" in summary.comparison_counts(plain)
    assert len(figures.forest_plots(marked)[0]) == len(figures.forest_plots(plain)[0])
    assert not any(gap.recurrence == "scan" for gap in comparison.shared_gaps({"a": marked, "b": marked}))


def test_a_prototype_stands_in_a_table_of_its_own_with_the_reason(records, marked, tmp_path):
    drawn = figures.forest_plots(marked)[0]
    part = report.make_pages(marked, tmp_path, drawn, [], None)["appendix/prototypes.md"]
    assert "- PyTorch inductor scan: it is marked prototype upstream" in part
    rows = [line for line in part.splitlines() if line.startswith("| book, forward | torch inductor scan")]
    assert len(rows) == 2  # thread counts
    assert len(marked.prototypes[marked.prototypes.contender == "in_loop"]) == 2
    assert "appendix/prototypes.md" not in report.make_pages(Tables(records), tmp_path, drawn, [], None)


def test_a_prototypes_gaps_change_no_other_verdict(records, marked):
    without = Tables([records[0], *(r.filter_arms(lambda name: not name.startswith("scan")) for r in records[1:])])
    columns = ["threads", "recurrence", "contender", "ratio", "ci_low", "verdict"]
    assert marked.gaps[columns].to_dict("records") == without.gaps[columns].to_dict("records")


def test_a_run_of_nothing_but_a_prototype_answers_nothing(records):
    blocks = [record.filter_arms(lambda name: name.startswith("scan")) for record in records[1:]]
    alone = Tables([mark(records[0]), *blocks])
    assert summary.answer(alone).startswith("What this run compared is marked as a prototype, and answers nothing")


def test_the_header_of_a_run_says_what_its_executions_mark():
    executions = {"new": execution(prototypes={"scan": "why"}), "old": execution()}
    made = Framework("made", executions=executions, devices={"cpu": None})
    found = Prototype("made", "new", "scan", "why")
    assert matrix.prototypes(Study(), [made]) == [found]
    assert matrix.prototypes(Study(executions=["old"]), [made]) == []
    heading = session.make_study_header(Study(), [made], Plan([], []), {}, "")
    assert heading.prototypes == [found]
    written = heading.model_dump(by_alias=True)
    assert written["prototypes"] == [{"framework": "made", "execution": "new", "recurrence": "scan", "reason": "why"}]
    assert KNOWN.validate_python(written) == heading
    assert execution().prototypes == {}
