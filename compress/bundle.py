"""Write a bundle: the engines of every target, a golden feed with its expected outputs, and the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import CompressError
from compress.model import Model, ProgramGraph
from compress.processing import Source, section_of, write_files
from compress.store import atomic_folder
from runtimes.arrays import write_arrays
from runtimes.backends import open_engine
from runtimes.bundle import MANIFEST, SIGNATURE, Bundle, EngineEntry, Golden, GraphEntry, read_bundle, write_manifest
from runtimes.engine import Engine
from runtimes.errors import RuntimesError
from runtimes.signing import check_signature
from runtimes.spec import Feed

WRONG = 0.5             # of the largest expected value: more than int8 and bf16 kernels differ by, however they sum
UNSEEN_TOLERANCE = 0.1  # of the largest expected value, for an engine that could not be run here


def bundle(
    model: Model,
    engines: Mapping[str, Engine] | Mapping[str, Mapping[str, Engine]],
    golden: Feed | Mapping[str, Feed],
    into: Path,
    *,
    accuracy: Mapping[str, Any] | None = None,
    processing: Source | None = None,
    chain: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write the bundle of one model in folder ``into``, replacing a bundle that is there.

    The signature of a bundle that is there stays with it if the new one is the same to the byte.

    Args:
        model: the model, for its name, specs and labels.
        engines: target name -> its engine; for a model of several graphs, graph name -> that.
        golden: a feed for the self-test on the device; for several graphs, graph name -> its feed. The outputs
            expected of a graph are those of its first runnable engine, or torch's where none runs here.
        into: the folder; it appears complete or not at all.
        accuracy: what was measured of these engines, kept in the manifest as it is.
        processing: what :func:`compress.processing.read_processing` reads, in place of the model's own.
        chain: this section of the manifest, in place of the model's own.

    Raises:
        CompressError: if a graph of the model has no engine or no golden feed, or one is for no graph of it; if a
            file that is not of the bundle is in ``into``.
    """
    refuse_strangers(into)
    by_graph = _by_graph(model, engines, "engine", Engine)
    feeds = _by_graph(model, golden, "golden feed", np.ndarray)
    chain = model.chain if chain is None else chain
    own = section_of(model, processing, chain)
    with atomic_folder(into) as folder:
        graphs = {
            name: _write_graph(folder, name, specs, by_graph[name], feeds[name], _torch(model, name))
            for name, specs in model.graphs.items()
        }
        if own is not None:
            write_files(own, folder)
        write_manifest(
            folder,
            name=model.name,
            graphs=graphs,
            accuracy=accuracy or {},
            processing=None if own is None else own.section,
            chain=chain,
        )  # fmt: skip
        _keep_signature(into, folder)
    return read_bundle(into)


def refuse_strangers(folder: Path) -> None:
    """A bundle is replaced whole: refuse where that would take away a file which its manifest does not list.

    Raises:
        CompressError: naming the first such file.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())["files"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no bundle: not for this function to judge
        return
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    strangers = sorted(found - listed - {MANIFEST, SIGNATURE})
    if strangers:
        raise CompressError(f"{folder} is replaced whole, and {strangers[0]!r} in it is not of the bundle: "
                            "move it elsewhere")


def _keep_signature(old: Path, new: Path) -> None:
    """It is of the manifest's bytes, and of no use for others."""
    if (old / SIGNATURE).is_file():
        signature = (old / SIGNATURE).read_bytes()
        with suppress(RuntimesError):
            check_signature(signature, (new / MANIFEST).read_bytes(), None, str(old / SIGNATURE))
            (new / SIGNATURE).write_bytes(signature)


def _by_graph(model: Model, given: Mapping[str, Any], what: str, kind: type) -> Mapping[str, Mapping[str, Any]]:
    """``given`` for each graph of the model: what is no mapping of mappings is the only graph's."""
    if len(model.graphs) == 1 and all(isinstance(value, kind) for value in given.values()):
        given = {next(iter(model.graphs)): given}
    if given.keys() != model.graphs.keys():
        raise CompressError(
            f"a bundle of model {model.name!r} needs one {what} mapping for each of its graphs "
            f"{list(model.graphs)}, got {list(given)}"
        )
    for graph, values in given.items():
        if not values:
            raise CompressError(f"a bundle needs at least one {what}: graph {graph!r} has none")
    return given


def _write_graph(
    folder: Path, name: str, specs: ProgramGraph, engines: Mapping[str, Engine], golden: Feed,
    torch: Callable[[Feed], dict[str, np.ndarray]],
) -> GraphEntry:  # fmt: skip
    outputs = {target: _run(engine, golden) for target, engine in engines.items() if engine.state == "runnable"}
    expected = next(iter(outputs.values())) if outputs else torch(golden)
    feed_file, expected_file = f"golden/{name}/feed.npz", f"golden/{name}/expected.npz"
    (folder / feed_file).parent.mkdir(parents=True)
    write_arrays(folder / feed_file, golden)
    write_arrays(folder / expected_file, expected)
    entries = {}
    for target, engine in engines.items():
        path = f"engines/{name}/{target}"
        shutil.copytree(engine.path, folder / path)
        entries[target] = EngineEntry(
            path=path, backend=engine.backend, precision=engine.precision, digest=engine.digest, state=engine.state
        )
    tolerance = {target: _tolerance(expected, outputs.get(target), f"graph {name!r} for {target}")
                 for target in engines}  # fmt: skip
    return GraphEntry(
        inputs=specs.inputs, outputs=specs.outputs, engines=entries,
        golden=Golden(feed=feed_file, expected=expected_file, tolerance=tolerance),
    )  # fmt: skip


def _torch(model: Model, graph: str) -> Callable[[Feed], dict[str, np.ndarray]]:
    """Runs one graph in torch, which is imported by then and not before."""

    def run(feed: Feed) -> dict[str, np.ndarray]:
        from compress.export import only
        from compress.ladder import torch_runner

        return torch_runner(only(model, graph))(feed)

    return run


def _run(engine: Engine, feed: Feed) -> dict[str, np.ndarray]:
    runner = open_engine(engine)
    try:
        return runner.run(feed)
    finally:
        runner.close()


def _tolerance(expected: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray] | None, engine: str) -> float:
    """Twice what was seen on this machine, plus rounding: another CPU's kernels sum in another order.

    Raises:
        CompressError: if what was seen is no rounding.
    """
    largest = max(float(np.abs(value.astype(np.float64)).max(initial=0.0)) for value in expected.values())
    if seen is None:
        return UNSEEN_TOLERANCE * largest
    difference = max(float(np.abs(expected[name].astype(np.float64) - seen[name]).max(initial=0.0))
                     for name in expected)  # fmt: skip
    if difference > WRONG * largest:
        raise CompressError(
            f"the engine of {engine} answers the golden feed by up to {difference:.3g} differently from the program it "
            f"was made of, whose values reach {largest:.3g}: it is not put in a bundle; compress parity shows where"
        )
    return 2 * difference + 0.01 * largest
