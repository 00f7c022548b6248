"""Predictions: that the model finds the costs it is given, and sees nothing of what it predicts."""

import json
import math
import shutil
from dataclasses import replace

import pytest

from harness.analysis import forecast, roofline
from harness.analysis.forecast import SweepPoint
from harness.analysis.tables import Tables
from harness.records.schema import Costs, PeakRates
from harness.records.store import FILE
from harness.report import prediction, sweeps
from harness.run import session
from harness.study import study
from harness.study.configuration import Configuration
from harness.study.matrix import Cell
from harness.study.study import CALIBRATING, NAMED, Workload, points_around
from impls.interface import Arm
from tests.conftest import FOURTH, add_frameworks
from tests.made import block as made_block
from tests.made import lines
from tests.run.test_session import study as studied

BOOK = NAMED["book"]
SMALL = Workload(name="w", B=2, T=4, I=2, H=4, O=1)  # whose sweep is of small sizes too
RATES = PeakRates(flops_s=1e11, scale_ns={1 << power: 5000 + 8 * (1 << power) / 30 for power in (10, 14, 18, 22)})


CONFIG = {"framework": "jax", "device": "cpu", "threads": 1, "execution": "xla", "precision": "fp32"}


def costs_of(pass_, *seconds):
    names = ("call_s", "step_s", "in_loop_s", "product_s", "after_s")
    return Costs.model_validate({"pass": pass_, **dict(zip(names, seconds, strict=True))})


TRUE = (50e-6, 9e-6, 4e-6, 2e-6, 12e-6)


def seen(workload, pass_="forward"):
    told = forecast.predict_times(costs_of(pass_, *TRUE), roofline.roofline_from_rates(RATES), workload)
    none = told.none_s
    return SweepPoint(workload, none, told.in_loop_s - none, told.batched_s - none)


@pytest.mark.parametrize("pass_", ["forward", "train"])
def test_costs_are_found_again_from_two_points(pass_):
    points = [seen(point, pass_) for point in points_around(BOOK)[:CALIBRATING]]
    found = forecast.solve_costs(points, roofline.roofline_from_rates(RATES), pass_)
    assert list(found.model_dump(exclude={"pass_"}).values()) == pytest.approx(TRUE, rel=1e-9)


def test_a_forecast_is_never_nothing():
    wild = costs_of("train", 0.0, 0.0, -1.0, -1.0, -1.0)
    told = forecast.predict_times(wild, roofline.roofline_from_rates(RATES), BOOK)
    assert min(told.none_s, told.in_loop_s, told.batched_s) > 0


def block(workload, pass_, replicate=0, wobble=0.0):
    """A block's record as a machine with these costs would leave it."""
    told = forecast.predict_times(costs_of(pass_, *TRUE), roofline.roofline_from_rates(RATES), workload)
    arms = {}
    for projection in ("none", "in_loop", "batched", "twin"):
        s = getattr(told, f"{projection.replace('twin', 'batched')}_s") * (
            1 + wobble * math.sin(workload.T + replicate)
        )
        arms[f"scan_{projection}"] = {"samples_ns": [round(s * 1e9)] * 5}
    own = {"replicate": replicate, "workload": workload.model_dump(), "pass": pass_, "arms": arms}
    return made_block({**CONFIG, **own, "rates": RATES, "floors": {"null_ns": 1000.0, "harness_ns": 1.0}})


SWEPT = {"workloads": [SMALL], "sweep": SMALL, "recurrences": ["unrolled"], "processes": 1, "rounds": 3}
WANTED = studied(**SWEPT, projections=["none", "in_loop", "batched"])


@pytest.fixture(scope="module")
def swept_run(tmp_path_factory):
    """The folder and the records of a run with a sweep, and nothing left out."""
    folder = tmp_path_factory.mktemp("swept") / "run"
    with pytest.MonkeyPatch.context() as patched:
        add_frameworks(patched, FOURTH)
        return folder, session.run(WANTED, folder, False, "")


@pytest.fixture
def folder(swept_run, tmp_path):
    """A copy of that run's folder."""
    return shutil.copytree(swept_run[0], tmp_path / "run")


