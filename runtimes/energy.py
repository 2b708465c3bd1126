"""Energy over a span of time, from what the machine can measure itself; nothing here needs privileges.

A meter is one of: Intel's and AMD's running average power limit counters (RAPL, ``/sys/class/powercap``), which many
systems let only root read, and the power rails of a Jetson's INA3221 monitors (hwmon), which show a momentary power and
are therefore sampled. RAPL measures the processor package alone; the Jetson rails measure the module or what is named.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runtimes.sysfs import ROOT, glob, integer, text

SAMPLES_PER_SECOND = 10
"""The monitors average over longer than that, and a reading over I2C takes about a millisecond."""

_WHOLE_MODULE = "VDD_IN"      # Orin Nano, Orin NX, Xavier NX
_PARTS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),          # AGX Orin: VDDQ_VDD2_1V8AO is inside VIN_SYS_5V0
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),         # Thor: its VIN is the carrier board's input
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),         # AGX Xavier
)
"""Rails that together are a Jetson module. Source: Jetson Linux Developer Guide, "Jetson Module Power Measurement" of
each module's "Platform Power and Performance" page."""


class RaplMeter:
    """The energy counters of the processor packages, in microjoules; a counter that ran over its end is put right.

    One wrap is corrected: at the usual range of 262 kJ that is 20 minutes at 200 W.
    """

    def __init__(self, root: Path = ROOT) -> None:
        zones = glob(root, "sys/class/powercap/intel-rapl:[0-9]*")
        self._zones = [zone for zone in zones if zone.name.count(":") == 1 and _is_package(zone)]
        self._before: list[int] | None = None

    @property
    def source(self) -> str:
        return "RAPL " + " + ".join(text(zone / "name") or zone.name for zone in self._zones)

    def start(self) -> bool:
        """Whether there is a counter and every one of them may be read."""
        self._before = self._read()
        return self._before is not None

    def stop(self) -> float | None:
        """Joules since :meth:`start`."""
        after = self._read()
        if self._before is None or after is None:
            return None
        used = 0
        for zone, first, last in zip(self._zones, self._before, after, strict=True):
            if last < first:
                around = integer(zone / "max_energy_range_uj")
                if around is None:
                    return None
                last += around
            used += last - first
        return used / 1e6

    def _read(self) -> list[int] | None:
        values = [integer(zone / "energy_uj") for zone in self._zones]
        known = [value for value in values if value is not None]
        return known if known and len(known) == len(values) else None


class RailMeter:
    """The power rails that together are the module, sampled by a thread and integrated by the trapezoid rule."""

    def __init__(self, root: Path = ROOT, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._rails = _module_rails(_rails(root))
        self._clock = clock
        self._samples: list[tuple[int, float]] = []
        self._failed = False
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> str:
        return "INA3221 " + " + ".join(self._rails)

    def start(self) -> bool:
        """Whether there is a rail; its first sample is taken here, and the thread begins."""
        if not self._rails:
            return False
        self._samples, self._failed = [], False
        self._sample()
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name="power rails", daemon=True)
        self._thread.start()
        return not self._failed

    def stop(self) -> float | None:
        """Joules since :meth:`start`; ``None`` if any reading failed."""
        if self._thread is None:
            return None
        self._end.set()
        self._thread.join()
        self._thread = None
        self._sample()
        return None if self._failed else integrate(self._samples)

    def _run(self) -> None:
        while not self._end.wait(1 / SAMPLES_PER_SECOND):
            self._sample()

    def _sample(self) -> None:
        watts = [_watts(*files) for files in self._rails.values()]
        known = [value for value in watts if value is not None]
        if len(known) < len(watts):
            self._failed = True
        else:
            self._samples.append((self._clock(), sum(known)))


def integrate(samples: Sequence[tuple[int, float]]) -> float:
    """Joules under ``(nanoseconds, watts)`` points in order of time, by the trapezoid rule; 0 for a single point."""
    joules = 0.0
    for (start_ns, start_w), (end_ns, end_w) in itertools.pairwise(samples):
        joules += (end_ns - start_ns) / 1e9 * (start_w + end_w) / 2
    return joules


def _is_package(zone: Path) -> bool:
    return (text(zone / "name") or "").startswith("package")


def _rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Every rail's files, by label: ``in*_input`` in millivolts and ``curr*_input`` in milliamperes."""
    rails = {}
    for label in glob(root, "sys/class/hwmon/hwmon[0-9]*/in[0-9]_label"):
        name, number = text(label), label.name[2]
        volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if (text(label.with_name("name")) or "").startswith("ina") and name and volts.exists() and amperes.exists():
            rails[name] = (volts, amperes)
    return rails


def _module_rails(rails: dict[str, tuple[Path, Path]]) -> dict[str, tuple[Path, Path]]:
    """The rails whose sum is the module's power; empty where the labels are not those of a known module."""
    for names in ((_WHOLE_MODULE,), *_PARTS):
        if all(name in rails for name in names):
            return {name: rails[name] for name in names}
    return {}


def _watts(volts: Path, amperes: Path) -> float | None:
    millivolts, milliamperes = integer(volts), integer(amperes)
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6
