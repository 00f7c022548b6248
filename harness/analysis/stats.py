"""The statistics: the process is the unit of inference.

Within a process the two arms alternate; its log ratio is the median over rounds of
log(contender / baseline), each round giving one pair. Over processes, the mean of the log ratios has
Student's t interval, on the gap's own variance over processes and nothing else. Gaps vary unlike each
other, and an interval that borrows from all of them holds too seldom for those that vary most and too
often for the rest: 87% and 99% where half vary six times as much (20 gaps, 3 processes, moderated as below).

How much a gap still has to be measured is planned, not inferred, and for that a few processes say too
little. So there, and only there, its variance over processes s^2, on d degrees of freedom, is moderated
by what all gaps say of it (empirical Bayes; Smyth 2004, "Linear models and empirical Bayes methods", eq. 3):

    s~^2 = (d0 s0^2 + d s^2) / (d0 + d)        on d0 + d degrees of freedom,

but on no more than all gaps have together, since no prior knows more than what it was taken from.

The prior variance s0^2 is not one number for all, because a long arm has few rounds and a short one
many: it is a + b v, where v is the sampling variance of the process medians, from the rounds inside
the processes (Maritz and Jarrett 1978). So a is what processes differ by, and b near 1 says that rounds
are nearly independent. a, b and d0 maximise the likelihood of all s^2, each s0^2 times F on (d, d0).
Three fitted numbers cost three degrees of freedom: a and b are raised by that.

A gap's direction and its size are two results. The direction is the side of 1 that the interval lies on. The
size is a verdict: it compares with a margin stated beforehand, by one-sided t tests at half the level on each
side (so the verdict without correction is that of the 95% interval), corrected for the number of gaps in what
one reader reads as one family by Holm's method (Holm 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy import optimize, special  # not scipy.stats: as long to import as everything else here

Times = Sequence[float] | np.ndarray
LEVEL = 0.05
LEAST_BETWEEN = 0.05  # of a gap's variance is between processes, at least: rounds alone never do
FEWEST = 10  # gaps, for a prior to be taken from them
LARGEST_FREEDOM = 20.0  # of the prior: gaps that all seem to vary alike are not taken for certain
LONGER, SHORTER, UNKNOWN = "longer", "shorter", "unknown"  # directions: what the contender takes
SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE = "slower", "faster", "equivalent", "inconclusive"  # verdicts: its size


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

    @property
    def direction(self) -> str:
        """Whether the contender takes longer or shorter than the baseline, by the interval."""
        return LONGER if self.low > 1 else SHORTER if self.high < 1 else UNKNOWN


@dataclass(frozen=True)
class Sample:
    """One gap's log ratios, one a process, and the mean sampling variance of these medians."""

    log_ratios: tuple[float, ...]
    noise: float

    @property
    def variance(self) -> float:
        """Over processes, with one less degree of freedom than processes."""
        return float(np.var(self.log_ratios, ddof=1))


@dataclass(frozen=True)
class Prior:
    """What a study's gaps say of the variance of any one of them: between + factor * noise, worth `freedom`.

    `pooled` degrees of freedom is what all of them have.
    """

    between: float = 0.0
    factor: float = 0.0
    freedom: float = 0.0
    pooled: float = math.inf

    def variance(self, noise: float) -> float:
        return self.between + self.factor * noise


NO_PRIOR = Prior()


@dataclass(frozen=True)
class Variances:
    """A gap's variance: between processes, of one round, and the degrees of freedom it is known on."""

    between: float
    of_round: float
    freedom: float


def sample(processes: Sequence[tuple[Times, Times]]) -> Sample:
    """A gap's sample from each process's times (contender, baseline), one a round, in rounds' order."""
    rounds = [np.log(np.asarray(a, float) / np.asarray(b, float)) for a, b in processes]
    medians = _medians(rounds)
    # Few rounds say little of their own spread, so all processes' rounds say it together.
    around = np.concatenate([r - median for r, median in zip(rounds, medians, strict=True)])
    share = np.mean([len(around) / len(r) for r in rounds])
    return Sample(tuple(medians), float(median_variance(around) * share))


