"""Sensors and settings of imitated machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes import sensors
from runtimes.sensors import Throttling
from tests.runtimes.fake_root import write_files, write_program

CPU = "sys/devices/system/cpu/cpu"


def test_clocks_are_the_frequency_driver_s_in_the_order_of_the_cores(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{CPU}{core}/cpufreq/scaling_cur_freq": core * 1000 for core in (10, 2, 1)})
    write_files(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 1.0"})
    assert sensors.clocks_mhz(tmp_path) == [1.0, 2.0, 10.0]


def test_clocks_of_cpuinfo(tmp_path: Path) -> None:
    assert sensors.clocks_mhz(tmp_path) is None
    two = "processor\t: 0\ncpu MHz\t\t: 2596.136\n\nprocessor\t: 1\ncpu MHz\t\t: 800.5"
    write_files(tmp_path, {"proc/cpuinfo": two})
    assert sensors.clocks_mhz(tmp_path) == [2596.136, 800.5]


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "17000000.gv11b", "gpu-gpc-0"])
def test_a_jetson_s_gpu_clock(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {"sys/class/devfreq/13e40000.host1x/cur_freq": 5,
                           f"sys/class/devfreq/{name}/cur_freq": 1020000000})  # fmt: skip
    assert sensors.gpu_clock_mhz(tmp_path) == 1020.0


def test_a_gpu_that_is_switched_off_has_no_clock(tmp_path: Path) -> None:
    assert sensors.gpu_clock_mhz(tmp_path) is None
    write_files(tmp_path, {"sys/class/devfreq/17000000.gpu/cur_freq": 0})
    assert sensors.gpu_clock_mhz(tmp_path) is None


def test_temperatures_by_name(tmp_path: Path) -> None:
    zones = {"cpu-thermal": 51250, "cv0-thermal": -256000, "tj-thermal": 52000}
    for number, (name, reading) in enumerate(zones.items()):
        write_files(tmp_path, {f"sys/class/thermal/thermal_zone{number}/type": name,
                               f"sys/class/thermal/thermal_zone{number}/temp": reading})  # fmt: skip
    write_files(tmp_path, {
        "sys/class/thermal/thermal_zone9/type": "unreadable",
        "sys/class/hwmon/hwmon0/name": "cpu_thermal", "sys/class/hwmon/hwmon0/temp1_input": 51250,   # the zone again
        "sys/class/hwmon/hwmon1/name": "coretemp", "sys/class/hwmon/hwmon1/temp1_label": "Package id 0",
        "sys/class/hwmon/hwmon1/temp1_input": 60000, "sys/class/hwmon/hwmon1/temp2_input": 58500,
        "sys/class/hwmon/hwmon2/name": "coretemp", "sys/class/hwmon/hwmon2/temp1_label": "Package id 0",
        "sys/class/hwmon/hwmon2/temp1_input": 61000,
    })  # fmt: skip
    assert sensors.temperatures_c(tmp_path) == {
        "cpu-thermal": 51.25, "tj-thermal": 52.0, "coretemp Package id 0": 60.0, "coretemp": 58.5,
        "coretemp Package id 0 #2": 61.0}  # fmt: skip


def test_no_temperatures(tmp_path: Path) -> None:
    assert sensors.temperatures_c(tmp_path) is None


def test_throttling_counts_every_core_and_its_package_once(tmp_path: Path) -> None:
    for core in range(3):
        write_files(tmp_path, {f"{CPU}{core}/thermal_throttle/core_throttle_count": core,
                               f"{CPU}{core}/thermal_throttle/package_throttle_count": 5})  # fmt: skip
    assert sensors.throttling(tmp_path) == Throttling(events=0 + 1 + 2 + 5)


def test_throttling_of_a_jetson(tmp_path: Path) -> None:
    write_files(tmp_path, {f"sys/class/hwmon/hwmon3/oc{number}_event_cnt": number * 10 for number in (1, 2, 3)})
    cooling = {"pwm-fan": 4, "cpufreq-cpu0": 0, "cpu-throttle-alert": 1, "devfreq-17000000.gpu": 2}
    for number, (name, state) in enumerate(cooling.items()):
        write_files(tmp_path, {f"sys/class/thermal/cooling_device{number}/type": name,
                               f"sys/class/thermal/cooling_device{number}/cur_state": state})  # fmt: skip
    assert sensors.throttling(tmp_path) == Throttling(events=60, reasons=("cpu-throttle-alert", "devfreq-17000000.gpu"))


@pytest.mark.parametrize("path", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_throttling_of_a_raspberry_pi(tmp_path: Path, path: str) -> None:
    file = f"sys/devices/platform/{path}/get_throttled"
    write_files(tmp_path, {file: "50005"})
    assert sensors.throttling(tmp_path) == Throttling(
        reasons=("under-voltage", "throttled"), past=frozenset({"under-voltage", "throttled"}))  # fmt: skip
    write_files(tmp_path, {file: "e0008"})
    assert sensors.throttling(tmp_path) == Throttling(
        reasons=("soft temperature limit",),
        past=frozenset({"clock capped", "throttled", "soft temperature limit"}))  # fmt: skip


@pytest.mark.parametrize(
    ("printed", "reasons"), [("throttled=0x4", ("throttled",)), ("throttled=0x0", ()), ("VCHI failed", None)]
)
def test_a_raspberry_pi_is_asked_where_the_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, reasons: tuple[str, ...] | None
) -> None:
    write_program(tmp_path / "bin/vcgencmd", f"assert sys.argv[1:] == ['get_throttled']\nprint('{printed}')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert sensors.throttling(tmp_path).reasons is None     # not a Raspberry Pi
    write_files(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0"})
    assert sensors.throttling(tmp_path).reasons == reasons


def test_nothing_known_of_throttling(tmp_path: Path) -> None:
    assert sensors.throttling(tmp_path) == Throttling()


CONF = "# FORMAT:\n# < POWER_MODEL ID=id_num NAME=mode_name >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n" \
       "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >"  # fmt: skip


@pytest.mark.parametrize(
    ("status", "mode"), [("pmode:0002", "MAXN_SUPER"), ("pmode:0000 fmode:quiet", "15W"), ("pmode:0007", "mode 7")]
)
def test_the_power_mode_of_a_jetson(tmp_path: Path, status: str, mode: str) -> None:
    write_files(tmp_path, {"etc/nvpmodel.conf": CONF, "var/lib/nvpmodel/status": status})
    assert sensors.power_mode(tmp_path) == mode


def test_nvpmodel_is_asked_where_its_status_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"etc/nvpmodel.conf": CONF})
    write_program(tmp_path / "bin/nvpmodel", "assert sys.argv[1:] == ['-q']\nprint('NV Power Mode: 120W'); print(1)")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert sensors.power_mode(tmp_path) == "120W"
    (tmp_path / "bin/nvpmodel").unlink()
    assert sensors.power_mode(tmp_path) is None


def test_the_power_mode_of_a_pc(tmp_path: Path) -> None:
    assert sensors.power_mode(tmp_path) is None
    write_files(tmp_path, {f"{CPU}0/cpufreq/scaling_governor": "powersave",
                           f"{CPU}0/cpufreq/energy_performance_preference": "balance_performance"})  # fmt: skip
    assert sensors.power_mode(tmp_path) == "governor powersave, preference balance_performance"
    write_files(tmp_path, {"sys/firmware/acpi/platform_profile": "balanced"})
    assert sensors.power_mode(tmp_path) == "governor powersave, preference balance_performance, profile balanced"


def test_memory(tmp_path: Path) -> None:
    assert (sensors.memory_bytes(tmp_path), sensors.memory_available_bytes(tmp_path)) == (None, None)
    write_files(tmp_path, {"proc/meminfo": "MemTotal:       8000 kB\nMemFree:  100 kB\nMemAvailable:    5000 kB"})
    assert (sensors.memory_bytes(tmp_path), sensors.memory_available_bytes(tmp_path)) == (8000 * 1024, 5000 * 1024)


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [("max", 100, 5000 * 1024), (3000 * 1024, 1000 * 1024, 2000 * 1024), (1000, 2000, 0), (10**12, 0, 5000 * 1024)],
)
def test_available_memory_stays_within_the_container_s_limit(
    tmp_path: Path, limit: object, used: int, available: int
) -> None:
    write_files(tmp_path, {"proc/meminfo": "MemAvailable:    5000 kB", "sys/fs/cgroup/memory.max": limit,
                           "sys/fs/cgroup/memory.current": used})  # fmt: skip
    assert sensors.memory_available_bytes(tmp_path) == available
