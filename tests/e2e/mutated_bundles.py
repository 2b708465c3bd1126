"""Read and load thousands of mutated bundles and deltas in one process that watches itself; run by its test.

    python mutated_bundles.py BUNDLE DELTA PUBLIC_KEY WORK BUNDLES DELTAS

What may happen is a RuntimesError, or nothing. Python's audit hook sees everything else: a new module, code compiled or
executed, a process, a socket, a library loaded, a file opened for writing outside WORK. Prints counts as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import os
import pkgutil
import random
import shutil
import struct
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import runtimes
from runtimes.bundle import MANIFEST, SIGNATURE
from runtimes.delta import MAGIC, apply_delta
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, json_digest

FORBIDDEN = ("exec", "import", "ctypes", "subprocess", "socket", "os.system", "os.exec", "os.posix_spawn", "os.fork",
             "os.spawn", "pty", "marshal", "pickle", "shutil.move", "urllib", "http", "winreg", "code.__new__")
WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate",
           "shutil.rmtree", "shutil.copyfile", "os.chown", "os.utime")
WORDS: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 10**400, 1e308, -0.0, "", "..", "../x", "../../../etc/passwd", "/etc/passwd", "a\x00b",
    "\ud800", "\u202e", "engines", "engines/main", MANIFEST, SIGNATURE, "manifest.json/x", "file:///etc/passwd",
    "//server/x", "C:\\x", "golden/feed.npz", "golden", "model.onnx", "runnable", "build on the device", "tensorrt",
    "onnxruntime", "openvino", "float16", "complex64", "O", "batch", "$(id)", "__import__('os').system('id')", [], {},
    [[]], {"": {}}, ["../x"], [1, 2, 3],
)


class Watch:
    """Raises in the middle of what must not happen, and says so whatever catches it."""

    def __init__(self, work: Path) -> None:
        self.work, self.on, self.seen = str(work), False, []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        bad = event.startswith(FORBIDDEN)
        if event == "compile":
            bad = arguments[1] != "<unknown>"   # numpy reads a header with ast.literal_eval, which runs nothing
        elif event == "import":
            bad = arguments[0] not in sys.modules
        elif event == "open":
            writes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            writes = writes or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
            bad = bool(writes) and not self.inside(arguments[0])
        elif event in WRITING:
            folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            bad = not self.inside(arguments[0], folder)
        if bad:
            self.on = False
            self.seen.append(f"{event} {arguments!r:.300}")
            raise SystemExit(f"forbidden: {event} {arguments!r:.300}")

    def inside(self, path: Any, folder: int = -1) -> bool:
        """Whether a path, relative to the open folder of that number if there is one, is in WORK."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        path = os.fsdecode(path)
        if folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        parent = os.path.realpath(os.path.dirname(os.path.abspath(path)))
        return f"{parent}/".startswith(f"{self.work}/") or os.path.abspath(path) == self.work

    @contextlib.contextmanager
    def watching(self) -> Any:
        self.on = True
        try:
            yield
        finally:
            self.on = False


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def mutate_json(record: Any, rng: random.Random) -> Any:
    """A copy with one to three places removed, replaced, renamed, doubled or exchanged."""
    record = copy.deepcopy(record)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(record)
        if not found:
            break
        *path, last = rng.choice(found)
        parent = record
        for key in path:
            parent = parent[key]
        action = rng.randrange(6)
        if action == 0:
            del parent[last]
        elif action == 1 and isinstance(parent, dict):
            parent[str(rng.choice(WORDS))] = parent.pop(last)
        elif action == 2 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        elif action == 3:
            other = rng.choice(found)
            value = record
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for key in other:
                    value = value[key]
            parent[last] = copy.deepcopy(value)
        elif action == 4 and isinstance(parent[last], str) and parent[last]:
            at = rng.randrange(len(parent[last]))
            parent[last] = parent[last][:at] + chr(rng.randrange(0x2FFF)) + parent[last][at + 1 :]
        else:
            parent[last] = copy.deepcopy(rng.choice(WORDS))
    return record


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four bytes changed, a piece removed, doubled, or replaced by noise."""
    action, at = rng.randrange(5), rng.randrange(len(data))
    size = rng.randrange(1, 40)
    if action == 0:
        return data[:at] + data[at + size :]
    if action == 1:
        return data[:at] + data[at : at + size] + data[at:]
    if action == 2:
        return data[:at] + rng.randbytes(size) + data[at + size :]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(changed) if changed != data else data[:-1]     # two changes may undo each other


def mutate_npz(data: bytes, rng: random.Random) -> bytes:
    """Another array, an array of objects, a damaged header, or noise inside a whole archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            action = rng.randrange(5)
            if action == 0:
                content = mutate_bytes(content, rng)
            elif action == 1:
                stream = io.BytesIO()
                np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
                content = stream.getvalue()
            elif action == 2:
                header = rng.choice((b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"__import__('os')",
                                     b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1000000000000), }"))
                content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + content[-12:]
            new.writestr(rng.choice((name, "../../x.npy", "y.npy", name + "x")), content)
    return made.getvalue()


