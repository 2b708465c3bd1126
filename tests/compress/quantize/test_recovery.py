"""The options of quantization that recover accuracy, alone and together, on models of one and of several graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import open_set
from compress.errors import CompressError
from compress.model import Model
from compress.modelfile import read_model, write_model
from compress.program import model_runner
from compress.quantize import QuantizeConfig, quantize, rounding
from compress.quantize.prepare import convert
from compress.weights import with_weights
from tests.compress import captioner
from tests.compress.quantize.recovered import data_of, int8, noise, sqnr
from tests.compress.quantize.test_graphs import arrays, samples, towers
from tests.compress.quantize.test_smooth import outliers


def uneven() -> Model:
    """The same behind ReLU: hidden channels of sizes a thousand apart, which what reads them makes up for."""
    model = outliers()
    sizes = 10 ** torch.linspace(-3, 0, len(model.weights["up.weight"]))
    return with_weights(model, {
        "up.weight": model.weights["up.weight"].detach() * sizes[:, None],
        "up.bias": model.weights["up.bias"].detach() * sizes,
        "down.weight": model.weights["down.weight"].detach() / sizes,
    })  # fmt: skip


EVERYTHING = QuantizeConfig(equalize=True, smooth=0.5, rounding="learned", correct_bias=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "ITERATIONS", 50)


@pytest.mark.parametrize(("config", "record"), [
    (QuantizeConfig(equalize=False), {}), (QuantizeConfig(), {"equalized": 1}),
    (QuantizeConfig(equalize=False, smooth=0.5), {"smoothed": 1}),
    (QuantizeConfig(equalize=False, rounding="gptq"), {"rounded": 2}),
    (QuantizeConfig(equalize=False, correct_bias=True), {"corrected": 2}),
    (EVERYTHING, {"equalized": 1, "smoothed": 1, "rounded": 2, "corrected": 2}),
])  # fmt: skip
def test_the_record_says_what_was_done_for_how_many_layers(config: QuantizeConfig, record: dict[str, int]) -> None:
    model = uneven()
    result = quantize(model, data_of(model, noise(16, 32)), scheme="x86-vnni", config=config)
    assert result.recovery == result.to_json()["recovery"] == record


def test_together_they_come_nearer_than_the_best_alone() -> None:
    model, x = uneven(), noise(64, 32)
    alone = [sqnr(model, x, int8(model, x, QuantizeConfig(**config))) for config in (
        {"equalize": True}, {"equalize": False, "smooth": 0.5}, {"equalize": False, "rounding": "learned"},
        {"equalize": False, "correct_bias": True})]  # fmt: skip
    assert sqnr(model, x, int8(model, x, EVERYTHING)) > max(alone)


def test_a_model_file_keeps_all_of_it(tmp_path: Path) -> None:
    model, x = outliers(), noise(16, 32)
    found = int8(model, x, EVERYTHING)
    write_model(found, tmp_path / "model.pt")
    read = read_model(tmp_path / "model.pt")
    np.testing.assert_array_equal(model_runner(convert(read))({"x": x})["output"],
                                  model_runner(convert(found))({"x": x})["output"])  # fmt: skip


def near(found: Model, model: Model) -> None:
    given = model_runner(convert(found))(arrays())
    for name, value in model_runner(model)(arrays()).items():
        np.testing.assert_allclose(given[name], value, atol=0.03 * np.abs(value).max())


def test_several_graphs() -> None:
    config = dataclasses.replace(EVERYTHING, rounding="gptq")
    result = quantize(towers(), samples(towers()), scheme="x86-vnni", config=config)
    assert result.recovery == {"smoothed": 0, "rounded": 3, "corrected": 3}
    near(result.model, towers())
    each = {"image": samples(towers(), ("image",)), "text": samples(towers(), ("tokens",)),
            "marker": samples(towers())}  # fmt: skip
    same = quantize(towers(), each, scheme="x86-vnni", config=config).model
    for name, value in result.model.weights.items():
        assert torch.equal(same.weights[name], value)


def test_a_decoder_and_its_encoder() -> None:
    model = captioner.model()
    data = open_set([{"image": captioner.pictures(6)}], model.inputs, name="pictures")
    config = QuantizeConfig(equalize=True, smooth=0.5, rounding="gptq", correct_bias=True)
    result = quantize(model, data, scheme="x86-vnni", config=config)
    assert result.recovery == {"smoothed": 0, "rounded": 6, "corrected": 6}
    words = model_runner(model)({"image": captioner.pictures(6)})["caption"]
    found = model_runner(convert(result.model))({"image": captioner.pictures(6)})["caption"]
    assert (found[:, :2] == words[:, :2]).mean() > 0.5


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(CompressError, match=r"smooth is 1.5: it must be in \[0, 1\]"):
        QuantizeConfig(smooth=1.5)
    with pytest.raises(CompressError, match="rounding is 'up': expected 'nearest', 'learned' or 'gptq'"):
        QuantizeConfig(rounding="up")  # type: ignore[arg-type]
