"""Where an engine's time goes, component by component, and what share of its machine's roofline it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.bench.record import BenchRecord, BenchRow, ComponentRow, Roofline
from compress.report import units

SERIES = 6  # colours of components; those beyond take the last


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component of an engine: ``start`` and ``width`` are shares of the longest engine's time in the plot."""

    name: str
    series: int
    found: ComponentRow
    start: float
    width: float
    share: float | None  # of its own engine's time


@dataclass(frozen=True, kw_only=True)
class EngineTime:
    """An engine whose layers tell their components; ``time_us`` is the sum of its profile, None without times."""

    row: BenchRow
    parts: tuple[Part, ...]
    time_us: float | None


def engine_times(bench: BenchRecord | None) -> tuple[EngineTime, ...]:
    """The engines whose layers tell their components, in the record's order; components have one order in all."""
    rows = [row for row in bench.rows if row.components] if bench else []
    series = series_of(rows)
    longest: dict[str, float] = {}  # target -> time of its slowest engine, whose bar is the whole width
    for row in rows:
        longest[row.target] = max(longest.get(row.target, 0.0), _sum(row) or 0.0)
    made = []
    for row in rows:
        whole, total, start, parts = longest[row.target], _sum(row), 0.0, []
        for name, number in series.items():
            if name not in row.components:
                continue
            found = row.components[name]
            width = (found.time_us or 0.0) / whole if whole else 0.0
            share = found.time_us / total if total and found.time_us is not None else None
            parts.append(Part(name=name, series=number, found=found, start=start, width=width, share=share))
            start += width
        made.append(EngineTime(row=row, parts=tuple(parts), time_us=total))
    return tuple(made)


def series_of(rows: list[BenchRow]) -> dict[str, int]:
    """Component -> its colour, the component that takes most time first; what belongs to none comes last."""
    times: dict[str, float] = {}
    for row in rows:
        for name, part in row.components.items():
            times[name] = times.get(name, 0.0) + (part.time_us or 0.0)
    names = sorted(times, key=lambda name: (name in ("other", "shared"), -times[name], name))
    return {name: min(number, SERIES - 1) for number, name in enumerate(names)}


def with_roofline(bench: BenchRecord | None) -> list[tuple[BenchRow, Roofline]]:
    return [(row, row.roofline) for row in bench.rows if row.roofline is not None] if bench else []


def share(value: float, *, is_least: bool = False) -> str:
    """A share of the roofline: ``12 %``, ``at least 12 %`` where not all arithmetic was counted."""
    text = f"{units.number(100 * value, 2)} %"
    return f"at least {text}" if is_least else text


def work(macs: Mapping[str, int]) -> str:
    """``98 M int8, 12 M f32``: multiply-accumulates by precision."""
    return ", ".join(f"{units.count(count)} {precision}" for precision, count in _narrowest_first(macs))


def rates(found: Roofline) -> list[tuple[str, str, str, str]]:
    """Each peak used: precision, rate, "measured", "busy" or "datasheet", and what ran or where it is from."""
    return [
        (precision, rate(peak.macs_per_s), "busy" if peak.busy else peak.source, peak.note)
        for precision, peak in sorted(found.peaks.items(), key=lambda item: _rank(item[0]))
    ]


def rate(macs_per_s: float) -> str:
    """``410 GMAC/s``, ``16.5 TMAC/s``."""
    if macs_per_s >= 1e12:
        return f"{units.number(macs_per_s / 1e12)} TMAC/s"
    return f"{units.number(macs_per_s / 1e9)} GMAC/s"


def arithmetic(part: ComponentRow) -> str:
    """``12 int8, 1 f32``: the component's arithmetic layers by the precision they ran in."""
    return ", ".join(f"{count} {precision}" for precision, count in _narrowest_first(part.precisions)) or units.NONE


def microseconds(value: float | None) -> str:
    return units.NONE if value is None else f"{units.number(value)} µs"


def _sum(row: BenchRow) -> float | None:
    known = [part.time_us for part in row.components.values() if part.time_us is not None]
    return sum(known) if known else None


def _narrowest_first(found: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(found.items(), key=lambda item: _rank(item[0]))


def _rank(precision: str) -> tuple[int, str]:
    order = ("int4", "int8", "f8", "f16", "bf16", "f32")
    return (order.index(precision) if precision in order else len(order), precision)
