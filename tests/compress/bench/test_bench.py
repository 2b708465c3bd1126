"""The orchestration: what is run in which order, what becomes of failures, and real engines in real processes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.dataset import CalibrationSet, open_set
from compress.bench import BenchConfig, BenchRecord, Candidate, bench
from compress.bench.agent import AgentError
from compress.bench.machines import Machine, this_machine
from compress.bench.record import BenchRow, Role
from compress.errors import CompressError
from compress.metrics import Metric, get_metric
from compress.targets import get_target
from runtimes.arrays import write_batches
from runtimes.engine import Engine, Precision, write_engine
from runtimes.engineset import EngineSet
from runtimes.spec import Dim, TensorSpec

MS = 1_000_000
GRAPH = "forward"
INPUTS = (TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 1, 8), 4)),)
OUTPUTS = (TensorSpec(name="output", dtype="float32", shape=(Dim("batch", 1, 1, 8), 3)),)
FEED = {"x": np.ones((1, 4), np.float32)}
RESULT = {"load_ms": 5.0, "peak_memory_bytes": 1000, "layers": None, "latencies_ns": None, "versions": {"numpy": "2"},
          "machine": {"cpu": "a CPU"}, "samples_per_query": None, "warmup": None, "telemetry": None}


def candidate(
    folder: Path, name: str, role: Role = "candidate", precision: Precision = "fp32", state: str = "runnable",
    target: str = "onnxruntime-cpu", model: bytes | None = None, asked: dict[str, str] | None = None,
) -> Candidate:
    path = folder / name
    path.mkdir()
    (path / "model.onnx").write_bytes(name.encode() if model is None else model)
    engine = write_engine(
        path, backend="onnxruntime", device="CPU", precision=precision, entry="model.onnx", inputs=INPUTS,
        outputs=OUTPUTS, options={}, source="0" * 64, built_with={}, state=state)
    return Candidate(name=name, role=role, engines=EngineSet(engines={GRAPH: engine}), target=get_target(target),
                     asked={} if asked is None else {GRAPH: asked})


@pytest.fixture
def data(tmp_path: Path) -> CalibrationSet:
    """Twenty samples of class 0, 1, 2, 0, ...: the class is where x has its one, the fourth column is noise."""
    rng = np.random.default_rng(0)
    target = np.arange(20) % 3
    x = np.concatenate([np.eye(3, dtype=np.float32)[target], rng.random((20, 1), np.float32)], axis=1)
    folder = tmp_path / "validation"
    folder.mkdir()
    np.savez(folder / "0.npz", x=x[:12], target=target[:12])
    np.savez(folder / "1.npz", x=x[12:], target=target[12:])
    return open_set(folder, INPUTS)


class FakeAgent:
    """Answers as the measuring process does: ``wrong`` samples of each engine are off, each run takes ``ms``."""

    def __init__(self, candidates: list[Candidate], ms: Mapping[str, float], wrong: Mapping[str, int]) -> None:
        self.names = {str(engine.path): one.name for one in candidates for engine in one.engines.engines.values()}
        self.engines = {one.name: one.engines for one in candidates}
        self.ms, self.wrong = ms, wrong
        self.calls: list[tuple[str, str]] = []
        self.answers = 4            # classes in the outputs
        self.values: dict[str, float] = {}   # the score of the answer, where it is not 1
        self.fail: dict[tuple[str, str], AgentError | dict[str, Any]] = {}

    def __call__(self, job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        name, step = self.names[job["engines"][GRAPH]], folder.name
        self.calls.append((name, step))
        answer = self.fail.get((name, step), {})
        if isinstance(answer, AgentError):
            raise answer
        result = {**RESULT, "digest": self.engines[name].digest}
        if job["outputs"]:
            target = np.concatenate([np.load(shard)["target"] for shard in job["outputs"]["shards"]])
            target[:self.wrong.get(name, 0)] += 1
            folder.mkdir(parents=True)
            scores = np.eye(self.answers, dtype=np.float32)[target]
            scores[scores == 1] = self.values.get(name, 1)
            write_batches(Path(job["outputs"]["into"]), [{"output": scores}])
        if job["latency"]:
            result["latencies_ns"] = [int(self.ms[name] * MS)] * 120
            result["samples_per_query"] = job["latency"]["samples_per_query"]
            result["warmup"] = {"seconds": 0.3, "steady": True}
        if job["layers"]:
            result["layers"] = [{"graph": GRAPH, "name": "head", "type": "MatMul", "precision": "f32", "time_us": 1.0}]
        return {**result, **answer}


def run(
    candidates: list[Candidate], data: CalibrationSet | None, tmp_path: Path, agent: FakeAgent, restarts: int = 2,
    **more: Any,
) -> BenchRecord:
    return bench(candidates, feed=FEED, data=data, metric=get_metric("accuracy"), baseline="original",
                 config=BenchConfig(restarts=restarts, threads=1), workdir=tmp_path / "work",
                 **{"machine": this_machine(agent), **more})


def by_name(record: BenchRecord) -> dict[str, BenchRow]:
    return {row.name: row for row in record.rows}


def test_order_is_abba_after_the_accuracy(tmp_path: Path, data: CalibrationSet) -> None:
    candidates = [candidate(tmp_path, name) for name in ("original", "small", "int8")]
    agent = FakeAgent(candidates, {"original": 9, "small": 5, "int8": 3}, {})
    told: list[tuple[int, int, str]] = []
    record = run(candidates, data, tmp_path, agent, progress=lambda *what: told.append(what))
    forward = ["original", "small", "int8"]
    assert agent.calls == ([(name, "accuracy") for name in forward] + [(name, "round-0") for name in forward]
                           + [(name, "round-1") for name in forward[::-1]])
    assert record.order == tuple((name, int(step[-1])) for name, step in agent.calls[3:])
    assert told[0] == (0, 9, "original: accuracy")
    assert told[-1] == (9, 9, "done")


def test_figures_of_the_rows(tmp_path: Path, data: CalibrationSet) -> None:
    candidates = [candidate(tmp_path, "original", "original"), candidate(tmp_path, "original bf16", "original", "bf16"),
                  candidate(tmp_path, "int8", "shipped", "int8", asked={"head": "logits"})]
    agent = FakeAgent(candidates, {"original": 9, "original bf16": 4.5, "int8": 3}, {"int8": 5, "original": 1})
    record = run(candidates, data, tmp_path, agent, restarts=6)
    rows = by_name(record)
    int8 = rows["int8"]
    assert int8.status == "measured"
    assert int8.latency_ms is not None
    assert (int8.latency_ms.p50, int8.latency_ms.p99, int8.throughput_per_s) == (3.0, 3.0, pytest.approx(1000 / 3))
    assert {key: (gain.against, gain.ratio) for key, gain in int8.speedup.items()} == {
        "vs_original_fp32": ("original", 3.0), "vs_original_bf16": ("original bf16", 1.5)}
    assert set(rows["original"].speedup) == {"vs_original_bf16"}
    assert int8.accuracy is not None
    assert int8.accuracy.value == 0.75
    assert int8.accuracy.drop is not None
    assert int8.accuracy.drop.points == pytest.approx(20.0)
    assert int8.accuracy.drop.verdict == "undecidable at n=20"
    assert rows["original"].accuracy is not None
    assert rows["original"].accuracy.drop is None
    assert (int8.load_ms, int8.peak_memory_bytes, int8.precisions) == (5.0, 1000, {"f32": 1})
    assert int8.unexpected == ("head: MatMul in f32 (the backend gives no reason)",)
    assert rows["original"].unexpected is None
    assert int8.size_bytes == sum(path.stat().st_size for path in (tmp_path / "int8").iterdir())
    assert (record.machines, record.versions) == (
        {"local": {"cpu": "a CPU", "threads": 1}}, {"local": {"numpy": "2"}})
    assert record.data == {"name": "validation", "digest": data.digest, "count": 20}
    assert (record.config["threads"], record.config["batch"], record.config["duration_s"]) == (1, 1, 1.0)
    assert not list((tmp_path / "work").rglob("outputs.npz"))


def test_each_target_has_its_own_original(tmp_path: Path) -> None:
    """The OpenVINO row is compared with OpenVINO's original; a target without one, with the baseline."""
    candidates = [candidate(tmp_path, "original", "original"),
                  candidate(tmp_path, "ov", "original", target="openvino-cpu"),
                  candidate(tmp_path, "ov int8", target="openvino-cpu"), candidate(tmp_path, "rtx int8", target="rtx")]
    agent = FakeAgent(candidates, {"original": 9, "ov": 8, "ov int8": 4, "rtx int8": 3}, {})
    rows = by_name(run(candidates, None, tmp_path, agent))
    assert rows["ov int8"].speedup["vs_original_fp32"].against == "ov"
    assert rows["rtx int8"].speedup["vs_original_fp32"].against == "original"
    assert rows["ov int8"].accuracy is None


