"""10,000 mutated bundles and 3,000 mutated deltas: errors of ours, and nothing run or written elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.delta import make_delta
from compress.signing import new_key, sign
from tests.runtimes.conftest import made_bundle, next_bundle  # noqa: F401

HERE = Path(__file__).parent
SELF_CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from mutated_bundles import Watch
watch = Watch(Path(sys.argv[2]))
CODE = compile("1", "x", "exec")
def attempt(action):
    try:
        with watch.watching():
            action()
    except SystemExit as stop:
        print(stop)
    else:
        print("missed")
import os, pickle, subprocess, socket
attempt(lambda: exec(CODE))
attempt(lambda: compile("1", "x", "exec"))
attempt(lambda: __import__("wave"))
attempt(lambda: subprocess.run(["true"]))
attempt(lambda: socket.socket())
attempt(lambda: os.system("true"))
attempt(lambda: open(sys.argv[2] + "-beside", "w"))
attempt(lambda: os.mkdir("/tmp/forbidden"))
attempt(lambda: pickle.loads(b"cos\\nsystem\\n."))
attempt(lambda: open(sys.argv[2] + "/allowed", "w").close())
"""


def run(made: Path, following: Path, tmp_path: Path, bundles: int, deltas: int) -> dict[str, Any]:
    public = new_key(tmp_path / "release.key")
    old, new = (Path(shutil.copytree(path, tmp_path / name)) for path, name in ((made, "old"), (following, "new")))
    for path in (old, new):
        sign(path, tmp_path / "release.key")
    make_delta(old, new, tmp_path / "u.delta")
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, HERE / "mutated_bundles.py", old, tmp_path / "u.delta", public, tmp_path / "work",
         str(bundles), str(deltas)],
        capture_output=True, text=True, cwd=HERE.parents[1], env={"PYTHONPATH": str(HERE.parents[1]), "PATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["seen"] == []
    return found


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SELF_CHECK, HERE, tmp_path], capture_output=True, text=True, cwd=HERE.parents[1])
    lines = done.stdout.splitlines()
    assert [line.split()[1] if line.startswith("forbidden") else line for line in lines] == [
        "exec", "compile", "import", "subprocess.Popen", "socket.__new__", "os.system", "open", "os.mkdir",
        "pickle.find_class", "missed"], done.stderr  # fmt: skip


def check(found: dict[str, Any], bundles: int, deltas: int) -> None:
    counts = found["bundles"]
    finished = sum(count for what, count in counts.items() if not what.endswith("read"))
    assert finished == bundles
    assert counts["manifest: refused"] > bundles / 20
    assert counts.get("model: read", 0) == counts.get("files: read", 0) == counts.get("signature: read", 0) == 0
    assert counts["engine.json: read"] > counts.get("engine.json: loaded", 0)     # well listed, and refused later
    assert sum(found["deltas"].values()) == deltas
    assert found["deltas"]["refused"] > 0.9 * deltas


def test_a_few(made_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    check(run(made_bundle, next_bundle, tmp_path, 400, 150), 400, 150)


@pytest.mark.slow
def test_ten_thousand(made_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    check(run(made_bundle, next_bundle, tmp_path, 10_000, 3_000), 10_000, 3_000)
