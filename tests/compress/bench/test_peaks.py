"""Peaks: real products through two backends, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compress.bench.agent import AgentError
from compress.bench.machines import Machine, this_machine
from compress.bench.peaks import datasheet_peak, machine_peak
from compress.bench.record import Peak
from compress.targets import Target, targets
from runtimes.machine import machine_facts

FACTS = {"cpu": "a CPU", "backends": {"onnxruntime": "1.31"}}
ORT, OPENVINO, JETSON = (targets()[name] for name in ("onnxruntime-cpu", "openvino-cpu", "jetson-orin-nano"))


class Agent:
    """Says that the product took ``time_us`` in ``precision``, and whole runs of 4 and 3 ms."""

    def __init__(self, precision: str, time_us: float | None = 2000.0, foreign: float | None = None) -> None:
        self.layer = {"name": "product", "type": "MatMul", "precision": precision, "time_us": time_us,
                      "seen": "kernel brgemm_i8, operands u8 and i8"}
        self.foreign, self.jobs = foreign, list[Mapping[str, Any]]()

    def __call__(self, job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        self.jobs.append(job)
        return {"layers": [{**self.layer, "type": "Reorder"}, self.layer], "latencies_ns": [4_000_000, 3_000_000],
                "telemetry": {"foreign_cpu_share": self.foreign}}


def peak(agent: Agent, tmp_path: Path, precision: str = "int8", *, target: Target = ORT, threads: int = 2,
         facts: Mapping[str, Any] = FACTS, machine: Machine | None = None) -> Peak | None:
    machine = machine or Machine(name="here", agent=agent, threads=2)
    return machine_peak(target, precision, machine, facts, tmp_path / f"work-{len(agent.jobs)}", threads=threads,
                        cache=tmp_path / "cache", size=64)


def test_the_fastest_counts_and_is_kept(tmp_path: Path) -> None:
    agent = Agent("int8")
    found = peak(agent, tmp_path)
    assert found == Peak(
        macs_per_s=64**3 / 2e-3, source="measured",
        note="product of 64 x 64 matrices, which ran in int8 as MatMul, kernel brgemm_i8, 2 threads, "
             "the fastest run of 3 processes")
    assert [(job["threads"], job["layers"]) for job in agent.jobs] == [(2, True)] * 3
    assert peak(agent, tmp_path) == found
    assert len(agent.jobs) == 3
    for change in ({"threads": 1}, {"facts": {**FACTS, "cpu": "another"}}):
        peak(agent, tmp_path, **change)  # type: ignore[arg-type]
    assert len(agent.jobs) == 9
    moment = {**FACTS, "clocks_mhz": [1.0], "load_average": [2.0]}
    assert peak(agent, tmp_path, facts=moment) == found
    assert len(agent.jobs) == 9


def test_a_damaged_entry_of_the_cache_is_measured_again(tmp_path: Path) -> None:
    agent = Agent("int8")
    found = peak(agent, tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    for text in ("{", "[]", json.dumps({**json.loads(file.read_text()), "of": {}})):
        file.write_text(text)
        before = len(agent.jobs)
        assert peak(agent, tmp_path) == found
        assert len(agent.jobs) == before + 3


def test_a_run_faster_than_the_profile_says(tmp_path: Path) -> None:
    found = peak(Agent("int8", time_us=5000.0), tmp_path)
    assert found is not None
    assert found.macs_per_s == 64**3 / 3e-3


def test_a_product_in_another_precision_gives_no_peak(tmp_path: Path) -> None:
    """The engine asked for int8 and the backend computed in float: the peak of int8 is not known."""
    assert peak(Agent("f32"), tmp_path) is None
    assert not (tmp_path / "cache").exists()


def test_a_peak_beside_others_is_used_and_not_kept(tmp_path: Path) -> None:
    found = peak(Agent("int8", foreign=0.4), tmp_path)
    assert found is not None
    assert found.busy
    assert found.note.endswith("the fastest run of 3 processes, others took 40% of the machine meanwhile: not kept")
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    class Gone(AgentError):  # noqa: N818 - as compress.device.DeviceLost
        """The device went away."""

    agent = Agent("int8")
    assert peak(agent, tmp_path, "i64") is None
    assert peak(agent, tmp_path, "f16") is None             # ONNX Runtime's CPU has no half kernels
    assert peak(agent, tmp_path, machine=Machine(name="e", agent=agent, threads=1, emulated=True)) is None
    assert peak(agent, tmp_path, target=JETSON) is None     # nothing here that builds its engine
    assert agent.jobs == []

    def fails(job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        raise AgentError("killed")

    def lost(job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        raise Gone("nothing came for 15 s")

    assert peak(agent, tmp_path, machine=Machine(name="m", agent=fails, threads=1, lost=Gone)) is None
    with pytest.raises(Gone, match="nothing came"):
        peak(agent, tmp_path / "again", machine=Machine(name="m", agent=lost, threads=1, lost=Gone))


def test_datasheets() -> None:
    """33 TOPS are 16.5 T multiply-accumulates; the vendor gives no fp32 rate."""
    assert datasheet_peak(JETSON, "int8") == Peak(
        macs_per_s=16.5e12, source="datasheet", note="33 TOPS dense, the row jetson-orin-nano")
    assert datasheet_peak(JETSON, "f16") == Peak(
        macs_per_s=8.5e12, source="datasheet", note="17 TFLOPS dense, the row jetson-orin-nano")
    assert datasheet_peak(JETSON, "f32") is None
    assert datasheet_peak(ORT, "int8") is None


@pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda target: target.name)
@pytest.mark.parametrize("precision", ["int8", "f32"])
def test_a_real_product_runs_in_the_precision_asked(target: Target, precision: str, tmp_path: Path) -> None:
    found = machine_peak(target, precision, this_machine(), machine_facts(), tmp_path, threads=1,
                         cache=tmp_path / "cache", size=256)
    assert found is not None
    assert f"which ran in {precision} as " in found.note
    assert 1e8 < found.macs_per_s < 1e13
