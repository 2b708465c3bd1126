"""A line of NVIDIA's ``tegrastats``, the Jetson's own monitor, as numbers.

What a line holds differs between boards and releases (Thor prints no GPU load, a switched-off sensor shows -256C), so a
field that a line lacks is ``None`` or absent, never 0. Tested against lines recorded on AGX Xavier, Orin Nano, AGX Orin
and AGX Thor. Source: Jetson Linux Developer Guide, "Tegrastats Utility".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_OFF_BELOW_C = -100.0


@dataclass(frozen=True, kw_only=True)
class Core:
    """One processor core: its load in 0 to 1 and its clock."""

    load: float
    clock_mhz: int | None = None


@dataclass(frozen=True, kw_only=True)
class Power:
    """A rail's power at the moment of the line, and the average since ``tegrastats`` started."""

    now_w: float
    mean_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class TegraStats:
    """One line. ``cores`` has ``None`` for a core that is off; loads are shares of 1, memory in bytes."""

    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    cores: tuple[Core | None, ...] = ()
    gpu_load: float | None = None
    gpu_clocks_mhz: tuple[int, ...] = ()
    memory_clock_mhz: int | None = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    rails: Mapping[str, Power] = field(default_factory=dict)


def parse_tegrastats(line: str) -> TegraStats:
    """What ``line`` says; a line of something else gives an empty record."""
    memory = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    cores = re.search(r"\bCPU \[([^\]]*)\]", line)
    gpu = re.search(r"\bGR3D_FREQ (?:(\d+)%)?(?:@(?:\[([\d,]+)\]|(\d+)))?", line)
    emc = re.search(r"\bEMC_FREQ (?:\d+%)?@(\d+)", line)
    return TegraStats(
        memory_used_bytes=int(memory[1]) << 20 if memory else None,
        memory_bytes=int(memory[2]) << 20 if memory else None,
        cores=tuple(_core(entry) for entry in cores[1].split(",")) if cores else (),
        gpu_load=int(gpu[1]) / 100 if gpu and gpu[1] else None,
        gpu_clocks_mhz=tuple(int(clock) for clock in (gpu[2] or gpu[3] or "").split(",") if clock) if gpu else (),
        memory_clock_mhz=int(emc[1]) if emc else None,
        temperatures_c={
            name: float(reading) for name, reading in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
            if float(reading) > _OFF_BELOW_C
        },
        rails={
            name: Power(now_w=int(now) / 1000, mean_w=int(mean) / 1000 if mean else None)
            for name, now, mean in re.findall(r"\b(\w+) (-?\d+)mW(?:/(-?\d+)mW)?", line)
            if name != "NC"                 # a channel that is not connected
        },
    )  # fmt: skip


def _core(entry: str) -> Core | None:
    match = re.fullmatch(r"(\d+)%(?:@(\d+))?", entry.strip())
    return Core(load=int(match[1]) / 100, clock_mhz=int(match[2]) if match[2] else None) if match else None
