"""What ``compress`` offers, and that offering it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import compress

HEAVY = ("torch", "onnx", "openvino", "onnxruntime", "rich.console", "sklearn", "scipy")


def test_the_public_names() -> None:
    assert sorted(compress.__all__) == sorted(
        "Dim Graph Input Model load save BenchConfig BudgetConfig DistillConfig PruneConfig QuantizeConfig "
        "SensitivityConfig bench budget bundle distill doctor evaluate export parity prune quantize report run "
        "sensitivity CompressError".split()
    )
    for name in compress.__all__:
        assert getattr(compress, name).__module__.split(".")[0] in ("compress", "runtimes"), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'compress' has no attribute 'quantise'"):
        compress.quantise  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import compress",
        "from compress.__main__ import main\ntry: main()\nexcept SystemExit as end: assert not end.code",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    script = (
        f"import sys\nsys.argv = ['compress', '--help']\n{statement}\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
