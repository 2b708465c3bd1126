"""The stage: its configuration, its record, its determinism, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.modelfile import read_model, write_model
from compress.quantize import QuantizeConfig, quantize
from compress.saving import export_model
from tests.compress.quantize.networks import Everything, Normed, TwoReaders, make, samples


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"percentile": 50.0}, r"percentile is 50.0: it must be in \(50, 100\]"),
        ({"percentile": 100.1}, "percentile is 100.1"),
        ({"percentile": float("nan")}, "percentile is nan"),
        ({"samples": 0}, "samples is 0: at least one calibration sample"),
        ({"ranges": "kl"}, "ranges is 'kl': expected 'minmax', 'percentile', 'mse' or 'entropy'"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        QuantizeConfig(**settings)  # type: ignore[arg-type]


def test_the_record_counts_and_names() -> None:
    model = dataclasses.replace(make(Everything), components={"eyes": "stem", "mind": "head"})
    result = quantize(model, samples(model), scheme="x86", config=QuantizeConfig(keep_float=("plain",)))
    record = result.to_json()
    assert (record["scheme"], record["ranges"], record["samples"]) == ("x86", "percentile", 40)
    assert (record["int8"], record["float"]) == (5, 1)
    assert [(o["path"], o["component"], o["precision"]) for o in record["operators"]] == [
        ("stem", "eyes", "int8"), ("along", "other", "int8"), ("tokens", "other", "int8"), ("plain", "other", "float"),
        ("head.0", "mind", "int8"), ("head.2", "mind", "int8"),
    ]  # fmt: skip
    assert record["operators"][3]["reason"] == "kept float by 'plain'"
    assert result.model.quantization is not None
    assert result.model.quantization.keep_float == ("plain",)
    assert set(result.model.quantization.ranges) == {"forward"}


def test_two_runs_are_equal_to_the_byte_and_the_input_is_left_alone(tmp_path: Path) -> None:
    model = make(Everything)
    before = {name: value.clone() for name, value in model.weights.items()}
    write_model(model, tmp_path / "before.pt")
    files = []
    for index in range(2):
        result = quantize(model, samples(model), scheme="x86-vnni")
        write_model(result.model, tmp_path / f"{index}.pt")
        files.append((tmp_path / f"{index}.pt").read_bytes())
    assert files[0] == files[1]
    assert read_model(tmp_path / "0.pt").quantization == result.model.quantization
    write_model(model, tmp_path / "after.pt")
    assert (tmp_path / "after.pt").read_bytes() == (tmp_path / "before.pt").read_bytes()
    assert all(torch.equal(before[name], value) for name, value in model.weights.items())
    assert model.quantization is None


def test_the_ranges_do_not_depend_on_how_the_set_is_split() -> None:
    model = make(TwoReaders)
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    whole, parts = (
        quantize(model, open_set(feeds, model.inputs, name="x"), scheme="x86-vnni").model.quantization
        for feeds in ([{"x": x}], [{"x": x[:7]}, {"x": x[7:]}])
    )
    assert whole is not None
    assert parts is not None
    assert whole.ranges == parts.ranges


def test_at_most_the_samples_asked_for_are_used() -> None:
    model = make(TwoReaders)
    x = np.full((10, 4), 1000.0, np.float32)
    x[1::2] = np.arange(1, 6)[:, None]         # every other one, from the middle of the first two on
    data = open_set([{"x": x}], model.inputs, name="x")
    result = quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(samples=5, ranges="minmax"))
    assert result.samples == 5
    assert result.model.quantization is not None
    assert result.model.quantization.ranges["forward"]["x"] == (0.0, 5.0)
    assert result.model.quantization.settings == {
        "ranges": "minmax", "percentile": 99.99, "samples": 5, "data": data.digest,
    }  # fmt: skip


def test_a_folded_model_carries_no_batch_norm_any_more() -> None:
    model = make(Normed)
    result = quantize(model, samples(model), scheme="x86-vnni")
    assert result.model.factory is None  # it would build the batch normalisation again
    assert set(result.model.weights) == {"conv.weight", "conv.bias"}
    assert "norm.weight" in model.weights


def test_quantizing_twice_is_refused() -> None:
    model = make(TwoReaders)
    once = quantize(model, samples(model), scheme="x86-vnni").model
    with pytest.raises(CompressError, match="model 'TwoReaders' is quantized already: quantize the float model"):
        quantize(once, samples(model), scheme="x86-vnni")


def test_an_unknown_scheme_is_refused_before_any_work() -> None:
    model = make(TwoReaders)
    with pytest.raises(CompressError, match="unknown quantization scheme 'int4'"):
        quantize(model, samples(model), scheme="int4")


def test_a_model_with_nothing_to_quantize_is_refused_with_the_reason() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    square = export_model(Square(), name="square", example={"x": np.zeros((2, 4), np.float32)})
    data = open_set([{"x": np.ones((2, 4), np.float32)}], square.inputs, name="ones")
    with pytest.raises(CompressError, match=r"nothing in model 'square' .*: it has no operator with"):
        quantize(square, data, scheme="x86-vnni")
    model = make(TwoReaders)
    with pytest.raises(CompressError, match=r"nothing in model .*left: kept float by '\*'; right: kept float by '\*'"):
        quantize(model, samples(model), scheme="x86-vnni", config=QuantizeConfig(keep_float=("*",)))
