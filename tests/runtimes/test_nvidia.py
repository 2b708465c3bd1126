"""What nvidia-smi is understood to say, against recorded answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.nvidia import GpuState, gpu_facts, gpu_state
from tests.runtimes.fake_root import write_files, write_program

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Sun Mar 30 02:53:47 UTC 2025\nGCC version: 13"
CUDA = {"proc/self/maps": "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20"}


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of an nvidia-smi to be written; nothing else is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin/nvidia-smi"


def test_each_gpu(tmp_path: Path, smi: Path) -> None:
    write_program(smi, "assert sys.argv[1:] == ['--query-gpu=name,driver_version,compute_cap,memory.total', "
                       "'--format=csv,noheader,nounits']\n"
                       "print('NVIDIA GeForce RTX 4090, 570.133.20, 8.9, 24564')\n"
                       "print('NVIDIA T4, 570.133.20, [N/A], [N/A]')")  # fmt: skip
    assert gpu_facts(tmp_path) == []        # no driver: nothing is asked
    write_files(tmp_path, {"proc/driver/nvidia/version": DRIVER})
    assert gpu_facts(tmp_path) == [
        {"vendor": "NVIDIA", "name": "NVIDIA GeForce RTX 4090", "driver": "570.133.20", "compute_capability": "8.9",
         "memory_bytes": 24564 * 2**20},
        {"vendor": "NVIDIA", "name": "NVIDIA T4", "driver": "570.133.20", "compute_capability": None,
         "memory_bytes": None},
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [None, "sys.exit('driver/library version mismatch')", "print('No devices found')"])
def test_what_the_driver_s_files_say_where_nvidia_smi_does_not(tmp_path: Path, smi: Path, answer: str | None) -> None:
    if answer is not None:
        write_program(smi, answer)
    write_files(tmp_path, {"proc/driver/nvidia/version": DRIVER,
                           "proc/driver/nvidia/gpus/0000:01:00.0/information":
                           "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 150"})  # fmt: skip
    assert gpu_facts(tmp_path) == [
        {"vendor": "NVIDIA", "name": "NVIDIA GeForce RTX 4090", "driver": "570.133.20", "compute_capability": None,
         "memory_bytes": None}]  # fmt: skip


def test_the_state_of_the_gpu(tmp_path: Path, smi: Path) -> None:
    write_program(smi, "print('1980, 45, 0x0000000000000064'); print('345, 30, 0x1')")
    assert gpu_state(tmp_path) is None      # this process has not loaded CUDA
    write_files(tmp_path, CUDA)
    assert gpu_state(tmp_path) == GpuState(
        clock_mhz=1980, temperature_c=45,
        reasons=("software thermal slowdown", "hardware thermal slowdown"))  # fmt: skip


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ("210, 30, 0x0000000000000001", GpuState(clock_mhz=210, temperature_c=30, reasons=())),        # idle
        ("1500, 70, 0x0000000000000004", GpuState(clock_mhz=1500, temperature_c=70, reasons=())),      # its power limit
        ("[N/A], [N/A], [Not Supported]", GpuState(clock_mhz=None, temperature_c=None, reasons=None)),
        ("Field x is not a valid field to query.", None),
    ],
)
def test_what_is_not_slowed_down_or_not_told(tmp_path: Path, smi: Path, printed: str, state: GpuState | None) -> None:
    write_program(smi, f"print({printed!r})")
    write_files(tmp_path, CUDA)
    assert gpu_state(tmp_path) == state
