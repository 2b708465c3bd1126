"""A histogram of a tensor's values in bounded memory, whose range doubles exactly: mergeable to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.minmax import MinMax, extent

SMALLEST_EXPONENT = -64
"""The range is never narrower than 2^-64: values below it (denormals, noise of an all-zero tensor) share a bin."""

_CHUNK = 1 << 16  # values binned at a time: the temporaries stay in the second-level cache


class Histogram:
    """Counts of values in equal bins over ``(-2^e, 2^e)``, with the exact minimum and maximum.

    With ``n = bins`` and the bin width ``w = 2^e / n``, a value ``x`` falls in bin ``trunc(x / w)``: bin ``j > 0`` is
    ``[j w, (j+1) w)``, bin ``-j`` its mirror image, and bin 0 is ``(-w, w)``. The exponent ``e`` is the smallest that
    holds every value. Scaling by a power of two is exact, and ``trunc(trunc(x / w) / 2) = trunc(x / (2 w))``: doubling
    the range moves every count to the bin it would have had from the start. So the state depends on the values alone,
    not on their order, split or merging. One enormous value costs resolution, never memory.
    """

    def __init__(self, bins: int = 2048) -> None:
        if bins < 2 or bins & (bins - 1):
            raise CalibrationError(f"a histogram of {bins} bins was asked for: give a power of two, at least 2")
        self.bins = bins
        self.exponent = SMALLEST_EXPONENT
        self.counts: np.ndarray = np.zeros(2 * bins - 1, np.int64)  # bin j at index j + bins - 1
        self.extremes = MinMax()

    @classmethod
    def of(cls, *arrays: np.ndarray, bins: int = 2048) -> Histogram:
        stat = cls(bins)
        for array in arrays:
            stat.update(array)
        return stat

    @property
    def low(self) -> float:
        return self.extremes.low

    @property
    def high(self) -> float:
        return self.extremes.high

    @property
    def count(self) -> int:
        """Values seen."""
        return self.extremes.count

    @property
    def width(self) -> float:
        """Width of a bin, in the units of the values; bin 0 is twice as wide."""
        return math.ldexp(1.0 / self.bins, self.exponent)

    def update(self, array: np.ndarray) -> None:
        """Add the values of an array of any shape; integers count as float64, an empty array adds nothing.

        Raises:
            CalibrationError: if a value is not a finite real number; nothing is added then.
        """
        array = np.asarray(array)
        if not array.size:
            return
        low, high = extent(array)
        largest = max(-low, high)
        self._widen(math.frexp(largest)[1] if largest else SMALLEST_EXPONENT)
        work = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
        scale = np.ldexp(work(self.bins), -self.exponent)
        flat = array.ravel(order="K")
        for start in range(0, flat.size, _CHUNK):
            scaled = flat[start:start + _CHUNK].astype(work, copy=False) * scale
            index = scaled.astype(np.int32)  # truncates
            index += self.bins - 1
            self.counts += np.bincount(index, minlength=self.counts.size)
        self.extremes.low = min(self.low, low)
        self.extremes.high = max(self.high, high)
        self.extremes.count += array.size

    def merge(self, other: Histogram) -> None:
        """Add the values that ``other`` has seen."""
        if other.bins != self.bins:
            raise CalibrationError(f"histograms of {self.bins} and {other.bins} bins cannot be merged: "
                                   "collect both with the same number")
        self._widen(other.exponent)
        self.counts += _doubled(other.counts, self.exponent - other.exponent)
        self.extremes.merge(other.extremes)

    def to_json(self) -> dict[str, Any]:
        """The state as a JSON value; empty bins at both ends are left out."""
        filled = np.flatnonzero(self.counts)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, -1)
        return {"bins": self.bins, "exponent": self.exponent, "first": first,
                "counts": self.counts[first:last + 1].tolist(), "extremes": self.extremes.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        try:
            stat = cls(int(data["bins"]))
            counts, first = np.asarray(data["counts"], np.int64), int(data["first"])
            stat.exponent = int(data["exponent"])
            stat.counts[first:first + counts.size] = counts
            stat.extremes = MinMax.from_json(data["extremes"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"not a histogram ({type(error).__name__}: {error}): collect it again") from error
        sound = first >= 0 and SMALLEST_EXPONENT <= stat.exponent <= 1024 and (stat.counts >= 0).all()
        if not sound or int(stat.counts.sum()) != stat.count:
            raise CalibrationError(f"not a histogram: its bins hold {int(stat.counts.sum())} values of {stat.count}: "
                                   "collect it again")
        return stat

    def _widen(self, exponent: int) -> None:
        """Double the range until it reaches ``2^exponent``."""
        if exponent > self.exponent:
            self.counts = _doubled(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _doubled(counts: np.ndarray, times: int) -> np.ndarray:
    """The counts in bins ``2^times`` as wide."""
    bins = counts.size // 2 + 1
    bin_of = np.arange(1 - bins, bins)
    bin_of = np.sign(bin_of) * (np.abs(bin_of) >> min(times, 62))
    wider = np.zeros_like(counts)
    np.add.at(wider, bin_of + bins - 1, counts)
    return wider
