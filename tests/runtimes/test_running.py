"""Engines opened to be measured: a chain from end to end, its layers over all its runs, and how its answer comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.arithmetic import is_arithmetic
from runtimes.arrays import read_batches, write_arrays
from runtimes.engineset import EngineSet
from runtimes.errors import RuntimesError
from runtimes.measure import measure
from runtimes.running import GENERATIONS, Running
from tests.contracts.engines import make_engine
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.test_chain import LOOP, STEPS, TOWER_FEED, TOWERS, writing
from tests.runtimes.test_engineset import captioner

__all__ = ["captioner"]
HEAD_MACS = networks.WIDTH * networks.VOCABULARY      # of a sample in a step


@pytest.fixture
def running(captioner: EngineSet) -> Iterator[Running]:
    opened = Running(captioner, threads=1)
    yield opened
    opened.close()


def test_a_chain_answers_as_numpy_does(running: Running) -> None:
    expected = networks.padded(networks.generate(networks.X, STEPS))
    np.testing.assert_array_equal(running.run({"x": networks.X})["caption"], expected)


def test_layers_are_of_all_runs_of_their_graph(running: Running) -> None:
    """The first sample takes ten steps, the second two; the encoder is run once for each."""
    for sample, steps in ((networks.X[:1], 10), (networks.X[1:2], 2)):
        layers = running.layers({"x": sample})
        assert {graph for graph, _ in layers} == {"encoder", "decoder"}
        macs = {graph: [layer.macs for name, layer in layers if name == graph and is_arithmetic(layer.type)]
                for graph in ("encoder", "decoder")}
        assert macs["encoder"] == [4 * networks.WIDTH]
        assert steps * HEAD_MACS in macs["decoder"]
        assert all(layer.time_us is None or layer.time_us >= 0 for _, layer in layers)
    zeros = dict.fromkeys(("encoder", "decoder"), 0)
    for graph, _ in running.layers(None):
        zeros[graph] += 1
    assert min(zeros.values()) > 0


def test_how_an_answer_comes(running: Running) -> None:
    told = running.generation({"x": networks.X[:1]})
    assert told is not None
    assert (told["steps"], len(told["first_ns"]), len(told["all_ns"])) == (STEPS, GENERATIONS, GENERATIONS)
    assert all(0 < first < whole for first, whole in zip(told["first_ns"], told["all_ns"], strict=True))


def test_what_generates_nothing_tells_nothing_and_no_cache_helps(tmp_path: Path) -> None:
    """An app that asks the same labels again does not wait; what is timed is that it asks for the first time."""
    cases = {"image": networks.IMAGE, "text": BY_NAME["gather"]}
    engines = {graph: make_engine(case, "onnxruntime", tmp_path / graph) for graph, case in cases.items()}
    opened = Running(EngineSet(engines=engines, chain=TOWERS), threads=1)
    try:
        assert opened.generation(TOWER_FEED) is None
        for _ in range(2):
            np.testing.assert_allclose(opened.run(TOWER_FEED)["seen"], networks.PIXELS @ networks.TOWER, rtol=1e-5)
        assert opened._chain is not None
        assert [(cache.hits, cache.misses) for cache in opened._chain.caches.values()] == [(0, 2)]
    finally:
        opened.close()


def test_engines_that_do_not_fit_are_closed_again(captioner: EngineSet) -> None:
    wrong = EngineSet(engines=captioner.engines, chain=writing({**LOOP, "token": "id"}))
    with pytest.raises(RuntimesError, match=r"the engines of encoder, decoder: chain: .*has no input 'id'"):
        Running(wrong)


def test_a_job_of_several_engines(captioner: EngineSet, tmp_path: Path) -> None:
    """Batches of captions of different lengths come back one by one."""
    write_arrays(tmp_path / "feed.npz", {"x": networks.X[:1]})
    write_arrays(tmp_path / "0.npz", {"x": networks.X})
    job: dict[str, Any] = {
        **captioner.job(), "threads": 1, "layers": True, "result": str(tmp_path / "result.json"),
        "latency": {"feed": str(tmp_path / "feed.npz"), "warmup_s": 0.0, "duration_s": 0.0, "min_runs": 5},
        "outputs": {"shards": [str(tmp_path / "0.npz")], "inputs": ["x"], "batch": 1,
                    "into": str(tmp_path / "outputs.npz")}}
    result = measure(job)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (result["digest"], result["samples"], len(result["latencies_ns"])) == (captioner.digest, 3, 5)
    assert {layer["graph"] for layer in result["layers"]} == {"encoder", "decoder"}
    assert result["generation"]["steps"] == STEPS
    found = [list(row) for batch in read_batches(tmp_path / "outputs.npz") for row in batch["caption"]]
    assert found == networks.generate(networks.X, STEPS)
