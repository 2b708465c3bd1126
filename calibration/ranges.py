"""From statistics to the range a quantizer maps onto its integers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from calibration.errors import CalibrationError
from calibration.histogram import SIDE, Histogram
from calibration.minmax import MinMax

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]

NARROWEST = 2.0 ** -64
"""A tensor this close to zero throughout is a zero tensor: the scale of a narrower range is no normal float32."""


_AROUND = np.linspace(0.85, 1.15, 13)   # of the ends of a range


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The integers a range is mapped onto: how many, and whether zero is in the middle of them."""

    levels: int = 256
    symmetric: bool = False

    def step(self, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
        """The distance of neighbouring values for each range."""
        if self.symmetric:
            return np.asarray(np.maximum(-np.asarray(low), high) / (self.levels / 2 - 1))
        return np.asarray((np.asarray(high) - low) / (self.levels - 1))


def choose_range(
    stat: MinMax | Histogram, method: RangeMethod = "minmax", percentile: float = 99.99, grid: Grid = Grid(),
    *, name: str = "tensor",
) -> tuple[float, float]:  # fmt: skip
    """The range of values that quantization keeps; what lies outside is clipped to it.

    Args:
        stat: statistics of all the values of the tensor.
        method: ``"minmax"`` keeps every value. The others need a histogram. ``"percentile"`` leaves out values at the
            ends: half of the allowance at either end of a tensor with both signs, all of it at the far end of the
            others. ``"mse"`` has the least squared error on ``grid``, of what is rounded and what is clipped.
            ``"entropy"`` loses the least information: the divergence of what is left from what there was.
        percentile: share of the values kept, in percent, in ``(50, 100]``. A range ends at the edge of a bin, the outer
            one, so at least this share is kept.
        grid: the integers, for ``"mse"`` and ``"entropy"``.
        name: what messages call the tensor.

    Returns:
        ``(low, high)`` with ``low <= 0 <= high`` and ``low < high``: zero must be exact in affine quantization
        (padding, ReLU), so it is always inside. A tensor of zeros gets ``(0.0, 1.0)``, in which each of its values is
        exact.

    Raises:
        CalibrationError: naming the tensor, if the statistic is empty, or the method unknown or not possible.

    Source: percentile and entropy calibration in Wu et al. 2020, arXiv:2004.09602, section 5.1; the squared error of
        rounding and clipping in Banner et al. 2019, arXiv:1810.05723, section 3.
    """
    if method not in get_args(RangeMethod):
        raise CalibrationError(f"unknown range method {method!r}: use one of {', '.join(get_args(RangeMethod))}")
    if not 50 < percentile <= 100:
        raise CalibrationError(f"percentile is {percentile}: give the share of the values to keep, in (50, 100]")
    if not stat.count:
        raise CalibrationError(f"{name} received no values: add samples that reach it, or keep it in float")
    low, high = stat.low, stat.high
    if method != "minmax":
        if not isinstance(stat, Histogram):
            raise CalibrationError(f"{name}: the range method {method!r} needs a histogram, not only extremes")
        if method == "percentile":
            low, high = _percentile(stat, percentile)
        elif method == "mse":
            low, high = _least_error(stat, grid)
        else:
            low, high = _least_divergence(stat, grid)
    low, high = min(low, 0.0) + 0.0, max(high, 0.0)      # no negative zero
    return (low, high) if high - low >= NARROWEST else (0.0, 1.0)


def _percentile(stat: Histogram, percentile: float) -> tuple[float, float]:
    # Fractions, because 99.99 is no binary number: 10,000 values must allow exactly one to be left out.
    allowance = int(stat.count * (100 - Fraction(str(percentile))) / 100)
    both = stat.low < 0 < stat.high
    below = allowance // 2 if both else allowance if stat.high <= 0 else 0
    above = allowance // 2 if both else allowance if stat.low >= 0 else 0
    first = int(np.searchsorted(np.cumsum(stat.counts), below, side="right")) - SIDE
    last = SIDE - int(np.searchsorted(np.cumsum(stat.counts[::-1]), above, side="right"))
    edges = stat.edges
    low = -edges[-first] if first <= 0 else edges[first - 1]
    high = edges[last] if last >= 0 else -edges[-last - 1]
    return max(float(low), stat.low), min(float(high), stat.high)


def _least_error(stat: Histogram, grid: Grid) -> tuple[float, float]:
    """The range whose mean squared error is the least, of those that end at the edges of bins.

    What is inside errs by ``step² / 12`` on average, and by itself where it is nearer to zero than half a step; what is
    outside by its distance from the range's end. On a grid that is not symmetric the two ends are moved in turn.
    """
    below, above = _Tail.of(stat, negative=True), _Tail.of(stat, negative=False)
    if grid.symmetric:
        ends = np.union1d(below.ends, above.ends)
        errors = _error(np.minimum(ends, below.largest), np.minimum(ends, above.largest), below, above, grid)
        best = float(ends[np.argmin(errors)])
        return -min(best, below.largest), min(best, above.largest)
    low, high = below.largest, above.largest
    for _ in range(8):
        before = low, high
        high = float(above.ends[np.argmin(_error(low, above.ends, below, above, grid))])
        low = float(below.ends[np.argmin(_error(below.ends, high, below, above, grid))])
        if (low, high) == before:
            break
    return _nearby(stat, low, high, below, above, grid)


def _nearby(
    stat: Histogram, low: float, high: float, below: _Tail, above: _Tail, grid: Grid
) -> tuple[float, float]:  # fmt: skip
    """The best of the ranges around ``(-low, high)``, with every bin really rounded.

    Where much of a tensor lies within one step, as GELU's values do below zero, it matters where that step is.
    """
    lows, highs = np.minimum(low * _AROUND, below.largest), np.minimum(high * _AROUND, above.largest)
    lows, highs = (each.ravel() for each in np.meshgrid(np.unique(lows), np.unique(highs), indexing="ij"))
    step = grid.step(-lows, highs)[:, None]
    zero = np.round(lows[:, None] / step)
    filled = np.flatnonzero(stat.counts)
    middles = np.concatenate([-below.middles[:0:-1], [0.0], above.middles[1:]])[filled]
    integers = np.clip(np.round(middles / step), -zero, grid.levels - 1 - zero)
    best = int(np.argmin((integers * step - middles) ** 2 @ stat.counts[filled].astype(np.float64)))
    return -float(lows[best]), float(highs[best])


def _error(
    low: np.ndarray | float, high: np.ndarray | float, below: _Tail, above: _Tail, grid: Grid
) -> np.ndarray:  # fmt: skip
    """The squared error of the ranges ``(-low, high)``, summed over all values."""
    step = grid.step(-np.asarray(low), high)
    if not grid.symmetric:      # zero is moved onto the grid, and both ends with it
        zero = np.round(low / np.where(step > 0, step, 1.0))
        low, high = zero * step, (grid.levels - 1 - zero) * step
    rounded = np.zeros(np.broadcast(low, high).shape)
    for tail, end in ((below, low), (above, high)):
        near = np.minimum(step / 2, end)
        rounded = rounded + tail.squares(near) + (tail.count(end) - tail.count(near)) * step**2 / 12 + tail.clipped(end)
    return rounded


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """The values on one side of zero: their counts, sums and sums of squares up to each edge, bin by bin."""

    ends: np.ndarray        # candidates for the range's end, ascending, none beyond the largest value
    largest: float
    edges: np.ndarray
    middles: np.ndarray     # of the bins, bin 0 first
    counts: np.ndarray      # cumulative, with a zero before
    sums: np.ndarray
    squared: np.ndarray

    @classmethod
    def of(cls, stat: Histogram, *, negative: bool) -> _Tail:
        largest = max(0.0, -stat.low if negative else stat.high)
        edges = np.concatenate([[0.0], stat.edges])
        side = stat.counts[:SIDE][::-1] if negative else stat.counts[SIDE + 1:]
        counts = np.concatenate([[0], side])        # what is in bin 0 is exact on every grid that matters
        upper = np.minimum(edges[1:], largest) if largest else edges[1:]
        middle = (edges[:-1] + np.maximum(upper, edges[:-1])) / 2
        sums = [np.concatenate([[0.0], np.cumsum(counts * middle**power)]) for power in (0, 1, 2)]
        ends = np.unique(np.minimum(edges[1:], largest)) if largest else np.zeros(1)
        return cls(ends=ends, largest=largest, edges=edges, middles=middle, counts=sums[0], sums=sums[1],
                   squared=sums[2])  # fmt: skip

    def count(self, end: np.ndarray | float) -> np.ndarray:
        return self._upto(self.counts, end)

    def squares(self, end: np.ndarray | float) -> np.ndarray:
        return self._upto(self.squared, end)

    def clipped(self, end: np.ndarray | float) -> np.ndarray:
        """The squared distances from ``end`` of what lies beyond it."""
        count, total, squared = (of[-1] - self._upto(of, end) for of in (self.counts, self.sums, self.squared))
        error = squared - 2 * np.asarray(end) * total + np.asarray(end) ** 2 * count
        return np.asarray(np.maximum(error, 0.0))

    def _upto(self, cumulative: np.ndarray, end: np.ndarray | float) -> np.ndarray:
        return np.asarray(np.interp(end, self.edges, cumulative))


def _least_divergence(stat: Histogram, grid: Grid) -> tuple[float, float]:
    """The range whose values, on the grid, have the least Kullback-Leibler divergence from the values themselves.

    Both ends are as far from zero, or at the smallest and largest value where these are nearer; what is clipped counts
    as being at the end. A level's count is spread over the bins it covers that hold values.
    """
    counts = stat.counts[SIDE + 1:] + stat.counts[:SIDE][::-1]
    edges, largest = stat.edges, max(-stat.low, stat.high)
    total = counts.sum()
    if not total:
        return stat.low, stat.high
    two_sided = stat.low < 0 < stat.high or grid.symmetric
    levels = grid.levels // 2 if two_sided else grid.levels
    filled = int(np.flatnonzero(counts)[-1]) + 1
    best, found = np.inf, largest
    for last in range(filled, 0, -4):
        end = min(float(edges[last]), largest)
        if counts[last:].sum() > total // 2:
            break
        divergence = _divergence(counts, edges, last, end, levels)
        if divergence < best:
            best, found = divergence, end
    return max(stat.low, -found), min(stat.high, found)


def _divergence(counts: np.ndarray, edges: np.ndarray, last: int, end: float, levels: int) -> float:
    """Of the first ``last`` bins, what is beyond them in the last, on ``levels`` levels up to ``end``."""
    true = counts[:last].astype(np.float64)
    level = np.minimum((edges[:last] / end * levels).astype(np.int64), levels - 1)
    width = np.diff(edges[: last + 1]) * (true > 0)
    held = np.bincount(level, true, levels)
    over = np.bincount(level, width, levels)
    given = held[level] * width / np.maximum(over[level], np.finfo(np.float64).tiny)
    true[-1] += counts[last:].sum()
    inside = true > 0
    given = np.where(given > 0, given, np.finfo(np.float64).tiny * max(true.sum(), 1.0))
    p, q = true[inside] / true.sum(), given[inside] / given[inside].sum()
    return float((p * np.log(p / q)).sum())
