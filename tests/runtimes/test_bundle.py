from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtimes
from runtimes.arrays import write_arrays
from runtimes.bundle import MANIFEST, FileEntry, read_bundle
from runtimes.errors import RuntimesError
from runtimes.hashing import file_digest, tree_digest
from runtimes.processing import Processing
from runtimes.processing.outputs import ClassesOutput


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((bundle / MANIFEST).read_text())
    change(record)
    (bundle / MANIFEST).write_text(json.dumps(record))


def test_round_trip(made_bundle: Path) -> None:
    read = read_bundle(made_bundle)
    assert read.name == "tiny"
    assert [spec.name for spec in read.inputs + read.outputs] == ["x", "y"]
    assert read.processing == Processing(inputs={}, outputs={"y": ClassesOutput(labels=("a", "b", "c"))})
    assert read.golden.tolerance == {"openvino-cpu": 1e-5, "onnxruntime-cpu": 1e-5}
    assert read.accuracy == {"metric": "accuracy", "value": 1.0}
    assert read.digest == file_digest(made_bundle / MANIFEST)
    golden = made_bundle / "golden/feed.npz"
    assert read.files["golden/feed.npz"] == FileEntry(sha256=file_digest(golden), size=golden.stat().st_size)
    assert set(read.files) == {p.relative_to(made_bundle).as_posix() for p in made_bundle.rglob("*.*")} - {MANIFEST}
    entry = read.graphs["main"].engines["openvino-cpu"]
    assert entry.digest == tree_digest(made_bundle / entry.path)
    assert set(read.engine_files(entry)) == {"engine.json", "model.xml", "model.bin"}


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match=r"is not a bundle: it has no manifest\.json"):
        read_bundle(tmp_path)


def test_changed_file(bundle: Path) -> None:
    path = bundle / "golden/feed.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RuntimesError, match=r"feed\.npz is not the file manifest\.json lists"):
        read_bundle(bundle)


def test_missing_file(bundle: Path) -> None:
    (bundle / "engines/main/openvino-cpu/model.bin").unlink()
    with pytest.raises(RuntimesError, match=r"model\.bin is missing: copy the bundle again"):
        read_bundle(bundle)


def test_extra_file(bundle: Path) -> None:
    (bundle / "engines/main/openvino-cpu/extra.so").write_bytes(b"")
    with pytest.raises(RuntimesError, match=r"extra\.so is not listed in manifest\.json"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["golden/feed.npz", "golden", MANIFEST])
def test_link(name: str, bundle: Path, tmp_path: Path) -> None:
    os.rename(bundle / name, tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimesError, match=name.split("/")[-1].replace(".", r"\.")):
        read_bundle(bundle)


def test_file_changed_after_reading(bundle: Path) -> None:
    read = read_bundle(bundle)
    write_arrays(bundle / "golden/feed.npz", {"x": np.zeros((1, 2), np.float32)})
    with pytest.raises(RuntimesError, match=r"feed\.npz was changed since the bundle was read"):
        read.read_arrays("golden/feed.npz")


