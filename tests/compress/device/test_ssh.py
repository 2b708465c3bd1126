"""Devices over a real sshd: what is measured, what is copied, who is refused, and what is left when a link is cut."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compress.bench.agent import run_here
from compress.device import Device, DeviceLost, open_device
from compress.device.bootstrap import ONE_LINE
from compress.device.ssh import OPTIONS, explain, remote_command, ssh_command
from compress.errors import CompressError
from compress.targets import Target, get_target
from tests.compress.device.jobs import make_job, quick
from tests.sshd import Sshd, make_key


def board(sshd: Sshd) -> Target:
    return dataclasses.replace(get_target("rpi5"), address=sshd.address, python=sys.executable)


def quick_board(sshd: Sshd) -> Device:
    """As ``open_device`` would connect, but given up after seconds."""
    return quick(ssh_command(sshd.address, sys.executable), "rpi5")


def test_facts(sshd: Sshd) -> None:
    with open_device(board(sshd)) as device:
        facts = device.facts()
        assert (device.name, device.emulated) == ("rpi5", False)
    assert facts["cores"] == os.cpu_count()
    assert facts["python"].startswith("3.")
    assert sshd.gone_within(5)
    assert not any((sshd.cache / "sessions").iterdir())


def test_same_outputs_as_here_and_nothing_copied_twice(sshd: Sshd, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    here = run_here(job, tmp_path / "here", 60)
    expected = (tmp_path / "outputs.npz").read_bytes()
    (tmp_path / "outputs.npz").unlink()
    with open_device(board(sshd)) as device:
        there = device.agent(job, tmp_path / "there", 60)
        first = device.copied_bytes
    assert (tmp_path / "outputs.npz").read_bytes() == expected
    assert first >= sum(path.stat().st_size for path in (tmp_path / "engine").iterdir())
    for key in ("digest", "backend", "samples", "threads", "precision"):
        assert there[key] == here[key]
    assert len(there["latencies_ns"]) >= 5
    assert (tmp_path / "there" / "stderr.txt").read_text() == ""
    with open_device(board(sshd)) as device:
        again = device.agent(job, tmp_path / "again", 60)
        assert device.copied_bytes == 0
    assert again["digest"] == here["digest"]
    assert sshd.gone_within(5)


def refused(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, folder: Path, change: dict[str, str]) -> str:
    """The message of a connection with a configuration in which lines were changed."""
    text = (sshd.folder / "config").read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "config").write_text(text)
    monkeypatch.setenv("COMPRESS_SSH", f"ssh -F {folder / 'config'}")
    start = time.monotonic()
    with pytest.raises(CompressError) as caught:
        open_device(board(sshd))
    assert time.monotonic() - start < 15
    message = str(caught.value)
    assert message.startswith("rpi5 (board): ")
    assert "\n" not in message
    return message


def test_unknown_host_key(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = refused(sshd, monkeypatch, tmp_path, {str(sshd.folder / "known_hosts"): str(tmp_path / "none")})
    assert "its host key is not known: connect once by hand" in message
    assert not (tmp_path / "none").exists()


def test_changed_host_key(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    (tmp_path / "known").write_text(f"[127.0.0.1]:{sshd.proxy.port} {other}")
    message = refused(sshd, monkeypatch, tmp_path, {str(sshd.folder / "known_hosts"): str(tmp_path / "known")})
    assert "its host key has changed, so it may not be that device" in message


def test_wrong_user_key(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    message = refused(sshd, monkeypatch, tmp_path, {str(sshd.folder / "user_key"): str(tmp_path / "other")})
    assert "it accepts none of your keys" in message


def test_nobody_listens(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = refused(sshd, monkeypatch, tmp_path, {f"Port {sshd.proxy.port}": "Port 1"})
    assert "nothing answers on its ssh port" in message


def test_no_such_host(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = refused(sshd, monkeypatch, tmp_path, {"127.0.0.1": "no-such-host.invalid"})
    assert "there is no host of that name" in message


def test_no_such_interpreter(sshd: Sshd) -> None:
    with pytest.raises(CompressError, match=r"rpi5 \(board\) has no such Python .*/opt/none.*not found"):
        open_device(dataclasses.replace(board(sshd), python="/opt/none"))


def test_an_interpreter_in_the_home_folder(sshd: Sshd) -> None:
    link = sshd.folder / "device" / "my-python"
    link.unlink(missing_ok=True)
    link.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    with open_device(dataclasses.replace(board(sshd), python="~/my-python")) as device:
        assert device.facts()["cores"]


def test_start_up_files_that_print(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = ssh_command(sshd.address, sys.executable)
    noisy[-1] = f"echo welcome; echo; {noisy[-1]}"
    with quick(noisy) as device:
        assert device.facts()["cores"]


class Running:
    """A job of a minute on the device, started in a thread."""

    def __init__(self, device: Device, sshd: Sshd, folder: Path) -> None:
        self.error: Exception | None = None
        job = make_job(folder, duration_s=60)
        self._thread = threading.Thread(target=self._run, args=(device, job, folder / "run"))
        self._thread.start()
        deadline = time.monotonic() + 30
        while not any("runtimes.measure" in command(pid) for pid in sshd.processes()):
            assert time.monotonic() < deadline
            assert self._thread.is_alive(), self.error
            time.sleep(0.05)

    def _run(self, device: Device, job: dict[str, object], folder: Path) -> None:
        try:
            device.agent(job, folder, 120)
        except Exception as error:
            self.error = error

    def ended_after(self) -> float:
        start = time.monotonic()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return time.monotonic() - start


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_server_killed_in_a_run(sshd: Sshd, tmp_path: Path) -> None:
    with quick_board(sshd) as device:
        running = Running(device, sshd, tmp_path)
        sshd.cut()
        assert running.ended_after() < 5
        assert isinstance(running.error, DeviceLost)
        assert str(running.error).startswith("rpi5 ended the connection (")
        with pytest.raises(DeviceLost, match="rpi5 ended the connection"):
            device.facts()
    assert sshd.gone_within(5)


def test_network_gone_in_a_run(sshd: Sshd, tmp_path: Path) -> None:
    with quick_board(sshd) as device:
        running = Running(device, sshd, tmp_path)
        sshd.pause()
        assert running.ended_after() < 6
        assert isinstance(running.error, DeviceLost)
        assert str(running.error).startswith("rpi5 gave no sign of life for 3 s: it is off, off the network, or hangs")
        assert sshd.gone_within(5)      # while the network is still gone


def test_client_stopped_in_a_run(sshd: Sshd, tmp_path: Path) -> None:
    with quick_board(sshd) as device:
        running = Running(device, sshd, tmp_path)
        os.kill(device._link._process.pid, signal.SIGSTOP)
        assert running.ended_after() < 6
        assert isinstance(running.error, DeviceLost)
    assert sshd.gone_within(5)


@pytest.mark.slow
def test_network_gone_in_a_run_with_the_real_waits(sshd: Sshd, tmp_path: Path) -> None:
    with open_device(board(sshd)) as device:
        running = Running(device, sshd, tmp_path)
        sshd.pause()
        assert 15 < running.ended_after() < 30
        assert isinstance(running.error, DeviceLost)
        assert sshd.gone_within(10)


def test_network_gone_while_a_file_is_sent(sshd: Sshd, tmp_path: Path) -> None:
    with quick_board(sshd) as device:
        job = make_job(tmp_path)
        (tmp_path / "engine" / "weights.bin").write_bytes(os.urandom(64 << 20))
        threading.Timer(0.1, sshd.pause).start()
        start = time.monotonic()
        with pytest.raises(DeviceLost, match="gave no sign of life"):
            device.agent(job, tmp_path / "run", 60)
        assert time.monotonic() - start < 8
        assert sshd.gone_within(5)
    assert not list((sshd.cache / "files").glob("*.tmp"))


HOST = """
import signal
import sys
from pathlib import Path
from tests.compress.device.jobs import make_job, quick
from compress.device.ssh import ssh_command
signal.signal(signal.SIGINT, signal.default_int_handler)     # ignored where the tests run in the background
folder = Path(sys.argv[1])
device = quick(ssh_command("board", sys.executable), "rpi5")
device.agent(make_job(folder, duration_s=60), folder / "run", 120)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_host_ended_in_a_run(sshd: Sshd, tmp_path: Path, number: int) -> None:
    root = Path(__file__).parents[3]
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path / "job")], cwd=root,
                            env={**os.environ, "COMPRESS_SSH": sshd.ssh})
    try:
        deadline = time.monotonic() + 40
        while not any("runtimes.measure" in command(pid) for pid in sshd.processes()):
            assert time.monotonic() < deadline
            assert host.poll() is None
            time.sleep(0.05)
        host.send_signal(number)
        host.wait(10)
    finally:
        host.kill()
        host.wait()
    assert sshd.gone_within(5)
    assert not [*(sshd.cache / "sessions").iterdir()]


