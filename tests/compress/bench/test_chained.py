"""The bench of a bundle of several graphs: one row of all its engines, with and without samples."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

import runtimes
from calibration import write
from compress.bench import BenchConfig
from compress.bench.bundled import bench_bundle
from compress.bundle import bundle
from compress.controls import Control, write_controls
from compress.errors import CompressError
from compress.export import export
from compress.golden import feeds_of
from compress.model import Model
from compress.targets import targets
from runtimes.bundle import read_bundle
from runtimes.engineset import EngineSet
from tests.compress import captioner

ORT = targets()["onnxruntime-cpu"]
QUICK = BenchConfig(restarts=2, warmup_s=0.0, duration_s=0.0, min_runs=3, threads=1, peaks=False)


def first_word(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    return np.asarray((outputs["caption"][:, 0] == target).astype(np.float64))


def ship(model: Model, folder: Path) -> EngineSet:
    """The bundle of the float captioner in ``folder``; what is in it."""
    engines = {graph: export(model, ORT, folder / graph, graph=graph) for graph in model.graphs}
    golden = feeds_of(model, {"image": captioner.pictures(2)})
    bundle(model, {graph: {ORT.name: engine} for graph, engine in engines.items()}, golden, folder / "bundle")
    return EngineSet(engines=engines, chain=model.chain)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the captioner, itself as its control beside it, and pictures with the first word of each."""
    folder = tmp_path_factory.mktemp("chained")
    network = captioner.network()
    ships = ship(captioner.model(network), folder)
    write_controls([Control("original fp32", "original", ORT.name, ships)], folder / "controls", ships=[ships])
    image = captioner.pictures(6)
    write(folder / "validation", {"image": image}, target=[words[0] for words in captioner.captions(network, image)])
    return folder


def test_a_row_is_of_all_engines(made: Path) -> None:
    told: list[str] = []
    record = bench_bundle(made / "bundle", [ORT], data=made / "validation", metric=f"{__name__}:first_word",
                          config=QUICK, progress=lambda done, total, what: told.append(what))
    original, shipped = record.rows
    assert told[:2] == ["original fp32: accuracy", "shipped fp32, onnxruntime-cpu: accuracy"]
    with runtimes.load(made / "bundle", threads=1) as chain:
        assert shipped.digest == chain.digest
        tokens = chain.run({"image": captioner.pictures(1)})["caption"]
    assert shipped.graphs == {graph: entry.engines[ORT.name].digest
                              for graph, entry in read_bundle(made / "bundle").graphs.items()}
    assert shipped.size_bytes == sum(path.stat().st_size for graph in ("encoder", "decoder")
                                     for path in (made / graph).iterdir())
    assert shipped.accuracy is not None
    assert (shipped.accuracy.value, shipped.accuracy.n) == (1.0, 6)
    assert list(shipped.speedup) == ["vs_original_fp32"]
    assert shipped.generation is not None
    assert shipped.generation.tokens == tokens.shape[1]
    assert {layer.graph for layer in shipped.layers} == {"encoder", "decoder"}
    assert set(shipped.components) >= {"vision", "head", "join"}
    assert shipped.components["head"].macs == {"f32": tokens.shape[1] * captioner.WIDTH * captioner.WORDS}
    assert original.digest == shipped.digest


def test_without_samples_the_golden_feeds_are_timed(made: Path, tmp_path: Path) -> None:
    record = bench_bundle(made / "bundle", [ORT], config=QUICK, output=tmp_path / "bench.json")
    assert [(row.status, row.batch, row.accuracy) for row in record.rows] == [("measured", 1, None)] * 2


def test_a_graph_without_an_engine_for_the_target_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_bundle(made / "bundle")
    decoder = dataclasses.replace(whole.graphs["decoder"], engines={"rpi5": whole.graphs["decoder"].engines[ORT.name]})
    lacking = dataclasses.replace(whole, graphs={**whole.graphs, "decoder": decoder})
    monkeypatch.setattr(sys.modules[bench_bundle.__module__], "read_bundle", lambda path: lacking)
    with pytest.raises(CompressError, match=r"has no engine of graph 'decoder' for target 'onnxruntime-cpu': it has "
                                            "those of rpi5"):
        bench_bundle(made / "bundle", [ORT], config=QUICK)


def test_a_prompt_comes_with_samples_alone(tmp_path: Path) -> None:
    """The golden feed of a decoder is of a later step, whose token is no prompt."""
    chain = captioner.chain(start=[])
    chain["inputs"] = ["image", "prompt"]
    chain["steps"][1]["inputs"] = {"memory": "encoder.memory", "ids": "prompt"}
    model = captioner.model(chain=chain)
    engines = {graph: {ORT.name: export(model, ORT, tmp_path / graph, graph=graph)} for graph in model.graphs}
    feed = {"image": captioner.pictures(2), "prompt": np.full((2, 3), captioner.BEGIN)}
    bundle(model, engines, feeds_of(model, feed), tmp_path / "bundle")
    with pytest.raises(CompressError, match=r"bundle holds no prompt for its decoder: name samples with --data"):
        bench_bundle(tmp_path / "bundle", [ORT], config=QUICK)
