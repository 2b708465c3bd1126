from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import CompressError
from compress.store import Artifact, Store


def build(text: str = "hello", record: Any = None) -> Callable[[Path, Path], Any]:
    def write(into: Path, scratch: Path) -> Any:
        (into / "sub").mkdir()
        (into / "a.txt").write_text(text)
        (into / "sub" / "b.bin").write_bytes(b"\0\1")
        return {"answer": 42} if record is None else record
    return write


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_is_kept(store: Store) -> None:
    key = store.key("quantize", {"ranges": "minmax"}, {"model": "m"})
    made = store.run(key, "quantize", build())
    files = {"a.txt": sha256(b"hello"), "sub/b.bin": sha256(b"\0\1")}
    listed = json.dumps(sorted(files.items()), separators=(",", ":"))
    assert (made.key, made.stage, made.record, dict(made.files)) == (key, "quantize", {"answer": 42}, files)
    assert made.digest == sha256(listed.encode())
    assert made.path == store.root / "objects" / made.digest
    assert (made.path / "sub" / "b.bin").read_bytes() == b"\0\1"
    assert made.seconds >= 0
    assert made.peak_memory_bytes > 1 << 20
    assert store.find(key) == made
    assert names(store.root / "tmp") == names(store.root / "scratch") == []
    record = json.loads((store.root / "stages" / f"{key}.json").read_text())
    assert (record["format"], record["version"], record["digest"]) == ("compress.stage", 1, made.digest)


def test_the_key_is_of_stage_settings_and_inputs(store: Store) -> None:
    key = store.key("prune", {"ratio": 0.5, "keep": []}, {"a": "1", "b": "2"})
    assert key == sha256(b'{"inputs":{"a":"1","b":"2"},"settings":{"keep":[],"ratio":0.5},"stage":"prune"}')
    assert key == store.key("prune", {"keep": [], "ratio": 0.5}, {"b": "2", "a": "1"})
    assert len({key, store.key("prune", {"ratio": 0.5}, {"a": "1", "b": "2"}), store.key("x", {}, {})}) == 3


@pytest.mark.parametrize("settings", [float("nan"), {"path": Path("x")}])
def test_settings_must_be_json(store: Store, settings: object) -> None:
    with pytest.raises(CompressError, match="stage 'prune': its settings cannot be hashed"):
        store.key("prune", settings, {})


def test_the_digest_does_not_depend_on_time_place_or_record(tmp_path: Path) -> None:
    with Store(tmp_path / "a") as a, Store(tmp_path / "b") as b:
        one, other = a.run("k" * 64, "s", build(record=1)), b.run("l" * 64, "t", build(record=2))
        assert one.digest == other.digest


def test_two_keys_may_share_an_object(store: Store) -> None:
    one, other = store.run("a", "s", build()), store.run("b", "s", build())
    assert one.path == other.path
    assert store.find("a") == one
    assert store.find("b") == other


def test_an_artifact_without_files(store: Store) -> None:
    store.run("a", "bench", lambda into, scratch: {"p50_ms": 1.5})
    found = store.find("a")
    assert found is not None
    assert found.record == {"p50_ms": 1.5}


def test_an_unknown_key(store: Store) -> None:
    assert store.find("nothing") is None
    assert store.warnings == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(made: Artifact, old: str, new: str) -> None:
    stage_file(made).write_text(stage_file(made).read_text().replace(old, new))


def stage_file(made: Artifact) -> Path:
    return made.path.parents[1] / "stages" / f"{made.key}.json"


