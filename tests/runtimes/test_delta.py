"""Deltas: what they make, byte for byte, and everything a device must not take for one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import runtimes
from compress.delta import make_delta
from compress.signing import new_key, sign
from runtimes import delta as delta_module
from runtimes.bundle import MANIFEST, SIGNATURE, read_bundle
from runtimes.delta import BLOCK, MAGIC, apply_delta, inflate, predict, read_header, window
from runtimes.errors import RuntimesError
from runtimes.hashing import file_digest, tree_digest

Change = Callable[[dict[str, Any]], Any]
START = len(MAGIC) + 8


@pytest.fixture(scope="session")
def update(made_bundle: Path, next_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The delta from the first bundle to its next version."""
    path = tmp_path_factory.mktemp("delta") / "update.delta"
    make_delta(made_bundle, next_bundle, path)
    return path


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """A delta's header and payload, read by the description in docs/bundle.md rather than by the code."""
    data = path.read_bytes()
    stored, size = struct.unpack("<II", data[len(MAGIC) : START])
    header = zstandard.ZstdDecompressor().decompress(data[START : START + stored])
    assert len(header) == size
    return json.loads(header), data[START + stored : -32]


def forge(path: Path, header: bytes | dict[str, Any], payload: bytes, *, magic: bytes = MAGIC) -> Path:
    """A delta whose own digest is right, whatever it holds."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    stored = zstandard.ZstdCompressor().compress(text)
    data = magic + struct.pack("<II", len(stored), len(text)) + stored + payload
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


def test_the_result_is_the_new_bundle_to_the_byte(
    made_bundle: Path, next_bundle: Path, update: Path, tmp_path: Path
) -> None:
    before = tree_digest(made_bundle)
    made = apply_delta(made_bundle, update, tmp_path / "new")
    assert made == dataclasses.replace(read_bundle(next_bundle), path=tmp_path / "new")
    assert tree_digest(tmp_path / "new") == tree_digest(next_bundle)
    assert tree_digest(made_bundle) == before
    assert os.listdir(tmp_path) == ["new"]
    with runtimes.load(made, "onnxruntime", threads=1, self_test=True) as session:
        np.testing.assert_array_equal(session.run({"x": np.ones((1, 2), np.float32)})["y"], [[10, 14, 18]])


def test_the_header_by_hand(made_bundle: Path, next_bundle: Path, update: Path) -> None:
    header, payload = parts(update)
    assert (header["format"], header["version"]) == ("compress.delta", 1)
    assert header["old"] == file_digest(made_bundle / MANIFEST)
    assert header["new"] == file_digest(next_bundle / MANIFEST)
    assert [entry["path"] for entry in header["files"]] == [MANIFEST, *sorted(read_bundle(next_bundle).files)]
    entries = {entry["path"]: entry for entry in header["files"]}
    same = entries["golden/feed.npz"]
    assert same == {"path": "golden/feed.npz", "from": "golden/feed.npz", **listed(next_bundle / "golden/feed.npz")}
    assert sum(sum(entry.get("blocks", [])) for entry in entries.values()) == len(payload)


def listed(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def test_a_signed_update(made_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(next_bundle, tmp_path / "signed"))
    public = new_key(tmp_path / "release.key")
    sign(new, tmp_path / "release.key")
    make_delta(made_bundle, new, tmp_path / "u.delta")
    made = apply_delta(made_bundle, tmp_path / "u.delta", tmp_path / "new", key=public)
    assert tree_digest(made.path) == tree_digest(new)
    assert read_bundle(made.path, key=public).signed_by == made.signed_by
    # and a delta of nothing but a signature
    sign(new, tmp_path / "release.key")
    result = make_delta(next_bundle, new, tmp_path / "s.delta")
    assert [name for name, size in result.files.items() if size] == [SIGNATURE]
    apply_delta(next_bundle, tmp_path / "s.delta", tmp_path / "again", key=public)


def test_with_a_key_nothing_is_made_of_an_unsigned_delta(
    made_bundle: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    written: list[str] = []
    write_file = delta_module._write_file
    monkeypatch.setattr(
        delta_module, "_write_file", lambda *args: (written.append(args[1].path), write_file(*args))[1])
    with pytest.raises(RuntimesError, match=r"has no manifest\.sig, and only signed bundles are trusted"):
        apply_delta(made_bundle, update, tmp_path / "new", key=key)
    assert written == [MANIFEST]
    assert os.listdir(tmp_path) == []


def test_a_delta_signed_by_another_key(made_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(next_bundle, tmp_path / "signed"))
    new_key(tmp_path / "a.key")
    sign(new, tmp_path / "a.key")
    make_delta(made_bundle, new, tmp_path / "u.delta")
    with pytest.raises(RuntimesError, match=r"is a signature of the key .* this device trusts"):
        apply_delta(made_bundle, tmp_path / "u.delta", tmp_path / "new", key=new_key(tmp_path / "b.key"))
    assert not (tmp_path / "new").exists()


def test_the_wrong_old_bundle_is_refused_before_any_work(
    next_bundle: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_module, "read_bundle", lambda *_: pytest.fail("its files were read"))
    with pytest.raises(RuntimesError, match=r"is for the bundle \w{12}…, and .* is \w{12}…: take the delta"):
        apply_delta(next_bundle, update, tmp_path / "new")


def test_a_damaged_old_bundle(bundle: Path, update: Path, tmp_path: Path) -> None:
    (bundle / "engines/main/openvino-cpu/model.bin").write_bytes(b"damaged")
    with pytest.raises(RuntimesError, match=r"model\.bin is not the file manifest\.json lists"):
        apply_delta(bundle, update, tmp_path / "new")


def test_places_that_cannot_be_written(made_bundle: Path, update: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimesError, match="exists: name a folder that does not"):
        apply_delta(made_bundle, update, tmp_path)
    with pytest.raises(RuntimesError, match=r"none/new cannot be written"):
        apply_delta(made_bundle, update, tmp_path / "none/new")
    with pytest.raises(RuntimesError, match=r"none\.delta cannot be applied to .*No such file"):
        apply_delta(made_bundle, tmp_path / "none.delta", tmp_path / "new")
    with pytest.raises(RuntimesError, match="is not a bundle"):
        apply_delta(tmp_path, update, tmp_path / "new")


def test_any_changed_byte_of_a_delta(made_bundle: Path, update: Path, tmp_path: Path) -> None:
    data = update.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "u.delta"
    for at in {*range(START + 2), *rng.integers(0, len(data), 150).tolist(), *range(len(data) - 33, len(data))}:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 + int(rng.integers(255)))]) + data[at + 1 :])
        with pytest.raises(RuntimesError, match=r"u\.delta (is|has) "):
            apply_delta(made_bundle, path, tmp_path / "new")
    for size in (0, 5, len(MAGIC), START, START + 31, START + 32, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(RuntimesError, match=r"u\.delta (is not a delta|has format version|is cut short)"):
            apply_delta(made_bundle, path, tmp_path / "new")
    path.write_bytes(data + b"\0")
    with pytest.raises(RuntimesError, match="is cut short or was changed"):
        apply_delta(made_bundle, path, tmp_path / "new")
    assert os.listdir(tmp_path) == ["u.delta"]


def entry(name: str, **values: Any) -> Change:
    def change(header: dict[str, Any]) -> None:
        next(item for item in header["files"] if item["path"] == name).update(values)

    return change


def without(name: str, key: str) -> Change:
    return lambda header: next(item for item in header["files"] if item["path"] == name).pop(key)


def drop(name: str) -> Change:
    return lambda header: header.update(files=[item for item in header["files"] if item["path"] != name])


FEED, BIN = "golden/feed.npz", "engines/main/openvino-cpu/model.bin"
RECORD = "engines/main/openvino-cpu/engine.json"


@pytest.mark.parametrize(("change", "message"), [
    (lambda h: h.update(version=2), "has format version 2"),
    (lambda h: h.update(format="compress.bundle"), "is not a 'compress.delta' record"),
    (lambda h: h.pop("old"), "lacks 'old'"),
    (lambda h: h.update(script="x"), "has the unknown key 'script'"),
    (lambda h: h.update(new="0" * 64), "does not hold the manifest it says"),
    (lambda h: h.update(files=[]), r"its blocks do not add up|not the manifest and each file once"),
    (lambda h: h["files"].append(h["files"][-1]), "its blocks do not add up|not the manifest and each file once"),
    (lambda h: h["files"].append({**h["files"][-1], "path": "extra.so", "from": FEED, "blocks": []}),
     r"file 'extra\.so' has 0 blocks|its files are not those of its manifest"),
    (drop(FEED), "its files are not those of its manifest"),
    (lambda h: h["files"].reverse(), "not the manifest and each file once"),
    (entry(FEED, path="../feed.npz"), r"names the path '\.\./feed\.npz', which is not a plain path"),
    (entry(FEED, path="/etc/passwd"), "names the path '/etc/passwd'"),
    (entry(FEED, path="golden/other.npz"), "its files are not those of its manifest"),
    (entry(FEED, code="x"), "has the unknown key 'code'"),
    (without(FEED, "from"), "has neither blocks nor a source"),
    (entry(FEED, size=-1), "has neither blocks nor a source, or no size"),
    (entry(FEED, size=1 << 50), "its files are not those of its manifest"),
    (entry(FEED, sha256="0" * 64), "its files are not those of its manifest"),
    (entry(FEED, **{"from": "../../etc/passwd"}), r"names the path '\.\./\.\./etc/passwd'"),
    (entry(FEED, **{"from": "golden"}), "is made of 'golden', which the old bundle does not list"),
    (entry(FEED, **{"from": SIGNATURE}), "is made of 'manifest.sig', which the old bundle does not list"),
    (entry(FEED, **{"from": "golden/expected.npz"}), "does not become what the delta says|is cut short"),
    (entry(FEED, blocks=[]), r"file 'golden/feed\.npz' has 0 blocks, not one for each"),
    (entry(MANIFEST, size=17 << 20), "its manifest is larger than 16 MiB"),
    (entry(MANIFEST, size=10), "a block is not of the size it must be"),
    (entry(MANIFEST, spans=[[0, 0]]), "the span .* is empty, or overlaps"),
    (entry(MANIFEST, spans=[[0, 0, 0]]), "the span .* is empty, or overlaps"),
    (entry(MANIFEST, spans=[[0, 0, 1 << 40]]), "the span .* overlaps another or the end"),
    (entry(MANIFEST, spans=[[5, 0, 5], [9, 0, 2]]), "the span .* overlaps another or the end"),
    (entry(MANIFEST, spans=[[0, 1 << 40, 4]]), "is made of more than 'manifest.json' holds"),
    (entry(MANIFEST, spans=[[-4, 0, 4]]), "has a number below zero"),
    (entry(MANIFEST, spans=[["0", 0, 4]]), "a number must be an integer"),
    (entry(MANIFEST, spans=[[0, 0, 4]]), "does not become what the delta says|does not hold the manifest"),
    (entry(MANIFEST, spans={}), "'spans' must be a list"),
])  # fmt: skip
def test_a_forged_header(change: Change, message: str, made_bundle: Path, update: Path, tmp_path: Path) -> None:
    header, payload = parts(update)
    change(header)
    forge(tmp_path / "u.delta", header, payload)
    with pytest.raises(RuntimesError, match=message):
        apply_delta(made_bundle, tmp_path / "u.delta", tmp_path / "new")
    assert os.listdir(tmp_path) == ["u.delta"]


def test_headers_that_are_none(made_bundle: Path, update: Path, tmp_path: Path) -> None:
    path = tmp_path / "u.delta"
    _, payload = parts(update)
    for header, message in ((b"[]", "is not a 'compress.delta' record"), (b"{", "is not JSON")):
        forge(path, header, payload)
        with pytest.raises(RuntimesError, match=message):
            apply_delta(made_bundle, path, tmp_path / "new")
    forge(path, parts(update)[0], payload, magic=MAGIC[:-1] + b"\x02")
    with pytest.raises(RuntimesError, match="has format version 2 and this software reads version 1"):
        apply_delta(made_bundle, path, tmp_path / "new")
    for start in (struct.pack("<II", 1 << 31, 10), struct.pack("<II", 10, 1 << 31)):
        data = MAGIC + start + bytes(100)
        path.write_bytes(data + hashlib.sha256(data).digest())
        with pytest.raises(RuntimesError, match="its header is larger than it can be"):
            apply_delta(made_bundle, path, tmp_path / "new")


def test_a_block_larger_than_any_can_be(made_bundle: Path, update: Path, tmp_path: Path) -> None:
    header, payload = parts(update)
    header["files"][0]["blocks"][0] += BLOCK * 2
    forge(tmp_path / "u.delta", header, bytes(BLOCK * 2) + payload)
    with pytest.raises(RuntimesError, match=r"has a block of \d+ bytes, which none can take"):
        apply_delta(made_bundle, tmp_path / "u.delta", tmp_path / "new")


def test_a_zip_bomb_is_not_begun() -> None:
    """64 MiB of zeros in a few kilobytes, with and without their size in the frame."""
    engine = zstandard.ZstdCompressor(level=3, write_content_size=True)
    bomb = engine.compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(RuntimesError, match="w: a block is not of the size it must be"):
        inflate(bomb, 1000, b"", "w")
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    with pytest.raises(RuntimesError, match="w: a block is not of the size it must be"):
        inflate(unsized, 1 << 20, b"", "w")
    honest = zstandard.ZstdCompressor().compress(b"x" * 100)
    assert inflate(honest, 100, b"", "w") == b"x" * 100
    for data in (honest + b"\0", honest[:-1], honest[:-3] + b"\xff\xff\xff", b"", b"not zstd", honest + honest):
        with pytest.raises(RuntimesError, match="w: a block "):
            inflate(data, 100, b"", "w")
    lying = bytearray(honest)
    assert lying[5] == 100      # the frame's own size, in one byte after the magic and the descriptor
    lying[5] = 200
    with pytest.raises(RuntimesError, match="w: a block "):
        inflate(bytes(lying), 200, b"", "w")


def test_more_than_the_disk_holds(
    made_bundle: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(delta_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RuntimesError, match=r"makes \d+ bytes and 100 are free"):
        apply_delta(made_bundle, update, tmp_path / "new")


def test_without_zstandard(made_bundle: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(RuntimesError, match=r'deltas need zstandard: pip install "compress-edge\[delta\]"'):
        apply_delta(made_bundle, update, tmp_path / "new")


def test_windows_by_hand() -> None:
    assert window(0, 10, 100) == (0, 100)
    assert window(0, BLOCK, 10 * BLOCK) == (0, 2 * BLOCK)
    assert window(2 * BLOCK, BLOCK, 10 * BLOCK) == (BLOCK, 4 * BLOCK)
    assert window(2 * BLOCK, 5, 10 * BLOCK) == (BLOCK, 3 * BLOCK + 5)
    assert window(5 * BLOCK, BLOCK, BLOCK) == (BLOCK, BLOCK)        # nothing is left of the old file there


def test_predictions_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(bytes(range(100)))
    spans = [(2, 50, 3), (5, 0, 2), (20, 90, 10), (40, 10, 100 - 10)]
    with path.open("rb") as old:
        assert predict(old, spans, 0, 8, "old").tolist() == [0, 0, 50, 51, 52, 0, 1, 0]
        assert predict(old, spans, 4, 2, "old").tolist() == [52, 0]
        assert predict(old, spans, 25, 10, "old").tolist() == [95, 96, 97, 98, 99, 0, 0, 0, 0, 0]
        assert predict(old, spans, 8, 12, "old").tolist() == [0] * 12
        with pytest.raises(RuntimesError, match="old is cut short"):
            predict(old, [(0, 99, 2)], 0, 2, "old")


def test_a_header_is_read_without_the_old_bundle(update: Path, made_bundle: Path) -> None:
    with update.open("rb") as file:
        header = read_header(file, update)
    assert header.old == file_digest(made_bundle / MANIFEST)
    assert header.size == update.stat().st_size


PEAK = """
import sys
from pathlib import Path
from runtimes.delta import apply_delta
import zstandard
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
apply_delta(sys.argv[1], sys.argv[2], sys.argv[3])
print(status("VmHWM:") - before)
"""


@pytest.mark.slow
def test_memory_of_applying(tmp_path: Path) -> None:
    """300 MB of int8 weights, one in a hundred a step up: what applying adds stays below 64 MiB, all told."""
    size, rng = 300_000_000, np.random.default_rng(0)
    old = large_bundle(tmp_path / "old", rng.integers(-127, 127, size, np.int8))
    weights = np.fromfile(old / "engines/main/openvino-cpu/model.bin", np.int8)
    changed = rng.integers(0, size, size // 100)
    weights[changed] += 1
    new = large_bundle(tmp_path / "new", weights)
    del weights, changed
    result = make_delta(old, new, tmp_path / "u.delta")
    assert result.size_bytes < 0.05 * size
    done = subprocess.run(
        [sys.executable, "-c", PEAK, old, tmp_path / "u.delta", tmp_path / "made"], capture_output=True, text=True,
        cwd=Path(runtimes.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert tree_digest(tmp_path / "made") == tree_digest(new)
    assert int(done.stdout) < 64 << 20      # the allowance is this beside the old file


def large_bundle(root: Path, weights: np.ndarray) -> Path:
    """An OpenVINO engine's two files with one large constant; nothing opens it."""
    from runtimes.arrays import write_arrays
    from runtimes.bundle import EngineEntry, Golden, GraphEntry, write_manifest
    from runtimes.engine import write_engine

    folder = root / "engines/main/openvino-cpu"
    folder.mkdir(parents=True)
    (root / "golden").mkdir()
    weights.tofile(folder / "model.bin")
    (folder / "model.xml").write_text(
        '<net><layers><layer id="0" name="w" type="Const"><data element_type="i8" '
        f'shape="{weights.size}" offset="0" size="{weights.size}"/></layer></layers></net>')
    engine = write_engine(
        folder, backend="openvino", device="CPU", precision="int8", entry="model.xml", inputs=(), outputs=(),
        options={}, source="", built_with={}, state="runnable")
    for name in ("feed", "expected"):
        write_arrays(root / f"golden/{name}.npz", {})
    entry_ = EngineEntry(path="engines/main/openvino-cpu", backend="openvino", precision="int8", digest=engine.digest,
                         state="runnable")
    golden = Golden(feed="golden/feed.npz", expected="golden/expected.npz", tolerance={})
    write_manifest(root, name="large", accuracy={},
                   graphs={"main": GraphEntry(inputs=(), outputs=(), engines={"openvino-cpu": entry_}, golden=golden)})
    return root
