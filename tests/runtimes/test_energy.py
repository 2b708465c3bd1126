"""Meters, against imitated counters, rails and a recorded stream."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from runtimes import energy as module
from runtimes.energy import RailMeter, RaplMeter, TegrastatsMeter, integrate, module_rails
from tests.runtimes.fake_root import write_files, write_program

RAPL = "sys/class/powercap/intel-rapl:"
RAILS = "sys/class/hwmon/hwmon1/"


def rapl(root: Path, *energies_uj: int) -> None:
    """Packages with their counters, and the zones beside them that must not be counted."""
    for number, energy in enumerate(energies_uj):
        write_files(root, {
            f"{RAPL}{number}/name": f"package-{number}", f"{RAPL}{number}/energy_uj": energy,
            f"{RAPL}{number}/max_energy_range_uj": 262143328850,
            f"{RAPL}{number}:0/name": "core", f"{RAPL}{number}:0/energy_uj": energy // 2,
            "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
            "sys/class/powercap/intel-rapl-mmio:0/energy_uj": energy,
            f"{RAPL}7/name": "psys", f"{RAPL}7/energy_uj": energy * 3,
        })  # fmt: skip


def rails(root: Path, **watts: float) -> None:
    """An INA3221 at 5 volts with these rails; its fourth channel is the kernel's sum of shunt voltages."""
    files: dict[str, object] = {RAILS + "name": "ina3221", RAILS + "in7_label": "sum of shunt voltages"}
    for number, (name, value) in enumerate(watts.items(), 1):
        files |= {f"{RAILS}in{number}_label": name, f"{RAILS}in{number}_input": 5000,
                  f"{RAILS}curr{number}_input": round(value * 200)}  # fmt: skip
    write_files(root, files)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time that the meters see, in seconds; a span is from 0 to ``clock["s"]``."""
    now = {"s": 0.0}
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: int(now["s"] * 1e9))
    return now


def test_rapl_adds_up_the_packages_alone(tmp_path: Path, clock: dict[str, float]) -> None:
    rapl(tmp_path, 5_000_000, 1_000_000)
    meter = RaplMeter(tmp_path)
    assert meter.start()
    clock["s"] = 0.1
    rapl(tmp_path, 8_000_000, 1_500_000)
    assert meter.stop() == pytest.approx(3.5)
    assert meter.source == "RAPL package-0 + package-1"


def test_rapl_counter_that_ran_over_its_end(tmp_path: Path, clock: dict[str, float]) -> None:
    rapl(tmp_path, 262143328850 - 2_000_000)
    meter = RaplMeter(tmp_path)
    assert meter.start()
    clock["s"] = 1
    rapl(tmp_path, 1_000_000)
    assert meter.stop() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("span_s", "first_j", "last_j", "joules"),
    [
        (60, 1000, 1600, 600),
        (436, 1000, 7000, 6000),        # 436 s x 600 W = 261.6 kJ: it cannot have run round
        (480, 1000, 7000, None),        # 6 kJ, or 268: nobody knows
        (60, 261_000, 857, 2000),       # round once: 1143 to its end at 262143, and then 857
        (60, 7000, 1000, None),         # set back: 256 kJ in a minute would be 4 kW
        (60, 1000, 1000, None),         # it stands still: a machine that runs takes more than nothing
        (60, 1000, 50_000, None),       # 817 W
        (0.001, 1000, 1000.5, 0.5),     # the counter moves by steps
    ],
)  # fmt: skip
def test_rapl_says_only_what_it_can_know(
    tmp_path: Path, clock: dict[str, float], span_s: float, first_j: float, last_j: float, joules: float | None
) -> None:
    zone = {f"{RAPL}0/name": "package-0", f"{RAPL}0/max_energy_range_uj": 262_143_000_000}
    write_files(tmp_path, {**zone, f"{RAPL}0/energy_uj": int(first_j * 1e6)})
    meter = RaplMeter(tmp_path)
    assert meter.start()
    write_files(tmp_path, {f"{RAPL}0/energy_uj": int(last_j * 1e6)})
    clock["s"] = span_s
    assert meter.stop() == (None if joules is None else pytest.approx(joules))


def test_rapl_that_ran_over_an_unknown_end_is_not_measured(tmp_path: Path) -> None:
    rapl(tmp_path, 5)
    (tmp_path / f"{RAPL}0/max_energy_range_uj").unlink()
    meter = RaplMeter(tmp_path)
    assert meter.start()
    rapl_file = tmp_path / f"{RAPL}0/energy_uj"
    rapl_file.write_text("4\n")
    assert meter.stop() is None
    rapl_file.unlink()
    assert meter.stop() is None


def test_rapl_that_cannot_be_read_is_no_meter(tmp_path: Path) -> None:
    assert not RaplMeter(tmp_path).start()
    rapl(tmp_path, 5, 6)
    (tmp_path / f"{RAPL}1/energy_uj").unlink()      # half of the machine would be a wrong figure
    assert not RaplMeter(tmp_path).start()


@pytest.mark.parametrize(
    ("samples", "joules"),
    [([], 0), ([(5, 9.0)], 0), ([(0, 2.0), (10**9, 4.0)], 3), ([(0, 5.0), (10**9, 5.0), (3 * 10**9, 11.0)], 21)],
)
def test_integrate_is_the_trapezoid_rule(samples: list[tuple[int, float]], joules: float) -> None:
    assert integrate(samples) == pytest.approx(joules)


@pytest.mark.parametrize(
    ("present", "used"),
    [
        ("VDD_IN VDD_CPU_GPU_CV VDD_SOC", "VDD_IN"),
        ("VDD_GPU_SOC VDD_CPU_CV VIN_SYS_5V0 VDDQ_VDD2_1V8AO", "VDD_GPU_SOC VDD_CPU_CV VIN_SYS_5V0"),
        ("VDD_GPU VDD_CPU_SOC_MSS VIN_SYS_5V0 VIN", "VDD_GPU VDD_CPU_SOC_MSS VIN_SYS_5V0"),
        ("GPU CPU SOC CV VDDRQ SYS5V", "GPU CPU SOC CV VDDRQ SYS5V"),
        ("VDD_GPU_SOC VDD_CPU_CV", ""),
        ("", ""),
    ],
)
def test_the_rails_of_a_module(present: str, used: str) -> None:
    assert module_rails(present.split()) == tuple(used.split())


def test_rails_are_integrated_over_the_time_between_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rails(tmp_path, VDD_IN=10, VDD_CPU_GPU_CV=4, VDD_SOC=2)
    now = {"ns": 0}
    monkeypatch.setattr(module, "SAMPLES_PER_SECOND", 1e-3)    # no sample but the first and the last
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: now["ns"])
    meter = RailMeter(tmp_path)
    assert meter.start()
    rails(tmp_path, VDD_IN=20, VDD_CPU_GPU_CV=4, VDD_SOC=2)
    now["ns"] = 2_000_000_000
    assert meter.stop() == pytest.approx(30)        # 10 W rising to 20 W in two seconds
    assert meter.source == "INA3221 VDD_IN"


def test_rails_are_sampled_by_a_thread_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rails(tmp_path, VDD_GPU_SOC=3, VDD_CPU_CV=1, VIN_SYS_5V0=4)
    monkeypatch.setattr(module, "SAMPLES_PER_SECOND", 200)
    meter, threads = RailMeter(tmp_path), threading.active_count()
    begin = time.perf_counter()
    assert meter.start()
    assert threading.active_count() == threads + 1
    while len(meter._samples) < 5 and time.perf_counter() - begin < 10:
        time.sleep(0.01)
    joules = meter.stop()
    assert threading.active_count() == threads
    assert len(meter._samples) >= 6
    assert joules == pytest.approx(8 * (meter._samples[-1][0] - meter._samples[0][0]) / 1e9)
    assert meter.stop() is None


@pytest.mark.parametrize("watts", [0, -3])
def test_rails_that_say_nothing_is_used_are_not_measured(tmp_path: Path, watts: float) -> None:
    rails(tmp_path, VDD_IN=watts)
    meter = RailMeter(tmp_path)
    assert meter.start()
    assert meter.stop() is None


def test_rails_that_stop_answering_are_not_measured(tmp_path: Path) -> None:
    rails(tmp_path, VDD_IN=10)
    meter = RailMeter(tmp_path)
    assert meter.start()
    (tmp_path / RAILS / "curr1_input").unlink()
    assert meter.stop() is None


def test_no_rails_and_no_thread_elsewhere(tmp_path: Path) -> None:
    threads = threading.active_count()
    write_files(tmp_path, {RAILS + "name": "nvme", RAILS + "in1_label": "VDD_IN", RAILS + "in1_input": 1,
                           RAILS + "curr1_input": 1})  # fmt: skip
    assert not RailMeter(tmp_path).start()
    rails(tmp_path, VDD_SOMETHING=3)
    assert not RailMeter(tmp_path).start()
    rails(tmp_path, VDD_IN=3)
    (tmp_path / RAILS / "in1_input").write_text("\n")
    assert not RailMeter(tmp_path).start()
    assert threading.active_count() == threads


def tegrastats(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called tegrastats, on the PATH, and the root of a Jetson."""
    write_program(folder / "bin/tegrastats", script)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    return write_files(folder / "root", {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"})


def test_tegrastats_is_read_while_it_runs_and_then_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ("assert sys.argv[1:] == ['--interval', '100']\n"
              "while True:\n"
              "    print('RAM 1/2MB VDD_IN 7000mW/1mW VDD_CPU_GPU_CV 3000mW/1mW VDD_SOC 1mW/1mW', flush=True)\n"
              "    time.sleep(0.02)")  # fmt: skip
    meter = TegrastatsMeter(tegrastats(tmp_path, script, monkeypatch))
    begin = time.perf_counter()
    assert meter.start()
    while len(meter._samples) < 4 and time.perf_counter() - begin < 20:
        time.sleep(0.01)
    process = meter._process
    joules = meter.stop()
    span = time.perf_counter() - begin
    assert joules == pytest.approx(7 * span, rel=0.2)
    assert meter.source == "tegrastats VDD_IN"
    assert process is not None
    assert process.poll() is not None
    assert meter.stop() is None


@pytest.mark.parametrize(
    "script", ["sys.exit('not permitted')", "print('VDD_IN 7000mW/1mW')", "print('GPU 1mW')\n" * 3]
)
def test_tegrastats_that_tells_too_little_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    meter = TegrastatsMeter(tegrastats(tmp_path, script, monkeypatch))
    assert meter.start()
    time.sleep(0.2)
    assert meter.stop() is None


def test_tegrastats_is_not_run_elsewhere_nor_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tegrastats(tmp_path, "raise SystemExit", monkeypatch)
    assert not TegrastatsMeter(tmp_path / "bin").start()
    monkeypatch.setenv("PATH", str(tmp_path))
    meter = TegrastatsMeter(root)
    assert not meter.start()
