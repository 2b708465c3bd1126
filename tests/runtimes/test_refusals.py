"""What must not be opened is refused with one error of ours before a backend has seen a byte of it."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto

import runtimes
from compress.errors import CompressError
from compress.targets import targets
from runtimes import built
from runtimes.bundle import MANIFEST, SIGNATURE
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, json_digest
from tests.contracts.models import BY_NAME

CASE = BY_NAME["matmul"]
RECIPE = {"format": "compress.build", "version": 2, "onnx": "model.onnx", "typing": "strong", "flags": [],
          "workspace_mib": 1, "profile": {}}  # fmt: skip


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which vendor's code was given something: every test here ends with none."""
    seen: list[str] = []

    def spy(name: str) -> Callable[..., Any]:
        def call(*_: object, **__: object) -> Any:
            seen.append(name)
            raise AssertionError(f"{name} was given a refused engine")

        return call

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy("ONNX Runtime"))
    for method in ("read_model", "compile_model"):
        monkeypatch.setattr(openvino.Core, method, spy("OpenVINO"))
    monkeypatch.setattr(built, "run_builder", spy("the TensorRT builder"))
    monkeypatch.setattr(built, "import_backend", lambda *_: None)
    monkeypatch.setattr(built, "fingerprint", lambda *_: {"tensorrt": "11.0", "gpu": "none"})
    return seen


def refused(bundle: Path, target: str, message: str, opened: list[str]) -> None:
    with pytest.raises(RuntimesError, match=message):
        runtimes.load(bundle, target=target, threads=1, self_test=True)
    assert opened == []


def relist(bundle: Path, name: str, data: bytes) -> None:
    """Change a file, and the manifest with it, as whoever made a bundle without a signature can."""
    (bundle / name).write_bytes(data)
    record = json.loads((bundle / MANIFEST).read_text())
    record["files"][name] = {"sha256": bytes_digest(data), "size": len(data)}
    for engine in record["graphs"]["main"]["engines"].values():
        prefix = engine["path"] + "/"
        held = {key[len(prefix):]: file["sha256"] for key, file in record["files"].items() if key.startswith(prefix)}
        engine["digest"] = json_digest(sorted(held.items()))
    (bundle / MANIFEST).write_text(json.dumps(record))


def test_the_spies_see_a_good_bundle(bundle: Path, opened: list[str]) -> None:
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        with pytest.raises((RuntimesError, AssertionError), match="was given a refused engine"):
            runtimes.load(bundle, target=target, threads=1)
    assert opened == ["ONNX Runtime", "OpenVINO"]


TRICKS = {
    "above": "../../../../secret.bin", "absolute": "{outside}/secret.bin", "down and up": "a/../../secret.bin",
    "a link": "weights.bin", "inside": "model.xml",
}  # fmt: skip


