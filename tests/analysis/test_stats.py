"""The statistics on studies whose truth is known."""

import numpy as np
import pytest
from scipy import stats as distributions

from harness.analysis import stats

MARGIN = 0.02


def simulated(random, truth, processes):
    """A study's samples: each gap has a spread over processes of its own, and few noisy or many quiet rounds."""
    samples = []
    for true in truth:
        between = 0.013 * np.exp(random.normal(0, 0.3))
        count, noise = (3, 0.08) if random.random() < 0.5 else (40, 0.03)
        each = [made(random, true * np.exp(random.normal(0, between)), count, noise) for _ in range(processes)]
        samples.append(stats.gap_sample(each))
    return samples


def made(random, ratio, count, noise):
    """One process's times of contender and baseline, one in twelve of them a spike."""
    spikes = 1 + 0.5 * (random.random((2, count)) < 1 / 12)
    times = np.exp(random.normal(0, noise / 2**0.5, (2, count))) * spikes
    return ratio * times[0], times[1]


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_intervals_cover_the_truth_as_often_as_they_say_with_few_rounds_and_with_many(processes):
    random = np.random.default_rng(processes)
    covered = {False: [], True: []}
    for _ in range(20):
        truth = random.choice([0.9, 1.0, 1.1, 1.5], 80)
        samples = simulated(random, truth, processes)
        middle = np.median([s.noise for s in samples])
        for sample, true in zip(samples, truth, strict=True):
            gap = stats.estimate_gap(sample, MARGIN)
            covered[bool(sample.noise > middle)].append(gap.low <= true <= gap.high)
    assert 0.92 <= np.mean(covered[False]) <= 0.98
    assert 0.92 <= np.mean(covered[True]) <= 0.98


def test_no_difference_is_hardly_ever_called_one():
    random = np.random.default_rng(5)
    called = 0
    for _ in range(60):
        samples = simulated(random, np.ones(40), 4)
        verdicts = stats.verdicts([stats.estimate_gap(sample, MARGIN) for sample in samples])
        called += any(v in (stats.SLOWER, stats.FASTER) for v in verdicts)
    assert called <= 4


def of(values, noise=0.0):
    return stats.Sample(tuple(values), noise)


@pytest.mark.parametrize(
    ("true", "verdict"), [(1.2, "slower"), (0.8, "faster"), (1.0, "equivalent"), (1.02, "inconclusive")]
)
def test_verdicts_are_those_of_the_truth(true, verdict):
    random = np.random.default_rng(1)
    values = np.log(true) + random.normal(0, 0.002, 8)
    assert stats.verdicts([stats.estimate_gap(of(values), MARGIN)]) == [verdict]


def test_one_process_decides_nothing():
    gap = stats.estimate_gap(of([0.5]), MARGIN)
    assert np.isnan(gap.low)
    assert stats.verdicts([gap]) == ["inconclusive"]


def test_pairing_removes_what_both_arms_share():
    """A drift of 20% over the rounds does not touch the paired ratio; unpaired medians would drift."""
    drift = np.linspace(1, 1.2, 21)
    noise = np.random.default_rng(0).normal(1, 0.001, (2, 21))
    pair = (1.05 * drift * noise[0], drift * noise[1])
    assert stats.gap_sample([pair]).log_ratios[0] == pytest.approx(np.log(1.05), abs=1e-3)
    assert stats.gap_sample([pair]).noise < 1e-6
    assert stats.gap_sample([(pair[0], pair[1][::-1])]).noise > 1e-4


def test_holm_is_the_textbook_example():
    assert stats.holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_prior_finds_what_variances_have_in_common():
    random = np.random.default_rng(2)
    same = [of(values) for values in random.normal(0, 0.01, (300, 4))]
    found = stats.fit_prior(same)
    assert found.variance(0.0) == pytest.approx(1e-4, rel=0.1)
    assert found.freedom == stats.LARGEST_FREEDOM
    assert stats.fit_prior(same[:5]) == stats.NO_PRIOR


def test_the_prior_knows_noisy_gaps_from_quiet_ones():
    random = np.random.default_rng(3)
    noises = [1e-6] * 200 + [4e-4] * 200
    found = stats.fit_prior([of(random.normal(0, (1e-4 + 2 * noise) ** 0.5, 3), noise) for noise in noises])
    assert found.variance(1e-6) == pytest.approx(1e-4, rel=0.25)
    assert found.variance(4e-4) == pytest.approx(9e-4, rel=0.25)


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"), [(0, 10, 0.0, 0.3085), (3, 10, 0.0667, 0.6525), (10, 10, 0.6915, 1.0)]
)
def test_a_rate_s_interval_is_clopper_and_pearson_s(hits, cases, low, high):
    assert stats.rate_interval(hits, cases) == pytest.approx((hits / cases, low, high), abs=1e-4)


def test_the_density_that_priors_are_fitted_by_is_scipys():
    random = np.random.default_rng(3)
    ratios, freedoms = random.exponential(size=200), random.integers(1, 40, 200)
    for prior_freedom in (0.3, 4.0, 20.0):
        expected = distributions.f.logpdf(ratios, freedoms, prior_freedom)
        assert stats._f_log_density(ratios, freedoms, prior_freedom) == pytest.approx(expected, rel=1e-12)


def test_medians_are_those_of_each_row_whether_or_not_all_are_equally_long():
    rows = [np.array(row, float) for row in ([3, 1, 2], [4, 8, 6], [5, 1, 1])]
    assert stats.row_medians(rows) == [2, 6, 1]
    assert stats.row_medians([*rows, np.array([1.0, 4.0])]) == [2, 6, 1, 2.5]
