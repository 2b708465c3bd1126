"""The link over a plain local process: starting, what a device lacks, what an odd one sends, and its end."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compress.bench.agent import AgentError
from compress.device import bootstrap
from compress.device.bootstrap import GREETING, tree_digest, unpack
from compress.device.link import DeviceLost, Link
from compress.device.package import package
from compress.errors import CompressError
from runtimes import filestore
from runtimes.frames import pack
from tests.compress.device.jobs import QUICK, local_command
from tests.sshd import processes_with

SCRIPTED = {**QUICK, "lost_s": 1.0}     # the script imports nothing that takes long


def fake(tmp_path: Path, body: str) -> list[str]:
    """A device that is a script of ours; it has the functions below."""
    file = tmp_path / "device.py"
    file.write_text(f"""
import json, os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from runtimes.frames import pack
def write(data): os.write(1, data)
def send(kind, payload=b"", **fields): write(pack(kind, payload, **fields))
def hello(**fields):
    open(0, "rb", 0, closefd=False).readline()
    known = {{"python": [3, 11, 2], "executable": "/usr/bin/python3", "numpy": True, "have": True, **fields}}
    write({GREETING!r} + json.dumps(known).encode() + b"\\n")
def ready(): send("ready", session="/session")
def rest(): open(0, "rb", closefd=False).read()
def wait_for(kind):
    source = open(0, "rb", 0, closefd=False)
    while kind not in source.readline(): pass
{body}
""")
    return [sys.executable, str(file)]


def test_the_package_is_sent_once(tmp_path: Path) -> None:
    digest, data = package()
    for sent in (len(data), 0):
        link = Link(local_command(tmp_path / "cache"), "board", **QUICK)
        assert link.sent_bytes == sent
        assert json.loads(link.request("facts", within_s=20).payload)["cores"] == os.cpu_count()
        assert link.session.startswith(str(tmp_path / "cache" / "sessions"))
        link.close()
    assert [path.name for path in (tmp_path / "cache" / "runtimes").iterdir()] == [digest]
    assert not list((tmp_path / "cache" / "sessions").iterdir())


def test_a_damaged_package_is_sent_again(tmp_path: Path) -> None:
    Link(local_command(tmp_path / "cache"), "board", **QUICK).close()
    digest, data = package()
    (tmp_path / "cache" / "runtimes" / digest / "runtimes" / "serve.py").write_text("raise SystemExit(1)")
    link = Link(local_command(tmp_path / "cache"), "board", **QUICK)
    assert link.sent_bytes == len(data)
    assert link.request("facts", within_s=20).kind == "done"
    link.close()


def test_package_is_the_same_every_time(tmp_path: Path) -> None:
    package.cache_clear()
    digest, data = package()
    package.cache_clear()
    assert package() == (digest, data)
    unpack(data, str(tmp_path / digest), digest)
    assert (tmp_path / digest / "runtimes" / "measure.py").is_file()
    (tmp_path / digest / "runtimes" / "__pycache__").mkdir()
    (tmp_path / digest / "runtimes" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert tree_digest(str(tmp_path / digest)) == digest
    (tmp_path / digest / "runtimes" / "added.py").write_bytes(b"")
    assert tree_digest(str(tmp_path / digest)) != digest
    with pytest.raises(SystemExit, match="did not arrive whole"):
        unpack(data, str(tmp_path / "0"), "0")
    assert [path.name for path in tmp_path.iterdir()] == [digest]


def test_unpacking_leaves_what_another_session_uses_and_mends_what_is_damaged(tmp_path: Path) -> None:
    digest, data = package()
    folder = tmp_path / digest
    unpack(data, str(folder), digest)
    first = folder.stat().st_ino
    unpack(data, str(folder), digest)
    assert folder.stat().st_ino == first
    (folder / "runtimes" / "serve.py").write_bytes(b"")
    unpack(data, str(folder), digest)
    assert folder.stat().st_ino != first
    assert tree_digest(str(folder)) == digest
    assert [path.name for path in tmp_path.iterdir()] == [digest]


def test_old_pythons_can_read_the_bootstrap() -> None:
    source = Path(bootstrap.__file__).read_text()
    ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr | ast.AnnAssign)]


def test_what_python_compiled_there_is_not_trusted(tmp_path: Path) -> None:
    """Bytecode of the right time for its source, but of other content, as a disk that lost power has it."""
    command = ["env", "-u", "PYTHONDONTWRITEBYTECODE", *local_command(tmp_path / "cache")]
    Link(command, "board", **QUICK).close()
    compiled = [path for path in (tmp_path / "cache").rglob("*.pyc") if path.name.startswith("serve.")]
    assert len(compiled) == 1
    compiled[0].write_bytes(compiled[0].read_bytes()[:16] + b"garbage")
    link = Link(command, "board", **QUICK)
    assert link.sent_bytes == 0
    assert link.request("facts", within_s=20).kind == "done"
    link.close()


@pytest.mark.parametrize("cache", ["/dev/null/cache", "/proc/cache"])
def test_a_cache_folder_that_cannot_be_made(cache: str) -> None:
    message = (r"^board ended the connection \(its cache folder cannot be used \(\[Errno \d+\] .*: '/(dev|proc)/.*'\): "
               "make it writable, with some space left, or set COMPRESS_CACHE there")
    with pytest.raises(CompressError, match=message):
        Link(local_command(Path(cache)), "board", **QUICK)


@pytest.mark.parametrize("environment", [
    {}, {"COMPRESS_CACHE": "/own"}, {"COMPRESS_CACHE": "own"}, {"COMPRESS_CACHE": "~/own"},
    {"XDG_CACHE_HOME": "/shared"}, {"XDG_CACHE_HOME": "shared"}, {"XDG_CACHE_HOME": ""},
    {"HOME": ""}, {"HOME": "relative"},
])
def test_both_sides_of_the_bootstrap_mean_the_same_cache(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("COMPRESS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bootstrap.cache_folder() == str(filestore.cache_folder())
    assert filestore.cache_folder().is_absolute()


@pytest.mark.parametrize("said", [b"", json.dumps("import sys; sys.path.insert(0, sys.argv[2])\n"
                                                  "from compress.device import bootstrap; bootstrap.WAIT_S = 1\n"
                                                  "bootstrap.start('0' * 64, 99, 1, 1)").encode() + b"\nPK"])
def test_a_host_that_is_gone_while_it_starts_is_not_waited_for(tmp_path: Path, said: bytes) -> None:
    """Its connection stays open, as when a network fails without a word."""
    command = [*local_command(tmp_path), str(Path(__file__).parents[3])]
    at = next(number for number, word in enumerate(command) if "alarm(30)" in word)
    command[at] = command[at].replace("alarm(30)", f"alarm({30 if said else 1})")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(said)
        process.stdin.flush()
        assert process.wait(15) == -signal.SIGALRM


def test_nothing_of_the_folder_it_starts_in_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "zipfile", "runtimes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    link = Link(local_command(tmp_path / "cache"), "board", **QUICK)
    assert link.request("facts", within_s=20).kind == "done"
    link.close()


@pytest.mark.parametrize(("body", "message"), [
    ("hello(python=[3, 8, 10])",
     r'^board has Python 3.8.10 \(/usr/bin/python3\): install Python 3.10 or newer there, or .*python = "..."'),
    ("hello(numpy=False)", "^board: its /usr/bin/python3 has no numpy: run `/usr/bin/python3 -m pip install numpy`"),
    ("sys.exit('no space left')", r"^board: the session did not start \(no space left\)$"),
    ("sys.exit(3)", r"^board: the session did not start \(exit code 3 and no message\)$"),
    ("print('sh: 1: exec: python3: not found', file=sys.stderr); sys.exit(127)",
     r"^board has no such Python \(sh: 1: exec: python3: not found\): install Python 3.10 or newer and numpy"),
    ("print('known to the client', file=sys.stderr); sys.exit(255)", "^board: explained$"),
    ("print('fish: Unknown command: /opt/p\\n^~~~^', file=sys.stderr); sys.exit(127)",
     r"^board has no such Python \(fish: Unknown command: /opt/p\): install Python 3.10"),
    ("sys.exit('/opt/p: Command not found.')", r"^board has no such Python \(/opt/p: Command not found.\): install"),
    ("print('a banner known to the client', file=sys.stderr); sys.exit('no space left')",
     r"^board: the session did not start \(no space left\)$"),
    ("sys.exit('\x1b[2Jcleared')", r"^board: the session did not start \(\?\[2Jcleared\)$"),
    ("hello(python=['3', '9']); rest()", r"^board sent what .* \(no version of Python in its greeting\)$"),
    ("hello(python=None); rest()", r"^board sent what .* \(no version of Python in its greeting\)$"),
    ("hello(numpy=False, executable='\x1b]0;x\x07'); rest()", r"^board: its \?\]0;x\? has no numpy"),
    ("hello(); sys.exit('\x1b[2Jcleared')", r"^board ended the connection \(\?\[2Jcleared\)$"),
    ("print('x' * 100000); rest()", "its shell prints too much before a command runs"),
    ("rest()", "^board does not answer"),
    ("write(b'\\n=compress= {\\n'); rest()", "^board sent what this version .*its greeting is not JSON"),
    ("hello(); sys.exit('cannot import runtimes')", r"^board ended the connection \(cannot import runtimes\)$"),
    ("hello(); rest()", "^board gave no sign of life for 1 s"),
    ("hello(); write(b'Traceback\\n'); rest()", "^board sent what this version does not understand"),
])
def test_a_device_that_does_not_start(tmp_path: Path, body: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(CompressError, match=message) as caught:
        Link(fake(tmp_path, body), "board", start_s=1 if body == "rest()" else 2, **SCRIPTED,
             explain=lambda stderr: "explained" if "known to the client" in stderr else None)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_no_such_command() -> None:
    with pytest.raises(CompressError, match=r"board: `/no/ssh` cannot be started \(No such file"):
        Link(["/no/ssh"], "board")


@pytest.mark.parametrize(("body", "message"), [
    ("sys.exit('power failure')", r"^board ended the connection \(power failure\)$"),
    ("write(b'{\"kind\": 3}\\n'); rest()", "^board sent what this version does not understand"),
    ("write(b'x' * 100000); rest()", "^board sent what this version does not understand"),
    ("write(b'{\"kind\": \"data\", \"bytes\": 99999999999}\\n'); rest()", "^board sent what this version"),
    ("send('error', text='bad frame', fatal=True)", "^board ended the session: bad frame$"),
    ("send('error', text='\x1b[31mred', fatal=True)", r"^board ended the session: \?\[31mred$"),
    ("rest()", "^board gave no sign of life for 1 s"),
])
def test_a_device_that_is_lost(tmp_path: Path, body: str, message: str) -> None:
    link = Link(fake(tmp_path, f"hello(); ready(); wait_for(b'facts')\n{body}"), "board", **SCRIPTED)
    try:
        with pytest.raises(DeviceLost, match=message):
            link.request("facts")
        with pytest.raises(DeviceLost, match=message):      # and stays so
            link.request("facts")
    finally:
        link.close()


def test_no_answer_in_time(tmp_path: Path) -> None:
    body = "hello(); ready()\nwhile True:\n    send('beat'); time.sleep(0.1)"
    link = Link(fake(tmp_path, body), "board", **QUICK)
    with pytest.raises(DeviceLost, match=r"board gave no answer within 0.5 s"):
        link.request("facts", within_s=0.5)
    link.close()


def test_a_refusal_is_an_error_of_the_job(tmp_path: Path) -> None:
    link = Link(local_command(tmp_path), "board", **QUICK)
    with pytest.raises(AgentError, match=r"^board: request 'nonsense' is not one this version knows$") as caught:
        link.request("nonsense")
    assert not isinstance(caught.value, DeviceLost)
    assert link.request("facts").kind == "done"
    link.close()


def test_an_idle_link_stays_up(tmp_path: Path) -> None:
    link = Link(local_command(tmp_path), "board", beat_s=0.1, silence_s=0.6, lost_s=0.6)
    time.sleep(1)
    assert link.request("facts").kind == "done"
    link.close()
    with pytest.raises(DeviceLost, match="board is not connected any more"):
        link.request("facts")
    link.close()


def send_for_ever(link: Link) -> None:
    while True:
        link.send("data", bytes(1 << 20))


def test_a_device_that_stops_reading_while_much_is_sent(tmp_path: Path) -> None:
    link = Link(fake(tmp_path, "hello(); ready(); time.sleep(20)"), "board", **SCRIPTED)
    start = time.monotonic()
    with pytest.raises(DeviceLost, match="gave no sign of life"):
        send_for_ever(link)
    assert time.monotonic() - start < 8
    link.close()


def test_a_fast_device_waits_for_a_slow_reader(tmp_path: Path) -> None:
    body = "hello(); ready()\nfor number in range(300):\n    send('data', bytes(1 << 16), number=number)\nrest()"
    link = Link(fake(tmp_path, body), "board", **QUICK)
    time.sleep(0.4)
    assert link._frames.qsize() < 100
    assert [link.answer(10).header["number"] for _ in range(300)] == list(range(300))
    link.close()


def test_closing_ends_what_ignores_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.device.link._END_S", 0.3)
    body = "hello(); ready(); time.sleep(60)"
    command = ["env", f"COMPRESS_CACHE={tmp_path}", *fake(tmp_path, body)]
    link = Link(command, "board", beat_s=1, silence_s=30, lost_s=30)
    start = time.monotonic()
    link.close()
    assert 0.3 <= time.monotonic() - start < 5
    assert not processes_with(f"COMPRESS_CACHE={tmp_path}")


def test_two_sessions_at_once(tmp_path: Path) -> None:
    links: list[Link] = []

    def connect() -> None:
        links.append(Link(local_command(tmp_path / "cache"), "board", **QUICK))

    threads = [threading.Thread(target=connect) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({link.session for link in links}) == 3
    for link in links:
        assert link.request("facts").kind == "done"
        link.close()
    assert not list((tmp_path / "cache" / "sessions").iterdir())


def test_a_beat_is_written_in_one_piece() -> None:
    assert len(pack("beat")) <= 512     # POSIX's least PIPE_BUF
