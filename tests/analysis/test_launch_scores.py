"""Predictions scored against times: on tables written out here, whose scores are known."""

import math

import pandas as pd
import pytest

from harness.analysis import launch_scores

PLACE = {"precision": "fp32", "workload": "book", "pass": "forward", "recurrence": "scan"}
OLD, NEW = "jax-cuda12-pjrt 0.10.2", "jax-cuda13-pjrt 0.11.2"
COLUMNS = [
    *("framework", "execution", "projection", "ratio_low", "ratio_mid", "ratio_high"),
    *("call_low_us", "call_mid_us", "call_high_us", "counted_by"),
]


@pytest.fixture
def predictions() -> pd.DataFrame:
    rows = [
        ("jax", "xla", "in_loop", 0.9, 1.0, 1.1, 200, 300, 400, OLD),
        ("jax", "xla", "batched", None, None, None, 200, 300, 400, OLD),
        ("jax", "xla", "in_loop", 1.4, 1.5, 1.6, 200, 300, 400, NEW),
        ("torch", "eager", "in_loop", 1.2, 1.3, 1.4, 500, 600, 700, "CPU evidence"),
        ("tf", "*", None, None, None, None, None, None, None, None),
    ]
    return pd.DataFrame(rows, columns=COLUMNS).assign(**PLACE)


@pytest.fixture
def gaps() -> pd.DataFrame:
    rows = [("jax", "xla", "in_loop", "batched", 1.2), ("torch", "eager", "in_loop", "batched", 1.3)]
    rows += [("torch", "eager", "in_loop", "per_step", 9.9)]
    frame = pd.DataFrame(rows, columns=["framework", "execution", "contender", "baseline", "ratio"])
    return frame.assign(**PLACE, device="gpu", threads=1, ci_low=1.0, ci_high=1.4)


@pytest.fixture
def times() -> pd.DataFrame:
    rows = [("jax", "xla", "in_loop", 360e-6), ("jax", "xla", "in_loop", 380e-6), ("jax", "xla", "batched", 100e-6)]
    rows += [("torch", "eager", "in_loop", 650e-6)]
    frame = pd.DataFrame(rows, columns=["framework", "execution", "projection", "median_s"])
    return frame.assign(**PLACE, device="gpu", threads=1, status="ok")


def row_of(rows: pd.DataFrame, framework: str, projection: str) -> pd.Series:
    return rows[(rows.framework == framework) & (rows.projection == projection)].iloc[0]


def test_a_ratio_outside_its_range_is_a_miss_and_errors_are_of_logarithms(predictions, gaps, times):
    rows = launch_scores.scored(launch_scores.of_version(predictions, "0.10.2"), gaps, times)
    missed, hit = row_of(rows, "jax", "in_loop"), row_of(rows, "torch", "in_loop")
    assert (missed.inside, hit.inside) == (False, True)
    assert missed.error == pytest.approx(math.log(1.2))
    assert (hit.error, hit.error_of_none) == pytest.approx((0.0, math.log(1.3)))


def test_times_are_scored_by_the_median_of_processes_and_the_batched_form_has_no_ratio(predictions, gaps, times):
    rows = launch_scores.scored(launch_scores.of_version(predictions, "0.10.2"), gaps, times)
    assert row_of(rows, "jax", "in_loop").call_us == pytest.approx(370)
    assert row_of(rows, "jax", "in_loop").call_inside
    batched = row_of(rows, "jax", "batched")
    assert not batched.call_inside
    assert math.isnan(batched.error)


def test_the_predictions_of_the_version_that_ran_are_scored(predictions, gaps, times):
    rows = launch_scores.scored(launch_scores.of_version(predictions, "0.11.2"), gaps, times)
    assert row_of(rows, "jax", "in_loop").counted_by == NEW
    assert len(rows) == 2  # the newer XLA was not asked for the batched form, and TensorFlow is not predicted
    unknown = launch_scores.of_version(predictions, "0.12.0")
    assert len(unknown) == len(predictions)


def test_the_summary_counts_hits_by_execution_and_in_all(predictions, gaps, times):
    rows = launch_scores.scored(launch_scores.of_version(predictions, "0.10.2"), gaps, times)
    summary = launch_scores.summarized(rows).set_index("framework")
    assert summary.ratios.to_dict() == {"jax": 1, "torch": 1, "all": 2}
    assert summary.ratios_inside.to_dict() == {"jax": 0, "torch": 1, "all": 1}
    assert summary.times.to_dict() == {"jax": 2, "torch": 1, "all": 3}
    assert summary.error["jax"] == pytest.approx(1.2)
    assert summary.error_of_none["all"] == pytest.approx(math.exp((math.log(1.2) + math.log(1.3)) / 2))


def test_times_of_a_cpu_and_failed_ones_are_not_scored(predictions, gaps, times):
    assert launch_scores.scored(predictions, gaps, times.assign(device="cpu")).empty
    assert launch_scores.scored(predictions, gaps, times.assign(status="wrong")).empty
