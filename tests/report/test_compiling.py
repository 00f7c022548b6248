"""Page one's table and figure, of made-up gaps, and of a committed report."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.analysis.changes import changes
from harness.analysis.gaps import GAPS
from harness.report import compiling, figures
from harness.report.style import draw_styled
from harness.study.study import Study
from tests.analysis.test_changes import gap

REPORT = Path(__file__).parents[2] / "reports" / "2026-11-26-amd-epyc-2-cores" / "report.md"


def tables(*rows):
    gaps = pd.DataFrame(rows, columns=GAPS)
    return SimpleNamespace(gaps=gaps, loops={}, changes=changes(gaps, {}, Study().margin), study=Study())


MADE = tables(
    gap("eager", 1.3), gap("xla", 1.0), gap("eager", 1.2, workload="vocab"), gap("xla", 1.5, workload="vocab"),
    gap("eager", 1.1, framework="torch"),
)  # fmt: skip


def test_a_row_is_a_place_and_a_column_an_execution():
    header, _, book, vocab = compiling.gap_table(MADE).splitlines()
    assert header == "| in_loop / batched | JAX eager | JAX xla | PyTorch eager |"
    assert book == "| book forward, 1 thread | **1.30 [1.29, 1.31]** | 1.00 [0.99, 1.01] | **1.10 [1.09, 1.11]** |"
    assert vocab.endswith("| **1.20 [1.19, 1.21]** | **1.50 [1.49, 1.52]** | – |")


def test_what_an_execution_does_is_a_sentence():
    (sentence,) = compiling.sentences(MADE)
    assert sentence == "**JAX xla**: the gap is removed at book forward, 1 thread; widened at vocab forward, 1 thread."
    (unsure,) = compiling.sentences(tables(gap("eager", 1.3), gap("xla", 1.301)))
    assert unsure == "**JAX xla**: a change is not shown in 1 of 1 case."


def test_a_run_without_such_gaps_has_no_such_section():
    assert compiling.section(tables()) is None
    assert compiling.drawings(tables()) == {}
    alone = tables(gap("eager", 1.3))
    assert compiling.section(alone)["changes"] == ""
    assert compiling.drawings(alone) == {}


def test_the_figure_has_all_frameworks_where_one_has_several_executions(tmp_path):
    draw = compiling.drawings(MADE)["compiling"]
    assert set(draw.args[0].framework) == {"jax", "torch"}
    draw_styled(draw, tmp_path / "compiling")
    assert (tmp_path / "compiling.png").stat().st_size
    assert (tmp_path / "compiling.svg").stat().st_size


def test_a_report_without_html_has_no_svg_and_keeps_none_of_an_earlier_one(tmp_path):
    draw = compiling.drawings(MADE)["compiling"]
    for svg in (True, False):
        draw_styled(draw, tmp_path / "compiling", svg)
        assert (tmp_path / "compiling.svg").exists() == svg
    assert (tmp_path / "compiling.png").stat().st_size


def test_labels_are_moved_apart_in_their_order():
    assert figures.spread([0.0, 0.01, 0.5], 0.1) == pytest.approx([-0.045, 0.055, 0.5])
    moved = figures.spread([0.2, 0.2, 0.2], 0.1)
    assert sorted(moved)[1] - sorted(moved)[0] == pytest.approx(0.1)
    assert figures.spread([], 0.1) == []


def test_a_committed_report_has_it_on_page_one():
    text = REPORT.read_text()
    assert text.index("## What compiling does to the gap") < 3000
    assert "](figures/compiling.png)" in text
    assert "**TensorFlow xla**" in text
