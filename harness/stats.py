"""The statistics: the process is the unit of inference.

Within a process the two arms alternate; its log ratio is the median over rounds of
log(contender / baseline), each round giving one pair. Over processes, the mean of the log ratios has
a t interval. A study has many gaps and few processes, so each gap's variance over processes is
moderated by those of all its gaps (empirical Bayes; Smyth 2004, "Linear models and empirical Bayes
methods", eq. 3 and section 6.2): with s^2 on d degrees of freedom and a prior s0^2 worth d0,

    s~^2 = (d0 s0^2 + d s^2) / (d0 + d)        on d0 + d degrees of freedom.

Verdicts compare with a margin stated beforehand, by one-sided t tests at half the level on each
side (so the verdict without correction is that of the 95% interval), corrected for the number of
gaps by Holm's method (Holm 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.05
FEWEST = 10  # gaps, for a prior to be taken from them
LARGEST_FREEDOM = 100.0  # of the prior: gaps that all vary alike are not taken for certain
SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE = "slower", "faster", "equivalent", "inconclusive"


@dataclass(frozen=True)
class Gap:
    """A ratio of times with its 95% interval over processes; NaN limits with one process.

    `p` is the smallest of the three verdicts' p-values, and `leaning` the verdict it belongs to.
    """

    ratio: float
    low: float
    high: float
    processes: int
    leaning: str
    p: float


@dataclass(frozen=True)
class Prior:
    """What the study's gaps say of the variance of any one of them: s0^2, worth `freedom` degrees."""

    variance: float = 0.0
    freedom: float = 0.0


NO_PRIOR = Prior()


def log_ratio(contender: Sequence[float], baseline: Sequence[float]) -> float:
    """One process's log ratio: the median over rounds of the paired log ratios."""
    return float(np.median(np.log(np.asarray(contender, float) / np.asarray(baseline, float))))


def prior(samples: Sequence[Sequence[float]]) -> Prior:
    """The prior from each gap's log ratios, by moments of log s^2; none from fewer than `FEWEST` gaps.

    Smyth 2004, section 6.2: e = log s^2 - psi(d/2) + log(d/2) has mean log s0^2 - psi(d0/2) +
    log(d0/2) and variance psi'(d/2) + psi'(d0/2).
    """
    usable = [(len(values) - 1, float(np.var(values, ddof=1))) for values in samples if len(values) > 1]
    usable = [(d, variance) for d, variance in usable if variance > 0]
    if len(usable) < FEWEST:
        return Prior()
    freedom, variances = np.array(usable, float).T
    e = np.log(variances) - special.digamma(freedom / 2) + np.log(freedom / 2)
    spread = float(np.var(e, ddof=1) - np.mean(special.polygamma(1, freedom / 2)))
    half = LARGEST_FREEDOM / 2
    if spread > special.polygamma(1, half):
        half = optimize.brentq(lambda h: special.polygamma(1, h) - spread, 1e-3, half)
    return Prior(float(np.exp(np.mean(e) + special.digamma(half) - np.log(half))), 2 * half)


def gap(log_ratios: Sequence[float], margin: float, before: Prior = NO_PRIOR) -> Gap:
    """The gap over processes, from one log ratio a process."""
    values = np.asarray(log_ratios, float)
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Gap(math.exp(mean), math.nan, math.nan, count, INCONCLUSIVE, 1.0)
    freedom = before.freedom + count - 1
    variance = (before.freedom * before.variance + (count - 1) * float(np.var(values, ddof=1))) / freedom
    error = math.sqrt(variance / count) or 1e-12  # all processes alike to the last digit
    half = stats.t.ppf(1 - LEVEL / 2, freedom) * error
    edge = math.log1p(margin)

    def above(limit: float) -> float:
        """p-value of the mean being at most `limit`."""
        return float(stats.t.sf((mean - limit) / error, freedom))

    def below(limit: float) -> float:
        return float(stats.t.cdf((mean - limit) / error, freedom))

    ps = {SLOWER: above(edge), FASTER: below(-edge), EQUIVALENT: max(above(-edge), below(edge))}
    leaning = min(ps, key=lambda verdict: ps[verdict])
    return Gap(math.exp(mean), math.exp(mean - half), math.exp(mean + half), count, leaning, min(1.0, 2 * ps[leaning]))


def verdicts(gaps: Sequence[Gap]) -> list[str]:
    """One verdict a gap, Holm-corrected over all of them."""
    return [g.leaning if p <= LEVEL else INCONCLUSIVE for g, p in zip(gaps, holm([g.p for g in gaps]), strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted
