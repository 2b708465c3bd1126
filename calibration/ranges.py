"""From statistics to the range a quantizer maps onto its integers."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np

from calibration.errors import CalibrationError
from calibration.histogram import Histogram
from calibration.minmax import MinMax

RangeMethod = Literal["minmax", "percentile"]

NARROWEST = 2.0 ** -64
"""A tensor this close to zero throughout is a zero tensor: the scale of a narrower range is no normal float32."""


def choose_range(
    stat: MinMax | Histogram, method: RangeMethod = "minmax", percentile: float = 99.99, *, name: str = "tensor"
) -> tuple[float, float]:
    """The range of values that quantization keeps; what lies outside is clipped to it.

    Args:
        stat: statistics of all the values of the tensor.
        method: ``"minmax"`` keeps every value; ``"percentile"`` needs a histogram and leaves out values at the ends:
            half of the allowance at either end of a tensor with both signs, all of it at the far end of the others.
        percentile: share of the values kept, in percent, in ``(50, 100]``. A range ends at the edge of a bin, the outer
            one, so at least this share is kept.
        name: what messages call the tensor.

    Returns:
        ``(low, high)`` with ``low <= 0 <= high`` and ``low < high``: zero must be exact in affine quantization
        (padding, ReLU), so it is always inside. A tensor of zeros gets ``(0.0, 1.0)``, in which each of its values is
        exact.

    Raises:
        CalibrationError: naming the tensor, if the statistic is empty, or the method unknown or not possible.

    Source: percentile calibration in Wu et al. 2020, arXiv:2004.09602.
    """
    if method not in ("minmax", "percentile"):
        raise CalibrationError(f"unknown range method {method!r}: use 'minmax' or 'percentile'")
    if not 50 < percentile <= 100:
        raise CalibrationError(f"percentile is {percentile}: give the share of the values to keep, in (50, 100]")
    if not stat.count:
        raise CalibrationError(f"{name} received no values: add samples that reach it, or keep it in float")
    low, high = stat.low, stat.high
    if method == "percentile":
        if not isinstance(stat, Histogram):
            raise CalibrationError(f"{name}: the range method 'percentile' needs a histogram, not only extremes")
        low, high = _percentile(stat, percentile)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high - low >= NARROWEST else (0.0, 1.0)


def _percentile(stat: Histogram, percentile: float) -> tuple[float, float]:
    # Fractions, because 99.99 is no binary number: 10,000 values must allow exactly one to be left out.
    allowance = int(stat.count * (100 - Fraction(str(percentile))) / 100)
    both = stat.low < 0 < stat.high
    below = allowance // 2 if both else allowance if stat.high <= 0 else 0
    above = allowance // 2 if both else allowance if stat.low >= 0 else 0
    first = int(np.searchsorted(np.cumsum(stat.counts), below, side="right")) - (stat.bins - 1)
    last = (stat.bins - 1) - int(np.searchsorted(np.cumsum(stat.counts[::-1]), above, side="right"))
    low = (first - 1 if first <= 0 else first) * stat.width
    high = (last + 1 if last >= 0 else last) * stat.width
    return max(low, stat.low), min(high, stat.high)