DAMAGE: dict[str, tuple[Callable[[Artifact], object], str]] = {
    "one byte": (lambda made: flip(made.path / "sub" / "b.bin"), r"'sub/b\.bin' is missing, added or changed"),
    "missing file": (lambda made: (made.path / "a.txt").unlink(), r"'a\.txt' is missing"),
    "extra file": (lambda made: (made.path / "c").touch(), "'c' is missing, added"),
    "link": (lambda made: (made.path / "c").symlink_to("a.txt"), "is a link"),
    "folder gone": (lambda made: shutil.rmtree(made.path), r"'a\.txt' is missing"),
    "record byte": (lambda made: flip(stage_file(made)), "damaged"),
    "record cut": (lambda made: stage_file(made).write_bytes(stage_file(made).read_bytes()[:100]), "damaged"),
    "record empty": (lambda made: stage_file(made).write_bytes(b""), "damaged"),
    "record of a list": (lambda made: stage_file(made).write_text("[]"), "checksum"),
    "record not text": (lambda made: stage_file(made).write_bytes(b"\xff\xfe"), "damaged"),
    "record number": (lambda made: edit(made, "42", "43"), "checksum"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_artifact_is_reported_and_made_again(store: Store, case: str) -> None:
    damage, what = DAMAGE[case]
    made = store.run("key", "quantize", build())
    kept = store.run("other", "bench", build("other"))
    damage(made)
    assert store.find("key") is None
    (warning,) = store.warnings
    assert re.search(what, warning)
    assert store.find("key") is None
    assert len(store.warnings) == 1
    again = store.run("key", "quantize", build())
    assert (again.digest, store.find("key")) == (made.digest, again)
    assert store.find("other") == kept


@pytest.mark.parametrize(("change", "what"), [
    ({"key": "other"}, "another key"), ({"version": 2}, "another format version"),
    ({"stages": 1}, "unexpected keyword"),
    ({"digest": "../../.."}, "another digest than its files"),
])
def test_a_record_that_says_something_else(store: Store, change: dict[str, object], what: str) -> None:
    made = store.run("key", "s", build())
    content = {**json.loads(stage_file(made).read_text()), **change}
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    stage_file(made).write_text(json.dumps({**content, "sha256": sha256(text.encode())}))
    assert store.find("key") is None
    assert what in store.warnings[0]


def test_a_damaged_object_of_a_killed_run_is_not_taken(store: Store) -> None:
    made = store.run("key", "s", build())
    flip(made.path / "a.txt")
    stage_file(made).unlink()
    store.run("key", "s", build())
    assert store.find("key") is not None


def test_a_failed_stage_leaves_its_checkpoints_only(store: Store) -> None:
    def fail(into: Path, scratch: Path) -> None:
        (into / "half").touch()
        (scratch / "step-3").touch()
        raise ValueError("a bug keeps its traceback")

    with pytest.raises(ValueError, match="a bug"):
        store.run("key", "s", fail)
    assert (names(store.root / "tmp"), names(store.root / "objects")) == ([], [])
    assert names(store.root / "scratch") == ["key", "key/step-3"]

    def resume(into: Path, scratch: Path) -> list[str]:
        return names(scratch)

    assert store.run("key", "s", resume).record == ["step-3"]
    assert names(store.root / "scratch") == []


def test_an_interrupted_stage_leaves_nothing(store: Store) -> None:
    def interrupt(into: Path, scratch: Path) -> None:
        (into / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run("key", "s", interrupt)
    assert names(store.root / "tmp") == []


@pytest.mark.parametrize("record", [float("nan"), object()])
def test_a_record_must_be_json(store: Store, record: object) -> None:
    with pytest.raises(CompressError, match="stage 'bench' made something that cannot be kept"):
        store.run("key", "bench", build(record=record))
    assert names(store.root / "objects") == []


def test_a_stage_must_not_make_links(store: Store) -> None:
    def link(into: Path, scratch: Path) -> None:
        (into / "passwd").symlink_to("/etc/passwd")

    with pytest.raises(CompressError, match="passwd is a link"):
        store.run("key", "s", link)


def test_a_bug_in_a_stage_is_not_blamed_on_the_disk(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.run("key", "s", lambda into, scratch: (into / "never written").read_text())


def test_opening_clears_what_dead_runs_left(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        made = store.run("key", "s", build())
    root = store.root
    (root / "tmp" / "key-1").mkdir()
    (root / "tmp" / "key-1" / "half").touch()
    (root / "stages" / ".key.json.1.tmp").touch()
    (root / "objects" / "orphan").mkdir()
    (root / "scratch" / "key").mkdir()         # killed after its record was written
    (root / "scratch" / "unfinished").mkdir()
    with Store(root) as store:
        assert store.find("key") == made
    assert names(root / "tmp") == []
    assert names(root / "stages") == ["key.json"]
    assert names(root / "scratch") == ["unfinished"]
    assert [path.name for path in (root / "objects").iterdir()] == [made.digest]


def test_one_process_at_a_time(store: Store) -> None:
    with pytest.raises(CompressError, match=rf"another run uses the store .* \(process {os.getpid()}\)"):
        Store(store.root)
    store.close()
    Store(store.root).close()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = ("import sys, time; from compress.store import Store; "
            "s = Store(sys.argv[1]); print(1, flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder:
        holder.stdout.readline()
        with pytest.raises(CompressError, match=f"process {holder.pid}"):
            Store(tmp_path / "store")
        holder.kill()
    Store(tmp_path / "store").close()


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "mine").touch()
    with pytest.raises(CompressError, match=r"is no store \('tmp'\)"):
        Store(tmp_path)
    assert names(tmp_path) == ["tmp", "tmp/mine"]


def test_a_store_begun_by_a_killed_run_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".store.json.1.tmp").touch()
    (tmp_path / "lock").touch()
    Store(tmp_path).close()


def test_a_store_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format": "compress.store", "version": 2}')
    with pytest.raises(CompressError, match=r"store\.json says .*2.*expected"):
        Store(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(CompressError, match=r"store\.json is damaged"):
        Store(tmp_path)


def test_a_store_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CompressError, match=r"cannot open the store .*/file/store"):
        Store(tmp_path / "file" / "store")


def full(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def say_full(into: Path, scratch: Path) -> None:
    (into / "half").touch()
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def run_out(into: Path, scratch: Path) -> None:
    (into / "half").touch()
    try:
        full()
    except OSError as error:
        raise RuntimeError("file write failed") from error


@pytest.mark.parametrize("builder", [say_full, run_out])
def test_a_stage_that_fills_the_disk(store: Store, builder: Callable[[Path, Path], None]) -> None:
    kept = store.run("before", "s", build())
    with pytest.raises(CompressError, match=r"what stage 'export' makes .*: no space left on the disk \([\d.]+ MiB"):
        store.run("key", "export", builder)
    assert names(store.root / "tmp") == []
    assert store.find("before") == kept


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "pathlib.Path.rename", "pathlib.Path.mkdir"])
def test_a_full_disk_at_any_point(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    kept = store.run("before", "s", build())
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(CompressError, match="no space left on the disk"):
            store.run("key", "s", build("other"))
    assert names(store.root / "tmp") == []
    assert names(store.root / "stages") == ["before.json"]
    assert store.find("before") == kept
    assert store.find("key") is None
    assert store.warnings == []
    assert store.run("key", "s", build("other")) == store.find("key")


def test_a_disk_with_nothing_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(into: Path, scratch: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(RuntimeError, match="file write failed"):
        store.run("key", "s", fail)
    usage = shutil.disk_usage(store.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(CompressError, match="no space left"):
        store.run("key", "s", fail)


TINY = """
import pathlib, sys
from compress.errors import CompressError
from compress.store import Store, atomic_folder, atomic_write
root = pathlib.Path(sys.argv[1])
def build(size):
    return lambda into, scratch: (into / "data").write_bytes(b"x" * size) and None
store = Store(root / "store")
kept = store.run("a", "s", build(100_000))
try:
    store.run("b", "s", build(10_000_000))
except CompressError as error:
    print(error)
def fill():
    with atomic_folder(root / "folder") as folder:
        (folder / "data").write_bytes(b"x" * 10_000_000)
for write in (lambda: atomic_write(root / "file", b"x" * 10_000_000), fill):
    try:
        write()
    except CompressError as error:
        print(error)
assert store.find("a") == kept and store.find("b") is None and not list((root / "store" / "tmp").iterdir())
assert [path.name for path in root.iterdir()] == ["store"]
store.run("b", "s", build(200_000))
print("fine")
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tiny "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    command = [*mount, sys.executable, "-c", TINY, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    *errors, last = result.stdout.splitlines()
    assert last == "fine"
    assert [line.split(": no space left on the disk (")[0] for line in errors] == [
        f"cannot keep what stage 's' makes in {tmp_path}/store", f"cannot write {tmp_path}/file",
        f"cannot write {tmp_path}/folder"]


STAGES = """
import json, pathlib, sys, time
from compress.store import Store
root, log = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
digests = {}
with Store(root) as store:
    print("open", flush=True)
    before = "input"
    for number in range(6):
        name = f"stage{number}"
        def build(into, scratch):
            for part in range(4):
                checkpoint = scratch / str(part)
                if not checkpoint.exists():
                    time.sleep(0.02)
                    checkpoint.touch()
                (into / f"{part}.txt").write_text(f"{before} {number} {part}" * 1000)
            return {"number": number}
        key = store.key(name, {}, {"before": before})
        artifact = store.find(key)
        if artifact is None:
            artifact = store.run(key, name, build)
            with log.open("a") as file:
                file.write(name + "\\n")
        digests[name] = before = artifact.digest
    print(json.dumps([digests, store.warnings]))
"""


def test_kill_at_any_moment_then_finish(tmp_path: Path) -> None:
    def start(root: Path, log: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", STAGES, str(root), str(log)], stdout=subprocess.PIPE)

    def finish(root: Path, log: Path) -> dict[str, str]:
        out, _ = start(root, log).communicate()
        digests, warnings = json.loads(out.splitlines()[-1])
        assert warnings == []
        return digests

    expected = finish(tmp_path / "calm", tmp_path / "calm.log")
    assert finish(tmp_path / "calm", tmp_path / "calm.log") == expected
    assert (tmp_path / "calm.log").read_text().split() == [f"stage{i}" for i in range(6)]  # none was redone

    root, log = tmp_path / "store", tmp_path / "log"
    random = np.random.default_rng(5)
    killed = 0
    for _ in range(10):
        process = start(root, log)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(random.uniform(0, 0.1)))  # of at least 0.48 s of work
        done = {path.name: path.read_bytes() for path in (root / "stages").glob("*.json")}
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for name, content in done.items():  # a finished stage is never written again
            assert (root / "stages" / name).read_bytes() == content
    assert killed >= 5
    assert finish(root, log) == expected
    assert names(root / "tmp") == names(root / "scratch") == []
    assert len(names(root / "stages")) == 6
    runs = log.read_text().split()
    assert len(runs) == len(set(runs))  # a kill between a stage's end and its line here loses the line


def test_torch_is_not_imported() -> None:
    code = "import sys, compress.store; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