def test_a_forecast_is_recorded_before_what_it_is_about_and_sees_nothing_of_it(swept_run):
    wanted, (_, records) = WANTED, swept_run
    (at,) = [number for number, record in enumerate(records) if record.kind == "forecast"]
    told = {point.name for point in wanted.swept[:CALIBRATING]}
    before = {r.workload.name for r in records[:at] if r.kind == "block"}
    foretold = {row.workload for row in records[at].expected}
    assert before == told
    assert foretold == {point.name for point in wanted.swept[CALIBRATING:]} | {SMALL.name}
    tables = Tables(records)
    assert set(tables.gaps.workload) == {SMALL.name}  # a sweep's gaps are no answer to the question
    assert set(tables.swept.workload) == {point.name for point in wanted.swept}
    assert set(tables.scores.workload) <= foretold
    assert "were forecast and then measured" in prediction.score_summary(tables)
    drawings = sweeps.drawings(tables)
    assert {"sweep-forward", "map-train", "forecasts"} <= set(drawings)
    assert drawings["sweep-forward"].args[1] == list("TBHO")
    tables.swept = tables.swept[tables.swept.workload.isin([point.name for point in wanted.swept[:CALIBRATING]])]
    assert sweeps.drawings(tables)["sweep-forward"].args[1] == ["T"]  # no panel of one point
    tables.swept = tables.swept[tables.swept.workload == wanted.swept[0].name]
    assert "sweep-forward" not in sweeps.drawings(tables)


def test_what_is_measured_already_is_not_foretold(numpy_backend, folder):
    """The budget may end a sweep before its first points; they come later, after other cells."""
    swept = {point.name for point in WANTED.swept}
    kept = [r for r in lines(folder) if r["kind"] != "forecast" and r.get("workload", {}).get("name") not in swept]
    (folder / FILE).write_text("".join(json.dumps(record) + "\n" for record in kept))
    (again,) = [r for r in session.run(WANTED, folder, True, "") if r.kind == "forecast"]
    assert SMALL.name not in {row.workload for row in again.expected}
    assert len(again.expected) == 2 * (len(swept) - CALIBRATING)


def test_a_forecast_comes_from_the_last_try_and_says_what_is_lacking():
    made = study.Study(sweep="book", passes=["forward"])
    configuration = Configuration("jax", "cpu", 1, "xla", "fp32")
    cells = [Cell(configuration, point, "forward", Arm("scan", p)) for point in made.swept for p in study.SWEPT]
    blocks = [block(point, "forward") for point in made.swept[:CALIBRATING]]
    good = forecast.forecast_record(configuration, blocks, cells[2 * len(study.SWEPT) :], made)
    assert good.status == "ok"
    assert len(good.expected) == len(made.swept) - CALIBRATING
    blocks[1].arms["scan_in_loop"] = blocks[1].arms["scan_in_loop"].withheld("failed", "no luck")
    lacking = forecast.forecast_record(configuration, blocks, cells, made)
    assert (lacking.status, lacking.expected) == ("unavailable", [])
    assert lacking.reason == "it is fitted on scan_in_loop, book-T5 forward, and no luck"
    assert "float32" in forecast.forecast_record(replace(configuration, precision="bf16"), blocks, cells, made).reason


def test_a_run_that_goes_on_foretells_nothing_twice(numpy_backend, swept_run, folder):
    _, records = swept_run
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "forecast")
    for kept in (at, at + 3):  # cut just before the forecast, and after it
        (folder / FILE).write_text("".join(lines[:kept]))
        again = session.run(WANTED, folder, True, "")
        assert [r.kind for r in again].count("forecast") == 1
        assert sum(r.kind == "block" for r in again) == sum(r.kind == "block" for r in records)
        assert [r.kind for r in again].index("forecast") == at


def point(steps, none, cost):
    return SweepPoint(BOOK.model_copy(update={"T": steps}), none, cost, 0.0)


def test_the_loss_is_part_of_what_projecting_adds_in_training():
    """none has none, so a forecast of many outputs has to tell it."""
    top, wide = roofline.roofline_from_rates(RATES), BOOK.model_copy(update={"O": 1000})
    assert roofline.roofline_times(top, wide, "forward").loss == 0
    loss = roofline.roofline_times(top, wide, "train").loss
    assert loss == top.moved(3 * wide.T * wide.B * wide.O)
    told = forecast.predict_times(costs_of("train", *TRUE), top, wide)
    assert told.batched_s - told.none_s == pytest.approx(
        TRUE[4] + roofline.roofline_times(top, wide, "train").batched + loss
    )
