"""What `compress bundle` says of a bundle, of two, and of its updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compress.bundlefacts import bundle_changes, bundle_facts, self_tests
from compress.cli import cli
from compress.commands.bundle import printable, size
from runtimes.bundle import MANIFEST, read_bundle
from runtimes.errors import RuntimesError
from runtimes.hashing import tree_digest
from tests.runtimes.conftest import bundle, made_bundle, next_bundle  # noqa: F401

ENGINES = {"jetson", "onnxruntime-cpu", "openvino-cpu"}


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, ["bundle", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, ["bundle", *map(str, arguments)])
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.strip()


def edit(path: Path, **values: Any) -> None:
    record = json.loads((path / MANIFEST).read_text())
    record.update(values)
    (path / MANIFEST).write_text(json.dumps(record))


def test_facts(made_bundle: Path) -> None:  # noqa: F811
    read = read_bundle(made_bundle)
    facts = bundle_facts(read)
    assert (facts["name"], facts["digest"], facts["signed_by"]) == ("tiny", read.digest, None)
    files = [path for path in made_bundle.rglob("*") if path.is_file()]
    assert facts["size_bytes"] == sum(path.stat().st_size for path in files)
    assert facts["files"] == len(files) - 1
    graph = facts["graphs"]["main"]
    assert graph["inputs"] == {"x": "float32[batch=1..4, 2]"}
    assert graph["golden"] == {"feed": "golden/feed.npz", "expected": "golden/expected.npz"}
    engine = graph["engines"]["openvino-cpu"]
    folder = made_bundle / "engines/main/openvino-cpu"
    assert engine["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert (engine["backend"], engine["precision"], engine["tolerance"]) == ("openvino", "fp32", 1e-5)
    assert graph["engines"]["jetson"]["tolerance"] is None


def test_self_tests(made_bundle: Path, bundle: Path) -> None:  # noqa: F811
    rows = {row["target"]: row for row in self_tests(read_bundle(made_bundle))}
    assert rows.keys() == ENGINES
    assert rows["openvino-cpu"] == {"graph": "main", "target": "openvino-cpu", "passed": True, "not_run": None}
    assert (rows["jetson"]["passed"], rows["jetson"]["not_run"]) == (None, "backend tensorrt is not installed")
    record = json.loads((bundle / MANIFEST).read_text())
    record["graphs"]["main"]["golden"]["expected"] = "golden/feed.npz"
    (bundle / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(RuntimesError, match="the golden arrays lack 'y'"):
        self_tests(read_bundle(bundle))


def test_changes_of_the_weights(made_bundle: Path, next_bundle: Path) -> None:  # noqa: F811
    changes = bundle_changes(read_bundle(made_bundle), read_bundle(next_bundle))
    assert (changes["sections"], changes["specs"]) == ([], [])
    assert {change["target"] for change in changes["engines"]} == ENGINES - {"jetson"}
    assert {change["path"] for change in changes["files"]} == {
        "engines/main/onnxruntime-cpu/engine.json", "engines/main/onnxruntime-cpu/model.onnx",
        "engines/main/openvino-cpu/engine.json", "engines/main/openvino-cpu/model.bin", "golden/expected.npz",
    }  # fmt: skip
    # the weights are six floats; doubled, each differs in its exponent, which is in one or two bytes
    for row in changes["tensors"]:
        assert (row["tensor"], row["change"], row["size_bytes"]) == ("w", "changed", 24)
        assert 6 <= row["changed_bytes"] <= 12
    assert {row["file"].rsplit("/")[-1] for row in changes["tensors"]} == {"model.onnx", "model.bin"}
    same = bundle_changes(read_bundle(made_bundle), read_bundle(made_bundle))
    assert [same[key] for key in ("sections", "specs", "engines", "files", "tensors")] == [[], [], [], [], []]


def test_changes_of_the_rest(made_bundle: Path, bundle: Path) -> None:  # noqa: F811
    record = json.loads((bundle / MANIFEST).read_text())
    graph = record["graphs"]["main"]
    graph["inputs"][0]["shape"][1] = 3
    graph["outputs"].append({**graph["outputs"][0], "name": "z"})
    del graph["engines"]["jetson"]
    shutil.rmtree(bundle / "engines/main/jetson")
    record["files"] = {name: entry for name, entry in record["files"].items() if "jetson" not in name}
    edit(bundle, **{**record, "name": "other"})
    changes = bundle_changes(read_bundle(made_bundle), read_bundle(bundle))
    assert changes["sections"] == ["name"]
    assert changes["specs"] == [
        {"graph": "main", "kind": "input", "name": "x", "old": "sensor float32[batch=1..4, 2]",
         "new": "sensor float32[batch=1..4, 3]"},
        {"graph": "main", "kind": "output", "name": "z", "old": None, "new": "sensor float32[batch=1..4, 3]"},
    ]  # fmt: skip
    assert [(c["target"], c["change"], c["new"]) for c in changes["engines"]] == [("jetson", "removed", None)]
    assert [c["path"].removeprefix("engines/main/jetson/") for c in changes["files"]] == ["engine.json", "model.onnx"]
    text = run("diff", made_bundle, bundle)
    assert "name: changed" in text
    assert "main: input x: sensor float32[batch=1..4, 2] -> sensor float32[batch=1..4, 3]" in text
    assert "engine jetson of main: tensorrt int8, " in text
    assert run("diff", made_bundle, made_bundle) == "the same bundle\n"


def test_the_commands_together(made_bundle: Path, next_bundle: Path, bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    """Sign, tamper with, update and verify, as the person does who ships bundles."""
    new = Path(shutil.copytree(next_bundle, tmp_path / "next"))
    key, public = tmp_path / "release.key", tmp_path / "release.key.pub"
    assert str(public) in run("keygen", key)
    assert refused("keygen", key).startswith(f"compress: {key} exists")
    signer = json.loads(run("sign", new, "--key", key, "--json"))["signed_by"]
    assert refused("verify", bundle, "--key", public).startswith(f"compress: bundle {bundle} has no manifest.sig")
    verified = json.loads(run("verify", new, "--key", public, "--self-test", "--json"))
    assert (verified["signed_by"], verified["key_checked"]) == (signer, True)
    assert {row["target"]: row["passed"] for row in verified["self_tests"]} == {
        "jetson": None, "onnxruntime-cpu": True, "openvino-cpu": True}  # fmt: skip
    text = run("verify", new, "--self-test")
    assert "give the public key with --key to trust it" in text
    assert "self-test of main for jetson: not run: backend tensorrt is not installed" in text
    assert "graph main\n  input   x: float32[batch=1..4, 2]\n" in run("inspect", new)
    assert json.loads(run("inspect", new, "--json"))["signed_by"] == signer

    made = json.loads(run("delta", bundle, new, "--output", tmp_path / "u.delta", "--json", "--quiet"))
    assert made["size_bytes"] == (tmp_path / "u.delta").stat().st_size
    assert "of the new bundle's" in run("delta", bundle, new, "--quiet")
    assert (tmp_path / "next.delta").read_bytes() == (tmp_path / "u.delta").read_bytes()
    run("apply", bundle, tmp_path / "u.delta", tmp_path / "made", "--key", public)
    assert tree_digest(tmp_path / "made") == tree_digest(new)
    assert "take the delta from this version" in refused("apply", new, tmp_path / "u.delta", tmp_path / "again")

    edit(new, name="evil")
    for command in (("verify", new), ("inspect", new), ("sign", new, "--key", key), ("diff", bundle, new),
                    ("delta", bundle, new)):  # fmt: skip
        assert "is not a signature of this manifest: the bundle was changed" in refused(*command)


def test_names_do_not_reach_the_terminal_as_they_are(bundle: Path) -> None:  # noqa: F811
    edit(bundle, name="a\x1b[2Jb\nc")
    assert run("inspect", bundle).startswith("a\\x1b[2Jb\\nc  ")
    assert printable("é\x07\u202e") == "é\\x07\\u202e"


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 1000, 1_250_000, 3_000_000_000)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "3.0 GB"]  # fmt: skip
