"""The value of a metric and the drop between two engines, each with its interval."""

from __future__ import annotations

import math

import numpy as np

from compress.errors import CompressError
from compress.intervals import Estimate, mean_interval, paired_drop, sums_drop, sums_interval
from compress.metrics.metric import Metric


def value_of(metric: Metric, statistics: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """The value of ``statistics``, as :func:`compress.metrics.statistics_of` gives them, over all samples.

    Args:
        groups: shape ``(samples,)``, equal for samples that are not independent.

    Raises:
        CompressError: if there are fewer than two samples (or groups), or the metric makes no number of them.
    """
    if metric.value is None:
        return mean_interval(statistics, groups)
    _check_value(metric, statistics)
    return sums_interval(statistics, metric.value, groups)


def drop_of(
    metric: Metric, reference: np.ndarray, candidate: np.ndarray, groups: np.ndarray | None = None
) -> Estimate:
    """How much worse ``candidate`` is than ``reference`` on the same samples, in the metric's unit: above 0 is worse.

    Raises:
        CompressError: if the two differ in shape, or as :func:`compress.intervals.paired_drop`.
    """
    if reference.shape != candidate.shape:
        raise CompressError(f"statistics of shape {reference.shape} of the reference and {candidate.shape} of the "
                            "candidate cannot be paired: evaluate both on the same samples")
    better, worse = (candidate, reference) if metric.lower_is_better else (reference, candidate)
    if metric.value is None:
        return paired_drop(better, worse, groups)
    _check_value(metric, candidate)
    return sums_drop(better, worse, metric.value, groups, most=1.0 if metric.is_share else None)


def _check_value(metric: Metric, statistics: np.ndarray) -> None:
    """Of what no number is, no budget can be kept."""
    assert metric.value is not None
    try:
        number = float(metric.value(statistics.sum(axis=0)))
    except Exception as error:      # a metric may be the user's own code
        told = f"{type(error).__name__}: {error}"
        raise CompressError(f"metric {metric.name!r} makes no value of its {len(statistics)} samples: "
                            f"{told}") from error
    if not math.isfinite(number):
        raise CompressError(f"metric {metric.name!r} makes {number} of its {len(statistics)} samples: it must be "
                            "finite")
