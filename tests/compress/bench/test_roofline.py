"""Shares of the roofline, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.bench.agent import AgentError
from compress.bench.config import Candidate
from compress.bench.figures import latency
from compress.bench.layers import by_component
from compress.bench.machines import Machine
from compress.bench.record import BenchRecord, BenchRow, LayerRow, Peak
from compress.bench.roofline import add_rooflines, with_roofline
from compress.targets import Target, targets
from runtimes.engine import Engine
from runtimes.engineset import EngineSet
from runtimes.spec import Dim, TensorSpec

TARGET, JETSON = targets()["onnxruntime-cpu"], targets()["jetson-orin-nano"]
INPUTS = (TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 2, 8), 4)),)
ENGINE = Engine(path=Path("engine"), digest="0" * 64, backend="onnxruntime", device="CPU", precision="int8",
                entry="model.onnx", inputs=INPUTS, outputs=(), options={}, source="", built_with={}, state="runnable")
PEAKS = {"int8": Peak(macs_per_s=100e9, source="measured", note="n"),
         "f32": Peak(macs_per_s=20e9, source="measured", note="n")}


def layer(component: str, kind: str, precision: str, time_us: float | None, macs: int | None) -> LayerRow:
    return LayerRow(name="n", type=kind, precision=precision, time_us=time_us, component=component, macs=macs)


# 300 M in int8 take 3 ms at the peak, 20 M in f32 1 ms: 4 of the 8 ms it took.
LAYERS = (layer("vision", "MatMul", "int8", 5000.0, 300_000_000), layer("vision", "Add", "f32", 1000.0, None),
          layer("head", "Gemm", "f32", 1250.0, 20_000_000), layer("text", "LSTM", "f32", 500.0, None))


def row(layers: tuple[LayerRow, ...] = LAYERS, **more: Any) -> BenchRow:
    what = {"name": "small", "role": "shipped", "target": TARGET.name, "backend": "onnxruntime", "precision": "int8",
            "digest": "0" * 64, "state": "runnable", "status": "measured", "size_bytes": 9, "machine": "here",
            "latency_ms": latency([[8_000_000] * 9] * 6), "layers": layers, "components": by_component(layers)}
    return BenchRow(**{**what, **more})


def candidate(target: Target = TARGET) -> Candidate:
    return Candidate(name="small", role="shipped", engines=EngineSet(engines={"forward": ENGINE}), target=target)


def peak_of(target: Target, precision: str) -> Peak | None:
    return PEAKS.get(precision)


def test_the_share_of_an_engine_and_of_its_components() -> None:
    found = with_roofline(row(), candidate(), peak_of)
    assert found.roofline is not None
    assert found.roofline.share == pytest.approx(0.5)
    assert found.roofline.macs == {"f32": 20_000_000, "int8": 300_000_000}
    assert (found.roofline.peaks, found.roofline.uncounted) == (PEAKS, 1)   # the LSTM's shapes do not tell its work
    assert {name: part.roofline for name, part in found.components.items()} == {
        "vision": pytest.approx(0.5), "head": pytest.approx(0.8), "text": None}


def test_without_a_peak_of_one_precision_the_rest_is_a_lower_bound() -> None:
    found = with_roofline(row(), candidate(), lambda target, precision: PEAKS["int8"] if precision == "int8" else None)
    assert found.roofline is not None
    assert found.roofline.share == pytest.approx(3 / 8)
    assert found.roofline.uncounted == 2
    assert found.components["head"].roofline is None


@pytest.mark.parametrize("change", [
    {"latency_ms": None}, {"layers": ()}, {"batch": 16}], ids=["no time", "no layers", "a query run in parts"])
def test_no_share(change: dict[str, Any]) -> None:
    unchanged = row(**change)
    assert with_roofline(unchanged, candidate(), peak_of) is unchanged


def test_no_peak_at_all() -> None:
    unchanged = row()
    assert with_roofline(unchanged, candidate(), lambda *_: None) is unchanged


def record(*rows: BenchRow) -> BenchRecord:
    return BenchRecord(metric="accuracy", config={"threads": 2}, machines={"here": {"cpu": "a CPU"}}, versions={},
                       baselines={}, data=None, order=(), rows=rows)


class Agent:
    """Every product takes 10 ms, in the precision its engine was built for."""

    def __init__(self) -> None:
        self.engines: list[str] = []

    def __call__(self, job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        self.engines.append(Path(job["engines"]["product"]).parent.name)
        precision = "int8" if "int8" in self.engines[-1] else "f32"
        return {"layers": [{"name": "p", "type": "MatMul", "precision": precision, "time_us": 10_000.0}],
                "latencies_ns": [10_000_000]}


def test_each_peak_is_measured_once_for_all_rows(tmp_path: Path) -> None:
    agent = Agent()
    elsewhere = row(name="other", machine="elsewhere")
    made = add_rooflines(record(row(), row(), elsewhere), [candidate()], Machine(name="here", agent=agent, threads=2),
                         cache=tmp_path)
    assert sorted(agent.engines) == ["onnxruntime-f32"] * 3 + ["onnxruntime-int8"] * 3
    first, second, other = made.rows
    assert first.roofline == second.roofline
    assert first.roofline is not None
    assert first.roofline.share == pytest.approx(320e6 / (1024**3 / 0.01) / 0.008)
    assert other is elsewhere


def test_a_device_lost_meanwhile_leaves_the_datasheet(tmp_path: Path) -> None:
    class Gone(AgentError):  # noqa: N818 - as compress.device.DeviceLost
        """The device went away."""

    calls = []

    def agent(job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        calls.append(job)
        raise Gone("nothing came for 15 s")

    machine = Machine(name="here", agent=agent, threads=2, lost=Gone)
    target = replace(TARGET, int8_tops=0.2)
    (found,) = add_rooflines(record(row()), [candidate(target)], machine, cache=tmp_path).rows
    assert len(calls) == 1
    assert found.roofline is not None
    assert {name: peak.source for name, peak in found.roofline.peaks.items()} == {"int8": "datasheet"}
    assert found.roofline.share == pytest.approx(3 / 8)
