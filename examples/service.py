"""A long-running app: answers on a Unix socket, under systemd or alone. Needs numpy and a backend.

    python -m runtimes.install install BUNDLE --root MODEL
    python examples/service.py MODEL /run/app/model.sock [--key release.pem] [--threads 2]

A client writes one JSON object a line, ``{"id": 1, "feed": {"x": [[1, 1]]}}``, and reads one line for each:
``{"id": 1, "outputs": {"y": [[5, 7, 9]]}, "version": "4f0c…"}``, or ``{"id": 1, "error": "…"}``; where the bundle
says how raw inputs become answers, ``{"id": 2, "ask": {"question": "how many?"}}`` gets ``"answers"``. Signals:

    SIGTERM  take no more requests, answer those that have come in, exit with 0
    SIGHUP   open the version that is installed now, go over to it, then close the old one; stay with the old one if
             the new one does not open or fails its self-test

``examples/service.service`` is a unit for it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import runtimes
from runtimes.install import current

LONGEST_LINE = 16 << 20     # bytes
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Model:
    """The version that answers; :meth:`reload` changes it under running requests."""

    def __init__(self, root: Path, key: Path | None, threads: int | None) -> None:
        self._root, self._key, self._threads = root, key, threads
        self._lock = threading.Lock()
        self._session, self.version = self._open()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        while True:
            with self._lock:
                session, version = self._session, self.version
            try:
                if "ask" in request:        # raw inputs and answers, as the bundle's processing says
                    return {"answers": session.ask(request["ask"]), "version": version}
                dtypes = {spec.name: spec.dtype for spec in session.inputs}
                arrays = {name: to_array(value, dtypes.get(name)) for name, value in request["feed"].items()}
                outputs = session.run(arrays)
            except runtimes.RuntimesError:
                if session is self._session:
                    raise
                continue        # it was closed by a reload: ask the new one
            return {"outputs": {name: array.tolist() for name, array in outputs.items()}, "version": version}

    def reload(self) -> None:
        session, version = self._open()
        with self._lock:
            session, self._session = self._session, session
            self.version = version
        session.close()         # waits for the requests it is answering

    def check(self) -> None:
        self._session.warm_up(1)

    def close(self) -> None:
        self._session.close()

    def _open(self) -> tuple[runtimes.Session | runtimes.Chain, str]:
        bundle = runtimes.read_bundle(current(self._root), key=self._key)
        session = runtimes.load(
            bundle, threads=self._threads, self_test=True, warmup=3, fallback="cpu",
            on_fallback=lambda reason: notify(f"STATUS=on the CPU: {reason}"))
        return session, bundle.digest


def to_array(value: Any, dtype: str | None) -> np.ndarray:
    given = np.array(value)
    array = given.astype(dtype or given.dtype)
    if array.dtype.kind in "iu" and (array != given).any():     # 2.7 is no token
        raise ValueError(f"expected whole numbers of {dtype}")
    return array


class Server:
    """A thread per connection; a line that has been read is answered, whatever comes."""

    def __init__(self, path: Path, model: Model) -> None:
        self._model = model
        path.unlink(missing_ok=True)        # of a process that was killed
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        self._draining = False
        threading.Thread(target=self._accept, daemon=True).start()

    def drain(self) -> None:
        """Take no more lines, and return when those that came are answered."""
        with self._lock:
            self._draining = True
            waiting = dict(self._clients)
        for client in waiting.values():
            client.shutdown(socket.SHUT_RD)
        for thread in waiting:
            thread.join()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(client,))
            with self._lock:
                if self._draining:
                    client.close()
                    return
                self._clients[thread] = client
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as lines, client.makefile("wb") as answers:
                while line := lines.readline(LONGEST_LINE):
                    answers.write(json.dumps(self._answer(line)).encode() + b"\n")
                    answers.flush()
        except OSError:
            pass                # the client has gone
        finally:
            with self._lock:
                self._clients.pop(threading.current_thread(), None)

    def _answer(self, line: bytes) -> dict[str, Any]:
        identity = None
        try:
            request = json.loads(line)
            identity = request.get("id")
            return {"id": identity, **self._model.answer(request)}
        except (runtimes.RuntimesError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
                RecursionError) as error:
            return {"id": identity, "error": f"{type(error).__name__}: {error}"}


def notify(message: str) -> None:
    """Tell systemd, where it started this process: https://www.freedesktop.org/software/systemd/man/sd_notify.html."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def reload(model: Model) -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        model.reload()
    except runtimes.RuntimesError as error:
        print(f"staying with version {model.version[:12]}: {error}", file=sys.stderr, flush=True)
    notify(f"READY=1\nSTATUS=version {model.version[:12]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer requests on a Unix socket with an installed bundle.")
    parser.add_argument("root", type=Path, help="where `python -m runtimes.install` put it")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--key", type=Path, help="the public key (PEM) the bundle must be signed with")
    parser.add_argument("--threads", type=int, help="CPU threads; default: the backend's choice")
    options = parser.parse_args()

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)       # before there are other threads: all wait for them below
    model = Model(options.root, options.key, options.threads)
    server = Server(options.socket, model)
    notify(f"READY=1\nSTATUS=version {model.version[:12]}")
    watchdog_s = float(os.environ.get("WATCHDOG_USEC", "30000000")) / 2e6
    while True:
        came = signal.sigtimedwait(SIGNALS, watchdog_s)
        if came is None:
            model.check()       # an engine that does not answer lets the watchdog bite
            notify("WATCHDOG=1")
        elif came.si_signo == signal.SIGHUP:
            reload(model)
        else:
            break
    notify("STOPPING=1")
    server.drain()
    model.close()


if __name__ == "__main__":
    try:
        main()
    except runtimes.RuntimesError as error:
        raise SystemExit(f"error: {error}") from error
