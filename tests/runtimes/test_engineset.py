"""The engines of a model as one thing: its digest, what it says of all of them, and how a job names them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import runtimes
from runtimes.engine import Engine
from runtimes.engineset import EngineSet, digest_of, read_engines
from runtimes.errors import RuntimesError
from runtimes.hashing import json_digest
from tests.contracts.engines import make_engine
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.bundles import write_bundle
from tests.runtimes.test_chain import LOOP, writing


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    folder = tmp_path_factory.mktemp("engines")
    cases = {"encoder": networks.ENCODER, "decoder": networks.CACHED}
    engines = {graph: make_engine(case, "onnxruntime", folder / graph) for graph, case in cases.items()}
    return EngineSet(engines=engines, chain=writing(LOOP))


def of(engines: EngineSet, graph: str, **changes: Any) -> EngineSet:
    """``engines`` with something else said of one of them."""
    changed: Engine = dataclasses.replace(engines.engines[graph], **changes)
    return dataclasses.replace(engines, engines={**engines.engines, graph: changed})


def test_an_engine_alone_is_itself(tmp_path: Path) -> None:
    engine = make_engine(BY_NAME["matmul"], "onnxruntime", tmp_path / "engine")
    one = EngineSet(engines={"main": engine})
    assert (one.alone, one.digest, one.inputs, one.outputs) == (engine, engine.digest, engine.inputs, engine.outputs)
    assert one.size_bytes == sum(path.stat().st_size for path in engine.path.iterdir())
    looped = dataclasses.replace(one, chain={"inputs": [], "steps": [{"graph": "main"}], "outputs": {}})
    assert looped.alone is None


def test_several_are_what_their_chain_is(captioner: EngineSet, tmp_path: Path) -> None:
    """The digest, inputs and outputs of the chain that a device app opens."""
    bundle = write_bundle(tmp_path, {"encoder": networks.ENCODER, "decoder": networks.CACHED}, ["onnxruntime"],
                          chain=writing(LOOP))
    with runtimes.load(bundle, threads=1) as chain:
        opened = EngineSet(engines={g: s.engine for g, s in chain.sessions.items()}, chain=writing(LOOP))
        assert (opened.digest, opened.inputs, opened.outputs) == (chain.digest, chain.inputs, chain.outputs)
    assert bundle.wiring == bundle.chain
    assert (bundle.inputs, bundle.outputs) == (opened.inputs, opened.outputs)


def test_a_graph_that_the_chain_leaves_out_is_not_in_the_digest() -> None:
    chain = {"inputs": ["x"], "steps": [{"graph": "a"}, {"graph": "a", "name": "again"}], "outputs": {}}
    assert digest_of({"a": "1", "b": "2"}, chain) == json_digest({"a": "1"})
    assert digest_of({"a": "1", "b": "2"}, None) == json_digest({"a": "1", "b": "2"})
    assert digest_of({"a": "1"}, None) == "1"


def test_what_is_said_of_all(captioner: EngineSet) -> None:
    assert (captioner.precision, captioner.state, captioner.backend, captioner.device) == (
        "fp32", "runnable", "onnxruntime", "CPU")
    assert of(captioner, "decoder", precision="int8").precision == "int8"
    assert of(captioner, "decoder", state="built, not run").state == "built, not run"
    other = of(captioner, "decoder", backend="tensorrt", device="GPU")
    assert (other.backend, other.device) == ("onnxruntime, tensorrt", "CPU, GPU")


def test_a_job_names_them(captioner: EngineSet) -> None:
    found = read_engines(captioner.job(), "job")
    assert (found.digest, found.chain) == (captioner.digest, captioner.chain)
    with pytest.raises(RuntimesError, match=r"^job: names no engine"):
        read_engines({"engines": {}}, "job")
    with pytest.raises(RuntimesError, match=r"^job lacks 'engines'"):
        read_engines({"chain": None}, "job")
    with pytest.raises(RuntimesError, match=r"^job: 'chain' must be an object"):
        read_engines({**captioner.job(), "chain": "decoder"}, "job")
    with pytest.raises(RuntimesError, match=r"the engines of encoder, decoder: input 'memory' of .* is an output of"):
        _ = dataclasses.replace(captioner, chain=None).inputs
