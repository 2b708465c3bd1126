from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.jetson import gpu_facts, jetpack_version, l4t_release
from tests.runtimes.fake_root import write_files

R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37"
R38 = "# R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64, DATE: Wed Dec 31 00:15:19"


@pytest.mark.parametrize(("written", "release"), [(R36, "36.4.3"), (R38, "38.4.0"), ("# R36, a fork", None)])
def test_the_release_of_jetson_linux(tmp_path: Path, written: str, release: str | None) -> None:
    assert l4t_release(tmp_path) is None
    write_files(tmp_path, {"etc/nv_tegra_release": f"{written}\n# KERNEL_VARIANT: oot"})
    assert l4t_release(tmp_path) == release


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.4.1", "5.1.2"), ("35.6.2", "5.1.5"), ("36.3.0", "6.0"), ("36.4.0", "6.1"), ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"), ("38.2", "7.0"), ("38.4.0", "7.1"), ("39.2.0", "7.2"), ("36.6.0", None), ("50.1.0", None),
        (None, None),
    ],
)  # fmt: skip
def test_the_jetpack_of_a_release(l4t: str | None, jetpack: str | None) -> None:
    assert jetpack_version(l4t) == jetpack


@pytest.mark.parametrize(
    ("compatible", "name", "capability"),
    [
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234", "tegra234 (Ampere)", "8.7"),
        ("nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264", "tegra264 (Blackwell)", "11.0"),
    ],
)
def test_the_gpu_of_a_jetson(tmp_path: Path, compatible: str, name: str, capability: str) -> None:
    write_files(tmp_path, {"proc/device-tree/compatible": compatible, "etc/nv_tegra_release": R36})
    assert gpu_facts(tmp_path) == [{"vendor": "NVIDIA", "name": name, "driver": "36.4.3",
                                    "compute_capability": capability, "memory_bytes": None}]  # fmt: skip


def test_other_boards_have_none(tmp_path: Path) -> None:
    assert gpu_facts(tmp_path) == []
    write_files(tmp_path, {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712"})
    assert gpu_facts(tmp_path) == []
