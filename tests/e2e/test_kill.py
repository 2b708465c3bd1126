"""A run killed again and again finishes with the same digests, and no finished stage is done twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

KILLS = 20
LOAD = "import compress.pipeline, compress.loading, torchao.quantization.pt2e.quantize_pt2e"


def digests(small: ModuleType, output: Path) -> dict[str, str]:
    """What each stage made; a bench holds times, which differ from run to run."""
    return {key: record["digest"] for key, record in small.stages(output).items() if record["stage"] != "bench"}


def check(small: ModuleType, output: Path, undisturbed: Path, created: dict[str, str]) -> None:
    """A run that was killed before has finished: it left what an undisturbed one leaves, and redid nothing."""
    after = small.stages(output)
    assert {key: after[key]["created"] for key in created} == created
    assert digests(small, output) == digests(small, undisturbed)
    for name in ("bundle", "controls"):
        assert small.contents(output / name) == small.contents(undisturbed / name)
    assert [list((output / "store" / name).iterdir()) for name in ("tmp", "scratch")] == [[], []]
    assert list(output.rglob(".*")) == []


@pytest.mark.slow
def test_twenty_kills(finished: Path, small: ModuleType, tmp_path: Path) -> None:
    folder, output = tmp_path / "killed", tmp_path / "killed/out"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("out"))
    command = [sys.executable, "-m", "compress", "run", str(folder / "recipe.yaml"), "--quiet"]
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", LOAD], env=small.ENVIRONMENT, check=True)
    loading_s = time.monotonic() - start  # how fast this machine is
    times = random.Random(0)
    created: dict[str, str] = {}  # of the stages seen finished
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(
            command, env=small.ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=loading_s * times.uniform(0.3, 2))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert errors == b""
        for key, record in small.stages(output).items():
            assert created.setdefault(key, record["created"]) == record["created"]
        if process.returncode == 0:  # it finished before its time: the rest of the kills hit a new run
            check(small, output, finished / "out", created)
            shutil.rmtree(output)
            created = {}
    done = subprocess.run(command, env=small.ENVIRONMENT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    check(small, output, finished / "out", created)