def _medians(rows: Sequence[np.ndarray]) -> list[float]:
    """Of each row; rows equally long, as processes' rounds mostly are, all at once."""
    if len({len(row) for row in rows}) == 1:
        return [float(median) for median in np.median(np.stack(rows), axis=1)]
    return [float(np.median(row)) for row in rows]


@cache
def _bootstrap(count: int) -> np.ndarray:
    """Probability that each of `count` ordered values is the median of a resample (Maritz and Jarrett, eq. 3)."""
    half = (count + 1) / 2
    return np.diff(special.betainc(half, half, np.linspace(0, 1, count + 1)))


def median_variance(rounds: np.ndarray) -> Any:
    """Sampling variance of the median (Maritz and Jarrett 1978) of the last axis; 0 for a single round.

    By einsum, not by matmul: BLAS would wake threads for products this small, and their number would show in the last
    digit.
    """
    weights, ordered = _bootstrap(rounds.shape[-1]), np.sort(rounds, axis=-1)
    apart = ordered - np.einsum("...i,i->...", ordered, weights)[..., None]
    return np.einsum("...i,...i,i->...", apart, apart, weights)


def prior(samples: Sequence[Sample]) -> Prior:
    """The prior that makes the samples' variances likeliest; none from fewer than `FEWEST` gaps."""
    usable = [s for s in samples if len(s.log_ratios) > 1 and s.variance > 0]
    if len(usable) < FEWEST:
        return NO_PRIOR
    variances = np.array([s.variance for s in usable])
    noises = np.array([s.noise for s in usable])
    freedoms = np.array([len(s.log_ratios) - 1 for s in usable])
    middle, pooled = float(np.median(variances)), float(freedoms.sum())
    least = middle * 1e-6

    def made(point: np.ndarray) -> Prior:
        between, factor, freedom = np.exp(np.clip(point, -50, 50))
        return Prior(between * middle + least, factor, min(freedom, LARGEST_FREEDOM), pooled)

    def unlikely(point: np.ndarray) -> float:
        p = made(point)
        expected = p.between + p.factor * noises
        return -float(np.sum(_f_logpdf(variances / expected, freedoms, p.freedom) - np.log(expected)))

    found = [
        optimize.minimize(unlikely, np.log(start), method="Nelder-Mead", options={"maxiter": 2000})
        for start in ((1.0, 1.0, 4.0), (0.1, 1.0, 20.0), (1.0, 0.01, 20.0))
    ]
    likeliest = made(min(found, key=lambda one: one.fun).x)
    low = pooled / (pooled - 3)  # the likeliest variance is too low by the three numbers fitted, as in REML
    return replace(likeliest, between=likeliest.between * low, factor=likeliest.factor * low)


def _f_logpdf(ratios: np.ndarray, d1: np.ndarray, d2: float) -> np.ndarray:
    """Log density of ratios of variances: F on (d1, d2) degrees of freedom."""
    m, n = d1 / 2, d2 / 2
    constant = m * np.log(d1) + n * np.log(d2) - special.betaln(m, n)
    return np.asarray(constant + (m - 1) * np.log(ratios) - (m + n) * np.log(d1 * ratios + d2))


def moderated(found: Sample, before: Prior) -> tuple[float, float]:
    """A gap's variance over two or more processes, and the degrees of freedom it is known on."""
    count = len(found.log_ratios)
    freedom = before.freedom + count - 1
    variance = (before.freedom * before.variance(found.noise) + (count - 1) * found.variance) / freedom
    return variance, min(freedom, before.pooled)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of what processes gave of any quantity, one value each, and its 95% interval: NaN limits with one."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return mean, math.nan, math.nan
    half = _t(count - 1) * math.sqrt(float(np.var(values, ddof=1)) / count)
    return mean, mean - half, mean + half


