"""Debian packages unpacked into a folder, without root: the system programs of the emulated device and of the tests.

The files come from the mirror this system is configured for, through its own apt, whose signature checks stay on: a
package whose hash is not in an index signed by Debian's keys is not unpacked. Maintainer scripts never run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from compress.errors import CompressError
from compress.export.rtx_libraries import cache_folder

_MARKER = ".unpacked"
_FORMAT = 1
_TIMEOUT_S = 600
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MERGED = ("bin", "lib", "lib64", "sbin")  # links into usr/, as on an installed system (Debian 12's libc6 has /lib/...)


def unpack(packages: Sequence[str], into: Path, *, architecture: str, suite: str | None = None) -> None:
    """Fetch ``packages`` and unpack them into ``into``, which appears complete or not at all.

    Dependencies are not followed: name every package. A second call with the same packages does nothing; two
    processes at once do the work once. The file ``.unpacked`` in the folder says what was unpacked.

    Args:
        packages: Debian package names.
        into: the folder to make; what it is in is made too.
        architecture: Debian's name of it: ``amd64``, ``arm64``.
        suite: another Debian release than this system's, such as ``trixie``, from the same mirror.

    Raises:
        CompressError: if there is no ``apt-get`` or ``dpkg``, no network, no such package, no space, or if ``into``
            already holds something else.
    """
    names = sorted(set(packages))
    for name in (*names, architecture, *([suite] if suite else [])):
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name):
            raise CompressError(f"{name!r} is not the name of a Debian package, architecture or suite")
    asked = {"format": _FORMAT, "architecture": architecture, "suite": suite, "packages": names}
    into = into.absolute()
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with locked(into.parent / f".{into.name}.lock"):
            if _holds(into, asked):
                return
            with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as temporary:
                archives, made = Path(temporary) / "archives", Path(temporary) / "made"
                archives.mkdir()
                _download(names, archives, architecture, suite)
                _extract(sorted(archives.glob("*.deb")), made)
                files = {file.name: _sha256(file) for file in sorted(archives.glob("*.deb"))}
                (made / _MARKER).write_text(json.dumps({**asked, "files": files}, indent=1) + "\n")
                made.rename(into)
    except OSError as error:
        raise _unavailable(names, f"{into} cannot be written ({error})") from error


def host_architecture() -> str:
    """Debian's name of this machine's architecture, as ``dpkg`` says it.

    Raises:
        CompressError: if there is no ``dpkg``.
    """
    return _run(["dpkg", "--print-architecture"], "its packages").strip()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for another process to let go of it; a killed process lets go."""
    import fcntl

    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _holds(into: Path, asked: dict[str, object]) -> bool:
    """Whether ``into`` holds just what is asked for; an empty or missing folder holds nothing."""
    if not into.exists() or (into.is_dir() and not any(into.iterdir())):
        return False
    try:
        found = json.loads((into / _MARKER).read_text())
    except (OSError, ValueError):
        found = {}
    if {key: found.get(key) for key in asked} != asked:
        raise CompressError(f"{into} holds something else: remove it, or unpack these packages into another folder")
    return True


def _download(names: Sequence[str], archives: Path, architecture: str, suite: str | None) -> None:
    """``apt-get update`` into a list folder of our own, which is kept in the cache, and ``apt-get download``."""
    what = ", ".join(names)
    state = cache_folder().absolute() / "debian" / f"{suite or 'system'}-{architecture}"
    state.mkdir(parents=True, exist_ok=True)
    with locked(state / "lock"):
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").write_bytes(b"")  # nothing is installed, so nothing is held back
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "root",  # the download user cannot write into a home folder
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
            "Dir::State": str(state),
            "Dir::State::lists": str(state / "lists"),
            "Dir::State::status": str(state / "status"),
            "Dir::Cache": str(state / "cache"),
        }
        if suite is not None:
            sources = state / "sources.list"
            sources.write_text(_other_suite(suite, what))
            options |= {"Dir::Etc::sourcelist": str(sources), "Dir::Etc::sourceparts": "-"}
        apt = ["apt-get", "--quiet", "--quiet", *(f"-o{key}={value}" for key, value in options.items())]
        _run([*apt, "update"], what)
        _run([*apt, "download", *names], what, cwd=archives)


def _other_suite(suite: str, what: str) -> str:
    """A sources list for ``suite``, from the mirror this system takes its own release from."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--no-release-info", "--format", form, "Created-By: Packages"]
    for line in _run(command, what).splitlines():
        uri, release, component = line.split(" ")
        if component == "main" and re.fullmatch(r"[a-z]+", release):  # not bookworm-security, whose mirror is another
            signed = f"[signed-by={_KEYRING}] " if _KEYRING.is_file() else ""
            return f"deb {signed}{uri} {suite} main\n"
    raise _unavailable([what], "this system has no apt source of a Debian release, whose mirror could be asked")


def _extract(files: Sequence[Path], made: Path) -> None:
    for name in _MERGED:
        (made / "usr" / name).mkdir(parents=True, exist_ok=True)
        (made / name).symlink_to(f"usr/{name}")
    for file in files:  # not `dpkg -x`, which would put a folder where a link is
        archive = file.with_suffix(".tar")
        with archive.open("wb") as output:
            _run(["dpkg-deb", "--fsys-tarfile", str(file)], file.name, output=output)
        _run(["tar", "--extract", f"--file={archive}", f"--directory={made}", "--keep-directory-symlink",
              "--no-same-owner", "--no-same-permissions"], file.name)  # fmt: skip
        archive.unlink()


def _run(command: Sequence[str], what: str, *, cwd: Path | None = None, output: IO[bytes] | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    if shutil.which(command[0]) is None:
        raise _unavailable([what], f"there is no `{command[0]}` here, it takes a Debian or Ubuntu system")
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output or subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S, cwd=cwd, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _unavailable([what], f"`{command[0]}` took more than {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").splitlines()
        lines = [line for line in said if not line.startswith(("W:", "N:"))] or ["it said nothing"]
        raise _unavailable([what], f"`{command[0]}` failed ({'; '.join(lines)[:500]})")
    return (done.stdout or b"").decode(errors="replace")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _unavailable(names: Sequence[str], reason: str) -> CompressError:
    return CompressError(f"Debian's packages cannot be had here ({', '.join(names)}): {reason}")
