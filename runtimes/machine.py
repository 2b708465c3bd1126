"""The facts about this machine that a measurement is published with, as far as they can be read without privileges."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from runtimes import jetson, nvidia, sensors
from runtimes.sysfs import ROOT, glob, integer, text

CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",  # x86
    "asimd", "asimddp", "i8mm", "bf16", "asimdhp", "sve",                                                       # ARM64
)
DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Flags of a CPU that multiplies 8-bit integers into 32-bit sums, without saturating in between."""

_DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt_rtx"),
    "numpy": ("numpy",),
}

_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd05"): "Cortex-A55", ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd41"): "Cortex-A78", ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4f"): "Neoverse-V2", ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x004"): "Carmel",
}  # fmt: skip
"""(CPU implementer, CPU part) of /proc/cpuinfo, where an ARM kernel writes no name. Source: arch/arm64/include/asm/
cputype.h of Linux."""

_VENDORS = {"0x8086": "Intel", "0x1002": "AMD", "0x10de": "NVIDIA"}


def machine_facts(root: Path = ROOT) -> dict[str, Any]:
    """What this machine is and how it is set now; a value that cannot be read is ``None``. JSON-able.

    Clocks are in MHz, memory in bytes, temperatures in degrees Celsius. ``dot_product`` is whether the CPU has one of
    :data:`DOT_PRODUCT`. ``backends`` are the installed ones with their versions, read from their metadata; nothing of
    theirs is imported. ``root`` is where ``proc``, ``sys`` and ``etc`` are.
    """
    info = _cpuinfo(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    l4t = jetson.l4t_release(root)
    others = _devices(root, "class/drm/card[0-9]*", skip="NVIDIA")
    return {
        "cpu": _cpu_name(info),
        "board": text(root / "proc/device-tree/model") or text(root / "sys/class/dmi/id/product_name"),
        "arch": platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "dot_product": bool(DOT_PRODUCT & flags) if flags else None,
        "hypervisor": "hypervisor" in flags,
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": sensors.memory_bytes(root),
        "os": platform.platform(),
        "python": platform.python_version(),
        "gpus": [*(jetson.gpu_facts(root) or nvidia.gpu_facts(root)), *others],
        "npus": _devices(root, "class/accel/accel[0-9]*"),
        "backends": installed_backends(),
        "l4t": l4t,
        "jetpack": jetson.jetpack_version(l4t),
        "power_mode": sensors.power_mode(root),
        "governor": text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clocks_mhz": sensors.clocks_mhz(root),
        "clock_max_mhz": _clock_max(root),
        "temperatures_c": sensors.temperatures_c(root),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def installed_backends() -> dict[str, str]:
    """Backend -> version, of those that this Python could import; read from the packages' metadata alone."""
    found = {}
    for backend, names in _DISTRIBUTIONS.items():
        for name in names:
            try:
                found[backend] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def peak_memory_bytes(root: Path = ROOT) -> int | None:
    """The most memory this process has held at once (its resident set's high-water mark)."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", text(root / "proc/self/status") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor of /proc/cpuinfo, key -> value."""
    block = (text(root / "proc/cpuinfo") or "").split("\n\n")[0]
    pairs = [line.split(":", 1) for line in block.splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_name(info: dict[str, str]) -> str | None:
    core = _ARM_CORES.get((info.get("CPU implementer", ""), info.get("CPU part", "")))
    return info.get("model name") or core or platform.processor() or None


def _clock_max(root: Path) -> float | None:
    """The highest clock that the frequency driver would set on any core."""
    files = glob(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    values = [value for file in files if (value := integer(file)) is not None]
    return max(values) / 1000 if values else None


def _devices(root: Path, pattern: str, skip: str | None = None) -> list[dict[str, Any]]:
    """GPUs or NPUs that have a kernel driver: vendor, PCI id and the driver's name; their vendor gives no other."""
    found = []
    for folder in glob(root, f"sys/{pattern}"):
        identity = text(folder / "device/vendor")
        vendor = _VENDORS.get(identity or "", identity)
        if vendor is None or vendor == skip or "-" in folder.name:     # card0-HDMI-A-1 is a connector
            continue
        driver = folder / "device/driver"
        found.append({
            "vendor": vendor,
            "name": None,
            "device_id": text(folder / "device/device"),
            "driver": driver.resolve().name if driver.exists() else None,
        })  # fmt: skip
    return found
