"""A model whose graphs feed each other: saved, run in torch, calibrated on its own steps, and shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import runtimes
from calibration import Histogram, open_set
from compress.bundle import bundle
from compress.errors import CompressError
from compress.export import export, only
from compress.golden import chain_feeds
from compress.model import Model
from compress.modelfile import read_model, write_model
from compress.program import chain_of, model_runner
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.collect import STEPS as CALIBRATED_STEPS
from compress.quantize.prepare import convert
from compress.steps import watch
from compress.targets import get_target
from tests.compress import captioner


@pytest.fixture(scope="module")
def network() -> captioner.Captioner:
    return captioner.network()


@pytest.fixture(scope="module")
def model(network: captioner.Captioner) -> Model:
    return captioner.model(network)


def test_inputs_and_outputs_are_the_chains(model: Model) -> None:
    assert [spec.describe() for spec in model.inputs] == ["float32[batch=1..16, 12]"]
    assert [(spec.name, spec.describe()) for spec in model.outputs] == [("caption", "int64[batch=1..16, steps=1..8]")]
    assert [spec.name for spec in only(model, "decoder").inputs] == ["ids", "memory", "past_key", "past_value"]


def test_torch_decodes_as_without_a_cache(model: Model, network: captioner.Captioner) -> None:
    image = captioner.pictures(6)
    expected = captioner.captions(network, image)
    assert len({len(row) for row in expected}) > 1      # rows that stop early, and rows that do not
    tokens = model_runner(model)({"image": image})["caption"]
    np.testing.assert_array_equal(tokens, captioner.padded(expected))


def test_the_file_keeps_the_chain(model: Model, tmp_path: Path) -> None:
    write_model(model, tmp_path / "model.pt")
    read = read_model(tmp_path / "model.pt")
    assert read.chain == model.chain
    feed = {"image": captioner.pictures(3)}
    np.testing.assert_array_equal(model_runner(read)(feed)["caption"], model_runner(model)(feed)["caption"])


def test_a_chain_that_does_not_fit_is_refused_by_name(network: captioner.Captioner) -> None:
    with pytest.raises(CompressError, match=r"model 'captioner': chain: .*loop: the graph has no input 'id'"):
        captioner.model(network, chain=captioner.chain(token="id"))
    alone = captioner.model(network, chain=None)
    assert alone.wiring is None
    with pytest.raises(CompressError, match=r"\['encoder', 'decoder'\], of which one takes what another gives"):
        chain_of(alone)


def test_the_feeds_of_each_graph(model: Model) -> None:
    feed = {"image": captioner.pictures(2)}
    seen: dict[str, list[Any]] = {"encoder": [], "decoder": []}
    watch(model, feed, lambda graph, run, given: seen[graph].append(given))
    assert len(seen["encoder"]) == 1
    assert [given["past_key"].shape[2] for given in seen["decoder"]] == list(range(len(seen["decoder"])))
    golden = chain_feeds(model, feed)
    np.testing.assert_array_equal(golden["encoder"]["image"], feed["image"])
    assert golden["decoder"]["past_key"].shape == (2, 2, 1, 8)      # the first step with a cache


def by_hand(network: captioner.Captioner, image: np.ndarray) -> tuple[float, float]:
    """The least and the largest value that the head reads in the steps of all captions."""
    seen: list[torch.Tensor] = []
    handle = network.head.register_forward_hook(lambda module, given, result: seen.append(given[0][:, -1]))
    captioner.captions(network, image)
    handle.remove()
    return float(min(value.min() for value in seen)), float(max(value.max() for value in seen))


def test_a_decoder_is_calibrated_on_its_own_steps(model: Model, network: captioner.Captioner) -> None:
    """Sample by sample, so that no row is padded while another goes on: the ranges are those of the captions."""
    image = captioner.pictures(5)
    data = open_set([{"image": row[None]} for row in image], model.inputs, name="pictures")
    told: list[tuple[int, int]] = []
    with mock.patch("compress.quantize.collect.BATCH", 1):
        result = quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(ranges="minmax"),
                          progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert told[-1] == (5, 5)
    ranges = result.model.quantization.ranges       # type: ignore[union-attr]
    assert set(ranges) == {"encoder", "decoder"}
    low, high = by_hand(network, image)
    assert any(np.allclose(found, (low, high), rtol=1e-5) for found in ranges["decoder"].values())
    assert next(iter(ranges["encoder"].values())) == (image.min(), image.max())
    assert {o["graph"] for o in result.operators if o["precision"] == "int8"} == {"encoder", "decoder"}


def test_long_texts_are_calibrated_on_their_first_steps(network: captioner.Captioner) -> None:
    longer = captioner.chain(max_steps=CALIBRATED_STEPS + 100, min_steps=CALIBRATED_STEPS + 50, stop=[])
    model = captioner.model(network, chain=longer)
    with pytest.raises(runtimes.RuntimesError, match="has grown to"):       # the cache holds 24
        model_runner(model)({"image": captioner.pictures(1)})
    data = open_set([{"image": captioner.pictures(2)}], model.inputs, name="pictures")
    sizes: list[int] = []
    update = Histogram.update

    def counted(self: Histogram, array: np.ndarray, ends: tuple[float, float]) -> None:
        sizes.append(array.shape[1])
        update(self, array, ends)

    with mock.patch.object(Histogram, "update", counted), mock.patch("compress.quantize.collect.STEPS", 6):
        quantize(model, data, scheme="x86-vnni")
    reads = 1 + 6 * 3       # the encoder's layer; of the decoder what query, key and value read, join and head
    assert len(sizes) == reads


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
def test_a_bundle_decodes_as_torch_does(model: Model, target: str, tmp_path: Path) -> None:
    image = captioner.pictures(6)
    data = open_set([{"image": image}], model.inputs, name="pictures")
    int8 = quantize(model, data, scheme="x86-vnni").model
    forms: list[tuple[str, Model, Any]] = [("float", model, model), ("int8", int8, convert(int8))]
    for name, form, reference in forms:
        engines = {graph: {target: export(form, get_target(target), tmp_path / name / graph, graph=graph)}
                   for graph in form.graphs}  # fmt: skip
        made = bundle(form, engines, chain_feeds(form, {"image": image[:2]}), tmp_path / f"{name}.bundle")
        with runtimes.load(made, self_test=True) as chain:
            tokens = chain.run({"image": image})["caption"]
        expected = model_runner(reference)({"image": image})["caption"]
        if name == "float":
            np.testing.assert_array_equal(tokens, expected)
        else:       # a rounding that falls to the other side may turn a word
            assert (tokens[:, :1] == expected[:, :1]).mean() >= 0.8


def test_what_is_no_chain_in_a_file_is_refused(model: Model, tmp_path: Path) -> None:
    write_model(dataclasses.replace(model, chain=captioner.chain(token="nothing")), tmp_path / "model.pt")
    with pytest.raises(CompressError, match=r"model\.pt is damaged: model 'captioner': chain: .*no input 'nothing'"):
        read_model(tmp_path / "model.pt")
