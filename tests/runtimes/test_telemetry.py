"""The record of a span of time, on this machine and on imitated ones."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from runtimes import nvidia
from runtimes import telemetry as module
from runtimes.nvidia import GpuState
from runtimes.telemetry import Telemetry, spin
from tests.runtimes.fake_root import write_files

MOMENT = {"clocks_mhz", "gpu_clock_mhz", "temperatures_c", "throttle_events", "throttle_reasons", "power_mode",
          "spin_ns"}  # fmt: skip
UNREADABLE = ("energy_j", "energy_source", "power_w", "foreign_cpu_share", "steal_share", "quota_throttled_s",
              "throttled", "memory_available_bytes")  # fmt: skip
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _short_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "spin", lambda: 1000.0)


def stat(*, user: int = 0, idle: int = 0, steal: int = 0, iowait: int = 0, guest: int = 0) -> str:
    """/proc/stat in which every core this process may use has the same ticks; another core is always busy."""
    ours = [f"cpu{number} {user} 0 0 {idle} {iowait} 0 0 {steal} {guest} 0" for number in os.sched_getaffinity(0)]
    other = f"cpu9999 {user * 50} 0 0 0 0 0 0 0 0 0"
    return "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *ours, other, "intr 1 2 3", "ctxt 4"])


def span(
    root: Path, monkeypatch: pytest.MonkeyPatch, between: dict[str, object], *, own_s: float = 0.0
) -> dict[str, object]:
    """The record of a second in which ``between`` changed; this process is said to have computed ``own_s`` in it."""
    now = {"ns": 0, "own": 0.0}
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: now["ns"])
    monkeypatch.setattr(module.time, "process_time", lambda: now["own"])
    telemetry = Telemetry(root)
    telemetry.start()
    write_files(root, between)
    now.update(ns=1_000_000_000, own=own_s)
    record = telemetry.stop()
    json.dumps(record, allow_nan=False)
    return record


def test_this_machine() -> None:
    telemetry = Telemetry()
    threads = threading.active_count()
    telemetry.start()
    time.sleep(0.21)
    record = telemetry.stop()
    assert threading.active_count() == threads
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["before"]) == set(record["after"]) == MOMENT
    assert 0.21 <= record["duration_s"] < 5
    if Path("/proc/stat").exists():
        assert 0 <= record["steal_share"] <= record["foreign_cpu_share"] + 0.05 <= 1.05
        assert record["memory_available_bytes"] > 1 << 20


def test_a_machine_that_tells_nothing_has_no_figures(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path)
    telemetry.start()
    record = telemetry.stop()
    assert [record[key] for key in UNREADABLE] == [None] * len(UNREADABLE)
    for moment in ("before", "after"):
        assert record[moment] == {**dict.fromkeys(MOMENT), "spin_ns": 1000.0}


def test_the_foreign_share_leaves_out_this_process_and_other_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"proc/stat": stat(user=1000, idle=1000)})
    # each core: 60 ticks busy, 10 stolen, 25 idle, 5 waiting for a disk; of the 70 busy ones 40 are this process's
    after = stat(user=1060, idle=1025, steal=10, iowait=5, guest=60)
    record = span(tmp_path, monkeypatch, {"proc/stat": after}, own_s=0.4 * CORES * 100 / os.sysconf("SC_CLK_TCK"))
    assert record["foreign_cpu_share"] == pytest.approx(0.30)
    assert record["steal_share"] == pytest.approx(0.10)


def test_a_share_is_never_below_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"proc/stat": stat()})
    record = span(tmp_path, monkeypatch, {"proc/stat": stat(user=50, idle=50)}, own_s=0.51 * CORES)
    assert (record["foreign_cpu_share"], record["steal_share"]) == (0.0, 0.0)


@pytest.mark.parametrize("after", [
    {"user": 40, "idle": 200}, {"user": 200, "idle": 100, "steal": -1}, {"user": 50, "idle": 50},
    {"user": 90, "idle": 10},
])
def test_counters_that_run_backwards_are_no_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: dict[str, int]
) -> None:
    write_files(tmp_path, {"proc/stat": stat(user=50, idle=50)})
    record = span(tmp_path, monkeypatch, {"proc/stat": stat(**after)}, own_s=0.0)
    assert (record["foreign_cpu_share"], record["steal_share"]) == (None, None)


def test_a_core_that_came_on_meanwhile_is_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = stat(user=1000, idle=1000).splitlines()
    mine = min(os.sched_getaffinity(0))
    write_files(tmp_path, {"proc/stat": "\n".join(line for line in lines if not line.startswith(f"cpu{mine} "))})
    record = span(tmp_path, monkeypatch, {"proc/stat": stat(user=1050, idle=1050)}, own_s=0.0)
    assert (record["foreign_cpu_share"], record["steal_share"]) == (None, None)


def test_a_span_too_short_for_the_kernel_s_clock_has_no_share(tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/stat": stat(user=1, idle=1)})
    telemetry = Telemetry(tmp_path)
    telemetry.start()
    write_files(tmp_path, {"proc/stat": stat(user=9, idle=9)})
    record = telemetry.stop()
    assert (record["foreign_cpu_share"], record["steal_share"]) == (None, None)


X86 = "sys/devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_count"
PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
OVER_CURRENT = "sys/class/hwmon/hwmon3/oc3_event_cnt"
COOLING = "sys/class/thermal/cooling_device0/"
QUOTA = "sys/fs/cgroup/cpu.stat"


@pytest.mark.parametrize(
    ("before", "after", "throttled"),
    [
        ({X86.format(0, "core"): 3, X86.format(1, "core"): 3}, {}, False),
        ({X86.format(0, "core"): 3, X86.format(1, "core"): 3}, {X86.format(1, "core"): 4}, True),
        ({X86.format(0, "package"): 3, X86.format(1, "package"): 3}, {X86.format(1, "package"): 9}, True),
        ({OVER_CURRENT: 15}, {OVER_CURRENT: 15}, False),
        ({OVER_CURRENT: 15}, {OVER_CURRENT: 16}, True),
        ({OVER_CURRENT: 15}, {OVER_CURRENT: 2}, None),      # counted anew
        ({OVER_CURRENT: 15}, {OVER_CURRENT: "garbage"}, None),
        ({PI: "0"}, {PI: "0"}, False),
        ({PI: "0"}, {PI: "80000"}, True),         # the soft temperature limit was reached in between
        ({PI: "50005"}, {PI: "50000"}, True),     # under-voltage and throttled at the start
        ({PI: "50000"}, {PI: "50000"}, None),     # it has happened, nobody knows when
        ({PI: "50000"}, {PI: "0"}, False),        # reading cleared it and it did not come back
        ({COOLING + "type": "cpufreq-cpu0", COOLING + "cur_state": 0}, {COOLING + "cur_state": 2}, True),
        ({COOLING + "type": "cpufreq-cpu0", COOLING + "cur_state": 0}, {}, None),    # in between it may have been 2
        ({COOLING + "type": "pwm-fan", COOLING + "cur_state": 3}, {}, None),
        ({QUOTA: "nr_throttled 3\nthrottled_usec 1000"}, {QUOTA: "nr_throttled 4\nthrottled_usec 51000"}, True),
        ({QUOTA: "usage_usec 7\nthrottled_usec 1000"}, {}, None),
        ({}, {}, None),
    ],
)
def test_throttled_is_true_false_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    before: dict[str, object], after: dict[str, object], throttled: bool | None,
) -> None:
    write_files(tmp_path, before)
    assert span(tmp_path, monkeypatch, after)["throttled"] is throttled


def test_the_quota_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {QUOTA: "throttled_usec 1000"})
    assert span(tmp_path, monkeypatch, {QUOTA: "throttled_usec 51000"})["quota_throttled_s"] == pytest.approx(0.05)
    assert span(tmp_path, monkeypatch, {QUOTA: "throttled_usec 7"})["quota_throttled_s"] is None


def test_energy_and_its_mean_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = "sys/class/powercap/intel-rapl:0/"
    write_files(tmp_path, {zone + "name": "package-0", zone + "energy_uj": 1_000_000})
    record = span(tmp_path, monkeypatch, {zone + "energy_uj": 13_000_000})
    assert (record["energy_j"], record["power_w"]) == (12.0, 12.0)
    assert record["energy_source"] == "RAPL package-0"


def test_energy_that_only_root_may_read_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = "sys/class/powercap/intel-rapl:0/"
    write_files(tmp_path, {zone + "name": "package-0", zone + "energy_uj/here": "a folder cannot be read, as root too"})
    record = span(tmp_path, monkeypatch, {})
    assert (record["energy_j"], record["energy_source"], record["power_w"]) == (None, None, None)


@pytest.mark.parametrize(
    ("reasons", "told", "throttled"),
    [(("power brake",), ["GPU power brake"], True), ((), [], None), (None, None, None)],
)
def test_a_gpu_is_part_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    reasons: tuple[str, ...] | None, told: list[str] | None, throttled: bool | None,
) -> None:
    monkeypatch.setattr(nvidia, "gpu_state", lambda root: GpuState(clock_mhz=1980, temperature_c=45, reasons=reasons))
    record = span(tmp_path, monkeypatch, {})
    for moment in (record["before"], record["after"]):
        assert isinstance(moment, dict)
        assert (moment["gpu_clock_mhz"], moment["temperatures_c"]) == (1980, {"NVIDIA GPU": 45})
        assert moment["throttle_reasons"] == told
    assert record["throttled"] is throttled


def test_a_jetson_s_own_gpu_clock_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"sys/class/devfreq/17000000.gpu/cur_freq": 1020000000})
    monkeypatch.setattr(nvidia, "gpu_state", lambda root: GpuState(clock_mhz=None, temperature_c=None, reasons=None))
    before = span(tmp_path, monkeypatch, {})["before"]
    assert isinstance(before, dict)
    assert (before["gpu_clock_mhz"], before["temperatures_c"], before["throttle_reasons"]) == (1020, None, None)


def test_rails_are_measured_where_the_package_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rail = "sys/class/hwmon/hwmon1/"
    write_files(tmp_path, {rail + "name": "ina3221", rail + "in1_label": "VDD_IN", rail + "in1_input": 5000,
                           rail + "curr1_input": 1000})  # fmt: skip
    record = span(tmp_path, monkeypatch, {})
    assert (record["energy_j"], record["power_w"], record["energy_source"]) == (5.0, 5.0, "INA3221 VDD_IN")


def test_spin_is_the_best_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"ns": 0, "readings": 0}
    times = iter([900, 700, 800, 750, 770, 5_000_000, *[1_000_000] * 40])

    def tick() -> int:
        """After the first reading, three a round: may it begin, its start, its end; only a round takes time."""
        if clock["readings"] and clock["readings"] % 3 == 0:
            clock["ns"] += next(times)
        clock["readings"] += 1
        return clock["ns"]

    monkeypatch.setattr(module, "SPIN_ROUNDS", 0)
    monkeypatch.setattr(module.time, "perf_counter_ns", tick)
    assert spin(blocks=1) == 700
    assert clock["ns"] >= 20_000_000       # as long as it takes to wake a core


def test_spin_follows_its_work() -> None:
    few, many = spin(blocks=8), spin(blocks=256)
    assert many == pytest.approx(32 * few, rel=0.35)
