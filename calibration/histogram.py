"""A histogram of a tensor's values in bounded memory, its bins as fine as floating point's: mergeable to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.minmax import MinMax, extent

SMALLEST_EXPONENT = -64
"""The largest value counts as at least 2^-65: those of a tensor of zeros, or of nothing but noise, share a bin."""

PER_OCTAVE = 128        # bins between one power of two and the next: their width is at most 1/128 of their values
OCTAVES = 32            # below the largest value; what is smaller than 2^-32 of it shares the bin of zero
SIDE = OCTAVES * PER_OCTAVE

_CHUNK = 1 << 17        # values binned at a time: the temporaries stay in the second-level cache; fewer than that wait
_KEYS = 1 << 15         # of a positive float32: its exponent, and the first seven bits of its mantissa
_BIAS = 127 * PER_OCTAVE


class Histogram:
    """Counts of values, as float32, by sign, exponent and the first seven bits of the mantissa; exact extremes.

    With ``e`` the smallest exponent that holds every value (``|x| < 2^e``), there are 32 octaves below ``2^e`` on
    either side of zero, with 128 equal bins each; bin 0 is what lies between them. The bin of a value does not depend
    on the others: where ``e`` grows, the smallest octaves are joined with bin 0, as they would have been from the
    start. So the state depends on the values alone, not on their order, split or merging. And one enormous value costs
    little: a million times as large as all others, it leaves these the bins of 12 octaves.
    """

    def __init__(self) -> None:
        self.exponent = SMALLEST_EXPONENT
        self.extremes = MinMax()
        self._counts: np.ndarray = np.zeros(2 * SIDE + 1, np.int64)
        self._waiting: np.ndarray = np.empty(_CHUNK, np.uint16)     # upper halves of values that are not binned yet
        self._held = 0                                              # how many

    @classmethod
    def of(cls, *arrays: np.ndarray) -> Histogram:
        stat = cls()
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
    def counts(self) -> np.ndarray:
        """Values in each bin, int64 ``(2 * SIDE + 1,)``: bin ``j`` at index ``SIDE + j``, ``-SIDE <= j <= SIDE``."""
        if self._held:
            self._bin(self._waiting[:self._held])
            self._held = 0
        return self._counts

    @property
    def edges(self) -> np.ndarray:
        """Where the bins of one side end, float64 ``(SIDE + 1,)``: bin ``j > 0`` is ``[edges[j - 1], edges[j])``.

        Bin ``-j`` is its mirror image, and bin 0 is ``(-edges[0], edges[0])``.
        """
        place = np.arange(SIDE + 1)
        return np.ldexp(1 + (place % PER_OCTAVE) / PER_OCTAVE, self.exponent - OCTAVES + place // PER_OCTAVE)

    def update(self, array: np.ndarray, ends: tuple[float, float] | None = None) -> None:
        """Add the values of an array of any shape; an empty one adds nothing.

        Args:
            array: the values.
            ends: the smallest and the largest of them, where the caller knows.

        Raises:
            CalibrationError: if a value is not a real number that float32 holds; nothing is added then.
        """
        array = np.asarray(array)
        if not array.size:
            return
        low, high = extent(array) if ends is None else (ends[0] + 0.0, ends[1] + 0.0)
        if not max(-low, high) <= float(np.finfo(np.float32).max):
            far = low if -low > high else high
            raise CalibrationError(f"values of shape {array.shape} hold {far:g}, which float32 does not: look for the "
                                   "layer or sample that produces it")
        low, high = float(np.float32(low)), float(np.float32(high))
        largest = max(-low, high)
        self._widen(math.frexp(largest)[1] if largest else SMALLEST_EXPONENT)
        flat = array.ravel(order="K")
        for start in range(0, flat.size, _CHUNK):
            values = np.ascontiguousarray(flat[start:start + _CHUNK], np.dtype("<f4"))
            self._add(values.view("<u2")[1::2])
        self.extremes.low = min(self.low, low)
        self.extremes.high = max(self.high, high)
        self.extremes.count += array.size

    def moments(self) -> tuple[float, float]:
        """Mean and variance of all values, each as the middle of its bin: within 1/256 of it.

        They come of the counts alone, so they too are equal to the bit in any order and any split.
        """
        if not self.count:
            raise CalibrationError("a histogram without values has no mean: add samples that reach the tensor")
        middle = np.concatenate([[0.0], (self.edges[:-1] + self.edges[1:]) / 2])
        both = np.concatenate([-middle[:0:-1], middle])
        mean = math.fsum(self.counts * both) / self.count
        return mean, math.fsum(self.counts * (both - mean) ** 2) / self.count

    def outside(self, low: float, high: float) -> int:
        """How many values lie outside ``[low, high]``, ``low <= 0 <= high``: those in bins that begin at its ends."""
        above = self.counts[SIDE + 1:][self.edges[:-1] >= high].sum() if self.high > high else 0
        below = self.counts[:SIDE][::-1][self.edges[:-1] >= -low].sum() if self.low < low else 0
        return int(above + below)

    def merge(self, other: Histogram) -> None:
        """Add the values that ``other`` has seen."""
        self._widen(other.exponent)
        self._counts += _widened(other.counts, self.exponent - other.exponent)
        self.extremes.merge(other.extremes)

    def to_json(self) -> dict[str, Any]:
        """The state as a JSON value; empty bins at both ends are left out."""
        filled = np.flatnonzero(self.counts)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, -1)
        return {"per_octave": PER_OCTAVE, "octaves": OCTAVES, "exponent": self.exponent, "first": first,
                "counts": self.counts[first:last + 1].tolist(), "extremes": self.extremes.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        stat = cls()
        try:
            if (data["per_octave"], data["octaves"]) != (PER_OCTAVE, OCTAVES):
                raise CalibrationError("a histogram of other bins than this release's: collect it again")
            counts, first = np.asarray(data["counts"], np.int64), int(data["first"])
            stat.exponent = int(data["exponent"])
            stat._counts[first:first + counts.size] = counts
            stat.extremes = MinMax.from_json(data["extremes"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"not a histogram ({type(error).__name__}: {error}): collect it again") from error
        sound = first >= 0 and SMALLEST_EXPONENT <= stat.exponent <= 128 and (stat.counts >= 0).all()
        if not sound or int(stat.counts.sum()) != stat.count:
            raise CalibrationError(f"not a histogram: its bins hold {int(stat.counts.sum())} values of {stat.count}: "
                                   "collect it again")
        return stat

    def _add(self, halves: np.ndarray) -> None:
        """Bin the upper halves of at most as many values as are binned at a time, or let them wait for more."""
        if halves.size == _CHUNK:
            self._bin(halves)
            return
        if self._held + halves.size > _CHUNK:
            self._bin(self._waiting[:self._held])
            self._held = 0
        self._waiting[self._held:self._held + halves.size] = halves
        self._held += halves.size

    def _bin(self, halves: np.ndarray) -> None:
        """The window of ``SIDE`` keys below ``2^exponent`` has bins, what is below it is bin 0."""
        keys = np.bincount(halves, minlength=2 * _KEYS)
        positive, negative = keys[:_KEYS], keys[_KEYS:]
        end = self.exponent * PER_OCTAVE + _BIAS
        start = end - SIDE
        above, below = positive[start:end], negative[start:end]
        self._counts[SIDE + 1:] += above
        self._counts[:SIDE] += below[::-1]
        self._counts[SIDE] += halves.size - above.sum() - below.sum()       # nothing is beyond the end

    def _widen(self, exponent: int) -> None:
        """Let the bins reach to ``2^exponent``."""
        if exponent > self.exponent:
            self._counts = _widened(self._counts, exponent - self.exponent)
            self.exponent = exponent


def _widened(counts: np.ndarray, octaves: int) -> np.ndarray:
    """The counts in bins that reach ``octaves`` farther."""
    if octaves == 0:
        return counts
    moved = min(octaves * PER_OCTAVE, SIDE)
    wider = np.zeros_like(counts)
    wider[SIDE + 1:2 * SIDE + 1 - moved] = counts[SIDE + 1 + moved:]
    wider[moved:SIDE] = counts[:SIDE - moved]
    wider[SIDE] = counts[SIDE - moved:SIDE + 1 + moved].sum()
    return wider
