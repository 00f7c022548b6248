"""The statistics on studies whose truth is known."""

import numpy as np
import pytest

from harness import stats

MARGIN = 0.02


def simulated(random, truth, processes, spread=0.013):
    """Log ratios [gaps, processes]; each gap varies by an amount of its own, around `spread`."""
    own = spread * np.exp(random.normal(0, 0.5, len(truth)))
    return random.normal(np.log(truth)[:, None], own[:, None], (len(truth), processes))


@pytest.mark.parametrize("processes", [2, 3, 5, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(processes):
    random = np.random.default_rng(processes)
    covered = []
    for _ in range(40):
        truth = random.choice([0.9, 1.0, 1.1, 1.5], 60)
        ratios = simulated(random, truth, processes)
        before = stats.prior(list(ratios))
        for values, true in zip(ratios, truth, strict=True):
            gap = stats.gap(values, MARGIN, before)
            covered.append(gap.low <= true <= gap.high)
    assert 0.92 <= np.mean(covered) <= 0.97


def test_no_difference_is_hardly_ever_called_one():
    random = np.random.default_rng(5)
    called = 0
    for _ in range(100):
        ratios = simulated(random, np.ones(40), 4)
        before = stats.prior(list(ratios))
        verdicts = stats.verdicts([stats.gap(values, MARGIN, before) for values in ratios])
        called += any(v in (stats.SLOWER, stats.FASTER) for v in verdicts)
    assert called <= 5


@pytest.mark.parametrize(
    ("true", "verdict"), [(1.2, "slower"), (0.8, "faster"), (1.0, "equivalent"), (1.02, "inconclusive")]
)
def test_verdicts_are_those_of_the_truth(true, verdict):
    random = np.random.default_rng(1)
    values = np.log(true) + random.normal(0, 0.002, 8)
    assert stats.verdicts([stats.gap(values, MARGIN)]) == [verdict]


def test_one_process_decides_nothing():
    gap = stats.gap([0.5], MARGIN)
    assert np.isnan(gap.low)
    assert stats.verdicts([gap]) == ["inconclusive"]


def test_pairing_removes_what_both_arms_share():
    """A drift of 20% over the rounds does not touch the paired ratio; unpaired medians would drift."""
    drift = np.linspace(1, 1.2, 21)
    noise = np.random.default_rng(0).normal(1, 0.001, (2, 21))
    assert stats.log_ratio(1.05 * drift * noise[0], drift * noise[1]) == pytest.approx(np.log(1.05), abs=1e-3)
    assert abs(stats.log_ratio(1.05 * drift * noise[0], drift[::-1] * noise[1]) - np.log(1.05)) < 0.02


def test_holm_is_the_textbook_example():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_prior_finds_what_variances_have_in_common():
    random = np.random.default_rng(2)
    same = random.normal(0, 0.01, (200, 4))
    found = stats.prior(list(same))
    assert found.variance == pytest.approx(1e-4, rel=0.1)
    assert found.freedom > 20
    assert stats.prior(list(same[:5])) == stats.NO_PRIOR
