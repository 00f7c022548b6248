"""What a framework marks as a prototype: in the run's header, in a table of its own, and nowhere that answers.

The blocks are a few committed ones, of a run whose header marks nothing; here it marks the symbolic loop.
"""

from pathlib import Path

import pytest

from harness import report
from harness.analysis.tables import Tables
from harness.records.schema import KNOWN
from harness.records.store import read_records
from harness.report import claims, comparison, figures, words
from harness.run import session
from harness.study import matrix
from harness.study.matrix import Framework
from harness.study.study import Study
from impls.interface import Execution

RECORDS = Path(__file__).parents[2] / "reports" / "2026-11-25-amd-epyc-2-cores"
MARK = {
    "framework": "torch",
    "execution": "inductor",
    "recurrence": "scan",
    "reason": "it is marked prototype upstream",
}


@pytest.fixture(scope="module")
def records():
    """The heading, its cells cut, and the blocks of one execution and workload."""
    heading, *others = read_records(RECORDS)
    kept = [r for r in others if r["kind"] == "block" and (r["framework"], r["execution"]) == ("torch", "inductor")]
    kept = [r for r in kept if (r["workload"]["name"], r["pass"]) == ("book", "forward")]
    return [heading | {"cells": [], "absent": []}, *kept]


@pytest.fixture(scope="module")
def marked(records):
    return Tables([records[0] | {"prototypes": [MARK]}, *records[1:]])


def test_a_prototype_is_out_of_answer_counts_claims_advice_and_figures(records, marked):
    plain = Tables(records)  # as older records are, which mark nothing
    assert "scan" in set(plain.gaps.recurrence)
    assert "torch inductor scan" in words.answer(plain)
    assert "scan" not in set(marked.gaps.recurrence) | set(marked.contrasts.recurrence) | set(marked.costs.recurrence)
    said = [words.answer(marked), words.comparison_counts(marked), claims.claims_table(marked), claims.advice(marked)]
    assert "scan" not in "".join(said)
    assert "The 2 comparisons" in words.comparison_counts(marked)
    assert "The 4 comparisons" in words.comparison_counts(plain)
    assert len(figures.forest_plots(marked)[0]) == len(figures.forest_plots(plain)[0])
    assert not any(gap.recurrence == "scan" for gap in comparison.shared_gaps({"a": marked, "b": marked}))


def test_a_prototype_stands_in_a_table_of_its_own_with_the_reason(records, marked, tmp_path):
    drawn = figures.forest_plots(marked)[0]
    text = report.render_text(marked, tmp_path, drawn, [], None)
    part = text.partition("## Prototypes, apart")[2].partition("\n## ")[0]
    assert "- PyTorch inductor scan: it is marked prototype upstream" in part
    rows = [line for line in part.splitlines() if line.startswith("| book, forward | torch inductor scan")]
    assert len(rows) == 2  # thread counts
    assert len(marked.prototypes[marked.prototypes.contender == "in_loop"]) == 2
    assert "Prototypes, apart" not in report.render_text(Tables(records), tmp_path, drawn, [], None)


def test_a_prototypes_gaps_change_no_other_verdict(records, marked):
    arms = [{n: a for n, a in r["arms"].items() if not n.startswith("scan")} for r in records[1:]]
    without = Tables([records[0], *(r | {"arms": kept} for r, kept in zip(records[1:], arms, strict=True))])
    columns = ["threads", "recurrence", "contender", "ratio", "ci_low", "verdict"]
    assert marked.gaps[columns].to_dict("records") == without.gaps[columns].to_dict("records")


def test_a_run_of_nothing_but_a_prototype_answers_nothing(records):
    loops = [{n: a for n, a in r["arms"].items() if n.startswith("scan")} for r in records[1:]]
    blocks = [r | {"arms": kept} for r, kept in zip(records[1:], loops, strict=True)]
    alone = Tables([records[0] | {"prototypes": [MARK]}, *blocks])
    assert words.answer(alone).startswith("What this run compared is marked as a prototype, and answers nothing")


def test_the_header_of_a_run_says_what_its_executions_mark():
    execution = {"missing": None, "without": {}, "prototypes": {"scan": "why"}}
    made = Framework(
        "made", executions={"new": execution, "old": execution | {"prototypes": {}}}, devices={"cpu": None}
    )
    row = {"framework": "made", "execution": "new", "recurrence": "scan", "reason": "why"}
    assert matrix.prototype_rows(Study(), [made]) == [row]
    assert matrix.prototype_rows(Study(executions=["old"]), [made]) == []
    heading = session.make_header("study", Study(), [made], {}, "", {"cells": [], "absent": []})
    assert heading["prototypes"] == [row]
    assert KNOWN.validate_python(heading).prototypes[0].recurrence == "scan"
    assert Execution(traced=False).prototypes == {}
