"""Install bundles on a device: versions side by side, one of them current, an update that is there whole or not at all.

    python -m runtimes.install install UPDATE --root /var/lib/app/model --key release.key.pub
    python -m runtimes.install current --root /var/lib/app/model
    python -m runtimes.install rollback --root /var/lib/app/model

``UPDATE`` is a bundle's folder, or a delta for the current version. Layout of the root::

    current              {"format": "compress.installed", "version": 1, "current": DIGEST, "previous": DIGEST or null}
    versions/<DIGEST>/   a bundle, under the SHA-256 of its manifest; only the two that ``current`` names are kept
    incoming/            what is being installed
    lock                 held by the process that installs; a folder without it that holds anything is left alone

``current`` is a file that is replaced by renaming, once the new version is complete, checked, on the disk, and has
passed its self-test. So whenever the power goes, it names a version that works.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtimes.bundle import MANIFEST, SIGNATURE, Bundle, read_bundle
from runtimes.delta import apply_delta
from runtimes.errors import RuntimesError
from runtimes.folders import new_folder, sync
from runtimes.records import get, parse_record, write_json
from runtimes.session import load
from runtimes.signing import Key

FORMAT, VERSION = "compress.installed", 1
_DIGEST = re.compile("[0-9a-f]{64}")


def install(
    update: Path | str, root: Path | str, *, key: Key | None = None, self_test: bool = True, target: str | None = None
) -> Path:
    """Make the bundle ``update`` the current version of ``root``; return its folder.

    Args:
        update: a bundle's folder, or a delta for the current version.
        root: the folder of the versions; it is made where there is none.
        key: the public key the new version must be signed with.
        self_test: run the golden feed of each graph first. Where an output differs, the old version stays current.
        target: whose engine to test; by default the one :func:`runtimes.load` takes.

    Raises:
        RuntimesError: if the update is damaged, not signed with ``key``, a delta for another version, or fails its
            self-test; if another process is installing; or if the disk is full. The current version is as it was.
    """
    update, root = Path(update), Path(root)
    if not update.exists():
        raise RuntimesError(f"{update} is not there: name a bundle's folder, or the file of a delta")
    with _locked(root):
        try:
            now, before = _pointer(root) if (root / "current").exists() else (None, None)
        except RuntimesError:
            if not update.is_dir():
                raise
            now, before = None, None    # a whole bundle replaces what is damaged
        _clear(root, {now, before})
        staged = root / "incoming" / "new"
        if update.is_dir():
            _copy(read_bundle(update, key=key), staged)
        elif now is None:
            raise RuntimesError(f"{root} has no version that the delta {update} could start from: install a bundle")
        else:
            apply_delta(root / "versions" / now, update, staged, key=key)
        made = _place(read_bundle(staged, key=key), root)
        if self_test:
            _test(made, target, root, now)
        if made.digest != now:
            _point(root, made.digest, now)
            before = now
        _clear(root, {made.digest, before})
        return made.path


def current(root: Path | str) -> Path:
    """The folder of the current version, for :func:`runtimes.load`, which checks every byte of it.

    Raises:
        RuntimesError: if nothing is installed there.
    """
    root = Path(root)
    digest, _ = _pointer(root)
    path = root / "versions" / digest
    if path.is_symlink() or not path.is_dir():
        raise RuntimesError(f"{path} is gone, and {root / 'current'} names it: install the bundle again")
    return path


def rollback(root: Path | str, *, key: Key | None = None) -> Path:
    """Make the version before the current one current again, once every byte of it is checked; return its folder.

    The version left behind is removed by the next installation.

    Raises:
        RuntimesError: if there is none, it is damaged, or it is not signed with ``key``.
    """
    root = Path(root)
    _pointer(root)      # nothing is made where nothing is installed
    with _locked(root):
        now, before = _pointer(root)
        if before is None:
            raise RuntimesError(f"{root} has no version before {now[:12]}…: install the bundle you want")
        bundle = read_bundle(root / "versions" / before, key=key)
        if bundle.digest != before:
            raise RuntimesError(f"{bundle.path} is not the version of that name: install the bundle you want")
        _point(root, before, None)
        return bundle.path


def _copy(bundle: Bundle, into: Path) -> None:
    names = [MANIFEST, *([SIGNATURE] if bundle.signed_by is not None else []), *bundle.files]
    needed, free = sum(entry.size for entry in bundle.files.values()), shutil.disk_usage(into.parent).free
    if needed > free:
        raise RuntimesError(f"bundle {bundle.path} takes {needed} bytes, {free} are free in {into.parent}: free some")
    with new_folder(into) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name, follow_symlinks=False)


def _place(staged: Bundle, root: Path) -> Bundle:
    """Move a complete bundle to its place; one that is there already and whole is left alone."""
    place = root / "versions" / staged.digest
    if place.exists():
        try:
            if staged.signed_by is not None:    # of the same manifest: it may only now have been signed
                shutil.copyfile(staged.path / SIGNATURE, root / "incoming" / SIGNATURE)
                sync(root / "incoming" / SIGNATURE)
                os.replace(root / "incoming" / SIGNATURE, place / SIGNATURE)
                sync(place)
            return read_bundle(place, key=staged.signed_by)
        except RuntimesError:
            place.rename(root / "incoming" / "damaged")
    staged.path.rename(place)
    sync(place.parent)
    return read_bundle(place, key=staged.signed_by)


def _test(bundle: Bundle, target: str | None, root: Path, now: str | None) -> None:
    try:
        for graph in bundle.graphs:
            load(bundle, graph=graph, target=target, self_test=True).close()
    except RuntimesError as error:
        _clear(root, set(_pointer(root)) if now is not None else set())
        stays = f"version {now[:12]}… stays current" if now is not None else "nothing is installed"
        raise RuntimesError(f"version {bundle.digest[:12]}… failed its self-test, {stays}: {error}") from error


def _pointer(root: Path) -> tuple[str, str | None]:
    """The digests of the current version and of the one before it."""
    path = root / "current"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimesError(f"nothing is installed in {root} ({error.strerror}): install a bundle") from error
    try:
        record = parse_record(data, str(path), format=FORMAT, version=VERSION)
    except RuntimesError as error:
        raise RuntimesError(f"{error}; installing a whole bundle replaces it") from error
    now = get(record, "current", str, str(path))
    before = get(record, "previous", str, str(path)) if record.get("previous") is not None else None
    for digest in (now, before):
        if digest is not None and not _DIGEST.fullmatch(digest):
            raise RuntimesError(f"{path} names the version {digest!r:.80}, no digest: install a bundle again")
    return now, before


def _point(root: Path, now: str, before: str | None) -> None:
    write_json(root / "current", {"format": FORMAT, "version": VERSION, "current": now, "previous": before})
    sync(root)


def _clear(root: Path, keep: set[str | None]) -> None:
    """Remove what was not finished, and the versions that are not to be kept."""
    for path in [*(root / "incoming").iterdir(), *(root / "versions").iterdir(), *root.glob(".current.*.tmp")]:
        if path.parent.name != "versions" or path.name not in keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """The root, made if need be, and used by this process alone; a failure of the disk is an error of ours."""
    lock = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in root.iterdir() if not path.match(".current.*.tmp")}
        if names and ("lock" not in names or names - {"lock", "current", "versions", "incoming"}):
            raise RuntimesError(f"{root} holds something else ({min(names)!r}): name a folder for the versions alone")
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("versions", "incoming"):
            (root / name).mkdir(exist_ok=True)
        yield
    except BlockingIOError as error:
        raise RuntimesError(f"another process is installing in {root}: wait until it ends") from error
    except OSError as error:
        raise RuntimesError(f"nothing was installed in {root}: {error}") from error
    finally:
        if lock is not None:
            os.close(lock)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, for a device without ``compress``."""
    parser = argparse.ArgumentParser(prog="python -m runtimes.install", description="Install bundles on this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("install", help="make a bundle or a delta current, once it passed its test")
    add.add_argument("update", type=Path, help="a bundle's folder, or a delta for the current version")
    add.add_argument("--no-self-test", action="store_true", help="do not run the golden feed first")
    add.add_argument("--target", help="whose engine to test; default: the first that runs here")
    back = commands.add_parser("rollback", help="make the version before the current one current again")
    show = commands.add_parser("current", help="print the folder of the current version")
    for command in (add, back, show):
        command.add_argument("--root", type=Path, required=True, help="the folder of the installed versions")
    for command in (add, back):
        command.add_argument("--key", type=Path, help="the public key (PEM) that versions must be signed with")
    options = parser.parse_args(arguments)
    try:
        if options.command == "install":
            test = not options.no_self_test
            path = install(options.update, options.root, key=options.key, self_test=test, target=options.target)
        elif options.command == "rollback":
            path = rollback(options.root, key=options.key)
        else:
            path = current(options.root)
    except RuntimesError as error:
        print(f"runtimes.install: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
