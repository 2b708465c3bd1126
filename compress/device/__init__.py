"""A device that measures: another machine, reached with the user's own ssh, or an emulated one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from compress.bench.agent import AgentError, printable, why_it_ended
from compress.device.bootstrap import ONE_LINE
from compress.device.facts import checked_facts
from compress.device.link import DeviceLost, Link
from compress.device.ssh import explain, ssh_command
from compress.errors import CompressError
from runtimes.engine import Engine, Precision, State, choice
from runtimes.engineset import digest_of
from runtimes.errors import RuntimesError
from runtimes.frames import BLOCK_BYTES, parse
from runtimes.hashing import file_digest, json_digest, tree_paths
from runtimes.records import get, inside, string_list, strings

if TYPE_CHECKING:
    from compress.progress import Progress
    from compress.targets import Target

__all__ = ["Device", "DeviceLost", "open_device"]

BUILD_S = 3600.0                # an engine of a large model takes tens of minutes on a small board
_ANSWER_S = 60.0                # beyond a job's own time
_RESULT_BYTES = 1 << 28
_EMULATED_START_S = 180.0


Sent: TypeAlias = Callable[[int, int, str], None]
"""``sent(done, total, text)``: bytes of the files that the device lacked, and a few words for people."""


def open_device(
    target: Target, *, emulate: bool = False, progress: Progress | None = None, sent: Sent | None = None
) -> Device:
    """Connect to the device of ``target``; use it as a context manager.

    Args:
        target: a row with an address, unless it is emulated.
        emulate: run the same things in an emulated user-space on this machine (:mod:`compress.device.emulator`).
        progress: shows the emulator being set up at its first use.
        sent: called while files are copied to the device; see :data:`Sent`.

    Raises:
        CompressError: if there is no address, the device cannot be reached, or it lacks Python or numpy.
    """
    if emulate:
        from compress.device.emulator import emulator_command

        command = [*emulator_command(target, progress=progress), "-c", ONE_LINE, "compress"]
        name = f"{target.name} (emulated)"
        return Device(Link(command, name, start_s=_EMULATED_START_S), target.name, emulated=True, sent=sent)
    if target.reach != "ssh":
        raise CompressError(f"target {target.name!r} is this machine: there is nothing to connect to")
    address = target.address
    if address is None:
        raise CompressError(
            f'target {target.name!r} has no address: write [target.{target.name}] address = "user@host" (what you '
            "would give to ssh) into targets.toml")
    link = Link(ssh_command(address, target.python), f"{target.name} ({address})",
                explain=lambda stderr: explain(address, stderr))
    return Device(link, target.name, sent=sent)


class Device:
    """A connected device. What is there already, of this session or an earlier one, is not copied again."""

    def __init__(self, link: Link, name: str, *, emulated: bool = False, sent: Sent | None = None) -> None:
        self.name, self.emulated = name, emulated
        self._link, self._sent = link, sent
        self._digests: dict[tuple[str, int, int, int], str] = {}    # a file as stat() shows it -> SHA-256
        self._built: dict[Path, tuple[str, str]] = {}               # folder here -> path there, digest

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._link.close()

    @property
    def copied_bytes(self) -> int:
        """What was sent to the device in this session: files, and the ``runtimes`` package."""
        return self._link.sent_bytes

    def facts(self) -> dict[str, Any]:
        """:func:`runtimes.machine.machine_facts` there; raises AgentError if they are of another form."""
        facts = self._parse(self._link.request("facts", within_s=_ANSWER_S).payload, "its facts")
        try:
            return checked_facts(facts)
        except ValueError as error:
            said = printable(str(error))[:300]
            raise AgentError(f"{self._link.name}: its facts are not what this version knows ({said})") from error

    def agent(self, job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        """Run a job of :mod:`runtimes.measure` there; paths in ``job`` are this machine's.

        Copies the engines, the feed and the shards that are not there yet, and brings ``outputs`` back to its path.
        ``folder`` gets ``job.json``, ``result.json`` and ``stderr.txt``, as with :func:`compress.bench.agent.run_here`.

        Raises:
            AgentError: if the job failed there; the last line of its stderr, the signal, or the time that ran out.
            DeviceLost: if the device went away.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job, indent=1))
        (folder / "result.json").unlink(missing_ok=True)
        there = {graph: self._engine(Path(engine)) for graph, engine in job["engines"].items()}
        digest = digest_of({graph: digest for graph, (_, digest) in there.items()}, job.get("chain"))
        sent: dict[str, Any] = {**job, "engines": {graph: path for graph, (path, _) in there.items()}}
        if (latency := job.get("latency")) is not None:
            sent["latency"] = {**latency, "feed": self._files([Path(latency["feed"])])[0]}
        if (outputs := job.get("outputs")) is not None:
            shards = self._files([Path(shard) for shard in outputs["shards"]])
            sent["outputs"] = {**outputs, "shards": shards, "into": "outputs.npz"}   # of the job's own folder
        self._run("run", folder, timeout_s, json.dumps(sent).encode())
        result = self._result(folder)
        if result.get("digest") != digest:
            where = ", ".join(job["engines"].values())
            raise AgentError(f"{self._link.name} measured engine {str(result.get('digest'))[:12]}…, not {digest[:12]}… "
                             f"({where}), which must have changed meanwhile: measure again")
        if outputs is not None:
            self._fetch("outputs.npz", Path(outputs["into"]))
        return result

    def build(self, engine: Engine, folder: Path) -> Engine:
        """Build an engine of state "build on the device" there, or find the one built earlier.

        Its files stay there: the record that is returned has ``folder`` as its path, which :meth:`agent` knows.
        ``folder`` gets ``result.json`` and ``stderr.txt`` of the build.

        Raises:
            AgentError: if the device cannot build it; what its builder said.
            DeviceLost: if the device went away.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        there, _ = self._engine(engine.path)
        self._run("build", folder, BUILD_S, engine=there)
        result, where = self._result(folder), f"{self._link.name}: the engine it built"
        try:
            path, digest = get(result, "path", str, where), get(result, "digest", str, where)
            record = get(result, "record", dict, where)
            built = dataclasses.replace(
                engine, path=folder, digest=digest, entry=inside(get(record, "entry", str, where), where),
                precision=choice(record, "precision", Precision, where), state=choice(record, "state", State, where),
                options=strings(record, "options", where), built_with=strings(record, "built_with", where),
                notes=string_list(record, "notes", where))
        except RuntimesError as error:
            raise AgentError(str(error)) from error
        self._built[folder] = (path, digest)
        return built

    # -- jobs

    def _run(self, kind: str, folder: Path, timeout_s: float, job: bytes = b"", **fields: Any) -> None:
        done = self._link.request(kind, job, within_s=timeout_s + _ANSWER_S, timeout_s=timeout_s, **fields)
        (folder / "stderr.txt").write_bytes(done.payload)
        if done.header.get("timed_out"):
            raise AgentError(f"{self._link.name}: no result after {timeout_s:g} s: the process was ended")
        code = done.header.get("code")
        if code != 0:
            said = why_it_ended(int(code) if isinstance(code, int) else 1, done.payload.decode(errors="replace"))
            raise AgentError(f"{self._link.name}: {said}")

    def _result(self, folder: Path) -> dict[str, Any]:
        self._fetch("result.json", folder / "result.json", limit=_RESULT_BYTES)
        return self._parse((folder / "result.json").read_bytes(), "its result")

    def _parse(self, data: bytes, what: str) -> dict[str, Any]:
        try:
            return parse(data, f"{self._link.name}: {what}")
        except RuntimesError as error:
            raise AgentError(str(error)) from error

    # -- files

    def _engine(self, folder: Path) -> tuple[str, str]:
        """The path there of the engine in ``folder``, and its digest."""
        folder = folder.resolve()
        if folder in self._built:
            return self._built[folder]
        try:
            paths = tree_paths(folder)
        except RuntimesError as error:
            raise AgentError(str(error)) from error
        digests = {name: self._digest(path) for name, path in paths.items()}
        return self._tree(digests, paths), json_digest(sorted(digests.items()))

    def _files(self, paths: list[Path]) -> list[str]:
        """The paths there of files that may lie anywhere here."""
        named = {f"{number}/{path.name if _is_plain(path.name) else 'data'}": path for number, path in enumerate(paths)}
        folder = self._tree({name: self._digest(path) for name, path in named.items()}, named)
        return [f"{folder}/{name}" for name in named]

    def _tree(self, digests: Mapping[str, str], paths: Mapping[str, Path]) -> str:
        """A folder there with these files, sending those which are not there, or not any more as they were sent."""
        asked = json.dumps({"files": sorted(set(digests.values()))}).encode()
        answer, where = self._parse(self._link.request("missing", asked).payload, "its files"), self._link.name
        try:
            missing, room = set(string_list(answer, "missing", where)), get(answer, "room_bytes", int, where)
        except RuntimesError as error:
            raise AgentError(str(error)) from error
        lacking = {digest: paths[name] for name, digest in digests.items() if digest in missing}
        total = sum(_size(path) for path in lacking.values())
        if total > room:
            raise AgentError(
                f"{where} has room for {room / 1e6:.0f} MB more in its cache folder, and {total / 1e6:.0f} MB are to "
                "be copied: free some there, or set COMPRESS_CACHE there to a folder on another disk")
        before = self._link.sent_bytes
        for digest, path in lacking.items():
            self._put(path, digest, before, total)
        done = self._link.request("tree", json.dumps({"files": dict(digests)}).encode())
        return str(done.header.get("path"))

    def _put(self, path: Path, digest: str, before: int, total: int) -> None:
        """Send one file; ``before`` and ``total`` are the bytes sent before the ones that are shown, and how many."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise AgentError(f"{path} cannot be read ({error.strerror})") from error
        with file:
            size = left = os.fstat(file.fileno()).st_size
            self._link.send("put", sha256=digest, size=size)
            while left > 0:
                wanted = min(BLOCK_BYTES, left)
                try:
                    block = file.read(wanted) or bytes(wanted)      # a file that shrank meanwhile has another hash
                except OSError as error:                            # the device waits for bytes that do not come
                    self._link.close()
                    raise AgentError(f"{path} cannot be read ({error.strerror})") from error
                self._link.send("data", block)
                left -= len(block)
                if self._sent is not None:
                    done = self._link.sent_bytes - before + size - left
                    self._sent(done, total, f"{done / 1e6:.1f} of {total / 1e6:.1f} MB to {self.name}")
        self._link.answer()
        self._link.sent_bytes += size

    def _fetch(self, name: str, into: Path, *, limit: int | None = None) -> None:
        """Bring a file of the job's folder to ``into``, which appears complete or not at all."""
        temporary = into.with_name(f".{into.name}.{os.getpid()}.tmp")
        found, size = hashlib.sha256(), 0
        try:
            with temporary.open("wb") as file:
                self._link.send("get", path=name)
                while (frame := self._link.answer()).kind == "data":
                    size += len(frame.payload)
                    if limit is not None and size > limit:
                        self._link.close()
                        raise DeviceLost(f"{self._link.name} sent more than {limit} bytes of {name}")
                    try:
                        file.write(frame.payload)
                    except OSError:     # what is still to come would be taken for the next answer
                        self._link.close()
                        raise
                    found.update(frame.payload)
                file.flush()
                os.fsync(file.fileno())
            if frame.header.get("sha256") != found.hexdigest():
                raise AgentError(f"{self._link.name}: {name} did not arrive as it was sent: measure again")
            temporary.replace(into)
        finally:
            temporary.unlink(missing_ok=True)

    def _digest(self, path: Path) -> str:
        try:
            stat = path.stat()
            key = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = file_digest(path)
            return self._digests[key]
        except OSError as error:
            raise AgentError(f"{path} cannot be read ({error.strerror})") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise AgentError(f"{path} cannot be read ({error.strerror})") from error


def _is_plain(name: str) -> bool:
    try:
        return bool(inside(name, "a file"))
    except RuntimesError:
        return False
