"""Figures of the rows from what the processes measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.bench.record import Accuracy, Drop, Latency, Mark, Speedup
from compress.intervals import mean_interval, median_interval, paired_drop, verdict

WIDEST = 0.02  # how far from p50 its interval may reach, as a share


def latency(restarts: Sequence[Sequence[int]]) -> Latency:
    """Summary of the latencies of each restart, in nanoseconds; every restart has at least one run."""
    rounds = [np.asarray(restart, dtype=np.float64) / 1e6 for restart in restarts]
    runs = np.concatenate(rounds)
    medians = [float(np.median(one)) for one in rounds]
    low, high, coverage = median_interval(medians)
    return Latency(
        p50=float(np.median(medians)), p90=_percentile(rounds, 90), p95=_percentile(rounds, 95),
        p99=_percentile(rounds, 99), mean=float(runs.mean()), min=float(runs.min()), max=float(runs.max()),
        interval=(low, high), coverage=coverage, restarts=len(rounds), runs=len(runs), restart_p50=tuple(medians))


def speedup(against: str, reference: Latency, candidate: Latency) -> Speedup:
    """How many times faster ``candidate`` is; pairing the rounds cancels what drifts more slowly than a round lasts."""
    ratios = [a / b for a, b in zip(reference.restart_p50, candidate.restart_p50, strict=True)]
    low, high, _ = median_interval(ratios)
    return Speedup(against=against, ratio=float(np.median(ratios)), interval=(low, high))


def unstable(time: Latency) -> Mark | None:
    """UNSTABLE where the interval of p50 reaches further than 2 % from it."""
    low, high = ((bound - time.p50) / time.p50 for bound in time.interval)
    if low >= -WIDEST and high <= WIDEST:
        return None
    return Mark(kind="UNSTABLE", reason=f"the interval of p50 reaches from {low:+.1%} to {high:+.1%} of it")


def accuracy(
    metric: str, scores: np.ndarray, reference: np.ndarray | None, max_drop: float, groups: np.ndarray | None
) -> Accuracy:
    """The value of ``scores`` and, given the baseline's, the drop against them and whether it keeps ``max_drop``."""
    found = mean_interval(scores, groups)
    drop = None
    if reference is not None:
        lost = paired_drop(reference, scores, groups)
        drop = Drop(points=100 * lost.value, interval=(100 * lost.low, 100 * lost.high), n=lost.n, method=lost.method,
                    verdict=verdict(lost, max_drop))
    return Accuracy(metric=metric, value=found.value, interval=(found.low, found.high), n=found.n, drop=drop)


def _percentile(rounds: Sequence[np.ndarray], percent: int) -> float | None:
    """Median over restarts; None unless each restart has the runs for one to lie beyond it (100 for p99)."""
    if min(len(one) for one in rounds) * (100 - percent) < 100:
        return None
    return float(np.median([np.percentile(one, percent) for one in rounds]))
