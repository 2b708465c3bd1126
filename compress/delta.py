"""Make a delta: the update from one bundle to the next, as small as zstd and the old weights make it.

The format, and applying it, are in :mod:`runtimes.delta`. Needs ``zstandard`` (the extra ``[delta]``).
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from compress.store import atomic_write
from compress.tensors import tensors_of
from runtimes.bundle import MANIFEST, SIGNATURE, Bundle, read_bundle
from runtimes.delta import (
    BLOCK,
    FORMAT,
    MAGIC,
    SMALLEST_PREFIX,
    VERSION,
    Patch,
    Span,
    import_zstandard,
    predict,
    window,
)
from runtimes.hashing import bytes_digest

LEVEL = 12              # of zstd: the first whose tables hold all of a prefix
QUICK_LEVEL = 1         # to estimate with
SAMPLED = 4             # blocks of a file that decide how it is stored; all of one of up to 16 MiB


@dataclass(frozen=True, kw_only=True)
class DeltaResult:
    """A delta that was made: its size, that of the new bundle, and what each file costs."""

    path: Path
    old: str
    new: str
    size_bytes: int
    bundle_bytes: int
    files: Mapping[str, int]        # file of the new bundle -> bytes of payload; 0 for a copy


def make_delta(old: Path, new: Path, into: Path) -> DeltaResult:
    """Write to the file ``into`` what turns the bundle at ``old`` into the one at ``new``, its signature included.

    Raises:
        RuntimesError: if a bundle is damaged, or ``zstandard`` is not installed.
        CompressError: if ``into`` cannot be written.
    """
    import_zstandard()
    before, after = read_bundle(old), read_bundle(new)
    sources = {**_listed(before), MANIFEST: before.digest}
    wanted = [MANIFEST, *([SIGNATURE] if after.signed_by is not None else []), *sorted(after.files)]
    with tempfile.TemporaryFile() as payload:
        patches = [_patch(name, before, after, sources, payload) for name in wanted]
        record = {
            "format": FORMAT, "version": VERSION, "old": before.digest, "new": after.digest,
            "files": [patch.to_json() for patch in patches],
        }  # fmt: skip
        header = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
        stored = _deflate(header, b"", 19)
        payload.seek(0)
        data = b"".join((MAGIC, struct.pack("<II", len(stored), len(header)), stored, payload.read()))
    atomic_write(into, data + hashlib.sha256(data).digest())
    return DeltaResult(
        path=into, old=before.digest, new=after.digest, size_bytes=into.stat().st_size,
        bundle_bytes=sum(patch.size for patch in patches),
        files={patch.path: sum(patch.blocks or ()) for patch in patches},
    )  # fmt: skip


def _listed(bundle: Bundle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in bundle.files.items()}


def _patch(name: str, before: Bundle, after: Bundle, sources: Mapping[str, str], payload: IO[bytes]) -> Patch:
    """How the file ``name`` is made of the old bundle; its blocks are appended to ``payload``."""
    data = _bytes(after.path / name)
    size, sha256 = data.size, bytes_digest(data.data)
    same = [source for source, digest in sources.items() if digest == sha256]
    if same:
        return Patch(path=name, size=size, sha256=sha256, source=name if name in same else same[0])
    candidates = [Patch(path=name, size=size, sha256=sha256)]
    if name in sources:
        candidates.append(replace(candidates[0], source=name))
        if spans := _spans(name, before, after, data):
            candidates.append(replace(candidates[1], spans=tuple(spans)))
    places = range(0, size, BLOCK)
    sample = places[:: -(-len(places) // SAMPLED)] if places else places
    trials = {patch: list(_blocks(patch, before, data, sample)) for patch in candidates}
    chosen = min(trials, key=lambda patch: _cost(patch, trials[patch]))
    blocks = trials[chosen] if sample == places else _blocks(chosen, before, data, places)
    sizes = []
    for block in blocks:
        sizes.append(len(block))
        payload.write(block)
    return replace(chosen, blocks=tuple(sizes))


def _cost(patch: Patch, blocks: Sequence[bytes]) -> int:
    """Bytes in the delta: the blocks, and roughly what the spans take in its compressed header."""
    return sum(map(len, blocks)) + 8 * len(patch.spans)


def _blocks(patch: Patch, before: Bundle, data: np.ndarray, places: Iterable[int]) -> Iterator[bytes]:
    """The blocks of ``data`` at ``places``: as they are, or less the old bytes, with the old file as their prefix."""
    if patch.source is None:
        for at in places:
            yield _deflate(data[at : at + BLOCK].tobytes(), b"", LEVEL)
        return
    path = before.path / patch.source
    with path.open("rb") as old:
        old_size = old.seek(0, 2)
        for at in places:
            block = data[at : at + BLOCK]
            first, last = window(at, block.size, old_size)
            old.seek(first)
            prefix = old.read(last - first)
            difference = block - predict(old, patch.spans, at, block.size, str(path))
            yield _deflate(difference.tobytes(), prefix, LEVEL)


def _spans(name: str, before: Bundle, after: Bundle, data: np.ndarray) -> list[Span]:
    """Where a tensor of the new file has one of its name, type and shape in the old file that is worth subtracting."""
    olds, news = tensors_of(before, name), tensors_of(after, name)
    old = _bytes(before.path / name)
    spans: list[Span] = []
    for tensor, place in sorted(news.items(), key=lambda item: item[1].at):
        was = olds.get(tensor)
        if was is None or (was.size, was.kind) != (place.size, place.kind):
            continue
        if spans and place.at < spans[-1][0] + spans[-1][2]:
            continue        # two tensors in one place
        new_bytes = data[place.at : place.at + place.size]
        difference = new_bytes - old[was.at : was.at + was.size]
        if difference.any() and len(_deflate(difference.tobytes(), b"", QUICK_LEVEL)) >= len(
            _deflate(new_bytes.tobytes(), b"", QUICK_LEVEL)
        ):
            continue
        last = spans[-1] if spans else None
        if last is not None and (last[0] + last[2], last[1] + last[2]) == (place.at, was.at):
            spans[-1] = (last[0], last[1], last[2] + place.size)
        else:
            spans.append((place.at, was.at, place.size))
    return spans


def _deflate(data: bytes, prefix: bytes, level: int) -> bytes:
    zstandard = import_zstandard()
    words = None
    if len(prefix) >= SMALLEST_PREFIX:
        words = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), dict_size=len(prefix), window_log=max(10, (len(data) + len(prefix)).bit_length()),
        write_content_size=True, write_checksum=False, write_dict_id=False)
    frame: bytes = zstandard.ZstdCompressor(dict_data=words, compression_params=parameters).compress(data)
    return frame


def _bytes(path: Path) -> np.ndarray:
    """A file's bytes, read as they are needed."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r")
