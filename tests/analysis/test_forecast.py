"""Forecasts: that the model finds the costs it is given, sees nothing of what it foretells, is scored as it says."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import special

from harness.analysis import attribution, forecast, roofline
from harness.analysis.forecast import SweepPoint
from harness.analysis.tables import Tables
from harness.errors import UsageError
from harness.records.schema import Costs, ForecastRecord, PeakRates
from harness.records.store import FILE
from harness.report import prediction, sweeps
from harness.run import schedule, session
from harness.study import matrix, study
from harness.study.configuration import Configuration
from harness.study.data import NONE_IN_TRAINING
from harness.study.matrix import Cell, Framework
from harness.study.study import CALIBRATING, NAMED, Workload, load_study, points_around
from impls.interface import Arm
from tests.made import block as made_block
from tests.made import execution, lines
from tests.run.test_session import WORKLOAD, command
from tests.run.test_session import study as studied

BOOK = NAMED["book"]
RATES = PeakRates(flops_s=1e11, scale_ns={1 << power: 5000 + 8 * (1 << power) / 30 for power in (10, 14, 18, 22)})


def test_a_sweep_changes_one_size_at_a_time_and_begins_with_fewer_steps():
    points = points_around(BOOK)
    assert [point.name for point in points[:CALIBRATING]] == ["book-centre", "book-T5"]
    for point in points[1:]:
        changed = [size for size in "BTIHO" if getattr(point, size) != getattr(BOOK, size)]
        assert len(changed) == 1
        assert point.name == f"book-{changed[0]}{getattr(point, changed[0])}"
    assert {"book-B1", "book-T80", "book-H400", "book-O1000"} <= {point.name for point in points}
    assert len({point.name for point in points}) == len(points) == 13


def test_points_that_no_workload_can_have_are_left_out():
    points = points_around(Workload(name="w", B=1, T=1, I=1, H=1, O=65536))
    assert {point.O for point in points} == {65536}
    assert all(point.B >= 1 for point in points)
    assert len({point.T for point in points[:CALIBRATING]}) == 2


def test_a_study_of_all_has_a_sweep_and_others_where_they_ask_for_it():
    assert load_study(None, None, {}).swept == points_around(BOOK)
    assert load_study(None, None, {"frameworks": ["torch"]}).swept == points_around(BOOK)
    assert load_study(None, None, {"sweep": "none"}).swept == []
    assert load_study(None, None, {"workloads": ["vocab"]}).swept == load_study(None, "quick", {}).swept == []
    assert len(load_study(None, None, {"sweep": "B=2,T=8,I=1,H=4,O=1"}).swept) > 10
    with pytest.raises(UsageError, match="did you mean book"):
        load_study(None, None, {"sweep": "bok"})
    twice = {"name": "book-T5", "B": 1, "T": 5, "I": 1, "H": 4, "O": 1}
    with pytest.raises(UsageError, match="book-T5 has the name of a point of the sweep"):
        load_study(None, None, {"workloads": [twice], "sweep": "book"})


def test_the_price_of_a_call_is_taken_out_of_what_moving_takes():
    memory = roofline.roofline_from_rates(RATES).memory
    for count in (1 << 14, 1 << 20, 1 << 26):
        assert memory(8.0 * count) == pytest.approx(8 * count / 30e9, rel=0.02)


def test_operations_are_those_of_theory():
    assert roofline.flops(BOOK, "forward", "none") == 2 * 20 * 50 * (1 + 100) * 100
    assert roofline.flops(BOOK, "forward", "batched") == 2 * 20 * 50 * ((1 + 100) * 100 + 100)
    assert roofline.flops(BOOK, "train", "in_loop") == 2 * 20 * 50 * (2 * 101 * 100 + 100 * 100 + 3 * 100)


def test_nothing_is_faster_than_its_floor_says():
    top = roofline.roofline_from_rates(RATES)
    wide = BOOK.model_copy(update={"H": 4000, "O": 4000})
    assert roofline.lower_bound_s(top, wide, "forward", "batched") == pytest.approx(
        roofline.flops(wide, "forward", "batched") / 1e11
    )
    tall = Workload(name="w", B=1, T=1, I=60000, H=1, O=1)
    moved = roofline.lower_bound_s(top, tall, "forward", "none")
    assert moved > 10 * roofline.flops(tall, "forward", "none") / 1e11  # it waits for its inputs


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


def test_what_a_product_costs_is_the_slope_over_the_steps():
    made = study.Study(sweep="book", passes=["forward"])
    blocks = [block(point, "forward", replicate) for replicate in range(2) for point in made.swept]
    (row,) = attribution.slopes(blocks, made).to_dict("records")
    least = roofline.roofline_times(roofline.roofline_from_rates(RATES), BOOK, "forward").in_loop
    assert row["product_s"] == pytest.approx(TRUE[3] + least, rel=1e-3)
    assert row["low_s"] <= row["product_s"] <= row["high_s"]
    assert (row["sizes"], row["processes"]) == (5, 2)
    noisy = [block(point, "forward", replicate, wobble=0.05) for replicate in range(2) for point in made.swept]
    (wide,) = attribution.slopes(noisy, made).to_dict("records")
    assert wide["high_s"] - wide["low_s"] > 10 * (row["high_s"] - row["low_s"])


def gap(workload, ratio, trusted=True, contender="in_loop"):
    own = {"workload": workload, "pass": "forward", "recurrence": "scan", "contender": contender}
    return {**CONFIG, **own, "ratio": ratio, "ci_low": ratio / 1.01, "ci_high": ratio * 1.01} | {
        "verdict": "slower" if ratio > 1.02 else "equivalent", "trusted": trusted
    }  # fmt: skip


def test_errors_are_those_of_the_logarithm_and_what_is_untrusted_is_not_scored():
    rows = [{"workload": w, "pass": "forward", "none_s": 1.0, "in_loop_s": 1.2, "batched_s": 1.0} for w in "abc"]
    record = {"key": "k", "kind": "forecast", "status": "ok", "reason": "", "costs": []}
    told = [ForecastRecord.model_validate({**record, **CONFIG, "recurrence": "scan", "expected": rows})]
    gaps = pd.DataFrame([gap("a", 1.2), gap("b", 1.5), gap("c", 2.0, trusted=False), gap("a", 9.0, contender="bmm")])
    costs = pd.DataFrame(columns=attribution.COSTS)
    found = attribution.forecast_scores(told, gaps, costs).set_index("workload").error
    assert set(found.index) == {"a", "b"}
    assert found["a"] == pytest.approx(0, abs=1e-12)
    assert found["b"] == pytest.approx(math.log(1.2 / 1.5))


@pytest.mark.parametrize(("forecasts", "said"), [((1.44, 0.9), "1.00"), ((1, 1), "0.00"), ((1 / 1.44, 0.9), "-2.69")])
def test_how_much_better_than_no_gap_a_forecast_is_is_called_a_skill_score(forecasts, said):
    """Of gaps 1.44 and 0.9, whose mean is not 1: no share of a variance."""
    frame = pd.DataFrame({"forecast": forecasts, "ratio": (1.44, 0.9), "verdict": "slower"})
    frame = frame.assign(error=np.log(frame.forecast / frame.ratio), ci_low=frame.ratio, ci_high=frame.ratio)
    score = prediction.score_summary(SimpleNamespace(scores=frame))
    assert "a ratio of 1 everywhere, has a median error of 23.5% (90% within 33.9%)" in score
    assert f"the forecast's skill score against it is {said} (" in score
    assert "explains" not in score


def test_a_forecast_is_recorded_before_what_it_is_about_and_sees_nothing_of_it(numpy_backend, tmp_path):
    wanted = studied(sweep=WORKLOAD, projections=["none", "in_loop", "batched"], recurrences=["unrolled"])
    records = session.run(wanted, tmp_path / "run", False, "")
    (at,) = [number for number, record in enumerate(records) if record.kind == "forecast"]
    told = {point.name for point in wanted.swept[:CALIBRATING]}
    before = {r.workload.name for r in records[:at] if r.kind == "block"}
    foretold = {row.workload for row in records[at].expected}
    assert before == told
    assert foretold == {point.name for point in wanted.swept[CALIBRATING:]} | {WORKLOAD.name}
    tables = Tables(records)
    assert set(tables.gaps.workload) == {WORKLOAD.name}  # a sweep's gaps are no answer to the question
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


def test_what_is_measured_already_is_not_foretold(numpy_backend, tmp_path):
    """The budget may end a sweep before its first points; they come later, after other cells."""
    wanted = studied(sweep=WORKLOAD, projections=["none", "in_loop", "batched"], recurrences=["unrolled"], processes=1)
    folder = tmp_path / "run"
    session.run(wanted, folder, False, "")
    swept = {point.name for point in wanted.swept}
    kept = [r for r in lines(folder) if r["kind"] != "forecast" and r.get("workload", {}).get("name") not in swept]
    (folder / FILE).write_text("".join(json.dumps(record) + "\n" for record in kept))
    (again,) = [r for r in session.run(wanted, folder, True, "") if r.kind == "forecast"]
    assert WORKLOAD.name not in {row.workload for row in again.expected}
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


def test_a_run_that_goes_on_foretells_nothing_twice(numpy_backend, tmp_path):
    wanted = studied(sweep=WORKLOAD, projections=["none", "in_loop", "batched"], recurrences=["unrolled"], processes=1)
    folder = tmp_path / "run"
    records = session.run(wanted, folder, False, "")
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "forecast")
    for kept in (at, at + 3):  # cut just before the forecast, and after it
        (folder / FILE).write_text("".join(lines[:kept]))
        again = session.run(wanted, folder, True, "")
        assert [r.kind for r in again].count("forecast") == 1
        assert sum(r.kind == "block" for r in again) == sum(r.kind == "block" for r in records)
        assert [r.kind for r in again].index("forecast") == at


def test_a_report_has_the_sweep(numpy_backend, tmp_path):
    flags = ["--framework", "numpy", "--threads", "1", "--sweep", "B=3,T=8,I=2,H=16,O=4", "--processes", "2"]
    flags += ["--workload", "B=2,T=4,I=2,H=8,O=3", "--rounds", "3", "--out", str(tmp_path / "run")]
    done = command("run", *flags)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "report.md").read_text()
    for heading in ("## What projecting costs", "## How the gap follows the sizes", "## How well were gaps predicted?"):
        assert heading in text
    for name in ("costs", "swept", "slopes", "scores"):
        assert len(pd.read_csv(tmp_path / "run" / f"{name}.csv"))
    assert (tmp_path / "run" / "figures" / "sweep-forward.png").exists()


def test_a_sweep_compiles_no_unrolled_steps_unless_any_number_may_be():
    loop = execution(traced=True, unrolls=("unrolled",))
    torch = Framework("torch", executions={"inductor": loop}, devices={"cpu": None})
    made = {
        limit: matrix.make_plan(study.Study(sweep="book", unroll_limit=limit), [torch], [1]) for limit in (32, None)
    }
    reasons = {why for cell, _, why in made[32].absent if cell.workload.name == "book-T5"}
    assert reasons == {"a sweep compiles every size's unrolled steps anew, and unroll_limit is set"}
    assert not any(cell.workload.name.startswith("book-") for cell in made[32].cells)
    assert any(cell.workload.name == "book-T80" for cell in made[None].cells)


def test_moving_less_never_takes_longer_whatever_a_busy_machine_says():
    quiet, busy = {2.0**n: 1e-6 * 2**n for n in range(4)}, {1.0: 9e-6, 2.0: 2e-6, 4.0: 7e-6, 8.0: 8e-6}
    assert roofline.curve(quiet)(1.0) == pytest.approx(1e-6)
    taken = [roofline.curve(busy)(amount) for amount in busy]
    assert taken == sorted(taken)


def test_a_first_replicate_leaves_time_for_more(monkeypatch):
    """However long its jobs would go on: each ends when its time does, and what is left is the others'."""
    wanted = study.Study(sweep="book", budget_s=1000.0, processes=2)
    xla = execution(traced=True, loop="scan")
    jax = Framework("jax", executions={"xla": xla})
    made = matrix.make_plan(wanted, [replace(jax, devices={"cpu": None})], [1, 2])
    now, ends = [0.0], []

    def work(bench, job, left_s, stage):
        if job.blocks and job.blocks[0].timed and job.replicate == 0:
            now[0] += left_s()
            ends.append(now[0])
        return iter(())

    monkeypatch.setattr(schedule.jobs, "work", work)
    bench = SimpleNamespace(study=wanted, basis={})
    report = SimpleNamespace(expect=lambda count: None, stage=None)
    list(schedule.Schedule(bench, made, [], lambda: now[0], report).records())
    assert ends == pytest.approx([250.0, 500.0])


