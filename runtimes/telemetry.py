"""What happened to the machine while something was timed: clocks, heat, throttling, power, and who else was computing.

::

    telemetry = Telemetry()
    telemetry.start()
    ...                                     # the timed part
    record["telemetry"] = telemetry.stop()

The span lies between the two calls; everything slow is read before it begins and after it ends. There is no thread at
all, save on a Jetson, whose power rails must be sampled. A value that cannot be read is ``None``, never 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes import nvidia, sensors
from runtimes.energy import Meter, RailMeter, RaplMeter, TegrastatsMeter
from runtimes.sysfs import ROOT, text, to_integer

SPIN_ROUNDS = 5
SPIN_S = 0.02
"""At least so many rounds, and so long: a governor needs milliseconds to raise the clock of an idle core."""

SHORTEST_S = 0.2
"""A shorter span has no share of foreign CPU time: the kernel counts in hundredths of a second."""


class Telemetry:
    """One span of time; ``start`` and ``stop`` may be called again for another."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def start(self) -> None:
        spin_ns = spin()                    # first, so that the clocks are read from a machine that is awake
        self._throttling, self._before = _moment(self._root, spin_ns)
        self._quota_us = _quota_us(self._root)
        self._meter = _started(self._root)
        self._times = _cpu_times(self._root)
        self._own_s = time.process_time()
        self._start_ns = time.perf_counter_ns()

    def stop(self) -> dict[str, Any]:
        """The span's record, JSON-able.

        ``before``, ``after``: ``clocks_mhz`` of each core, ``gpu_clock_mhz``, ``temperatures_c`` by sensor,
        ``throttle_events`` since boot, ``throttle_reasons`` that hold at this moment, ``power_mode``, and ``spin_ns``,
        the time of a fixed loop (:func:`spin`): the clock as a program feels it, where a virtual machine shows another.

        ``energy_j`` and ``power_w`` (its mean) are of ``energy_source``. ``foreign_cpu_share`` is the CPU time of all
        other processes, the kernel and the hypervisor's (``steal_share``), as a share of all time of the cores this
        process may run on. ``quota_throttled_s`` is how long a container's CPU quota held its threads back.
        ``throttled`` is true if an event, a reason or the quota says so, false only if counters that would know say
        no, else ``None``. ``duration_s`` is the span.
        """
        duration_s = (time.perf_counter_ns() - self._start_ns) / 1e9
        own_s = time.process_time() - self._own_s
        times = _cpu_times(self._root)
        energy_j = None if self._meter is None else self._meter.stop()
        quota_us = _quota_us(self._root)
        throttling, after = _moment(self._root, None)
        after["spin_ns"] = spin()           # last, so that the clocks are read while they are still those of the span
        quota = None if quota_us is None or self._quota_us is None else (quota_us - self._quota_us) / 1e6
        if quota is not None and quota < 0:     # moved to another control group meanwhile
            quota = None
        foreign, steal = _shares(self._times, times, own_s) if duration_s >= SHORTEST_S else (None, None)
        return {
            "before": self._before,
            "after": after,
            "duration_s": duration_s,
            "energy_j": energy_j,
            "energy_source": None if self._meter is None or energy_j is None else self._meter.source,
            "power_w": None if energy_j is None else energy_j / duration_s,
            "foreign_cpu_share": foreign,
            "steal_share": steal,
            "quota_throttled_s": quota,
            "throttled": _was_throttled(self._throttling, throttling, quota),
            "memory_available_bytes": sensors.memory_available_bytes(self._root),
        }


def spin(blocks: int = 64) -> float:
    """The best time of a fixed loop of integer instructions, in nanoseconds: SHA-256 of ``blocks`` times 16 KiB.

    The loop is a library's and its data stays in the first cache, so that the time follows the clock alone: over 14
    processes on a busy machine it spread by 0.2 %, and that of a loop written in Python by 12 %.
    """
    data, best, rounds, clock = bytes(16 << 10), float("inf"), 0, time.perf_counter_ns
    begin = clock()
    while rounds < SPIN_ROUNDS or clock() - begin < SPIN_S * 1e9:
        update = hashlib.sha256().update
        start = clock()
        for _ in range(blocks):
            update(data)
        best = min(best, clock() - start)
        rounds += 1
    return best