class Mutator:
    """One bundle in a folder: changed, tried, and put back."""

    def __init__(self, bundle: Path, work: Path, key: Path, watch: Watch) -> None:
        self.folder, self.key, self.watch = work / "bundle", key, watch
        shutil.copytree(bundle, self.folder)
        files = [path for path in bundle.rglob("*") if path.is_file()]
        self.files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files}
        self.manifest = json.loads(self.files[MANIFEST])
        self.counts: Counter[str] = Counter()

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def relist(self, name: str, data: bytes) -> None:
        """Write a file, and make the manifest say it is as it should be: what an attacker without the key can do."""
        self.write(name, data)
        record = copy.deepcopy(self.manifest)
        record["files"][name] = {"sha256": bytes_digest(data), "size": len(data)}
        for graph in record["graphs"].values():
            for engine in graph["engines"].values():
                prefix = engine["path"] + "/"
                members = {n[len(prefix):]: e["sha256"] for n, e in record["files"].items() if n.startswith(prefix)}
                engine["digest"] = json_digest(sorted(members.items()))
        self.write(MANIFEST, json.dumps(record).encode())
        (self.folder / SIGNATURE).unlink()

    def mutate(self, rng: random.Random) -> str:
        """Change the bundle; return what was done."""
        kind = rng.choice(("manifest", "manifest", "manifest bytes", "engine.json", "engine.json bytes", "npz", "model",
                           "files", "signature"))
        records = [name for name in self.files if name.endswith("engine.json")]
        if kind == "manifest":
            (self.folder / SIGNATURE).unlink()
            self.write(MANIFEST, json.dumps(mutate_json(self.manifest, rng)).encode())
        elif kind == "manifest bytes":
            if rng.randrange(2):
                (self.folder / SIGNATURE).unlink()
            self.write(MANIFEST, mutate_bytes(self.files[MANIFEST], rng))
        elif kind.startswith("engine.json"):
            name = rng.choice(records)
            if kind.endswith("bytes"):
                self.relist(name, mutate_bytes(self.files[name], rng))
            else:
                self.relist(name, json.dumps(mutate_json(json.loads(self.files[name]), rng)).encode())
        elif kind == "npz":
            name = rng.choice([name for name in self.files if name.endswith(".npz")])
            change = rng.choice((mutate_npz, mutate_bytes))
            self.relist(name, change(self.files[name], rng))
        elif kind == "model":
            name = rng.choice([name for name in self.files if name.startswith("engines/")])
            self.write(name, mutate_bytes(self.files[name], rng))
        elif kind == "signature":
            self.write(SIGNATURE, mutate_bytes(self.files[SIGNATURE], rng))
        else:
            self.mutate_files(rng)
        return kind

    def mutate_files(self, rng: random.Random) -> None:
        path, action = self.folder / rng.choice(list(self.files)), rng.randrange(6)
        if action == 0 and path.name == SIGNATURE:      # without it the bundle is a good one, unsigned
            action = 4
        if action == 0:
            path.unlink()
        elif action == 1:
            path.rename(path.with_name("renamed"))
        elif action == 2:
            data = path.rename(self.folder.parent / "elsewhere")
            path.symlink_to(data)
        elif action == 3:
            (path.parent / rng.choice(("extra", ".hidden", "libx.so", "sitecustomize.py"))).write_bytes(b"x")
        elif action == 4:
            path.unlink()
            path.mkdir()
        else:
            path.unlink()
            os.mkfifo(path)

    def restore(self) -> None:
        wanted = set(self.files)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                if name in wanted:
                    shutil.rmtree(path)
            elif name not in wanted or path.is_symlink() or not path.is_file():
                path.unlink()
        for name, data in self.files.items():
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)
        (self.folder.parent / "elsewhere").unlink(missing_ok=True)

    def attempt(self, number: int) -> None:
        rng = random.Random(number)
        kind = self.mutate(rng)
        key = self.key if rng.randrange(4) == 0 else None
        target = rng.choice(("onnxruntime-cpu", "onnxruntime-cpu", "openvino-cpu", None))
        try:
            with self.watch.watching():
                read = runtimes.read_bundle(self.folder, key=key)
                self.counts[f"{kind}: read"] += 1
                runtimes.load(read, target=target, threads=1, self_test=rng.randrange(2) == 0).close()
                self.counts[f"{kind}: loaded"] += 1
                if key is not None:
                    raise AssertionError(f"mutation {number} ({kind}) passed with a key")
        except RuntimesError as error:
            str(error).encode("utf-8", "backslashreplace")
            self.counts[f"{kind}: refused"] += 1
        finally:
            self.restore()


