"""Calibration sets: ordered, hashed and streamed samples with named inputs, checked against the model before use."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.shards import Shard, check_shard, read_shard, read_target, shard_specs
from calibration.targets import TARGET, dtype_of, joined, update
from calibration.writing import FORMAT, MANIFEST, VERSION, ShardWriter
from runtimes.hashing import file_digest, json_digest
from runtimes.spec import Feed, TensorSpec


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Samples on disk, in order. Made by :func:`open_set`, which has read and checked every one of them.

    ``digest`` covers the names, dtypes, shapes, values and order of the samples and their labels; not the folder's
    name, time stamps, zip metadata, or how the samples are split into shards.
    """

    name: str
    path: Path                                     # the folder of the shards, or the one file
    inputs: tuple[TensorSpec, ...]
    shards: tuple[Path, ...]                       # .npz files, samples along the leading axis
    count: int
    digest: str
    labels: tuple[str, ...]                        # arrays of labels: "target", or "target.OUTPUT" for several tasks
    _stamps: tuple[tuple[int, int], ...] = field(repr=False)  # size and time of each shard when it was checked
    _spool: _Spool | None = field(default=None, repr=False, compare=False)  # keeps the folder of a streamed set

    def __len__(self) -> int:
        return self.count

    @property
    def modalities(self) -> dict[str, str]:
        """Input name -> modality."""
        return {spec.name: spec.modality for spec in self.inputs}

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of up to ``size`` samples in order, with the batch axis where the specs have it.

        At most one shard is in memory. Samples of different shapes never share a batch, so a batch is shorter than
        ``size`` where the shape changes and at the end; how the samples are split into shards makes no difference.
        """
        if size < 1:
            raise CalibrationError(f"batches of {size} samples were asked for from {self.name!r}: give at least 1")
        return self._batches(size)

    def first(self, n: int) -> dict[str, np.ndarray]:
        """The first batch of up to ``n`` samples."""
        return next(self.batches(n))

    def take(self, n: int) -> CalibrationSet:
        """The first ``n`` samples as a set of their own; all of them where there are no more."""
        if n >= self.count:
            return self
        if n < 1:
            raise CalibrationError(f"the first {n} samples were asked for from {self.name!r}: give at least 1")
        return _spooled(_first_samples(self.read(), n), self.inputs, name=f"{self.name}[:{n}]")

    def pick(self, places: Sequence[int]) -> CalibrationSet:
        """The samples at ``places``, which are in order, as a set of their own; the set itself where that is all."""
        if len(places) == self.count:
            return self
        if not places or list(places) != sorted({*places}) or not 0 <= places[0] <= places[-1] < self.count:
            raise CalibrationError(f"samples {list(places[:5])}... were asked for from {self.name!r}: give different "
                                   f"places from 0 to {self.count - 1}, in order")
        return _spooled(_picked(self.read(), places), self.inputs, name=f"{self.name}[{len(places)} of {self.count}]")

    def read(self) -> Iterator[Shard]:
        """The shards in order, one in memory at a time."""
        specs = shard_specs(self.inputs)
        for path, stamp in zip(self.shards, self._stamps, strict=True):
            _check_unchanged(path, stamp, self.name)
            yield read_shard(path, specs)

    def targets(self, output: str | None = None) -> np.ndarray | None:
        """The labels, shape ``(samples, ...)``, in the order of the batches; ``None`` where the set has none.

        Args:
            output: whose; those of the only task where it has none of its own.
        """
        name = f"{TARGET}.{output}" if f"{TARGET}.{output}" in self.labels else TARGET
        if name not in self.labels:
            return None
        parts = []
        for path, stamp in zip(self.shards, self._stamps, strict=True):
            _check_unchanged(path, stamp, self.name)
            parts.append(read_target(path, name))
        return joined(parts, self.shards, name)

    def _batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        held: dict[str, np.ndarray] = {}  # a batch begun in the shard before
        for shard in self.read():
            if held and any(held[name].shape[1:] != array.shape[1:] for name, array in shard.feed.items()):
                yield self._placed(held)
                held = {}
            start = 0
            while start < shard.count:
                missing = size - (len(next(iter(held.values()))) if held else 0)
                piece = {name: array[start:start + missing] for name, array in shard.feed.items()}
                held = {name: np.concatenate([held[name], piece[name]]) for name in piece} if held else piece
                start += missing
                if start <= shard.count:  # the piece was whole: the batch is full
                    yield self._placed(held)
                    held = {}
            held = {name: array.copy() for name, array in held.items()}  # lets go of the shard
        if held:
            yield self._placed(held)

    def _placed(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        moved = {spec.name: np.moveaxis(batch[spec.name], 0, spec.batch_axis or 0) for spec in self.inputs}
        return {name: np.ascontiguousarray(array) for name, array in moved.items()}


def open_set(
    source: Path | str | Iterable[Feed], inputs: Sequence[TensorSpec], *, name: str | None = None
) -> CalibrationSet:
    """Open a calibration set and check every sample of it against the inputs of the model.

    Args:
        source: a folder written by :func:`calibration.write`; a folder of ``.npz`` files, taken in the order of their
            names; one ``.npz`` file; or an iterable of feeds, each with the batch axis, one sample or many, which may
            hold labels as ``"target"``, or as ``"target.OUTPUT"`` for each of several tasks. An iterable is read once
            and streamed to a temporary folder, which lives as long as the set.
        inputs: the specs of the model's inputs; each needs a batch axis.
        name: what messages and reports call the set; default: the name of the folder.

    Raises:
        CalibrationError: naming the file (or the position of the feed) and the input, if the set is empty, damaged,
            lacks an input, or has a wrong dtype or shape or a value that is not finite.
    """
    inputs = tuple(inputs)
    shard_specs(inputs)
    if not isinstance(source, (str, Path)):
        name = name or "calibration set"
        return _spooled(_checked_feeds(source, inputs, name), inputs, name=name)
    path = Path(source)
    if path.is_file():
        if path.suffix != ".npz":
            raise CalibrationError(f"{path} is no calibration set: give a folder of .npz files, or one .npz file")
        return _opened(path, [path], inputs, name=name or path.stem)
    if not path.is_dir():
        raise CalibrationError(f"calibration set {path} does not exist: give a folder of .npz files, or one .npz file")
    files = sorted(path.glob("*.npz"))
    if (path / MANIFEST).is_file():
        counts = _check_manifest(path, files)
        return _opened(path, list(counts), inputs, name=name or path.resolve().name, counts=counts)
    if not files:
        raise CalibrationError(f"calibration set {path} is empty: put .npz files with an array for each of the inputs "
                               f"{[spec.name for spec in inputs]} in it; "
                               "`compress data` makes them from pictures, sounds and texts")
    return _opened(path, files, inputs, name=name or path.resolve().name)


def _opened(
    path: Path, shards: Sequence[Path], inputs: tuple[TensorSpec, ...], *, name: str,
    counts: Mapping[Path, int] | None = None, spool: _Spool | None = None,
) -> CalibrationSet:
    """Read every shard once: check it, count its samples, and hash them."""
    specs = shard_specs(inputs)
    contents = _Contents()
    stamps, labels = [], []
    for file in shards:
        stamps.append(_stamp(file))
        shard = read_shard(file, specs)
        if counts is not None and counts[file] != shard.count:
            raise CalibrationError(f"{file}: input {inputs[0].name!r} holds {shard.count} samples, but "
                                   f"{path / MANIFEST} says {counts[file]}: write the set again")
        labels.append(sorted(shard.targets))
        if odd := sorted({*labels[-1]} ^ {*labels[0]}):
            raise CalibrationError(f"{file} {'has' if odd[0] in labels[-1] else 'lacks'} {odd[0]!r}, unlike "
                                   f"{shards[0]}: label all samples, or none")
        contents.add(shard, file)
    return CalibrationSet(
        name=name, path=path, inputs=inputs, shards=tuple(shards), count=contents.count, digest=contents.digest(),
        labels=tuple(labels[0]), _stamps=tuple(stamps), _spool=spool)


class _Contents:
    """Running digest of samples that does not depend on how they are split into shards."""

    def __init__(self) -> None:
        self.count = 0
        # name -> dtype, runs of [sample shape, count], hash of the values
        self._arrays: dict[str, tuple[str, list[list[Any]], Any]] = {}

    def add(self, shard: Shard, file: Path) -> None:
        self.count += shard.count
        for name, array in shard.arrays.items():
            dtype, runs, sha256 = self._arrays.setdefault(name, (dtype_of(array), [], hashlib.sha256()))
            if dtype_of(array) != dtype:  # an input's dtype is the spec's; labels have none
                raise CalibrationError(f"{file}: {name!r} has dtype {dtype_of(array)}, but {dtype} in the files "
                                       "before it: write all of them with one dtype")
            shape = list(array.shape[1:])
            if runs and runs[-1][0] == shape:
                runs[-1][1] += shard.count
            else:
                runs.append([shape, shard.count])
            update(sha256, array)

    def digest(self) -> str:
        return json_digest(
            {name: [dtype, runs, sha256.hexdigest()] for name, (dtype, runs, sha256) in self._arrays.items()})


def _check_manifest(folder: Path, files: Sequence[Path]) -> dict[Path, int]:
    """The shards that ``dataset.json`` lists with their counts, after comparing their hashes."""
    manifest = folder / MANIFEST
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise CalibrationError(
                f"{manifest} has format {record['format']!r} version {record['version']!r}, expected {FORMAT!r} "
                f"version {VERSION}: write the set again with this version of compress")
        listed = {folder / str(s["file"]): (int(s["count"]), str(s["sha256"])) for s in record["shards"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CalibrationError(
            f"{manifest} is damaged ({type(error).__name__}: {error}): write the set again") from error
    if not listed:
        raise CalibrationError(f"calibration set {folder} is empty: {manifest} lists no shards")
    for path, (_, sha256) in listed.items():
        if path.parent != folder or path not in files:
            raise CalibrationError(
                f"{path} is listed in {manifest}, but there is no such file in the folder: write the set again")
        if file_digest(path) != sha256:
            raise CalibrationError(f"{path} is damaged or was changed: its SHA-256 is not the one in {manifest}. "
                                   "Write the set again, or remove dataset.json to take the folder as it is")
    extra = [path for path in files if path not in listed]
    if extra:
        raise CalibrationError(f"{extra[0]} is not listed in {manifest}: write the set again, or remove the file")
    return {path: count for path, (count, _) in listed.items()}


def _checked_feeds(feeds: Iterable[Feed], inputs: tuple[TensorSpec, ...], name: str) -> Iterator[Shard]:
    specs = shard_specs(inputs)
    axes = {spec.name: spec.batch_axis or 0 for spec in inputs}
    for index, feed in enumerate(feeds):
        source = f"{name}, feed {index}"
        if not isinstance(feed, Mapping):
            raise CalibrationError(f"{source} is of type {type(feed).__name__}: give mappings from input name to array")
        arrays = {key: np.asarray(value) for key, value in feed.items()}
        for key, axis in axes.items():
            if key in arrays and arrays[key].ndim > axis:  # too few axes are for check_shard to report
                arrays[key] = np.moveaxis(arrays[key], axis, 0)
        yield check_shard(arrays, specs, source=source)


def _first_samples(shards: Iterable[Shard], n: int) -> Iterator[Shard]:
    for shard in shards:
        yield Shard(feed={name: array[:n] for name, array in shard.feed.items()},
                    targets={name: array[:n] for name, array in shard.targets.items()})
        n -= shard.count
        if n <= 0:
            return


def _picked(shards: Iterable[Shard], places: Sequence[int]) -> Iterator[Shard]:
    wanted, start = np.asarray(places), 0
    for shard in shards:
        rows = wanted[(wanted >= start) & (wanted < start + shard.count)] - start
        if rows.size:
            yield Shard(feed={name: array[rows] for name, array in shard.feed.items()},
                        targets={name: array[rows] for name, array in shard.targets.items()})
        start += shard.count


class _Spool:
    """A temporary folder that is removed with the last set that reads from it, or when the process ends."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="calibration-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def _spooled(shards: Iterable[Shard], inputs: tuple[TensorSpec, ...], *, name: str) -> CalibrationSet:
    spool = _Spool()
    try:
        writer = ShardWriter(spool.folder)
        for shard in shards:
            writer.add(shard.arrays)
        writer.close()
        return _opened(spool.folder, writer.shards, inputs, name=name, spool=spool)
    except OSError as error:
        raise CalibrationError(f"{name}: cannot spool the samples to {spool.folder} ({error}): free some space there, "
                               "or write the set with calibration.write") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CalibrationError(f"{path} is gone: the calibration set was changed while it was in use") from error
    return status.st_size, status.st_mtime_ns


def _check_unchanged(path: Path, stamp: tuple[int, int], name: str) -> None:
    if _stamp(path) != stamp:
        raise CalibrationError(f"{path} was changed while calibration set {name!r} was in use: run again")
