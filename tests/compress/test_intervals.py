"""Intervals: published formulas, independent references, and their coverage in seeded simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from compress.errors import CompressError
from compress.intervals import (
    Estimate,
    is_different,
    mean_interval,
    median_interval,
    paired_drop,
    tango_interval,
    verdict,
)

Z2 = stats.norm.ppf(0.975) ** 2


def pairs(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    reference, candidate = np.ones(n), np.ones(n)
    candidate[:lost] = 0
    reference[lost:lost + won] = 0
    return reference, candidate


def test_no_disagreement_still_leaves_doubt() -> None:
    """With no discordant pair Tango's bound is z²/(n + z²): 3.7 points of 100 samples, where a bootstrap says zero."""
    drop = paired_drop(*pairs(0, 0, 100))
    assert (drop.value, drop.n, drop.method) == (0.0, 100, "Tango")
    assert drop.high == pytest.approx(Z2 / (100 + Z2), abs=1e-9)
    assert drop.low == pytest.approx(-drop.high, abs=1e-9)
    assert verdict(drop, 0.01) == "undecidable at n=100"
    assert verdict(paired_drop(*pairs(0, 0, 1000)), 0.01) == "within budget"


def test_graded_scores_that_never_differ_still_leave_doubt() -> None:
    """Scores from 0.25 to 0.75 of 30 images with two samples each: half a unit times z²/(30 + z²)."""
    scores = np.resize([0.25, 0.5, 0.75], 60)
    drop = paired_drop(scores, scores, np.repeat(np.arange(30), 2))
    assert (drop.value, drop.method) == (0.0, "Wilson")
    assert (drop.low, drop.high) == pytest.approx((-0.5 * Z2 / (30 + Z2), 0.5 * Z2 / (30 + Z2)))


def score(difference: float, lost: int, won: int, n: int) -> float:
    """Tango's statistic with the restricted estimate found by maximising the likelihood numerically."""
    def loss(p01: float) -> float:
        p10 = p01 + difference
        rest = 1 - p01 - p10
        return -sum(k * math.log(p) for k, p in ((lost, p10), (won, p01), (n - lost - won, rest)) if k)
    low, high = max(0.0, -difference), (1 - difference) / 2
    bounds = (low + 1e-12, high - 1e-12)
    p01 = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return float((lost - won - n * difference) / math.sqrt(n * (2 * p01 + difference * (1 - difference))))


@pytest.mark.parametrize(("lost", "won", "n"), [(12, 5, 200), (3, 1, 44), (30, 30, 120), (5, 0, 60)])
def test_tango_bounds_against_a_numerical_likelihood(lost: int, won: int, n: int) -> None:
    low, high = tango_interval(lost, won, n)
    assert score(low, lost, won, n) == pytest.approx(1.95996, abs=1e-3)
    assert score(high, lost, won, n) == pytest.approx(-1.95996, abs=1e-3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 500))
def test_tango_excludes_zero_exactly_where_mcnemar_rejects(lost: int, won: int, same: int) -> None:
    n = lost + won + same
    if n < 2:
        return
    low, high = tango_interval(lost, won, n)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    assert tango_interval(won, lost, n) == pytest.approx((-high, -low), abs=1e-9)
    statistic = (lost - won) ** 2 / (lost + won) if lost + won else 0.0
    if abs(statistic - Z2) > 1e-6:
        assert (low > 0 or high < 0) == (statistic > Z2)


def test_wilson_by_hand() -> None:
    """8 of 10: (0.8 + z²/20 ± z sqrt(0.016 + z²/400)) / (1 + z²/10) = 0.490, 0.943 (Wilson 1927)."""
    found = mean_interval(np.repeat([1.0, 0.0], [8, 2]))
    assert (found.value, found.method) == (0.8, "Wilson")
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert mean_interval(np.ones(10)).high == 1.0
    assert mean_interval(np.zeros(10)).low == 0.0


def test_bootstrap_agrees_with_the_normal_interval_where_it_holds() -> None:
    scores = np.random.default_rng(1).normal(5.0, 2.0, 2000)
    found = mean_interval(scores)
    half = 1.96 * scores.std(ddof=1) / math.sqrt(2000)
    assert found.method == "bootstrap"
    assert (found.low, found.high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.01)
    assert found == mean_interval(scores)