def mutate_delta(data: bytes, rng: random.Random) -> bytes:
    """Another header, another payload, or both, under a digest that is right."""
    start = len(MAGIC) + 8
    stored, _ = struct.unpack("<II", data[len(MAGIC) : start])
    header = zstandard.ZstdDecompressor().decompress(data[start : start + stored])
    payload = data[start + stored : -32]
    kind = rng.randrange(5)
    if kind == 0:
        return mutate_bytes(data, rng)
    if kind in (1, 2):
        header = json.dumps(mutate_json(json.loads(header), rng)).encode()
    elif kind == 3:
        header = mutate_bytes(header, rng)
    if kind in (2, 4):
        payload = mutate_bytes(payload, rng)
    frame = zstandard.ZstdCompressor().compress(header)
    lengths = (len(frame), len(header)) if rng.randrange(20) else (rng.randrange(1 << 32), rng.randrange(1 << 32))
    made = MAGIC + struct.pack("<II", *lengths) + frame + payload
    return made + bytes.fromhex(bytes_digest(made))


def try_deltas(bundle: Path, delta: Path, work: Path, key: Path, count: int, watch: Watch) -> Counter[str]:
    counts: Counter[str] = Counter()
    data, file, into = delta.read_bytes(), work / "u.delta", work / "made"
    expected = None
    for number in range(count):
        rng = random.Random(number)
        file.write_bytes(mutate_delta(data, rng))
        try:
            with watch.watching():
                made = apply_delta(bundle, file, into, key=key if rng.randrange(4) == 0 else None)
            expected = expected or made.digest
            assert made.digest == expected, "another bundle was made"
            counts["harmless"] += 1
            shutil.rmtree(into)
        except RuntimesError:
            counts["refused"] += 1
        assert sorted(os.listdir(work)) == ["bundle", "u.delta"], os.listdir(work)
    return counts


def main() -> None:
    bundle, delta, key, work = (Path(argument) for argument in sys.argv[1:5])
    watch = Watch(work)
    mutator = Mutator(bundle, work, key, watch)
    for target in ("onnxruntime-cpu", "openvino-cpu"):      # everything that is imported is imported by now
        session = runtimes.load(mutator.folder, target=target, threads=1, self_test=True, key=key)
        session.close()
    for module in pkgutil.walk_packages(runtimes.__path__, "runtimes."):
        importlib.import_module(module.name)
    import difflib  # noqa: F401  names the nearest backend
    import unicodedata  # noqa: F401  Python's parser normalises names with it, in the header of an array

    "".encode("cp437")      # how zipfile reads a name that is not marked as UTF-8
    with contextlib.suppress(RuntimesError):
        runtimes.load(mutator.folder, target="jetson")
    apply_delta(bundle, delta, work / "made", key=key)
    shutil.rmtree(work / "made")
    for number in range(int(sys.argv[5])):
        mutator.attempt(number)
    deltas = try_deltas(bundle, delta, work, key, int(sys.argv[6]), watch)
    print(json.dumps({"bundles": dict(sorted(mutator.counts.items())), "deltas": deltas, "seen": watch.seen}))


if __name__ == "__main__":
    main()
