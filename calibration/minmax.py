"""The smallest and the largest value of a tensor, streamed and mergeable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.errors import CalibrationError


@dataclass
class MinMax:
    """Exact extremes of all values seen: equal to the bit in any order and any split of the same values."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0          # values seen

    @classmethod
    def of(cls, *arrays: np.ndarray) -> MinMax:
        stat = cls()
        for array in arrays:
            stat.update(array)
        return stat

    def update(self, array: np.ndarray) -> None:
        """Add the values of an array of any shape; an empty one adds nothing.

        Raises:
            CalibrationError: if a value is not a finite real number; nothing is added then.
        """
        array = np.asarray(array)
        if array.size:
            low, high = extent(array)
            self.low, self.high, self.count = min(self.low, low), max(self.high, high), self.count + array.size

    def merge(self, other: MinMax) -> None:
        """Add the values that ``other`` has seen."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "count": self.count} if self.count else {"count": 0}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MinMax:
        try:
            stat = cls(float(data["low"]), float(data["high"]), int(data["count"])) if data["count"] else cls()
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"not a min-max statistic: {data!r} ({error}): collect it again") from error
        if stat.count < 0 or (stat.count and not -math.inf < stat.low <= stat.high < math.inf):
            raise CalibrationError(f"not a min-max statistic: {data!r} is no range: collect it again")
        return stat


def extent(array: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value of an array that is not empty; a negative zero counts as zero."""
    if array.dtype.kind not in "biuf":
        raise CalibrationError(f"values of dtype {array.dtype} have no range: give real numbers")
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN is passed on by min and max
        bad = "NaN" if math.isnan(low) or math.isnan(high) else "an infinite value"
        raise CalibrationError(f"values of shape {array.shape} hold {bad}: "
                               "look for the layer or sample that produces it")
    return low + 0.0, high + 0.0
