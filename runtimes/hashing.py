"""The digests of files, folders and JSON values: SHA-256, in hexadecimal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from mmap import mmap
from pathlib import Path
from typing import Any

from runtimes.errors import RuntimesError


def bytes_digest(data: bytes | bytearray | memoryview | mmap) -> str:
    return hashlib.sha256(data).hexdigest()


def pieces_digest(pieces: Iterable[bytes | memoryview]) -> str:
    """Digest of the bytes that ``pieces`` are, one behind the other."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _stream(file)


def json_digest(value: Any) -> str:
    """Digest of a JSON value in its canonical form: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return bytes_digest(text.encode())


def tree_paths(folder: Path) -> dict[str, Path]:
    """Every file below ``folder``, by its path relative to it with forward slashes.

    Raises:
        RuntimesError: if anything below ``folder`` is neither a regular file nor a folder (a link, a socket).
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise RuntimesError(f"{path} is a link or a special file: replace it with a regular file")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    return files


def tree_files(folder: Path) -> dict[str, str]:
    """Digest of every file below ``folder``, by its relative path; raises as :func:`tree_paths` does."""
    return {name: file_digest(path) for name, path in tree_paths(folder).items()}


def tree_digest(folder: Path) -> str:
    """Digest of a folder: SHA-256 of the sorted list of (path, SHA-256) of its files."""
    return json_digest(sorted(tree_files(folder).items()))


def _stream(file: Any) -> str:  # Python 3.10, as on JetPack 6, has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