def point(steps, none, cost):
    return SweepPoint(BOOK.model_copy(update={"T": steps}), none, cost, 0.0)


def test_a_process_s_slope_is_that_of_weighted_least_squares():
    steps, none = np.array([5, 20, 20, 80]), np.array([6e-5, 2e-4, 3e-4, 9e-4])
    cost = 3e-6 * steps + np.array([1e-6, -2e-6, 4e-6, 5e-6])
    expected, _ = np.polyfit(steps, cost, 1, w=1 / none)
    assert attribution._slope(list(map(point, steps.tolist(), none, cost))) == pytest.approx(expected, rel=1e-9)


def bent(block, seconds):
    """A block whose in_loop takes longer by so much: at one T alone, a point that is not on the line."""
    arm = block.arms["scan_in_loop"]
    arm.samples_ns = [ns + round(1e9 * seconds) for ns in arm.samples_ns]
    return block


def test_a_slope_s_interval_is_over_processes_and_not_over_its_points():
    """Points off the line in every process alike say nothing of how well the slope is known."""
    made = study.Study(sweep="book", passes=["forward"])

    def product(steeper, bend):
        blocks = [
            bent(block(w, "forward", at), steeper * at * w.T + bend * (w.T == 20))
            for at in range(3)
            for w in made.swept
        ]
        (row,) = attribution.slopes(blocks, made).to_dict("records")
        return row

    assert product(0.0, 1e-5)["high_s"] - product(0.0, 1e-5)["low_s"] < 1e-9
    steeper = product(2e-7, 0.0)  # of the second process by 0.2 us a step, of the third by 0.4
    half = special.stdtrit(2, 0.975) * 2e-7 / math.sqrt(3)
    assert steeper["high_s"] - steeper["product_s"] == pytest.approx(half, rel=1e-2)
    assert steeper["product_s"] - product(0.0, 0.0)["product_s"] == pytest.approx(2e-7, rel=1e-2)


