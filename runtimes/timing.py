"""Times queries of a model: warm-up until they are steady, then one clock reading before and one after each.

A query is what a scenario of MLPerf sends at once: one sample (single stream), eight (multi stream), or a batch as
large as the engine takes (offline). Where the engine takes fewer samples at once than the query has, they run in turn.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from runtimes.errors import RuntimesError
from runtimes.records import get, typed
from runtimes.spec import TensorSpec, check_feed, largest_batch
from runtimes.telemetry import Telemetry

WINDOWS = 3           # consecutive spells of warm-up whose medians must agree
AGREEMENT = 1.03      # the largest of them over the smallest
WARMUP_LIMIT = 10     # times ``warmup_s``: by then the measurement begins, steady or not

_WHERE = "measurement job: 'latency'"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """``latencies_ns`` of each query; ``steady`` is False where the warm-up ran into its limit."""

    latencies_ns: list[int]
    samples_per_query: int
    warmup_s: float
    steady: bool
    telemetry: dict[str, Any]


def split_query(
    specs: Sequence[TensorSpec], feed: Mapping[str, np.ndarray], samples: int | None, *, source: str
) -> tuple[list[dict[str, np.ndarray]], int]:
    """The feeds that one query is run as, each as large as inputs of ``specs`` take; and how many samples they are.

    Args:
        specs: the engine's inputs.
        feed: all samples of the query, along the inputs' batch axes; one, if no input has such an axis.
        samples: of one query; None runs ``feed`` whole.
        source: what a message calls the feed.

    Raises:
        RuntimesError: if ``feed`` does not hold that many samples, or is not what the engine takes.
    """
    axes = {spec.name: spec.batch_axis for spec in specs}
    counts = {name: value.shape[axis] for name, value in feed.items()
              if (axis := axes.get(name)) is not None and axis < value.ndim}
    if samples is None:
        return [check_feed(specs, feed, source=source)], next(iter(counts.values()), 1)
    if samples < 1 or any(count != samples for count in counts.values()):
        raise RuntimesError(f"{_WHERE}: a query of {samples} samples, and {source} holds {counts}: "
                            "give as many samples as the query has, at least 1")
    if not counts:
        return [check_feed(specs, feed, source=source)] * samples, samples
    step = largest_batch(specs, samples)
    parts = [
        {name: np.take(value, range(start, min(start + step, samples)), axis=axes[name]) if name in counts else value
         for name, value in feed.items()}
        for start in range(0, samples, step)
    ]
    return [check_feed(specs, part, source=source) for part in parts], samples


def time_queries(
    run: Callable[[Mapping[str, np.ndarray]], Any], parts: Sequence[Mapping[str, np.ndarray]], samples: int,
    settings: Mapping[str, Any],
) -> Timed:
    """Warm up for ``warmup_s`` at least, then time ``min_runs`` queries at least, for ``duration_s`` at least."""
    warmup_s = get(settings, "warmup_s", float, _WHERE)
    duration_ns = int(get(settings, "duration_s", float, _WHERE) * 1e9)
    min_runs = get(settings, "min_runs", int, _WHERE)
    clock, telemetry = time.perf_counter_ns, Telemetry()

    def query() -> int:
        start = clock()
        for part in parts:
            run(part)
        return clock() - start

    took_s, steady = warm_up(query, warmup_s, clock)
    times: list[int] = []
    gc.collect()
    gc.disable()    # a collection inside the clock is Python's time, not the engine's
    try:
        telemetry.start()
        until = clock() + duration_ns
        while len(times) < min_runs or clock() < until:
            times.append(query())
        measured = telemetry.stop()
    finally:
        gc.enable()
    return Timed(latencies_ns=times, samples_per_query=samples, warmup_s=took_s, steady=steady, telemetry=measured)


def warm_up(query: Callable[[], int], warmup_s: float, clock: Callable[[], int]) -> tuple[float, bool]:
    """Run ``query`` until it is steady; return the seconds that took, and whether it became so.

    It is steady once the median latencies of three spells in a row, of a third of ``warmup_s`` each, are within 3 % of
    each other: a process may need far longer than another of the same engine, and a fixed time would measure the way
    there. After ten times ``warmup_s`` it is given up. With 0 there is one run and nothing is asked.
    """
    start = clock()
    query()
    if warmup_s == 0:
        return (clock() - start) / 1e9, True
    medians: list[float] = []
    while True:
        until, spell = clock() + int(warmup_s * 1e9 / WINDOWS), [query()]
        while clock() < until:
            spell.append(query())
        medians = [*medians[1 - WINDOWS :], median(spell)]
        steady = len(medians) == WINDOWS and max(medians) <= AGREEMENT * min(medians)
        took_s = (clock() - start) / 1e9
        if steady or took_s >= WARMUP_LIMIT * warmup_s:
            return took_s, steady


def samples_of(settings: Mapping[str, Any]) -> int | None:
    """``samples_per_query`` of a job; None where the feed is run whole."""
    samples = settings.get("samples_per_query")
    return None if samples is None else typed(samples, int, f"{_WHERE}: 'samples_per_query'")
