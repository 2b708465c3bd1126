"""Each engine, and each component, as a share of its machine's roofline: what the arithmetic would take at the peak."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compress.bench.config import Candidate
from compress.bench.machines import Machine
from compress.bench.peaks import datasheet_peak, machine_peak
from compress.bench.record import BenchRecord, BenchRow, ComponentRow, Peak, Roofline
from compress.targets import Target
from runtimes.arithmetic import is_arithmetic
from runtimes.spec import largest_batch

PeakOf = Callable[[Target, str], Peak | None]
"""``peak_of(target, precision)`` of one machine."""


def add_rooflines(
    record: BenchRecord, candidates: Sequence[Candidate], machine: Machine, *, cache: Path | None = None
) -> BenchRecord:
    """``record`` with the rooflines of the rows that ran on ``machine``; its peaks are measured where none is kept.

    A peak that could not be measured is the target's datasheet's, and labelled so.

    Args:
        record: of :func:`compress.bench.bench`.
        candidates: whose rows they are.
        machine: where they ran, still reachable.
        cache: as :func:`compress.bench.peaks.machine_peak` takes it.
    """
    facts, threads = record.machines.get(machine.name, {}), int(record.config["threads"])
    known: dict[tuple[str, str, str, str], Peak | None] = {}
    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="compress-peaks-") as folder:

        def peak_of(target: Target, precision: str) -> Peak | None:
            key = (target.backend, target.device, target.scheme, precision)
            if key not in known and not lost:
                try:
                    known[key] = machine_peak(
                        target, precision, machine, facts, Path(folder) / str(len(known)), threads=threads, cache=cache
                    )
                except machine.lost as error:  # what was measured of the engines stays
                    lost.append(str(error))
            return known.get(key) or datasheet_peak(target, precision)

        by_name = {candidate.name: candidate for candidate in candidates}
        rows = [row if row.machine != machine.name or row.name not in by_name
                else with_roofline(row, by_name[row.name], peak_of) for row in record.rows]  # fmt: skip
    return replace(record, rows=tuple(rows))


def with_roofline(row: BenchRow, candidate: Candidate, peak_of: PeakOf) -> BenchRow:
    """``row`` with its share of the roofline and its components'; as it is where it has no times or no arithmetic.

    The layers are profiled on what the backend takes at once, so that a query run in parts has no share.
    """
    macs = work_of(row)
    whole = largest_batch(candidate.engines.inputs, row.batch) >= row.batch
    if row.latency_ms is None or not macs or not whole:
        return row
    peaks = {precision: peak for precision in macs if (peak := peak_of(candidate.target, precision)) is not None}
    if not peaks:
        return row
    uncounted = sum(is_arithmetic(layer.type) and (not layer.macs or layer.precision not in peaks)
                    for layer in row.layers)  # fmt: skip
    share = _seconds_at(peaks, macs) / (row.latency_ms.p50 / 1e3)
    return replace(
        row, roofline=Roofline(share=share, macs=macs, peaks=peaks, uncounted=uncounted),
        components={name: _part(part, peaks) for name, part in row.components.items()},
    )  # fmt: skip


def work_of(row: BenchRow) -> dict[str, int]:
    """Multiply-accumulates of one query by the precision they ran in, of the layers whose shapes tell them."""
    from compress.bench.layers import macs_by_precision

    return macs_by_precision(row.layers)


def _part(part: ComponentRow, peaks: Mapping[str, Peak]) -> ComponentRow:
    if not part.time_us or not peaks.keys() & part.macs.keys():
        return part
    return replace(part, roofline=_seconds_at(peaks, part.macs) / (part.time_us / 1e6))


def _seconds_at(peaks: Mapping[str, Peak], macs: Mapping[str, int]) -> float:
    return sum(count / peaks[precision].macs_per_s for precision, count in macs.items() if precision in peaks)
