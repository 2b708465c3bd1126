"""A process on the leash ends with its parent, however the parent ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runtimes

ROOT = Path(runtimes.__file__).parents[1]
PARENT = """
import os, subprocess, sys
command = [sys.executable, "-m", "runtimes.leash", str(os.getpid()), "sleeper", "60"]
child = subprocess.Popen(command, start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a module ``sleeper`` that says ``ready`` and sleeps."""
    (tmp_path / "sleeper.py").write_text(
        "import sys, time\n"
        "if __name__ == '__main__':\n"
        "    print('ready', sys.argv[1:], flush=True)\n"
        "    time.sleep(float(sys.argv[1]))\n"
        "    sys.exit(7)\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ends_with_its_parent(number: signal.Signals, environment: dict[str, str]) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready ['60']\n"
        parent.send_signal(number)
        assert ends(child)


def test_a_parent_that_ended_before(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "runtimes.leash", "1", "sleeper", "60"]    # pid 1 did not start it
    assert subprocess.run(command, env=environment, capture_output=True, timeout=20).returncode == -signal.SIGKILL


def test_arguments_and_exit_code_are_the_modules(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "runtimes.leash", str(os.getpid()), "sleeper", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (7, "ready ['0']\n")
