"""The flags of an arm's samples, on samples that have what they flag and on samples that have not."""

import numpy as np
import pytest

from harness.analysis.sample_quality import FEWEST, quality_flags, quality_table
from tests.made import block


def samples(logs):
    return [int(1e6 * value) for value in np.exp(logs)]


def quality(samples_ns):
    return quality_flags([samples_ns], 0.02).iloc[0]


def steady(seed, count=60):
    return np.random.default_rng(seed).normal(0, 0.02, count)


def flagged(flag, change, count=60, seeds=200):
    """The share of sample sets that have the flag after a change."""
    every = [samples(change(steady(seed, count), np.random.default_rng(seed + 999))) for seed in range(seeds)]
    return quality_flags(every, 0.02)[flag].mean()


def nothing(logs, random):
    return logs


@pytest.mark.parametrize("count", [FEWEST, 60, 200])
@pytest.mark.parametrize("flag", ["drifts", "bimodal"])
def test_steady_samples_are_seldom_flagged(flag, count):
    assert flagged(flag, nothing, count) <= 0.02


def test_a_busy_machine_s_median_lies_above_its_shortest_call():
    quiet = samples([0.0] * FEWEST)
    assert quality(quiet).above == 0
    assert quality([quiet[0] // 2, *quiet]).above == pytest.approx(1.0)


def test_a_drift_is_flagged():
    assert flagged("drifts", lambda logs, random: logs + np.linspace(0, 0.15, len(logs))) >= 0.95


def test_two_modes_are_flagged():
    assert flagged("bimodal", lambda logs, random: logs + 0.15 * (random.random(len(logs)) < 0.4)) >= 0.95


def test_outliers_are_counted_and_are_no_second_mode():
    def spiky(logs, random):
        return logs + 0.5 * (np.arange(len(logs)) % 20 == 3)

    assert quality(samples(spiky(steady(1), None))).outliers == 3
    assert flagged("bimodal", spiky) <= 0.02


def test_autocorrelation_is_found():
    random = np.random.default_rng(0)
    white = random.normal(0, 0.02, 2000)
    correlated = [0.0]
    for value in white:
        correlated.append(0.4 * correlated[-1] + value)
    assert quality(samples(correlated)).autocorrelation == pytest.approx(0.4, abs=0.06)
    assert quality(samples(white)).autocorrelation == pytest.approx(0.0, abs=0.06)


def test_too_few_samples_tell_nothing_but_outliers():
    found = quality([100, 101, 99, 300])
    assert (found.samples, found.outliers) == (4, 1)
    assert found[["drift", "drifts", "autocorrelation", "bimodal"]].isna().all()
    assert quality([5, 5, 5]).outliers == 0
    assert not quality([5] * 60).bimodal


def test_what_of_a_sample_is_the_harness_s_own_is_told_where_it_was_measured():
    arms = {"scan_none": {"samples_ns": [900, 1000, 1100], "calls": 3}}
    known = {"framework": "torch", "pass": "train", "timer_ns": 40, "floors": {"harness_ns": 20.0}, "arms": arms}
    blocks = map(block, (known, known | {"floors": {}}, known | {"timer_ns": None}))
    found = quality_table(list(blocks), 0.02)
    assert list(found.own_ns / found.median_ns) == pytest.approx([0.1, np.nan, np.nan], nan_ok=True)
