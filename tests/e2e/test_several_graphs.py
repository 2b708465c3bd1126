"""Recipes of models of several graphs: a captioner with its decoder loop, and two towers of their own."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

import calibration
import compress
import runtimes
from compress.bench import BenchConfig
from compress.bench.bundled import bench_bundle
from compress.errors import CompressError
from compress.model import Factory
from compress.modelfile import read_model, write_model
from compress.program import model_runner
from compress.targets import get_target
from runtimes.hashing import json_digest
from tests.compress import captioner
from tests.compress.prune import test_graphs as towers

TARGETS = ["openvino-cpu", "onnxruntime-cpu"]
LONGEST = captioner.STEPS
FACTORY = "tests.compress.captioner:network"


def same_words(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    """The share of the words of ``target`` ``(samples, 8)`` that stand in the caption, each in its place."""
    found = outputs["caption"]
    words = np.pad(found, ((0, 0), (0, LONGEST - found.shape[1])))
    return np.asarray((words == target).mean(axis=1))


def nearest(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    """Whether the sum of both towers' outputs is largest where it was in float."""
    joint = sum(outputs.values())
    return np.asarray((joint.argmax(-1) == target).astype(np.float64))      # type: ignore[union-attr]


def write_recipe(folder: Path, small: ModuleType, **changes: Any) -> Path:
    recipe = {
        "version": 1, "model": "model.pt", "max_drop": 0.5, "target": TARGETS,
        "data": {"calibration": "calibration/", "validation": "validation/", "train": "train/"},
        **changes,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, small: ModuleType) -> Path:
    """A captioner's recipe of every stage, run."""
    folder = tmp_path_factory.mktemp("captioned")
    network = captioner.network()
    write_model(captioner.model(network, factory=Factory(reference=FACTORY)), folder / "model.pt")
    image = captioner.pictures(40)
    words = captioner.padded([*captioner.captions(network, image), [0] * LONGEST])[:-1]
    for name, part in {"train": slice(0, 24), "calibration": slice(0, 24), "validation": slice(24, 40)}.items():
        calibration.write(folder / name, {"image": image[part]}, target=words[part])
    stages = [{"prune": {"macs": 0.95, "round_to": 2, "samples": 16}},
              {"distill": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-5}},
              {"quantize": {"samples": 24}}, {"export": {}}, {"bench": small.BENCH}]
    compress.run(write_recipe(folder, small, factory=FACTORY, stages=stages,
                              metric=f"{__name__}:same_words"))
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "out/report.json").read_text())
    return record


@pytest.mark.slow
def test_a_captioner_through_every_stage(captioned: Path) -> None:
    record = record_of(captioned)
    assert [stage["stage"] for stage in record["stages"]] == [
        "prune", "distill", "quantize", "budget", "export", "parity", "bench"]
    assert not record["stages"][4]["summary"]["not_built"]
    rows = {row["name"]: row for row in record["bench"]["rows"]}
    assert {row["status"] for row in rows.values()} == {"measured"}, rows
    for target in TARGETS:
        shipped, original = rows[f"shipped int8, {target}"], rows[f"original fp32, {target}"]
        assert set(shipped["graphs"]) == {"encoder", "decoder"}
        assert shipped["digest"] == json_digest(shipped["graphs"])
        assert original["accuracy"]["value"] == 1.0
        assert {layer["graph"] for layer in shipped["layers"]} == {"encoder", "decoder"}
        assert shipped["precisions"]["int8"] > 0
        files = (captioned / "out/bundle/engines").glob(f"*/{target}/*")
        assert shipped["size_bytes"] == sum(path.stat().st_size for path in files)
        words = captioner.captions(captioner.network(), captioner.pictures(25)[24:])[0]
        assert original["generation"]["tokens"] == len(words)
        assert 0 < original["generation"]["first_token_ms"] < original["latency_ms"]["max"]
        assert original["generation"]["tokens_per_s"] > 0


