"""What the package exports, and what importing it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runtimes

HEAVY = ("torch", "openvino", "onnxruntime", "onnx", "tensorrt", "psutil", "compress", "calibration")

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "compress", "psutil"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                          cwd=Path(runtimes.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names() -> None:
    assert sorted(runtimes.__all__) == sorted(set(runtimes.__all__))
    assert set(runtimes.__all__) == {
        "load", "Session", "Chain", "Batcher", "ResourceLimits", "Bundle", "read_bundle",
        "Engine", "read_engine", "write_engine", "open_engine", "Runner", "Layer", "BACKENDS",
        "Feed", "TensorSpec", "Dim", "check_feed",
        "RuntimesError", "FeedError", "LimitError", "DeviceGone",
    }
    assert all(hasattr(runtimes, name) for name in runtimes.__all__)


def test_importing_loads_numpy_and_nothing_heavier() -> None:
    found = f"[m for m in {HEAVY} if m in sys.modules]"
    code = f"import sys, runtimes, runtimes.measure; print({found}, 'numpy' in sys.modules)"
    assert run_python(code) == "[] True"


def test_what_not_every_app_uses_is_imported_when_asked_for() -> None:
    later = ("runtimes.chain", "runtimes.batching", "runtimes.processing", "runtimes.wiring", "concurrent.futures")
    code = (f"import sys, runtimes; print([m for m in {later} if m in sys.modules])\n"
            "from runtimes import Batcher, Chain; print(Batcher.__module__, Chain.__module__)")
    assert run_python(code).splitlines() == ["[]", "runtimes.batching runtimes.chain"]
    with pytest.raises(AttributeError, match="module 'runtimes' has no attribute 'Bacher'"):
        _ = runtimes.Bacher


def test_everything_outside_the_standard_library_and_numpy_stays_out() -> None:
    code = (
        "import sys; before = set(sys.modules); import runtimes, runtimes.measure\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(m for m in new if not m.startswith('_')))"
    )
    assert run_python(code) == "['numpy', 'runtimes']"


def test_a_session_runs_with_torch_blocked(bundle: Path) -> None:
    code = BLOCKED + (
        "import runtimes, numpy as np\n"
        "for backend in ('openvino', 'onnxruntime'):\n"
        "    with runtimes.load(sys.argv[1], backend, threads=1, self_test=True) as session:\n"
        "        print(session.run({'x': np.ones((1, 2), np.float32)})['y'].tolist())\n"
        "assert 'torch' not in sys.modules"
    )
    assert run_python(code, str(bundle)).splitlines() == ["[[5.0, 7.0, 9.0]]"] * 2
