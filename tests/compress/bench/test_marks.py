"""Each mark catches what it is for: in telemetry changed in one place, and once on a machine really disturbed."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.bench.figures import latency
from compress.bench.marks import conditions, marks
from compress.bench.record import Mark
from runtimes.telemetry import Telemetry

MS = 1_000_000
MOMENT = {"clocks_mhz": [2400.0, 800.0], "gpu_clock_mhz": 1300.0, "temperatures_c": {"cpu": 48.0, "gpu": 51.5},
          "throttle_events": 0, "throttle_reasons": [], "power_mode": "15W", "spin_ns": 1_000_000.0}
QUIET = {"before": MOMENT, "after": {**MOMENT, "clocks_mhz": [2390.0, 2400.0]}, "duration_s": 1.0, "energy_j": 3.0,
         "energy_source": "RAPL package", "power_w": 3.0, "foreign_cpu_share": 0.01, "steal_share": 0.0,
         "quota_throttled_s": 0.0, "throttled": False, "memory_available_bytes": 4_000_000_000}
ROUND = {"latencies_ns": [10 * MS] * 20, "samples_per_query": 2, "warmup": {"seconds": 0.3, "steady": True},
         "telemetry": QUIET}


def rounds(change: Callable[[list[dict[str, Any]]], None] = lambda rounds: None) -> list[dict[str, Any]]:
    """Six quiet processes, changed."""
    found = [copy.deepcopy(ROUND) for _ in range(6)]
    change(found)
    return found


def found_in(results: list[dict[str, Any]], *, gpu: bool = False) -> tuple[Mark, ...]:
    time = latency([result["latencies_ns"] for result in results])
    return marks(time, results, conditions(results, gpu=gpu), gpu=gpu)


def telemetry(index: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda results: results[index]["telemetry"].update(values)


def every(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(results: list[dict[str, Any]]) -> None:
        for result in results:
            result["telemetry"].update(values)

    return change


def moment(index: int, side: str, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda results: results[index]["telemetry"][side].update(values)


def test_a_quiet_machine_has_no_mark_and_its_conditions_are_told() -> None:
    assert found_in(rounds()) == ()
    found = conditions(rounds())
    assert found is not None
    assert (found.clock_mhz_before, found.clock_mhz_after) == (2400.0, 2400.0)
    assert (found.temperature_c_before, found.temperature_c_after) == (51.5, 51.5)
    assert (found.spin_change, found.throttled, found.power_mode, found.power_w) == (0.0, False, "15W", 3.0)
    assert (found.foreign_cpu_share, found.steal_share) == (0.01, 0.0)
    assert found.memory_available_bytes == 4_000_000_000
    # six times 3 J over six times 20 queries of 2 samples
    assert (found.energy_per_inference_mj, found.energy_source) == (75.0, "RAPL package")


@pytest.mark.parametrize(("change", "reason"), [
    (telemetry(2, throttled=True), "the machine was throttled in 1 of 6 processes"),
    (lambda r: (telemetry(2, throttled=True)(r), moment(2, "after", throttle_reasons=["soft temperature limit"])(r)),
     "the machine was throttled in 1 of 6 processes (soft temperature limit)"),
    (moment(4, "after", clocks_mhz=[2250.0, 2270.0]), "the clock went from 2270 to 2400 MHz between the processes"),
    (moment(0, "after", spin_ns=1_060_000.0),
     "the clock drifted: a fixed loop took up to 6% longer than at its fastest"),
    (every(foreign_cpu_share=0.31), "foreign load: others took 31% of all cores' time"),
    (every(foreign_cpu_share=0.31, steal_share=0.004), "foreign load: others took 31% of all cores' time"),
    (every(foreign_cpu_share=0.31, steal_share=0.2),
     "foreign load: others took 31% of all cores' time, the hypervisor 20%"),
    (moment(5, "after", power_mode="MAXN"), "the power mode was changed: 15W, then MAXN"),
])  # fmt: skip
def test_invalid(change: Callable[[list[dict[str, Any]]], None], reason: str) -> None:
    assert found_in(rounds(change)) == (Mark(kind="INVALID", reason=reason),)


@pytest.mark.parametrize("change", [
    moment(4, "before", clocks_mhz=[900.0, 800.0]),              # before the timing, cores are asleep
    moment(4, "after", clocks_mhz=[2300.0]),                     # within 5 %
    moment(0, "after", spin_ns=1_049_000.0),
    telemetry(3, foreign_cpu_share=0.9),                         # one process of six does not move a median
    moment(4, "after", gpu_clock_mhz=300.0),                     # an engine on the CPU does not care
    every(throttled=None, foreign_cpu_share=None, energy_j=None, steal_share=None),
    lambda results: [result.update(telemetry=None) for result in results],
])  # fmt: skip
def test_no_mark_without_a_reason(change: Callable[[list[dict[str, Any]]], None]) -> None:
    assert found_in(rounds(change)) == ()


def test_the_clock_of_a_gpu_engine_is_the_gpus() -> None:
    changed = rounds(moment(4, "after", gpu_clock_mhz=900.0))
    assert [mark.reason for mark in found_in(changed, gpu=True)] == [
        "the clock went from 900 to 1300 MHz between the processes"]
    slowed = rounds(moment(4, "after", clocks_mhz=[900.0]))
    assert found_in(slowed, gpu=True) == ()


def test_what_cannot_be_read_is_none() -> None:
    nothing = dict.fromkeys(MOMENT)
    blind = {**dict.fromkeys(QUIET), "before": nothing, "after": nothing}
    found = conditions([{**ROUND, "telemetry": blind}])
    assert found is not None
    assert set(vars(found).values()) == {None}
    assert conditions([{**ROUND, "telemetry": None}]) is None
    partly = rounds(telemetry(1, energy_j=None))
    assert conditions(partly).energy_per_inference_mj is None  # type: ignore[union-attr]
    assert conditions(rounds(telemetry(1, throttled=None))).throttled is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("medians", "reason"), [
    ((100, 100, 100, 100, 100, 102), None),
    ((100, 100, 100, 100, 100, 103), "the interval of p50 reaches from +0.0% to +3.0% of it"),
    ((97, 100, 100, 100, 100, 100), "the interval of p50 reaches from -3.0% to +0.0% of it"),
])  # fmt: skip
def test_a_wide_interval_is_unstable(medians: tuple[int, ...], reason: str | None) -> None:
    results = rounds()
    for result, median in zip(results, medians, strict=True):
        result["latencies_ns"] = [median * MS] * 20
    assert found_in(results) == (() if reason is None else (Mark(kind="UNSTABLE", reason=reason),))


@pytest.mark.parametrize(("count", "many"), [(1, "one process is"), (5, "5 processes are")])
def test_too_few_processes_for_an_interval_are_unstable(count: int, many: str) -> None:
    """Their range is no interval of 95 %, and of one process it has no width at all."""
    assert found_in(rounds()[:count]) == (
        Mark(kind="UNSTABLE", reason=f"{many} too few for an interval of 95%, which takes 6"),)


def test_energy_is_of_the_processes_that_were_watched() -> None:
    found = conditions(rounds(lambda results: results[0].update(telemetry=None)))
    assert found is not None
    assert found.energy_per_inference_mj == 75.0


def test_a_process_that_did_not_settle_is_unstable() -> None:
    results = rounds()
    results[1]["warmup"] = {"seconds": 3.04, "steady": False}
    assert found_in(results) == (
        Mark(kind="UNSTABLE", reason="1 of 6 processes were not steady after 3.0 s of warm-up"),)


def test_a_busy_process_beside_is_foreign_load() -> None:
    """Nothing faked: one process per core computes while this one sleeps, so that they get half of its time."""
    if not Path("/proc/stat").is_file():
        pytest.skip("no /proc/stat: the CPU time of others cannot be read")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        meter = Telemetry()
        meter.start()
        busy[0].poll()
        with pytest.raises(subprocess.TimeoutExpired):
            busy[0].wait(0.5)
        seen = meter.stop()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert seen["foreign_cpu_share"] > 0.25
    reasons = [mark.reason for mark in found_in([{**ROUND, "telemetry": seen}])]
    assert [reason for reason in reasons if reason.startswith("foreign load: others took")]


def test_this_process_and_its_threads_are_not_foreign() -> None:
    """Nothing faked: a thread per core leaves no core idle, whoever else computes, so own and foreign make up it all.

    Were the threads' own time foreign too, the two would be more than all there is.
    """
    if not Path("/proc/stat").is_file():
        pytest.skip("no /proc/stat: the CPU time of others cannot be read")
    cores, meter, end = len(os.sched_getaffinity(0)), Telemetry(), threading.Event()

    def compute() -> None:
        while not end.is_set():
            hashlib.sha256(bytes(1 << 20)).digest()     # lets the other threads run

    meter.start()
    own_s, threads = time.process_time(), [threading.Thread(target=compute) for _ in range(cores)]
    for thread in threads:
        thread.start()
    end_timer = threading.Timer(1.0, end.set)
    end_timer.start()
    for thread in [*threads, end_timer]:
        thread.join()
    seen, own_s = meter.stop(), time.process_time() - own_s
    own = own_s / (cores * seen["duration_s"])
    assert own > 0.05
    assert own + seen["foreign_cpu_share"] <= 1.05
