"""Axes of a plot: a linear or logarithmic scale from values to pixels, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.report.units import bare


@dataclass(frozen=True, kw_only=True)
class Axis:
    """``low`` and ``high`` are the values at ``start`` and ``end``, in pixels; ``ticks`` are (pixel, text) pairs."""

    label: str
    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[tuple[float, str], ...] = ()

    def at(self, value: float) -> float:
        """Pixel of ``value``, to a tenth."""
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def axis(
    values: Sequence[float],
    *,
    label: str,
    start: float,
    end: float,
    log: bool = False,
    padding: float = 0.08,
    text: Callable[[float], str] = bare,
    smallest_step: float = 0.0,
) -> Axis:
    """An axis that holds ``values`` with ``padding`` (a share of the range) on both sides, and round ticks.

    Args:
        values: at least one; more than zero where ``log``. They stay on a linear scale where they span less than
            a factor of 3.
        label, start, end: see :class:`Axis`.
        text: of a tick.
        smallest_step: between two ticks, 1 where values between whole numbers mean nothing.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high / low >= 3:
        room = (high / low) ** padding
        low, high = low / room, high * room
        steps = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 12 else (1, 2, 5) if high / low < 1e4 else (1,)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = [step * 10.0**decade for decade in decades for step in steps]
        scale = Axis(label=label, low=low, high=high, start=start, end=end, is_log=True)
    else:
        room = (high - low) * padding or abs(high) * 0.05 or 1.0
        low, high = (low - room if low != 0 else 0.0), high + room
        step = max(smallest_step, _round_step((high - low) / 5))
        marks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        scale = Axis(label=label, low=low, high=high, start=start, end=end, is_log=False)
    ticks = tuple((scale.at(mark), text(mark)) for mark in marks if low <= mark <= high)
    return Axis(label=label, low=low, high=high, start=start, end=end, is_log=scale.is_log, ticks=ticks)


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= step * (1 - 1e-9))
