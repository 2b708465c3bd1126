from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes.arrays import write_arrays
from runtimes.bundle import MANIFEST, read_bundle
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, file_digest

FEED = {"x": np.array([[1, 1]], np.float32)}


def relist(bundle: Path, name: str, **changes: Any) -> None:
    """Make the manifest list file ``name`` as it is now, and change keys of its golden record."""
    record = json.loads((bundle / MANIFEST).read_text())
    record["files"][name] = {"sha256": file_digest(bundle / name), "size": (bundle / name).stat().st_size}
    record["graphs"]["main"]["golden"].update(changes)
    (bundle / MANIFEST).write_text(json.dumps(record))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_load_and_run(backend: str, made_bundle: Path) -> None:
    with runtimes.load(made_bundle, backend, threads=1, self_test=True) as session:
        assert (session.backend, session.target, session.precision) == (backend, f"{backend}-cpu", "fp32")
        assert session.digest == read_bundle(made_bundle).graphs["main"].engines[f"{backend}-cpu"].digest
        assert [spec.name for spec in session.inputs] == ["x"]
        assert [spec.name for spec in session.outputs] == ["y"]
        np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]], atol=1e-6)


def test_openvino_is_taken_first_then_what_is_installed(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runtimes.load(made_bundle, threads=1) as session:
        assert session.target == "openvino-cpu"
    monkeypatch.setattr("runtimes.session.is_installed", lambda name: name != "openvino")
    with runtimes.load(made_bundle, threads=1) as session:
        assert session.target == "onnxruntime-cpu"


def test_a_target_by_name(made_bundle: Path) -> None:
    with runtimes.load(read_bundle(made_bundle), target="onnxruntime-cpu", graph="main", threads=1) as session:
        assert session.backend == "onnxruntime"


def test_backend_not_installed(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.session.is_installed", lambda _: False)
    with pytest.raises(RuntimesError, match=r"needs the backend 'openvino'.*pip install \"compress-edge\[openvino\]\""):
        runtimes.load(made_bundle, "openvino")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"backend": "openvin"}, "unknown backend 'openvin', expected one of .*did you mean 'openvino'"),
    ({"backend": "zzz"}, "unknown backend 'zzz'.*choose another"),
    ({"backend": "tensorrt_rtx"}, "has no engine for backend 'tensorrt_rtx'; it has {'jetson'"),
    ({"target": "rpi5"}, "has no engine for target 'rpi5'; it has"),
    ({"target": "openvino-cpu", "backend": "onnxruntime"}, "for target 'openvino-cpu' and backend 'onnxruntime'"),
    ({"graph": "decoder"}, r"has the graphs \['main'\]: graph 'decoder' is not one of them"),
])
def test_what_the_bundle_does_not_hold(arguments: dict[str, Any], message: str, made_bundle: Path) -> None:
    with pytest.raises(RuntimesError, match=message):
        runtimes.load(made_bundle, **arguments)


def test_an_engine_still_to_be_built(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.session.is_installed", lambda _: True)
    with pytest.raises(RuntimesError, match=r"jetson has not been built: it holds the ONNX.*build it on the device"):
        runtimes.load(made_bundle, target="jetson")


def test_several_graphs_must_be_named(bundle: Path) -> None:
    record = json.loads((bundle / MANIFEST).read_text())
    record["graphs"]["second"] = record["graphs"]["main"]
    (bundle / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(RuntimesError, match=r"has the graphs \['main', 'second'\]: name one with graph="):
        runtimes.load(bundle)
    with runtimes.load(bundle, graph="second", threads=1) as session:
        np.testing.assert_allclose(session.run(FEED)["y"], [[5, 7, 9]], atol=1e-6)


def test_file_changed_between_reading_and_opening(bundle: Path) -> None:
    read = read_bundle(bundle)
    (bundle / "engines/main/openvino-cpu/model.bin").write_bytes(bytes(24))
    with pytest.raises(RuntimesError, match=r"model\.bin has SHA-256"):
        runtimes.load(read, "openvino")


def test_self_test_fails_on_another_answer(bundle: Path) -> None:
    write_arrays(bundle / "golden/expected.npz", {"y": np.array([[5, 7, 9], [-2, -1, 0.5]], np.float32)})
    relist(bundle, "golden/expected.npz")
    with pytest.raises(RuntimesError, match=r"self-test of 'openvino-cpu'.*'y' differs from the expected one by 0\.5"):
        runtimes.load(bundle, "openvino", self_test=True)


@pytest.mark.parametrize(("name", "arrays", "changes", "message"), [
    ("expected", {"y": np.full((2, 3), np.nan, np.float32)}, {}, "output 'y' differs from the expected one by nan"),
    ("expected", {"y": np.zeros((1, 3), np.float32)}, {}, r"output 'y' has shape \(2, 3\), expected \(1, 3\)"),
    ("expected", {"z": np.zeros(1)}, {}, "the golden arrays lack 'y'"),
    ("feed", {"z": np.zeros(1)}, {}, "the golden arrays lack 'x'"),
    ("feed", {"x": np.zeros((1, 2))}, {}, "input 'x' has dtype float64"),
    ("feed", {"x": np.zeros((1, 2), np.float32)}, {"tolerance": {}}, "no tolerance for it"),
])
def test_self_test_with_bad_golden_arrays(
    name: str, arrays: dict[str, np.ndarray], changes: dict[str, Any], message: str, bundle: Path
) -> None:
    write_arrays(bundle / f"golden/{name}.npz", arrays)
    relist(bundle, f"golden/{name}.npz", **changes)
    with pytest.raises(RuntimesError, match=message):
        runtimes.load(bundle, "onnxruntime", self_test=True)


def test_golden_arrays_are_read_without_pickle(bundle: Path) -> None:
    np.savez(bundle / "golden/feed.npz", x=np.array([{}], dtype=object))
    relist(bundle, "golden/feed.npz")
    with pytest.raises(RuntimesError, match=r"feed\.npz is not an \.npz file of plain arrays"):
        runtimes.load(bundle, "onnxruntime", self_test=True)


def test_record_and_manifest_must_agree(bundle: Path) -> None:
    """An engine.json that was swapped is caught by its digest, whatever it says."""
    path = bundle / "engines/main/openvino-cpu/engine.json"
    read = read_bundle(bundle)
    path.write_bytes(path.read_bytes().replace(b"fp32", b"int8"))
    assert bytes_digest(path.read_bytes()) != read.files["engines/main/openvino-cpu/engine.json"].sha256
    with pytest.raises(RuntimesError, match=r"engine\.json is not the file the manifest lists"):
        runtimes.load(read, "openvino")
