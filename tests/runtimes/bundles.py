"""Bundles of tiny graphs: engines written by the contract suite's writers, or by a backend made up for a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from runtimes.arrays import write_arrays
from runtimes.backends import BACKENDS, Backend, Layer, Runner
from runtimes.bundle import Bundle, EngineEntry, Golden, GraphEntry, write_manifest
from runtimes.engine import Engine, write_engine
from tests.contracts.engines import make_engine
from tests.contracts.models import Case

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def write_bundle(
    root: Path, cases: Mapping[str, Case], backends: Sequence[str], *, chain: Mapping[str, Any] | None = None
) -> Bundle:
    """A bundle of one graph per case, with an engine of each backend, for targets called ``openvino-cpu`` and so on."""
    graphs = {}
    for graph, case in cases.items():
        entries = {}
        for backend in backends:
            target, folder = f"{backend}-cpu", root / "engines" / graph / backend
            if backend == "fake":
                target, engine = "fake-gpu", write_fake(case, folder)
            else:
                engine = make_engine(case, backend, folder)
            entries[target] = EngineEntry(
                path=f"engines/{graph}/{backend}", backend=backend, precision=engine.precision, digest=engine.digest,
                state=engine.state)
        golden = Golden(feed=f"golden/{graph}/feed.npz", expected=f"golden/{graph}/expected.npz",
                        tolerance=dict.fromkeys(entries, 1e-4))
        (root / golden.feed).parent.mkdir(parents=True)
        write_arrays(root / golden.feed, case.feed)
        write_arrays(root / golden.expected, case.expected)
        graphs[graph] = GraphEntry(inputs=case.inputs, outputs=case.outputs, engines=entries, golden=golden)
    return write_manifest(root, name="tiny", graphs=graphs, accuracy={}, chain=chain)


def write_fake(case: Case, folder: Path) -> Engine:
    """An engine of the backend ``fake``, for a GPU."""
    folder.mkdir(parents=True)
    (folder / "model.fake").write_bytes(b"fake")
    return write_engine(
        folder, backend="fake", device="GPU", precision="fp32", entry="model.fake", inputs=case.inputs,
        outputs=case.outputs, options={}, source="0" * 64, built_with={}, state="runnable")


class FakeRunner:
    """Runs a function; ``closed`` tells whether it was closed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.closed = False

    def layers(self, feed: Mapping[str, np.ndarray] | None = None) -> list[Layer]:
        return []

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def close(self) -> None:
        self.closed = True


def register_fake(monkeypatch: pytest.MonkeyPatch, opener: Callable[[Engine], Runner]) -> None:
    """Add a row to the table of backends, whose vendor's package is numpy, and whose engines ``opener`` opens."""
    module = ModuleType("fake_backend")
    module.open_runner = lambda engine, files, threads: opener(engine)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    row = Backend(module="fake_backend", package="numpy", extra="fake")
    monkeypatch.setitem(BACKENDS, "fake", row)  # type: ignore[arg-type]
