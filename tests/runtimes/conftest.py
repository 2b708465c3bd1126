from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from runtimes.arrays import write_arrays
from runtimes.bundle import EngineEntry, Golden, GraphEntry, write_manifest
from runtimes.engine import Engine, write_engine
from runtimes.processing import Processing
from runtimes.processing.outputs import ClassesOutput
from tests.contracts.engines import make_engine
from tests.contracts.models import BY_NAME

CASE = BY_NAME["matmul"]


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny matmul: OpenVINO and ONNX Runtime engines, and one still to be built on a device."""
    root = tmp_path_factory.mktemp("made") / "bundle"
    engines: dict[str, Engine] = {
        f"{backend}-cpu": make_engine(CASE, backend, root / f"engines/main/{backend}-cpu")
        for backend in ("openvino", "onnxruntime")
    }
    recipe = root / "engines/main/jetson"
    recipe.mkdir()
    (recipe / "model.onnx").write_bytes(b"later")
    engines["jetson"] = write_engine(
        recipe, backend="tensorrt", device="GPU", precision="int8", entry="model.onnx", inputs=CASE.inputs,
        outputs=CASE.outputs, options={}, source="0" * 64, built_with={}, state="build on the device")
    (root / "golden").mkdir()
    write_arrays(root / "golden/feed.npz", CASE.feed)
    write_arrays(root / "golden/expected.npz", CASE.expected)
    entries = {
        target: EngineEntry(path=f"engines/main/{target}", backend=engine.backend, precision=engine.precision,
                            digest=engine.digest, state=engine.state)
        for target, engine in engines.items()
    }
    write_manifest(
        root, name="tiny",
        graphs={"main": GraphEntry(
            inputs=CASE.inputs, outputs=CASE.outputs, engines=entries,
            golden=Golden(feed="golden/feed.npz", expected="golden/expected.npz",
                          tolerance={"openvino-cpu": 1e-5, "onnxruntime-cpu": 1e-5}))},
        processing=Processing(inputs={}, outputs={"y": ClassesOutput(labels=("a", "b", "c"))}),
        accuracy={"metric": "accuracy", "value": np.float64(1.0).item()})
    return root


@pytest.fixture
def bundle(made_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to damage."""
    return Path(shutil.copytree(made_bundle, tmp_path / "bundle"))
