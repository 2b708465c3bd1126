"""Unpacking Debian packages, from a package archive in a folder made here: the real apt and dpkg, no network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compress.device.debian import host_architecture, locked, unpack
from compress.errors import CompressError

if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
    pytest.skip("apt-get and dpkg-deb are Debian's", allow_module_level=True)

ARCHITECTURE = host_architecture()


def _package(repository: Path, name: str, files: dict[str, str]) -> Path:
    """Build a .deb and add it to the index of the flat archive ``repository``."""
    tree = repository / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = (f"Package: {name}\nVersion: 1.0\nArchitecture: {ARCHITECTURE}\n"
               "Maintainer: A <a@example.org>\nDescription: x\n")  # fmt: skip
    (tree / "DEBIAN" / "control").write_text(control)
    script = tree / "DEBIAN" / "postinst"
    script.write_text(f"#!/bin/sh\ntouch {repository}/postinst-ran\n")
    script.chmod(0o755)
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    deb = repository / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    shutil.rmtree(tree)
    content = deb.read_bytes()
    with (repository / "Packages").open("a") as index:
        index.write(f"{control}Filename: ./{deb.name}\nSize: {len(content)}\n"
                    f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n")  # fmt: skip
    return deb


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with the packages ``one`` and ``two``, the only apt source of this test, marked as trusted."""
    folder = tmp_path / "repository"
    folder.mkdir()
    _package(folder, "one", {"lib/one/library": "1", "usr/bin/one": "#!/bin/sh\n"})
    _package(folder, "two", {"usr/lib/two/library": "2"})
    _use(folder, monkeypatch, "[trusted=yes] ")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    return folder


def _use(repository: Path, monkeypatch: pytest.MonkeyPatch, trust: str) -> None:
    sources, conf = repository.parent / "sources.list", repository.parent / "apt.conf"
    sources.write_text(f"deb {trust}file:{repository} ./\n")
    # apt reads its configuration folder after this file, and takes no sources from the system's folder of them.
    conf.write_text(f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "-";\n')
    monkeypatch.setenv("APT_CONFIG", str(conf))


def test_the_folder_holds_the_packages_as_an_installed_system_has_them(repository: Path, tmp_path: Path) -> None:
    into = tmp_path / "deep" / "root"
    unpack(["two", "one", "two"], into, architecture=ARCHITECTURE)
    assert (into / "usr/lib/one/library").read_text() == "1"
    assert (into / "usr/lib/two/library").read_text() == "2"
    assert (into / "usr/bin/one").exists()
    assert {name: os.readlink(into / name) for name in ("bin", "lib", "lib64", "sbin")} == {
        "bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin"}  # fmt: skip
    marker = json.loads((into / ".unpacked").read_text())
    digests = {deb.name: hashlib.sha256(deb.read_bytes()).hexdigest() for deb in repository.glob("*.deb")}
    assert sorted(marker["files"].values()) == sorted(digests.values())
    assert (marker["packages"], marker["architecture"], marker["suite"]) == (["one", "two"], ARCHITECTURE, None)
    assert not (repository / "postinst-ran").exists()
    assert sorted(path.name for path in into.parent.iterdir()) == [".root.lock", "root"]


def test_a_second_call_fetches_nothing(repository: Path, tmp_path: Path) -> None:
    unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE)
    shutil.rmtree(repository)
    (tmp_path / "root" / "kept").write_text("mine")
    unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE)
    assert (tmp_path / "root" / "kept").read_text() == "mine"


