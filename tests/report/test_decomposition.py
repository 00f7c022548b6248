"""The table and figure of a gap's steps, and the pictures of all programs, of a committed report's records."""

from pathlib import Path

import pandas as pd
import pytest

from harness import report
from harness.report import compiling, decomposition, frameworks, scatter
from harness.report.style import draw_styled

REPORT = Path(__file__).parents[2] / "reports" / "2026-11-26-amd-epyc-2-cores-default"


@pytest.fixture(scope="module")
def tables():
    return report.read_tables(REPORT)


def test_the_largest_gaps_with_a_shown_step_come_first(tables):
    made = decomposition.section(tables)
    rows = made["first"].splitlines()[2:]
    assert 0 < len(rows) <= decomposition.SHOWN
    assert all("1 thread" in row and "**" in row for row in rows)
    sizes = [abs(float(row.split(" | ")[1]) - 1) for row in rows]
    assert sizes[0] == max(sizes)
    assert len(made["all"].splitlines()) == made["count"] + 2


def test_its_counts_are_those_of_the_evidence(tables):
    header, _, *rows = decomposition.section(tables)["all"].splitlines()
    assert "products: in_loop · per_step · batched" in header
    (row,) = [row for row in rows if row.startswith("| torch eager unrolled, 1 thread, book forward")]
    evidence = tables.evidence[(tables.evidence.framework == "torch") & (tables.evidence.execution == "eager")]
    evidence = evidence[(evidence.workload == "book") & (evidence["pass"] == "forward") & (evidence.threads == 1)]
    products = evidence[evidence.recurrence == "unrolled"].set_index("projection").products
    assert " · ".join(str(products[form]) for form in ("in_loop", "per_step", "batched")) in row


def test_a_run_without_steps_between_has_no_such_section(tables, monkeypatch):
    ends = tables.steps.drop_duplicates(decomposition.PLACE).assign(next_form="batched")
    monkeypatch.setattr(tables, "steps", ends)
    assert decomposition.section(tables) is None
    assert decomposition.drawings(tables) == {}
    assert decomposition.summary(tables) == ""


def test_figures_are_drawn(tables, tmp_path):
    drawings = decomposition.drawings(tables) | scatter.drawings(tables)
    assert set(drawings) == {"steps", "scatter-times", "scatter-memory"}
    for name, draw in drawings.items():
        draw_styled(draw, tmp_path / name)
        assert (tmp_path / f"{name}.png").stat().st_size


def test_a_point_is_a_program_with_both_forms(tables):
    pairs = scatter.form_pairs(tables)
    row = pairs.iloc[0]
    times = tables.times
    mine = times[[all(row[name] == other[name] for name in scatter.PLACE) for other in times.to_dict("records")]]
    medians = mine.groupby("projection").median_s.median()
    assert (row.in_loop_s, row.batched_s) == (medians.in_loop, medians.batched)


def test_a_framework_is_bold_only_where_it_is_shown_to_be_the_fastest(tables):
    made = frameworks.section(tables)
    frame = tables.frameworks
    shown = frame[frame.is_fastest & (frame.threads == frame.threads.min())]
    assert sum(text.count("**") for text in made["first"].values()) == 2 * len(shown)
    assert f"in {int((frame[frame.kind == 'usual'].is_fastest).sum())} of " in made["sentence"]


def test_after_a_symbolic_loop_the_products_are_in_a_second_one():
    step = {"form": "in_loop", "next_form": "per_step"}
    assert decomposition.step_name(step | {"recurrence": "unrolled"}) == "out of the loop"
    assert decomposition.step_name(step | {"recurrence": "scan"}) == "into a loop of its own"
    assert decomposition.step_name({"form": "bmm", "next_form": "batched", "recurrence": "scan"}) == "into one product"


def test_a_gpus_programs_are_among_the_first_though_their_host_has_more_threads(tables, monkeypatch):
    on_gpu = {"device": "gpu", "threads": 16}
    for name in ("steps", "gaps", "frameworks"):
        frame = getattr(tables, name)
        doctored = frame[frame.threads == 1].assign(**on_gpu)
        monkeypatch.setattr(tables, name, pd.concat([frame, doctored], ignore_index=True))
    assert "gpu" in decomposition.section(tables)["first"]
    assert all("gpu" in text for text in frameworks.section(tables)["first"].values())
    assert set(compiling.drawings(tables)) == {"compiling", "compiling-gpu"}
