"""WebDataset shards: ``.tar`` files in which the members of one sample stand together and differ in their extensions.

Members are read from the stream and never unpacked, so that their paths are mere names.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.readers.folder import COLUMNS
from calibration.rows import Row

FORM = "webdataset"
MOST_BYTES = 2**29      # of a member
_LOST = "the sample before that and all after it are lost, copy the shard again"


def takes(path: Path) -> bool:
    return bool(files(path))


def files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(file for file in path.glob("*.tar") if file.is_file())


def rows(path: Path) -> Iterator[Row]:
    """The samples of the shards in the order of their names.

    A member ``a/b.left.jpg`` belongs to the sample ``a/b`` and has the extension ``left.jpg``. ``.txt`` becomes the
    column ``text``, pictures ``image``, sounds ``audio``, ``.cls`` ``label``, the keys of a ``.json`` columns of their
    own, and a ``.npy`` the column ``npy``; where there is more before the last extension, that is the column's name.
    """
    seen: dict[str, str] = {}
    for shard in files(path):
        for row, key in _shard_rows(shard):
            if key is not None and key in seen:
                row = Row(where=row.where, problem=f"has a name that is in {seen[key]} already: rename one")
            elif key is not None:
                seen[key] = str(shard)
            yield row


def _shard_rows(shard: Path) -> Iterator[tuple[Row, str | None]]:
    """The rows with their keys; the last has none where the shard is cut off."""
    key, members, problem = None, dict[str, bytes](), None
    for name, data in _members(shard):
        if name is None:
            yield Row(where=str(shard), problem=f"{data.decode()}: {_LOST}"), None
            return      # the sample that was being read may lack members
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        here = f"{folder}/{stem}" if folder else stem
        if here != key:
            if key is not None:
                yield _row(shard, key, members, problem), key
            key, members, problem = here, {}, None
        if extension.lower() in members:
            problem = f"has the member {extension!r} twice"
        if len(data) > MOST_BYTES:
            problem = f"has the member {extension!r} of more than {MOST_BYTES} bytes"
        members[extension.lower()] = data
    if key is not None:
        yield _row(shard, key, members, problem), key


def _members(shard: Path) -> Iterator[tuple[str | None, bytes]]:
    """Names and contents of the regular files; at the end ``None`` with what is wrong with the archive."""
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.name.rpartition("/")[2].startswith("."):
                    continue
                data = stream.read(MOST_BYTES + 1)
                if len(data) < min(member.size, MOST_BYTES + 1):
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, data
            end = archive.offset        # tarfile takes a damaged header, or none, for the end
        with shard.open("rb") as file:
            file.seek(end)
            if file.read(512) != bytes(512):
                yield None, f"is cut off or damaged at byte {end}".encode()
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        yield None, f"is cut off or damaged ({error})".encode()
    except OSError as error:
        raise CalibrationError(f"{shard} cannot be read ({error.strerror or error})") from error


def _row(shard: Path, key: str, members: dict[str, bytes], problem: str | None) -> Row:
    values: dict[str, Any] = {}
    for extension, data in members.items():
        before, _, last = extension.rpartition(".")
        try:
            found = _columns(before, last, data)
        except (ValueError, RecursionError, EOFError) as error:
            problem = problem or f"has the member {extension!r}, which cannot be read ({error})"
            continue
        double = sorted(found.keys() & values.keys())
        if double:
            problem = problem or f"has the column {double[0]!r} twice: in {extension!r}, and before"
        values.update(found)
    return Row(where=f"{shard}, sample {key!r}", values=values, problem=problem)


def _columns(before: str, last: str, data: bytes) -> dict[str, Any]:
    if last == "json":
        content = json.loads(data)
        return content if isinstance(content, dict) and not before else {before or "json": content}
    if last == "npy":
        return {before or "npy": np.load(io.BytesIO(data), allow_pickle=False)}
    if last in ("cls", "txt"):
        return {before or {"cls": "label", "txt": "text"}[last]: data.decode("utf-8").strip()}
    return {before or COLUMNS.get(f".{last}", last): data}
