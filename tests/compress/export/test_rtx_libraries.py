"""Finding the TensorRT-for-RTX libraries, and what is said where they cannot be had."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.export import rtx_libraries as module
from compress.export.rtx_libraries import RtxLibraries, cache_folder, ensure_rtx_libraries

PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path / "cache"


def _pip(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Stand in for pip alone; the compiler is the real one."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if command[1:4] != ["-m", "pip", "download"]:
            return real(command, **options)
        if isinstance(answer, Exception):
            raise answer
        return answer(command)

    monkeypatch.setattr(subprocess, "run", run)


def _fake_wheels(command: list[str]) -> subprocess.CompletedProcess[str]:
    requirements = Path(command[command.index("--requirement") + 1]).read_text().splitlines()
    assert [line.split("==")[0] for line in requirements] == [
        "onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt-cu13-bindings"
    ]  # fmt: skip
    assert all("--hash=sha256:" in line for line in requirements)
    assert "--require-hashes" in command
    into = Path(command[command.index("--dest") + 1])
    folder = "onnxruntime_ep_nv_tensorrt_rtx"
    with zipfile.ZipFile(into / "libraries.whl", "w") as wheel:
        wheel.writestr(f"{folder}/libtensorrt_rtx.so.1.7.1", "the builder")
        wheel.writestr(f"{folder}/libtensorrt_onnxparser_rtx.so.1.7.1", "the parser")
        wheel.writestr(f"{folder}/libtensorrt_plugins.so", "not wanted")
        wheel.writestr("libraries-0.5.0.dist-info/METADATA", "licence")
    with zipfile.ZipFile(into / "python.whl", "w") as wheel:
        wheel.writestr("tensorrt_bindings/__init__.py", "")
    return subprocess.CompletedProcess(command, 0, "", "")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("COMPRESS_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/compress")


def test_an_installed_package_is_preferred(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert ensure_rtx_libraries() == RtxLibraries(module="tensorrt_rtx", version="unknown")
    assert not cache.exists()


def test_the_set_up_is_done_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, _fake_wheels)
    found = ensure_rtx_libraries()
    folder = cache / "tensorrt-rtx" / f"1.7.1-{PYTHON}"
    assert found == RtxLibraries(
        module="tensorrt_bindings", version="1.7.1", python_path=folder, library_path=folder / "lib"
    )
    assert (folder / "lib/libnvinfer.so.11").read_text() == "the builder"
    assert (folder / "lib/libnvonnxparser.so.11").read_text() == "the parser"
    assert (folder / "lib/libnvinfer_plugin.so.11").read_bytes().startswith(b"\x7fELF")
    assert sorted(path.name for path in folder.iterdir()) == ["lib", "libraries-0.5.0.dist-info", "tensorrt_bindings"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    _pip(monkeypatch, AssertionError("fetched again"))
    assert ensure_rtx_libraries() == found


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: Retrying\nERROR: No matching distribution found for tensorrt-cu13-bindings==11.4.0.106\n"
    _pip(monkeypatch, lambda command: subprocess.CompletedProcess(command, 1, "", said))
    message = r"not available here: pip could not fetch its wheels \(ERROR: No matching .*\)\. .*leave out .*'rtx'"
    with pytest.raises(CompressError, match=message):
        ensure_rtx_libraries()
    assert list((cache / "tensorrt-rtx").iterdir()) == []


def test_a_network_that_hangs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(monkeypatch, subprocess.TimeoutExpired("pip", 600))
    with pytest.raises(CompressError, match="fetching its wheels took more than 600 s"):
        ensure_rtx_libraries()


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pip(monkeypatch, _fake_wheels)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match="it needs a C compiler, and there is no `cc`"):
        ensure_rtx_libraries()
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'no crt1.o' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    with pytest.raises(CompressError, match=r"cc could not compile plugin_stub.c \(no crt1.o\)"):
        ensure_rtx_libraries()


def test_another_platform(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(CompressError, match="its wheels are for Linux on x86-64, this is linux on aarch64"):
        ensure_rtx_libraries()


def test_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(CompressError, match=r"tensorrt-rtx/1.7.1-py\d+ cannot be written"):
        ensure_rtx_libraries()


def test_as_a_command(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    done = subprocess.run([sys.executable, "-m", module.__name__], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("TensorRT for RTX is not available here: ")
