"""Bundles: what the manifest says, and what a device makes of it without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import runtimes
from compress.bundle import UNSEEN_TOLERANCE, _tolerance, bundle
from compress.errors import CompressError
from compress.export import export
from compress.ladder import torch_runner
from compress.model import Model
from compress.saving import export_model
from compress.signing import new_key, sign
from compress.targets import targets
from runtimes.engine import Engine
from runtimes.errors import RuntimesError
from runtimes.hashing import tree_digest
from tests.compress.quantize import networks

ROOT = Path(__file__).parents[2]
LABELS = ("no", "yes")


@pytest.fixture(scope="module")
def model() -> Model:
    return dataclasses.replace(networks.quantized(networks.TwoReaders), labels={"output": LABELS})


@pytest.fixture(scope="module")
def engines(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("engines")
    built = {name: export(model, targets()[name], folder / name) for name in ("openvino-cpu", "onnxruntime-cpu")}
    other = dataclasses.replace(targets()["jetson-orin-nano"], scheme="x86-vnni")
    plain = dataclasses.replace(model, quantization=None)
    return {**built, "jetson-orin-nano": export(plain, other, folder / "jetson")}


@pytest.fixture
def golden(model: Model) -> Mapping[str, np.ndarray]:
    (feed,) = networks.samples(model, 3).batches(3)
    return feed


def test_the_manifest(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    made = bundle(model, engines, golden, tmp_path / "bundle", accuracy={"accuracy": 0.5})
    record = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert (record["format"], record["version"], record["name"]) == ("compress.bundle", 2, "TwoReaders")
    graph = record["graphs"]["forward"]
    assert graph["inputs"] == [spec.to_json() for spec in model.inputs]
    assert graph["outputs"] == [spec.to_json() for spec in model.outputs]
    assert graph["engines"]["openvino-cpu"] == {
        "path": "engines/forward/openvino-cpu", "backend": "openvino", "precision": "int8",
        "digest": engines["openvino-cpu"].digest, "state": "runnable",
    }  # fmt: skip
    assert graph["engines"]["jetson-orin-nano"]["state"] == "build on the device"
    assert record["processing"] == {"inputs": {}, "outputs": {"output": {"kind": "classes", "labels": ["no", "yes"]}}}
    assert record["accuracy"] == {"accuracy": 0.5}
    files = {str(p.relative_to(made.path)) for p in made.path.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(record["files"]) == files
    np.testing.assert_array_equal(made.read_arrays("golden/forward/feed.npz")["x"], golden["x"])
    for name in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(made, target=name, threads=1, self_test=True) as session:
            assert session.digest == engines[name].digest


def test_tolerances_by_hand(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    made = bundle(model, engines, golden, tmp_path / "bundle")
    outputs = {}
    for name in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(made, target=name) as session:
            outputs[name] = session.run(golden)["output"]
    expected = made.read_arrays("golden/forward/expected.npz")["output"]
    np.testing.assert_array_equal(expected, outputs["openvino-cpu"])  # the first that runs here
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - outputs["onnxruntime-cpu"]).max())
    assert made.golden.tolerance == pytest.approx({
        "openvino-cpu": 0.01 * largest, "onnxruntime-cpu": 2 * difference + 0.01 * largest,
        "jetson-orin-nano": UNSEEN_TOLERANCE * largest,
    })  # fmt: skip


def test_two_bundles_are_equal_and_one_replaces_the_other(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    first = bundle(model, engines, golden, tmp_path / "a")
    digest = tree_digest(first.path)
    assert tree_digest(bundle(model, engines, golden, tmp_path / "b").path) == digest
    assert tree_digest(bundle(model, engines, golden, tmp_path / "a").path) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_that_is_not_of_the_bundle_is_not_taken_away(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    bundle(model, engines, golden, tmp_path / "a")
    (tmp_path / "a/engines/notes.txt").write_text("mine")
    with pytest.raises(CompressError, match=r"a is replaced whole, and 'engines/notes.txt' in it is not of the bundle"):
        bundle(model, engines, golden, tmp_path / "a")
    assert (tmp_path / "a/engines/notes.txt").read_text() == "mine"


def test_a_signature_stays_with_the_same_bundle_alone(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    made = bundle(model, engines, golden, tmp_path / "a").path
    new_key(tmp_path / "key")
    sign(made, tmp_path / "key")
    signature, signed = made / "manifest.sig", (made / "manifest.sig").read_bytes()
    bundle(model, engines, golden, tmp_path / "a")
    assert signature.read_bytes() == signed
    bundle(model, engines, golden, tmp_path / "a", accuracy={"accuracy": 0.5})
    assert not signature.exists()


def test_a_failure_leaves_the_old_bundle(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    digest = tree_digest(bundle(model, engines, golden, tmp_path / "a").path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    # compress.bundle is the function, so the module is found by its name
    monkeypatch.setattr(sys.modules[bundle.__module__], "write_manifest", full)
    with pytest.raises(CompressError, match=r"a: .*(no space|disk is full|No space)"):
        bundle(model, engines, golden, tmp_path / "a")
    assert tree_digest(tmp_path / "a") == digest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_somebody_else_is_left_alone(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CompressError, match="exists and was not made by compress"):
        bundle(model, engines, golden, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_several_graphs(tmp_path: Path, model: Model, golden: Mapping[str, np.ndarray]) -> None:
    wide = networks.quantized(networks.Everything)
    (feed,) = networks.samples(wide, 2).batches(2)
    both = dataclasses.replace(model, graphs={"points": model.graph, "images": wide.graph}, labels={})
    chain = {"inputs": ["x"], "steps": [{"graph": "points", "inputs": {"x": "x"}}],
             "outputs": {"answer": "points.output"}}
    engine = {m.name: export(m, targets()["onnxruntime-cpu"], tmp_path / m.name) for m in (model, wide)}
    engines = {"points": {"onnxruntime-cpu": engine["TwoReaders"]}, "images": {"onnxruntime-cpu": engine["Everything"]}}
    made = bundle(both, engines, {"points": golden, "images": feed}, tmp_path / "bundle", chain=chain)
    assert list(made.graphs) == ["images", "points"]  # JSON is sorted
    assert made.graphs["images"].inputs == wide.inputs
    assert made.chain is not None
    assert [step.graph for step in made.chain.steps] == ["points"]
    for graph in made.graphs:
        runtimes.load(made, graph=graph, self_test=True).close()
    with pytest.raises(RuntimesError, match=r"has the graphs \['images', 'points'\]: name one"):
        _ = made.golden
    with pytest.raises(CompressError, match=r"one engine mapping for each of its graphs \['points', 'images'\], got"):
        bundle(both, {"points": engines["points"]}, {"points": golden, "images": feed}, tmp_path / "b")
    with pytest.raises(CompressError, match=r"one golden feed mapping for each .* got \['x'\]"):
        bundle(both, engines, golden, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_no_engine_is_refused(tmp_path: Path, model: Model, golden: Mapping[str, np.ndarray]) -> None:
    with pytest.raises(CompressError, match="a bundle needs at least one engine"):
        bundle(model, {}, golden, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_where_no_engine_runs_here_torch_gives_the_golden_outputs(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray]
) -> None:
    made = bundle(model, {"jetson-orin-nano": engines["jetson-orin-nano"]}, golden, tmp_path / "a")
    expected = made.read_arrays(made.golden.expected)
    for name, value in torch_runner(model)(golden).items():
        np.testing.assert_array_equal(expected[name], value)
    largest = max(abs(value).max() for value in expected.values())
    assert made.golden.tolerance == {"jetson-orin-nano": pytest.approx(0.1 * largest)}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_device_app_answers_with_torch_blocked(
    tmp_path: Path, model: Model, engines: Mapping[str, Engine], golden: Mapping[str, np.ndarray], backend: str
) -> None:
    made = bundle(model, engines, golden, tmp_path / "bundle")
    blocked = tmp_path / "blocked"
    for name in ("torch", "torchao", "onnx", "compress", "calibration"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')\n")
    (tmp_path / "app").mkdir()
    for package in ("runtimes", "device_app.py"):
        source = ROOT / ("examples" if package.endswith(".py") else "") / package
        (tmp_path / "app" / package).symlink_to(source)
    done = subprocess.run(
        [sys.executable, tmp_path / "app/device_app.py", made.path, "--backend", backend, "--threads", "1"],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{blocked}{os.pathsep}{tmp_path / 'app'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stdout
    expected = made.read_arrays("golden/forward/expected.npz")["output"].argmax(1)
    answers = [line for line in done.stdout.splitlines() if line.startswith("sample ")]
    assert [LABELS[index] in line for index, line in zip(expected, answers, strict=True)] == [True] * 3


def test_an_engine_that_answers_something_else_is_not_put_in_a_bundle() -> None:
    expected = {"y": np.array([0.18, 0.05, -0.15], np.float32), "sure": np.array([True, False])}
    near = {"y": np.array([0.17, 0.05, -0.15], np.float32), "sure": np.array([True, False])}
    assert _tolerance(expected, near, "graph 'g' for t") == pytest.approx(0.02 + 0.01)
    far = {"y": np.array([0.21, 0.9, 0.18], np.float32), "sure": np.array([True, False])}
    with pytest.raises(CompressError, match=r"engine of graph 'g' for t answers the golden feed by up to 0\.85 diff"):
        _tolerance(expected, far, "graph 'g' for t")


def test_truth_values_are_compared(tmp_path: Path) -> None:
    class Positive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x > 0

    golden = {"x": np.array([[1.0, -1.0]], np.float32)}
    model = export_model(Positive(), name="positive", example=golden)
    engine = export(model, targets()["onnxruntime-cpu"], tmp_path / "engine")
    bundle(model, {"forward": {"onnxruntime-cpu": engine}}, {"forward": golden}, tmp_path / "bundle")
    with runtimes.load(tmp_path / "bundle", self_test=True) as session:
        np.testing.assert_array_equal(session.run(golden)["output"], [[True, False]])
