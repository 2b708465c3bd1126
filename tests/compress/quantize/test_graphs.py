"""Quantization of models of several graphs: their ranges, files, engines and bundles, and what a user types."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import runtimes
from calibration import CalibrationSet, open_set
from compress.cli import cli
from compress.errors import CompressError
from compress.export import export
from compress.inspection import inspect
from compress.model import Graph, Input, Model
from compress.modelfile import read_model, write_model
from compress.program import model_runner, run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.fold import fold
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.targets import targets
from runtimes.spec import Dim

PHOTOS, WORDS = 48, 20


class Towers(nn.Module):
    """A convolution with its batch normalisation, an LSTM over words, and a table that nothing multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.vision = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 16)
        self.norm.running_var = torch.linspace(0.25, 4.0, 8)
        self.table = nn.Embedding(WORDS, 16)
        self.text, self.project = nn.LSTM(16, 8, bidirectional=True, batch_first=True), nn.Linear(16, 16)
        self.markers = nn.Embedding(5, 16)

    def encode_image(self, image: Tensor) -> Tensor:
        seen = torch.relu(self.norm(self.stem(image))).mean((2, 3))
        return self.vision(seen) * torch.tensor([1.0, 2.0] * 8)

    def encode_text(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.text(self.table(tokens))
        return self.project(torch.cat([h[0], h[1]], -1)) * torch.tensor([3.0, 4.0] * 8)

    def look_up(self, marker: Tensor) -> Tensor:
        return self.markers(marker)


class Halves(nn.Module):
    """One graph normalises what the shared convolution puts out, the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.norm.running_var = torch.full((8,), 4.0)

    def one(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image)).mean((2, 3))

    def other(self, image: Tensor) -> Tensor:
        return self.conv(image).mean((2, 3))


@functools.cache
def towers() -> Model:
    torch.manual_seed(0)
    example = {
        "image": np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype(np.float32),
        "tokens": np.zeros((2, 5), np.int64), "marker": np.zeros(2, np.int64),
    }  # fmt: skip
    graphs = {
        "image": Graph("encode_image", ("image",)), "text": Graph("encode_text", ("tokens",)),
        "marker": Graph("look_up", ("marker",)),
    }  # fmt: skip
    inputs = {"tokens": Input(modality="text", dims=("batch", Dim("length", 1, 5, 16)))}
    model = export_model(Towers(), name="towers", example=example, graphs=graphs, inputs=inputs)
    return dataclasses.replace(model, module=None)


def arrays(number: int = PHOTOS, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(number, 1, 6, 6)).astype(np.float32), "tokens": rng.integers(0, WORDS, (number, 5)),
        "marker": rng.integers(0, 5, number),
    }  # fmt: skip


def samples(model: Model, names: tuple[str, ...] = ("image", "tokens", "marker"), seed: int = 1) -> CalibrationSet:
    specs = tuple(spec for spec in model.inputs if spec.name in names)
    return open_set([{name: arrays(seed=seed)[name] for name in names}], specs, name="pairs")


@functools.cache
def quantized() -> Model:
    return quantize(towers(), samples(towers()), scheme="x86-vnni").model


def close(found: np.ndarray, expected: np.ndarray, share: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


def same_axis(outputs: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    """A metric of two towers: whether both point to one side of the axis that the target names."""
    rows = np.arange(len(target))
    image, text = (outputs[f"{tower}.output"][rows, target] for tower in ("image", "text"))
    return np.asarray((image > 0) == (text > 0))


def test_the_inputs_and_outputs_of_a_model_are_those_of_all_graphs() -> None:
    model = towers()
    assert [spec.name for spec in model.inputs] == ["image", "tokens", "marker"]
    assert [spec.name for spec in model.outputs] == ["image.output", "text.output", "marker.output"]
    found = model_runner(model)(arrays(3))
    assert {name: value.shape for name, value in found.items()} == {spec.name: (3, 16) for spec in model.outputs}
    np.testing.assert_array_equal(found["text.output"], run_program(model, arrays(3), "text")["output"])


def test_each_graph_has_the_ranges_of_what_its_own_operators_read() -> None:
    result = quantize(towers(), samples(towers()), scheme="x86-vnni", config=QuantizeConfig(ranges="minmax"))
    assert [(o["graph"], o["path"], o["precision"]) for o in result.operators] == [
        ("image", "stem", "int8"), ("image", "vision", "int8"), ("text", "table", "float"), ("text", "text", "int8"),
        ("text", "project", "int8"), ("marker", "markers", "float"),
    ]  # fmt: skip
    held = result.model.quantization
    assert held is not None
    assert {name: len(ranges) for name, ranges in held.ranges.items()} == {"image": 3, "text": 2, "marker": 0}
    image = arrays()["image"]
    assert held.ranges["image"]["image"] == pytest.approx((image.min(), image.max()))
    torch.manual_seed(0)
    module = Towers().eval()
    with torch.no_grad():
        _, (h, _) = module.text(module.table(torch.from_numpy(arrays()["tokens"])))
    assert held.ranges["text"]["cat"] == pytest.approx((float(h.min()), float(h.max())), rel=1e-5)


def test_progress_counts_the_samples_of_every_graph_that_is_calibrated() -> None:
    seen: list[tuple[int, int]] = []
    quantize(
        towers(), samples(towers()), scheme="x86-vnni", config=QuantizeConfig(samples=40),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(32, 80), (40, 80), (72, 80), (80, 80)]


def test_the_converted_graphs_share_no_tensor_by_mistake(tmp_path: Path) -> None:
    """The scales and integers of every program have the same names: one file holds those of both."""
    model = convert(quantized())
    expected = model_runner(model)(arrays(7))
    close(expected["image.output"], model_runner(towers())(arrays(7))["image.output"], 0.03)
    close(expected["text.output"], model_runner(towers())(arrays(7))["text.output"], 0.03)
    write_model(model, tmp_path / "int8.pt")
    again = model_runner(read_model(tmp_path / "int8.pt"))(arrays(7))
    for name, value in expected.items():
        np.testing.assert_array_equal(again[name], value)
    np.testing.assert_array_equal(expected["marker.output"], model_runner(towers())(arrays(7))["marker.output"])


def test_the_file_of_a_quantized_model_keeps_what_it_computes(tmp_path: Path) -> None:
    """The folded convolution of one graph is not taken for the raw one that another graph's program came with."""
    write_model(quantized(), tmp_path / "model.pt")
    read = read_model(tmp_path / "model.pt")
    assert read.quantization == quantized().quantization
    plain = dataclasses.replace(read, quantization=None)
    for name, value in model_runner(towers())(arrays(5)).items():
        np.testing.assert_allclose(model_runner(plain)(arrays(5))[name], value, atol=1e-5)
    found, expected = (model_runner(convert(model))(arrays(5)) for model in (read, quantized()))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_norms_are_folded_in_a_model_read_from_a_file_too(tmp_path: Path) -> None:
    """Its constants come from a buffer, which a second trace takes for views."""
    write_model(towers(), tmp_path / "model.pt")
    folded = fold(read_model(tmp_path / "model.pt"))
    for name, value in model_runner(towers())(arrays(4)).items():
        np.testing.assert_allclose(model_runner(folded)(arrays(4))[name], value, atol=1e-5)
    assert not any("norm" in name for name in folded.weights)


def test_a_shared_layer_that_only_one_graph_normalises_is_refused() -> None:
    model = export_model(
        Halves(), name="halves", example={"image": np.ones((2, 1, 6, 6), np.float32)},
        graphs={"one": Graph("one", ("image",)), "other": Graph("other", ("image",))},
    )  # fmt: skip
    with pytest.raises(CompressError, match=r"graph 'other' of 'halves' runs 'conv.weight' without the batch norm"):
        fold(model)


def test_a_set_for_each_graph_is_the_same_as_one_for_all() -> None:
    model = towers()
    each = {"image": samples(model, ("image",)), "text": samples(model, ("tokens",)), "marker": samples(model)}
    found, expected = quantize(model, each, scheme="x86-vnni").model.quantization, quantized().quantization
    assert found is not None
    assert expected is not None
    assert found.ranges == expected.ranges
    assert found.settings["data"] == {name: own.digest for name, own in each.items()}


def test_what_a_graph_has_no_samples_for_is_named() -> None:
    model = towers()
    with pytest.raises(CompressError, match=r"graph 'text' of 'towers' takes 'tokens', which .* 'pairs' lacks"):
        quantize(model, samples(model, ("image", "marker")), scheme="x86-vnni")
    with pytest.raises(CompressError, match=r"graphs \['image', 'text', 'marker'\], .* are given for \['image'\]"):
        quantize(model, {"image": samples(model)}, scheme="x86-vnni")


def test_a_glob_may_be_for_one_graph_and_must_be_for_any() -> None:
    model = towers()
    kept = quantize(model, samples(model), scheme="x86-vnni", config=QuantizeConfig(keep_float=("vision",)))
    assert {o["path"]: o["precision"] for o in kept.operators}["vision"] == "float"
    assert kept.model.quantization is not None
    assert {n: len(ranges) for n, ranges in kept.model.quantization.ranges.items()} == {
        "image": 2, "text": 2, "marker": 0,
    }  # fmt: skip
    convert(kept.model)
    with pytest.raises(CompressError, match=r"keep_float 'visoin' matches no module with weights: they are stem, vis"):
        quantize(model, samples(model), scheme="x86-vnni", config=QuantizeConfig(keep_float=("visoin",)))


def test_inspect_shows_all_graphs() -> None:
    found = inspect(quantized())
    assert [spec["name"] for spec in found.facts["outputs"]] == ["image.output", "text.output", "marker.output"]
    assert {(o["graph"], o["path"]) for o in found.operators if o["precision"] == "int8"} == {
        ("image", "stem"), ("image", "vision"), ("text", "text"), ("text", "project"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["openvino-cpu", "onnxruntime-cpu"])
def test_the_engine_of_each_graph(name: str, tmp_path: Path) -> None:
    model = quantized()
    expected = model_runner(convert(model))(arrays(6))
    for graph, precision in (("image", "int8"), ("text", "int8"), ("marker", "fp32")):
        engine = export(model, targets()[name], tmp_path / graph, graph=graph)
        assert engine.precision == precision
        runner = runtimes.open_engine(engine, threads=1)
        try:
            found = runner.run({spec.name: arrays(6)[spec.name] for spec in engine.inputs})["output"]
        finally:
            runner.close()
        close(found, expected[f"{graph}.output"], 0.05)  # OpenVINO computes what is not int8 in bf16


def told(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*map(str, arguments), "--quiet", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_what_a_user_types(tmp_path: Path) -> None:
    """quantize, eval, export and bundle create of a model with three graphs; the bundle scores as the model does."""
    write_model(towers(), tmp_path / "model.pt")
    labels = np.random.default_rng(5).integers(0, 16, PHOTOS)
    np.savez(tmp_path / "data.npz", **arrays(), target=labels)
    data = ["--data", tmp_path / "data.npz"]
    record = told("quantize", tmp_path / "model.pt", "--calibration", tmp_path / "data.npz", "--target",
                  "onnxruntime-cpu", "-o", tmp_path / "int8.pt")  # fmt: skip
    assert (record["int8"], record["float"], record["samples"]) == (4, 2, PHOTOS)
    metric = ["--metric", f"{__name__}:same_axis"]
    scores = {name: told("eval", tmp_path / f"{name}.pt", *data, *metric)["value"] for name in ("model", "int8")}
    outputs = model_runner(towers())(arrays())
    assert scores["model"] == pytest.approx(same_axis(outputs, labels).mean())
    assert abs(scores["int8"] - scores["model"]) <= 3 / PHOTOS
    compared = told("parity", tmp_path / "int8.pt", "--graph", "text", "--target", "onnxruntime-cpu", *data)
    assert (compared["passed"], compared["samples"]) == (True, PHOTOS)
    assert "int8" in {step["precision"] for step in compared["steps"]}
    looked_up = told("parity", tmp_path / "int8.pt", "--graph", "marker", "--target", "onnxruntime-cpu", *data)
    assert {step["precision"] for step in looked_up["steps"]} == {"fp32"}
    told("export", tmp_path / "int8.pt", "--graph", "text", "--target", "onnxruntime-cpu")
    assert runtimes.read_engine(tmp_path / "int8.text.onnxruntime-cpu").precision == "int8"
    told("bundle", "create", tmp_path / "int8.pt", "--target", "onnxruntime-cpu", *data, "-o", tmp_path / "bundle")
    assert told("eval", tmp_path / "bundle", *data, *metric)["value"] == pytest.approx(scores["int8"], abs=2 / PHOTOS)
    with runtimes.load(tmp_path / "bundle", threads=1, self_test=True) as chain:
        found = chain.run(arrays(3))
    expected = model_runner(convert(read_model(tmp_path / "int8.pt")))(arrays(3))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, 0.03)


def test_a_folder_for_each_graph(tmp_path: Path) -> None:
    """Graphs whose samples do not belong together, here in other numbers: each has its own set."""
    write_model(towers(), tmp_path / "model.pt")
    for graph, name, number in (("image", "image", 40), ("text", "tokens", 24), ("marker", "marker", 8)):
        (tmp_path / "data" / graph).mkdir(parents=True)
        np.savez(tmp_path / "data" / graph / "0.npz", **{name: arrays()[name][:number]})
    command = ["quantize", tmp_path / "model.pt", "--calibration", tmp_path / "data", "--target", "onnxruntime-cpu"]
    record = told(*command, "-o", tmp_path / "int8.pt")
    assert (record["int8"], record["samples"]) == (4, 40)
    held = read_model(tmp_path / "int8.pt").quantization
    assert held is not None
    assert set(held.settings["data"]) == {"image", "text", "marker"}
    (tmp_path / "data" / "text" / "0.npz").unlink()
    (tmp_path / "data" / "text").rmdir()
    done = CliRunner().invoke(cli, [*map(str, command)])
    assert done.exit_code == 2
    assert "data/text does not exist" in done.output.replace("\n", "")