@pytest.mark.slow
def test_the_captioners_bundle_answers_as_the_report_says(captioned: Path) -> None:
    image = captioner.pictures(40)[24:]
    target = calibration.open_set(captioned / "validation", read_model(captioned / "model.pt").inputs).targets()
    assert target is not None
    for name in TARGETS:
        with runtimes.load(captioned / "out/bundle", target=name, self_test=True) as chain:
            caption = chain.run({"image": image})["caption"]
            (row,) = [row for row in record_of(captioned)["bench"]["rows"] if row["digest"] == chain.digest]
        assert (row["role"], row["target"]) == ("shipped", name)
        assert row["accuracy"]["value"] == pytest.approx(same_words({"caption": caption}, target).mean(), abs=1e-9)


@pytest.mark.slow
def test_parity_is_of_each_graph_on_what_the_chain_gives_it_and_of_the_captions(captioned: Path) -> None:
    parity = record_of(captioned)["parity"]
    assert parity["samples"] == 8
    steps = {step["name"]: step for step in parity["steps"]}
    engine = steps["shipped fp32, onnxruntime-cpu"]
    assert set(engine["from_reference"]) == {
        "encoder.memory", "decoder.logits", "decoder.key", "decoder.value", "caption"}
    assert engine["from_reference"]["caption"]["agreement"] == 1.0
    assert engine["from_reference"]["caption"]["answers"] == 8
    assert engine["from_reference"]["decoder.logits"]["max_abs"] < 1e-4
    assert not [flag for step in parity["steps"] if step["precision"] == "fp32" for flag in step["flags"]]


@pytest.mark.slow
def test_a_second_run_of_the_captioner_redoes_nothing(captioned: Path, small: ModuleType) -> None:
    before = {name: small.contents(captioned / "out" / name) for name in ("bundle", "controls", "store/stages")}
    again = compress.run(captioned / "recipe.yaml")
    assert (again.done, again.reused) == (0, len(before["store/stages"]))
    assert {name: small.contents(captioned / "out" / name) for name in before} == before


def test_graphs_that_feed_each_other_need_a_chain(tmp_path: Path, small: ModuleType) -> None:
    write_model(captioner.model(chain=None), tmp_path / "model.pt")
    with pytest.raises(CompressError, match=r"\['decoder', 'encoder'\], of which one .*: save it with chain="):
        compress.run(write_recipe(tmp_path, small, stages=["export"]))


@pytest.mark.slow
def test_two_towers(tmp_path: Path, small: ModuleType) -> None:
    """No chain says how they feed each other, because they do not; their outputs are compared by what asks."""
    compress.save(towers.build(), tmp_path / "model.pt", example=towers.feed(2), graphs=towers.GRAPHS, name="towers")
    model = read_model(tmp_path / "model.pt")
    assert model.chain is None
    for name, seed in {"train": 1, "calibration": 2, "validation": 3}.items():
        feed = towers.feed(32, seed)
        calibration.write(tmp_path / name, feed, target=sum(model_runner(model)(feed).values()).argmax(-1))
    stages = [{"quantize": {"samples": 32}}, {"export": {}}, {"bench": small.BENCH}]
    result = compress.run(write_recipe(tmp_path, small, stages=stages, metric=f"{__name__}:nearest"))
    rows = {row["name"]: row for row in result.record["bench"]["rows"]}
    assert {row["status"] for row in rows.values()} == {"measured"}
    assert result.record["parity"]["passed"]
    feed = towers.feed(32, 3)
    for name in TARGETS:
        assert rows[f"original fp32, {name}"]["accuracy"]["value"] == 1.0
        shipped = rows[f"shipped int8, {name}"]
        assert shipped["generation"] is None
        with runtimes.load(tmp_path / "out/bundle", target=name, self_test=True) as chain:
            outputs = chain.run(feed)
            assert shipped["digest"] == chain.digest
        assert set(outputs) == {"image.output", "text.output"}
        assert shipped["accuracy"]["value"] >= 0.9
    record = bench_bundle(tmp_path / "out/bundle", [get_target(TARGETS[1])], config=BenchConfig(**small.BENCH))
    assert {row.status for row in record.rows} == {"measured"}
    assert record.rows[-1].digest == rows[f"shipped int8, {TARGETS[1]}"]["digest"]
