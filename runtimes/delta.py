"""Apply a delta: one file that turns a bundle into its next version. Needs ``zstandard``, the extra ``[delta]``.

Layout, all integers little-endian (``docs/bundle.md`` has the whole of it)::

    16 bytes   MAGIC, which holds the version
     4         size of the header as it is stored
     4         size of the header, a JSON object, once decompressed
     ...       the header, a zstd frame
     ...       the payload: zstd frames one after the other, in the order of the header's files
    32         SHA-256 of all of the above

A file of the new bundle is a copy of an old one, or blocks of ``BLOCK`` bytes, each a zstd frame of its own. Where an
old file helps, a block is compressed with the old bytes around its place as its prefix, after the old bytes of the
``spans`` have been subtracted from it, modulo 256: the int8 weights of two versions differ little.

Nothing in a delta is code, no size in it is believed before it is compared with the manifest's, and whatever it says,
the result is checked as any bundle is.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from runtimes.bundle import LARGEST_MANIFEST, MANIFEST, SIGNATURE, Bundle, parse_bundle, read_bundle
from runtimes.errors import RuntimesError
from runtimes.folders import new_folder
from runtimes.hashing import file_digest
from runtimes.records import get, inside, parse_record, typed
from runtimes.signing import Key

FORMAT, VERSION = "compress.delta", 1
MAGIC = b"compress.delta\x00\x01"
BLOCK = 4 << 20         # bytes; with the prefix, twice, and zstd's own it keeps an update below 64 MiB
SMALLEST_PREFIX = 8     # zstd takes no shorter one
LARGEST_STORED = BLOCK + (BLOCK >> 8) + 64     # zstd's bound for a block
LARGEST_HEADER = 8 << 20
HEADER_KEYS = frozenset({"format", "version", "old", "new", "files"})
PATCH_KEYS = frozenset({"path", "size", "sha256", "from", "blocks", "spans"})
DIGEST_SIZE = 32

Span = tuple[int, int, int]
"""Where in the new file, where in the old one, and how many bytes."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """How a file of the new bundle is made.

    ``blocks`` are the stored sizes of its blocks; ``None`` says that it is a copy of ``source``. Without ``source`` the
    blocks stand for themselves.
    """

    path: str
    size: int
    sha256: str
    source: str | None = None
    spans: tuple[Span, ...] = ()
    blocks: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"path": self.path, "size": self.size, "sha256": self.sha256}
        if self.source is not None:
            record["from"] = self.source
        if self.blocks is not None:
            record["blocks"] = list(self.blocks)
        if self.spans:
            record["spans"] = [list(span) for span in self.spans]
        return record


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a delta's header says; ``payload`` is where in the file the blocks begin."""

    path: Path
    old: str                    # SHA-256 of the manifest of the bundle it is for
    new: str                    # ... and of the one it makes
    files: tuple[Patch, ...]    # the manifest first, then its signature if there is one
    payload: int
    size: int


def apply_delta(old: Path | str, delta: Path | str, into: Path | str, *, key: Key | None = None) -> Bundle:
    """Write into folder ``into`` the bundle that ``delta`` makes of the one at ``old``: all of it, or nothing.

    Args:
        old: the bundle the delta is for; it is only read.
        delta: the file ``compress bundle delta`` wrote.
        into: a folder that does not exist yet.
        key: the public key the new manifest must be signed with; it is checked before any other file is made.

    Raises:
        RuntimesError: if the delta is damaged or for another bundle, or what it makes is not what its manifest lists.
    """
    old, delta, into = Path(old), Path(delta), Path(into)
    try:
        with delta.open("rb") as file:
            update = read_header(file, delta)
            before = _read_old(old, update)
            with new_folder(into) as folder:
                _write_files(file, update, before, folder, into, key)
                made = read_bundle(folder, key=key)
        return replace(made, path=into)
    except OSError as error:
        raise RuntimesError(f"delta {delta} cannot be applied to {old}: {error}") from error


