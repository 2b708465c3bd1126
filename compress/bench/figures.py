"""Figures of the rows from what the processes measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.bench.early_stopping import estimate, smallest_count
from compress.bench.record import Accuracy, Drop, EmulatedParity, Latency, Speedup
from compress.errors import CompressError
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
    """The outputs of one engine file on one set of samples: this machine's, and those under emulation.

    Raises:
        CompressError: if an output has another shape there, or is infinite in one place alone.
    """
    largest, output, answers = 0.0, 0.0, []
    for name, value in here.items():
        if emulated[name].shape != value.shape:
            raise CompressError(f"output {name!r} has shape {emulated[name].shape} under emulation and {value.shape} "
                                "here: these must agree")
        a, b = value.astype(np.float64), emulated[name].astype(np.float64)
        if not np.array_equal(np.where(np.isfinite(a), 0, a), np.where(np.isfinite(b), 0, b)):
            raise CompressError(f"output {name!r} is infinite under emulation or here, and not in both")
        finite = np.isfinite(a)
        largest = max(largest, float(np.abs(a[finite] - b[finite]).max(initial=0.0)))
        output = max(output, float(np.abs(a[finite]).max(initial=0.0)))
        if value.dtype.kind != "f":
            answers.append((a == b).reshape(len(a), -1).all(1).mean())
        elif a.ndim > 1 and a.shape[-1] > 1:
            answers.append((a.argmax(-1) == b.argmax(-1)).mean())
    return EmulatedParity(
        largest_difference=largest, largest_output=output, same_answers=float(min(answers)) if answers else None,
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
