"""The store: what each stage made, addressed by content, complete or absent, and re-hashed whenever it is read.

Layout of a store::

    store.json            {"format": "compress.store", "version": 1}
    lock                  locked by the process that uses the store; the kernel lets go of it when that process ends
    objects/<digest>/     what a stage wrote, under the digest of its files
    stages/<key>.json     which object a stage made from which inputs and settings, with its record, time and memory
    scratch/<key>/        checkpoints of an unfinished stage
    statistics/           what calibration found (compress/quantize/statistics.py), for other ranges and schemes
    tmp/<key>-<pid>/      what a running stage is writing
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from compress.errors import CompressError
from runtimes.errors import RuntimesError
from runtimes.folders import sync, sync_tree
from runtimes.hashing import json_digest, tree_files

FORMAT = "compress.stage"
VERSION = 1
_STORE = {"format": "compress.store", "version": 1}
_FULL = (errno.ENOSPC, errno.EDQUOT)

Build = Callable[[Path, Path], Any]
"""Writes a stage's files ``into`` the first folder, checkpoints to the second, and returns its JSON record."""


class DiskFullError(CompressError):
    """No space is left, so that whatever comes next would fail as well."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a stage made: a folder that is never changed, and its record."""

    key: str                     # digest of the stage's name, settings and inputs
    stage: str
    path: Path
    digest: str                  # of the files alone: no record, time or place enters it
    record: Any                  # JSON
    files: Mapping[str, str]     # relative path -> SHA-256
    seconds: float
    peak_memory_bytes: int       # of this process while the stage ran
    created: str                 # UTC, ISO 8601


