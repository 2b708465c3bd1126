"""Nothing is sent anywhere: no process of a run, or of a device that loads its bundle, opens a connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.compress.onnxfiles import write

# Python imports it where it starts, in processes that others start too; those it forks keep the hook.
WATCHED = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        local = isinstance(host, str) and (host.startswith(("/", "127.", "\\0")) or host in ("localhost", "::1"))
        if not local:
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{event} {host} {sys.argv}\\n")

sys.addaudithook(watch)
"""
DEVICE = """
import sys, numpy as np, runtimes
for backend in ("openvino", "onnxruntime"):
    with runtimes.load(sys.argv[1], backend) as session:
        session.run({"picture": np.zeros((1, 6), np.float32), "word": np.zeros((1, 3), np.int64)})
print("openvino" in sys.modules, "onnxruntime" in sys.modules)
"""
NNCF = """
import sys, numpy as np, calibration, compress
calibration.write(sys.argv[2], {"image": np.ones((8, 1, 8, 8), np.float32)})
model = compress.load(sys.argv[1])
compress.quantize(model, calibration.open_set(sys.argv[2], model.inputs), scheme="x86-vnni")
print("nncf" in sys.modules, "openvino" in sys.modules)
"""
SENDS = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), timeout=0.01)\nexcept OSError: pass"


@pytest.fixture
def watched(small: ModuleType, tmp_path: Path) -> dict[str, str]:
    """An environment that says nothing of a test, with a home where nobody has been asked for consent yet."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(WATCHED)
    (tmp_path / "home").mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "HOME": str(tmp_path / "home"), "WATCHED": str(tmp_path / "watched"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{tmp_path / 'hook'}:{small.ENVIRONMENT['PYTHONPATH']}"}


def call(environment: dict[str, str], *arguments: object) -> str:
    """What Python prints."""
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_watch_sees_what_is_sent(watched: dict[str, str]) -> None:
    call(watched, "-c", SENDS)
    assert "socket.connect 192.0.2.1" in Path(watched["WATCHED"]).read_text()


@pytest.mark.slow
def test_a_run_and_a_device_send_nothing(small: ModuleType, watched: dict[str, str], tmp_path: Path) -> None:
    recipe = small.write_all(tmp_path / "small")
    call(watched, "-m", "compress", "run", recipe, "--output", tmp_path / "out", "--quiet")
    assert call(watched, "-c", DEVICE, tmp_path / "out/bundle") == "True True\n"
    assert not Path(watched["WATCHED"]).exists()
    assert not (tmp_path / "home/intel").exists()       # where OpenVINO keeps a client's number


def test_nncf_sends_nothing(watched: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed")
    assert call(watched, "-c", NNCF, write(tmp_path / "net.onnx"), tmp_path / "data") == "True True\n"
    assert not Path(watched["WATCHED"]).exists()
    assert not (tmp_path / "home/intel").exists()
