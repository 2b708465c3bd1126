"""Expected digests are those of coreutils' sha256sum."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, file_digest, json_digest, pieces_digest, tree_digest, tree_files, tree_paths

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_bytes_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert bytes_digest(b"abc") == file_digest(tmp_path / "a") == pieces_digest([b"a", memoryview(b"bc")]) == ABC
    monkeypatch.delattr("hashlib.file_digest", raising=False)   # as on Python 3.10
    assert file_digest(tmp_path / "a") == ABC


def test_json_is_canonical() -> None:
    assert json_digest({"b": 1, "a": [1.5, "é"]}) == json_digest({"a": [1.5, "é"], "b": 1})
    assert json_digest({"a": 1}) == bytes_digest(b'{"a":1}')
    with pytest.raises(ValueError, match="Out of range"):
        json_digest(float("nan"))


def test_tree(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_bytes(b"abc")
    (tmp_path / ".hidden").write_bytes(b"abc")
    assert tree_files(tmp_path) == {".hidden": ABC, "sub/a": ABC}
    assert tree_paths(tmp_path)["sub/a"] == tmp_path / "sub/a"
    assert tree_digest(tmp_path) == bytes_digest(f'[[".hidden","{ABC}"],["sub/a","{ABC}"]]'.encode())


def test_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(RuntimesError, match="link is a link or a special file: replace it"):
        tree_digest(tmp_path)
    (tmp_path / "link").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RuntimesError, match="pipe is a link or a special file"):
        tree_digest(tmp_path)
