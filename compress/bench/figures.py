"""Figures of the rows from what the processes measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.bench.early_stopping import estimate, smallest_count
from compress.bench.record import Accuracy, Drop, EmulatedParity, Latency, Speedup
from compress.intervals import is_different, mean_interval, median_interval, paired_drop, verdict
from compress.metrics import Outputs

PERCENTILES = (90, 95, 99)


def latency(restarts: Sequence[Sequence[int]], warmup_s: float | None = None) -> Latency:
    """Summary of the latencies of each restart, in nanoseconds; every restart has at least one run."""
    rounds = [np.asarray(restart, dtype=np.float64) / 1e6 for restart in restarts]
    runs = np.concatenate(rounds)
    medians = [float(np.median(one)) for one in rounds]
    low, high, coverage = median_interval(medians)
    p90, p95, p99 = (_percentile(rounds, percent) for percent in PERCENTILES)
    return Latency(
        p50=float(np.median(medians)), p90=p90, p95=p95, p99=p99, mean=float(runs.mean()), min=float(runs.min()),
        max=float(runs.max()), interval=(low, high), coverage=coverage, restarts=len(rounds), runs=len(runs),
        restart_p50=tuple(medians), warmup_s=warmup_s,
        estimates={f"p{percent}": estimate(runs, percent) for percent in PERCENTILES})


def speedup(against: str, reference: Latency, candidate: Latency) -> Speedup:
    """How many times faster ``candidate`` is; pairing the rounds cancels what drifts more slowly than a round lasts.

    Of two that were cut short, the rounds that both have count.
    """
    pairs = zip(reference.restart_p50, candidate.restart_p50, strict=False)
    ratios = [before / after for before, after in pairs]
    low, high, _ = median_interval(ratios)
    return Speedup(against=against, ratio=float(np.median(ratios)), interval=(low, high),
                   different=is_different(ratios))


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


def emulated_parity(here: Outputs, emulated: Outputs) -> EmulatedParity:
    """The outputs of one engine file on one set of samples: this machine's, and those under emulation."""
    names = [name for name, value in here.items() if value.dtype.kind == "f"]
    pairs = [(here[name].astype(np.float64), emulated[name].astype(np.float64)) for name in names]
    answers = [(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs if a.ndim > 1 and a.shape[-1] > 1]
    return EmulatedParity(
        largest_difference=max((float(np.abs(a - b).max(initial=0.0)) for a, b in pairs), default=0.0),
        largest_output=max((float(np.abs(a).max(initial=0.0)) for a, _ in pairs), default=0.0),
        same_answers=float(min(answers)) if answers else None,
        samples=len(next(iter(here.values()))))


def _percentile(rounds: Sequence[np.ndarray], percent: int) -> float | None:
    """Median over restarts; None where the runs are too few.

    Each restart needs the runs for one to lie beyond it (100 for p99), and all together those that early stopping asks
    for (662 for p99).
    """
    too_few = min(len(one) for one in rounds) * (100 - percent) < 100
    if too_few or sum(len(one) for one in rounds) < smallest_count(percent):
        return None
    return float(np.median([np.percentile(one, percent) for one in rounds]))
