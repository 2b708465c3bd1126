"""Samples and layers that need a look: each has its own finding, with the layer and the remedy in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.model import Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.weights import with_weights
from tests.compress.quantize.networks import TwoReaders, make


class Towers(nn.Module):
    """An image and a text tower, and a head on both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.text, self.head = nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image), self.text(text)], 1))


class Shared(nn.Module):
    """One layer reads both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(4, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"of_left": self.both(left), "of_right": self.both(right)}


def towers() -> Model:
    torch.manual_seed(0)
    example = {"image": np.zeros((2, 8), np.float32), "text": np.zeros((2, 6), np.float32)}
    components = {"eyes": "image", "ears": "text", "mind": "head"}
    return export_model(Towers(), name="towers", example=example, components=components)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def coverage(model: Model, feed: dict[str, np.ndarray], **settings: Any) -> dict[str, Any]:
    data = open_set([feed], model.inputs, name="known")
    record = quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(**settings)).to_json()
    found: dict[str, Any] = record["coverage"]
    return found


def said(record: dict[str, Any], kind: str) -> list[str]:
    return [finding["text"] for finding in record["findings"] if finding["kind"] == kind]


def test_good_samples_leave_nothing_to_say() -> None:
    record = coverage(towers(), {"image": normal(300, 8), "text": normal(300, 6)})
    assert record["findings"] == []
    assert record["components"] == {"eyes": {"tensors": 2, "still": 0, "values_least": 2400},
                                    "ears": {"tensors": 1, "still": 0, "values_least": 1800},
                                    "mind": {"tensors": 1, "still": 0, "values_least": 4800}}
    assert [one["set"] for one in record["samples"]] == ["known"]


def test_the_row_of_a_tensor() -> None:
    x = normal(500, 4)
    record = coverage(make(TwoReaders), {"x": x}, percentile=99.0, samples=500)
    row = record["tensors"][0]
    assert (row["graph"], row["node"], row["layer"], row["component"]) == ("forward", "x", "left", "left")
    assert (row["values"], row["low"], row["high"]) == (2000, x.min(), x.max())
    low, high = row["range"]
    assert row["clipped"] == np.count_nonzero((x < low) | (x > high)) / 2000
    assert 0.005 <= row["clipped"] <= 0.01
    peaks = np.abs(x).max(1)
    assert row["farthest"] == [[int(i), float(peaks[i])] for i in np.argsort(-peaks)[:4]]
    assert row["mean"] == pytest.approx(float(x.mean()), abs=0.01)
    assert row["deviation"] == pytest.approx(float(x.std()), rel=0.01)
    assert not row["still"]


def test_nothing_is_clipped_in_silence() -> None:
    x = normal(500, 4)
    record = coverage(make(TwoReaders), {"x": x}, percentile=90.0)
    (text,) = said(record, "clipped")
    assert text == ("more than 1% of the input of layers 'head', 'left' is clipped, 10.0% of the first: --ranges "
                    "percentile or minmax clips less")
    assert all(row["clipped"] == 0.0 for row in coverage(make(TwoReaders), {"x": x}, ranges="minmax")["tensors"])


def test_a_component_that_no_sample_reaches() -> None:
    record = coverage(towers(), {"image": np.zeros((300, 8), np.float32), "text": normal(300, 6)})
    assert record["components"]["eyes"]["still"] == 2
    assert record["components"]["ears"]["still"] == 0
    assert record["findings"][0] == {"kind": "unreached", "where": "eyes", "text": (
        "component 'eyes' is not reached: the input of layers 'image.0', 'image.2' is the same for every sample: add "
        "samples that differ in what it reads, or keep it in float")}  # fmt: skip
    assert said(record, "constant") == []       # that its input is zero is said with the component
    assert said(record, "constant input") == [
        "sensor input 'image' is zero in all 300 samples used: add samples that differ in it, unless it never changes "
        "in use"]  # fmt: skip
    kept = coverage(towers(), {"image": np.zeros((300, 8), np.float32), "text": normal(300, 6)},
                    keep_float=("image.*",))  # fmt: skip
    assert said(kept, "unreached") == []


@pytest.mark.parametrize(("bias", "said_of_it"), [(-1e3, "nothing but zeros"), (None, "one value alone")])
def test_activations_that_are_zero_or_constant(bias: float | None, said_of_it: str) -> None:
    model = make(TwoReaders)
    weights = {name: value.clone() for name, value in model.weights.items()}
    if bias is None:
        weights["left.weight"] *= 0
        weights["right.weight"] *= 0
        weights["left.bias"][:] = weights["right.bias"][:] = 1.0
    else:
        weights["left.bias"][:] = bias      # relu of a sum far below zero
    record = coverage(with_weights(model, weights), {"x": normal(300, 4)})
    (text,) = said(record, "unreached")     # of component head, which is but this layer
    assert "component 'head' is not reached: the input of layer 'head' is the same for every sample" in text
    one = dataclasses.replace(with_weights(model, weights), components={"all": ""})
    (text,) = said(coverage(one, {"x": normal(300, 4)}), "constant")
    assert text == (f"the input of layer 'head' is {said_of_it}: add samples that reach what is before, or keep it in "
                    "float; a range of one value clips all others")
    quantized = quantize(one, open_set([{"x": normal(300, 4)}], one.inputs), scheme="x86-vnni").model
    feed = {"x": normal(2, 4, seed=1)}
    np.testing.assert_allclose(run_program(convert(quantized), feed)["output"], run_program(one, feed)["output"],
                               atol=2e-2)  # fmt: skip


def test_one_enormous_value_names_its_sample() -> None:
    x = normal(300, 4)
    x[17, 2] = 1e6
    for settings in ({}, {"ranges": "minmax"}):
        record = coverage(make(TwoReaders), {"x": x}, **settings)
        (text,) = said(record, "outlier")
        assert text.startswith("sample 17 of 'known' reaches 1e+06 in the input of layer 'left' and of 1 more, all "
                               f"others at most {np.abs(np.delete(x, 17, 0)).max():.4g}: leave out what is broken")
    x[40, 1] = -2e6
    text = said(coverage(make(TwoReaders), {"x": x}), "outlier")[0]
    assert text.startswith("samples 17, 40 of 'known' reach 1e+06 in the input of layer 'left'")
    high = quantize(make(TwoReaders), open_set([{"x": x}], make(TwoReaders).inputs), scheme="x86-vnni",
                    config=QuantizeConfig(ranges="mse"))  # fmt: skip
    assert high.coverage["tensors"][0]["clipped"] <= 2 / 1200


@pytest.mark.parametrize(("ranges", "count", "along"), [
    ("minmax", 6000, True), ("mse", 300, True), ("percentile", 300, True), ("percentile", 6000, False),
    ("entropy", 300, False),
])  # fmt: skip
def test_the_remedy_for_an_outlier_is_one_that_helps(ranges: str, count: int, along: bool) -> None:
    """Of four times 6,000 values the percentile leaves out one at either end, of 1,200 none."""
    x = normal(count, 4)
    x[17, 2] = 1e3
    text = said(coverage(make(TwoReaders), {"x": x}, ranges=ranges, samples=count), "outlier")[0]
    assert text.partition(": leave out what is broken")[2].startswith(
        ", or use --ranges entropy: the range of layer" if along else "; the ranges that were chosen do without it")


def test_the_place_of_an_outlier_is_that_in_the_whole_set() -> None:
    x = normal(300, 4)
    x[181, 2] = 1e6         # (2i + 1) * 300 / 60 has no 181, but i * 3 + 1 has
    record = coverage(make(TwoReaders), {"x": x}, samples=100)
    assert said(record, "outlier")[0].startswith("sample 181 of 'known' reaches 1e+06")


def test_few_values() -> None:
    (text,) = said(coverage(make(TwoReaders), {"x": normal(100, 4)}), "few values")
    assert text == "layers 'head', 'left' saw fewer than 1,024 values, the first 300: use more samples"
    assert said(coverage(make(TwoReaders), {"x": normal(3, 4)}), "few samples") == [
        "ranges come of 3 samples of 'known': use at least 16, better a few hundred"]


def test_a_channel_of_zeros_in_the_weights() -> None:
    model = make(TwoReaders)
    weights = {name: value.clone() for name, value in model.weights.items()}
    weights["left.weight"][1] = 0.0
    zero = with_weights(model, weights)
    feed = {"x": normal(300, 4)}
    record = coverage(zero, feed)
    assert said(record, "zero channels") == [
        "1 of 3 output channels of layer 'left' have weights of zeros: they are exact in int8 and cost what others do; "
        "compress prune removes them"]
    int8 = convert(quantize(zero, open_set([feed], zero.inputs), scheme="x86-vnni").model)
    out = run_program(int8, {"x": feed["x"][:2]})["output"]
    np.testing.assert_allclose(out, run_program(zero, {"x": feed["x"][:2]})["output"], atol=0.05)


def test_nan_in_the_middle_of_the_set_names_the_sample() -> None:
    class Root(TwoReaders):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sqrt(self.left(x).abs() - 0 * x[:, :3] + x[:, :3].clamp(max=-5) + 5))

    model = export_model(Root(), name="root", example={"x": np.zeros((2, 4), np.float32)})
    x = normal(100, 4).clip(-3, 3)
    x[61] = -100.0                          # the root of a negative number
    with pytest.raises(CompressError, match=r"input of layer 'head' is not finite on calibration set 'known', sample "
                       r"61: values of shape \(3,\) hold NaN: .* check that sample and the data's scaling, or keep"):
        coverage(model, {"x": x})
    coverage(model, {"x": x}, keep_float=("head",))


def test_a_layer_that_two_towers_share_has_a_range_in_each() -> None:
    example = {"left": np.zeros((2, 4), np.float32), "right": np.zeros((2, 4), np.float32)}
    model = export_model(Shared(), name="shared", example=example)
    feed = {"left": normal(300, 4), "right": 10 * normal(300, 4, seed=1)}
    result = quantize(model, open_set([feed], model.inputs), scheme="x86-vnni", config=QuantizeConfig(ranges="minmax"))
    assert [(row["layer"], row["range"][0] <= row["low"], row["high"]) for row in result.coverage["tensors"]] == [
        ("both", True, feed["left"].max()), ("both", True, feed["right"].max())]
    assert result.coverage["findings"] == []
    small = {name: value[:5] for name, value in feed.items()}
    for name, value in run_program(convert(result.model), small).items():
        largest = np.abs(feed[name.removeprefix("of_")]).max()
        np.testing.assert_allclose(value, run_program(model, small)[name], atol=0.02 * largest)
