from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes.arrays import read_batches, write_arrays
from runtimes.backends import open_engine
from runtimes.engine import read_engine
from runtimes.errors import RuntimesError
from runtimes.measure import main, measure

INACCURACY = 1 << 20     # bytes; proc(5): "This value is inaccurate", the kernel counts pages per CPU
WEIGHTS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


@pytest.fixture(params=["openvino", "onnxruntime"])
def job(request: pytest.FixtureRequest, made_bundle: Path, tmp_path: Path) -> dict[str, Any]:
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    write_arrays(tmp_path / "feed.npz", {"x": x[:2]})
    write_arrays(tmp_path / "0000.npz", {"x": x[:5], "target": np.arange(5)})
    write_arrays(tmp_path / "0001.npz", {"x": x[5:], "target": np.arange(2)})
    return {
        "engines": {"main": str(made_bundle / f"engines/main/{request.param}-cpu")},
        "threads": 1,
        "latency": {"feed": str(tmp_path / "feed.npz"), "warmup_s": 0.01, "duration_s": 0.02, "min_runs": 30},
        "outputs": {"shards": [str(tmp_path / "0000.npz"), str(tmp_path / "0001.npz")], "inputs": ["x"], "batch": 3,
                    "into": str(tmp_path / "outputs.npz")},
        "layers": True,
        "result": str(tmp_path / "result.json"),
    }


def test_measure(job: dict[str, Any]) -> None:
    result = measure(job)
    assert json.loads(Path(job["result"]).read_text()) == json.loads(json.dumps(result))
    engine = read_engine(job["engines"]["main"])
    assert result["digest"] == engine.digest
    assert (result["backend"], result["device"], result["precision"]) == (engine.backend, "CPU", "fp32")
    assert result["threads"] == 1
    assert result["load_ms"] > 0
    assert len(result["latencies_ns"]) >= 30
    assert all(type(time) is int and time > 0 for time in result["latencies_ns"])
    assert (result["samples_per_query"], result["warmup"]["seconds"] >= 0.01) == (2, True)
    assert result["telemetry"]["duration_s"] >= 0.02
    assert result["telemetry"]["before"]["spin_ns"] > 0
    assert 0 < result["baseline_memory_bytes"] < result["peak_memory_bytes"] + INACCURACY
    product = [layer for layer in result["layers"] if layer["type"].startswith(("MatMul", "FullyConnected"))]
    assert [layer["precision"] for layer in product] == ["f32"]
    assert result["versions"]["numpy"] == np.__version__
    assert engine.backend in result["versions"]
    assert result["machine"]["cores"] >= 1
    assert result["samples"] == 7
    (outputs,) = read_batches(Path(job["outputs"]["into"]))     # those of three batches, which have one shape
    np.testing.assert_allclose(outputs["y"], np.arange(14, dtype=np.float32).reshape(7, 2) @ WEIGHTS, rtol=1e-6)
    assert not [path for path in Path(job["result"]).parent.iterdir() if path.name.startswith(".")]


def test_parts_may_be_left_out(job: dict[str, Any]) -> None:
    result = measure({**job, "latency": None, "outputs": None, "layers": False, "threads": None})
    nothing = ("latencies_ns", "samples_per_query", "warmup", "telemetry", "samples", "layers", "threads")
    assert [name for name in nothing if result[name] is not None] == []


def test_runs_in_a_fresh_process(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "runtimes.measure", str(tmp_path / "job.json")]
    done = subprocess.run(command, cwd=Path(runtimes.__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(Path(job["result"]).read_text())["samples"] == 7


@pytest.mark.parametrize(("part", "change", "message"), [
    ("latency", {"feed": "nowhere.npz"}, r"nowhere\.npz cannot be read"),
    ("latency", {"min_runs": "3"}, "'min_runs' must be an integer, got '3'"),
    ("latency", {"samples_per_query": 3}, r"a query of 3 samples, and .*feed\.npz holds \{'x': 2\}"),
    ("latency", {"samples_per_query": "8"}, "'samples_per_query' must be an integer, got '8'"),
    ("outputs", {"batch": 0}, "needs a shard and a batch of at least 1, got 2 and 0"),
    ("outputs", {"shards": []}, "needs a shard and a batch of at least 1, got 0 and 3"),
    ("outputs", {"inputs": ["z"]}, r"0000\.npz lacks input 'z': it has \['x', 'target'\]"),
    ("outputs", {"inputs": ["x", "target"]}, "shard has an unknown input 'target'"),
    ("outputs", {"batch": 5}, "batch is 5, outside 1..4"),
])
def test_bad_job(part: str, change: dict[str, Any], message: str, job: dict[str, Any]) -> None:
    with pytest.raises(RuntimesError, match=message):
        measure({**job, part: {**job[part], **change}})
    assert not Path(job["result"]).exists()


@pytest.mark.parametrize(("given", "message"), [
    (lambda y: {"y": y.astype(np.int32)}, r"output 'y' of .*-cpu came as int32 of 2 axes, and it says float32 of 2"),
    (lambda y: {"y": y[:, 0]}, r"output 'y' of .*-cpu came as float32 of 1 axes, and it says float32 of 2"),
    (lambda y: {"y": y[:1]}, r"output 'y' of .*-cpu has 1 answers for 3 samples"),
    (lambda y: {"y": y, "z": y}, r"-cpu gave the outputs \['y', 'z'\] and says it has \['y'\]"),
    (lambda y: {}, r"-cpu gave the outputs \[\] and says it has \['y'\]"),
])
def test_outputs_other_than_the_engine_says_are_not_scored(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given: Callable[[np.ndarray], dict[str, np.ndarray]],
    message: str,
) -> None:
    def open_other(*args: Any, **more: Any) -> Any:
        runner = open_engine(*args, **more)
        run = runner.run
        monkeypatch.setattr(runner, "run", lambda feed: given(run(feed)["y"]))
        return runner

    monkeypatch.setattr("runtimes.running.open_engine", open_other)
    with pytest.raises(RuntimesError, match=message):
        measure({**job, "latency": None, "layers": False})
    assert not Path(job["result"]).exists()


def test_shard_with_uneven_inputs(job: dict[str, Any], tmp_path: Path) -> None:
    write_arrays(tmp_path / "0000.npz", {"x": np.zeros((2, 2), np.float32), "target": np.arange(3)})
    with pytest.raises(RuntimesError, match=r"0000\.npz: the inputs must hold equally many.*'x': 2, 'target': 3"):
        measure({**job, "outputs": {**job["outputs"], "inputs": ["x", "target"]}})


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m runtimes.measure JOB.json" in capsys.readouterr().err
    (tmp_path / "job.json").write_text("{")
    assert main([str(tmp_path / "job.json")]) == 2
    assert "job.json is not a measurement job" in capsys.readouterr().err
    (tmp_path / "job.json").write_text('{"engine": "e"}')
    assert main([str(tmp_path / "job.json")]) == 2
    assert "measurement job lacks 'result'" in capsys.readouterr().err
