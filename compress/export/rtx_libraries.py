"""The TensorRT-for-RTX libraries: an installed ``tensorrt_rtx``, else wheels unpacked once into the cache folder.

``python -m compress.export.rtx_libraries`` does the set-up ahead of time: 148 MB to fetch, 245 MB on the disk. The
wheels are under NVIDIA's licence, which is unpacked with them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.wheels import fetch_wheels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WHEELS = Path(__file__).with_name("rtx_libraries.toml")
_STUB = Path(__file__).with_name("plugin_stub.c")


@dataclass(frozen=True, kw_only=True)
class RtxLibraries:
    """What the build worker imports: a module, the folder it is in, and the folder its libraries are in."""

    module: str
    version: str
    python_path: Path | None = None      # None: installed
    library_path: Path | None = None


def cache_folder() -> Path:
    """``$COMPRESS_CACHE``, or ``~/.cache/compress``."""
    return Path(os.environ.get("COMPRESS_CACHE") or Path.home() / ".cache" / "compress")


def ensure_rtx_libraries() -> RtxLibraries:
    """Find the libraries, fetching them into the cache folder the first time.

    Raises:
        CompressError: if they cannot be had, with the reason: another platform, no pip, no network, no wheel for this
            Python, no C compiler, no space.
    """
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return RtxLibraries(module="tensorrt_rtx", version=_installed_version())
    wheels = tomllib.loads(_WHEELS.read_text(encoding="utf-8"))
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_folder() / "tensorrt-rtx" / f"{wheels['version']}-{python}"
    if not folder.is_dir():
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise _unavailable(f"its wheels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}")
        try:
            _set_up(folder, wheels)
        except OSError as error:
            raise _unavailable(f"{folder} cannot be written ({error})") from error
    return RtxLibraries(
        module="tensorrt_bindings", version=wheels["version"], python_path=folder, library_path=folder / "lib"
    )


def _set_up(folder: Path, wheels: dict[str, Any]) -> None:
    """Fill ``folder``, which appears under its name only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".setting-up-") as name:
        fetched, made = Path(name) / "wheels", Path(name) / "made"
        (made / "lib").mkdir(parents=True)
        _fetch(wheels, fetched)
        for wheel in sorted(fetched.glob("*.whl")):
            _unpack(wheel, made, wheels["libraries"])
        _compile_stub(made / "lib" / "libnvinfer_plugin.so.11")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise


def _fetch(wheels: dict[str, Any], into: Path) -> None:
    try:
        fetch_wheels(dict(zip(wheels["packages"], wheels["sha256"], strict=True)), into)
    except CompressError as error:
        raise _unavailable(str(error)) from error


def _unpack(wheel: Path, folder: Path, libraries: dict[str, str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith("tensorrt_bindings/") or ".dist-info/" in member:
                archive.extract(member, folder)
        for name, member in libraries.items():
            if member in archive.namelist():
                with archive.open(member) as source, (folder / "lib" / name).open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)


def _compile_stub(library: Path) -> None:
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(_STUB)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise _unavailable("it needs a C compiler, and there is no `cc`") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:300]
        raise _unavailable(f"cc could not compile {_STUB.name} ({said})") from error


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tensorrt_rtx")
    except PackageNotFoundError:  # a source tree, or a package that names its distribution otherwise
        return "unknown"


def _unavailable(reason: str) -> CompressError:
    return CompressError(
        f'TensorRT for RTX is not available here: {reason}. Install it with pip install "compress-edge[tensorrt-rtx]", '
        "or leave out the target 'rtx'"
    )


if __name__ == "__main__":
    try:
        print(ensure_rtx_libraries())
    except CompressError as error:
        sys.exit(str(error))
