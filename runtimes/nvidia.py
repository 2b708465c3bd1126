"""NVIDIA GPUs of a desktop or server, as ``nvidia-smi`` tells them; a Jetson's own is in :mod:`runtimes.jetson`.

Asked only where the driver is loaded, so that other machines do not start a process. Tested against recorded output;
written, never run on a GPU of ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtimes.sysfs import ROOT, output_of, text

_SLOWED_BY = {
    0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
    0x80: "power brake",
}  # fmt: skip
"""Bits of ``clocks_throttle_reasons.active`` that are not what a busy, healthy GPU shows (idle, its power limit, a
clock the user set). Source: NVML API reference, nvmlClocksEventReasons."""


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """The first GPU now: SM clock in MHz, degrees Celsius, and what slows it down."""

    clock_mhz: float | None
    temperature_c: float | None
    reasons: tuple[str, ...] | None


def gpu_facts(root: Path = ROOT) -> list[dict[str, Any]]:
    """Each GPU's ``name``, ``driver``, ``compute_capability`` and ``memory_bytes``; empty without NVIDIA's driver."""
    version = text(root / "proc/driver/nvidia/version")
    if version is None:
        return []
    found = [_facts(row) for row in _ask("name", "driver_version", "compute_cap", "memory.total")]
    if found:
        return found
    driver = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", version)
    models = [
        re.search(r"^Model:\s*(.+)$", text(file) or "", re.MULTILINE)
        for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    ]
    return [
        {"vendor": "NVIDIA", "name": model[1] if model else None, "driver": driver[1] if driver else None,
         "compute_capability": None, "memory_bytes": None}
        for model in models
    ]  # fmt: skip


def gpu_state(root: Path = ROOT) -> GpuState | None:
    """The first GPU's state, if this process has loaded CUDA; one that computes on the CPU does not wait for it."""
    if "libcuda.so" not in (text(root / "proc/self/maps") or ""):
        return None
    rows = _ask("clocks.sm", "temperature.gpu", "clocks_throttle_reasons.active")
    if not rows:
        return None
    clock, temperature, active = rows[0]
    mask = int(active, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", active) else None
    return GpuState(
        clock_mhz=_number(clock),
        temperature_c=_number(temperature),
        reasons=None if mask is None else tuple(name for bit, name in _SLOWED_BY.items() if mask & bit),
    )


def _ask(*fields: str) -> list[list[str]]:
    """One row a GPU of the fields asked for, as text; a GPU that answers in another form is left out."""
    output = output_of("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    rows = [[field.strip() for field in line.split(",")] for line in (output or "").splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _facts(row: list[str]) -> dict[str, Any]:
    name, driver, capability, mebibytes = row
    memory = _number(mebibytes)
    return {
        "vendor": "NVIDIA",
        "name": name,
        "driver": driver,
        "compute_capability": capability if re.fullmatch(r"\d+\.\d+", capability) else None,
        "memory_bytes": None if memory is None else int(memory) << 20,
    }


def _number(value: str) -> float | None:
    """The number, or ``None`` for "[N/A]" and the like."""
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None
