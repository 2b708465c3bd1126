"""Files and folders that are there whole, or as they were."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from compress.errors import CompressError
from compress.store import atomic_folder, atomic_write
from tests.compress.test_store import full, names


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "a [1]*.json"
    atomic_write(path, "ü")
    assert path.read_bytes() == "ü".encode()
    atomic_write(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == [path.name]


def test_atomic_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    atomic_write(tmp_path / "link", "x")
    assert (tmp_path / "real").read_text() == "x"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_atomic_write_to_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    atomic_write(tmp_path / "a", "old")
    monkeypatch.setattr(call, full)
    with pytest.raises(CompressError, match=r"cannot write .*/a: no space left"):
        atomic_write(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_file_that_is_too_large_for_its_disk(tmp_path: Path) -> None:
    """As of 4 GiB on FAT32; Python says what it is, and not of which file."""
    atomic_write(tmp_path / "a", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CompressError, match=r"cannot write .*/a: .*File too large"):
            atomic_write(tmp_path / "a", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_write_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CompressError, match="no space left"):
        atomic_write(tmp_path / "a", "new")
    assert names(tmp_path) == []


def test_atomic_write_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"cannot write .*/none/a: .*No such file"):
        atomic_write(tmp_path / "none" / "a", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CompressError, match=r"cannot write .*/folder: .*directory"):
        atomic_write(tmp_path / "folder", "x")
    assert names(tmp_path) == ["folder"]


def test_what_a_dead_writer_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".a.999999999.tmp").touch()
    (tmp_path / ".a.1.tmp").touch()          # process 1 lives
    (tmp_path / ".a.b.999999999.tmp").touch()  # of another file
    atomic_write(tmp_path / "a", "x")
    assert names(tmp_path) == [".a.1.tmp", ".a.b.999999999.tmp", "a"]


def test_atomic_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bundle"
    with atomic_folder(path) as folder:
        (folder / "manifest.json").write_text('{"format": "compress.bundle"}')
        assert not path.exists()
    assert names(tmp_path / "new") == ["bundle", "bundle/manifest.json"]
    with atomic_folder(path) as folder:
        (folder / "other").touch()
    assert names(tmp_path / "new") == ["bundle", "bundle/other"]


def test_atomic_folder_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    def fill() -> None:
        with atomic_folder(tmp_path / "bundle") as folder:
            (folder / "half").touch()
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half"):
        fill()
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"format": "other.thing"}'])
def test_atomic_folder_leaves_others_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "package.json").write_text(content)
    (tmp_path / "file").touch()
    for name in ("mine", "file"):
        refused = pytest.raises(CompressError, match=f"{name} exists and was not made by compress")
        with refused, atomic_folder(tmp_path / name):
            pytest.fail("the block must not start")
    assert names(tmp_path) == ["file", "mine", "mine/package.json"]


def test_atomic_folder_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "manifest.json").write_text('{"format": "compress.bundle"}')
    monkeypatch.setattr(os, "fsync", full)
    full_disk = pytest.raises(CompressError, match=r"cannot write .*/bundle: no space left")
    with full_disk, atomic_folder(tmp_path / "bundle") as folder:
        (folder / "other").touch()
    assert names(tmp_path) == ["bundle", "bundle/manifest.json"]


def test_atomic_folder_puts_back_what_a_killed_run_set_aside(tmp_path: Path) -> None:
    (tmp_path / ".bundle.old").mkdir()
    (tmp_path / ".bundle.old" / "engine.json").write_text('{"format": "compress.engine"}')
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "bundle"):
        raise ValueError("no")
    assert names(tmp_path) == ["bundle", "bundle/engine.json"]
