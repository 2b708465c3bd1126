"""The engines of a model for one target, one for each of its graphs: what is built, shipped and measured as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtimes.engine import Engine, Precision, State, read_engine
from runtimes.errors import RuntimesError
from runtimes.hashing import json_digest
from runtimes.records import get, strings
from runtimes.spec import TensorSpec
from runtimes.wiring import Wiring, independent, parse_chain


@dataclass(frozen=True, kw_only=True)
class EngineSet:
    """``engines`` by graph; ``chain`` says how these feed each other, as a bundle's manifest does, if they do."""

    engines: Mapping[str, Engine]
    chain: Mapping[str, Any] | None = None

    @property
    def alone(self) -> Engine | None:
        """The engine, where it is run by itself as a session; None where a chain is, of several or with a loop."""
        return next(iter(self.engines.values())) if self.chain is None and len(self.engines) == 1 else None

    @cached_property
    def wiring(self) -> Wiring:
        """The chain, or that of graphs which need nothing of each other.

        Raises:
            RuntimesError: if the chain does not fit the engines, or there is none and one takes what another gives.
        """
        graphs: Any = self.engines      # inputs and outputs are all that a chain asks of a graph
        return independent(graphs, self.where) if self.chain is None else parse_chain(self.chain, graphs, self.where)

    @property
    def where(self) -> str:
        """What a message calls them."""
        return f"the engines of {', '.join(self.engines)}" if self.alone is None else str(self.alone.path)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.wiring.inputs if self.alone is None else self.alone.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.wiring.outputs if self.alone is None else self.alone.outputs

    @cached_property
    def digest(self) -> str:
        return digest_of({graph: engine.digest for graph, engine in self.engines.items()}, self.chain)

    @property
    def backend(self) -> str:
        return ", ".join(dict.fromkeys(engine.backend for engine in self.engines.values()))

    @property
    def device(self) -> str:
        return ", ".join(dict.fromkeys(engine.device for engine in self.engines.values()))

    @property
    def precision(self) -> Precision:
        """int8 where an engine is; the others' otherwise. A graph with nothing to quantize stays float beside it."""
        found = [engine.precision for engine in self.engines.values()]
        return "int8" if "int8" in found else found[0]

    @property
    def state(self) -> State:
        """Runnable where all of them are."""
        found = [engine.state for engine in self.engines.values()]
        return next((state for state in found if state != "runnable"), "runnable")

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for engine in self.engines.values()
                   for path in engine.path.rglob("*") if path.is_file())

    def job(self) -> dict[str, Any]:
        """What a job of :mod:`runtimes.measure` says of them."""
        return {"engines": {graph: str(engine.path.resolve()) for graph, engine in self.engines.items()},
                "chain": None if self.chain is None else dict(self.chain)}


def digest_of(digests: Mapping[str, str], chain: Mapping[str, Any] | None) -> str:
    """What measurements are filed under, from the digests of engines by graph: an engine's own where it is alone.

    Of several it is that of :class:`runtimes.chain.Chain`, which counts the graphs that it runs.
    """
    if chain is None:
        return json_digest(dict(digests)) if len(digests) > 1 else next(iter(digests.values()))
    used = {step["graph"] for step in chain["steps"]}
    return json_digest({graph: digest for graph, digest in digests.items() if graph in used})


def read_engines(job: Mapping[str, Any], where: str) -> EngineSet:
    """What :meth:`EngineSet.job` wrote, each engine read from its folder.

    Raises:
        RuntimesError: if there is none, or one cannot be read.
    """
    chain = None if job.get("chain") is None else get(job, "chain", dict, where)
    folders = strings(job, "engines", where)
    if not folders:
        raise RuntimesError(f"{where}: names no engine")
    return EngineSet(engines={graph: read_engine(Path(folder)) for graph, folder in folders.items()}, chain=chain)