def _started(root: Path) -> Meter | None:
    """The first meter that works here, running; ``tegrastats`` is asked only where the rails cannot be read."""
    kinds: tuple[Callable[[Path], Meter], ...] = (RaplMeter, RailMeter, TegrastatsMeter)
    return next((meter for kind in kinds if (meter := kind(root)).start()), None)


def _moment(root: Path, spin_ns: float | None) -> tuple[sensors.Throttling, dict[str, Any]]:
    """What holds now: the signs of throttling, and the dict that is one end of the record."""
    state, temperatures = sensors.throttling(root), sensors.temperatures_c(root)
    gpu_clock, gpu = sensors.gpu_clock_mhz(root), nvidia.gpu_state(root)
    if gpu is not None:
        gpu_clock = gpu_clock if gpu.clock_mhz is None else gpu.clock_mhz     # nvidia-smi of a Jetson says [N/A]
        if gpu.temperature_c is not None:
            temperatures = {**(temperatures or {}), "NVIDIA GPU": gpu.temperature_c}
        if gpu.reasons is not None:
            state = dataclasses.replace(state, reasons=(*(state.reasons or ()), *(f"GPU {it}" for it in gpu.reasons)))
    return state, {
        "clocks_mhz": sensors.clocks_mhz(root),
        "gpu_clock_mhz": gpu_clock,
        "temperatures_c": temperatures,
        "throttle_events": state.events,
        "throttle_reasons": None if state.reasons is None else list(state.reasons),
        "power_mode": sensors.power_mode(root),
        "spin_ns": spin_ns,
    }


def _cpu_times(root: Path) -> tuple[float, float, float, float] | None:
    """How many cores of this process's affinity are on, and the seconds they spent: busy (with steal), stolen, in all.

    In a container these are the host's own figures for those cores, and rightly: whoever else computes there takes
    clock, cache and memory bandwidth away, whichever container it is in. A control group's ``cpu.stat`` knows nothing
    of its neighbours; only its throttling by quota is read from there.
    """
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    rows = [line.split() for line in (text(root / "proc/stat") or "").splitlines() if line.startswith("cpu")]
    counts = [[int(field) for field in row[1:9]] for row in rows if row[0] in allowed and len(row) > 8]
    if not counts:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (sum(column) for column in zip(*counts, strict=True))
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq + steal
    return len(counts), busy * tick_s, steal * tick_s, (busy + idle + iowait) * tick_s


def _shares(
    before: tuple[float, ...] | None, after: tuple[float, ...] | None, own_s: float
) -> tuple[float | None, float | None]:
    """Foreign and stolen share of all CPU time, each in 0 to 1; ``None`` if a counter ran backwards or a core went."""
    if before is None or after is None:
        return None, None
    cores, busy, stolen, total = (last - first for first, last in zip(before, after, strict=True))
    if cores or busy < 0 or stolen < 0 or total <= 0:
        return None, None
    return min(1.0, max(0.0, (busy - own_s) / total)), min(1.0, max(0.0, stolen / total))


def _quota_us(root: Path) -> int | None:
    """Microseconds for which this control group's quota has held its threads back."""
    for line in (text(root / "sys/fs/cgroup/cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return to_integer(value)
    return None


def _was_throttled(before: sensors.Throttling, after: sensors.Throttling, quota_s: float | None) -> bool | None:
    """Whether the span was slowed down; ``None`` where nothing that was read could tell."""
    said: list[bool] = []
    if before.events is not None and after.events is not None and after.events >= before.events:
        said.append(after.events > before.events)       # fewer than before: counted anew, as after a sleep
    if before.past is not None and after.past is not None:
        if after.past - before.past:
            said.append(True)
        elif not after.past:                # a flag that was set before says nothing of this span
            said.append(False)
    if before.reasons or after.reasons or (quota_s or 0) > 0:
        said.append(True)
    return any(said) if said else None

