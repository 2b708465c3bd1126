from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtimes.arrays import write_arrays
from runtimes.bundle import EngineEntry, Golden, GraphEntry, write_manifest
from runtimes.engine import Engine, write_engine
from runtimes.processing import Processing
from runtimes.processing.outputs import ClassesOutput
from tests.contracts.engines import make_engine
from tests.contracts.models import BY_NAME, Case

CASE = BY_NAME["matmul"]


DOUBLED = dataclasses.replace(
    CASE, build=lambda: with_weights([[2, 4, 6], [8, 10, 12]]), expected={"y": 2 * CASE.expected["y"]})


def with_weights(weights: list[list[float]]) -> onnx.ModelProto:
    """The matmul with other weights."""
    model = CASE.build()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(weights, np.float32), "w"))
    return model


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny matmul: OpenVINO and ONNX Runtime engines, and one still to be built on a device."""
    return write_bundle(tmp_path_factory.mktemp("made") / "bundle", CASE)


@pytest.fixture(scope="session")
def next_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its next version: each weight is twice what it was."""
    return write_bundle(tmp_path_factory.mktemp("next") / "bundle", DOUBLED)


@pytest.fixture
def bundle(made_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the first one, for a test to damage."""
    return Path(shutil.copytree(made_bundle, tmp_path / "bundle"))


def write_bundle(root: Path, case: Case) -> Path:
    engines: dict[str, Engine] = {
        f"{backend}-cpu": make_engine(case, backend, root / f"engines/main/{backend}-cpu")
        for backend in ("openvino", "onnxruntime")
    }
    recipe = root / "engines/main/jetson"
    recipe.mkdir()
    (recipe / "model.onnx").write_bytes(b"later")
    engines["jetson"] = write_engine(
        recipe, backend="tensorrt", device="GPU", precision="int8", entry="model.onnx", inputs=case.inputs,
        outputs=case.outputs, options={}, source="0" * 64, built_with={}, state="build on the device")
    (root / "golden").mkdir()
    write_arrays(root / "golden/feed.npz", case.feed)
    write_arrays(root / "golden/expected.npz", case.expected)
    entries = {
        target: EngineEntry(path=f"engines/main/{target}", backend=engine.backend, precision=engine.precision,
                            digest=engine.digest, state=engine.state)
        for target, engine in engines.items()
    }
    write_manifest(
        root, name="tiny",
        graphs={"main": GraphEntry(
            inputs=case.inputs, outputs=case.outputs, engines=entries,
            golden=Golden(feed="golden/feed.npz", expected="golden/expected.npz",
                          tolerance={"openvino-cpu": 1e-5, "onnxruntime-cpu": 1e-5}))},
        processing=Processing(inputs={}, outputs={"y": ClassesOutput(labels=("a", "b", "c"))}),
        accuracy={"metric": "accuracy", "value": np.float64(1.0).item()})
    return root
