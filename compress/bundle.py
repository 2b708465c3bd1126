"""Write a bundle: the engines of every target, a golden feed with its expected outputs, and the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import CompressError
from compress.model import Model
from compress.store import atomic_folder
from runtimes.arrays import write_arrays
from runtimes.backends import open_engine
from runtimes.bundle import Answer, Bundle, EngineEntry, Golden, GraphEntry, read_bundle, write_manifest
from runtimes.engine import Engine, read_engine
from runtimes.errors import RuntimesError
from runtimes.records import inside
from runtimes.spec import Feed

UNSEEN_TOLERANCE = 0.1  # of the largest expected value, for an engine that could not be run here


def bundle(
    model: Model, engines: Mapping[str, Engine], golden: Feed, into: Path, *, accuracy: Mapping[str, Any] | None = None
) -> Bundle:
    """Write the bundle of one model in folder ``into``, replacing a bundle that is there.

    Args:
        model: the model, for its name, specs and labels.
        engines: target name -> its engine.
        golden: a feed for the self-test on the device; the outputs expected of it are the first runnable engine's, or
            torch's where none runs here.
        into: the folder; it appears complete or not at all.
        accuracy: what was measured of these engines, kept in the manifest as it is.
    """
    if not engines:
        raise CompressError("a bundle needs at least one engine")
    from compress.ladder import torch_runner

    (graph,) = model.graphs
    outputs = {name: _run(engine, golden) for name, engine in engines.items() if engine.state == "runnable"}
    expected = next(iter(outputs.values())) if outputs else torch_runner(model)(golden)
    tolerance = {name: _tolerance(expected, outputs.get(name)) for name in engines}
    with atomic_folder(into) as folder:
        (folder / "golden").mkdir()
        write_arrays(folder / "golden/feed.npz", golden)
        write_arrays(folder / "golden/expected.npz", expected)
        entries = {}
        for name, engine in engines.items():
            path = f"engines/{graph}/{name}"
            shutil.copytree(engine.path, folder / path)
            entries[name] = EngineEntry(
                path=path, backend=engine.backend, precision=engine.precision, digest=engine.digest, state=engine.state
            )
        specs = model.graphs[graph]
        write_manifest(
            folder,
            name=model.name,
            inputs=specs.inputs,
            outputs=specs.outputs,
            graphs={
                graph: GraphEntry(
                    inputs=tuple(s.name for s in specs.inputs), outputs=tuple(s.name for s in specs.outputs),
                    engines=entries,
                )
            },
            answers={name: Answer(kind="argmax", labels=labels) for name, labels in model.labels.items()},
            golden=Golden(feed="golden/feed.npz", expected="golden/expected.npz", tolerance=tolerance),
            accuracy=accuracy or {},
        )  # fmt: skip
    return read_bundle(into)


def _run(engine: Engine, feed: Feed) -> dict[str, np.ndarray]:
    runner = open_engine(engine)
    try:
        return runner.run(feed)
    finally:
        runner.close()


def _tolerance(expected: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray] | None) -> float:
    """Twice what was seen on this machine, plus rounding: another CPU's kernels sum in another order."""
    largest = max(float(np.abs(value).max(initial=0.0)) for value in expected.values())
    if seen is None:
        return UNSEEN_TOLERANCE * largest
    difference = max(float(np.abs(expected[name] - seen[name]).max(initial=0.0)) for name in expected)
    return 2 * difference + 0.01 * largest


def write_controls(engines: Iterable[tuple[str, str, str, Engine]], into: Path) -> None:
    """Write the float controls that a bundle is measured beside: (name, role, target, engine) each."""
    with atomic_folder(into) as folder:
        entries = []
        for index, (name, role, target, engine) in enumerate(engines):
            shutil.copytree(engine.path, folder / str(index))
            entries.append({"name": name, "role": role, "target": target, "path": str(index), "digest": engine.digest})
        record = {"format": "compress.controls", "version": 1, "engines": entries}
        (folder / "controls.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_controls(folder: Path) -> list[tuple[str, str, str, Engine]]:
    """What :func:`write_controls` wrote, each engine checked by its digest."""
    file = folder / "controls.json"
    try:
        record = json.loads(file.read_text())
        if (record["format"], record["version"]) != ("compress.controls", 1):
            raise CompressError(f"{file} is of another format or version: run the recipe again")
        found = []
        for entry in record["engines"]:
            engine = read_engine(folder / inside(entry["path"], str(file)))
            if engine.digest != entry["digest"]:
                raise CompressError(f"{engine.path} is not the control it was written as (its digest differs)")
            found.append((entry["name"], entry["role"], entry["target"], engine))
    except (OSError, ValueError, KeyError, TypeError, RuntimesError) as error:
        raise CompressError(f"{file} is damaged or missing ({error}): run the recipe again") from error
    return found
