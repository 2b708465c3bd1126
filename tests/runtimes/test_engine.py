from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from runtimes.engine import Engine, read_engine, write_engine
from runtimes.errors import RuntimesError
from runtimes.hashing import tree_files
from runtimes.spec import Dim, TensorSpec

SPEC = TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 2, 8), 3), modality="image")
FIELDS: dict[str, Any] = {
    "backend": "openvino", "device": "CPU", "precision": "int8", "entry": "model.xml", "inputs": [SPEC], "outputs": [],
    "options": {"INFERENCE_PRECISION_HINT": "bf16"}, "source": "ab", "built_with": {"openvino": "1"},
    "state": "runnable", "notes": ["a"],
}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "model.xml").write_text("<net/>")
    return write_engine(tmp_path, **FIELDS)


def test_round_trip(engine: Engine) -> None:
    assert read_engine(engine.path) == engine
    assert read_engine(engine.path, expected=tree_files(engine.path)) == engine
    assert engine.inputs == (SPEC,)
    assert engine.notes == ("a",)
    assert not list(engine.path.glob(".*"))


def test_digest_is_that_of_the_content(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    (other / "model.xml").write_text("<net/>")
    assert write_engine(other, **FIELDS).digest == engine.digest
    assert write_engine(other, **{**FIELDS, "precision": "bf16"}).digest != engine.digest
    (engine.path / "model.bin").write_bytes(b"1")
    assert read_engine(engine.path).digest != engine.digest


def test_engine_is_a_value(engine: Engine) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        engine.entry = "x"  # type: ignore[misc]


@pytest.mark.parametrize(("key", "value", "message"), [
    ("device", "TPU", "'device' is 'TPU', expected one of"),
    ("precision", "int4", "'precision' is 'int4', expected one of"),
    ("state", "fine", "'state' is 'fine', expected one of"),
    ("entry", "../model.xml", r"path '\.\./model\.xml', which is not a plain path"),
    ("entry", "/model.xml", "not a plain path"),
    ("entry", "model.onnx", r"model\.onnx is missing"),
    ("options", {"a": 1}, r"'options'\['a'\] must be a string, got 1"),
    ("inputs", [SPEC, SPEC], r"'inputs' has one name twice: \['x', 'x'\]"),
    ("notes", [1], "an item of 'notes' must be a string"),
])
def test_a_field_an_engine_cannot_have(key: str, value: Any, message: str, engine: Engine) -> None:
    with pytest.raises(RuntimesError, match=message):
        write_engine(engine.path, **{**FIELDS, key: value})


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 2}, r"engine\.json has format version 2 and this software reads version 1: install"),
    ({"version": True}, "format version True"),
    ({"format": "other"}, r"engine\.json is not a 'compress\.engine' record"),
    ({"inputs": [{"name": "x"}]}, "'inputs': not a tensor spec"),
    ({"inputs": [{**SPEC.to_json(), "dtype": "object"}]}, "dtype 'object' is not"),
    ({"inputs": [{**SPEC.to_json(), "dtype": "i4,i4"}]}, "'i4,i4' is not a dtype name"),
    ({"inputs": [{**SPEC.to_json(), "shape": [-1]}]}, "size -1 is negative"),
    ({"inputs": {}}, "'inputs' must be a list, got {}"),
    ({"plugin": "x.so"}, r"engine\.json has the unknown key 'plugin'"),
])
def test_damaged_record(change: dict[str, Any], message: str, engine: Engine) -> None:
    path = engine.path / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RuntimesError, match=message):
        read_engine(engine.path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": NaN}', b"1" * 10_000])
def test_not_a_record(data: bytes, engine: Engine) -> None:
    (engine.path / "engine.json").write_bytes(data)
    with pytest.raises(RuntimesError, match=r"engine\.json is not"):
        read_engine(engine.path)


def test_missing_key(engine: Engine) -> None:
    path = engine.path / "engine.json"
    record = json.loads(path.read_text())
    del record["state"]
    path.write_text(json.dumps(record))
    with pytest.raises(RuntimesError, match=r"engine\.json lacks 'state'"):
        read_engine(engine.path)


def test_no_engine(tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match=r"is not an engine: it has no engine\.json"):
        read_engine(tmp_path / "nowhere")


def test_another_record_than_expected(engine: Engine) -> None:
    expected = tree_files(engine.path)
    write_engine(engine.path, **{**FIELDS, "options": {}})
    with pytest.raises(RuntimesError, match=r"engine\.json is not the file the manifest lists"):
        read_engine(engine.path, expected=expected)


def test_linked_entry(engine: Engine) -> None:
    entry = engine.path / "model.xml"
    entry.unlink()
    entry.symlink_to("/etc/hostname")
    with pytest.raises(RuntimesError, match=r"model\.xml is missing"):
        read_engine(engine.path, expected={"engine.json": tree_files_of_record(engine)})
    with pytest.raises(RuntimesError, match=r"model\.xml"):
        read_engine(engine.path)


def tree_files_of_record(engine: Engine) -> str:
    from runtimes.hashing import file_digest

    return file_digest(engine.path / "engine.json")
