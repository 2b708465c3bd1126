"""One measurement in a fresh process on this machine, and how many cores it may use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import runtimes
from compress.errors import CompressError

Agent: TypeAlias = Callable[[Mapping[str, Any], Path, float], dict[str, Any]]
"""``agent(job, folder, timeout_s)`` runs a job of :mod:`runtimes.measure`, keeping its files in ``folder``."""


class AgentError(CompressError):
    """A measuring process that gave no result: it crashed, was killed, took too long or refused the engine."""


def run_here(
    job: Mapping[str, Any], folder: Path, timeout_s: float, *, command: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run ``job`` in a process of its own, which ends with this one, and return its result.

    Args:
        job: as :mod:`runtimes.measure` takes it, without ``result``; paths are absolute.
        folder: created if need be; gets ``job.json``, ``result.json`` and ``stderr.txt``.
        timeout_s: seconds after which the process and its children are killed.
        command: what is run instead of :mod:`runtimes.measure`, with the path of ``job.json`` appended.

    Raises:
        AgentError: the last line of its stderr, the signal that ended it, or the time that ran out.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job_file, result_file, stderr_file = folder / "job.json", folder / "result.json", folder / "stderr.txt"
    result_file.unlink(missing_ok=True)
    job_file.write_text(json.dumps({**job, "result": str(result_file)}, indent=1))
    if command is None:
        command = (sys.executable, "-m", "runtimes.leash", str(os.getpid()), "runtimes.measure")
    source = str(Path(runtimes.__file__).parents[1])  # where a checkout that is not installed keeps the package
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    with stderr_file.open("wb") as stderr, subprocess.Popen(
        [*command, str(job_file)], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
        start_new_session=True,
    ) as process:
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise AgentError(f"no result after {timeout_s:g} s: the process was ended") from error
        finally:  # also when this process is interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        raise AgentError(why_it_ended(code, stderr_file.read_text(errors="replace")))
    try:
        result = json.loads(result_file.read_bytes())
    except (OSError, ValueError) as error:
        raise AgentError(f"the process ended without a readable result: {error}") from error
    return dict(result)


def physical_cores(system: Path = Path("/sys")) -> int:
    """Physical cores this process may run on: its CPU affinity without hyper-threads, within the container's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    quota = system / "fs/cgroup/cpu.max"
    limit, period = quota.read_text().split() if quota.is_file() else ("max", "1")
    return len(cores) if limit == "max" else max(1, min(len(cores), int(limit) // int(period)))


def why_it_ended(code: int, stderr: str) -> str:
    """What to say of a measuring process with exit code ``code`` (negative: minus the signal) and this stderr."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ": it may have run out of memory" if -code == signal.SIGKILL else ""
        return f"the process was killed by {name}{hint}"
    return last_line(stderr) or f"the process ended with exit code {code} and no message"


def last_line(text: str) -> str:
    """The last line of ``text`` with a word in it, fit for a message; empty if there is none."""
    lines = [line.strip() for line in text.splitlines() if any(character.isalnum() for character in line)]
    return printable(lines[-1])[:500] if lines else ""


def printable(text: str) -> str:
    """``text`` with "?" for what would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
