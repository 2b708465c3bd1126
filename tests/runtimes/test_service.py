"""The example service, run as systemd runs it: with a socket to notify, and signals."""

from __future__ import annotations

import configparser
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.service import to_array
from runtimes.install import install
from tests.contracts.models import BY_NAME, FLOAT, helper, model, value
from tests.runtimes.bundles import write_bundle

ROOT = Path(__file__).parents[2]
MATMUL = BY_NAME["matmul"]


class Service:
    """A running service, and the other end of its notifications."""

    def __init__(self, folder: Path, watchdog_s: float = 30.0) -> None:
        self.folder = folder
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(folder / "notify"))
        self.notices.settimeout(30)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "PYTHONPATH": str(ROOT),
                       "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        self.process = subprocess.Popen(
            [sys.executable, "examples/service.py", str(folder / "model"), str(folder / "sock"), "--threads", "1"],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def notice(self) -> str:
        return self.notices.recv(4096).decode()

    def connect(self) -> Client:
        return Client(self.folder / "sock")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.notices.close()


class Client:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def send(self, request: object) -> None:
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        self.socket.sendall(data + b"\n")

    def read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.lines.readline())
        return answer

    def ask(self, request: object) -> dict[str, Any]:
        self.send(request)
        return self.read()

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:      # the path of a socket is short
        folder = Path(name)
        first = write_bundle(tmp_path / "first", {"main": MATMUL}, ["onnxruntime"])
        install(first.path, folder / "model")
        yield folder


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    started = Service(folder)
    yield started
    started.end()


def ready(service: Service) -> str:
    notice = service.notice()
    assert notice.startswith("READY=1\nSTATUS=version ")
    return notice.rsplit(" ", 1)[1]


def doubled(root: Path) -> Path:
    """A second version: the same graph with other weights."""
    def build() -> Any:
        weights = np.array([[2, 4, 6], [8, 10, 12]], np.float32)
        return model([helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", FLOAT, "batch", 2)],
                     [value("y", FLOAT, "batch", 3)], w=weights)

    case = replace(MATMUL, build=build, expected={"y": 2 * MATMUL.expected["y"]})
    return write_bundle(root, {"main": case}, ["onnxruntime"]).path


def test_ready_answers_reload_and_end(service: Service, tmp_path: Path) -> None:
    version = ready(service)
    client, idle = service.connect(), service.connect()
    answer = client.ask({"id": 1, "feed": {"x": [[1, 1]]}})
    assert (answer["id"], answer["outputs"]) == (1, {"y": [[5, 7, 9]]})
    assert answer["version"].startswith(version)
    for line, message in ((b"not JSON", "JSONDecodeError"), (b"[]", "AttributeError"), ({"id": 2}, "KeyError: 'feed'"),
                          ({"id": 2, "feed": {"y": [1]}}, "FeedError: feed lacks input 'x'"),
                          (b"[" * 100_000, "RecursionError"), ({"id": 2, "feed": {"x": [[1, [2]]]}}, "ValueError")):
        assert message in client.ask(line)["error"]

    assert "does not say how to read the outputs" in client.ask({"id": 2, "ask": {"x": [[1, 1]]}})["error"]

    install(doubled(tmp_path / "second"), service.folder / "model")
    assert client.ask({"id": 3, "feed": {"x": [[1, 1]]}})["outputs"] == {"y": [[5, 7, 9]]}     # until it is told
    service.process.send_signal(signal.SIGHUP)
    assert service.notice().startswith("RELOADING=1\nMONOTONIC_USEC=")
    newer = ready(service)
    assert newer != version
    answer = client.ask({"id": 4, "feed": {"x": [[1, 1]]}})
    assert answer["outputs"] == {"y": [[10, 14, 18]]}
    assert answer["version"].startswith(newer)

    for number in range(20):
        client.send({"id": number, "feed": {"x": [[number, 0]]}})
    assert client.read()["id"] == 0         # it has begun with them
    service.process.send_signal(signal.SIGTERM)
    assert [client.read()["outputs"]["y"][0][0] for _ in range(19)] == [2 * number for number in range(1, 20)]
    assert client.lines.readline() == b""
    assert service.notice() == "STOPPING=1"
    assert service.process.wait(20) == 0
    client.close()
    idle.close()


def test_what_is_not_whole_is_no_token() -> None:
    assert to_array([[2.0, 3]], "int64").tolist() == [[2, 3]]
    assert to_array([[2, 0.5]], "float32").tolist() == [[2, 0.5]]
    with pytest.raises(ValueError, match="expected whole numbers of int64"):
        to_array([[2.7]], "int64")


def test_a_version_that_does_not_open_leaves_the_old_one(service: Service, tmp_path: Path) -> None:
    version = ready(service)
    path = install(doubled(tmp_path / "second"), service.folder / "model")
    (path / "engines/main/onnxruntime/model.onnx").write_bytes(b"damaged")
    service.process.send_signal(signal.SIGHUP)
    assert service.notice().startswith("RELOADING=1")
    assert ready(service) == version
    client = service.connect()
    assert client.ask({"id": 1, "feed": {"x": [[1, 1]]}})["outputs"] == {"y": [[5, 7, 9]]}
    client.close()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    assert service.process.stderr is not None
    assert "staying with version" in service.process.stderr.read()


def test_the_watchdog_is_told_while_the_engine_answers(folder: Path) -> None:
    service = Service(folder, watchdog_s=0.2)
    try:
        ready(service)
        assert [service.notice() for _ in range(3)] == ["WATCHDOG=1"] * 3
    finally:
        service.end()


def test_nothing_installed_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/service.py", str(tmp_path / "model"), str(tmp_path / "s")], cwd=ROOT,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr.startswith("error: nothing is installed in ")
    assert len(done.stderr.splitlines()) == 1


def test_the_unit_starts_this_service_and_speaks_its_signals() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "examples/service.service")
    service = unit["Service"]
    assert (service["Type"], service["ExecReload"]) == ("notify", "/bin/kill -HUP $MAINPID")
    assert "service.py /var/lib/model/bundles /run/model/model.sock" in service["ExecStart"]
    assert int(service["WatchdogSec"]) >= 10


def test_imports_the_standard_library_numpy_and_runtimes() -> None:
    lines = (ROOT / "examples/service.py").read_text().splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "runtimes"}
