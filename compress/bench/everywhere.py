"""Bench engines of several targets, each where its target is: on this machine, over a link, or emulated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compress.bench import bench, described
from compress.bench.agent import physical_cores
from compress.bench.config import BenchConfig, Candidate
from compress.bench.machines import Machine, this_machine
from compress.bench.record import BenchRecord
from compress.bench.rows import without_figures
from compress.errors import CompressError
from compress.metrics import Metric
from runtimes.spec import Feed

if TYPE_CHECKING:
    from calibration.dataset import CalibrationSet
    from compress.targets import Target


def bench_everywhere(
    candidates: Sequence[Candidate],
    *,
    feed: Feed,
    data: CalibrationSet | None,
    metric: Metric,
    config: BenchConfig,
    workdir: Path,
    emulate: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    keep: Callable[[BenchRecord], None] | None = None,
) -> BenchRecord:
    """One record of all machines. Speeds and scores are compared within a machine only.

    A device that cannot be reached, or goes away, costs its own rows their figures; the other targets go on, and the
    record is not ``complete``. An engine of a target without an address is not run.

    Args:
        candidates: the engines; their targets say where each belongs.
        feed, data, metric, config, progress: as :func:`compress.bench.bench` takes them.
        workdir: a folder for the processes' files.
        emulate: run the engines of other machines in an emulated user-space on this one, where nothing is timed.
        keep: called after each process with the record so far, of all machines.

    Raises:
        CompressError: as :func:`compress.bench.bench`.
    """
    records: list[BenchRecord] = []
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        place = None if candidate.target.reach == "local" else candidate.target.name
        groups.setdefault(place, []).append(candidate)

    def keep_all(record: BenchRecord) -> None:
        if keep:
            keep(merged([*records, record]))

    for number, (place, group) in enumerate(groups.items()):
        measure = partial(
            bench, group, feed=feed, data=data, metric=metric, config=config, baseline=baseline_of(group),
            workdir=workdir / str(number), progress=progress, keep=keep_all)
        target = group[0].target
        if place is None:
            record = measure()
        elif target.address is None and not emulate:
            record = _nothing(group, metric, config, data, None)
        else:
            record = _on_device(target, group, measure, metric, config, data, emulate=emulate, sent=progress)
        keep_all(record)
        records.append(record)
    return merged(records)


def merged(records: Sequence[BenchRecord]) -> BenchRecord:
    """The records of several machines as one; settings in which they differ are left to the rows."""
    first = records[0]
    config = {key: value for key, value in first.config.items() if all(r.config.get(key) == value for r in records)}
    return dataclasses.replace(
        first, config=config,
        machines={name: facts for record in records for name, facts in record.machines.items()},
        versions={name: found for record in records for name, found in record.versions.items()},
        baselines={name: row for record in records for name, row in record.baselines.items()},
        order=tuple(step for record in records for step in record.order),
        rows=tuple(row for record in records for row in record.rows),
        complete=all(record.complete for record in records))


def baseline_of(candidates: Sequence[Candidate]) -> str:
    """The original model's fp32 engine; without one, what ships is its own."""
    originals = [one for one in candidates if one.role == "original"]
    return next((one.name for one in originals if one.engines.precision == "fp32"), (originals or candidates)[-1].name)


def _on_device(
    target: Target, group: Sequence[Candidate], measure: Callable[..., BenchRecord], metric: Metric,
    config: BenchConfig, data: CalibrationSet | None, *, emulate: bool, sent: Callable[[int, int, str], None] | None,
) -> BenchRecord:
    with ExitStack() as stack:
        try:
            machine = open_machine(target, stack, emulate=emulate, sent=sent)
        except CompressError as error:
            return _nothing(group, metric, config, data, str(error))
        return measure(machine=machine)


def open_machine(
    target: Target, stack: ExitStack, *, emulate: bool = False, sent: Callable[[int, int, str], None] | None = None
) -> Machine:
    """Where the engines of ``target`` run, connected to until ``stack`` is left; this machine for one of its own rows.

    Raises:
        CompressError: if the device cannot be reached.
    """
    from compress.device import DeviceLost, open_device

    if target.reach == "local" and not emulate:
        return this_machine()
    device = stack.enter_context(open_device(target, emulate=emulate, sent=sent))
    facts = device.facts()
    # Emulated cores are this machine's; a board's cores have no second thread.
    threads = physical_cores() if device.emulated else int(facts.get("cores_usable") or 1)
    return Machine(
        name=f"{device.name}, emulated" if device.emulated else device.name, agent=device.agent, threads=threads,
        build=device.build, emulated=device.emulated, lost=DeviceLost)


def _nothing(
    group: Sequence[Candidate], metric: Metric, config: BenchConfig, data: CalibrationSet | None, failure: str | None
) -> BenchRecord:
    """The record of a target that was not reached; without an address that is no failure."""
    return BenchRecord(
        metric=metric.name, config=dataclasses.asdict(config), machines={}, versions={}, baselines={}, order=(),
        data=None if data is None else described(data), complete=failure is None,
        rows=tuple(without_figures(candidate, None, failure) for candidate in group))