class Store:
    """The artifacts below a folder, used by one process at a time; a context manager.

    ``warnings`` gathers one line for each artifact that was found damaged and removed, so that its stage runs again.
    What dead runs left in ``tmp/``, and objects that no stage refers to, are removed when the store is opened.

    Raises:
        CompressError: if another process uses the store, or the folder holds something else.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.abspath(root))
        self.warnings: list[str] = []
        self._lock: int | None = None
        with _explained(self.root, "open the store"):
            self._claim()
            self._clear()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process use the store."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def key(self, stage: str, settings: Any, inputs: Mapping[str, str]) -> str:
        """What identifies a stage's artifact: its name, its settings (JSON, with the versions that matter) and the
        digest of each input by name."""
        try:
            return json_digest({"stage": stage, "settings": settings, "inputs": dict(inputs)})
        except (TypeError, ValueError) as error:
            raise CompressError(f"stage {stage!r}: its settings cannot be hashed ({error}): use JSON values") from error

    def find(self, key: str) -> Artifact | None:
        """The artifact a stage has made, every file of it re-hashed; ``None`` where there is none to trust.

        A damaged artifact is removed and reported in ``warnings``.
        """
        path = self._stage_file(key)
        with _explained(self.root, "read the store"):
            if not path.exists():
                return None
            artifact, stage = None, "unknown"
            try:
                artifact = self._read_record(path)
                stage = artifact.stage
                if artifact.key != key:
                    raise ValueError("it is the record of another key")
                found = tree_files(artifact.path) if artifact.path.is_dir() else {}
                wrong = sorted(dict(found.items() ^ artifact.files.items()))
                if wrong:
                    raise ValueError(f"{wrong[0]!r} is missing, added or changed")
                if not artifact.path.is_dir():
                    raise ValueError("its folder is gone")
                return artifact
            except (ValueError, KeyError, TypeError, RecursionError, RuntimesError) as error:
                self.warnings.append(
                    f"the artifact of stage {stage!r} ({key[:12]}) was damaged ({error}): removed, to be made again")
                path.unlink()
                sync(path.parent)
                if artifact is not None:
                    _remove(artifact.path)
                return None

    def run(self, key: str, stage: str, build: Build) -> Artifact:
        """Run a stage and keep what it made; the artifact appears when it is complete, or not at all.

        Args:
            key: from :meth:`key`.
            stage: the stage's name, for the record.
            build: writes into an empty folder. Its scratch folder is the same for every attempt at this key, outlives
                a killed run and is removed on success.

        Raises:
            CompressError: if the disk is full, or the stage wrote a link or returned something that is no JSON.
        """
        into, scratch = self.root / "tmp" / f"{key}-{os.getpid()}", self.root / "scratch" / key
        with _explained(self.root, f"keep what stage {stage!r} makes in", into):
            _remove(into)
            into.mkdir()
            scratch.mkdir(exist_ok=True)
            _reset_peak_memory()
            start = time.perf_counter()
            record = build(into, scratch)
            seconds, peak = time.perf_counter() - start, _peak_memory()
            try:
                files = tree_files(into)
                json_digest(record)
            except (RuntimesError, TypeError, ValueError) as error:
                raise CompressError(f"stage {stage!r} made something that cannot be kept: {error}") from error
            digest = json_digest(sorted(files.items()))
            self._keep(into, digest)
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            artifact = Artifact(
                key=key, stage=stage, path=self.root / "objects" / digest, digest=digest, record=record, files=files,
                seconds=seconds, peak_memory_bytes=peak, created=created)
            values = {f.name: getattr(artifact, f.name) for f in fields(artifact) if f.name != "path"}
            content = {"format": FORMAT, "version": VERSION, **values}
            text = json.dumps({**content, "sha256": json_digest(content)}, indent=1) + "\n"
            atomic_write(self._stage_file(key), text)
            _remove(scratch)
            return artifact

    def _stage_file(self, key: str) -> Path:
        return self.root / "stages" / f"{key}.json"

    def _read_record(self, path: Path) -> Artifact:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.pop("sha256", None) != json_digest(content):
            raise ValueError("its record does not match its checksum")
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError("its record has another format version")
        if content["digest"] != json_digest(sorted(content["files"].items())):
            raise ValueError("its record names another digest than its files have")
        return Artifact(**content, path=self.root / "objects" / content["digest"])

    def _keep(self, into: Path, digest: str) -> None:
        """Move a finished folder to its place among the objects."""
        place = self.root / "objects" / digest
        if place.is_dir() and json_digest(sorted(tree_files(place).items())) == digest:
            _remove(into)  # made before, for another key or by a run that was killed before its record
            return
        _remove(place)
        sync_tree(into)
        into.rename(place)
        sync(place.parent)

    def _claim(self) -> None:
        """Make the folder a store if it is new, and lock it."""
        marker = self.root / "store.json"
        self.root.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            names = sorted(os.listdir(self.root))
            others = [name for name in names if name != "lock" and not name.startswith(".store.json.")]
            if others:
                raise CompressError(
                    f"{self.root} holds something that is no store ({others[0]!r}): give another folder")
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        except BlockingIOError:
            owner = os.read(lock, 20).decode(errors="replace") or "unknown"
            os.close(lock)
            raise CompressError(
                f"another run uses the store {self.root} (process {owner}): wait until it ends, or give this one "
                "another folder") from None
        except OSError:
            os.close(lock)
            raise
        self._lock = lock
        try:
            if not marker.exists():
                atomic_write(marker, json.dumps(_STORE) + "\n")
            self._check_version(marker)
            for name in ("objects", "stages", "tmp", "scratch"):
                (self.root / name).mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def _check_version(self, marker: Path) -> None:
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CompressError(f"{marker} is damaged ({error}): remove the folder, or give another") from error
        if found != _STORE:
            raise CompressError(f"{marker} says {found!r}, expected {_STORE!r}: remove the folder, or give another")

    def _clear(self) -> None:
        """Remove what runs that died have left. The lock is ours: nobody else is writing."""
        for path in (self.root / "tmp").iterdir():
            _remove(path)
        for path in (self.root / "stages").glob(".*.tmp"):
            _remove(path)
        finished: dict[str, str] = {}
        for path in (self.root / "stages").glob("*.json"):
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # find() reports a damaged record
                finished[path.stem] = self._read_record(path).digest
        for path in (self.root / "objects").iterdir():
            if path.name not in finished.values():
                _remove(path)
        for path in (self.root / "scratch").iterdir():
            if path.name in finished:
                _remove(path)


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write a file so that its name holds the old content or all of the new, whatever happens.

    Raises:
        CompressError: if it cannot be written (no space, no such folder); nothing is left behind then.
    """
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends, and vanishes if the block fails.

    Raises:
        CompressError: if it cannot be written (no space, no such folder); nothing is left behind then.
    """
    path = Path(os.path.realpath(path))
    partial = _partial(path)
    with _explained(path, "write", partial):
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``path`` when the block ends, and vanishes if the block fails.

    A folder already there is replaced, with all that is in it, if it is empty or of this project: if a ``.json`` file
    at its top has a ``format`` that begins with ``compress.``. Any other is left alone.

    Raises:
        CompressError: if ``path`` holds something else, or cannot be written.
    """
    path = Path(os.path.realpath(path))
    partial, aside = _partial(path), path.with_name(f".{path.name}.old")
    with _explained(path, "write", partial):
        if aside.exists() and not path.exists():
            aside.rename(path)  # a run was killed between the two renames below
        if path.exists() and not _is_ours(path):
            raise CompressError(f"{path} exists and was not made by compress: remove it, or write to another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        sync_tree(partial)
        _remove(aside)
        if path.exists():
            path.rename(aside)
        partial.rename(path)
        sync(path.parent)
        _remove(aside)


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError, RecursionError):
            record = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(record, dict) and str(record.get("format")).startswith("compress."):
                return True
    return not any(folder.iterdir())


