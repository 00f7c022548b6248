"""How often two runs agree, of made-up gaps; and that the report says it."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import special

from harness.analysis import stats
from harness.analysis.gaps import GAPS
from harness.errors import UsageError
from harness.records.schema import BasisRecord
from harness.records.store import FILE
from harness.report import appendix
from harness.study.study import NAMED, Study
from scripts import repeat
from tests.records.test_malformed import written

SELFTEST = Path(__file__).parents[2] / "reports" / "2026-11-24-amd-epyc-2-cores-selftest"

BASIS = {"machine": {"cpu": "c"}, "versions": {"tf": {"tensorflow": "2"}}, "code": {"commit": "c", "hash": "h"}}


def made(*gaps, **basis):
    """Tables of a run. `gaps`: workload's place, contender, log ratio, half of its interval, verdict, trusted."""
    place = ("tf", "cpu", 1, "graph", "fp32")
    rows = [
        (
            *place,
            workload,
            "forward",
            "scan",
            contender,
            "batched",
            *intervals(at, half),
            5,
            30,
            verdict,
            trusted,
            0.0,
            "",
        )
        for workload, contender, at, half, verdict, trusted in gaps
    ]
    study = Study(workloads=[NAMED["book"], NAMED["vocab"]])
    return SimpleNamespace(
        gaps=pd.DataFrame(rows, columns=GAPS),
        swept=pd.DataFrame(columns=GAPS),
        study=study,
        header=SimpleNamespace(
            basis=BasisRecord.model_validate(BASIS | basis), weights={"book.weights.safetensors": "w"}
        ),
        blocks=[SimpleNamespace(began="2026-01-01T00:00:00+00:00")],
    )


def intervals(at, half):
    return (math.exp(at), math.exp(at - half), math.exp(at + half))


def gap(at, half=0.05, verdict="inconclusive", workload="book", contender="in_loop", trusted=True):
    return (workload, contender, at, half, verdict, trusted)


EDGE = 0.05 * math.sqrt(2) * special.stdtrit(8, 0.975) / special.stdtrit(4, 0.975)  # of two gaps of 5 processes each


@pytest.mark.parametrize(
    ("first", "second", "beyond", "apart"),
    [
        (gap(0.0), gap(0.99 * EDGE), 0, 0),
        (gap(0.0), gap(1.01 * EDGE), 1, 0),
        (gap(0.0), gap(-1.01 * EDGE), 1, 0),
        (gap(0.0), gap(0.101), 1, 1),
        (gap(0.0), gap(-0.101), 1, 1),
        (gap(0.0, half=0.0001), gap(0.0699, half=0.07), 0, 0),
        (gap(0.0, half=0.0001), gap(0.0703, half=0.07), 1, 1),
    ],
)
def test_a_gap_is_beyond_by_welch_s_t_and_apart_by_its_intervals(first, second, beyond, apart):
    (found,) = repeat.count_agreement({"a": made(first), "b": made(second)})["groups"].values()
    assert (found["gaps"], found["beyond"], found["apart"]) == (1, beyond, apart)


def test_one_repeat_in_twenty_differs_where_nothing_does():
    random = np.random.default_rng(1)
    values = [random.normal(0, sd, (4000, count)) for sd, count in ((1.0, 3), (2.0, 5))]
    halves = [v.std(axis=1, ddof=1) / math.sqrt(v.shape[1]) * special.stdtrit(v.shape[1] - 1, 0.975) for v in values]
    differ = stats.welch_test(
        values[0].mean(axis=1) - values[1].mean(axis=1), halves, (np.full(4000, 3), np.full(4000, 5))
    )
    assert 0.03 < differ.mean() < 0.06  # with processes as few as these, a little too seldom


def test_verdicts_are_opposite_only_where_the_sign_changes():
    pairs = [("slower", "faster"), ("faster", "slower"), ("slower", "inconclusive"), ("slower", "slower")]
    first, second = ([gap(0.1, verdict=pair[at], contender=f"c{n}") for n, pair in enumerate(pairs)] for at in (0, 1))
    (found,) = repeat.count_agreement({"a": made(*first), "b": made(*second)})["groups"].values()
    assert (found["gaps"], found["opposite"], found["same_verdict"]) == (4, 2, 1)


def test_only_gaps_that_both_runs_count_are_compared_and_controls_by_themselves():
    first = [gap(0.0), gap(0.0, workload="vocab"), gap(0.3, contender="twin", trusted=False), gap(0, contender="bmm")]
    second = [
        gap(0.0),
        gap(0.2, contender="twin"),
        gap(0.5, workload="vocab", trusted=False),
        gap(0, math.nan, contender="bmm"),
    ]
    groups = repeat.count_agreement({"a": made(*first), "b": made(*second)})["groups"]
    assert {name: (group["gaps"], group["beyond"]) for name, group in groups.items()} == {
        "in_loop, per_step": (1, 0),
        "A/A controls": (1, 1),
    }


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        ({}, []),
        ({"code": {"commit": "c", "hash": "i"}}, ["code"]),
        ({"machine": {"cpu": "d"}, "versions": {"tf": {"tensorflow": "3"}}}, ["machine", "versions"]),
    ],
)
def test_runs_that_are_not_of_the_same_are_said_not_to_be(changed, other):
    found = repeat.count_agreement({"a": made(gap(0.0)), "b": made(gap(0.0), **changed)})
    assert found["other"] == other
    said = f"They are not of the same {' and '.join(other)}."
    assert (said in appendix.repeat_summary(found)) == bool(other)


def test_runs_whose_workers_took_memory_otherwise_are_not_alike():
    second = made(gap(0.0))
    second.study = second.study.model_copy(update={"memory": "default"})
    assert repeat.count_agreement({"a": made(gap(0.0)), "b": second})["other"] == ["memory"]


def test_a_workload_of_other_sizes_is_refused():
    second = made(gap(0.0))
    second.study = Study(workloads=[NAMED["book"].model_copy(update={"T": 3})])
    with pytest.raises(UsageError, match="workload book has other sizes in the two runs"):
        repeat.count_agreement({"a": made(gap(0.0)), "b": second})


def test_what_was_counted_is_said():
    first = [gap(0.0, contender=f"c{n}") for n in range(40)]
    second = [gap(0.2 if n < 2 else 0.0, contender=f"c{n}") for n in range(40)]
    found = repeat.count_agreement({"a": made(*first), "b": made(*second)})
    said = appendix.repeat_summary(json.loads(json.dumps(found)))
    assert said.startswith("a (2026-01-01T00:00:00+00:00 to 2026-01-01T00:00:00+00:00) and b (")
    assert "| other projections | 40 | 2: 5.0% [0.6%, 16.9%] | 95.0% | 40 | 0 |" in said


def test_the_report_tells_what_lies_beside_its_records(tmp_path):
    found = repeat.count_agreement({"a": made(gap(0.0)), "b": made(gap(0.3))})
    shutil.copy(SELFTEST / FILE, tmp_path)
    (tmp_path / "repeat.json").write_text(json.dumps(found))
    text = written(tmp_path)
    assert "The same study was measured twice" in text
    assert "| in_loop, per_step | 1 | 1: 100.0% [2.5%, 100.0%] | 0.0% | 1 | 0 |" in text


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders, of which the second holds a run only once its study has been measured; and what was measured."""
    measured = []

    def run(study, out, resume, command):
        measured.append((study.seed, out.name, resume))
        out.mkdir(exist_ok=True)
        (out / FILE).touch()

    monkeypatch.setattr(repeat.session, "run", run)
    tables = made(gap(0.0))
    monkeypatch.setattr(repeat, "read_tables", lambda folder: tables)
    return tmp_path / "first", tmp_path / "second", measured


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["repeat.py", *map(str, arguments)])
    repeat.main()
    return json.loads(capsys.readouterr().out)


def test_a_study_is_measured_again_where_it_was_not_yet(folders, monkeypatch, capsys):
    first, second, measured = folders
    found = said(monkeypatch, capsys, first, second)
    assert measured == [(Study().seed, "second", False)]
    assert list(found["runs"]) == ["first", "second"]
    assert found == said(monkeypatch, capsys, first, second)  # it is there now
    assert len(measured) == 1
    said(monkeypatch, capsys, first, second, "--resume")
    assert measured[1:] == [(Study().seed, "second", True)]


def test_a_run_is_not_compared_with_itself(folders, monkeypatch, capsys):
    first, _, measured = folders
    with pytest.raises(UsageError, match="is the same run"):
        said(monkeypatch, capsys, first, first / ".." / "first")
    assert measured == []