@pytest.mark.parametrize(("step", "failure", "reason"), [
    ("accuracy", AgentError("the process was killed by SIGSEGV"), "killed by SIGSEGV"),
    ("round-1", AgentError("no result after 2 s"), "no result after 2 s"),
    ("round-0", {"latencies_ns": []}, "timed no run"),
    ("accuracy", {"digest": "f" * 64}, "the process ran engine ffffffffffff, not .*: the files changed"),
    ("round-1", {"digest": "f" * 64}, "the process ran engine ffffffffffff"),
])
def test_a_failure_is_a_row_and_takes_no_further_time(
    tmp_path: Path, data: CalibrationSet, step: str, failure: AgentError | dict[str, Any], reason: str
) -> None:
    candidates = [candidate(tmp_path, "original"), candidate(tmp_path, "int8")]
    agent = FakeAgent(candidates, {"original": 9, "int8": 3}, {})
    agent.fail["int8", step] = failure
    rows = by_name(run(candidates, data, tmp_path, agent, restarts=3))
    assert agent.calls[-1][0] == "original"
    assert [name for name, _ in agent.calls].count("original") == 4
    assert agent.calls.index(("int8", step)) == max(i for i, call in enumerate(agent.calls) if call[0] == "int8")
    assert rows["original"].status == "measured"
    row = rows["int8"]
    assert (row.status, row.latency_ms, row.accuracy, row.speedup) == ("failed", None, None, {})
    assert row.reason is not None
    assert re.search(reason, row.reason)


