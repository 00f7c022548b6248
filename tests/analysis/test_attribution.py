"""Costs, slopes and scores: of each process by itself, with intervals over processes."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import special

from harness.analysis import attribution, roofline
from harness.records.schema import ForecastRecord
from harness.study import study
from tests.analysis.test_forecast import BOOK, CONFIG, RATES, TRUE, block, point


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
