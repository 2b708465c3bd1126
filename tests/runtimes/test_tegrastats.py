"""The parser, against lines that people have published from their boards."""

from __future__ import annotations

import pytest

from runtimes.tegrastats import Core, Power, TegraStats, parse_tegrastats

MIB = 1 << 20

# Orin Nano Super, L4T R36.4.3, idle
ORIN_NANO = (
    "07-14-2025 10:29:36 RAM 2147/7620MB (lfb 2x4MB) SWAP 1476/3810MB (cached 1MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729] GR3D_FREQ 0% cpu@47.687C soc2@46.718C soc0@47.468C gpu@48.625C tj@48.625C soc1@48.25C "
    "VDD_IN 4556mW/4556mW VDD_CPU_GPU_CV 483mW/483mW VDD_SOC 1451mW/1451mW"
)
# Orin Nano Super, L4T R36, under load
ORIN_NANO_BUSY = (
    "09-17-2026 02:10:16 RAM 1483/7620MB (lfb 105x4MB) SWAP 253/12002MB (cached 2MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729] GR3D_FREQ 62%@612 cpu@47.75C soc2@46.718C soc0@47.25C gpu@50C tj@50C soc1@48.093C "
    "VDD_IN 4541mW/4541mW VDD_CPU_GPU_CV 521mW/521mW VDD_SOC 1446mW/1473mW"
)
# AGX Orin 64 GB, JetPack 6, under load with a DLA running
AGX_ORIN = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) CPU [90%@2201,100%@2201,"
    "100%@2201,100%@2201,100%@2201,100%@2201,100%@2201,100%@2201,100%@2201,100%@2201,100%@2201,100%@2201] "
    "EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C "
    "Tboard@62C SOC2@70C Tdiode@62.25C SOC0@69.531C CV1@72.5C GPU@69.125C tj@77.281C SOC1@68.968C CV2@67.25C "
    "VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
# AGX Orin 64 GB, L4T R35, idle: sensors that are switched off, channels that are not connected
AGX_ORIN_R35 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C "
    "SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C SOC1@40.468C CV2@-256C "
    "VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
# AGX Xavier, L4T R32/R35; its memory was not part of what was published
AGX_XAVIER = (
    "CPU [0%@1190,1%@1190,0%@1190,0%@1189,0%@1190,0%@1191,0%@1190,0%@1190] EMC_FREQ 0%@1331 GR3D_FREQ 0%@114 "
    "VIC_FREQ 115 APE 150 AUX@36C CPU@36.5C thermal@35.7C Tboard@37C AO@35C GPU@35C Tdiode@38.75C PMIC@50C "
    "GPU 467mW/467mW CPU 467mW/467mW SOC 1245mW/1245mW CV 0mW/0mW VDDRQ 311mW/311mW SYS5V 2768mW/2768mW"
)
# AGX Thor, L4T R38.4, nearly idle: three GPU clocks and no load
THOR = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,1%@972,0%@972,"
    "0%@972,0%@972,0%@972,8%@972,0%@972,0%@972] EMC_FREQ 0%@2750 GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 "
    "NVENC1_FREQ @314 NVDEC0_FREQ @314 NVDEC1_FREQ @314 NVJPG0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE 300 "
    "cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C soc345@37.406C VDD_GPU 1962mW/1962mW "
    "VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW"
)
# AGX Thor, L4T R39.2, under load, without root: nothing of the GPU; each rail's highest power as a third value
THOR_BUSY = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972,0%@972,0%@972,"
    "0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,0%@972,2%@972] cpu@60.406C tj@63.281C soc012@58.468C "
    "gpu@62.906C soc345@63.281C VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW "
    "VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW"
)


def test_orin_nano() -> None:
    found = parse_tegrastats(ORIN_NANO)
    assert (found.memory_used_bytes, found.memory_bytes) == (2147 * MIB, 7620 * MIB)
    assert found.cores == (Core(load=0, clock_mhz=729),) * 6
    assert (found.gpu_load, found.gpu_clocks_mhz, found.memory_clock_mhz) == (0, (), None)
    assert found.temperatures_c == {
        "cpu": 47.687, "soc2": 46.718, "soc0": 47.468, "gpu": 48.625, "tj": 48.625, "soc1": 48.25}  # fmt: skip
    assert found.rails == {
        "VDD_IN": Power(now_w=4.556, mean_w=4.556), "VDD_CPU_GPU_CV": Power(now_w=0.483, mean_w=0.483),
        "VDD_SOC": Power(now_w=1.451, mean_w=1.451)}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "load", "clocks", "cores", "memory_clock"),
    [
        (ORIN_NANO_BUSY, 0.62, (612,), 6, None),
        (AGX_ORIN, 0.14, (407, 407), 12, 2133),
        (AGX_ORIN_R35, 0, (0,), 4, 2133),
        (AGX_XAVIER, 0, (114,), 8, 1331),
        (THOR, None, (314, 314, 314), 14, 2750),
        (THOR_BUSY, None, (), 14, None),
    ],
)
def test_the_processors_of_every_board(
    line: str, load: float | None, clocks: tuple[int, ...], cores: int, memory_clock: int | None
) -> None:
    found = parse_tegrastats(line)
    assert (found.gpu_load, found.gpu_clocks_mhz, len(found.cores)) == (load, clocks, cores)
    assert found.memory_clock_mhz == memory_clock


def test_what_is_off_has_no_reading() -> None:
    found = parse_tegrastats(AGX_ORIN_R35)
    assert found.cores[2:] == (None, None)
    assert found.temperatures_c == {
        "CPU": 42.593, "Tboard": 32.0, "SOC2": 39.343, "Tdiode": 33.25, "SOC0": 39.375, "tj": 42.593,
        "SOC1": 40.468}  # fmt: skip
    assert list(found.rails) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]


def test_the_rails_of_every_board() -> None:
    assert parse_tegrastats(AGX_ORIN).rails["VDD_CPU_CV"] == Power(now_w=14.312, mean_w=12.415)
    assert {name: rail.now_w for name, rail in parse_tegrastats(AGX_XAVIER).rails.items()} == {
        "GPU": 0.467, "CPU": 0.467, "SOC": 1.245, "CV": 0.0, "VDDRQ": 0.311, "SYS5V": 2.768}  # fmt: skip
    assert parse_tegrastats(AGX_XAVIER).memory_bytes is None
    assert parse_tegrastats(THOR_BUSY).rails["VIN"] == Power(now_w=87.426, mean_w=43.713)
    assert parse_tegrastats("VDD_GPU -392mW").rails == {"VDD_GPU": Power(now_w=-0.392)}


@pytest.mark.parametrize("line", ["", "tegrastats: not found", "CPU 12", "RAM 5/x", "GPU@hot"])
def test_another_line_says_nothing(line: str) -> None:
    assert parse_tegrastats(line) == TegraStats()
