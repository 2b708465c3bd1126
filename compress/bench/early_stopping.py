"""Early-stopping estimates of a percentile as MLPerf's LoadGen gives them: what a run that ended early may still claim.

After ``count`` queries the estimate of the p-th percentile is the t-th largest latency, where t is the largest number
for which t or fewer of ``count`` independent queries would lie beyond the percentile with less than 1 %. Fewer queries
than the smallest count with t = 1 give none: 64 for the 90th percentile, 662 for the 99th.

Source: MLPerf Inference rules, "Early stopping", and LoadGen's ``early_stopping.cc`` and ``results.cc`` (confidence
0.99, tolerance 0), of which the tests find no disagreement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from compress.errors import CompressError

CONFIDENCE = 0.99


def estimate(latencies: np.ndarray | Sequence[float], percentile: float) -> float | None:
    """The early-stopping estimate of a percentile, in the unit of ``latencies``; None where they are too few.

    Args:
        latencies: of each query, in any order.
        percentile: in percent, in (0, 100).
    """
    t = discarded(len(latencies), percentile)
    return None if t is None else float(np.partition(latencies, len(latencies) - t)[len(latencies) - t])


@lru_cache(maxsize=256)  # the restarts of every row have much the same counts
def discarded(count: int, percentile: float) -> int | None:
    """The t of ``count`` queries; None where they are too few for one of them to be beyond the percentile."""
    p = _share(percentile)
    # log P(k of count are beyond), from k = 0 on: in logarithms, because p ** count underflows.
    log_odds = count * math.log(p)
    total, t = 0.0, -1
    while t < count:
        total += math.exp(log_odds)
        if total >= 1 - CONFIDENCE:
            break
        t += 1
        log_odds += math.log((count - t) / (t + 1) * (1 - p) / p) if t < count else 0.0
    return t if t >= 1 else None


@lru_cache(maxsize=256)
def smallest_count(percentile: float) -> int:
    """The fewest queries that give an estimate."""
    p = _share(percentile)
    count = 2
    while p**count + count * (1 - p) * p ** (count - 1) >= 1 - CONFIDENCE:
        count += 1
    return count


def _share(percentile: float) -> float:
    if not 0 < percentile < 100:
        raise CompressError(f"a percentile lies between 0 and 100, got {percentile}")
    return percentile / 100
