"""The self-test, in a short form; and that it fails when the method is taken away, piece by piece."""

from functools import partial

import numpy as np
import pytest

from harness.analysis import stats
from harness.selftest import coverage
from harness.worker import timing

STUDIES = 120


def cases(make, truths, count=STUDIES, worlds=(coverage.WORLD,)):
    return coverage.simulate_studies(partial(make, worlds, truths), count, seed=7, workers=1)


def share(hits):
    return float(np.mean(list(hits)))


def held(world=coverage.WORLD):
    return share(map(coverage.covers, cases(coverage.simulate_one_gap, coverage.TRUTHS, worlds=(world,))))


def power():
    return share(case.gap.low > 1 for case in cases(coverage.simulate_one_gap, (1.02,)))


def test_intervals_hold_and_a_difference_of_2_percent_is_found():
    assert 0.91 <= held() <= 0.99
    assert 0.91 <= held(coverage.UNEQUAL) <= 0.99
    assert power() >= 0.95


def test_intervals_of_few_processes_hold_over_many_gaps():
    found = cases(coverage.simulate_many_gaps, coverage.TRUTHS, 15)
    assert len(found) == 15 * coverage.GAPS
    assert 0.91 <= share(map(coverage.covers, found)) <= 0.98


def test_intervals_hold_in_each_half_where_half_the_gaps_vary_six_times_as_much():
    """A variance borrowed from all gaps holds in 87% of those that vary most, and in 99% of the others."""
    found = cases(coverage.simulate_many_gaps, coverage.TRUTHS, 50, coverage.HALVES)
    halves = [[coverage.covers(case) for case in found if case.world == world] for world in coverage.HALVES]
    assert [len(half) for half in halves] == [500, 500]
    assert all(0.91 <= share(half) <= 0.98 for half in halves)


def test_no_difference_is_seldom_called_one_and_never_with_the_wrong_sign():
    assert share(map(coverage.differs, cases(coverage.simulate_one_gap, (1.0,)))) <= 0.1
    assert not any(map(coverage.has_wrong_sign, cases(coverage.simulate_one_gap, coverage.NEAR)))


def test_without_pairing_a_difference_of_2_percent_is_missed(monkeypatch):
    def unpaired(processes):
        ratios = (np.log(np.median(a) / np.median(b)) for a, b in processes)
        return stats.Sample(tuple(map(float, ratios)), 0.0)

    monkeypatch.setattr(stats, "gap_sample", unpaired)
    assert power() < 0.9


def test_without_processes_as_the_unit_intervals_do_not_hold(monkeypatch):
    def pooled(processes):
        rounds = np.concatenate([np.log(np.asarray(a) / np.asarray(b)) for a, b in processes])
        return stats.Sample(tuple(map(float, rounds)), 0.0)

    monkeypatch.setattr(stats, "gap_sample", pooled)
    assert held(coverage.UNEQUAL) < 0.8


def test_without_alternation_intervals_do_not_hold_or_nothing_is_found(monkeypatch):
    monkeypatch.setattr(timing, "turns", lambda names, count, seed: ([name] * count for name in names))
    assert power() < 0.5


def test_a_real_delay_is_found():
    assert coverage.measure_delay(1).met


def test_the_rows_are_the_same_for_any_number_of_workers():
    make = partial(coverage.simulate_one_gap, (coverage.WORLD,), coverage.TRUTHS)
    assert coverage.simulate_studies(make, 60, 1, workers=1) == coverage.simulate_studies(make, 60, 1, workers=2)


@pytest.mark.parametrize(("share", "met"), [(0.9, False), (0.95, True), (0.997, False)])
def test_intervals_that_hold_too_seldom_or_too_often_miss_their_target(share, met):
    gap, hits = stats.Gap(1.0, 0.98, 1.02, 3, "inconclusive", 1.0), round(1000 * share)
    ratios = [1.0] * hits + [1.05] * (1000 - hits)  # the interval holds the first of these truths
    calm, wild = ([coverage.Case(true, gap, world) for true in ratios] for world in coverage.HALVES)
    assert coverage._coverage_row("", calm).met == met
    assert [row.met for row in coverage._half_rows("", calm + wild)] == [met, met]
    shifted = stats.Gap(1.05, 1.03, 1.07, 3, "slower", 0.01)
    assert (
        coverage._false_positive_row("", [case._replace(gap=gap if case.true == 1 else shifted) for case in calm]).met
        == met
    )


def test_a_missed_target_is_a_failure(monkeypatch, capsys):
    rows = [
        coverage.TargetResult("kept", 10, "5.0%", "5%", True),
        coverage.TargetResult("missed", 10, "9.0%", "5%", False),
    ]
    monkeypatch.setattr(coverage, "rows", lambda *given: rows)
    assert coverage.say(100, 1) == 1
    assert "NO" in capsys.readouterr().out
    monkeypatch.setattr(coverage, "rows", lambda *given: rows[:1])
    assert coverage.say(100, 1) == 0


def test_the_real_study_makes_at_least_400_comparisons():
    """And as many as its help says: of jax eager 1 recurrence, of torch eager 1, of the five others 2 each."""
    study = coverage.control_study()
    comparisons = (1 + 1 + 2 * 5) * len(study.threads) * len(study.passes) * len(study.workloads)
    assert comparisons == 432
    assert set(study.recurrences) == {"unrolled", "scan"}
    assert "inductor-batched" not in study.executions


def test_intervals_over_nodes_hold_where_nodes_differ_as_processes_do_and_those_over_processes_do_not(monkeypatch):
    def over_nodes():
        return share(map(coverage.covers, cases(coverage.simulate_on_nodes, (1.1,), worlds=(coverage.NODED,))))

    assert 0.91 <= over_nodes() <= 0.99
    monkeypatch.setattr(stats, "node_means", lambda values, nodes: list(values))
    assert over_nodes() < 0.93
