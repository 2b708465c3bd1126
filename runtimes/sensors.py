"""What this machine's sensors and settings say at one moment: clocks, temperatures, throttling, power mode, memory.

Everything is read from files of the kernel's without privileges. What a machine does not tell is ``None``, never 0.
The Jetson and Raspberry Pi parts are tested against recorded files; written, never run on a board.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtimes.sysfs import ROOT, glob, integer, output_of, text, to_integer

_PI_FLAGS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of the firmware's word: what holds now; bits 16 to 19 say that it has happened. Source: Raspberry Pi
documentation, ``vcgencmd get_throttled``."""

_OFF_BELOW = -100_000     # a Jetson's sensor that is switched off reads -256 degrees
_BRAKES = re.compile(r"cpufreq|devfreq|throttle|Processor|powerclamp", re.IGNORECASE)
"""Names of cooling devices that slow a processor down; a fan is not one."""


@dataclass(frozen=True, kw_only=True)
class Throttling:
    """Signs that something holds the clocks down.

    ``events`` counts since boot (x86: thermal throttling of cores and package; Jetson: under-voltage and over-current
    events); ``reasons`` hold now; ``past`` is the Raspberry Pi's set of what has happened since it was last cleared.
    """

    events: int | None = None
    reasons: tuple[str, ...] | None = None
    past: frozenset[str] | None = None


def clocks_mhz(root: Path = ROOT) -> list[float] | None:
    """Each core's clock now: the frequency driver's, else what ``/proc/cpuinfo`` shows."""
    paths = glob(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    readings = [value for path in paths if (value := integer(path)) is not None]
    if readings:
        return [value / 1000 for value in readings]
    found = re.findall(r"^cpu MHz\s*:\s*(\d+(?:\.\d+)?)\s*$", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return [float(value) for value in found if float(value) > 0] or None


def gpu_clock_mhz(root: Path = ROOT) -> float | None:
    """The clock of a Jetson's GPU (``17000000.gpu`` or ``.ga10b``; on Thor ``gpu-gpc-0``), as devfreq shows it."""
    for folder in glob(root, "sys/class/devfreq/*"):
        if re.search(r"\.gpu$|\.g[ava]\d+b$|^gpu-gpc", folder.name):
            value = integer(folder / "cur_freq")
            if value:
                return value / 1e6
    return None


def temperatures_c(root: Path = ROOT) -> dict[str, float] | None:
    """Thermal zones, and the hwmon sensors of chips that are not one of them, by name."""
    found: dict[str, float] = {}
    for zone in glob(root, "sys/class/thermal/thermal_zone[0-9]*"):
        _add(found, text(zone / "type") or zone.name, integer(zone / "temp"))
    zones = set(found)
    for file in glob(root, "sys/class/hwmon/hwmon[0-9]*/temp[0-9]*_input"):
        chip = text(file.parent / "name") or file.parent.name
        if chip not in zones and chip.replace("_", "-") not in zones:
            label = text(file.with_name(file.name.replace("_input", "_label")))
            _add(found, f"{chip} {label}" if label else chip, integer(file))
    return found or None


def throttling(root: Path = ROOT) -> Throttling:
    """See :class:`Throttling`."""
    counts = _core_counts(root) + [
        value for path in glob(root, "sys/class/hwmon/hwmon[0-9]*/oc[0-9]_event_cnt")
        if (value := integer(path)) is not None
    ]  # fmt: skip
    brakes = [
        (text(folder / "type") or folder.name, state)
        for folder in glob(root, "sys/class/thermal/cooling_device[0-9]*")
        if _BRAKES.search(text(folder / "type") or "") and (state := integer(folder / "cur_state")) is not None
    ]
    word = _pi_word(root)
    now = [flag for bit, flag in enumerate(_PI_FLAGS) if word is not None and word >> bit & 1]
    reasons = [*dict.fromkeys(name for name, state in brakes if state > 0), *now]
    past = None if word is None else frozenset(flag for bit, flag in enumerate(_PI_FLAGS) if word >> (16 + bit) & 1)
    return Throttling(
        events=sum(counts) if counts else None,
        reasons=tuple(reasons) if brakes or word is not None else None,
        past=past,
    )


def power_mode(root: Path = ROOT) -> str | None:
    """The name of a Jetson's ``nvpmodel`` mode; elsewhere the governor, the energy preference and the profile."""
    conf = text(root / "etc/nvpmodel.conf")
    if conf is not None:
        return _nvpmodel(conf, text(root / "var/lib/nvpmodel/status"))
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    settings = {
        "governor": text(cpu / "scaling_governor"),
        "preference": text(cpu / "energy_performance_preference"),
        "profile": text(root / "sys/firmware/acpi/platform_profile"),
    }
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value) or None


def memory_available_bytes(root: Path = ROOT) -> int | None:
    """What a process could still take without swapping: the kernel's estimate, within the container's limit."""
    bounds = [_meminfo(root, "MemAvailable")]
    group = root / "sys/fs/cgroup"
    for limit, used in ((group / "memory.max", group / "memory.current"),
                        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes")):
        most, now = integer(limit), integer(used)
        if most is not None and now is not None:
            bounds.append(max(0, most - now))
    return min((bound for bound in bounds if bound is not None), default=None)


def memory_bytes(root: Path = ROOT) -> int | None:
    """The machine's memory."""
    return _meminfo(root, "MemTotal")


def _core_counts(root: Path) -> list[int]:
    """x86: how often each core, and the package, was throttled; the package's count is repeated at every core."""
    folders = glob(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
    cores = [value for folder in folders if (value := integer(folder / "core_throttle_count")) is not None]
    package = [value for folder in folders if (value := integer(folder / "package_throttle_count")) is not None]
    return cores + ([max(package)] if package else [])


def _pi_word(root: Path) -> int | None:
    """A Raspberry Pi's throttling word, from the firmware driver's file, else from the firmware itself."""
    for path in glob(root, "sys/devices/platform/*/*firmware/get_throttled"):
        if (value := to_integer(text(path), 16)) is not None:
            return value
    if "Raspberry Pi" not in (text(root / "proc/device-tree/model") or ""):
        return None
    return _parse_throttled(output_of("vcgencmd", "get_throttled"))


def _parse_throttled(output: str | None) -> int | None:
    match = re.fullmatch(r"throttled=0x([0-9a-f]+)", (output or "").strip())
    return int(match[1], 16) if match else None


def _nvpmodel(conf: str, status: str | None) -> str | None:
    """The mode's name in ``/etc/nvpmodel.conf``, by the number in ``/var/lib/nvpmodel/status`` (``pmode:0002 ...``)."""
    match = re.search(r"pmode:(\d+)", status or "")
    if match is None:
        match = re.search(r"NV Power Mode:\s*(\S+)", output_of("nvpmodel", "-q") or "")
        return match[1] if match else None
    modes = re.finditer(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", conf)
    names = {int(mode[1]): str(mode[2]) for mode in modes}
    return names.get(int(match[1]), f"mode {int(match[1])}")


def _meminfo(root: Path, key: str) -> int | None:
    match = re.search(rf"^{key}:\s+(\d+) kB$", text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _add(found: dict[str, float], name: str, reading: int | None) -> None:
    """``reading`` in thousandths of a degree under ``name``, numbered where another sensor has the same."""
    if reading is None or reading < _OFF_BELOW:
        return
    number = 2
    unique = name
    while unique in found:
        unique, number = f"{name} #{number}", number + 1
    found[unique] = reading / 1000
