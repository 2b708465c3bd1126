"""A folder that appears under its name complete, or not at all, whenever the power goes."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtimes.errors import RuntimesError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when the block ends, and vanishes if the block fails.

    What a process that was killed has left of one is removed.

    Raises:
        RuntimesError: if ``path`` exists, or cannot be written.
    """
    path = Path(os.path.abspath(path))
    if os.path.lexists(path):
        raise RuntimesError(f"{path} exists: name a folder that does not")
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_old(path)
        partial.mkdir()
        yield partial
        sync_tree(partial)
        partial.rename(path)
        sync(path.parent)
    except OSError as error:
        raise RuntimesError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Have everything below ``folder`` on the disk before going on."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):  # opening a pipe would wait for ever
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_old(path: Path) -> None:
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = old.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if pid.isdecimal() and not (int(pid) != os.getpid() and _runs(int(pid))):
            shutil.rmtree(old)


def _runs(pid: int) -> bool:
    with suppress(ProcessLookupError, OverflowError):
        with suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False
