"""The stage export: per target what ships and, where it can be measured, the float controls it is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.bench.record import Role
from compress.errors import CompressError
from compress.export import has_int8
from compress.stages.filing import Filing
from compress.stages.models import ModelFile
from compress.store import Artifact, is_disk_full
from compress.targets import Target
from runtimes.engine import Engine, Precision, read_engine
from runtimes.engineset import EngineSet

if TYPE_CHECKING:
    from compress.model import Model

_NOT_THE_ENGINES = ("verified", "description", "address", "python")  # parts of a row that no engine depends on


@dataclass(frozen=True, kw_only=True)
class Build:
    """The engines of a model in one precision for one target, and the ONNX files they are of, by graph.

    A graph in which nothing is int8 stays float in an int8 build. ``engines`` is None where one was not built, and
    ``error`` says why.
    """

    name: str
    role: Role
    target: Target
    precision: Precision
    onnx: Mapping[str, Path]
    engines: EngineSet | None = None
    error: str | None = None


def build_engines(
    filing: Filing,
    targets: Sequence[Target],
    original: ModelFile,
    shipped: ModelFile,
    quantized: Mapping[str, ModelFile],
) -> list[Build]:
    """Every engine of the run; one that cannot be built is told with the reason, and the others go on.

    Args:
        filing: the run.
        targets: what it builds for.
        original: the model as given.
        shipped: the float model that ships, or was quantized.
        quantized: scheme -> the quantized model; empty where the recipe has no quantize.

    Raises:
        CompressError: if no engine that ships could be built, or the disk is full.
    """
    like = shipped.load()       # all of the run's models have its graphs and its chain
    wanted = [(target, *what) for target in targets for what in _wanted(target, original, shipped, quantized)]
    builds = []
    with filing.progress.stage("export"):
        for number, (target, name, role, model, precision) in enumerate(wanted):
            filing.progress.step(number, len(wanted), name)
            builds.append(build_one(filing, name, role, target, model, precision, like))
    if not any(build.role == "shipped" and build.engines is not None for build in builds):
        raise CompressError(
            "no engine could be built: " + "; ".join(f"{b.target.name}: {b.error}" for b in builds if b.error)
        )
    made = [pair for pair in filing.artifacts.values() if pair[0].stage in ("onnx", "engine")]
    filing.stages.append(
        {
            "stage": "export",
            "seconds": sum(artifact.seconds for artifact, _ in made),
            "peak_memory_bytes": max(artifact.peak_memory_bytes for artifact, _ in made),
            "reused": all(reused for _, reused in made),
            "summary": _summary(builds),
        }
    )
    return builds


def _wanted(
    target: Target, original: ModelFile, shipped: ModelFile, quantized: Mapping[str, ModelFile]
) -> Iterator[tuple[str, Role, ModelFile, Precision]]:
    """Name, role, model and precision of each engine for one target, what ships last.

    An engine for a GPU of this machine is built ahead of time and not run, so it has no controls; a device's are run
    there, or built there.
    """
    if target.reach == "ssh" or target.backend in ("openvino", "onnxruntime"):
        for precision in ("fp32", target.half):
            if precision is not None:
                yield f"original {precision}, {target.name}", "original", original, precision
                if shipped != original and (quantized or precision != "fp32"):
                    yield f"shipped {precision}, {target.name}", "control", shipped, precision
    if target.scheme not in quantized:
        yield f"shipped fp32, {target.name}", "shipped", shipped, "fp32"
    elif has_int8((model := quantized[target.scheme]).load()):
        yield f"shipped int8, {target.name}", "shipped", model, "int8"
    else:       # a budget left all of it in float
        yield f"shipped, nothing in int8, {target.name}", "shipped", model, target.half or target.float


def build_one(
    filing: Filing, name: str, role: Role, target: Target, model: ModelFile, precision: Precision, like: Model
) -> Build:
    """The engines of ``model`` for one target, one of each graph of ``like``; what cannot be built says why."""
    onnx = {graph: _onnx(filing, target, model, graph) for graph in like.graphs}
    made = Build(name=name, role=role, target=target, precision=precision,
                 onnx={graph: one.path / "model.onnx" for graph, one in onnx.items()})
    try:
        engines = {
            graph: _engine(filing, name if len(onnx) == 1 else f"{name}, {graph}", target, model, graph, one,
                           precision if precision != "int8" or one.record["int8"] else "fp32")
            for graph, one in onnx.items()
        }
    except CompressError as error:
        if is_disk_full(error):
            raise
        filing.progress.say(f"{name} was not built: {error}")
        return dataclasses.replace(made, error=str(error))
    return dataclasses.replace(made, engines=EngineSet(engines=engines, chain=like.chain))


def _onnx(filing: Filing, target: Target, model: ModelFile, graph: str) -> Artifact:
    from compress.export import export_onnx, only

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        one = only(model.load(), graph)
        export_onnx(one, target, into / "model.onnx")
        return {"int8": has_int8(one)}

    written = {"opset": target.opset, "names": "component::node", "graph": graph}
    return filing.artifact("onnx", written, {"model": model.digest}, build)


def _engine(
    filing: Filing, name: str, target: Target, model: ModelFile, graph: str, onnx: Artifact, precision: Precision
) -> Engine:
    from compress.export import build_engine, only

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        path = onnx.path / "model.onnx"
        build_engine(path, only(model.load(), graph), target, into / "engine", precision=precision)
        return {}

    settings = {"target": row_of(target), "precision": precision}
    made = filing.artifact("engine", settings, {"onnx": onnx.digest}, build, detail=name)
    return read_engine(made.path / "engine")


def row_of(target: Target) -> dict[str, Any]:
    """The target as far as engines depend on it."""
    return {key: value for key, value in dataclasses.asdict(target).items() if key not in _NOT_THE_ENGINES}


def _summary(builds: Sequence[Build]) -> dict[str, Any]:
    return {
        "built": [
            {
                "target": b.target.name, "precision": b.precision, "backend": b.engines.backend,
                "state": b.engines.state, "digest": b.engines.digest, "size_bytes": b.engines.size_bytes,
                "graphs": {
                    graph: {"precision": engine.precision, "digest": engine.digest}
                    for graph, engine in b.engines.engines.items()
                },
            }
            for b in builds if b.engines is not None
        ],
        "not_built": [
            {"target": b.target.name, "precision": b.precision, "reason": b.error} for b in builds if b.engines is None
        ],
    }  # fmt: skip

