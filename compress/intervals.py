"""How sure a figure is: intervals of a score, of the drop between two engines, and of a latency over restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compress.errors import CompressError

CONFIDENCE = 0.95
DIFFERENT = 0.99  # of the interval that decides whether two engines differ in speed
RESAMPLES = 5000
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, in the figure's own unit; ``n`` is the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int
    method: str


def mean_interval(scores: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0) -> Estimate:
    """The mean of per-sample scores.

    Args:
        scores: shape ``(samples,)``.
        groups: shape ``(samples,)``, equal for samples that are not independent (the questions asked of one image).
        seed: of the bootstrap.

    Scores that are all 0 or 1 get Wilson's score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953), with the
    effective sample size of clustered data where there are groups; other scores get a percentile bootstrap over groups.

    Raises:
        CompressError: if there are fewer than two samples (or groups), or the groups are not one per sample.
    """
    scores, groups = _checked(scores, groups)
    n = len(scores)
    if not _is_binary(scores):
        low, high = _bootstrap(scores, groups, seed)
        return Estimate(value=float(scores.mean()), low=low, high=high, n=n, method="bootstrap")
    size = n / _design_effect(scores, groups)
    p, z2 = float(scores.mean()), _Z**2
    centre = (p + z2 / (2 * size)) / (1 + z2 / size)
    half = _Z * math.sqrt(p * (1 - p) / size + z2 / (4 * size**2)) / (1 + z2 / size)
    # At a share of 0 or 1 the bound is exactly that share; rounding must not put it beyond.
    return Estimate(value=p, low=max(0.0, centre - half) if p > 0 else 0.0,
                    high=min(1.0, centre + half) if p < 1 else 1.0, n=n, method="Wilson")


def paired_drop(
    reference: np.ndarray, candidate: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0
) -> Estimate:
    """How much lower ``candidate`` scores than ``reference`` on the same samples: the mean of the paired differences.

    Args:
        reference, candidate: shape ``(samples,)``, the scores of two engines on the same samples in the same order.
        groups: shape ``(samples,)``, equal for samples that are not independent (the questions asked of one image).
        seed: of the bootstrap.

    0/1 scores get Tango's score interval, which is McNemar's test inverted (Tango 1998, Statistics in Medicine
    17:891-908): unlike a bootstrap it does not shrink to nothing where the two engines never disagreed. With groups
    its counts are those of the effective sample size, n over the design effect (Rao and Scott 1992, Biometrics
    48:577-585). Other scores get a percentile bootstrap that draws whole groups; where no pair differs at all, at most
    z²/(groups + z²) of the pairs do (Wilson's bound at none seen), each by at most the range of the scores.

    Raises:
        CompressError: if the two differ in length, there are fewer than two samples (or groups), or the groups are not
            one per sample.
    """
    if len(reference) != len(candidate):
        raise CompressError(f"{len(reference)} reference scores and {len(candidate)} of the candidate "
                            "cannot be paired: evaluate both on the same samples")
    reference, groups = _checked(reference, groups)
    candidate, _ = _checked(candidate, None)
    difference = reference - candidate
    n, value = len(difference), float(difference.mean())
    if not (_is_binary(reference) and _is_binary(candidate)):
        if not difference.any():
            bound = float(np.ptp(reference) * _Z**2 / (groups.max() + 1 + _Z**2))
            return Estimate(value=value, low=-bound, high=bound, n=n, method="Wilson")
        low, high = _bootstrap(difference, groups, seed)
        return Estimate(value=value, low=low, high=high, n=n, method="bootstrap")
    # Where no pair disagrees the design effect has to come from the scores themselves, which cluster alike.
    effect = _design_effect(difference if difference.any() else reference, groups)
    lost, won = float((difference > 0).sum()), float((difference < 0).sum())
    low, high = tango_interval(lost / effect, won / effect, n / effect)
    return Estimate(value=value, low=low, high=high, n=n, method="Tango")


def sums_interval(
    statistics: np.ndarray, value: Callable[[np.ndarray], np.ndarray], groups: np.ndarray | None = None, *,
    seed: int = 0,
) -> Estimate:  # fmt: skip
    """``value`` of the sum of the samples' statistics, with a percentile bootstrap over groups.

    Args:
        statistics: shape ``(samples, k)``.
        value: from sums ``(..., k)`` to values ``(...)``.
        groups, seed: as :func:`mean_interval` takes them.

    Raises:
        CompressError: as :func:`mean_interval` does.
    """
    sums, _ = _group_sums(statistics, groups)
    values = value(_resampled(sums, seed))
    low, high = _percentiles(values)
    return Estimate(value=float(value(sums.sum(axis=0))), low=low, high=high, n=len(statistics), method="bootstrap")


def sums_drop(
    reference: np.ndarray, candidate: np.ndarray, value: Callable[[np.ndarray], np.ndarray],
    groups: np.ndarray | None = None, *, most: float | None = None, seed: int = 0,
) -> Estimate:  # fmt: skip
    """How much lower the value of ``candidate``'s sums is than ``reference``'s, the same samples drawn for both.

    Where no sample differs at all, at most z²/(groups + z²) of the groups do (Wilson's bound at none seen), each by at
    most ``most``, or the range of the values that single groups have.

    Args:
        reference, candidate: one shape ``(samples, k)``, of two engines on the same samples in the same order.
        value, groups, seed: as :func:`sums_interval` takes them.
        most: the widest range of the value, where it has one.

    Raises:
        CompressError: as :func:`mean_interval` does.
    """
    (before, index), (after, _) = (_group_sums(statistics, groups) for statistics in (reference, candidate))
    found = float(value(before.sum(axis=0)) - value(after.sum(axis=0)))
    n = len(reference)
    if np.array_equal(reference, candidate):
        count = index.max() + 1
        bound = float((np.ptp(value(before)) if most is None else most) * _Z**2 / (count + _Z**2))
        return Estimate(value=0.0, low=-bound, high=bound, n=n, method="Wilson")
    low, high = _percentiles(value(_resampled(before, seed)) - value(_resampled(after, seed)))
    return Estimate(value=found, low=low, high=high, n=n, method="bootstrap")


def verdict(drop: Estimate, budget: float) -> str:
    """Return "within budget", "over budget", or "undecidable at n=..." where the interval lies on both sides.

    ``budget`` is the largest drop allowed, in the unit of ``drop``.
    """
    if drop.high <= budget:
        return "within budget"
    return "over budget" if drop.low > budget else f"undecidable at n={drop.n}"


def tango_interval(lost: float, won: float, n: float) -> tuple[float, float]:
    """95 % score interval of ``(lost - won) / n``, for ``n`` pairs of which ``lost`` and ``won`` disagree.

    The bounds are where Tango's statistic meets the normal quantile; it falls as the tried difference grows, so each is
    found by bisection between the estimate and the end of the scale.
    """
    estimate = (lost - won) / n

    def is_inside(difference: float) -> bool:
        linear = (2 * n - lost + won) * difference - lost - won
        root = math.sqrt(max(0.0, linear**2 + 8 * n * won * difference * (1 - difference)))
        share = (root - linear) / (4 * n)  # likeliest share of won pairs, were ``difference`` the truth
        variance = max(0.0, n * (2 * share + difference * (1 - difference)))
        return (lost - won - n * difference) ** 2 <= _Z**2 * variance

    def bound(end: float) -> float:
        inside, outside = estimate, end
        if is_inside(outside):
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return inside

    return bound(-1.0), bound(1.0)


def median_interval(
    values: np.ndarray | Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """``(low, high, coverage)`` for the median over restarts, from order statistics, whatever the distribution.

    The k-th smallest and k-th largest of n values enclose the median with probability ``1 - 2 P(Bin(n, 1/2) < k)``; the
    largest k that reaches ``confidence`` is taken (David and Nagaraja 2003, Order Statistics, section 7.1). Six values
    are the fewest that reach 95 % (the smallest and the largest: 96.9 %), and eight 99 %; below that the range is
    returned with the coverage it has. An interval over the runs inside a process would be far too narrow: they are not
    independent.
    """
    ordered = sorted(float(value) for value in values)
    n = len(ordered)
    if n == 0:
        raise CompressError("no restarts: a median needs at least one value")
    below = 0.0
    chosen, coverage = 0, 1 - 2 * 0.5**n
    for k in range((n + 1) // 2):
        below += math.comb(n, k) * 0.5**n
        if 1 - 2 * below < confidence:
            break
        chosen, coverage = k, 1 - 2 * below
    return ordered[chosen], ordered[n - 1 - chosen], coverage


def is_different(ratios: Sequence[float]) -> bool | None:
    """Whether two engines differ in speed, from the ratio of their times in each round: the one place that decides it.

    They do if an interval of 99 % for the median ratio leaves out 1, so that of a hundred comparisons of an engine with
    itself one is called different. With six or seven rounds the interval is their range, which has 97 or 98 %; with
    fewer nothing can be said (None).
    """
    low, high, coverage = median_interval(ratios, DIFFERENT)
    return None if coverage < CONFIDENCE else not low <= 1 <= high


def _checked(scores: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64, and the group of each sample as an index counted from 0."""
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.arange(len(scores)) if groups is None else np.asarray(groups)
    if labels.shape != scores.shape:
        raise CompressError(f"groups have shape {labels.shape} and scores {scores.shape}: give one group per sample")
    _, index = np.unique(labels, return_inverse=True)
    if len(index) == 0 or index.max() < 1:
        raise CompressError(f"{len(scores)} samples in {len(np.unique(index))} groups: an interval needs at least two")
    return scores, index


def _is_binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _design_effect(scores: np.ndarray, groups: np.ndarray) -> float:
    """Variance of the mean of clustered scores over that of independent ones, at least 1.

    Where the scores do not vary there is nothing to estimate it from, and each group counts as one sample.
    """
    n, count = len(scores), int(groups.max()) + 1
    if count == n:
        return 1.0
    residual = scores - scores.mean()
    if not residual.any():
        return n / count
    sums = np.bincount(groups, weights=residual)
    return max(1.0, float((sums @ sums) / (residual @ residual) * count / (count - 1)))


def _bootstrap(scores: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean."""
    drawn = _resampled(np.stack([np.bincount(groups, weights=scores), np.bincount(groups)], axis=1), seed)
    return _percentiles(drawn[:, 0] / drawn[:, 1])


def _group_sums(statistics: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the statistics of each group, ``(groups, k)``, and the group of each sample."""
    _, index = _checked(np.zeros(len(statistics)), groups)
    sums = np.zeros((index.max() + 1, statistics.shape[1]))
    np.add.at(sums, index, statistics)
    return sums, index


def _resampled(sums: np.ndarray, seed: int) -> np.ndarray:
    """Totals ``(RESAMPLES, k)`` of groups drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    The same seed draws the same groups, whatever their sums.
    """
    rng = np.random.default_rng(seed)
    return np.stack([sums[rng.integers(len(sums), size=len(sums))].sum(axis=0) for _ in range(RESAMPLES)])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
