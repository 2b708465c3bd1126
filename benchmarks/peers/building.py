"""Run a quantizer in a process of its own, from the model file to the engine files: its time and its peak memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def build(module: str, job: Mapping[str, Any], into: Path, *, python: str, limit_s: float) -> dict[str, Any]:
    """Run ``python -m benchmarks.peers.MODULE`` on the job; what it wrote is in ``into``.

    Returns:
        ``wall_s``, ``processor_s`` (of all its threads), ``peak_bytes`` (the kernel's ``ru_maxrss``), or ``failed``
        with its last line of errors. This process has to be a light one: what it holds counts as its child's peak.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as told:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps({**job, "into": str(into)}), encoding="utf-8")
        start = time.perf_counter()
        process = subprocess.Popen([python, "-m", f"benchmarks.peers.{module}", str(file)], cwd=ROOT,
                                   stdout=told, stderr=told)  # fmt: skip
        stopped = threading.Timer(limit_s, process.kill)
        stopped.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        stopped.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        said = told.read().decode(errors="replace").strip()
    spent = {"wall_s": round(seconds, 2), "processor_s": round(usage.ru_utime + usage.ru_stime, 2),
             "peak_bytes": usage.ru_maxrss * 1024}  # fmt: skip
    if process.returncode == 0:
        return spent
    shutil.rmtree(into)
    print(said[-4000:], file=sys.stderr)
    late = seconds >= limit_s
    return {**spent, "failed": f"not done after {limit_s:.0f} s" if late else (said.splitlines() or [""])[-1][:300]}
