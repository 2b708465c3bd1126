"""What runs on a device while a host measures there: it answers the host's requests, and ends when the host is gone.

Started by the host's ``compress`` over the user's own ``ssh``; it opens no port. Requests come on stdin and answers go
to stdout, as frames (:mod:`runtimes.frames`), one request at a time; both sides send a beat every few seconds. When
stdin closes, or nothing comes for ``silence_s``, whatever was started here is killed and this process ends.

=========  ==================================  ======================================================================
request    fields, payload                     answer
=========  ==================================  ======================================================================
facts                                          ``done``, JSON: :func:`runtimes.machine.machine_facts`
missing    JSON ``{"files": [SHA-256]}``       ``done``, JSON ``{"missing": [SHA-256], "room_bytes": int}``
put        ``sha256``, ``size``; then ``data`` ``done``, once the file has its name
tree       JSON ``{"files": {path: SHA-256}}`` ``done``, ``path`` of a folder of this session
run        ``timeout_s``, JSON job             ``done``, ``code``, ``timed_out``; payload: the end of its stderr
build      ``timeout_s``, ``engine`` (path)    as ``run``; ``result.json`` says what was built, and where
get        ``path`` in the last job's folder   ``data`` ..., then ``done`` with ``sha256``
=========  ==================================  ======================================================================

A request that cannot be answered gets ``error`` and ``text``; one that breaks the protocol ends the session as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from runtimes.errors import RuntimesError
from runtimes.filestore import FileStore, cache_folder
from runtimes.frames import BEAT_S, BLOCK_BYTES, SILENCE_S, Frame, Unpacker, pack, parse
from runtimes.machine import machine_facts
from runtimes.records import get, inside, string_list, strings, typed, write_json

_STDERR_BYTES = 1 << 16
_QUEUED_FRAMES = 64     # more than a host that waits for its answers ever sends ahead of them


class HostGoneError(Exception):
    """Nothing more will come from the host, or nothing it sends can be trusted."""


class Server:
    """One session with one host, over two file descriptors."""

    def __init__(self, source: int, sink: int, cache: Path, *, beat_s: float, silence_s: float) -> None:
        self._source, self._sink = source, sink
        self._beat_s, self._silence_s = beat_s, silence_s
        self._unpacker, self._frames = Unpacker(), deque[Frame]()
        self._heard = self._said = time.monotonic()
        self._child: subprocess.Popen[bytes] | None = None
        self._jobs = 0
        os.set_blocking(sink, False)
        self._store = FileStore(cache, tick=self._tick)

    def serve(self) -> None:
        """Answer until the host is gone; then kill what runs, and clean up."""
        try:
            self._send("ready", session=str(self._store.session))
            while True:
                frame = self._receive()
                try:
                    self._answer(frame)
                except (RuntimesError, OSError) as error:
                    self._send("error", text=str(error)[:2000])
        except HostGoneError:
            pass
        except RuntimesError as error:      # not a frame: what follows it cannot be told apart
            self._refuse(str(error))
        finally:
            self._kill()
            self._store.close()

    def _answer(self, frame: Frame) -> None:
        where = f"request {frame.kind[:40]!r}"
        if frame.kind == "facts":
            self._done(json.dumps(machine_facts()).encode())
        elif frame.kind == "missing":
            asked = string_list(parse(frame.payload, where), "files", where)
            missing = [digest for digest in asked if not self._store.has(digest)]
            self._done(json.dumps({"missing": missing, "room_bytes": self._store.room_bytes()}).encode())
        elif frame.kind == "put":
            self._put(get(frame.header, "sha256", str, where), get(frame.header, "size", int, where))
        elif frame.kind == "tree":
            self._done(path=str(self._store.tree(strings(parse(frame.payload, where), "files", where))))
        elif frame.kind == "run":
            job = {**parse(frame.payload, where), "result": str(self._new_job() / "result.json")}
            self._run("runtimes.measure", job, get(frame.header, "timeout_s", float, where))
        elif frame.kind == "build":
            job = {"engine": get(frame.header, "engine", str, where), "result": str(self._new_job() / "result.json")}
            self._run("runtimes.serve", job, get(frame.header, "timeout_s", float, where))
        elif frame.kind == "get":
            self._get(get(frame.header, "path", str, where))
        else:
            raise RuntimesError(f"{where} is not one this version knows")

    def _put(self, digest: str, size: int) -> None:
        """Take ``size`` bytes in ``data`` frames. After an error the rest is read and dropped, to stay in step."""
        left = size
        try:
            with self._store.incoming(digest, size) as take:
                while left > 0:
                    block = self._data(left)
                    left -= len(block)
                    take(block)
        except (RuntimesError, OSError):
            while left > 0:
                left -= len(self._data(left))
            raise
        self._done()

    def _data(self, left: int) -> bytes:
        frame = self._receive()
        if frame.kind != "data" or not 0 < len(frame.payload) <= left:
            self._refuse(f"a {frame.kind[:40]!r} frame of {len(frame.payload)} bytes inside a file of {left} more")
            raise HostGoneError
        return frame.payload

    def _get(self, path: str) -> None:
        """Send a file of the last job's folder; what a job wrote outside it stays here."""
        inside(path, "request 'get'")
        folder = self._job_folder()
        file = folder / path
        if file.resolve() != folder.resolve() / path or not file.is_file():
            raise RuntimesError(f"the job left no file {path!r:.200}")
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while block := opened.read(BLOCK_BYTES):
                digest.update(block)
                self._send("data", block)
        self._done(sha256=digest.hexdigest())

    def _run(self, module: str, job: Mapping[str, Any], timeout_s: float) -> None:
        """Run ``module`` on the job in a process group of its own, for at most ``timeout_s``."""
        folder = self._job_folder()
        write_json(folder / "job.json", job)
        stderr = folder / "stderr.txt"
        package = str(Path(__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "runtimes.leash", str(os.getpid()), module, str(folder / "job.json")]
        with stderr.open("wb") as output:
            self._child = child = subprocess.Popen(
                command, cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        woken, waker = os.pipe()
        waiting = threading.Thread(target=lambda: (child.wait(), os.write(waker, b"\0")), daemon=True)
        waiting.start()
        until = time.monotonic() + timeout_s
        try:
            while waiting.is_alive() and (left := until - time.monotonic()) > 0:
                if self._pump(left, woken):
                    break
                if self._frames:
                    self._refuse(f"request {self._frames[0].kind[:40]!r} while a job runs")
                    raise HostGoneError
            timed_out = child.poll() is None and time.monotonic() >= until
        finally:
            self._kill()
            waiting.join()
            os.close(woken)
            os.close(waker)
        text = stderr.read_bytes()[-_STDERR_BYTES:]
        self._done(text, code=child.returncode, timed_out=timed_out)

    def _kill(self) -> None:
        """End the child and all of its process group."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):   # all of it has ended
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._child = None

    def _new_job(self) -> Path:
        shutil.rmtree(self._job_folder(), ignore_errors=True)
        self._jobs += 1
        self._job_folder().mkdir(parents=True)
        return self._job_folder()

    def _job_folder(self) -> Path:
        return self._store.session / "jobs" / str(self._jobs)

    # -- the stream

    def _receive(self) -> Frame:
        while not self._frames:
            self._pump(self._silence_s)
        return self._frames.popleft()

    def _tick(self) -> None:
        self._pump(0)

    def _pump(self, timeout_s: float, other: int | None = None) -> bool:
        """Wait for bytes, ``other`` to be readable, or the time to be up; beat when it is time. True: ``other`` is.

        Raises:
            HostGoneError: if stdin is closed, or nothing came for ``silence_s``.
            RuntimesError: if what came is not a frame.
        """
        now = time.monotonic()
        if now - self._said >= self._beat_s:
            self._send("beat")
        due = min(self._said + self._beat_s, self._heard + self._silence_s) - now
        poller = select.poll()
        for descriptor in (self._source, *([] if other is None else [other])):
            poller.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(max(0.0, min(timeout_s, due)) * 1000)}
        if self._source in ready:
            piece = os.read(self._source, 1 << 16)
            if not piece:
                raise HostGoneError
            self._heard = time.monotonic()
            self._unpacker.add(piece)
            while (frame := self._unpacker.next()) is not None:
                if frame.kind != "beat":
                    self._frames.append(frame)
            if len(self._frames) > _QUEUED_FRAMES:
                raise RuntimesError(f"more than {_QUEUED_FRAMES} frames came before they were asked for")
        elif time.monotonic() - self._heard >= self._silence_s:
            raise HostGoneError
        return other in ready

    def _done(self, payload: bytes = b"", **fields: Any) -> None:
        self._send("done", payload, **fields)

    def _send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Write a frame; a host that takes none of it for ``silence_s`` is gone."""
        data = memoryview(pack(kind, payload, **fields))
        poller = select.poll()
        poller.register(self._sink, select.POLLOUT)
        while data:
            if not poller.poll(self._silence_s * 1000):
                raise HostGoneError
            try:
                data = data[os.write(self._sink, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise HostGoneError from error
        self._said = time.monotonic()

    def _refuse(self, text: str) -> None:
        """A last word before the session ends."""
        with contextlib.suppress(HostGoneError):
            self._send("error", text=text[:2000], fatal=True)


def serve(beat_s: float = BEAT_S, silence_s: float = SILENCE_S) -> None:
    """Serve the host at stdin and stdout. Whatever a library prints goes to stderr from here on."""
    source, sink = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        server = Server(source, sink, cache_folder(), beat_s=beat_s, silence_s=silence_s)
    except OSError as error:
        sys.exit(f"its cache folder cannot be used ({error}): make it writable, with some space left, or set "
                 "COMPRESS_CACHE there to a folder that is")
    server.serve()


def main(arguments: list[str]) -> int:
    """``python -m runtimes.serve JOB.json``: build the engine the job names, in a process of its own."""
    job = parse(Path(arguments[0]).read_bytes(), arguments[0])
    try:
        _build(job)
    except RuntimesError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _build(job: Mapping[str, Any]) -> None:
    from runtimes.built import built_engine
    from runtimes.engine import RECORD, read_engine

    engine = built_engine(read_engine(typed(job["engine"], str, "a build")))
    record = json.loads((engine.path / RECORD).read_bytes())
    write_json(Path(job["result"]), {"path": str(engine.path.resolve()), "digest": engine.digest, "record": record})


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
