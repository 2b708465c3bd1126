"""What a reader must know of each row beside its figures: marks, what became of it, and how its machine was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress.bench.record import BenchRecord, BenchRow, RowTelemetry
from compress.report import units

EMULATED = "emulated, not a measurement"
NOT_MEASURED, NOT_READ = "not measured", "not read"
_CUT = ("partial", "device lost")


@dataclass(frozen=True, kw_only=True)
class Note:
    """One line about a row. ``level`` is "bad" where its times are of no use, "open" where they are doubtful."""

    level: Literal["bad", "open", "plain"]
    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """The engines of one target on one machine; ``machine`` is None where there is nothing to tell apart."""

    target: str
    machine: str | None
    rows: tuple[BenchRow, ...]


def groups(bench: BenchRecord | None) -> tuple[Group, ...]:
    """The rows by target and machine, in the record's order."""
    found: dict[tuple[str, str | None], list[BenchRow]] = {}
    for row in bench.rows if bench else ():
        found.setdefault((row.target, row.machine), []).append(row)
    several = bench is not None and len(bench.machines) > 1
    return tuple(
        Group(target=target, machine=machine if several else None, rows=tuple(rows))
        for (target, machine), rows in found.items()
    )


def notes(row: BenchRow) -> tuple[Note, ...]:
    """What is to be said of a row's figures, the worst first; of one that ran and is undisturbed nothing."""
    found = [
        Note(level="bad" if mark.kind == "INVALID" else "open", label=mark.kind, text=mark.reason)
        for mark in sorted(row.marks, key=lambda mark: mark.kind)  # INVALID before UNSTABLE
    ]
    if row.status in _CUT:
        rounds = f"{row.latency_ms.restarts} rounds were timed" if row.latency_ms else "no round was timed"
        label = "device lost: partial" if row.status == "device lost" else row.status
        found.insert(0, Note(level="bad", label=label, text=f"{row.reason}; {rounds}" if row.reason else rounds))
    if row.emulated_parity is not None:
        parity = row.emulated_parity
        same = "" if parity.same_answers is None else f"{100 * parity.same_answers:.4g} % of the answers are equal, "
        most = f"{units.number(parity.largest_difference, 2)}, of {units.number(parity.largest_output)}"
        text = f"against this machine over {parity.samples:,} samples: {same}outputs differ by at most {most}"
        found.append(Note(level="plain", label="parity", text=text))
    if row.generation is not None:
        found.append(Note(level="plain", label="answer", text=row.generation.describe()))
    return tuple(found)


def doubts(row: BenchRow) -> tuple[Note, ...]:
    """The notes that say why not to trust a row's times."""
    return tuple(note for note in notes(row) if note.level != "plain")


def status(row: BenchRow) -> str | None:
    """What stands in the place of a row's times; None where it has some."""
    if row.latency_ms is not None:
        return None
    return EMULATED if row.status == "emulated" else row.status


def is_marked(row: BenchRow, kind: str) -> bool:
    return any(mark.kind == kind for mark in row.marks)


def at_most(row: BenchRow, name: str) -> str:
    """A percentile: its value, the early-stopping estimate that bounds it ("≤ 3.1"), or "n too small"."""
    assert row.latency_ms is not None
    value: float | None = getattr(row.latency_ms, name)
    if value is not None:
        return units.number(value)
    estimate = row.latency_ms.estimates.get(name)
    return "n too small" if estimate is None else f"≤ {units.number(estimate)}"


def with_conditions(bench: BenchRecord | None) -> list[BenchRow]:
    return [row for row in bench.rows if row.telemetry is not None] if bench else []


def clocks(found: RowTelemetry) -> str:
    return _change(found.clock_mhz_before, found.clock_mhz_after, "MHz")


def temperatures(found: RowTelemetry) -> str:
    return _change(found.temperature_c_before, found.temperature_c_after, "°C")


def energy(found: RowTelemetry) -> str:
    """Energy per inference, where it was read and the mean power: ``16.9 mJ (RAPL package, 14.2 W)``."""
    power = None if found.power_w is None else f"{units.number(found.power_w)} W"
    told = ", ".join(part for part in (found.energy_source, power) if part)
    mj = found.energy_per_inference_mj
    return (NOT_MEASURED if mj is None else f"{units.number(mj)} mJ") + (f" ({told})" if told else "")


def share(value: float | None) -> str:
    return NOT_READ if value is None else f"{100 * value:.1f} %"


def throttled(found: RowTelemetry) -> str:
    return {None: NOT_READ, True: "yes", False: "no"}[found.throttled]


def columns(rows: Sequence[BenchRow]) -> list[tuple[str, list[str]]]:
    """The table of conditions, column by column, for rows that have telemetry."""
    found = [row.telemetry for row in rows if row.telemetry is not None]
    return [
        ("Power mode", [one.power_mode or NOT_READ for one in found]),
        ("Clock", [clocks(one) for one in found]),
        ("Hottest", [temperatures(one) for one in found]),
        ("Throttled", [throttled(one) for one in found]),
        ("Loop slower", [share(one.spin_change) for one in found]),
        ("Others' load", [share(one.foreign_cpu_share) for one in found]),
        ("Stolen", [share(one.steal_share) for one in found]),
        ("Energy, inference", [energy(one) for one in found]),
        ("Memory left", [NOT_READ if one.memory_available_bytes is None else units.size(one.memory_available_bytes)
                         for one in found]),
    ]  # fmt: skip


def _change(before: float | None, after: float | None, unit: str) -> str:
    if before is None and after is None:
        return NOT_READ
    told = [NOT_READ if value is None else f"{value:,.0f}" for value in (before, after)]
    return f"{told[0]} → {told[1]} {unit}"
