"""Files by content: whole or not at all, damaged ones noticed, trees inside their folder, old ones removed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtimes
from runtimes.errors import RuntimesError
from runtimes.filestore import SPARE_BYTES, FileStore, cache_folder


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(store: FileStore, data: bytes) -> str:
    with store.incoming(sha(data), len(data)) as take:
        take(data[:3])
        take(data[3:])
    return sha(data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path)
    yield store
    store.close()


def test_put_and_has(store: FileStore, tmp_path: Path) -> None:
    assert not store.has(sha(b"weights"))
    digest = put(store, b"weights")
    assert store.has(digest)
    assert (tmp_path / "files" / digest).read_bytes() == b"weights"
    assert put(store, b"") == sha(b"")


@pytest.mark.parametrize(("data", "size"), [(b"weights", 6), (b"weight", 7), (b"Weights", 7)])
def test_other_bytes_are_not_kept(store: FileStore, tmp_path: Path, data: bytes, size: int) -> None:
    digest = sha(b"weights")
    with pytest.raises(RuntimesError, match=f"file {digest[:12]}… came as .* with SHA-256"), \
            store.incoming(digest, size) as take:
        take(data[:6] if data == b"weights" else data)
    assert not store.has(digest)
    assert list((tmp_path / "files").iterdir()) == []
    assert not list(store.session.glob("*.tmp"))


def test_a_damaged_file_is_asked_for_again(store: FileStore, tmp_path: Path) -> None:
    digest = put(store, b"weights")
    path = tmp_path / "files" / digest
    path.chmod(0o644)
    path.write_bytes(b"weightz")
    ticks: list[int] = []
    other = FileStore(tmp_path, tick=lambda: ticks.append(1))
    assert not other.has(digest)
    assert ticks == [1]
    assert not path.exists()
    other.close()


def test_a_file_that_is_damaged_while_the_session_runs(store: FileStore, tmp_path: Path) -> None:
    digest = put(store, b"weights")
    tree = store.tree({"a": digest})
    for damaged in (b"weig", b"weightz"):
        path = tmp_path / "files" / digest
        path.chmod(0o644)
        path.write_bytes(damaged)
        assert not store.has(digest)
        with pytest.raises(RuntimesError, match="which is not here: send it first"):
            store.tree({"a": digest})
        put(store, b"weights")
        assert store.tree({"a": digest}) == tree
        assert (tree / "a").read_bytes() == b"weights"


@pytest.mark.parametrize("change", ["add", "remove", "replace", "link"])
def test_a_tree_that_a_job_changed_is_made_again(store: FileStore, change: str) -> None:
    digest = put(store, b"weights")
    tree = store.tree({"a": digest, "sub/b": digest})
    if change == "add":
        (tree / "sub/new").write_bytes(b"")
    else:
        (tree / "sub/b").unlink()
    if change == "replace":
        (tree / "sub/b").write_bytes(b"weightz")
    if change == "link":
        (tree / "sub/b").symlink_to("/etc/passwd")
    assert store.tree({"a": digest, "sub/b": digest}) == tree
    found = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if not path.is_dir()}
    assert found == {"a": b"weights", "sub/b": b"weights"}


def test_where_the_disk_is_short_what_earlier_sessions_used_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> shutil._ntuple_diskusage:
        used = sum(file.stat().st_size for file in (tmp_path / "files").iterdir())
        return shutil._ntuple_diskusage(SPARE_BYTES + 350, used, SPARE_BYTES + 350 - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    earlier = FileStore(tmp_path)
    old = [put(earlier, bytes([number]) * 100) for number in range(3)]
    earlier.close()
    for number, digest in enumerate(old):
        os.utime(tmp_path / "files" / digest, (number, number))
    store = FileStore(tmp_path)
    assert store.has(old[0])
    assert store.room_bytes() == 250        # 50 free, and two files of an earlier session
    new = put(store, b"x" * 100)
    assert {path.name for path in (tmp_path / "files").iterdir()} == {old[0], old[2], new}
    other = FileStore(tmp_path)
    assert store.room_bytes() == 50         # another session may be about to use the others
    other.close()
    store.close()


@pytest.mark.parametrize("digest", ["", "../" + "0" * 61, "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_not_a_digest(store: FileStore, digest: str) -> None:
    with pytest.raises(RuntimesError, match="is not a SHA-256 in hexadecimal"):
        store.has(digest)
    with pytest.raises(RuntimesError, match="is not a SHA-256 in hexadecimal"), store.incoming(digest, 0):
        pass
    with pytest.raises(RuntimesError, match=r"a tree: 'a': .* is not a SHA-256"):
        store.tree({"a": digest})


def test_a_link_is_not_a_file(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "files" / sha(b"secret")).symlink_to(tmp_path / "secret")
    assert not store.has(sha(b"secret"))


def test_tree(store: FileStore) -> None:
    one, two = put(store, b"one!"), put(store, b"two!")
    folder = store.tree({"engine.json": one, "sub/model.onnx": two, "again": one})
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "engine.json": b"one!", "sub/model.onnx": b"two!", "again": b"one!"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert folder.is_relative_to(store.session)
    assert store.tree({"again": one, "sub/model.onnx": two, "engine.json": one}) == folder


def test_a_tree_without_hard_links_is_copied(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file = store.tree({"a/b": put(store, b"bytes")}) / "a/b"
    assert (file.read_bytes(), file.stat().st_nlink) == (b"bytes", 1)


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\\b", "a\nb", "./a"])
def test_a_path_outside(store: FileStore, path: str) -> None:
    with pytest.raises(RuntimesError, match="which is not a plain path inside the folder"):
        store.tree({path: put(store, b"bytes")})


def test_a_file_where_a_folder_must_be(store: FileStore) -> None:
    with pytest.raises(RuntimesError, match="another file where it needs a folder"):
        store.tree({"a": put(store, b"one!"), "a/b": put(store, b"two!")})


def test_a_tree_of_a_file_that_is_not_here(store: FileStore) -> None:
    with pytest.raises(RuntimesError, match="which is not here: send it first"):
        store.tree({"a": sha(b"nowhere")})


def test_the_files_used_longest_ago_are_removed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digests = [put(store, bytes([number]) * 100) for number in range(4)]
    store.close()
    for number, digest in enumerate(digests):
        os.utime(tmp_path / "files" / digest, (number, number))
    store = FileStore(tmp_path, keep_bytes=200)
    assert store.has(digests[0])        # used again
    store.close()
    assert {path.name for path in (tmp_path / "files").iterdir()} == {digests[0], digests[3]}
    assert not list((tmp_path / "sessions").iterdir())


def test_what_a_session_used_stays_even_if_it_is_too_much(tmp_path: Path) -> None:
    store = FileStore(tmp_path, keep_bytes=10)
    digest = put(store, bytes(100))
    store.close()
    assert (tmp_path / "files" / digest).exists()


def test_nothing_is_removed_while_another_session_runs(tmp_path: Path) -> None:
    other = FileStore(tmp_path)
    digest = put(other, bytes(100))
    FileStore(tmp_path, keep_bytes=0).close()
    assert (tmp_path / "files" / digest).exists()
    assert other.session.is_dir()
    other.close()
    FileStore(tmp_path, keep_bytes=0).close()
    assert not list((tmp_path / "files").iterdir())


def test_old_packages_are_removed(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "runtimes" / str(number)).mkdir(parents=True)
        os.utime(tmp_path / "runtimes" / str(number), (number, number))
    FileStore(tmp_path).close()
    assert {path.name for path in (tmp_path / "runtimes").iterdir()} == {"2", "3", "4", "5"}


def test_a_killed_session_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    code = ("import os, sys; from pathlib import Path; from runtimes.filestore import FileStore\n"
            "print(FileStore(Path(sys.argv[1])).session, flush=True); os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True,
                          cwd=Path(runtimes.__file__).parents[1])
    left = Path(done.stdout.strip())
    assert left.is_dir()
    FileStore(tmp_path).close()
    assert not left.exists()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("COMPRESS_CACHE")
    assert cache_folder() == Path("/shared/compress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/compress"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/compress"
