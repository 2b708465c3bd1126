"""The facts about this machine that a measurement is published with, as far as they can be read without privileges."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",  # x86
    "asimd", "asimddp", "i8mm", "bf16", "asimdhp", "sve",                                                       # ARM64
)


def machine_facts() -> dict[str, Any]:
    """What this machine is and how it is set now; a value that cannot be read is ``None``. JSON-able.

    Clocks are in MHz, memory in bytes, temperatures in degrees Celsius.
    """
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or None,
        "board": _text("/proc/device-tree/model") or _text("/sys/class/dmi/id/product_name"),
        "arch": platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "hypervisor": "hypervisor" in flags,
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clocks_mhz": _clocks(),
        "temperatures_c": _temperatures(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "jetpack": _text("/etc/nv_tegra_release"),
    }


def peak_memory_bytes() -> int | None:
    """The most memory this process has held at once (its resident set's high-water mark)."""
    for line in (_text("/proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, key -> value."""
    block = (_text("/proc/cpuinfo") or "").split("\n\n")[0]
    pairs = [line.split(":", 1) for line in block.splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in pairs}


def _memory() -> int | None:
    for line in (_text("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _clocks() -> list[float] | None:
    """Each core's clock now: the frequency driver's, else what /proc/cpuinfo shows."""
    paths = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    readings = [text for path in paths if (text := _text(path)) and text.isdigit()]
    if readings:
        return [int(text) / 1000 for text in readings]
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")] or None


def _temperatures() -> dict[str, float] | None:
    zones = {}
    for folder in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        reading = _text(folder / "temp")
        if reading and reading.lstrip("-").isdigit():
            zones[_text(folder / "type") or folder.name] = int(reading) / 1000
    return zones or None


def _text(path: Path | str) -> str | None:
    """The text of a file of the kernel's, or ``None`` where there is none or it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None
