from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes import machine
from runtimes.machine import machine_facts, peak_memory_bytes

PI5 = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp asimdhp\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n"


def test_facts_are_json_and_true() -> None:
    facts = machine_facts()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["cores"] == os.cpu_count()
    assert facts["python"] == platform.python_version()
    if Path("/proc/meminfo").exists():
        assert facts["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/cpuinfo": PI5, "/proc/device-tree/model": "Raspberry Pi 5 Model B"}
    monkeypatch.setattr(machine, "_text", lambda path: files.get(str(path)))
    facts = machine_facts()
    assert facts["board"] == "Raspberry Pi 5 Model B"
    assert facts["flags"] == ["asimd", "asimddp", "asimdhp"]
    assert (facts["memory_bytes"], facts["governor"], facts["clocks_mhz"], facts["temperatures_c"]) == (None,) * 4
    assert peak_memory_bytes() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_peak_memory_counts_what_was_held_and_given_back() -> None:
    """In a process of its own: the high-water mark of this one may be far above."""
    code = (
        "from runtimes.machine import peak_memory_bytes as peak; before = peak(); block = bytearray(64 << 20)\n"
        "block[::4096] = bytes(len(block[::4096])); del block; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(machine.__file__).parents[1])
    assert int(done.stdout) == pytest.approx(64 << 20, rel=0.05)
