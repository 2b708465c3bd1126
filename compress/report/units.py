"""Figures as people read them: three significant digits, the unit beside them, a real minus sign."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NONE = "\N{EN DASH}"  # where there is no figure
_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How a metric is told: a ``share`` in per cent and points, anything else in its own unit."""

    share: bool
    lower_is_better: bool = False


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits: ``12.3``, ``1,230``; below 1e-4 and from 1e15 ``3.1×10⁻⁶``."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - size)
    size = math.floor(math.log10(abs(rounded)))  # 9.996 became 10.0, which has a digit more before its point
    if not -4 <= size < 15:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{minus(mantissa)}{_TIMES}10" + str(int(exponent)).translate(_RAISED)
    return minus(f"{rounded:,.{max(0, digits - 1 - size)}f}")


def bare(value: float) -> str:
    """``value`` without idle zeros, as on an axis: ``2``, ``97.5``."""
    return minus(f"{value:.6g}") if value == 0 or 1e-4 <= abs(value) < 1e6 else number(value, 2)


def milliseconds(value: float) -> str:
    return f"{number(value)} ms"


def seconds(value: float) -> str:
    """A duration: ``0.42 s``, ``12.3 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if value < 60:
        return f"{number(value, 2 if value < 1 else 3)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: float, show: Callable[[float], str] = number) -> str:
    """Bytes in decimal units: ``640 B``, ``1.23 kB``, ``4.56 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{show(value)} {unit}"


def count(value: float) -> str:
    """A large count: ``640``, ``12.3 k``, ``4.56 M``, ``1.2 G``."""
    for unit in ("", " k", " M", " G"):
        if value < 999.5 or unit == " G":
            break
        value /= 1000
    return f"{number(value)}{unit}" if unit else f"{value:,.0f}"


def factor(value: float) -> str:
    """A ratio: ``3.4×``, ``0.87×``, ``12×``."""
    return f"{number(value, 2)}{_TIMES}"


def score(value: float, unit: Unit) -> str:
    """A metric's value: in per cent with one decimal where the metric is a share, else four significant digits."""
    return f"{100 * value:.1f} %" if unit.share else number(value, 4)


def change(points: float, unit: Unit) -> str:
    """A drop of ``points`` (hundredths of the metric) told as a change: ``−0.3`` points, or the metric's own unit.

    What is lost of accuracy is a change below 0, what is lost by an error rate is one above.
    """
    changed = points if unit.lower_is_better else -points
    if not unit.share:
        return minus(f"{changed / 100:+.3g}") if points else "0"
    text = f"{changed:+.1f}"
    return "0.0" if float(text) == 0 else minus(text)


def change_interval(interval: Sequence[float], unit: Unit) -> str:
    """``[−0.6, +0.1]``: the interval of a drop, which turns round where a drop is a change below 0."""
    low, high = interval if unit.lower_is_better else (interval[1], interval[0])
    return f"[{change(low, unit)}, {change(high, unit)}]"


def change_with_interval(points: float, interval: Sequence[float], unit: Unit) -> str:
    """``−0.3 points [−0.6, +0.1]``."""
    return f"{change(points, unit)}{' points' if unit.share else ''} {change_interval(interval, unit)}"


def short(digest: str) -> str:
    """The first twelve digits of a digest, as version control shows them."""
    return digest.removeprefix("sha256:")[:12]


def minus(text: str) -> str:
    """``text`` with a minus sign for each hyphen."""
    return text.replace("-", _MINUS)