def test_samples_repeated_in_groups_tell_nothing_new() -> None:
    """Ten copies of each of 100 samples, grouped, have the interval of the 100 samples (up to G/(G-1) and n/(n-1))."""
    reference, candidate = pairs(12, 4, 100)
    alone = paired_drop(reference, candidate)
    groups = np.repeat(np.arange(100), 10)
    copied = paired_drop(np.repeat(reference, 10), np.repeat(candidate, 10), groups)
    assert copied.n == 1000
    assert (copied.value, copied.low, copied.high) == pytest.approx((alone.value, alone.low, alone.high), abs=1e-3)
    ungrouped = paired_drop(np.repeat(reference, 10), np.repeat(candidate, 10))
    assert ungrouped.high - ungrouped.low < 0.5 * (copied.high - copied.low)
    continuous = paired_drop(np.repeat(reference, 10) + 0.5, np.repeat(candidate, 10), groups)
    assert continuous.high - continuous.low == pytest.approx(alone.high - alone.low, rel=0.2)


def test_no_disagreement_in_groups() -> None:
    """The reference's own errors say how alike one image's questions are; right everywhere, an image counts once."""
    groups = np.repeat(np.arange(50), 4)
    right = paired_drop(np.ones(200), np.ones(200), groups)
    assert right.high == pytest.approx(Z2 / (50 + Z2), abs=1e-9)
    errors = np.repeat([0.0, 1.0], [8, 192])  # two images wrong on all four questions
    both = paired_drop(errors, errors, groups)
    assert both.high == pytest.approx(Z2 / (50 * 49 / 50 + Z2), abs=1e-9)


