"""The emulated ARM64 device: what is refused, how its folder is made, and an int8 engine run on ARM64 arithmetic."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibration
import compress
from compress.bench.agent import run_here
from compress.device import emulator as module
from compress.device import open_device
from compress.device.emulator import can_emulate, emulator_command
from compress.errors import CompressError
from compress.targets import get_target, targets
from runtimes.arrays import read_batches

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RPI5 = targets()["rpi5"]
RECIPE = tomllib.loads(Path(module.__file__).with_name("emulator.toml").read_text())


# What needs no emulator.


def test_only_an_arm64_cpu_with_onnx_runtime_can_be_emulated() -> None:
    assert [name for name, row in targets().items() if can_emulate(row)] == ["rpi5"]
    for name in ("openvino-cpu", "onnxruntime-cpu", "jetson-orin-nano", "rtx"):
        with pytest.raises(CompressError, match=rf"'{name}' cannot be emulated: .* ONNX Runtime \(rpi5\)"):
            emulator_command(targets()[name])


def test_the_wheels_are_those_of_the_constraints() -> None:
    pinned = (Path(compress.__file__).parents[1] / "constraints.txt").read_text().split()
    assert set(RECIPE["wheels"]) == {line for line in pinned if line.startswith(("numpy==", "onnxruntime=="))}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digests in RECIPE["wheels"].values() for digest in digests)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the packages and the wheels; returns the emulators' folder of a fresh cache."""

    def unpack(packages: Sequence[str], into: Path, *, architecture: str, suite: str) -> None:
        arm = "python3.11-minimal" in packages
        assert (arm, suite) == (architecture == "arm64", "bookworm")
        (into / "usr/bin").mkdir(parents=True)
        for name in ["python3.11"] if arm else ["qemu-aarch64-static", "busybox", "qemu-mips-static"]:
            (into / "usr/bin" / name).write_text(name)

    def fetch(wheels: dict[str, Any], into: Path, *, options: Sequence[str]) -> None:
        assert "--python-version=3.11" in options
        assert "--platform=manylinux_2_28_aarch64" in options
        into.mkdir()
        for name in wheels:
            with zipfile.ZipFile(into / f"{name}.whl", "w") as wheel:
                wheel.writestr(f"{name.split('==')[0]}/__init__.py", "")

    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "unpack", unpack)
    monkeypatch.setattr(module, "fetch_wheels", fetch)
    monkeypatch.setattr(module, "_enter", lambda root: ["enter", str(root)])
    return tmp_path / "cache" / "emulator"


def test_the_folder_shows_a_raspberry_pi_and_a_python_that_starts_qemu(parts: Path) -> None:
    command = emulator_command(RPI5)
    root = Path(command[-2])
    assert command == ["env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
                       "TMPDIR=/tmp", "enter", str(root), "/usr/bin/python3.11"]  # fmt: skip
    cores = (root / "proc/cpuinfo").read_text().strip().split("\n\n")
    assert [core.splitlines()[0] for core in cores] == [f"processor\t: {index}" for index in range(4)]
    assert all({"asimddp", "asimdhp", "0xd0b"} <= set(core.split()) for core in cores)
    assert {(root / "sys/devices/system/cpu" / name).read_text() for name in ("possible", "present")} == {"0-3\n"}
    assert "emulated" in (root / "proc/device-tree/model").read_text()  # no record of it can pass for a board's
    assert (root / "usr/bin/python3.11").read_text() == (
        "#!/busybox sh\n"
        'exec /qemu-aarch64-static -cpu cortex-a76 -0 /usr/bin/python3.11 /usr/bin/python3.11-arm64 "$@"\n'
    )
    assert (root / "usr/bin/python3.11-arm64").read_text() == "python3.11"
    assert sorted(path.name for path in (root / "usr/lib/python3/dist-packages").iterdir()) == ["numpy", "onnxruntime"]
    assert (root / "qemu-aarch64-static").read_text() == "qemu-aarch64-static"
    assert (root / "root").is_dir()
    assert (root / "tmp").is_dir()
    assert [path.name for path in root.parent.iterdir() if path != root] == [f".{root.name}.lock"]


