from __future__ import annotations

import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from runtimes.backends import (
    BACKENDS,
    find_backend,
    import_backend,
    install_command,
    is_installed,
    open_engine,
    without,
)  # fmt: skip
from runtimes.engine import read_engine
from runtimes.errors import RuntimesError


@pytest.mark.parametrize("name", list(BACKENDS))
def test_missing_package_names_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, BACKENDS[name].package, None)
    assert not is_installed(name)
    command = rf"pip install \"compress-edge\[{name.replace('_', '-')}\]\""
    with pytest.raises(RuntimesError, match=rf"backend '{name}' is not installed.*: {command}"):
        import_backend(name)


def test_install_command_is_an_extra_of_this_project() -> None:
    metadata = Path(__file__).parents[2] / "pyproject.toml"
    for name, backend in BACKENDS.items():
        assert install_command(name) == f'pip install "compress-edge[{backend.extra}]"'
        assert f"\n{backend.extra} = [" in metadata.read_text()


def test_open_engine_needs_the_package(made_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = read_engine(made_bundle / "engines/main/openvino-cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimesError, match="backend 'openvino' is not installed"):
        open_engine(engine)


def test_unknown_backend() -> None:
    with pytest.raises(RuntimesError, match=r"unknown backend 'onnx', expected one of .*did you mean 'onnxruntime'\?"):
        find_backend("onnx")


def test_engine_still_to_be_built(made_bundle: Path) -> None:
    with pytest.raises(RuntimesError, match="jetson has not been built"):
        open_engine(read_engine(made_bundle / "engines/main/jetson"))


IMPORTED = """
import subprocess
import sys
from runtimes.backends import import_backend
import_backend("openvino")
print("openvino_telemetry" in sys.modules)
import openvino_telemetry, openvino
print(openvino_telemetry.__name__, openvino.convert_model.__name__)
"""


def test_openvino_is_imported_without_its_reporter() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout == "False\nopenvino_telemetry convert_model\n"


def test_threads_that_import_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves the reporter out for itself, and the program finds its own afterwards."""
    reporter = types.ModuleType("reporter")
    monkeypatch.setitem(sys.modules, "reporter", reporter)
    seen: list[object] = []

    def leave_out() -> None:
        with without("reporter"):
            seen.append(sys.modules["reporter"])

    with without("reporter"):
        other = threading.Thread(target=leave_out)
        other.start()
        time.sleep(0.05)
        assert not seen
    other.join(20)
    assert (sys.modules["reporter"], seen) == (reporter, [None])
