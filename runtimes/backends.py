"""The table of backends, what each offers, and how an engine is opened: checked bytes first, then the backend."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast, runtime_checkable

import numpy as np

from runtimes.engine import Engine
from runtimes.errors import DeviceGone, RuntimesError
from runtimes.hashing import bytes_digest, json_digest, tree_paths
from runtimes.spec import Feed


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A row of the table: our module that runs it, the vendor's package it needs, and the extra that installs that.

    ``reporter`` is a package that the vendor's does without, and reports its use to the vendor with.
    """

    module: str
    package: str
    extra: str
    reporter: str | None = None


BACKENDS: Mapping[str, Backend] = {
    "openvino": Backend(
        module="runtimes.openvino", package="openvino", extra="openvino", reporter="openvino_telemetry",
    ),
    "onnxruntime": Backend(module="runtimes.onnxruntime", package="onnxruntime", extra="onnxruntime"),
    "tensorrt": Backend(module="runtimes.tensorrt", package="tensorrt", extra="tensorrt"),
    "tensorrt_rtx": Backend(module="runtimes.tensorrt", package="tensorrt_rtx", extra="tensorrt-rtx"),
}

_LEAVING_OUT = threading.RLock()     # of a package, by one thread at a time

COMPONENT_MARK = "::"   # of an operator's name, ends the component it belongs to: "image_encoder::node_MatMul_3"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer as the backend ran it; ``precision`` is what it computed in, ``time_us`` its usual time in one run.

    ``nodes`` are the model's operators it was made of or, of a layer the backend added, those it serves; empty where
    neither is known. ``macs`` are its multiply-accumulates, of an arithmetic layer whose shapes tell them. ``seen`` is
    what the backend shows of how an arithmetic layer ran, and why where it says so.
    """

    name: str
    type: str
    precision: str                      # "int8", "f32", "bf16", "f16", "i64", ... : one spelling for all backends
    time_us: float | None
    nodes: tuple[str, ...] = ()
    macs: int | None = None
    seen: str | None = None


class Runner(Protocol):
    """An engine opened by its backend. Feeds are already checked; every output is an array of the caller's own."""

    def run(self, feed: Feed) -> dict[str, np.ndarray]: ...

    def layers(self, feed: Feed | None = None) -> list[Layer]:
        """The layers that run, in order; ``feed`` (else zeros) is run a few times in a second, profiled session."""

    def versions(self) -> dict[str, str]: ...

    def close(self) -> None: ...


@runtime_checkable
class TimedRunner(Runner, Protocol):
    """A runner that need not be waited for."""

    def run_within(self, feed: Feed, timeout_s: float) -> dict[str, np.ndarray]:
        """As ``run``; raises LimitError where it is not done after ``timeout_s``, and can be run again."""


def open_engine(engine: Engine, *, threads: int | None = None, expected: Mapping[str, str] | None = None) -> Runner:
    """Open ``engine`` with its backend.

    Each file is read once, its bytes are checked, and the very bytes are handed over: what changes on disk afterwards
    changes nothing.

    Args:
        engine: as :func:`runtimes.engine.read_engine` returned it.
        threads: CPU threads to run on; ``None`` leaves it to the backend.
        expected: path relative to the engine's folder -> SHA-256, from a bundle's manifest. Without it the files
            must still add up to ``engine.digest``.

    Raises:
        RuntimesError: if the engine has still to be built, the backend is unknown or not installed, a file is
            missing, added, changed or a link, or the backend refuses the engine.
    """
    if threads is not None and threads < 1:
        raise RuntimesError(f"threads must be at least 1, got {threads}: leave it out to let the backend choose")
    if engine.state == "build on the device":
        raise RuntimesError(
            f"engine {engine.path} has not been built: it holds the ONNX model and the recipe for {engine.backend}; "
            "build it on the device it is for, and open that engine"
        )
    import_backend(engine.backend)
    files = read_files(engine, expected)
    module = importlib.import_module(BACKENDS[engine.backend].module)
    opener = cast(Callable[[Engine, Mapping[str, bytes], int | None], Runner], module.open_runner)
    return opener(engine, files, threads)


def import_backend(name: str) -> None:
    """Import the vendor's package of a backend, or say how to install it (DeviceGone)."""
    backend = find_backend(name)
    try:
        import_package(backend)
    except ImportError as error:
        raise DeviceGone(
            f"backend {name!r} is not installed ({error}): {install_command(name)}"
        ) from error


def import_package(backend: Backend) -> ModuleType:
    """The vendor's package, which reports nothing where it was not imported before."""
    with without(backend.reporter):
        return importlib.import_module(backend.package)


@contextmanager
def without(reporter: str | None) -> Iterator[None]:
    """Within it a package cannot be imported, and one that would use it does as if it were not installed.

    OpenVINO tells of each import over the network, from a process that it forks and the program may find among its
    children. The program's own imports of the reporter find it before and after.
    """
    if reporter is None:
        yield
        return
    with _LEAVING_OUT:
        kept = sys.modules.get(reporter)
        sys.modules[reporter] = None    # type: ignore[assignment]    # to Python, what cannot be imported
        try:
            yield
        finally:
            del sys.modules[reporter]
            if kept is not None:
                sys.modules[reporter] = kept


def find_backend(name: str) -> Backend:
    """The row called ``name``."""
    if name not in BACKENDS:
        import difflib

        near = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "choose another, or install a newer compress-edge"
        raise RuntimesError(f"unknown backend {name!r}, expected one of {list(BACKENDS)}: {hint}")
    return BACKENDS[name]


def is_installed(name: str) -> bool:
    """Whether the vendor's package of a backend can be found; it is not imported."""
    return importlib.util.find_spec(find_backend(name).package) is not None


def install_command(name: str) -> str:
    return f'pip install "compress-edge[{find_backend(name).extra}]"'


def zero_feed(engine: Engine) -> dict[str, np.ndarray]:
    """Zeros in the shape the engine is tuned for, for a look at its layers when there is no feed."""
    return {spec.name: np.zeros(spec.sized(), dtype=spec.dtype) for spec in engine.inputs}


def read_files(engine: Engine, expected: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """The bytes of each of the engine's files, read once and checked as :func:`open_engine` says."""
    paths = tree_paths(engine.path)
    if expected is not None:
        for name in sorted(expected.keys() ^ paths.keys()):
            problem = "is missing" if name in expected else "is not listed in the manifest"
            raise RuntimesError(f"{engine.path / name} {problem}: copy the bundle again")
    files = {name: path.read_bytes() for name, path in paths.items()}
    digests = {name: bytes_digest(data) for name, data in files.items()}
    if expected is not None:
        for name, digest in digests.items():
            if digest != expected[name]:
                raise RuntimesError(
                    f"{paths[name]} has SHA-256 {digest[:12]}…, the manifest lists {expected[name][:12]}…: "
                    "it was changed or damaged, copy the bundle again"
                )
    elif json_digest(sorted(digests.items())) != engine.digest:
        raise RuntimesError(f"engine {engine.path} was changed since it was read: export it again, or read it again")
    return files
