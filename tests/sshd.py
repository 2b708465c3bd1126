"""A real sshd on the loopback: another "machine" with its own home, cache and keys, and a network that can fail.

Debian's openssh-server, unpacked into the cache, runs as an ordinary user on a free port. Between it and ssh stands a
small TCP proxy, so that a connection can stop carrying bytes without being closed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compress.device.debian import host_architecture, unpack
from compress.export.rtx_libraries import cache_folder

PACKAGES = ("openssh-server", "libwrap0", "libnss-wrapper")
_NOBODY = 65534


@dataclass
class Sshd:
    """``ssh`` is for COMPRESS_SSH; ``address`` is a name of that ssh's configuration; ``cache`` is the device's."""

    folder: Path
    process: subprocess.Popen[bytes]
    proxy: Proxy
    address: str = "board"
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cache = self.folder / "device" / "cache"

    @property
    def ssh(self) -> str:
        return f"ssh -F {shlex.quote(str(self.folder / 'config'))}"

    def cut(self) -> None:
        """Kill the server's side of every connection, as when its machine's power goes."""
        for pid in _children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pause(self) -> None:
        """From now on no byte passes, and nothing is closed: a network that is gone without a word."""
        self.proxy.paused.set()

    def resume(self) -> None:
        self.proxy.paused.clear()

    def processes(self) -> list[int]:
        """Processes on the device that a session has left or is running."""
        return processes_with(f"COMPRESS_CACHE={self.cache}")

    def gone_within(self, seconds: float) -> bool:
        """Whether nothing of a session runs on the device any more, after at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def processes_with(marker: str) -> list[int]:
    """Processes that run, with ``NAME=value`` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:     # it has ended, or is another user's
            continue
    return found


class Proxy:
    """Carries connections to ``port``, both ways, until it is told to pause."""

    def __init__(self, port: int) -> None:
        self.paused = threading.Event()
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._to)) as server, contextlib.suppress(OSError):
            other = {client: server, server: client}
            while True:
                if self.paused.is_set():
                    time.sleep(0.02)
                    continue
                for end in select.select([client, server], [], [], 0.1)[0]:
                    if self.paused.is_set():
                        break
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    other[end].sendall(data)


@contextmanager
def started_sshd(folder: Path) -> Iterator[Sshd]:
    """Start it, with all its files in ``folder``.

    Raises:
        CompressError: if Debian's packages cannot be had here.
    """
    root = cache_folder().absolute() / "sshd" / platform.machine()
    unpack(PACKAGES, root, architecture=host_architecture())
    uid = os.getuid() or _NOBODY
    port = _free_port()
    proxy = Proxy(port)
    _write_files(folder, root, uid, port, proxy.port)
    libraries = [path for path in (root / "usr/lib").glob("*-linux-gnu*") if path.is_dir()]
    wrapper = next(path / "libnss_wrapper.so" for path in libraries if (path / "libnss_wrapper.so").exists())
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries)), "LD_PRELOAD": str(wrapper),
                   "NSS_WRAPPER_PASSWD": str(folder / "passwd"), "NSS_WRAPPER_GROUP": str(folder / "group")}
    # As root it would want a user and a folder of its own in /run: a user namespace makes us an ordinary user.
    become = ["unshare", "--user", f"--map-user={uid}"] if os.getuid() == 0 else []
    command = [*become, "env", *(f"{name}={environment[name]}" for name in ("LD_LIBRARY_PATH", "LD_PRELOAD")),
               str(root / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
    plain = {name: value for name, value in environment.items() if not name.startswith("LD_")}
    with (folder / "log").open("wb") as log, subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=plain) as process:
        try:
            _wait_for(port, process, folder / "log")
            yield Sshd(folder, process, proxy)
        finally:
            for pid in _children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            proxy.close()


def make_key(path: Path) -> str:
    """A new key pair at ``path``; its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_name(f"{path.name}.pub").read_text()


def _write_files(folder: Path, root: Path, uid: int, port: int, proxy_port: int) -> None:
    home = folder / "device"
    home.mkdir()
    host_key = make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_key(folder / "user_key"))
    (folder / "passwd").write_text(f"board:x:{uid}:{_NOBODY}:board:{home}:/bin/sh\n")
    (folder / "group").write_text(f"board:x:{_NOBODY}:\n")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{proxy_port} {host_key}")
    programs = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}     # OpenSSH 10 is three programs
    paths = [f"{key} {root / 'usr/lib/openssh' / name}" for key, name in programs.items()
             if (root / "usr/lib/openssh" / name).exists()]
    (folder / "sshd_config").write_text("\n".join([
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host_key'}", "StrictModes no", "UsePAM no",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}", "PasswordAuthentication no", "PidFile none",
        "KbdInteractiveAuthentication no", "MaxStartups 100",
        f"SetEnv COMPRESS_CACHE={folder / 'device' / 'cache'} OMP_NUM_THREADS=1", *paths, ""]))
    (folder / "config").write_text("\n".join([
        "Host board", " HostName 127.0.0.1", f" Port {proxy_port}", " User board", " IdentitiesOnly yes",
        f" IdentityFile {folder / 'user_key'}", f" UserKnownHostsFile {folder / 'known_hosts'}",
        " GlobalKnownHostsFile /dev/null", ""]))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd did not start: {log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


def _children(parent: int) -> list[int]:
    """The sshd processes below ``parent``, which is one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            name, rest = (folder / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            if int(rest.split()[1]) == parent and name.startswith("sshd"):
                found += [int(folder.name), *_children(int(folder.name))]
    return found


def have_ssh() -> bool:
    return shutil.which("ssh") is not None and shutil.which("ssh-keygen") is not None
