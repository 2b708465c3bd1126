"""Energy over a span of time, from what the machine can measure itself; nothing here needs privileges.

A meter is one of: Intel's and AMD's running average power limit counters (RAPL, ``/sys/class/powercap``), which many
systems let only root read; the power rails of a Jetson's INA3221 monitors (hwmon), which show a momentary power and are
therefore sampled; ``tegrastats``, where those cannot be read. RAPL measures the processor package alone, memory and GPU
not included; the Jetson's rails measure the module.

The Jetson's meters are tested against imitated files and a recorded stream; written, never run on a board.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from runtimes.sysfs import ROOT, glob, integer, text
from runtimes.tegrastats import parse_tegrastats

MOST_W = 600
"""More than a processor package takes for seconds."""

SAMPLES_PER_SECOND = 10
"""A reading over I2C takes about a millisecond, so that ten a second disturb nothing."""

_MODULES = (
    ("VDD_IN",),                                           # Orin Nano, Orin NX, Xavier NX
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),          # AGX Orin: VDDQ_VDD2_1V8AO is inside VIN_SYS_5V0
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),         # Thor: its VIN is the carrier board's input
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),         # AGX Xavier
)
"""Rails that together are a Jetson module. Source: Jetson Linux Developer Guide, "Jetson Module Power Measurement" of
each module's "Platform Power and Performance" page."""


class Meter(Protocol):
    """Measures one span. ``source`` says what is measured, and how."""

    @property
    def source(self) -> str: ...

    def start(self) -> bool:
        """Begin; whether there is something to measure here."""

    def stop(self) -> float | None:
        """Joules since :meth:`start`; ``None`` if they could not be measured throughout."""


class RaplMeter:
    """The energy counters of the processor packages, in microjoules; a counter that ran over its end is put right.

    Its range is 65 or 262 kJ: where it may have run over its end once more than the two readings show, at up to
    :data:`MOST_W`, there is no figure; nor where it stood still, or was set back as by a machine that slept.
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
        self._start_ns = time.perf_counter_ns()
        return self._before is not None

    def stop(self) -> float | None:
        """Joules since :meth:`start`."""
        after = self._read()
        most_uj = MOST_W * (time.perf_counter_ns() - self._start_ns) / 1e3
        if self._before is None or after is None:
            return None
        total_uj = 0
        for zone, first, last in zip(self._zones, self._before, after, strict=True):
            around = integer(zone / "max_energy_range_uj")
            if last < first and around is None:
                return None
            used = last - first + (around or 0 if last < first else 0)
            if not 0 < used <= most_uj + 1e6 or (around is not None and used + around <= most_uj):
                return None
            total_uj += used
        return total_uj / 1e6

    def _read(self) -> list[int] | None:
        values = [integer(zone / "energy_uj") for zone in self._zones]
        known = [value for value in values if value is not None]
        return known if known and len(known) == len(values) else None


class RailMeter:
    """The power rails that together are the module, sampled by a thread and integrated by the trapezoid rule."""

    def __init__(self, root: Path = ROOT) -> None:
        files = _rails(root)
        self._rails = {name: files[name] for name in module_rails(files)}
        self._samples: list[tuple[int, float]] = []
        self._failed = False
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def source(self) -> str:
        return "INA3221 " + " + ".join(self._rails)

    def start(self) -> bool:
        """Whether there are rails and they can be read; the first sample is taken here, and the thread begins."""
        self._samples, self._failed = [], False
        if self._rails:
            self._sample()
        if not self._samples:
            return False
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name="power rails", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> float | None:
        """Joules since :meth:`start`; ``None`` if any reading failed, or the rails say that nothing was used."""
        if self._thread is None:
            return None
        self._end.set()
        self._thread.join()
        self._thread = None
        self._sample()
        joules = integrate(self._samples)
        return None if self._failed or joules <= 0 else joules

    def _run(self) -> None:
        while not self._end.wait(1 / SAMPLES_PER_SECOND):
            self._sample()

    def _sample(self) -> None:
        watts = [_watts(*files) for files in self._rails.values()]
        known = [value for value in watts if value is not None]
        if len(known) < len(watts):
            self._failed = True
        else:
            self._samples.append((time.perf_counter_ns(), sum(known)))


class TegrastatsMeter:
    """The same rails as ``tegrastats`` prints them, ten lines a second; a small process of its own runs meanwhile."""

    def __init__(self, root: Path = ROOT) -> None:
        self._jetson = (root / "etc/nv_tegra_release").exists()
        self._names: tuple[str, ...] = ()
        self._samples: list[tuple[int, float]] = []
        self._process: subprocess.Popen[str] | None = None

    @property
    def source(self) -> str:
        return "tegrastats " + " + ".join(self._names)

    def start(self) -> bool:
        program = shutil.which("tegrastats") if self._jetson else None
        if program is None:
            return False
        self._samples = []
        self._start_ns = time.perf_counter_ns()
        try:
            self._process = subprocess.Popen(
                [program, "--interval", str(1000 // SAMPLES_PER_SECOND)], text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError:
            return False
        self._thread = threading.Thread(target=self._read, args=(self._process,), name="tegrastats", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> float | None:
        """Joules: the mean power over the lines that came, times the span; ``None`` for fewer than two lines."""
        span_s = (time.perf_counter_ns() - self._start_ns) / 1e9
        if self._process is None:
            return None
        self._process.terminate()
        self._thread.join()
        self._process.wait()
        self._process = None
        if len(self._samples) < 2 or self._samples[-1][0] == self._samples[0][0]:
            return None
        covered_s = (self._samples[-1][0] - self._samples[0][0]) / 1e9
        return integrate(self._samples) / covered_s * span_s

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process.stdout or nullcontext(()) as lines:
            for line in lines:
                rails = parse_tegrastats(line).rails
                self._names = module_rails(rails)
                if self._names:
                    watts = sum(rails[name].now_w for name in self._names)
                    self._samples.append((time.perf_counter_ns(), watts))


def integrate(samples: Sequence[tuple[int, float]]) -> float:
    """Joules under ``(nanoseconds, watts)`` points in order of time, by the trapezoid rule; 0 for a single point."""
    joules = 0.0
    for (start_ns, start_w), (end_ns, end_w) in itertools.pairwise(samples):
        joules += (end_ns - start_ns) / 1e9 * (start_w + end_w) / 2
    return joules


def module_rails(rails: Iterable[str]) -> tuple[str, ...]:
    """Those of ``rails`` whose sum is a module's power; empty where they are not those of a known module."""
    present = set(rails)
    return next((names for names in _MODULES if present.issuperset(names)), ())


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


def _watts(volts: Path, amperes: Path) -> float | None:
    millivolts, milliamperes = integer(volts), integer(amperes)
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6
