"""What tests of accuracy recovery share: a model of a module, samples for it, and how near int8 comes to float."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from calibration import CalibrationSet, open_set
from compress.model import Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.feeds import kept_feeds
from compress.quantize.prepare import convert
from compress.quantize.samples import samples_of
from compress.saving import export_model
from runtimes.spec import Feed


class Named(nn.Module):
    """A module of torch's own, whose input is called ``x``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)  # type: ignore[no-any-return]


def model_of(module: nn.Module, *shape: int) -> Model:
    """Of a module whose only input is ``x``; ``shape`` is that of a sample."""
    example = {"x": np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)}
    return dataclasses.replace(export_model(module.eval(), name=type(module).__name__, example=example), module=None)


def data_of(model: Model, x: np.ndarray) -> CalibrationSet:
    return open_set([{"x": np.asarray(x, np.float32)}], model.inputs, name="known")


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def feeds(model: Model, x: np.ndarray) -> dict[str, list[Feed]]:
    return kept_feeds(model, samples_of(model, data_of(model, x), len(x)))


MINMAX = QuantizeConfig(ranges="minmax")


def int8(model: Model, x: np.ndarray, config: QuantizeConfig = MINMAX, scheme: str = "x86-vnni") -> Model:
    """``model`` quantized on ``x``; in scheme ``x86`` weights have seven bits."""
    return quantize(model, data_of(model, x), scheme=scheme, config=config).model


def sqnr(model: Model, x: np.ndarray, found: Model) -> float:
    """Signal to quantization noise of the int8 program of ``found`` against ``model``, in decibels."""
    wanted, given = (run_program(one, {"x": x})["output"] for one in (model, convert(found)))
    return float(10 * np.log10((wanted**2).sum() / ((given - wanted) ** 2).sum()))


def same_function(found: Model, expected: Model, x: np.ndarray) -> None:
    value = run_program(expected, {"x": x})["output"]
    np.testing.assert_allclose(run_program(found, {"x": x})["output"], value, atol=2e-6 * np.abs(value).max())


def integers(model: Model, name: str, high: int = 127) -> np.ndarray:
    """The integers that the int8 program has for the weight ``name``; each output channel has a different scale."""
    program = convert(model).graph.program
    held = [t for t in (*program.state_dict.values(), *program.constants.values()) if t.dtype == torch.int8]
    weight = model.weights[name].detach()
    scales = weight.abs().flatten(1).amax(1) / high
    near, rows = float(scales.max()), weight.flatten(1)
    found = [t for t in held if t.shape == weight.shape
             and torch.allclose(t.flatten(1) * scales[:, None], rows, atol=near)]  # fmt: skip
    assert len(found) == 1
    return found[0].numpy()