def external(location: str) -> bytes:
    """The matmul, whose weights are in another file."""
    model = CASE.build()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_external_data(backend: str, trick: str, bundle: Path, tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "secret.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    target = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino-cpu", "tensorrt": "jetson"}[backend]
    entry = {"onnxruntime": "model.onnx", "openvino": "model.xml", "tensorrt": "model.onnx"}[backend]
    folder = f"engines/main/{target}"
    location = TRICKS[trick].format(outside=tmp_path)
    if backend == "tensorrt":
        recipe = json.dumps(RECIPE).encode()
        relist(bundle, f"{folder}/build.json", recipe)
    relist(bundle, f"{folder}/{entry}", external(location))
    if trick == "a link":
        (bundle / folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
        refused(bundle, target, r"weights\.bin is a link or a special file", opened)
        (bundle / folder / "weights.bin").unlink()
    message = "is not an OpenVINO IR" if backend == "openvino" else "tensor 'w' keeps its data in another file"
    if backend == "tensorrt":
        read = runtimes.read_bundle(bundle)
        held = read.graphs["main"].engines[target]
        expected = read.engine_files(held)
        engine = runtimes.read_engine(read.path / held.path, expected=expected)
        with pytest.raises(RuntimesError, match=message):
            built.built_engine(engine, tmp_path / "cache", expected=expected)
        assert opened == []
        assert not (tmp_path / "cache").exists()
    else:
        refused(bundle, target, message, opened)


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu", "rtx"])
def test_external_data_on_the_host(target: str, trick: str, tmp_path: Path, opened: list[str]) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(external(TRICKS[trick].format(outside=tmp_path)))
    with pytest.raises(CompressError, match="tensor 'w' keeps its data in another file"):
        build_engine_file(file, target, tmp_path / "engine")
    assert opened == []


def build_engine_file(file: Path, target: str, into: Path) -> None:
    row = targets()[target]
    exporter = importlib.import_module(f"compress.export.{row.backend.removesuffix('_rtx')}")
    exporter.build(file, row, into, inputs=CASE.inputs, outputs=CASE.outputs, precision="fp32")


def tampering() -> dict[str, tuple[Callable[[Path], Any], str]]:
    def change(name: str) -> Callable[[Path], Any]:
        def act(bundle: Path) -> None:
            data = bytearray((bundle / name).read_bytes())
            data[len(data) // 2] ^= 1
            (bundle / name).write_bytes(data)

        return act

    def link(bundle: Path) -> None:
        path = bundle / "engines/main/onnxruntime-cpu/model.onnx"
        shutil.move(path, bundle.parent / "elsewhere")
        path.symlink_to(bundle.parent / "elsewhere")

    def link_folder(bundle: Path) -> None:
        shutil.move(bundle / "engines", bundle.parent / "elsewhere")
        (bundle / "engines").symlink_to(bundle.parent / "elsewhere")

    def outside(bundle: Path) -> None:
        record = json.loads((bundle / MANIFEST).read_text())
        record["graphs"]["main"]["engines"]["onnxruntime-cpu"]["path"] = "../other"
        (bundle / MANIFEST).write_text(json.dumps(record))

    onnx_file = "engines/main/onnxruntime-cpu/model.onnx"
    return {
        "a changed model": (change(onnx_file), r"model\.onnx is not the file"),
        "a changed weight": (change("engines/main/openvino-cpu/model.bin"), r"model\.bin is not the file"),
        "a changed record": (change("engines/main/onnxruntime-cpu/engine.json"), r"engine\.json is not the file"),
        "a changed feed": (change("golden/feed.npz"), r"feed\.npz is not the file"),
        "a missing file": (lambda b: (b / onnx_file).unlink(), r"model\.onnx is missing"),
        "an added file": (lambda b: (b / "engines/main/onnxruntime-cpu/libx.so").write_bytes(b""), "is not listed"),
        "a hidden file": (lambda b: (b / ".x").write_bytes(b""), "is not listed"),
        "a link": (link, r"model\.onnx is a link"),
        "a linked folder": (link_folder, "engines is a link"),
        "a pipe": (lambda b: os.mkfifo(b / "engines/pipe"), "pipe is a link or a special file"),
        "a path outside": (outside, r"names the path '\.\./other'"),
        "noise for a signature": (lambda b: (b / SIGNATURE).write_bytes(b"x"), "is not a signature file"),
    }


@pytest.mark.parametrize("what", tampering())
def test_tampering(what: str, bundle: Path, opened: list[str]) -> None:
    act, message = tampering()[what]
    act(bundle)
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        refused(bundle, target, message, opened)


def test_a_change_after_the_bundle_was_read(bundle: Path, opened: list[str]) -> None:
    read = runtimes.read_bundle(bundle)
    for name in ("model.onnx", "model.bin", "model.xml"):
        target = "onnxruntime-cpu" if name == "model.onnx" else "openvino-cpu"
        path = bundle / "engines/main" / target / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(RuntimesError, match=rf"{name} has SHA-256 .* the manifest lists"):
            runtimes.load(read, target=target, threads=1)
        path.write_bytes(data)
    assert opened == []


@pytest.mark.parametrize(("target", "change", "message"), [
    ("onnxruntime-cpu", {"options": {"session.load_model_format": "ORT"}}, "sets the ONNX Runtime option"),
    ("onnxruntime-cpu", {"options": {"session.model_external_initializers_file_folder_path": "/etc"}}, "may not set"),
    ("openvino-cpu", {"options": {"CACHE_DIR": "/tmp"}}, "sets the OpenVINO option 'CACHE_DIR'"),
    ("openvino-cpu", {"options": {"CONFIG_FILE": "x"}}, "sets the OpenVINO option 'CONFIG_FILE'"),
    ("onnxruntime-cpu", {"entry": "../openvino-cpu/model.xml"}, "not a plain path inside the folder"),
    ("onnxruntime-cpu", {"entry": "/etc/passwd"}, "not a plain path inside the folder"),
    ("onnxruntime-cpu", {"entry": "other.onnx"}, r"other\.onnx is missing"),
    ("openvino-cpu", {"entry": "model.bin"}, "is not an OpenVINO IR"),
    ("onnxruntime-cpu", {"entry": "engine.json"}, "is not an ONNX model"),
    ("onnxruntime-cpu", {"device": "CUDA"}, "'device' is 'CUDA', expected one of"),
    ("onnxruntime-cpu", {"backend": "os"}, "unknown backend 'os'"),
    ("onnxruntime-cpu", {"backend": "runtimes.onnxruntime"}, "unknown backend"),
    ("onnxruntime-cpu", {"version": 2}, "format version 2"),
    ("onnxruntime-cpu", {"custom_ops": "libx.so"}, "unknown key 'custom_ops'"),
    ("openvino-cpu", {"extensions": ["libx.so"]}, "unknown key 'extensions'"),
])
def test_tricks_in_the_engine_record(
    target: str, change: dict[str, Any], message: str, bundle: Path, opened: list[str]
) -> None:
    name = f"engines/main/{target}/engine.json"
    record = {**json.loads((bundle / name).read_text()), **copy.deepcopy(change)}
    relist(bundle, name, json.dumps(record).encode())
    refused(bundle, target, message, opened)


def test_other_formats_under_the_name_of_a_model(bundle: Path, opened: list[str]) -> None:
    """ONNX Runtime's own format, a pickle, a zip: nothing but ONNX goes through."""
    for data in (b"\x18\x00\x00\x00ORTM" + bytes(40), b"\x80\x04cos\nsystem\n.", b"PK\x03\x04" + bytes(30), b"\x7fELF"):
        relist(bundle, "engines/main/onnxruntime-cpu/model.onnx", data)
        refused(bundle, "onnxruntime-cpu", r"model\.onnx is (not an ONNX model|an ORT-format model)", opened)


def test_onnx_reads_the_tricks_as_external() -> None:
    """The files above are what they say: to the onnx package the weights are elsewhere."""
    for location in TRICKS.values():
        tensor = onnx.load_from_string(external(location)).graph.initializer[0]
        assert onnx.external_data_helper.uses_external_data(tensor)
