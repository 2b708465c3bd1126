"""What calibration keeps of a tensor: a histogram, which samples reach farthest, and whether samples differ at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.histogram import Histogram

FARTHEST = 4            # samples whose largest magnitude is kept
ENOUGH = 1 << 16        # values of a sample that are counted at least, where it has more
_SKETCH = 256           # values of the first sample that others are compared with
_SAME = 1e-4            # of the largest magnitude: less than that is the rounding of kernels, not another sample


class TensorStatistics:
    """Bounded in memory, whatever the number of samples; the histogram and the farthest samples are those of any order.

    Of a sample of more than :data:`ENOUGH` values the histogram counts some, evenly spaced; its extremes are of all.
    ``still`` holds until a sample differs from the first by more than rounding, as far as its extremes and up to 256
    evenly spaced values of it tell.
    """

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.still = True
        self._peaks: dict[int, float] = {}          # sample -> its largest magnitude
        self._least = 0.0                           # what a sample must reach to be among the farthest
        self._first: np.ndarray | None = None       # lowest and highest value of the first row, and some between

    @property
    def farthest(self) -> list[tuple[int, float]]:
        """Up to four samples with the largest magnitudes, and these, in falling order; the first of equal ones."""
        return sorted(self._peaks.items(), key=lambda item: (-item[1], item[0]))[:FARTHEST]

    def update(self, rows: np.ndarray, samples: Sequence[int]) -> None:
        """Add the values of some samples.

        Args:
            rows: shape ``(rows, values)``: one row a sample, or one row for all of ``samples``.
            samples: their places in the set.

        Raises:
            CalibrationError: if a value is not a finite number that float32 holds; names the sample. Nothing is added.
        """
        if not rows.size:
            return
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        one_each = len(rows) == len(samples)
        low, high = float(lows.min()), float(highs.max())
        try:
            if not (math.isfinite(low) and math.isfinite(high)):
                Histogram().update(rows[_odd(lows, highs)])     # says what is wrong with it
            self.histogram.update(_spaced(rows) if one_each else rows, (low, high))
        except CalibrationError as error:
            raise CalibrationError(f"{_called(samples, _odd(lows, highs) if one_each else None)}: {error}") from error
        if max(-low, high) >= self._least:
            peaks = np.maximum(-lows, highs)
            for row in np.flatnonzero(peaks >= self._least).tolist():
                sample = samples[row] if one_each else samples[0]
                self._peaks[sample] = max(self._peaks.get(sample, 0.0), float(peaks[row]))
            self._clear()
        if self.still:
            self._compare(rows, lows, highs)

    def merge(self, other: TensorStatistics) -> None:
        """Add what ``other`` has seen of further samples, or of further values of these."""
        self.histogram.merge(other.histogram)
        for sample, peak in other._peaks.items():
            self._peaks[sample] = max(self._peaks.get(sample, 0.0), peak)
        self._clear()
        if self._first is None or other._first is None:
            self._first = other._first if self._first is None else self._first
            self.still &= other.still
        else:
            self.still = self.still and other.still and _alike(self._first, other._first)

    def to_json(self) -> dict[str, Any]:
        return {"histogram": self.histogram.to_json(), "still": self.still,
                "farthest": [[sample, peak] for sample, peak in self.farthest],
                "first": None if self._first is None or not self.still else self._first.tolist()}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorStatistics:
        stat = cls()
        try:
            stat.histogram = Histogram.from_json(data["histogram"])
            stat.still = bool(data["still"])
            stat._peaks = {int(sample): float(peak) for sample, peak in data["farthest"]}
            stat._first = None if data["first"] is None else np.asarray(data["first"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"not the statistics of a tensor ({type(error).__name__}: {error}): collect them "
                                   "again") from error
        return stat

    def _clear(self) -> None:
        """Forget the samples that cannot be among the farthest any more."""
        if len(self._peaks) > FARTHEST:
            self._peaks = dict(self.farthest)
            self._least = min(self._peaks.values())

    def _compare(self, rows: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> None:
        if self._first is None:
            self._first = _sketch(rows[0], lows[0], highs[0])
        margin = _SAME * float(np.abs(self._first[:2]).max(initial=0.0))
        if (np.abs(lows - self._first[0]) > margin).any() or (np.abs(highs - self._first[1]) > margin).any():
            self.still = False
            return
        self.still = all(_alike(self._first, _sketch(row, low, high))
                         for row, low, high in zip(rows, lows, highs, strict=True))  # fmt: skip


def _odd(lows: np.ndarray, highs: np.ndarray) -> int:
    """The first row that is not finite, or the one that reaches farthest."""
    reach = np.maximum(np.abs(lows), np.abs(highs))
    bad = np.flatnonzero(~np.isfinite(reach))
    return int(bad[0]) if bad.size else int(np.argmax(reach))


def _spaced(rows: np.ndarray) -> np.ndarray:
    """Every n-th value of each row; ``n`` has no divisor in common with the length of the row, or of an axis of it."""
    step = rows.shape[1] // ENOUGH
    while step > 1 and math.gcd(step, rows.shape[1]) > 1:
        step -= 1
    return rows[:, ::step] if step > 1 else rows


def _sketch(row: np.ndarray, low: float, high: float) -> np.ndarray:
    some = row[np.linspace(0, row.size - 1, min(row.size, _SKETCH)).astype(np.int64)]
    return np.concatenate([[low, high], some]).astype(np.float64)


def _alike(first: np.ndarray, other: np.ndarray) -> bool:
    if first.shape != other.shape:
        return False
    return bool(np.abs(first - other).max() <= _SAME * np.abs(first[:2]).max())


def _called(samples: Sequence[int], row: int | None) -> str:
    if row is not None or len(samples) == 1:
        return f"sample {samples[row or 0]}"
    return f"one of the samples {samples[0]} to {samples[-1]}"
