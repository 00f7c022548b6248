"""How many processes and rounds a gap needs, and that asking a pilot leaves the intervals their level."""

import json
from functools import partial

import numpy as np
import pytest

from harness.analysis import sample_size, stats
from harness.analysis.sample_size import BlockCosts
from harness.analysis.stats import Variances
from harness.records.store import FILE
from harness.run import session
from harness.selftest import coverage
from harness.study.matrix import SampleSize
from harness.study.study import HEADLINE_PROCESSES
from impls.evidence import Evidence
from tests import made
from tests.run.test_session import study

TARGET = 0.01


def test_the_rounds_are_those_that_cost_least():
    gap, costs = Variances(1e-4, 1e-3, 20.0), BlockCosts(3.0, 0.02)
    found = sample_size.required_sample_size([gap], costs, TARGET, 1, 1000)
    price = {
        r: stats.required_processes(gap, r, TARGET) * (costs.process_s + r * costs.round_s) for r in range(1, 1000)
    }
    assert price[found.rounds] <= 1.1 * min(price.values())
    assert found.processes == stats.required_processes(gap, found.rounds, TARGET)


def test_noise_between_processes_asks_for_processes_and_noise_of_rounds_for_rounds():
    costs = BlockCosts(1.0, 0.01)
    between = sample_size.required_sample_size([Variances(4e-4, 1e-5, 20.0)], costs, TARGET, 5, 500)
    within = sample_size.required_sample_size([Variances(1e-5, 4e-2, 20.0)], costs, TARGET, 5, 500)
    assert between.rounds == 5
    assert within.rounds > 100
    assert between.processes > within.processes


def test_the_worst_gap_of_a_block_decides():
    costs = BlockCosts(1.0, 0.01)
    quiet, noisy = Variances(1e-7, 1e-6, 20.0), Variances(4e-4, 1e-3, 20.0)
    assert (
        sample_size.required_sample_size([quiet, noisy], costs, TARGET, 5, 100).processes
        == sample_size.required_sample_size([noisy], costs, TARGET, 5, 100).processes
    )
    assert sample_size.required_sample_size([quiet], costs, TARGET, 5, 100).processes == 2


def test_what_was_asked_for_brings_the_interval_to_the_target():
    random = np.random.default_rng(1)
    widths = []
    for _ in range(200):
        between, count = 0.012, 6
        first = stats.Sample(tuple(random.normal(0, between, count)), 0.0)
        needed = stats.required_processes(stats.variance_components(first, 40, stats.NO_PRIOR), 40, TARGET)
        more = random.normal(0, between, max(0, needed - count))
        final = stats.estimate_gap(stats.Sample((*first.log_ratios, *more), 0.0), 0.02)
        widths.append(stats.half_width(final.low, final.high))
    assert np.median(widths) <= TARGET
    assert np.quantile(widths, 0.9) <= 1.6 * TARGET


def test_intervals_keep_their_level_when_a_pilot_decides_how_many():
    make = partial(coverage.simulate_with_pilot, (coverage.WORLD,), coverage.TRUTHS)
    found = coverage.simulate_studies(make, 8, seed=3, workers=1)
    assert 0.9 <= np.mean([coverage.covers(case) for case in found]) <= 0.99


def plans(folder):
    return [
        record for line in (folder / FILE).read_text().splitlines() if (record := json.loads(line))["kind"] == "plan"
    ]


def blocks(folder):
    return [
        record for line in (folder / FILE).read_text().splitlines() if (record := json.loads(line))["kind"] == "block"
    ]


@pytest.mark.usefixtures("numpy_backend")
def test_a_run_asks_its_pilot_once_and_does_as_it_says(tmp_path):
    given = {"target": 1e-6, "rounds": 8, "rounds_min": 2, "passes": ["forward"], "recurrences": ["unrolled"]}
    given = study(processes=None, pilot=2, processes_max=7, **given)
    folder = tmp_path / "run"
    session.run(given, folder, False, "")
    (plan,) = plans(folder)
    (need,) = plan["needs"]
    assert need["processes"] == 7  # a millionth cannot be had: as many as are allowed
    done = blocks(folder)
    assert [record["replicate"] for record in done] == [0, 1, 2, 3, 4, 5, 6]
    assert {len(arm["samples_ns"]) for record in done[5:] for arm in record["arms"].values()} == {need["rounds"]}
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    (folder / FILE).write_text("".join(lines[:-1]))  # the last block is lost
    session.run(given, folder, True, "")
    assert plans(folder) == [plan]
    assert [record["replicate"] for record in blocks(folder)] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("numpy_backend")
def test_a_pilot_that_is_good_enough_is_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sample_size, "required_sample_size", lambda *asked: SampleSize(2, 4)
    )  # as quiet gaps have it, on any machine
    given = study(processes=None, pilot=2, processes_max=9, passes=["forward"], recurrences=["unrolled"])
    session.run(given, tmp_path / "run", False, "")
    assert [need["processes"] for need in plans(tmp_path / "run")[0]["needs"]] == [2]
    assert len(blocks(tmp_path / "run")) == HEADLINE_PROCESSES


@pytest.mark.usefixtures("numpy_backend")
def test_no_more_processes_than_are_allowed(tmp_path):
    given = study(processes=None, pilot=2, processes_max=3, passes=["forward"], recurrences=["unrolled"])
    session.run(given, tmp_path / "run", False, "")
    assert [record["replicate"] for record in blocks(tmp_path / "run")] == [0, 1, 2]


def records_of(*projections):
    """Three processes of a block with these projections, each with rounds that wander."""
    random = np.random.default_rng(3)
    found = []
    for replicate in range(3):
        samples = (10**6 * np.exp(random.normal(0, 0.05, (len(projections), 20)))).astype(int).tolist()
        arms = {f"given_{p}": {"samples_ns": s} for p, s in zip(projections, samples, strict=True)}
        place = {"part": "given", "replicate": replicate, "start_s": 1.0, "seconds": 2.0}
        found.append(made.block(place | {"arms": arms}))
    return found


def test_a_block_without_the_headline_contenders_asks_for_what_its_others_need():
    noisy = records_of("batched", "twin", "bmm", "library")
    (row,) = sample_size.required_sample_sizes(noisy, study())
    assert row.processes > 3
    assert sample_size.required_sample_sizes(records_of("batched", "twin"), study()) == []


def test_processes_that_compile_or_count_do_not_tell_what_a_process_costs():
    found = records_of("batched", "bmm")
    found[0].seconds = found[1].seconds = 100.0
    next(iter(found[1].arms.values())).evidence = Evidence()
    (costs,) = sample_size.mean_costs(found).values()
    assert costs.process_s < 4