def test_a_failed_baseline_leaves_the_others_without_comparison(tmp_path: Path, data: CalibrationSet) -> None:
    candidates = [candidate(tmp_path, "original"), candidate(tmp_path, "int8")]
    agent = FakeAgent(candidates, {"original": 9, "int8": 3}, {})
    agent.fail["original", "round-0"] = AgentError("crash")
    row = by_name(run(candidates, data, tmp_path, agent))["int8"]
    assert (row.status, row.speedup) == ("measured", {})
    assert row.accuracy is not None
    assert row.accuracy.drop is None


def test_what_cannot_run_here_keeps_its_state(tmp_path: Path) -> None:
    candidates = [candidate(tmp_path, "original"), candidate(tmp_path, "rtx", state="built, not run", target="rtx")]
    agent = FakeAgent(candidates, {"original": 9}, {})
    row = by_name(run(candidates, None, tmp_path, agent))["rtx"]
    assert (row.status, row.state, row.reason, row.latency_ms) == ("built, not run", "built, not run", None, None)
    assert {name for name, _ in agent.calls} == {"original"}


def test_outputs_the_metric_refuses_are_that_engines_failure(tmp_path: Path, data: CalibrationSet) -> None:
    candidates = [candidate(tmp_path, "original"), candidate(tmp_path, "int8")]
    agent = FakeAgent(candidates, {"original": 9, "int8": 3}, {"int8": 1})

    def certain(outputs: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        if outputs["output"].argmax(-1)[0] != target[0]:
            return np.full(len(target), np.nan)
        return np.ones(len(target))

    record = bench(candidates, feed=FEED, data=data, metric=Metric(name="certain", statistics=certain),
                   machine=this_machine(agent), baseline="original", config=BenchConfig(restarts=1),
                   workdir=tmp_path / "work")
    reason = (f"samples 0 to {len(data) - 1}: metric 'certain' gave nan for sample 0: a score must be finite "
              "(sample 0 fails by itself)")
    assert by_name(record)["int8"].reason == reason


def test_refusals(tmp_path: Path) -> None:
    original, int8 = candidate(tmp_path, "original"), candidate(tmp_path, "int8")
    agent = FakeAgent([original, int8], {}, {})
    with pytest.raises(CompressError, match="two candidates have one name"):
        run([original, original], None, tmp_path, agent)
    with pytest.raises(CompressError, match=r"baseline 'original' is not among the candidates \['int8'\]"):
        run([int8], None, tmp_path, agent)
    without = open_set([{"x": np.ones((2, 4), np.float32)}], INPUTS, name="photos")
    with pytest.raises(CompressError, match="'photos' has no targets"):
        run([original], without, tmp_path, agent)
    assert agent.calls == []


def test_without_an_original_nothing_is_compared(tmp_path: Path, data: CalibrationSet) -> None:
    """Two targets' engines without controls: the one is no original of the other, in speed as in score."""
    candidates = [candidate(tmp_path, "fast", "shipped", "int8", target="openvino-cpu"),
                  candidate(tmp_path, "original", "shipped", "int8")]
    agent = FakeAgent(candidates, {"original": 9, "fast": 3}, {"fast": 5})
    for row in run(candidates, data, tmp_path, agent).rows:
        assert row.speedup == {}
        assert row.accuracy is not None
        assert row.accuracy.drop is None


def test_a_half_precision_baseline_is_not_called_fp32(tmp_path: Path) -> None:
    candidates = [candidate(tmp_path, "original", "original", "bf16"),
                  candidate(tmp_path, "int8", "shipped", "int8", target="openvino-cpu")]
    rows = by_name(run(candidates, None, tmp_path, FakeAgent(candidates, {"original": 9, "int8": 3}, {})))
    assert set(rows["int8"].speedup) == {"vs_original_bf16"}


def test_an_engine_that_answers_nan_has_failed(tmp_path: Path, data: CalibrationSet) -> None:
    """``argmax`` takes the first NaN for the answer: an engine that collapsed would find every sample of class 0."""
    candidates = [candidate(tmp_path, "original"), candidate(tmp_path, "fp16", precision="fp16")]
    agent = FakeAgent(candidates, {"original": 9, "fp16": 3}, {})
    agent.values["fp16"] = np.nan
    row = by_name(run(candidates, data, tmp_path, agent))["fp16"]
    assert (row.status, row.accuracy) == ("failed", None)
    assert row.reason == "output 'output' is NaN for sample 0: what this engine computes is of no use"


class Gone(AgentError):  # noqa: N818 - as compress.device.DeviceLost
    """The device went away."""


def test_a_lost_device_keeps_the_rounds_that_were_done(tmp_path: Path, data: CalibrationSet) -> None:
    """Lost in the last round of three, while the second engine is timed, which is the first of that round."""
    candidates = [candidate(tmp_path, name) for name in ("original", "int8", "damaged")]
    agent = FakeAgent(candidates, {"original": 9, "int8": 3, "damaged": 1}, {})
    agent.fail["damaged", "accuracy"] = AgentError("no ONNX")
    agent.fail["original", "round-1"] = Gone("board: nothing came for 15 s")
    kept: list[BenchRecord] = []
    machine = Machine(name="board", agent=agent, threads=4, lost=Gone)
    record = run(candidates, data, tmp_path, agent, restarts=2, machine=machine, keep=kept.append)
    rows = by_name(record)
    assert not record.complete
    assert (record.machines, list(record.baselines)) == ({"board": {"cpu": "a CPU", "threads": 1}}, ["board"])
    original, int8 = rows["original"], rows["int8"]
    assert (original.status, original.reason) == ("device lost", "board: nothing came for 15 s")
    assert original.latency_ms is not None
    assert (original.latency_ms.restarts, original.accuracy is not None) == (1, True)
    assert (int8.status, int8.machine) == ("measured", "board")  # its rounds were all done
    assert int8.speedup["vs_original_fp32"].ratio == 3.0         # over the round that both have
    assert (rows["damaged"].status, rows["damaged"].reason) == ("failed", "no ONNX")
    assert [sorted({row.status for row in one.rows}) for one in kept[:3]] == [
        ["partial"], ["partial"], ["failed", "partial"]]
    assert not kept[-1].complete


def test_a_device_lost_before_the_first_round_has_no_figures(tmp_path: Path) -> None:
    candidates = [candidate(tmp_path, "original")]
    agent = FakeAgent(candidates, {"original": 9}, {})
    agent.fail["original", "round-0"] = Gone("away")
    record = run(candidates, None, tmp_path, agent, machine=Machine(name="board", agent=agent, threads=4, lost=Gone))
    row = record.rows[0]
    assert (row.status, row.reason, row.latency_ms, row.marks) == ("device lost", "away", None, ())


def test_an_engine_is_built_on_its_device(tmp_path: Path) -> None:
    """What runs, and is named by its digest, is the built engine; one that cannot be built is a failed row."""
    candidates = [candidate(tmp_path, "original", state="build on the device", target="jetson-orin-nano"),
                  candidate(tmp_path, "int8", state="build on the device", target="jetson-orin-nano")]
    engines = candidate(tmp_path, "built").engines
    built = engines.engines[GRAPH]
    runs = Candidate(name="original", role="original", engines=engines, target=candidates[0].target)
    agent = FakeAgent([*candidates, runs], {"original": 9}, {})

    def build(engine: Engine, folder: Path) -> Engine:
        if engine.path.name == "int8":
            raise AgentError("jetson: TensorRT refuses node 'head'")
        assert folder.parts[-2:] == ("build", GRAPH)
        return built

    machine = Machine(name="jetson", agent=agent, threads=6, build=build)
    record = run(candidates, None, tmp_path, agent, machine=machine)
    rows = by_name(record)
    assert (rows["original"].status, rows["original"].digest) == ("measured", built.digest)
    assert rows["original"].size_bytes == candidates[0].engines.size_bytes
    assert (rows["int8"].status, rows["int8"].reason) == ("failed", "jetson: TensorRT refuses node 'head'")
    assert [step for _, step in agent.calls] == ["round-0", "round-1"]


def test_under_emulation_outputs_are_compared_and_nothing_is_timed(tmp_path: Path, data: CalibrationSet) -> None:
    """The "device" answers as a model that is never wrong; on this machine the second never finds class 0."""
    blind = np.eye(4, 3)
    blind[0] = [0, 1, 0]
    candidates = [candidate(tmp_path, "original", "original", target="rpi5", model=classifier(np.eye(4, 3))),
                  candidate(tmp_path, "int8", "shipped", target="rpi5", model=classifier(blind))]
    agent = FakeAgent(candidates, {}, {})
    agent.answers = 3
    machine = Machine(name="rpi5, emulated", agent=agent, threads=1, emulated=True)
    record = run(candidates, data, tmp_path, agent, machine=machine)
    rows = by_name(record)
    assert [step for _, step in agent.calls] == ["accuracy", "accuracy"]
    assert record.machines == {"rpi5, emulated": {"cpu": "a CPU", "threads": 1, "emulated": True}}
    assert (record.complete, record.order) == (True, ())
    for name, same in (("original", 1.0), ("int8", 13 / 20)):
        row = rows[name]
        assert (row.status, row.latency_ms, row.load_ms, row.throughput_per_s) == ("emulated", None, None, None)
        assert row.accuracy is not None
        assert row.accuracy.value == 1.0
        assert row.emulated_parity is not None
        assert (row.emulated_parity.same_answers, row.emulated_parity.samples) == (same, 20)
        assert row.emulated_parity.largest_output == pytest.approx(1.0)
        assert [layer.time_us for layer in row.layers] == [None]


@pytest.mark.parametrize(("scenario", "samples"), [("single_stream", 1), ("multi_stream", 8), ("offline", 8)])
def test_a_scenarios_query_reaches_the_process(tmp_path: Path, scenario: Any, samples: int) -> None:
    """The engines take up to eight samples; three are repeated until there are enough."""
    candidates = [candidate(tmp_path, "original")]
    agent = FakeAgent(candidates, {"original": 4}, {})
    feed = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)[: 1 if scenario == "single_stream" else 3]}
    config = BenchConfig(restarts=1, threads=1, scenario=scenario)
    record = bench(candidates, feed=feed, data=None, metric=get_metric("accuracy"), baseline="original", config=config,
                   workdir=tmp_path / "work", machine=this_machine(agent))
    row = record.rows[0]
    assert (row.scenario, row.batch, row.throughput_per_s) == (scenario, samples, pytest.approx(samples * 1000 / 4))
    sent = np.load(tmp_path / "work/feed.npz")["x"]
    np.testing.assert_array_equal(sent, feed["x"][np.arange(samples) % len(feed["x"])])
    assert record.config["batch"] == samples


