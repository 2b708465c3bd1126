"""An ARM64 device without a board: an arm64 Python with numpy and ONNX Runtime, run by qemu's user-mode emulation.

Its numerics, imports and refusals are those of the board's CPU; its timings mean nothing. ``python -m
compress.device.emulator`` does the set-up ahead of time (about 110 MB to fetch, 180 MB on the disk).

Only user space is emulated, and only below one folder: ``/proc`` and ``/sys`` hold what the library must see of a
Raspberry Pi 5's CPU and nothing of this machine, so that what the board would read there is "not measured".
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from compress.device.debian import host_architecture, locked, unpack
from compress.errors import CompressError
from compress.export.rtx_libraries import cache_folder
from compress.progress import Progress
from compress.targets import Target, get_target, targets
from compress.wheels import fetch_wheels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_RECIPE = Path(__file__).with_name("emulator.toml")
_LAYOUT = b"1"  # raised when the same recipe gives another folder
_PYTHON = "/usr/bin/python3.11"
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_DEVICES = {"null": (1, 3), "zero": (1, 5), "random": (1, 8), "urandom": (1, 9)}  # major and minor numbers of Linux
_ENVIRONMENT = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TMPDIR": "/tmp"}

# The kernel starts this script's interpreter, which is of this machine: a process in there can start another Python.
_LAUNCHER = """#!/busybox sh
exec /qemu-aarch64-static -cpu {cpu} -0 {python} {python}-arm64 "$@"
"""
# In a mount namespace of its own: who may not make device files there borrows this machine's.
_BORROW = """for device in {devices}; do mount -n --bind "/dev/$device" "$0/dev/$device" || exit 1; done
exec chroot "$0" "$@"
"""


def emulator_command(target: Target, *, progress: Progress | None = None) -> list[str]:
    """The command that starts Python on an emulated ``target``: append Python's own arguments.

    Its standard streams are pipes like any command's; it sees nothing of this machine's files and environment. The
    home folder and ``/tmp`` in there are kept and shared by all runs. The first call makes the folder in the cache;
    other processes wait for it.

    Raises:
        CompressError: if ``target`` is no ARM64 CPU with ONNX Runtime; if what the folder is made of cannot be had
            here; or if this system lets the user neither ``chroot`` nor make a user namespace.
    """
    if not can_emulate(target):
        able = [row.name for row in targets().values() if can_emulate(row)]
        raise CompressError(
            f"target {target.name!r} cannot be emulated: that takes an ARM64 CPU with ONNX Runtime "
            f"({', '.join(able)}); give it an address in targets.toml, or leave it out"
        )
    recipe = tomllib.loads(_RECIPE.read_text(encoding="utf-8"))
    digest = hashlib.sha256(_RECIPE.read_bytes() + _LAYOUT).hexdigest()[:12]
    root = cache_folder().absolute() / "emulator" / f"arm64-{digest}"
    try:
        if not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            with locked(root.parent / f".{root.name}.lock"):
                if not root.is_dir():
                    with (progress or Progress(quiet=True)).stage("emulator", "fetching an ARM64 Python, once"):
                        _set_up(root, recipe)
        environment = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
        return ["env", "-i", *environment, *_enter(root), _PYTHON]
    except OSError as error:
        raise _unavailable(f"{root} cannot be written ({error})") from error


def can_emulate(target: Target) -> bool:
    """Whether the emulated device can stand in for ``target``."""
    return target.backend == "onnxruntime" and target.device == "CPU" and target.scheme == "arm64"


def _set_up(root: Path, recipe: dict[str, Any]) -> None:
    """Fill ``root``, which appears under its name only when it is complete."""
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".setting-up-") as name:
        made, host, wheels = Path(name) / "root", Path(name) / "host", Path(name) / "wheels"
        unpack(recipe["packages"], made, architecture="arm64", suite=recipe["suite"])
        unpack(recipe["programs"], host, architecture=host_architecture(), suite=recipe["suite"])
        for program in ("qemu-aarch64-static", "busybox"):
            shutil.copy(host / "usr/bin" / program, made / program)
        _add_wheels(recipe["wheels"], wheels, made / "usr/lib/python3/dist-packages")
        _add_system_files(made, recipe["cpu"])
        made.rename(root)


def _add_wheels(pinned: dict[str, list[str]], fetched: Path, into: Path) -> None:
    options = [f"--platform={name}" for name in _PLATFORMS]
    try:
        fetch_wheels(pinned, fetched, options=[*options, "--python-version=3.11", "--implementation=cp"])
    except CompressError as error:
        raise _unavailable(str(error)) from error
    for wheel in sorted(fetched.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)


def _add_system_files(root: Path, cpu: dict[str, Any]) -> None:
    """What a program expects of a system: a launcher for Python, the CPU's description, devices, a home and /tmp."""
    python = root / _PYTHON.removeprefix("/")
    python.rename(python.with_name(f"{python.name}-arm64"))
    python.write_text(_LAUNCHER.format(cpu=cpu["model"], python=_PYTHON))
    python.chmod(0o755)
    (root / "usr/bin/python3").symlink_to(python.name)
    described = "".join(f"processor\t: {core}\n{cpu['cpuinfo']}\n" for core in range(cpu["cores"]))
    every_core = f"0-{cpu['cores'] - 1}\n"
    files = {
        "proc/cpuinfo": described,
        "proc/device-tree/model": "Raspberry Pi 5, emulated by qemu",
        "sys/devices/system/cpu/possible": every_core,
        "sys/devices/system/cpu/present": every_core,
        "etc/passwd": f"root:x:0:0:root:{_ENVIRONMENT['HOME']}:/bin/sh\n",
        **{f"dev/{name}": "" for name in _DEVICES},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("root", "tmp"):
        (root / name).mkdir(exist_ok=True)


def _enter(root: Path) -> list[str]:
    """The command that runs another one below ``root``: the first that works here."""
    script = _BORROW.format(devices=" ".join(_DEVICES))
    ways = [["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(root)]]
    if os.geteuid() == 0 and _make_devices(root):
        ways.insert(0, ["chroot", str(root)])
    for way in ways:
        try:
            probe = subprocess.run(
                [*way, "/busybox", "sh", "-c", ": </dev/urandom >/dev/null"], stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=60, check=False, env=_ENVIRONMENT)  # fmt: skip
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if probe.returncode == 0:
            return way
        said = " ".join(probe.stderr.split()) or f"exit status {probe.returncode}"
    raise _unavailable(
        f"this system lets the user neither chroot nor make a user namespace with mounts ({said[:300]}): run as root, "
        "or have user namespaces allowed (sysctl kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns)"
    )


def _make_devices(root: Path) -> bool:
    """Turn the placeholders in ``dev`` into device files, each at once; whether this system lets root do that."""
    for name, numbers in _DEVICES.items():
        device = root / "dev" / name
        if stat.S_ISCHR(device.stat().st_mode):
            continue
        new = device.with_name(f".{name}.{os.getpid()}")
        try:
            os.mknod(new, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
            new.chmod(0o666)
            new.rename(device)
        except PermissionError:  # a container without CAP_MKNOD
            return False
    return True


def _unavailable(reason: str) -> CompressError:
    return CompressError(f"an ARM64 device cannot be emulated here: {reason}")


if __name__ == "__main__":
    try:
        print(*emulator_command(get_target("rpi5"), progress=Progress()))
    except CompressError as error:
        sys.exit(str(error))
