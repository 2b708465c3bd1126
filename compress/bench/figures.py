"""Figures of the rows from what the processes measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compress.bench.early_stopping import estimate, smallest_count
from compress.bench.record import Accuracy, Drop, EmulatedParity, Generation, Latency, Speedup
from compress.errors import CompressError
from compress.intervals import is_different, median_interval, verdict
from compress.metrics import Metric, Outputs, drop_of, value_of

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
    metric: Metric, scores: np.ndarray, reference: np.ndarray | None, max_drop: float, groups: np.ndarray | None
) -> Accuracy:
    """The value of ``metric`` and, given the baseline's scores, the drop and whether it keeps ``max_drop``.

    Args:
        scores, reference: what :func:`compress.metrics.statistics_of` gave of the engine and of the baseline.
    """
    found = value_of(metric, scores, groups)
    drop = None
    if reference is not None:
        lost = drop_of(metric, reference, scores, groups)
        drop = Drop(points=100 * lost.value, interval=(100 * lost.low, 100 * lost.high), n=lost.n, method=lost.method,
                    verdict=verdict(lost, max_drop))
    return Accuracy(metric=metric.name, value=found.value, interval=(found.low, found.high), n=found.n, drop=drop,
                    share=metric.is_share, lower_is_better=metric.lower_is_better)


def generation(restarts: Sequence[Mapping[str, Any] | None]) -> Generation | None:
    """Summary of what :meth:`runtimes.running.Running.generation` told in each process; None where nothing is."""
    told = [one for one in restarts if one is not None]
    if not told:
        return None
    steps = int(told[0]["steps"])
    first = [float(np.median(one["first_ns"])) for one in told]
    after = [float(np.median(np.subtract(one["all_ns"], one["first_ns"]))) for one in told]
    return Generation(tokens=steps, first_token_ms=float(np.median(first)) / 1e6,
                      tokens_per_s=(steps - 1) * 1e9 / float(np.median(after)) if steps > 1 else None)


def emulated_parity(here: Sequence[Outputs], emulated: Sequence[Outputs]) -> EmulatedParity:
    """The outputs of one engine file on one set of samples: this machine's, and those under emulation.

    Answers of integers may differ in length, as texts do; they are other answers then.

    Raises:
        CompressError: if there are other samples there, or an output has another shape or is infinite in one place
            alone.
    """
    largest, output = 0.0, 0.0
    same: dict[str, list[np.ndarray]] = {}      # output -> whether each answer is
    for name, value, other in _pairs(here, emulated):
        alike = value.shape == other.shape
        if value.dtype.kind != "f":
            same.setdefault(name, []).append(np.array([alike and np.array_equal(value, other)]))
            if not alike:
                continue
        elif not alike:
            raise CompressError(f"output {name!r} has shape {other.shape} under emulation and {value.shape} here: "
                                "these must agree")
        a, b = value.astype(np.float64), other.astype(np.float64)
        if not np.array_equal(np.where(np.isfinite(a), 0, a), np.where(np.isfinite(b), 0, b)):
            raise CompressError(f"output {name!r} is infinite under emulation or here, and not in both")
        finite = np.isfinite(a)
        largest = max(largest, float(np.abs(a[finite] - b[finite]).max(initial=0.0)))
        output = max(output, float(np.abs(a[finite]).max(initial=0.0)))
        if value.dtype.kind == "f" and a.ndim and a.shape[-1] > 1:
            same.setdefault(name, []).append((a.argmax(-1) == b.argmax(-1)).reshape(-1))
    answers = [float(np.concatenate(found).mean()) for found in same.values()]
    return EmulatedParity(
        largest_difference=largest, largest_output=output, same_answers=min(answers, default=None),
        samples=sum(len(next(iter(batch.values()))) for batch in here))


def _pairs(here: Sequence[Outputs], emulated: Sequence[Outputs]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The name and both arrays of every output of every sample; batches of texts are cut where their lengths change."""
    for name in here[0]:
        ours, theirs = ([sample for batch in side for sample in batch[name]] for side in (here, emulated))
        if len(ours) != len(theirs):
            raise CompressError(f"output {name!r} has {len(theirs)} samples under emulation and {len(ours)} here: "
                                "these must agree")
        yield from ((name, value, other) for value, other in zip(ours, theirs, strict=True))


def _percentile(rounds: Sequence[np.ndarray], percent: int) -> float | None:
    """Median over restarts; None where the runs are too few.

    Each restart needs the runs for one to lie beyond it (100 for p99), and all together those that early stopping asks
    for (662 for p99).
    """
    too_few = min(len(one) for one in rounds) * (100 - percent) < 100
    if too_few or sum(len(one) for one in rounds) < smallest_count(percent):
        return None
    return float(np.median([np.percentile(one, percent) for one in rounds]))