def classifier(weight: np.ndarray, bias: float = 0.0) -> bytes:
    """x [batch, 4] -> output [batch, 3] = x W + b."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="head"), helper.make_node("Add", ["y", "b"], ["output"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight.astype(np.float32), "w"),
         numpy_helper.from_array(np.full(3, bias, np.float32), "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def test_real_engines_in_real_processes(tmp_path: Path, data: CalibrationSet) -> None:
    """An engine that is right, one that never finds class 0, one that is no model, one changed after it was read."""
    onnx.checker.check_model(classifier(np.eye(4, 3)))
    blind = np.eye(4, 3)
    blind[0] = [0, 1, 0]
    candidates = [candidate(tmp_path, "original", "original", model=classifier(np.eye(4, 3))),
                  candidate(tmp_path, "blind", model=classifier(blind)),
                  candidate(tmp_path, "damaged", model=b"no ONNX"),
                  candidate(tmp_path, "changed", model=classifier(blind))]
    (tmp_path / "changed" / "model.onnx").write_bytes(classifier(np.eye(4, 3), bias=1.0))
    config = BenchConfig(restarts=2, warmup_s=0.01, duration_s=0.02, min_runs=100, threads=1)
    record = bench(candidates, feed=FEED, data=data, metric=get_metric("accuracy"), config=config, baseline="original",
                   workdir=tmp_path / "work")
    rows = by_name(record)
    assert {name: row.status for name, row in rows.items()} == {
        "original": "measured", "blind": "measured", "damaged": "failed", "changed": "failed"}
    original, other = rows["original"], rows["blind"]
    assert original.accuracy is not None
    assert other.accuracy is not None
    assert (original.accuracy.value, other.accuracy.value) == (1.0, 13 / 20)
    assert other.accuracy.drop is not None
    assert other.accuracy.drop.verdict == "over budget"
    assert original.latency_ms is not None
    assert original.latency_ms.runs >= 200
    assert 0 < original.latency_ms.min <= original.latency_ms.p50 <= original.latency_ms.max
    assert [layer.precision for layer in original.layers] == ["f32"]
    assert sum(original.precisions.values()) == 1
    assert "damaged" in str(rows["damaged"].reason)
    assert "the files changed while they were measured" in str(rows["changed"].reason)
    assert "onnxruntime" in record.versions["local"]
    assert record.machines["local"]["cores"] >= 1
    assert BenchRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record
