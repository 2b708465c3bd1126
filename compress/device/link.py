"""A session with a device: a command whose stdin and stdout reach a Python there, and the frames exchanged with it.

The device is taken for lost when nothing came from it for ``lost_s``, or the command ended; it ends by itself what it
runs when nothing comes from here (:mod:`runtimes.serve`), so neither side waits for the other for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.bench.agent import AgentError, last_line, printable
from compress.device.bootstrap import GREETING, OLDEST
from compress.device.package import package
from compress.errors import CompressError
from runtimes.errors import RuntimesError
from runtimes.frames import BEAT_S, LOST_S, SILENCE_S, Frame, Unpacker, pack, parse

START_S = 30.0              # for connecting, and again for importing what is needed there
_NOISE_LIMIT = 1 << 16      # bytes a device's shell may print before the greeting
_WAITING_FRAMES = 64        # read ahead of whoever takes them; beyond it the device has to wait
_END_S = 5.0                # for the command to end by itself once its stdin is closed

_SSH_FAILED = 255           # ssh's own exit code; any other is that of what it ran
_STRANGE = "what this version does not understand"


class DeviceLost(AgentError):  # noqa: N818 - what happened, as users read it
    """The device went away: no further job can run there."""


class Link:
    """A started session.

    Args:
        command: starts the bootstrap there, with its own arguments (:data:`compress.device.bootstrap.ONE_LINE`).
        name: what messages call the device.
        explain: one line for what the command printed on stderr when it failed, or None if it is not known.
        beat_s: how often each side says that it lives.
        silence_s: after how long without a sign of this side the device ends.
        lost_s: after how long without a sign of the device it is taken for lost.
        start_s: how long connecting may take.

    Raises:
        CompressError: if the device cannot be reached, or lacks something; one line saying what to do.
    """

    def __init__(
        self, command: Sequence[str], name: str, *, explain: Callable[[str], str | None] = lambda stderr: None,
        beat_s: float = BEAT_S, silence_s: float = SILENCE_S, lost_s: float = LOST_S, start_s: float = START_S,
    ) -> None:
        self.name = name
        self.sent_bytes = 0     # of files, the package among them
        self._explain, self._beat_s, self._lost_s = explain, beat_s, lost_s
        self._frames: queue.Queue[Frame | None] = queue.Queue()
        self._unpacker = Unpacker()
        self._writing = threading.Lock()
        self._lost: str | None = None
        self._closed = False
        self._heard = time.monotonic()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0,
                start_new_session=True)     # Ctrl-C reaches this process, which then ends the session in order
        except OSError as error:
            self._stderr.close()
            raise CompressError(f"{name}: `{command[0]}` cannot be started ({error.strerror}): install it") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._watcher = threading.Thread(target=self._watch, name=f"link to {name}", daemon=True)
        try:
            self.session = self._start(silence_s, start_s)
        except BaseException:
            self._kill()
            self.close()
            raise

    def request(self, kind: str, payload: bytes = b"", *, within_s: float | None = None, **fields: Any) -> Frame:
        """Ask for something and wait for the answer, at most ``within_s``.

        Raises:
            AgentError: if the device refuses; its reason.
            DeviceLost: if it went away, or there is no answer in time.
        """
        self.send(kind, payload, **fields)
        return self.answer(within_s)

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Send one frame; raises DeviceLost."""
        self._write(pack(kind, payload, **fields))

    def answer(self, within_s: float | None = None) -> Frame:
        """The next frame of the device that is not a beat; raises as :meth:`request` does."""
        try:
            frame = self._frames.get(timeout=within_s)
        except queue.Empty:
            self._lose(f"gave no answer within {within_s:g} s")
            frame = None
        if frame is None:
            self._frames.put(None)
            raise self._gone()
        if frame.kind == "error":
            text = printable(str(frame.header.get("text")))[:2000]
            if frame.header.get("fatal"):
                self._lose(f"ended the session: {text}")
                raise self._gone()
            raise AgentError(f"{self.name}: {text}")
        return frame

    def close(self) -> None:
        """End the session: the device sees its stdin closed, and ends what runs there."""
        self._closed = True
        process = self._process
        with self._writing, contextlib.suppress(OSError):   # no beat goes to whatever gets this descriptor next
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(0 if self._lost else _END_S)
        except subprocess.TimeoutExpired:
            self._kill()
        if self._watcher.ident is not None:
            self._watcher.join()
        if process.stdout is not None:
            process.stdout.close()
        self._stderr.close()

    # -- starting

    def _start(self, silence_s: float, start_s: float) -> str:
        """Bring the package there if it is not; return the path of the session's folder."""
        until = time.monotonic() + start_s
        digest, data = package()
        source = Path(__file__).with_name("bootstrap.py").read_text(encoding="utf-8")
        call = f"start({digest!r}, {len(data)}, {self._beat_s!r}, {silence_s!r})"
        self._write(json.dumps(f"{source}\n{call}\n").encode() + b"\n", until)
        hello = self._hello(until)
        version, executable = hello.get("python"), printable(str(hello.get("executable")))[:200]
        if not isinstance(version, list) or not all(type(part) is int for part in version):
            raise CompressError(f"{self.name} sent {_STRANGE} (no version of Python in its greeting)")
        if tuple(version) < OLDEST:
            python = ".".join(str(part) for part in version[:3])[:20]
            raise CompressError(
                f"{self.name} has Python {python} ({executable}): install Python {OLDEST[0]}.{OLDEST[1]} or newer "
                'there, or name a newer interpreter with python = "..." in its row of targets.toml')
        if hello.get("numpy") is not True:
            raise CompressError(
                f"{self.name}: its {executable} has no numpy: run `{executable} -m pip install numpy` there, or name "
                'an interpreter that has it with python = "..." in its row of targets.toml')
        if hello.get("have") is not True:
            self._write(data, until + start_s)
            self.sent_bytes += len(data)
        self._heard = time.monotonic() + max(0.0, start_s - self._lost_s)   # importing may take that long
        self._watcher.start()
        try:
            session = str(self.answer(start_s + self._lost_s).header.get("session"))
            self._heard = time.monotonic()
            return session
        except DeviceLost as error:
            raise CompressError(str(error)) from error

    def _hello(self, until: float) -> dict[str, Any]:
        """What the bootstrap says first; whatever the device's shell printed before it is dropped."""
        received, poller = b"\n", select.poll()
        poller.register(self._from, select.POLLIN)
        while True:
            start = received.find(GREETING)
            end = received.find(b"\n", start + len(GREETING)) if start >= 0 else -1
            if end >= 0:
                break
            if len(received) > _NOISE_LIMIT:
                raise CompressError(f"{self.name}: its shell prints too much before a command runs: let its start-up "
                                    "files print nothing when they are not interactive")
            if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
                raise CompressError(f"{self.name} does not answer: check that it is switched on and on the network")
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise CompressError(self._why_not_started())
            received += piece
        try:
            hello = parse(received[start + len(GREETING) : end], "its greeting")
            self._deliver(received[end + 1 :])
        except RuntimesError as error:
            raise CompressError(f"{self.name} sent {_STRANGE} ({str(error)[:200]})") from error
        return hello

    def _why_not_started(self) -> str:
        code, said = self._ending()
        explained = self._explain(said) if code == _SSH_FAILED else None    # else a banner might be taken for a reason
        if explained is not None:
            return f"{self.name}: {explained}"
        last = last_line(said)[:300] or f"exit code {code} and no message"
        if code in (126, 127) or last.endswith(": Command not found."):     # csh ends with 1
            return (f"{self.name} has no such Python ({last}): install Python {OLDEST[0]}.{OLDEST[1]} or newer and "
                    'numpy there, or name the interpreter with python = "..." in its row of targets.toml')
        return f"{self.name}: the session did not start ({last})"

    def _ending(self) -> tuple[int | None, str]:
        """The command's exit code, once its stdout is closed, and the end of its stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - _NOISE_LIMIT))
        return self._process.poll(), self._stderr.read().decode(errors="replace")

    # -- the stream

    def _watch(self) -> None:
        """Read frames, send beats, and notice when the device is silent; ends when it is lost or the link closed."""
        poller = select.poll()
        poller.register(self._from, select.POLLIN)
        said = 0.0
        while not self._closed and self._lost is None:
            now = time.monotonic()
            if now - said >= self._beat_s:
                said = now
                self._beat()
            if self._frames.qsize() >= _WAITING_FRAMES:
                time.sleep(0.02)
                self._heard = now
                continue
            if poller.poll(max(0.0, min(said + self._beat_s, self._heard + self._lost_s) - now) * 1000):
                try:
                    self._read()
                except RuntimesError as error:
                    self._lose(f"sent {_STRANGE} ({str(error)[:200]})")
            elif time.monotonic() - self._heard >= self._lost_s:
                self._lose(f"gave no sign of life for {self._lost_s:g} s: it is off, off the network, or hangs")

    def _read(self) -> None:
        piece = os.read(self._from, 1 << 16)
        if not piece:
            if not self._closed:
                code, said = self._ending()
                self._lose(f"ended the connection ({last_line(said)[:500] or f'exit code {code}'})")
            self._closed = True
            return
        self._heard = time.monotonic()
        self._deliver(piece)

    def _deliver(self, piece: bytes) -> None:
        self._unpacker.add(piece)
        while (frame := self._unpacker.next()) is not None:
            if frame.kind != "beat":
                self._frames.put(frame)

    def _beat(self) -> None:
        """Say that this side lives, unless a file is on its way, which says so as well."""
        if self._writing.acquire(blocking=False):
            try:
                if not self._closed:
                    os.write(self._to, pack("beat"))    # all of it or nothing: it is shorter than PIPE_BUF
            except OSError:                             # full, or the command has ended: whoever reads will notice
                pass
            finally:
                self._writing.release()

    def _write(self, data: bytes, until: float | None = None) -> None:
        view, poller = memoryview(data), select.poll()
        poller.register(self._to, select.POLLOUT)
        with self._writing:
            while view:
                if self._lost is not None or self._closed:
                    raise self._gone()
                if until is not None and time.monotonic() > until:
                    raise CompressError(f"{self.name} does not answer: check that it is on the network")
                if poller.poll(200):
                    try:
                        view = view[os.write(self._to, view) :]
                    except BlockingIOError:
                        continue
                    except OSError:         # the command has ended; why is said by whoever reads
                        if until is not None:
                            return
                        time.sleep(0.05)

    def _lose(self, what: str) -> None:
        if self._lost is None:
            self._lost = what
            self._kill()
            self._frames.put(None)

    def _gone(self) -> DeviceLost:
        return DeviceLost(f"{self.name} {self._lost or 'is not connected any more'}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
