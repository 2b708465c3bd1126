"""Layers switched between int8 and float, against the same model quantized anew with the others kept in float."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from torch import nn

from compress.ladder import torch_runner
from compress.model import Model
from compress.quantize.parts import layers_of
from compress.quantize.switches import Switches
from tests.compress.quantize.networks import Everything, TwoReaders, quantized, samples


def kept(model: Model, floats: list[str]) -> Model:
    assert model.quantization is not None
    return dataclasses.replace(model, quantization=dataclasses.replace(model.quantization, keep_float=tuple(floats)))


@pytest.mark.parametrize("network", [TwoReaders, Everything])
def test_to_the_bit_what_keep_float_gives(network: type[nn.Module]) -> None:
    """Also where two layers read one activation, of which one is in int8 and one in float."""
    model = quantized(network)
    switches = Switches(model, layers_of(model))
    (feed,) = samples(model, 8).batches(8)
    switches.only(())
    plain = torch_runner(dataclasses.replace(model, quantization=None))(feed)["output"]
    np.testing.assert_array_equal(switches.run(feed)["output"], plain)
    switches.only(switches.paths)
    np.testing.assert_array_equal(switches.run(feed)["output"], torch_runner(model)(feed)["output"])
    for path in switches.paths:
        switches.only((path,))
        alone = kept(model, [other for other in switches.paths if other != path])
        np.testing.assert_array_equal(switches.run(feed)["output"], torch_runner(alone)(feed)["output"])
        np.testing.assert_array_equal(switches.outputs_of(feed)["output"], switches.run(feed)["output"])
