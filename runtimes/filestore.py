"""Files kept by what is in them: ``files/<SHA-256>``. What is there already is not sent again."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from runtimes.errors import RuntimesError
from runtimes.hashing import json_digest
from runtimes.records import inside

KEEP_BYTES = 8 << 30    # what earlier sessions brought is kept up to this, the most recently used first
KEEP_PACKAGES = 4       # versions of this package, as hosts of different versions sent them

SPARE_BYTES = 16 << 20  # stays free on the disk

_SYNC_BYTES = 4 << 20
_Look: TypeAlias = tuple[int, int, int]


def cache_folder() -> Path:
    """``$COMPRESS_CACHE``, else ``compress`` in ``$XDG_CACHE_HOME``, else ``~/.cache/compress``; an absolute path.

    A relative ``$XDG_CACHE_HOME`` is not valid and does not count, as the XDG Base Directory Specification says.
    """
    own, shared = os.environ.get("COMPRESS_CACHE"), os.environ.get("XDG_CACHE_HOME") or ""
    if own:
        return Path(os.path.abspath(os.path.expanduser(own)))
    home = os.path.abspath(os.path.expanduser("~"))
    return Path(shared if os.path.isabs(shared) else os.path.join(home, ".cache")) / "compress"


def checked_digest(text: str, where: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise RuntimesError(f"{where}: {text!r:.80} is not a SHA-256 in hexadecimal")
    return text


class FileStore:
    """The files, and a folder for one session's own things, which is removed when it is closed.

    ``tick`` is called between blocks of long work. A session that was killed leaves its folder behind; the next one
    sees that nobody holds its lock, and removes it. A file that was read whole is trusted as long as its inode, size
    and time stay what they were.
    """

    def __init__(self, cache: Path, *, keep_bytes: int = KEEP_BYTES, tick: Callable[[], None] = lambda: None) -> None:
        self._files, self._sessions, self._packages = cache / "files", cache / "sessions", cache / "runtimes"
        self._gate = cache / "sessions.lock"    # held while sessions are begun and ended
        self._keep_bytes, self._tick = keep_bytes, tick
        self._used: dict[str, _Look] = {}               # seen whole by this session
        self._trees: dict[Path, dict[str, _Look]] = {}  # made by this session
        self._files.mkdir(parents=True, exist_ok=True)
        self._sessions.mkdir(parents=True, exist_ok=True)
        with _locked(self._gate):
            for folder in self._sessions.iterdir():
                if not _is_held(folder / "lock"):
                    shutil.rmtree(folder, ignore_errors=True)
            self.session = Path(tempfile.mkdtemp(prefix="", dir=self._sessions))
            self._lock = (self.session / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def has(self, digest: str) -> bool:
        """Whether the file is here: a session's first use reads and hashes it, and a damaged one is removed."""
        path = self._files / checked_digest(digest, "a file")
        if path.is_symlink() or not path.is_file():
            return False
        if self._used.get(digest) == _look(path):
            return True
        if self._hash(path) != digest:
            path.unlink()
            return False
        self._note(digest)
        return True

    def room_bytes(self) -> int:
        """What may still be brought here: the free space, and what only earlier sessions used."""
        room = shutil.disk_usage(self._files).free - SPARE_BYTES
        with _locked(self._gate):
            if self._is_alone():
                room += sum(stat.st_size for stat, path in self._kept() if path.name not in self._used)
        return max(0, room)

    @contextmanager
    def incoming(self, digest: str, size: int) -> Iterator[Callable[[bytes], None]]:
        """Gives a function that takes the file's bytes; at the end they are hashed, and the file gets its name.

        Raises:
            RuntimesError: if the bytes are not ``size`` many or not those of ``digest``; nothing is kept then.
            OSError: if the disk is full or cannot be written.
        """
        checked_digest(digest, "a file")
        self._make_room(size)
        temporary = self.session / f"{digest}.tmp"
        found, count = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:

                def take(block: bytes) -> None:
                    nonlocal count
                    file.write(block)
                    found.update(block)
                    if (count + len(block)) // _SYNC_BYTES > count // _SYNC_BYTES:
                        os.fdatasync(file.fileno())     # else a memory card takes a minute at the end, in silence
                    count += len(block)

                yield take
                file.flush()
                os.fsync(file.fileno())
            if count != size or found.hexdigest() != digest:
                raise RuntimesError(f"file {digest[:12]}… came as {count} of {size} bytes with SHA-256 "
                                    f"{found.hexdigest()[:12]}…: it was changed on the way, or while it was read")
            temporary.chmod(0o444)
            temporary.replace(self._files / digest)
            self._note(digest)
        finally:
            temporary.unlink(missing_ok=True)

    def tree(self, files: Mapping[str, str]) -> Path:
        """A folder of this session with ``files`` (path -> SHA-256): hard links, or copies where there are none.

        Raises:
            RuntimesError: if a path leads outside the folder or into another file, or a file is not here.
        """
        for path, digest in files.items():
            inside(path, "a tree")
            if not self.has(checked_digest(digest, f"a tree: {path!r}")):
                raise RuntimesError(f"a tree names file {digest[:12]}…, which is not here: send it first")
        folder = self.session / "trees" / json_digest(sorted(files.items()))
        if folder in self._trees and self._trees[folder] == _looks(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)   # a job, or the disk, has changed it
        making = Path(tempfile.mkdtemp(dir=self.session))
        for path, digest in files.items():
            target = making / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._place(self._files / digest, target)
            except (FileExistsError, NotADirectoryError) as error:
                raise RuntimesError(f"a tree names {path!r:.80}, and another file where it needs a folder") from error
        folder.parent.mkdir(exist_ok=True)
        making.rename(folder)
        self._trees[folder] = _looks(folder)
        return folder

    def close(self) -> None:
        """Remove the session's folder, and the files and packages used longest ago beyond what is kept.

        All stay as long as another session runs, which may be about to use them.
        """
        with _locked(self._gate):
            shutil.rmtree(self.session, ignore_errors=True)
            self._lock.close()
            if self._is_alone():
                self._prune(self._keep_bytes)
                self._prune_packages()

    def _is_alone(self) -> bool:
        """Whether no other session runs; the gate is held."""
        return not any(_is_held(folder / "lock") for folder in self._sessions.iterdir() if folder != self.session)

    def _make_room(self, size: int) -> None:
        """Where the disk is short, remove what only earlier sessions used."""
        short = size + SPARE_BYTES - shutil.disk_usage(self._files).free
        if short > 0:
            with _locked(self._gate):
                if self._is_alone():
                    self._prune(sum(stat.st_size for stat, _ in self._kept()) - short)

    def _kept(self) -> list[tuple[os.stat_result, Path]]:
        return [(path.lstat(), path) for path in self._files.iterdir() if not path.is_dir()]

    def _prune(self, keep_bytes: int) -> None:
        files = self._kept()
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda one: one[0].st_mtime_ns):
            if total > keep_bytes and path.name not in self._used:
                path.unlink()
                total -= stat.st_size

    def _prune_packages(self) -> None:
        packages = self._packages.iterdir() if self._packages.is_dir() else ()
        for path in sorted(packages, key=lambda one: one.stat().st_mtime_ns, reverse=True)[KEEP_PACKAGES:]:
            shutil.rmtree(path, ignore_errors=True)

    def _note(self, digest: str) -> None:
        os.utime(self._files / digest)
        self._used[digest] = _look(self._files / digest)

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                self._tick()
        return digest.hexdigest()

    def _place(self, source: Path, target: Path) -> None:
        try:
            os.link(source, target)
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, or one file's greatest count of them
            pass
        with source.open("rb") as file, target.open("xb") as copy:
            while block := file.read(1 << 20):
                copy.write(block)
                self._tick()


def _look(path: Path) -> _Look:
    """What changes with a file's content: inode, size, time of the last change."""
    stat = path.lstat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _looks(folder: Path) -> dict[str, _Look]:
    return {str(path): _look(path) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(lock: Path) -> bool:
    """Whether a running process holds the lock file; a killed one has let go of it."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
