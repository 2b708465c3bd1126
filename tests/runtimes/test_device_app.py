"""The example app, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_app(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/device_app.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def test_answers_with_their_labels(made_bundle: Path) -> None:
    done = run_app(str(made_bundle), "--backend", "onnxruntime", "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny on onnxruntime-cpu (fp32, ")
    assert lines[0].endswith("self-test passed")
    assert lines[1].startswith("sample 0: y: c (86.7%)")     # 5, 7, 9: 1 / (1 + e^-2 + e^-4)
    assert lines[2].startswith("sample 1: y: c (66.5%)")     # -2, -1, 0: 1 / (1 + e^-1 + e^-2)
    assert lines[3].startswith("latency: median ")


def test_error_is_one_line(bundle: Path) -> None:
    (bundle / "golden/feed.npz").write_bytes(b"")
    done = run_app(str(bundle))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "feed.npz is not the file manifest.json lists" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_imports_runtimes_and_numpy_only() -> None:
    lines = (ROOT / "examples/device_app.py").read_text().splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= {"__future__", "argparse", "time", "collections.abc", "typing", "numpy", "runtimes"}