def welch(apart: Any, halves: Sequence[Any], counts: Sequence[Any]) -> Any:
    """Whether two means differ at 95%, by the half-widths of their 95% intervals and their numbers of processes.

    Welch's t (1947), with Satterthwaite's degrees of freedom; elementwise, `apart` being the difference of the means.
    """
    reach, freedoms = 1 - LEVEL / 2, np.stack([np.asarray(count, float) - 1 for count in counts])
    variances = (np.stack([np.asarray(half, float) for half in halves]) / special.stdtrit(freedoms, reach)) ** 2
    joint = variances.sum(axis=0)
    freedom = joint**2 / (variances**2 / freedoms).sum(axis=0)
    return np.abs(apart) > special.stdtrit(freedom, reach) * np.sqrt(joint)


def gap(found: Sample, margin: float) -> Gap:
    """The gap over processes; `margin` is a fraction, such as 0.02."""
    count, mean = len(found.log_ratios), float(np.mean(found.log_ratios))
    if count < 2:
        return Gap(math.exp(mean), math.nan, math.nan, count, INCONCLUSIVE, 1.0)
    freedom = count - 1
    error = math.sqrt(found.variance / count) or 1e-12  # all processes alike to the last digit
    half = _t(freedom) * error
    edge = math.log1p(margin)

    def above(limit: float) -> float:
        """p-value of the mean being at most `limit`."""
        return float(special.stdtr(freedom, (limit - mean) / error))

    def below(limit: float) -> float:
        return float(special.stdtr(freedom, (mean - limit) / error))

    ps = {SLOWER: above(edge), FASTER: below(-edge), EQUIVALENT: max(above(-edge), below(edge))}
    leaning = min(ps, key=lambda verdict: ps[verdict])
    return Gap(math.exp(mean), math.exp(mean - half), math.exp(mean + half), count, leaning, min(1.0, 2 * ps[leaning]))


def parts(sample: Sample, rounds: float, before: Prior) -> Variances | None:
    """A gap's variance, moderated, to plan by; None where nothing is known of it."""
    count = len(sample.log_ratios)
    if count < 2:
        return None
    variance, freedom = moderated(sample, before)
    factor = before.factor if before.freedom else 1.0
    within = min(factor * sample.noise, (1 - LEAST_BETWEEN) * variance)
    return Variances(variance - within, within * rounds, freedom)


def processes(gap: Variances, rounds: float, target: float) -> int:
    """Processes of so many rounds that bring a gap's interval to ±target.

    With Student's t on the degrees of freedom that the variance is known on, or on those that the interval will have
    where they are fewer.
    """
    variance, edge = gap.between + gap.of_round / rounds, math.log1p(target)
    count = max(2, math.ceil(variance * (_t(gap.freedom) / edge) ** 2))
    while _t(count - 1) * math.sqrt(variance / count) > edge:
        count += 1
    return count


@cache
def _t(freedom: float) -> float:
    """Student's t that a 95% interval reaches to, in standard errors."""
    return float(special.stdtrit(freedom, 1 - LEVEL / 2))


def verdicts(gaps: Sequence[Gap]) -> list[str]:
    """One verdict a gap, Holm-corrected over all of them: the gaps of one family."""
    return [g.leaning if p <= LEVEL else INCONCLUSIVE for g, p in zip(gaps, holm([g.p for g in gaps]), strict=True)]


def rate(hits: int, cases: int) -> tuple[float, float, float]:
    """A rate and its 95% interval (Clopper and Pearson 1934); `cases` is at least 1."""
    low = special.betaincinv(hits, cases - hits + 1, LEVEL / 2) if hits else 0.0
    high = special.betaincinv(hits + 1, cases - hits, 1 - LEVEL / 2) if hits < cases else 1.0
    return hits / cases, float(low), float(high)


def half_width(low: Any, high: Any) -> Any:
    """Of an interval of a ratio, as a fraction; of numbers or columns."""
    return (high / low) ** 0.5 - 1


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted
