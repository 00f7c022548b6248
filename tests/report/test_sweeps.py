"""Figures of a sweep, of made-up gaps: a framework has one colour in all of them, and an execution one mark."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness.analysis.gaps import GAPS
from harness.report import sweeps
from harness.report.figures import EXECUTION_MARKS, FRAMEWORK_COLOURS
from harness.study.study import Study
from tests.analysis.test_changes import gap

PROGRAMS = [("tf", "xla", "scan"), ("tf", "graph", "scan"), ("jax", "xla", "scan"), ("torch", "eager", "unrolled")]
STUDY = Study(sweep="book")


def tables(known=True, verdict="slower"):
    """Tables of a sweep with two points; `known`: whether the gaps have intervals."""
    rows = []
    for index, (framework, execution, recurrence) in enumerate(PROGRAMS):
        for point in STUDY.swept[:2]:
            row = gap(execution, 1.1 + index / 10, 0.01, framework=framework, recurrence=recurrence)
            limits = {} if known else {"ci_low": np.nan, "ci_high": np.nan}
            rows.append(row | limits | {"workload": point.name, "verdict": verdict})
    swept = pd.DataFrame(rows, columns=GAPS)
    scores = swept.assign(forecast=swept.ratio * 1.05)
    return SimpleNamespace(swept=swept, study=STUDY, scores=scores)


def lines_of(figure):
    """The lines that have marks, in each panel."""
    return [line for axes in figure.axes for line in axes.lines if line.get_marker() in EXECUTION_MARKS.values()]


@pytest.mark.parametrize("name", ["sweep-forward", "forecasts"])
def test_a_colour_is_a_framework_and_a_mark_an_execution(name):
    drawn = {(line.get_color(), line.get_marker()) for line in lines_of(sweeps.drawings(tables())[name]())}
    assert drawn == {(FRAMEWORK_COLOURS[f], EXECUTION_MARKS[e]) for f, e, _ in PROGRAMS}


def test_every_line_of_a_sweep_has_its_name_beside_it_in_the_order_of_the_ratios():
    (axes,) = sweeps.drawings(tables())["sweep-forward"]().axes
    heights = {text.get_text().strip(): text.get_position()[1] for text in axes.texts}
    named = sorted(heights, key=heights.__getitem__)
    assert named == [" ".join(program) for program in PROGRAMS]
    (axes,) = (a for a in sweeps.drawings(tables())["map-forward"]().axes if a.get_yticklabels() and a.texts)
    order = [(label.get_text(), label.get_color()) for label in axes.get_yticklabels()]
    assert order == [
        (" ".join(p), FRAMEWORK_COLOURS[p[0]]) for p in (PROGRAMS[2], PROGRAMS[1], PROGRAMS[0], PROGRAMS[3])
    ]


@pytest.mark.parametrize(("known", "said"), [(True, "95% intervals; "), (False, "one process each, no intervals; ")])
def test_a_title_promises_no_intervals_where_there_are_none(known, said):
    assert said in sweeps.drawings(tables(known))["sweep-forward"]().get_suptitle()


@pytest.mark.parametrize(("verdict", "said"), [("slower", "bold: judged"), ("inconclusive", "none is judged")])
def test_a_map_says_whether_anything_in_it_is_judged(verdict, said):
    figure = sweeps.drawings(tables(verdict=verdict))["map-forward"]()
    assert any(said in axes.get_title(loc="left") for axes in figure.axes)
