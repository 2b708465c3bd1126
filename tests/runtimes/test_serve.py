"""The device's side of a session, spoken to in frames: what it answers, what it refuses, and when it ends."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes.frames import BLOCK_BYTES, PAYLOAD_LIMIT, Frame, Unpacker, pack
from runtimes.serve import Server

ROOT = Path(runtimes.__file__).parents[1]
SILENCE_S = 1.0
SLEEPER = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"


class Host:
    """Starts the server and speaks frames with it."""

    def __init__(self, cache: Path, measure: str | None = None) -> None:
        """``measure`` is Python code that runs in place of runtimes.measure, with the job in ``job``."""
        self.cache = cache
        self.marker = f"COMPRESS_CACHE={cache}"
        environment = {**os.environ, "COMPRESS_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        code = f"from runtimes.serve import serve; serve(0.2, {SILENCE_S})"
        if measure is not None:
            folder = cache.parent / "modules"
            folder.mkdir()
            (folder / "sitecustomize.py").write_text(
                "import json, sys\n"
                "if sys.orig_argv[1:3] == ['-m', 'runtimes.leash'] and sys.orig_argv[4] == 'runtimes.measure':\n"
                "    import runtimes.leash\n"
                "    runtimes.leash.end_with(int(sys.orig_argv[3]))\n"
                "    job = json.load(open(sys.orig_argv[5]))\n"
                "    code = open(__file__.replace('sitecustomize', 'measure_')).read()\n"
                "    exec(code)\n"
                "    sys.stdout.flush(); import os; os._exit(0)\n")
            (folder / "measure_.py").write_text(measure)
            environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, env=environment, cwd=cache.parent, bufsize=0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._unpacker = Unpacker()
        self.beats = 0
        self.session = Path(str(self.answer().header["session"]))

    def send(self, data: bytes) -> None:
        self.stdin.write(data)

    def answer(self, timeout_s: float = 20) -> Frame:
        """The next frame that is not a beat; beats back while it waits."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            while (frame := self._unpacker.next()) is not None:
                if frame.kind != "beat":
                    return frame
                self.beats += 1
            if select.select([self.stdout], [], [], 0.2)[0]:
                piece = os.read(self.stdout.fileno(), 1 << 16)
                assert piece, "the server has ended"
                self._unpacker.add(piece)
            else:
                self.send(pack("beat"))
        raise AssertionError("no answer")

    def ask(self, kind: str, payload: bytes = b"", **fields: Any) -> Frame:
        self.send(pack(kind, payload, **fields))
        return self.answer()

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.send(pack("put", sha256=digest, size=len(data)))
        for start in range(0, len(data), BLOCK_BYTES):
            self.send(pack("data", data[start : start + BLOCK_BYTES]))
        assert self.answer().kind == "done"
        return digest

    def ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def left(self) -> list[int]:
        """Processes of this session that run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def nothing_left_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "cache")
    yield host
    host.close()


@pytest.fixture
def measuring(tmp_path: Path) -> Iterator[Any]:
    """Gives a host whose jobs run other code than the measurement."""
    hosts: list[Host] = []

    def start(code: str) -> Host:
        hosts.append(Host(tmp_path / "cache", code))
        return hosts[0]

    yield start
    for host in hosts:
        host.close()


def test_facts(host: Host) -> None:
    facts = json.loads(host.ask("facts").payload)
    assert facts["cores"] == os.cpu_count()


def test_files(host: Host) -> None:
    data = os.urandom(BLOCK_BYTES * 2 + 17)
    digest, other = hashlib.sha256(data).hexdigest(), "0" * 64
    asked = json.dumps({"files": [digest, other]}).encode()
    answer = json.loads(host.ask("missing", asked).payload)
    assert (answer["missing"], answer["room_bytes"] > 0) == ([digest, other], True)
    assert host.put(data) == digest
    assert json.loads(host.ask("missing", asked).payload)["missing"] == [other]
    assert (host.cache / "files" / digest).read_bytes() == data
    folder = Path(host.ask("tree", json.dumps({"files": {"a/b": digest}}).encode()).header["path"])
    assert (folder / "a/b").read_bytes() == data


def test_a_wrong_hash_is_refused_and_the_session_goes_on(host: Host) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    host.send(pack("put", sha256=digest, size=7) + pack("data", b"weig") + pack("data", b"htz"))
    answer = host.answer()
    assert answer.kind == "error"
    assert f"file {digest[:12]}… came as 7 of 7 bytes with SHA-256" in answer.header["text"]
    assert not list((host.cache / "files").iterdir())
    assert host.put(b"weights") == digest


def test_after_a_refused_file_its_bytes_are_skipped(host: Host) -> None:
    host.send(pack("put", sha256="../../outside", size=9) + pack("data", b"facts") + pack("data", b"----"))
    answer = host.answer()
    assert (answer.kind, "is not a SHA-256" in answer.header["text"]) == ("error", True)
    assert host.ask("facts").kind == "done"


@pytest.mark.parametrize(("kind", "payload", "fields", "text"), [
    ("format", b"", {}, "request 'format' is not one this version knows"),
    ("missing", b"{", {}, "request 'missing' is not JSON"),
    ("missing", b'{"files": [3]}', {}, "an item of 'files' must be a string"),
    ("missing", b'{"files": ["../x"]}', {}, "'../x' is not a SHA-256"),
    ("put", b"", {"sha256": "0" * 64}, "request 'put' lacks 'size'"),
    ("put", b"", {"sha256": "0" * 64, "size": -1}, "came as 0 of -1 bytes"),
    ("tree", b'{"files": {"../x": "' + b"0" * 64 + b'"}}', {}, "not a plain path inside the folder"),
    ("tree", b'{"files": {"/etc/x": "' + b"0" * 64 + b'"}}', {}, "not a plain path inside the folder"),
    ("get", b"", {"path": "../lock"}, "not a plain path inside the folder"),
    ("get", b"", {"path": "/etc/passwd"}, "not a plain path inside the folder"),
    ("get", b"", {"path": "result.json"}, "the job left no file 'result.json'"),
    ("run", b"{}", {}, "request 'run' lacks 'timeout_s'"),
])  # fmt: skip
def test_requests_refused(host: Host, kind: str, payload: bytes, fields: dict[str, Any], text: str) -> None:
    answer = host.ask(kind, payload, **fields)
    assert answer.kind == "error"
    assert text in answer.header["text"]
    assert host.ask("facts").kind == "done"
    assert not (host.cache.parent / "x").exists()


@pytest.mark.parametrize("data", [
    b"GET / HTTP/1.1\r\n\r\n", b"\0" * 70000, b'{"kind": "put", "bytes": 99999999999999}\n', b"[]\n",
    pack("put", sha256="0" * 64, size=5) + pack("facts"),
    pack("put", sha256="0" * 64, size=5) + pack("data", b"too much"),
    pack("put", sha256="0" * 64, size=5) + pack("data"),
])  # fmt: skip
def test_what_breaks_the_protocol_ends_the_session(host: Host, data: bytes) -> None:
    host.send(data)
    answer = host.answer()
    if not answer.header.get("fatal"):      # the request's own refusal comes first
        answer = host.answer()
    assert (answer.kind, answer.header["fatal"]) == ("error", True)
    assert host.ended_within(5)
    assert not host.session.exists()
    assert host.cache.parent.joinpath("cache").is_dir()


def test_a_flood_of_requests_ends_the_session(measuring: Any) -> None:
    host = measuring("import time; time.sleep(60)")
    host.send(pack("run", b"{}", timeout_s=50.0) + pack("facts") * 1000)
    answer = host.answer()
    assert answer.kind == "error"
    assert host.ended_within(10)
    assert host.nothing_left_within(5)


def test_a_job(measuring: Any) -> None:
    host = measuring(
        "open('outputs.npz', 'wb').write(b'outputs'); print('on stdout')\n"
        "json.dump({'x': job['x'], 'pid_group': __import__('os').getpgrp() == __import__('os').getpid()},"
        " open(job['result'], 'w'))")
    done = host.ask("run", b'{"x": 3, "result": "/tmp/elsewhere"}', timeout_s=20.0)
    assert (done.header["code"], done.header["timed_out"], done.payload) == (0, False, b"on stdout\n")
    data = host.ask("get", path="result.json")
    assert (data.kind, json.loads(data.payload)) == ("data", {"x": 3, "pid_group": True})
    assert host.answer().header["sha256"] == hashlib.sha256(data.payload).hexdigest()
    assert host.ask("get", path="outputs.npz").payload == b"outputs"
    assert host.answer().kind == "done"
    assert host.beats == 0 or host.ask("facts").kind == "done"


def test_a_link_that_a_job_left_is_not_followed(measuring: Any) -> None:
    host = measuring("import os; os.symlink('/etc/passwd', 'outputs.npz'); os.symlink('/etc', 'etc')")
    assert host.ask("run", b"{}", timeout_s=20.0).header["code"] == 0
    for path in ("outputs.npz", "etc/passwd"):
        answer = host.ask("get", path=path)
        assert (answer.kind, f"the job left no file {path!r}" in answer.header["text"]) == ("error", True)


def test_a_job_that_fails(measuring: Any) -> None:
    host = measuring("import os; print('x' * 100000 + '\\nthe reason', file=sys.stderr, flush=True); os._exit(3)")
    done = host.ask("run", b"{}", timeout_s=20.0)
    assert (done.header["code"], done.header["timed_out"]) == (3, False)
    assert done.payload.endswith(b"\nthe reason\n")
    assert len(done.payload) == 1 << 16


def test_a_job_that_is_killed(measuring: Any) -> None:
    host = measuring("import os; os.kill(os.getpid(), 9)")
    assert host.ask("run", b"{}", timeout_s=20.0).header["code"] == -9


def test_a_job_that_takes_too_long(measuring: Any) -> None:
    host = measuring(SLEEPER + "time.sleep(60)")
    start = time.monotonic()
    done = host.ask("run", b"{}", timeout_s=1.0)
    assert done.header["timed_out"] is True
    assert 1 <= time.monotonic() - start < 10
    assert host.beats >= 3
    assert host.ask("facts").kind == "done"
    assert host.left() == [host.process.pid]    # the job's own child ended with it


def start_job(host: Host) -> None:
    host.send(pack("run", b"{}", timeout_s=50.0))
    deadline = time.monotonic() + 10
    while len(host.left()) < 3:     # the server, the job and its child
        assert time.monotonic() < deadline
        host.send(pack("beat"))
        time.sleep(0.05)


def test_stdin_closed_in_a_job(measuring: Any) -> None:
    host = measuring(SLEEPER + "time.sleep(60)")
    start_job(host)
    host.stdin.close()
    assert host.nothing_left_within(3)
    assert not host.session.exists()


def test_silence_in_a_job(measuring: Any) -> None:
    host = measuring(SLEEPER + "time.sleep(60)")
    start_job(host)
    start = time.monotonic()
    assert host.ended_within(SILENCE_S + 4)
    assert time.monotonic() - start > SILENCE_S / 2
    assert host.nothing_left_within(3)


def test_silence_between_jobs(host: Host) -> None:
    assert host.ended_within(SILENCE_S + 4)
    assert not host.session.exists()


def test_a_host_that_reads_nothing(measuring: Any) -> None:
    host = measuring("open('big', 'wb').write(bytes(4 << 20))")
    assert host.ask("run", b"{}", timeout_s=20.0).header["code"] == 0
    host.send(pack("get", path="big"))
    deadline = time.monotonic() + 10
    while host.process.poll() is None and time.monotonic() < deadline:
        try:
            host.send(pack("beat"))
        except BrokenPipeError:
            break
        time.sleep(0.1)
    assert host.ended_within(2)


@pytest.mark.parametrize("number", [15, 1, 9])
def test_server_killed_in_a_job(measuring: Any, number: int) -> None:
    host = measuring("import time; time.sleep(60)")
    host.send(pack("run", b"{}", timeout_s=50.0))
    while len(host.left()) < 2:
        time.sleep(0.02)
    time.sleep(0.3)     # the job is on its leash
    host.process.send_signal(number)
    assert host.nothing_left_within(5)
    assert host.session.exists() == (number == 9)


def test_what_a_library_prints_is_not_part_of_the_protocol(tmp_path: Path) -> None:
    code = ("import os; from runtimes import serve\n"
            "def facts():\n    print('hello'); os.write(1, b'hello'); return {}\n"
            "serve.machine_facts = facts; serve.serve()")
    done = subprocess.run([sys.executable, "-c", code], input=pack("facts"), capture_output=True, timeout=20, cwd=ROOT,
                          env={**os.environ, "COMPRESS_CACHE": str(tmp_path)})
    assert b"hello" not in done.stdout
    assert done.stdout.endswith(pack("done", b"{}"))
    assert done.stderr.count(b"hello") == 2


def test_a_waiting_server_takes_no_cpu(measuring: Any) -> None:
    host = measuring("import time; time.sleep(60)")
    host.send(pack("run", b"{}", timeout_s=50.0))
    time.sleep(0.5)
    before = cpu_ticks(host.process.pid)
    for _ in range(6):
        host.send(pack("beat"))
        time.sleep(0.2)
    assert cpu_ticks(host.process.pid) - before <= 2     # of 120, with beats 15 times as often as in use


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_mutated_sessions(tmp_path: Path) -> None:
    """A good session with bytes changed, cut or repeated: it ends, and nothing is written beside the cache."""
    random = np.random.default_rng(0)
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    good = b"".join([
        pack("missing", json.dumps({"files": [digest]}).encode()),
        pack("put", sha256=digest, size=len(content)), pack("data", content[:3]), pack("data", content[3:]),
        pack("tree", json.dumps({"files": {"a/b": digest, "c": digest}}).encode()), pack("get", path="c/../a"),
        pack("beat")])
    for number in range(400):
        data = bytearray(good)
        for _ in range(int(random.integers(1, 6))):
            start, size = int(random.integers(len(data))), int(random.integers(1, 30))
            part = data[start : start + size]
            data[start : start + size] = (b"", random.bytes(1), part * 2, b"../", b"\n")[number % 5]
        (tmp_path / "in").write_bytes(data)
        source, sink = os.open(tmp_path / "in", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
        Server(source, sink, tmp_path / "cache", beat_s=3, silence_s=3).serve()
        os.close(source)
        os.close(sink)
        assert {path.name for path in (tmp_path / "cache" / "files").iterdir()} <= {digest}
    assert set(tmp_path.iterdir()) == {tmp_path / "in", tmp_path / "cache"}
    assert set((tmp_path / "cache").iterdir()) == {
        tmp_path / "cache" / name for name in ("files", "sessions", "sessions.lock")}


def test_payload_limit_is_no_smaller_than_a_block() -> None:
    assert BLOCK_BYTES <= PAYLOAD_LIMIT
