"""The flags of an arm's samples, on samples that have what they flag and on samples that have not."""

import numpy as np
import pytest

from harness.quality import FEWEST, quality


def samples(logs):
    return [int(1e6 * value) for value in np.exp(logs)]


def steady(seed, count=60):
    return np.random.default_rng(seed).normal(0, 0.02, count)


def flagged(flag, change, count=60, seeds=200):
    """The share of sample sets that have the flag after a change."""
    found = (
        quality(samples(change(steady(seed, count), np.random.default_rng(seed + 999))), 0.02) for seed in range(seeds)
    )
    return sum(bool(getattr(one, flag)) for one in found) / seeds


def nothing(logs, random):
    return logs


@pytest.mark.parametrize("count", [FEWEST, 60, 200])
@pytest.mark.parametrize("flag", ["drifts", "bimodal"])
def test_steady_samples_are_seldom_flagged(flag, count):
    assert flagged(flag, nothing, count) <= 0.02


def test_a_drift_is_flagged():
    assert flagged("drifts", lambda logs, random: logs + np.linspace(0, 0.15, len(logs))) >= 0.95


def test_two_modes_are_flagged():
    assert flagged("bimodal", lambda logs, random: logs + 0.15 * (random.random(len(logs)) < 0.4)) >= 0.95


def test_outliers_are_counted_and_are_no_second_mode():
    def spiky(logs, random):
        return logs + 0.5 * (np.arange(len(logs)) % 20 == 3)

    assert quality(samples(spiky(steady(1), None)), 0.02).outliers == 3
    assert flagged("bimodal", spiky) <= 0.02


def test_autocorrelation_is_found():
    random = np.random.default_rng(0)
    white = random.normal(0, 0.02, 2000)
    correlated = [0.0]
    for value in white:
        correlated.append(0.4 * correlated[-1] + value)
    assert quality(samples(correlated), 0.02).autocorrelation == pytest.approx(0.4, abs=0.06)
    assert quality(samples(white), 0.02).autocorrelation == pytest.approx(0.0, abs=0.06)


def test_too_few_samples_tell_nothing_but_outliers():
    found = quality([100, 101, 99, 300], 0.02)
    assert (found.samples, found.outliers, found.drifts, found.bimodal) == (4, 1, None, None)
    assert quality([5, 5, 5], 0.02).outliers == 0
    assert quality([5] * 60, 0.02).bimodal is False