def test_the_folder_is_made_once(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = emulator_command(RPI5)
    monkeypatch.setattr(module, "unpack", None)
    assert emulator_command(RPI5) == first


def test_the_folder_appears_complete_or_not_at_all(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise CompressError("pip could not fetch its wheels (no network)")

    whole = module.fetch_wheels
    monkeypatch.setattr(module, "fetch_wheels", fetch)
    with pytest.raises(CompressError, match=r"device cannot be emulated here: pip could not fetch .* \(no network\)"):
        emulator_command(RPI5)
    assert [path.name for path in parts.iterdir() if not path.name.endswith(".lock")] == []
    monkeypatch.setattr(module, "fetch_wheels", whole)
    assert Path(emulator_command(RPI5)[-2]).is_dir()


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", "/proc/none")
    with pytest.raises(CompressError, match=r"/proc/none/emulator/arm64-.* cannot be written"):
        emulator_command(RPI5)


def test_neither_chroot_nor_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chroot", "unshare"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name}: Operation not permitted >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(module, "_ENVIRONMENT", {"PATH": str(tmp_path)})
    monkeypatch.setattr(module, "_make_devices", lambda root: True)
    message = r"neither chroot nor .* \(unshare: Operation not permitted\): run as root, .*unprivileged_userns"
    with pytest.raises(CompressError, match=message):
        module._enter(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(CompressError, match="No such file or directory: 'unshare'"):
        module._enter(tmp_path)


def test_device_files_are_made_where_root_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("null", "zero", "random", "urandom"):
        (tmp_path / "dev" / name).write_text("")

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mknod", refuse)
        assert not module._make_devices(tmp_path)
    if os.geteuid() != 0 or not module._make_devices(tmp_path):
        pytest.skip("making device files takes root")
    (tmp_path / "dev/null").write_text("swallowed")
    assert (tmp_path / "dev/null").read_text() == ""
    with (tmp_path / "dev/urandom").open("rb") as random:
        assert len(random.read(8)) == 8


# The real thing.


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The emulator of the user's cache, made now if it is not there."""
    try:
        return emulator_command(RPI5)
    except CompressError as error:
        pytest.skip(str(error))


@pytest.fixture
def there(command: list[str], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder of this test's own on the device: its path for this machine, and in there."""
    root = next(Path(word) for word in command if re.search(r"/arm64-[0-9a-f]{12}$", word))
    folder = root / "tmp" / f"{tmp_path.parent.name}-{tmp_path.name}-{os.getpid()}"
    folder.mkdir()
    yield folder, Path("/") / folder.relative_to(root)
    shutil.rmtree(folder)


def _python(command: list[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False,
                          input="over the pipe", env={**os.environ, "PYTHONPATH": "/nonsense"})  # fmt: skip


ABOUT = """
import json, os, platform, subprocess, sys
open(os.path.join(os.path.expanduser("~"), "written"), "w").close()
os.remove(os.path.join(os.path.expanduser("~"), "written"))
child = subprocess.run([sys.executable, "-c", "import platform; print(platform.machine())"], capture_output=True,
                       stdin=subprocess.DEVNULL, text=True)
print(json.dumps({"machine": platform.machine(), "python": sys.version_info[:2], "stdin": sys.stdin.read(),
                  "child": child.stdout, "host": os.path.exists(sys.argv[1]), "path": "/nonsense" in sys.path,
                  "random": len(open("/dev/urandom", "rb").read(4))}))
"""
EXPECTED = {"machine": "aarch64", "python": [3, 11], "stdin": "over the pipe", "child": "aarch64\n", "host": False,
            "path": False, "random": 4}  # fmt: skip


@pytest.mark.slow
def test_python_in_there(command: list[str]) -> None:
    """Pipes, a writable home, /dev, and a child process that is emulated too; nothing of this machine to be seen."""
    done = _python(command, ABOUT, __file__)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == EXPECTED


@pytest.mark.slow
def test_the_same_without_root(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_make_devices", lambda root: False)
    try:
        borrowed = emulator_command(RPI5)
    except CompressError as error:
        pytest.skip(str(error))
    assert "unshare" in borrowed
    done = _python(borrowed, ABOUT, __file__)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == EXPECTED


@pytest.fixture(scope="module")
def int8(small_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 engine of the small model for the Raspberry Pi 5."""
    model = compress.load(small_files / "model.pt")
    data = calibration.open_set(small_files / "calibration", model.inputs)
    quantized = compress.quantize(model, data, scheme=RPI5.scheme).model
    return compress.export(quantized, get_target("rpi5"), tmp_path_factory.mktemp("int8") / "engine").path


def _job(engine: Path, shards: list[Path], into: Path) -> dict[str, Any]:
    outputs = {"shards": [str(shard) for shard in shards], "inputs": ["picture", "word"], "batch": 8, "into": str(into)}
    return {"engines": {"main": str(engine)}, "threads": 1, "latency": None, "outputs": outputs, "layers": False}


@pytest.mark.slow
def test_an_int8_engine_answers_as_on_x86(
    command: list[str], int8: Path, small_files: Path, tmp_path: Path
) -> None:
    """s8 x s8 sums are integers and so the same on both; the float scaling around them may round otherwise.

    A value at the edge of two integers may therefore fall to either side, and move an output by one step of it.
    """
    shards = sorted((small_files / "validation").glob("*.npz"))
    run_here(_job(int8, shards, tmp_path / "x86.npz"), tmp_path / "here", 60)
    with open_device(RPI5, emulate=True) as device:
        assert device.emulated
        result = device.agent(_job(int8, shards, tmp_path / "arm64.npz"), tmp_path / "there", 120)
    machine = result["machine"]
    assert (result["samples"], result["threads"], result["precision"]) == (128, 1, "int8")
    assert (machine["arch"], machine["board"]) == ("aarch64", "Raspberry Pi 5, emulated by qemu")
    assert "asimddp" in machine["flags"]
    assert machine["memory_bytes"] is None  # not this machine's
    x86, arm64 = (read_batches(tmp_path / f"{name}.npz")[0]["output"] for name in ("x86", "arm64"))
    np.testing.assert_allclose(arm64, x86, atol=0.02 * np.abs(x86).max())
    assert (arm64.argmax(1) == x86.argmax(1)).mean() >= 0.99
    assert {0, 1, 2} == set(x86.argmax(1))  # answers that could differ


RUN = """
import resource, sys; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1] + "/engine/model.onnx", options)
feed = numpy.load(sys.argv[1] + "/feed.npz")
print(session.run(None, {name: feed[name] for name in ("picture", "word")})[0].shape)
"""


@pytest.mark.slow
def test_the_dot_product_kernels_are_the_ones_that_run(
    command: list[str], there: tuple[Path, Path], int8: Path, small_files: Path
) -> None:
    """On a CPU without those instructions the very same run dies of the first of them; with them it passes."""
    folder, inside = there
    shutil.copytree(int8, folder / "engine")
    shutil.copy(small_files / "validation" / "0000.npz", folder / "feed.npz")
    codes = {}
    for cpu in ("cortex-a76", "cortex-a72"):
        qemu = [*command[:-1], "/qemu-aarch64-static", "-cpu", cpu, "/usr/bin/python3.11-arm64"]
        done = _python(qemu, RUN, str(inside))
        codes[cpu] = done.returncode
    assert codes == {"cortex-a76": 0, "cortex-a72": -4}  # SIGILL
