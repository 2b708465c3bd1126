"""Writing a calibration set: a folder of ``.npz`` shards and a ``dataset.json``, the same bytes on every run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.shards import check_values
from calibration.targets import TARGET, Targets, dtype_of, is_target, named
from runtimes.hashing import file_digest

MANIFEST = "dataset.json"
FORMAT = "compress.dataset"
VERSION = 1
SHARD_BYTES = 64 << 20
"""A shard is closed at this size even when it holds fewer samples than asked for: readers keep one in memory."""


def write(
    folder: Path | str,
    samples: Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray]],
    target: Targets | None = None,
    *,
    shard_size: int = 512,
) -> Path:
    """Write a data set that :func:`calibration.open_set` reads, complete or not at all.

    Args:
        folder: where to; an existing data set there is replaced, any other folder that is not empty is refused.
        samples: input name -> array of shape ``(samples, ...)``; or an iterable of such mappings, for sets too
            large for memory or of several shapes, each of which may hold its labels as ``"target"``.
        target: labels, shape ``(samples, ...)``, with a mapping: numbers, or texts as an array of strings, of which the
            shape ``(samples, references)`` has several a sample (``""`` where one has fewer). A model with several
            tasks has a mapping from output to labels, which are the arrays ``"target.OUTPUT"``.
        shard_size: most samples a file; files are also closed at 64 MiB and where a shape changes.

    Returns:
        ``folder``, as an absolute path.

    Raises:
        CalibrationError: naming the input, if arrays disagree in length, are empty, not numbers or not finite;
            or naming the folder, if it holds something else or its disk is full.
    """
    if shard_size < 1:
        raise CalibrationError(f"shard_size is {shard_size}: give the number of samples a file, at least 1")
    chunks: Iterable[Mapping[str, np.ndarray]] = [samples] if isinstance(samples, Mapping) else samples
    if target is not None:
        if not isinstance(samples, Mapping):
            raise CalibrationError(
                f"with an iterable of samples, put the labels of each into its mapping as {TARGET!r}")
        if twice := [name for name in samples if is_target(name)]:
            raise CalibrationError(f"the labels were given twice: as target=, and as {twice[0]!r} among the samples")
        chunks = [{**samples, **named(target)}]
    with writing_to(folder, shard_size) as writer:
        for chunk in chunks:
            writer.add(chunk)
        writer.close()
    return writer.folder


@contextmanager
def writing_to(folder: Path | str, shard_size: int = 512) -> Iterator[ShardWriter]:
    """A writer of a data set that is at ``folder`` once the block has ended, after a call of its ``close``; see
    :func:`write`."""
    folder = Path(os.path.abspath(folder))
    _check_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    with _cleared_on_error(partial, folder):
        partial.mkdir(parents=True)
        writer = ShardWriter(partial, shard_size)
        yield writer
        _move_into_place(partial, folder)
        writer.folder = folder


class ShardWriter:
    """Gathers samples into shards below ``folder``, which is a data set once :meth:`close` has returned."""

    def __init__(self, folder: Path, shard_size: int = 512) -> None:
        self.folder = folder
        self._shard_size = shard_size
        self._layout: dict[str, tuple[str, tuple[int, ...]]] = {}  # name -> dtype, shape of one sample
        self._pending: list[dict[str, np.ndarray]] = []
        self._held = 0
        self._inputs: dict[str, dict[str, Any]] = {}
        self._shards: list[dict[str, Any]] = []

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Append samples: name -> array of shape ``(samples, ...)``, which are copied."""
        arrays = {name: np.asarray(arrays[name]) for name in arrays}
        count = _check_samples(arrays)
        layout = {name: (dtype_of(array), array.shape[1:]) for name, array in arrays.items()}
        if layout != self._layout:
            self._flush()
            self._record_layout(layout)
        sample_bytes = sum(array.nbytes for array in arrays.values()) // count
        limit = max(1, min(self._shard_size, SHARD_BYTES // max(1, sample_bytes)))
        start = 0
        while start < count:
            stop = min(count, start + limit - self._held)
            self._pending.append({name: np.array(array[start:stop], order="C") for name, array in arrays.items()})
            self._held += stop - start
            start = stop
            if self._held >= limit:
                self._flush()

    @property
    def shards(self) -> list[Path]:
        """The files written so far, in order."""
        return [self.folder / shard["file"] for shard in self._shards]

    def close(self, source: Mapping[str, Any] | None = None) -> None:
        """Write what is left, and the record that makes the folder a data set; ``source`` says what it was made of."""
        self._flush()
        if not self._shards:
            raise CalibrationError("there are no samples to write: a data set needs at least one")
        inputs = {name: entry for name, entry in self._inputs.items() if not is_target(name)}
        targets = {name: entry for name, entry in self._inputs.items() if is_target(name)}
        count = sum(shard["count"] for shard in self._shards)
        manifest = {"format": FORMAT, "version": VERSION, "inputs": inputs, "count": count,
                    "targets": targets, "shards": self._shards,
                    **({} if source is None else {"source": dict(source)})}
        with (self.folder / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
            _sync(file)
        _sync_folder(self.folder)

    def _record_layout(self, layout: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        if not self._inputs:
            self._inputs = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in layout.items()}
        if set(layout) != set(self._inputs):
            raise CalibrationError(f"samples have the arrays {list(layout)}, those before them {list(self._inputs)}: "
                                   "every mapping needs the same names")
        for name, (dtype, shape) in layout.items():
            entry = self._inputs[name]
            if dtype != entry["dtype"] or len(shape) != len(entry["shape"]):
                raise CalibrationError(f"input {name!r}: a sample is {dtype}{list(shape)}, those before it "
                                       f"{entry['dtype']}{entry['shape']}: dtype and rank must not change")
            entry["shape"] = [old if old == new else None for old, new in zip(entry["shape"], shape, strict=True)]
        self._layout = layout

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self.folder / f"{len(self._shards):04d}.npz"
        _write_npz(path, {name: np.concatenate([piece[name] for piece in self._pending]) for name in self._pending[0]})
        self._shards.append({"file": path.name, "count": self._held, "sha256": file_digest(path)})
        self._pending, self._held = [], 0


def _check_samples(arrays: Mapping[str, np.ndarray]) -> int:
    if not [name for name in arrays if not is_target(name)]:
        raise CalibrationError("samples hold no inputs: give one array for each input of the model")
    first = next(iter(arrays))
    for name, array in arrays.items():
        check_values(array, f"input {name!r}", texts=is_target(name))
        if array.ndim == 0 or len(array) == 0:
            raise CalibrationError(
                f"input {name!r} has shape {array.shape}: the leading axis counts the samples, at least 1")
        if len(array) != len(arrays[first]):
            raise CalibrationError(
                f"input {name!r} holds {len(array)} samples, but {first!r} holds {len(arrays[first])}: "
                "every array needs one row per sample")
    return len(arrays[first])


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Not np.savez: it takes the names as keyword arguments, so that an input called "file" breaks it.
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(entry, "w", force_zip64=True) as member:
                    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                    np.lib.format.write_array(member, little, allow_pickle=False)
        _sync(file)


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder with anything in it that this module did not write."""
    if folder.is_dir() and not folder.is_symlink():
        foreign = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST and (p.suffix != ".npz" or p.is_dir()))
        if not any(folder.iterdir()) or (not foreign and (folder / MANIFEST).is_file()):
            return
        held = f" ({foreign[0]!r})" if foreign else ""
        raise CalibrationError(f"{folder} exists and holds something that is no data set of ours{held}: "
                               "remove it, or write to another folder")
    if folder.exists() or folder.is_symlink():
        raise CalibrationError(f"{folder} exists and is no folder: remove it, or write to another folder")


def _move_into_place(partial: Path, folder: Path) -> None:
    old = _aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    partial.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def _cleared_on_error(partial: Path, folder: Path) -> Iterator[None]:
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    if _aside(folder).exists() and not folder.exists():
        _aside(folder).rename(folder)           # it was killed between the two renames
    try:
        yield
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            free = f", {shutil.disk_usage(folder.parent).free >> 20} MiB free" if folder.parent.exists() else ""
            what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise CalibrationError(
                f"cannot write the data set {folder}: {what}{free}; nothing was left behind") from error
        raise


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
