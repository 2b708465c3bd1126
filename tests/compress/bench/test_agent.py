"""The measuring process: its result, and every way it can fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.bench.agent import AgentError, physical_cores, run_here

JOB = {"engine": "/engine"}


def script(tmp_path: Path, body: str) -> tuple[str, ...]:
    file = tmp_path / "agent.py"
    file.write_text(f"import json, os, signal, sys, time\njob = json.load(open(sys.argv[1]))\n{body}\n")
    return sys.executable, str(file)


def test_result_comes_back(tmp_path: Path) -> None:
    body = "import runtimes; json.dump({'engine': job['engine'], 'cwd': os.getcwd()}, open(job['result'], 'w'))"
    result = run_here(JOB, tmp_path / "run", 30, command=script(tmp_path, body))
    assert result == {"engine": "/engine", "cwd": str(tmp_path / "run")}


@pytest.mark.parametrize(("body", "message"), [
    ("print('loading', file=sys.stderr); sys.exit('model.xml: cannot open it')", "^model.xml: cannot open it$"),
    ("raise ValueError('no such layer')", "^ValueError: no such layer$"),
    ("sys.exit(3)", "exit code 3 and no message"),
    ("os.abort()", "^the process was killed by SIGABRT$"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL: it may have run out of memory"),
    ("pass", "ended without a readable result: .*result.json"),
    ("open(job['result'], 'w').write('{')", "ended without a readable result"),
])
def test_failures(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(AgentError, match=message):
        run_here(JOB, tmp_path / "run", 30, command=script(tmp_path, body))


def test_a_result_of_an_earlier_run_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    with pytest.raises(AgentError, match="without a readable result"):
        run_here(JOB, tmp_path / "run", 30, command=script(tmp_path, "pass"))


def test_a_timeout_ends_the_process_and_its_children(tmp_path: Path) -> None:
    body = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(60)"""
    start = time.monotonic()
    with pytest.raises(AgentError, match="no result after 2 s: the process was ended"):
        run_here(JOB, tmp_path / "run", 2, command=script(tmp_path, body))
    assert time.monotonic() - start < 20
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_running(int(pid))


HOST = """
import sys
from pathlib import Path
from compress.bench.agent import run_here
from tests.compress.device.jobs import make_job
folder = Path(sys.argv[1])
run_here(make_job(folder, duration_s=60), folder / "run", 100)
"""


def test_the_measurement_ends_with_a_host_that_was_killed(tmp_path: Path) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path)], cwd=Path(__file__).parents[3])
    try:
        deadline = time.monotonic() + 40
        while (pid := measuring(tmp_path / "run" / "job.json")) is None:
            assert time.monotonic() < deadline
            assert host.poll() is None
            time.sleep(0.05)
    finally:
        host.kill()
        host.wait()
    assert not is_running(pid)


def measuring(job: Path) -> int | None:
    """The process that runs ``job`` and has opened its backend."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(job) in (folder / "cmdline").read_text() and "onnxruntime" in (folder / "maps").read_text():
                return int(folder.name)
    return None


def is_running(pid: int) -> bool:
    """A child of a killed process may wait as a zombie for init to collect it: it has ended."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("siblings", "quota", "cores"), [
    ({}, None, 4), ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, None, 2), ({}, "max 100000", 4), ({}, "250000 100000", 2),
    ({}, "50000 100000", 1)])
def test_physical_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for cpu, text in siblings.items():
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    if quota:
        (tmp_path / "fs/cgroup").mkdir(parents=True)
        (tmp_path / "fs/cgroup/cpu.max").write_text(quota + "\n")
    assert physical_cores(tmp_path) == cores


def test_physical_cores_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert physical_cores() == os.cpu_count()
