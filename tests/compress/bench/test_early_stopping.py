"""Early stopping against the binomial distribution of scipy, and against LoadGen itself on a thousand traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from compress.bench.early_stopping import discarded, estimate, smallest_count
from compress.errors import CompressError

LOADGEN = Path(__file__).with_name("loadgen_traces.py")
TRACES = 1000


@pytest.mark.parametrize(("percentile", "count"), [(50, 11), (90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_the_fewest_queries(percentile: float, count: int) -> None:
    """64 and 662 are what LoadGen's own summary says; the rest is the binomial distribution's."""
    assert smallest_count(percentile) == count
    assert binom.cdf(1, count, 1 - percentile / 100) < 0.01 <= binom.cdf(1, count - 1, 1 - percentile / 100)
    assert discarded(count - 1, percentile) is None
    assert discarded(count, percentile) == 1


@pytest.mark.parametrize("percentile", [50, 90, 95, 97, 99])
@pytest.mark.parametrize("count", [64, 200, 663, 5000, 100_000])
def test_t_is_the_largest_that_is_unlikely(percentile: float, count: int) -> None:
    t = discarded(count, percentile)
    q = 1 - percentile / 100
    if t is None:
        assert binom.cdf(1, count, q) >= 0.01
    else:
        assert binom.cdf(t, count, q) < 0.01 <= binom.cdf(t + 1, count, q)


def test_two_hundred_queries_of_one_to_two_hundred() -> None:
    """t = 10, as LoadGen says of 200 queries ("would discard 9"): the tenth largest is 191."""
    assert estimate(np.random.default_rng(0).permutation(np.arange(1, 201)).tolist(), 90) == 191
    assert estimate(list(range(1, 64)), 90) is None


@pytest.mark.parametrize("percentile", [0, 100, float("nan")])
def test_a_percentile_is_between_0_and_100(percentile: float) -> None:
    with pytest.raises(CompressError, match=f"between 0 and 100, got {percentile}"):
        smallest_count(percentile)


@pytest.mark.slow
def test_loadgen_agrees_on_a_thousand_traces(tmp_path: Path) -> None:
    """LoadGen runs queries of its own in two processes; its estimates are ours of the latencies it logged."""
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has a wheel for x86-64 Linux alone")
    halves = [
        subprocess.Popen([sys.executable, LOADGEN, str(tmp_path / str(seed)), str(TRACES // 2), str(seed)])
        for seed in range(2)
    ]
    assert [half.wait(300) for half in halves] == [0, 0]
    lines = [line for seed in range(2) for line in (tmp_path / f"{seed}/traces.jsonl").read_text().splitlines()]
    traces = [json.loads(line) for line in lines]
    assert len(traces) == TRACES
    wrong = [
        (len(trace["latencies"]), percentile, found, estimate(trace["latencies"], float(percentile)))
        for trace in traces
        for percentile, found in trace["estimates"].items()
        if found != estimate(trace["latencies"], float(percentile))
    ]
    assert wrong == []
    found = [value for trace in traces for value in trace["estimates"].values()]
    assert sum(value is None for value in found) > 100  # both sides of the smallest count are among them
    assert sum(value is not None for value in found) > 500
    assert {trace["scenario"] for trace in traces} == {"SingleStream", "MultiStream"}