@pytest.mark.parametrize(("stderr", "text"), [
    ("ssh: connect to host x port 22: Connection timed out", "it does not answer"),
    ("ssh: connect to host x port 22: No route to host", "there is no way to it"),
    ("kex_exchange_identification: read: Connection reset by peer", "see what `ssh pi@x true` says"),
    ("pi@x: Permission denied (publickey,password).", "`ssh pi@x true` must work without a password"),
    ("Timeout, server x not responding.", "it does not answer"),
])
def test_what_ssh_says(stderr: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESS_SSH", raising=False)
    explained = explain("pi@x", f"banner of the network\n{stderr}\n")
    assert explained is not None
    assert text in explained


def test_an_unknown_failure_is_left_to_its_own_words() -> None:
    assert explain("pi@x", "Illegal instruction") is None


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESS_SSH", raising=False)
    command = ssh_command("pi@x")
    assert command[0] == "ssh"
    assert command[-3:-1] == ["--", "pi@x"]
    assert "BatchMode=yes" in OPTIONS
    assert not any("StrictHostKeyChecking" in word or "UserKnownHosts" in word for word in command)
    monkeypatch.setenv("COMPRESS_SSH", "ssh -F 'a b'")
    assert ssh_command("pi@x")[:3] == ["ssh", "-F", "a b"]
    monkeypatch.setenv("COMPRESS_SSH", "ssh -F 'a b")
    with pytest.raises(CompressError, match=r"COMPRESS_SSH=.* is not a command"):
        ssh_command("pi@x")


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "busybox sh", "zsh", "fish", "tcsh"])
def test_any_shell_leaves_the_command_as_it_is(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"no {shell} here")
    odd = tmp_path / "it's $HOME; a `python` & \"more\""
    odd.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    odd.chmod(0o755)
    done = subprocess.run([*shell.split(), "-c", remote_command(str(odd))], capture_output=True, text=True, check=True)
    assert done.stdout == f"<-c>\n<{ONE_LINE}>\n<compress>\n"


def test_a_target_without_an_address() -> None:
    target = dataclasses.replace(get_target("rpi5"), address=None)
    with pytest.raises(CompressError, match=r'\'rpi5\' has no address: write \[target.rpi5\] address = "user@host"'):
        open_device(target)
    with pytest.raises(CompressError, match="'onnxruntime-cpu' is this machine"):
        open_device(get_target("onnxruntime-cpu"))
