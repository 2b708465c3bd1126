from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes import machine
from runtimes.machine import installed_backends, machine_facts, peak_memory_bytes
from tests.runtimes.fake_root import write_files

PI5 = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp asimdhp\nCPU implementer\t: 0x41\n"
    "CPU part\t: 0xd0b\n\nprocessor\t: 1\n"
)
N100 = "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\n"


def test_facts_are_json_and_true() -> None:
    facts = machine_facts()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["cores"] == os.cpu_count()
    assert facts["python"] == platform.python_version()
    assert facts["backends"]["numpy"] == importlib.metadata.version("numpy")
    if Path("/proc/meminfo").exists():
        assert facts["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    facts = machine_facts(tmp_path)
    unknown = ("board", "dot_product", "memory_bytes", "l4t", "jetpack", "power_mode", "governor", "clocks_mhz",
               "clock_max_mhz", "temperatures_c")  # fmt: skip
    assert [facts[key] for key in unknown] == [None] * len(unknown)
    assert (facts["flags"], facts["gpus"], facts["npus"]) == ([], [], [])
    assert peak_memory_bytes(tmp_path) is None


def test_a_raspberry_pi(tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/cpuinfo": PI5, "proc/device-tree/model": "Raspberry Pi 5 Model B\0",
                           "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": 2400000,
                           "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand"})  # fmt: skip
    facts = machine_facts(tmp_path)
    assert (facts["cpu"], facts["board"], facts["clock_max_mhz"]) == ("Cortex-A76", "Raspberry Pi 5 Model B", 2400)
    assert (facts["flags"], facts["dot_product"]) == (["asimd", "asimddp", "asimdhp"], True)
    assert (facts["governor"], facts["power_mode"]) == ("ondemand", "governor ondemand")


def test_a_jetson(tmp_path: Path) -> None:
    write_files(tmp_path, {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/device-tree/compatible": "nvidia,p3767-0005\0nvidia,tegra234",
        "proc/cpuinfo": "Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=25W >", "var/lib/nvpmodel/status": "pmode:0001",
        "proc/driver/nvidia/version": "NVRM version: 540.4.0",      # its nvidia-smi would tell less of the same GPU
        "proc/driver/nvidia/gpus/0/information": "Model: Orin (nvgpu)",
    })  # fmt: skip
    facts = machine_facts(tmp_path)
    assert (facts["cpu"], facts["l4t"], facts["jetpack"]) == ("Cortex-A78AE", "36.4.3", "6.2")
    assert facts["power_mode"] == "25W"
    assert [gpu["compute_capability"] for gpu in facts["gpus"]] == ["8.7"]


def test_a_pc_with_an_intel_gpu_and_npu(tmp_path: Path) -> None:
    write_files(tmp_path, {
        "proc/cpuinfo": N100,
        "sys/class/drm/card0/device/vendor": "0x8086", "sys/class/drm/card0/device/device": "0x46d1",
        "sys/class/drm/card0-HDMI-A-1/device/vendor": "0x8086",
        "sys/class/drm/card1/device/vendor": "0x10de",                        # told by NVIDIA's driver, if at all
        "sys/class/drm/card2/device/vendor": "0x1af4",                        # a virtual machine's
        "sys/class/accel/accel0/device/vendor": "0x8086", "sys/class/accel/accel0/device/device": "0x7d1d",
        "sys/bus/pci/drivers/i915/bind": "",
    })  # fmt: skip
    (tmp_path / "sys/class/drm/card0/device/driver").symlink_to(tmp_path / "sys/bus/pci/drivers/i915")
    facts = machine_facts(tmp_path)
    assert (facts["cpu"], facts["flags"], facts["dot_product"]) == ("Intel(R) N100", ["avx2", "avx_vnni"], True)
    assert facts["gpus"] == [
        {"vendor": "Intel", "name": None, "device_id": "0x46d1", "driver": "i915"},
        {"vendor": "0x1af4", "name": None, "device_id": None, "driver": None}]  # fmt: skip
    assert facts["npus"] == [{"vendor": "Intel", "name": None, "device_id": "0x7d1d", "driver": None}]


def test_a_cpu_without_dot_products(tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/cpuinfo": "flags\t\t: fpu avx2"})
    assert machine_facts(tmp_path)["dot_product"] is False


def test_backends_are_those_installed_under_any_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime-gpu": "1.23.0", "tensorrt": "10.3.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_backends() == {"onnxruntime": "1.23.0", "tensorrt": "10.3.0"}


def test_the_facts_import_no_backend_and_are_cheap() -> None:
    code = (
        "import sys, time; from runtimes.machine import machine_facts; begin = time.process_time(); machine_facts()\n"
        "print(time.process_time() - begin, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(machine.__file__).parents[1])  # fmt: skip
    seconds, *modules = done.stdout.split()
    assert float(seconds) < 0.1
    assert not {"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"} & set(modules)


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