def _partial(path: Path) -> Path:
    """The temporary name beside ``path``, after removing those of processes that died."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = old.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if pid.isdecimal() and not _runs(int(pid)):
            _remove(old)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _runs(pid: int) -> bool:
    """Whether another process has this number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _explained(path: Path, action: str, partial: Path | None = None) -> Iterator[None]:
    """Remove ``partial`` if the block fails, and say a failure of the disk in one line."""
    try:
        yield
    except BaseException as error:
        folder = path if path.is_dir() else path.parent
        free = shutil.disk_usage(folder).free if folder.is_dir() else 1 << 60
        if partial is not None:
            with suppress(OSError):
                _remove(partial)
        if isinstance(error, DiskFullError) or not isinstance(error, Exception):
            raise
        # Not every library says why a write failed (torch's "file write failed"): then nothing left says it.
        if is_disk_full(error) or free < 1 << 16:
            temporary = tempfile.gettempdir()
            raise DiskFullError(
                f"cannot {action} {path}: no space left on the disk ({free / 2**20:.1f} MiB free there, "
                f"{shutil.disk_usage(temporary).free / 2**20:.1f} MiB in {temporary}): free some and run again; "
                "what was finished is kept") from error
        if isinstance(error, OSError) and _is_ours_to_explain(error, path):
            raise CompressError(f"cannot {action} {path}: {error}") from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error came of a full disk: libraries written in C++ or Rust only say so in words."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _FULL):
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_ours_to_explain(error: OSError, path: Path) -> bool:
    """Whether the place is at fault, rather than a stage that reads a file it never wrote: that is a bug."""
    if isinstance(error, FileNotFoundError):
        return not path.parent.is_dir()
    if error.errno in (errno.EFBIG, errno.EROFS, errno.EIO):    # of a write, which names no file
        return True
    return isinstance(error.filename, (str, os.PathLike)) and Path(error.filename).is_relative_to(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reset_peak_memory() -> None:
    with suppress(OSError):  # only Linux can, and not in every container
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """High-water mark of this process's resident memory, in bytes."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