def read_header(file: IO[bytes], path: Path) -> Delta:
    """The header of an open delta, once all of the file has been hashed.

    Raises:
        RuntimesError: if the file is no delta, is cut short or changed, or its header is not what one must be.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(len(MAGIC) + 8)
    if start[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise RuntimesError(f"{path} is not a delta: name the file `compress bundle delta` wrote")
    if start[len(MAGIC) - 1] != VERSION:
        raise RuntimesError(
            f"{path} has format version {start[len(MAGIC) - 1]} and this software reads version {VERSION}: "
            "install the version of compress-edge that wrote it")
    if size < len(start) + DIGEST_SIZE:
        raise RuntimesError(f"{path} is cut short: copy it again")
    file.seek(0)
    digest = hashlib.sha256()
    for block in _pieces(file, size - DIGEST_SIZE, str(path)):
        digest.update(block)
    if file.read() != digest.digest():
        raise RuntimesError(f"{path} is cut short or was changed (its SHA-256 differs): copy it again")
    stored, length = struct.unpack("<II", start[len(MAGIC):])
    if stored > min(size - len(start) - DIGEST_SIZE, LARGEST_HEADER) or length > LARGEST_HEADER:
        raise RuntimesError(f"{path}: its header is larger than it can be: it is damaged, write it again")
    file.seek(len(start))
    record = parse_record(inflate(file.read(stored), length, b"", str(path)), str(path), format=FORMAT, version=VERSION)
    update = _parse(record, path, len(start) + stored, size)
    if update.payload + sum(sum(patch.blocks or ()) for patch in update.files) + DIGEST_SIZE != size:
        raise RuntimesError(f"{path}: its blocks do not add up to its size: it is damaged, write it again")
    return update


def inflate(frame: bytes, size: int, prefix: bytes, where: str) -> bytes:
    """Decompress one zstd frame to exactly ``size`` bytes: what does not say that it is of that size is not begun."""
    zstandard = import_zstandard()
    raw = zstandard.DICT_TYPE_RAWCONTENT
    words = zstandard.ZstdCompressionDict(prefix, dict_type=raw) if len(prefix) >= SMALLEST_PREFIX else None
    try:
        if zstandard.get_frame_parameters(frame).content_size != size:
            raise RuntimesError(f"{where}: a block is not of the size it must be: it is damaged, write it again")
        engine = zstandard.ZstdDecompressor(dict_data=words, max_window_size=1 << 27)
        data: bytes = engine.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RuntimesError(f"{where}: a block cannot be decompressed ({error}): write it again") from error
    if len(data) != size:
        raise RuntimesError(f"{where}: a block is not of the size it must be: it is damaged, write it again")
    return data


def window(at: int, size: int, old_size: int) -> tuple[int, int]:
    """Which bytes of the old file, from and to, are the prefix of the block of ``size`` bytes at ``at``."""
    return min(max(0, at - BLOCK), old_size), min(at + size + BLOCK, old_size)


def import_zstandard() -> Any:
    """The package, or an error that says how to get it."""
    try:
        import zstandard
    except ImportError as error:
        raise RuntimesError('deltas need zstandard: pip install "compress-edge[delta]"') from error
    return zstandard


def predict(old: IO[bytes], spans: Sequence[Span], at: int, size: int, where: str) -> np.ndarray:
    """What is added to the block of ``size`` bytes at ``at``: the old bytes where a span is, else zero."""
    predicted = np.zeros(size, np.uint8)
    first = bisect_right(spans, at, key=lambda span: span[0] + span[2])     # the first that ends behind ``at``
    for new_at, old_at, length in spans[first : bisect_left(spans, at + size, key=lambda span: span[0])]:
        low, high = max(new_at, at), min(new_at + length, at + size)
        old.seek(old_at + low - new_at)
        predicted[low - at : high - at] = np.frombuffer(_exactly(old, high - low, where), np.uint8)
    return predicted


def _read_old(old: Path, update: Delta) -> Bundle:
    manifest = old / MANIFEST
    if manifest.is_file() and file_digest(manifest) != update.old:
        raise RuntimesError(
            f"{update.path} is for the bundle {update.old[:12]}…, and {old} is {file_digest(manifest)[:12]}…: "
            "take the delta from this version, or the whole bundle")
    return read_bundle(old)


def _write_files(
    file: IO[bytes], update: Delta, before: Bundle, folder: Path, into: Path, key: Key | None
) -> None:
    """The manifest and its signature first: what they do not vouch for is not made."""
    named = {patch.path: patch for patch in update.files}
    head = [named[name] for name in (MANIFEST, SIGNATURE) if name in named]
    if list(update.files[: len(head)]) != head or MANIFEST not in named or len(named) != len(update.files):
        raise RuntimesError(f"{update.path}: its files are not the manifest and each file once: write it again")
    if any(patch.size > LARGEST_MANIFEST for patch in head):
        raise RuntimesError(f"{update.path}: its manifest is larger than {LARGEST_MANIFEST >> 20} MiB: write it again")
    file.seek(update.payload)
    for patch in head:
        _write_file(file, patch, before, folder, update.path)
    signature = (folder / SIGNATURE).read_bytes() if SIGNATURE in named else None
    made = parse_bundle((folder / MANIFEST).read_bytes(), into, signature=signature, key=key, check_files=False)
    if made.digest != update.new:
        raise RuntimesError(f"{update.path} does not hold the manifest it says: it is damaged, write it again")
    rest = update.files[len(head):]
    listed = {name: (entry.size, entry.sha256) for name, entry in made.files.items()}
    if {patch.path: (patch.size, patch.sha256) for patch in rest} != listed:
        raise RuntimesError(f"{update.path}: its files are not those of its manifest: it is damaged, write it again")
    needed, free = sum(patch.size for patch in rest), shutil.disk_usage(folder).free
    if needed > free:
        raise RuntimesError(f"{update.path} makes {needed} bytes and {free} are free at {folder.parent}: free some")
    for patch in rest:
        _write_file(file, patch, before, folder, update.path)


def _write_file(file: IO[bytes], patch: Patch, before: Bundle, folder: Path, where: Path) -> None:
    place = f"{where}: file {patch.path!r}"
    path, digest = folder / patch.path, hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as made:
        for block in _blocks(file, patch, before, place):
            digest.update(block)
            made.write(block)
    if path.stat().st_size != patch.size or digest.hexdigest() != patch.sha256:
        raise RuntimesError(f"{place} does not become what the delta says: the delta or {before.path} is damaged")


def _blocks(file: IO[bytes], patch: Patch, before: Bundle, where: str) -> Iterator[bytes | memoryview]:
    """The bytes of the new file, a block at a time."""
    if patch.source is None:
        for at, stored in _places(patch, where):
            yield inflate(_exactly(file, stored, where), min(BLOCK, patch.size - at), b"", where)
        return
    known = patch.source in before.files or patch.source == MANIFEST
    if not known and not (patch.source == SIGNATURE and before.signed_by is not None):
        raise RuntimesError(f"{where} is made of {patch.source!r}, which the old bundle does not list: write it again")
    path = before.path / patch.source
    with path.open("rb") as old:
        old_size = old.seek(0, 2)
        if patch.blocks is None:
            old.seek(0)
            yield from _pieces(old, patch.size, where)
            return
        if any(old_at + length > old_size for _, old_at, length in patch.spans):
            raise RuntimesError(f"{where} is made of more than {patch.source!r} holds: write the delta again")
        for at, stored in _places(patch, where):
            size = min(BLOCK, patch.size - at)
            first, last = window(at, size, old_size)
            old.seek(first)
            prefix = _exactly(old, last - first, str(path))
            block = np.frombuffer(inflate(_exactly(file, stored, where), size, prefix, where), np.uint8)
            yield (block + predict(old, patch.spans, at, size, str(path))).data


def _places(patch: Patch, where: str) -> Iterator[tuple[int, int]]:
    blocks = patch.blocks or ()
    if len(blocks) != -(-patch.size // BLOCK):
        raise RuntimesError(f"{where} has {len(blocks)} blocks, not one for each {BLOCK} bytes: write the delta again")
    if max(blocks, default=0) > LARGEST_STORED:
        raise RuntimesError(f"{where} has a block of {max(blocks)} bytes, which none can take: write the delta again")
    return zip(range(0, patch.size, BLOCK), blocks, strict=True)


def _pieces(file: IO[bytes], size: int, where: str) -> Iterator[bytes]:
    for at in range(0, size, 1 << 20):
        yield _exactly(file, min(1 << 20, size - at), where)


def _exactly(file: IO[bytes], size: int, where: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise RuntimesError(f"{where} is cut short: copy it again")
    return data


def _parse(record: Mapping[str, Any], path: Path, payload: int, size: int) -> Delta:
    where = str(path)
    _known(record, HEADER_KEYS, where)
    files = [_patch(typed(item, dict, f"{where}: a file"), where) for item in get(record, "files", list, where)]
    return Delta(
        path=path, old=get(record, "old", str, where), new=get(record, "new", str, where), files=tuple(files),
        payload=payload, size=size)


def _known(record: Mapping[str, Any], keys: frozenset[str], where: str) -> None:
    unknown = sorted(record.keys() - keys)
    if unknown:
        raise RuntimesError(f"{where} has the unknown key {unknown[0]!r:.80}: write the delta again")


def _patch(record: Mapping[str, Any], where: str) -> Patch:
    path = inside(get(record, "path", str, where), where)
    where = f"{where}: file {path!r}"
    _known(record, PATCH_KEYS, where)
    size = get(record, "size", int, where)
    source = inside(get(record, "from", str, where), where) if "from" in record else None
    blocks = _numbers(record["blocks"], where) if "blocks" in record else None
    if size < 0 or (source is None and blocks is None):
        raise RuntimesError(f"{where} has neither blocks nor a source, or no size: write the delta again")
    return Patch(
        path=path, size=size, sha256=get(record, "sha256", str, where), source=source, blocks=blocks,
        spans=_spans(record.get("spans", []), size, where))


def _spans(items: Any, size: int, where: str) -> tuple[Span, ...]:
    spans: list[Span] = []
    end = 0
    for item in typed(items, list, f"{where}: 'spans'"):
        numbers = _numbers(item, where)
        if len(numbers) != 3 or numbers[0] < end or numbers[0] + numbers[2] > size or numbers[2] == 0:
            raise RuntimesError(f"{where}: the span {item!r:.80} is empty, or overlaps another or the end: write again")
        new_at, old_at, length = numbers
        spans.append((new_at, old_at, length))
        end = new_at + length
    return tuple(spans)


def _numbers(items: Any, where: str) -> tuple[int, ...]:
    numbers = tuple(typed(item, int, f"{where}: a number") for item in typed(items, list, f"{where}: a list"))
    if any(number < 0 for number in numbers):
        raise RuntimesError(f"{where} has a number below zero: write the delta again")
    return numbers