def test_one_process_gives_a_slope_and_no_interval():
    made = study.Study(sweep="book", passes=["forward"])
    (row,) = attribution.slopes([block(w, "forward") for w in made.swept], made).to_dict("records")
    assert row["product_s"] > 0
    assert np.isnan([row["low_s"], row["high_s"]]).all()


def test_a_cost_s_interval_holds_the_error_of_none():
    """Processes whose ratio is the same and whose times are not: the cost is as unsure as the times are."""
    blocks = [block(BOOK, "forward", replicate) for replicate in range(3)]
    slower = (1.0, 1.1, 1.2)
    for record, factor in zip(blocks, slower, strict=True):
        for arm in record.arms.values():
            arm.samples_ns = [round(ns * factor) for ns in arm.samples_ns]
    times = [(name, arm) for record in blocks for name, arm in record.arms.items()]
    place = {**CONFIG, "workload": "book", "pass": "forward", "recurrence": "scan"}
    frame = pd.DataFrame(
        [place | {"projection": name.partition("_")[2], "median_s": arm.samples_ns[0] / 1e9} for name, arm in times]
    )
    added = pd.DataFrame([place | {"contender": "in_loop", "trusted": True}])
    (row,) = attribution.projection_costs(blocks, frame, added).to_dict("records")
    longer = [np.subtract(*(r.arms[f"scan_{form}"].samples_ns[0] for form in ("in_loop", "none"))) for r in blocks]
    half = special.stdtrit(2, 0.975) * np.std(longer, ddof=1) / math.sqrt(3) / 1e9
    assert row["cost_s"] == pytest.approx(np.mean(longer) / 1e9)
    assert [row["low_s"], row["high_s"]] == pytest.approx([row["cost_s"] - half, row["cost_s"] + half])


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


def test_the_floor_of_none_in_training_is_given_a_gradient_and_gives_three():
    top = roofline.roofline_from_rates(RATES)
    w = Workload(name="w", B=1, T=1, I=20000, H=300, O=40000)
    numbers = 20000 + 300 + 2 * (20000 * 300 + 300 * 300 + 300)
    assert roofline.lower_bound_s(top, w, "train", "none") == top.moved(numbers)


@pytest.mark.parametrize(
    ("none", "said"),
    [
        (NONE_IN_TRAINING, "from a given gradient of h: the loss is part of what the forms add"),
        ("", "has a loss of its own in this run, over [T, B, H]"),
    ],
)
def test_a_report_says_what_none_was_in_training(none, said):
    tables = SimpleNamespace(header=SimpleNamespace(none_in_training=none), study=study.Study())
    assert said in prediction._none_in_training(tables)
    tables.study = study.Study(passes=["forward"])
    assert prediction._none_in_training(tables) == ""