def test_clustered_comparison_of_a_thing_with_itself_covers_zero() -> None:
    """A/A: two engines that err alike, on 120 images of 5 questions whose errors go together; 400 simulations."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(120), 5)
    missed = 0
    for _ in range(400):
        hard = rng.random(120) < 0.3
        chance = np.where(hard, 0.4, 0.01)[groups]
        swapped = rng.random(120) < 0.5  # within an image the disagreements fall on one engine's side
        flips = rng.random(600) < chance
        reference = ~(flips & swapped[groups])
        candidate = ~(flips & ~swapped[groups])
        drop = paired_drop(reference.astype(float), candidate.astype(float), groups)
        missed += not drop.low <= 0 <= drop.high
    assert missed / 400 == pytest.approx(0.05, abs=0.035)  # three standard errors of 400 draws


def test_comparison_of_a_thing_with_itself_covers_zero() -> None:
    """A/A on 500 independent samples with 0/1 scores, 2000 simulations: about 5 % miss."""
    rng = np.random.default_rng(8)
    lost, won = rng.binomial(500, 0.02, 2000), rng.binomial(500, 0.02, 2000)
    bounds = [tango_interval(int(a), int(b), 500) for a, b in zip(lost, won, strict=True)]
    missed = np.mean([not low <= 0 <= high for low, high in bounds])
    assert missed == pytest.approx(0.05, abs=0.015)


def test_a_real_drop_is_covered_and_found() -> None:
    rng = np.random.default_rng(9)
    bounds = [tango_interval(int(a), int(b), 1000)
              for a, b in zip(rng.binomial(1000, 0.05, 1000), rng.binomial(1000, 0.01, 1000), strict=True)]
    assert np.mean([low <= 0.04 <= high for low, high in bounds]) == pytest.approx(0.95, abs=0.025)
    assert np.mean([low > 0 for low, _ in bounds]) > 0.95


@pytest.mark.parametrize(("low", "high", "expected"), [
    (-0.01, 0.01, "within budget"), (0.002, 0.011, "undecidable at n=50"), (0.0101, 0.02, "over budget")])
def test_verdict(low: float, high: float, expected: str) -> None:
    assert verdict(Estimate(value=0.0, low=low, high=high, n=50, method="Tango"), 0.01) == expected


@pytest.mark.parametrize(("n", "low", "high", "coverage"), [
    (1, 1, 1, 0.0), (2, 1, 2, 0.5), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (9, 2, 8, 1 - 2 * 10 / 512),
    (12, 3, 10, 1 - 2 * 79 / 4096)])
def test_median_interval_from_the_binomial_table(n: int, low: float, high: float, coverage: float) -> None:
    assert median_interval(list(range(n, 0, -1))) == pytest.approx((low, high, coverage))


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_median_interval_contains_the_median(values: list[float]) -> None:
    low, high, _ = median_interval(values)
    assert low <= np.median(values) <= high


def test_median_interval_covers_a_skewed_median() -> None:
    """Seven restarts of a lognormal latency: 1 - 2/128 of the intervals hold the true median."""
    draws = np.random.default_rng(3).lognormal(size=(4000, 7))
    hit = np.mean([low <= 1.0 <= high for low, high, _ in map(median_interval, draws)])
    assert hit == pytest.approx(1 - 2 / 128, abs=0.007)


@pytest.mark.parametrize(("n", "low", "high", "coverage"), [
    (7, 1, 7, 1 - 2 / 128), (8, 1, 8, 1 - 2 / 256), (12, 2, 11, 1 - 2 * 13 / 4096)])
def test_an_interval_of_99_percent(n: int, low: float, high: float, coverage: float) -> None:
    assert median_interval(list(range(n, 0, -1)), 0.99) == pytest.approx((low, high, coverage))


@pytest.mark.parametrize(("ratios", "answer"), [
    ([1.1] * 5, None), ([1.1] * 6, True), ([0.9] * 8, True), ([1.1] * 7 + [0.99], False), ([1.0] * 8, False),
    ([1.1] * 11 + [0.5], True), ([1.1] * 10 + [0.5] * 2, False)])
def test_is_different(ratios: list[float], answer: bool | None) -> None:
    """Of twelve rounds one may say the opposite, of eight none; five are too few to say anything."""
    assert is_different(ratios) is answer


NOISES = ("independent", "drifting", "periodic", "autoregressive", "bimodal", "in spells")


def processes(rng: np.random.Generator, noise: str, count: int) -> np.ndarray:
    """The p50 of ``count`` processes of one engine, one after the other, on a machine that is not quiet."""
    at, small = np.arange(count), rng.lognormal(sigma=0.01, size=count)
    if noise == "independent":
        return rng.lognormal(sigma=0.05, size=count)
    if noise == "drifting":
        return (1 + 0.3 * at / count) * small
    if noise == "periodic":
        return (1 + 0.2 * np.sin(2 * np.pi * (at / rng.uniform(3, 40) + rng.random()))) * small
    if noise == "bimodal":  # a process settles at 0.9 or at 1.5 ms, whatever the one before did
        return np.where(rng.random(count) < 0.3, 1.5, 0.9) * small
    state, level = rng.random() < 0.3, 0.0
    levels = []
    for _ in range(count):
        level = 0.8 * level + rng.normal()
        state = state if rng.random() < 0.8 else rng.random() < 0.3
        levels.append(math.exp(0.03 * level) if noise == "autoregressive" else 1.5 if state else 0.9)
    return np.array(levels) * small


def compared(rng: np.random.Generator, noise: str, restarts: int, gain: float) -> bool:
    """Whether a second engine, ``gain`` times faster than the first, is called different; the order is ABBA."""
    pairs = processes(rng, noise, 2 * restarts).reshape(restarts, 2)
    pairs[1::2] = pairs[1::2, ::-1]
    return bool(is_different((gain * pairs[:, 0] / pairs[:, 1]).tolist()))


@pytest.mark.parametrize("restarts", [8, 12])
@pytest.mark.parametrize("noise", NOISES)
def test_an_engine_does_not_differ_from_itself(noise: str, restarts: int) -> None:
    """A/A, 1,000 times: at most 2.5 % are called different, so that fifty comparisons seldom reach the limit of 5 %."""
    rng = np.random.default_rng(7)
    assert np.mean([compared(rng, noise, restarts, 1.0) for _ in range(1000)]) <= 0.025


@pytest.mark.parametrize(("noise", "restarts"), [("drifting", 8), ("autoregressive", 8), ("independent", 12)])
def test_a_tenth_is_seen(noise: str, restarts: int) -> None:
    rng = np.random.default_rng(8)
    assert np.mean([compared(rng, noise, restarts, 1.1) for _ in range(300)]) >= 0.6


def test_refusals() -> None:
    with pytest.raises(CompressError, match="3 reference scores and 2 of the candidate"):
        paired_drop(np.ones(3), np.ones(2))
    with pytest.raises(CompressError, match=r"groups have shape \(2,\) and scores \(3,\)"):
        mean_interval(np.ones(3), np.zeros(2))
    with pytest.raises(CompressError, match="1 samples in 1 groups"):
        mean_interval(np.ones(1))
    with pytest.raises(CompressError, match="4 samples in 1 groups"):
        paired_drop(np.ones(4), np.ones(4), np.zeros(4))
    with pytest.raises(CompressError, match="no restarts"):
        median_interval([])
