"""The sentence a report begins with: how much faster and smaller, at what cost, and whether that is in the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from compress.bench.record import BenchRecord, BenchRow
from compress.report.schema import Verdict, unit_of
from compress.report.units import change_with_interval, factor

AGAINST = "vs_original_fp32"


def reference(rows: Sequence[BenchRow], target: str) -> BenchRow | None:
    """The original model's fp32 engine for ``target``, or for any target where that one has none."""
    originals = [row for row in rows if row.role == "original" and row.precision == "fp32"]
    return next((row for row in originals if row.target == target), originals[0] if originals else None)


def headline(bench: BenchRecord, max_drop: float | None = None) -> BenchRow | None:
    """The fastest engine of the compressed model whose drop is inside the budget; where none is, the fastest.

    Engines of role "shipped" come before the float controls, and times that count before those that were cut short or
    are marked INVALID.
    """
    measured = [row for row in bench.rows if row.role != "original" and row.latency_ms is not None]
    measured = [row for row in measured if row.role == "shipped"] or measured
    measured = [row for row in measured if row.status == "measured" and not _invalid(row)] or measured
    if max_drop is not None:
        measured = [
            row for row in measured if row.accuracy and row.accuracy.drop and row.accuracy.drop.points <= 100 * max_drop
        ] or measured
    return min(measured, key=lambda row: row.latency_ms.p50 if row.latency_ms else 0.0, default=None)


def judge(bench: BenchRecord, max_drop: float | None = None) -> Verdict:
    """The verdict on a benchmark, in a sentence of words and figures.

    Args:
        bench: the benchmark's record.
        max_drop: the largest drop of the metric allowed, in the metric's own unit; None where there is no budget.

    ``within`` is decided only where the drop's whole interval lies on one side of ``max_drop``.
    """
    row = headline(bench, max_drop)
    if row is None:
        return Verdict(max_drop=max_drop, sentence="No engine of a compressed model was run here.")
    return Verdict(max_drop=max_drop, within=_within(row, max_drop), sentence=_sentence(bench, row))


def size_ratio(row: BenchRow, original: BenchRow | None) -> float | None:
    """How many times smaller than the original's fp32 engine."""
    return original.size_bytes / row.size_bytes if original and row.size_bytes else None


def _within(row: BenchRow, max_drop: float | None) -> bool | Literal["undecidable"] | None:
    if max_drop is None or row.accuracy is None or row.accuracy.drop is None:
        return None
    low, high = row.accuracy.drop.interval
    if high <= 100 * max_drop:
        return True
    return False if low > 100 * max_drop else "undecidable"


def _sentence(bench: BenchRecord, row: BenchRow) -> str:
    gain, ratio = row.speedup.get(AGAINST), size_ratio(row, reference(bench.rows, row.target))
    if gain is None:
        return f"{row.name} was measured without the original's fp32 engine on {row.target}: no speed-up can be given."
    text = f"{factor(gain.ratio)} faster than" if gain.ratio >= 1 else f"{factor(1 / gain.ratio)} slower than"
    if gain.different is False:
        text = f"No difference in speed seen ({factor(gain.ratio)}) from"
    text += " the original's fp32 engine"
    if row.accuracy is not None and row.accuracy.drop is not None:
        drop, unit = row.accuracy.drop, unit_of(bench.metric, bench)
        text += f" at {change_with_interval(drop.points, drop.interval, unit)}"
        text += "" if bench.metric == "accuracy" else f" of {bench.metric}"
    if ratio is not None:
        text += f", {factor(ratio)} smaller" if ratio >= 1 else f", {factor(1 / ratio)} larger"
    text += f" ({row.precision} on {row.target})."
    if _invalid(row):
        return f"{text} Its times are INVALID: {'; '.join(_invalid(row))}."
    against = next((other for other in bench.rows if other.name == gain.against), None)
    if against is not None and _invalid(against):
        text += f" The original's times are INVALID: {'; '.join(_invalid(against))}."
    return text


def _invalid(row: BenchRow) -> list[str]:
    return [mark.reason for mark in row.marks if mark.kind == "INVALID"]