def test_two_processes_at_once_do_the_work_once(repository: Path, tmp_path: Path) -> None:
    """Each prints when it found the folder ready; only the first may ask apt, whose calls a wrapper on PATH counts."""
    wrapper = tmp_path / "bin" / "apt-get"
    wrapper.parent.mkdir()
    real, log = shutil.which("apt-get"), tmp_path / "calls"
    wrapper.write_text(f'#!/bin/sh\necho call >> {log}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    code = ("import sys; from pathlib import Path; from compress.device.debian import unpack\n"
            "unpack(['one'], Path(sys.argv[1]), architecture=sys.argv[2])")  # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path / "root"), ARCHITECTURE]
    environment = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert log.read_text().split() == ["call", "call"]  # one update and one download
    assert (tmp_path / "root/usr/lib/one/library").read_text() == "1"


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with locked(tmp_path / "lock"):
            entered.set()

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()


def test_another_folder_is_left_alone(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "thesis.txt").write_text("mine")
    with pytest.raises(CompressError, match=f"{tmp_path}/root holds something else: remove it"):
        unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE)
    unpack(["one"], tmp_path / "other", architecture=ARCHITECTURE)
    with pytest.raises(CompressError, match=f"{tmp_path}/other holds something else"):
        unpack(["two"], tmp_path / "other", architecture=ARCHITECTURE)
    assert (tmp_path / "root" / "thesis.txt").read_text() == "mine"


def test_an_unsigned_archive_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(repository, monkeypatch, trust="")
    with pytest.raises(CompressError, match=r"\(one\): `apt-get` failed \(E: The repository .* Release"):
        unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE)
    assert not (tmp_path / "root").exists()


def test_another_suite_comes_from_the_same_mirror_and_is_checked_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own sources list names no trust, so the archive without a signature is refused under its path and suite."""
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{repository} bookworm-security main\n"
                                           f"deb [trusted=yes] file:{repository} bookworm main\n")  # fmt: skip
    with pytest.raises(CompressError, match=f"The repository 'file:{repository} trixie Release' does not have"):
        unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE, suite="trixie")
    _use(repository, monkeypatch, trust="[trusted=yes] ")
    with pytest.raises(CompressError, match="no apt source of a Debian release"):
        unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE, suite="trixie")


def test_a_changed_package_is_refused(repository: Path, tmp_path: Path) -> None:
    deb = repository / "one.deb"
    content = bytearray(deb.read_bytes())
    content[-1] ^= 1
    deb.write_bytes(content)
    with pytest.raises(CompressError, match=re.compile("`apt-get` failed .*Hash Sum mismatch", re.DOTALL)):
        unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE)
    assert not (tmp_path / "root").exists()


def test_reasons(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = tmp_path / "root"
    with pytest.raises(CompressError, match="'--allow' is not the name of a Debian package"):
        unpack(["--allow"], into, architecture=ARCHITECTURE)
    with pytest.raises(CompressError, match="'ARM 64' is not the name of"):
        unpack(["one"], into, architecture="ARM 64")
    with pytest.raises(CompressError, match=r"'\.\./x' is not the name of"):
        unpack(["one"], into, architecture=ARCHITECTURE, suite="../x")
    with pytest.raises(CompressError, match=r"\(three\): `apt-get` failed \(E: Unable to locate package three\)"):
        unpack(["three"], into, architecture=ARCHITECTURE)
    with pytest.raises(CompressError, match="cannot be written"):
        unpack(["one"], Path("/proc/none/root"), architecture=ARCHITECTURE)
    monkeypatch.setattr("compress.device.debian._TIMEOUT_S", 0.01)
    with pytest.raises(CompressError, match="`apt-get` took more than"):
        unpack(["one"], into, architecture=ARCHITECTURE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match=r"\(one\): there is no `apt-get` here"):
        unpack(["one"], into, architecture=ARCHITECTURE)
    with pytest.raises(CompressError, match="there is no `dpkg` here"):
        host_architecture()
    assert not into.exists()


def test_no_network(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sources.list").write_text("deb http://127.0.0.1:9/debian bookworm main\n")
    with pytest.raises(CompressError, match=r"`apt-get` failed .*Unable to locate package one"):
        unpack(["one"], tmp_path / "root", architecture=ARCHITECTURE)