def set_file(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record["files"].update({name: {"sha256": "0" * 64, "size": 1}})


def set_engine(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record["graphs"]["main"]["engines"]["openvino-cpu"].update(values)


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r.update(version=1), r"manifest\.json has format version 1 and this software reads version 2"),
    (lambda r: r.update(format="zip"), r"manifest\.json is not a 'compress\.bundle' record"),
    (lambda r: r.pop("accuracy"), r"manifest\.json lacks 'accuracy'"),
    (lambda r: r.update(code="x"), r"manifest\.json has the unknown key 'code'"),
    (lambda r: r.update(chain=[]), "'chain' must be an object"),
    (lambda r: r.update(processing=1), "'processing' must be an object"),
    (lambda r: r["graphs"]["main"].pop("golden"), r"graph 'main' lacks 'golden'"),
    (lambda r: r["graphs"]["main"].update(inputs=["x"]), r"graph 'main': 'inputs': an item must be an object"),
    (lambda r: r.update(graphs={}), "lists no graph"),
    (lambda r: r.update(graphs=[]), "'graphs' must be an object"),
    (set_file("../secret"), r"names the path '\.\./secret', which is not a plain path inside the folder"),
    (set_file("/etc/passwd"), "names the path '/etc/passwd'"),
    (set_file("a/./b"), "not a plain path"),
    (set_file("a\\b"), "not a plain path"),
    (set_file(""), "not a plain path"),
    (set_file("nothing"), "nothing is missing"),
    (lambda r: r["files"].update({"golden/feed.npz": 1}), r"'golden/feed\.npz' must be an object"),
    (lambda r: r["files"]["golden/feed.npz"].update(sha256="\ud800"), "no SHA-256 of 64 hex digits"),
    (lambda r: r["files"]["golden/feed.npz"].update(sha256="A" * 64), r"file 'golden/feed\.npz' has no SHA-256"),
    (lambda r: r["files"]["golden/feed.npz"].update(size=-1), "or no size"),
    (lambda r: r["files"]["golden/feed.npz"].update(size=1), r"feed\.npz is not the file"),
    (lambda r: r["graphs"]["main"]["golden"].update(feed="golden/other.npz"),
     r"golden feed 'golden/other\.npz' is not one of the files"),
    (lambda r: r["graphs"]["main"]["golden"]["tolerance"].update(x=-1), "tolerance of 'x' is -1"),
    (lambda r: r["graphs"]["main"]["golden"]["tolerance"].update(x=10**400), "tolerance of 'x' is too large"),
    (lambda r: r["processing"]["outputs"]["y"].update(kind="beam"), "processing of 'y': 'kind' is 'beam'"),
    (set_engine(plugin="x"), "engine 'openvino-cpu' has the unknown key 'plugin'"),
    (lambda r: r["graphs"]["main"].update(code="x"), "graph 'main' has the unknown key 'code'"),
    (lambda r: r["graphs"]["main"]["golden"].update(code="x"), "graph 'main': golden has the unknown key 'code'"),
    (lambda r: r["files"]["golden/feed.npz"].update(url="x"), r"file 'golden/feed\.npz' has the unknown key 'url'"),
    (set_engine(path="../engines"), "engine 'openvino-cpu' names the path"),
    (set_engine(path="golden"), r"engine 'openvino-cpu': no file golden/engine\.json is listed"),
    (set_engine(digest="0"), "engine 'openvino-cpu': the files below .* do not add up"),
    (set_engine(state="fine"), "'state' is 'fine'"),
    (set_engine(backend=3), "'backend' must be a string"),
])
def test_bad_manifest(change: Callable[[dict[str, Any]], Any], message: str, bundle: Path) -> None:
    edit(bundle, change)
    with pytest.raises(RuntimesError, match=message):
        read_bundle(bundle)


def test_a_key_given_twice(bundle: Path) -> None:
    path = bundle / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"name": "tiny"', b'"name": "tiny", "name": "other"'))
    with pytest.raises(RuntimesError, match=r"manifest\.json is not JSON \(the key 'name' twice in one object\)"):
        read_bundle(bundle)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every key and item of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "engines", "", 10**400, -1, "float16", "complex64"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=json_values, remove=st.booleans())
def test_a_mutated_manifest_raises_nothing_but_runtimes_errors(
    data: st.DataObject, value: Any, remove: bool, bundle: Path, made_bundle: Path
) -> None:
    record = json.loads((made_bundle / MANIFEST).read_text())
    *path, last = data.draw(st.sampled_from(places(record)))
    parent = copy.copy(record) if not path else record
    for key in path:
        parent = parent[key]
    if remove:
        del parent[last]
    else:
        parent[last] = value
    (bundle / MANIFEST).write_text(json.dumps(record if path else parent))
    try:
        read = read_bundle(bundle)
        runtimes.load(read, target="onnxruntime-cpu", threads=1, self_test=True).close()
    except RuntimesError as error:
        assert str(error)  # noqa: PT017


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=1, max_size=8), at=st.integers(0, 10_000))
def test_a_damaged_manifest_raises_nothing_but_runtimes_errors(
    noise: bytes, at: int, bundle: Path, made_bundle: Path
) -> None:
    data = (made_bundle / MANIFEST).read_bytes()
    at %= len(data)
    (bundle / MANIFEST).write_bytes(data[:at] + noise + data[at + len(noise):])
    try:
        read_bundle(bundle)
    except RuntimesError as error:
        assert str(bundle) in str(error)  # noqa: PT017
