"""Ranges by node, against what the program computes node by node."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from torch import Tensor

from calibration import Histogram, open_set
from compress.errors import CompressError
from compress.model import Model
from compress.quantize import QuantizeConfig, quantize
from compress.quantize import collect as collect_module
from compress.quantize.annotate import find_operators
from compress.quantize.collect import Collector, collect
from compress.quantize.schemes import get_scheme
from compress.saving import export_model
from tests.compress.quantize.networks import TwoReaders, make, samples


def ranges(model: Model, x: np.ndarray, config: QuantizeConfig) -> dict[str, tuple[float, float]]:
    module = model.graph.program.module(check_guards=False)
    data = open_set([{"x": x}], model.inputs, name="known")
    collector = Collector(module, find_operators(module), model.graph, "known")
    collect(collector, model.inputs, data)
    return collector.ranges(config, get_scheme("x86-vnni"))


def test_minmax_by_hand() -> None:
    model = make(TwoReaders)
    x = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32)  # more than two batches
    w = {name: value.numpy() for name, value in model.weights.items()}
    hidden = np.maximum(
        x @ w["left.weight"].T + w["left.bias"] + x @ w["right.weight"].T + w["right.bias"], 0
    )
    found = ranges(model, x, QuantizeConfig(ranges="minmax"))
    assert set(found) == {"x", "relu"}
    assert found["x"] == (x.min(), x.max())
    np.testing.assert_allclose(found["relu"], (0.0, hidden.max()), rtol=1e-6)


def test_percentile_on_known_data() -> None:
    """4000 values 1/1000 .. 4 without sign: 99 % drops the largest 40, to the edge of a bin of width 1/64."""
    model = make(TwoReaders)
    x = (np.arange(1, 4001, dtype=np.float32) / 1000).reshape(1000, 4)
    x[0, 0] = 3.9999  # below 4, so that the histogram ends there
    x[-1, -1] = 3.9999
    low, high = ranges(model, x, QuantizeConfig(percentile=99.0))["x"]
    assert low == 0.0
    assert 3.96 <= high <= 3.96 + 2 / 64
    assert ranges(model, x, QuantizeConfig(percentile=100.0))["x"][1] == pytest.approx(3.9999)


def test_each_tensor_is_collected_once_a_batch() -> None:
    model = make(TwoReaders)
    seen: list[int] = []
    update = Histogram.update

    def counted(self: Histogram, array: np.ndarray, ends: tuple[float, float]) -> None:
        seen.append(array.size)
        update(self, array, ends)

    with mock.patch.object(Histogram, "update", counted):
        ranges(model, np.ones((8, 4), np.float32), QuantizeConfig())
    assert seen == [8 * 4, 8 * 3]  # x, which two layers read, and relu


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_activations(value: float) -> None:
    model = make(TwoReaders)
    low, high = ranges(model, np.full((4, 4), value, np.float32), QuantizeConfig())["x"]
    assert (low, high) == {0.0: (0.0, 1.0), 2.5: (0.0, 2.5), -2.5: (-2.5, 0.0)}[value]


def test_an_activation_that_is_not_finite_names_layer_and_set() -> None:
    class Huge(TwoReaders):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.left(x) * 3e38 * 10)

    model = export_model(Huge(), name="huge", example={"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(CompressError, match=r"input of layer 'head' is not finite .* calibration set 'noise'"):
        quantize(model, samples(model), scheme="x86-vnni")


def test_one_of_no_module_is_called_what_it_is() -> None:
    class Bare(TwoReaders):
        def forward(self, x: Tensor) -> Tensor:
            return (self.left(x) * 3e38 * 10) @ self.head.weight.T

    model = export_model(Bare(), name="bare", example={"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(CompressError, match=r"input of layer '\(linear\)' is not finite on calibration set 'noise'"):
        quantize(model, samples(model), scheme="x86-vnni")


def test_progress_counts_samples() -> None:
    model = make(TwoReaders)
    told: list[tuple[int, int]] = []
    quantize(model, samples(model, 70), scheme="x86-vnni", progress=lambda done, total: told.append((done, total)))
    assert told == [(32, 70), (64, 70), (70, 70)]


def test_large_tensors_are_collected_a_few_samples_at_a_time() -> None:
    """The largest has 4 values a sample, whatever the weights have: of 23 values there is room for 5 samples."""
    model = make(TwoReaders)
    told: list[int] = []
    with mock.patch.object(collect_module, "LARGEST", 23):
        few = quantize(model, samples(model, 12), scheme="x86-vnni", progress=lambda done, _: told.append(done))
    assert told == [5, 10, 12]
    many = quantize(model, samples(model, 12), scheme="x86-vnni")
    assert few.model.quantization is not None
    assert many.model.quantization is not None
    for name, ends in many.model.quantization.ranges["forward"].items():
        np.testing.assert_allclose(few.model.quantization.ranges["forward"][name], ends, rtol=0.02)
    with mock.patch.object(collect_module, "LARGEST", 1):
        quantize(model, samples(model, 2), scheme="x86-vnni", progress=lambda done, _: told.append(done))
    assert told == [5, 10, 12, 1, 2]
