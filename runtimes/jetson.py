"""What a Jetson is: its GPU, its Jetson Linux (L4T) release, and the JetPack that belongs to it.

Tested against recorded files; written, never run on a board.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from runtimes.sysfs import ROOT, text

_JETPACK = {
    (34, 1, 1): "5.0.1", (35, 1, 0): "5.0.2", (35, 2, 1): "5.1", (35, 3, 1): "5.1.1", (35, 4, 1): "5.1.2",
    (35, 5, 0): "5.1.3", (35, 6, 0): "5.1.4", (35, 6, 1): "5.1.5", (35, 6, 2): "5.1.5",
    (36, 3, 0): "6.0", (36, 4, 0): "6.1", (36, 4, 3): "6.2", (36, 4, 4): "6.2.1",
    (36, 5, 0): "6.2.2", (36, 5, 2): "6.2.3", (38, 2, 0): "7.0", (38, 2, 1): "7.0",
    (38, 4, 0): "7.1", (39, 2, 0): "7.2", (39, 2, 1): "7.2.1",
}  # fmt: skip
"""L4T release -> JetPack. Source: developer.nvidia.com/embedded/jetpack-archive. The 34 and 35 rows were not read
there: they are what the tables of several projects agree in, OE4T/meta-tegra (35.5.0, 35.6.0) and anduril/jetpack-nixos
(35.6.2) among them."""

_GPU = {"tegra194": ("Volta", "7.2"), "tegra234": ("Ampere", "8.7"), "tegra264": ("Blackwell", "11.0")}
"""Chip -> GPU architecture and compute capability (Thor's is 11.0 since CUDA 13, which JetPack 7 has)."""


def l4t_release(root: Path = ROOT) -> str | None:
    """``36.4.3``, from ``# R36 (release), REVISION: 4.3, ...``."""
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text(root / "etc/nv_tegra_release") or "")
    return f"{match[1]}.{match[2]}" if match else None


def jetpack_version(l4t: str | None) -> str | None:
    """The JetPack of a release; of a later revision of the same minor release the last one known, else ``None``.

    >>> jetpack_version("36.4.3"), jetpack_version("36.4.7"), jetpack_version("40.1")
    ('6.2', '6.2.1', None)
    """
    if l4t is None:
        return None
    major, minor, patch = (*(int(part) for part in l4t.split(".")), 0, 0)[:3]
    known = [release for release in _JETPACK if release[:2] == (major, minor) and release[2] <= patch]
    return _JETPACK[max(known)] if known else None


def gpu_facts(root: Path = ROOT) -> list[dict[str, Any]]:
    """A Jetson's one GPU, in the form of :func:`runtimes.nvidia.gpu_facts`; it shares the machine's memory."""
    names = (text(root / "proc/device-tree/compatible") or "").split("\0")
    chips = [chip for name in names if (chip := name.removeprefix("nvidia,")) in _GPU]
    return [
        {"vendor": "NVIDIA", "name": f"{chip} ({_GPU[chip][0]})", "driver": l4t_release(root),
         "compute_capability": _GPU[chip][1], "memory_bytes": None}
        for chip in chips[:1]
    ]  # fmt: skip
