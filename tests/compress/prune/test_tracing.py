from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.channels import Place
from compress.prune.tracing import Tracer, TracingError


def readers(module, calls, x, path, width, tensor=""):
    return Tracer(module.eval(), calls, {"forward": [{"x": x}]}).readers(Place(path, "out", tensor), width)


def test_through_concatenation_and_addition(networks, calls):
    found = readers(networks.Branches(), calls, torch.randn(2, 8), "b", 16)
    assert not found.mixed
    assert not found.reaches_output
    assert found.read[3] == {"join": (27,), "side": (3,)}
    assert readers(networks.Branches(), calls, torch.randn(2, 8), "c", 40).read[39] == {"join": (39,)}


def test_through_flattening(networks, calls):
    found = readers(networks.Convolutions(), calls, torch.randn(1, 1, 4, 4), "two", 8)
    assert found.read[2] == {"last": tuple(range(32, 48))}


def test_a_batch_norm_reads_as_a_layer(networks, calls):
    assert readers(networks.Convolutions(), calls, torch.randn(1, 1, 4, 4), "one", 16).read[4] == {"norm": (4,)}


def test_a_value_and_its_gate(networks, calls):
    found = readers(networks.Gated(), calls, torch.randn(1, 8), "up", 48)
    assert found.read[5] == found.read[24 + 5] == {"down": (5,)}


def test_channels_that_a_softmax_mixes_are_all_read_by_all(networks, calls):
    found = readers(networks.Softmax(), calls, torch.randn(2, 8), "up", 32)
    assert found.read[0] == found.read[31] == {"down": tuple(range(32))}


def test_too_many_mixed_channels_are_not_told_apart(calls):
    module = nn.ModuleDict({"up": nn.Linear(2, 600), "down": nn.Linear(600, 2)})
    module.forward = lambda x: module["down"](module["up"](x).softmax(-1))
    assert readers(module, calls, torch.randn(2, 2), "up", 600).mixed


def test_attention_mixes_the_channels_of_a_head(networks, calls):
    module = networks.Attention().eval()
    assert readers(module, calls, torch.randn(2, 5, 32), "q", 32).read[9] == {"out": tuple(range(8, 16))}
    assert readers(module, calls, torch.randn(2, 5, 32), "v", 32).read[9] == {"out": (9,)}


def test_hidden_units_of_both_directions_and_of_the_last_state(networks, calls):
    found = readers(networks.Sequence(), calls, torch.randint(0, 20, (2, 5)), "rnn", 16)
    assert found.read[3] == {"up": (3, 19), "last": (24 + 3, 24 + 16 + 3)}


def test_parameters_that_are_added(networks, calls):
    x = torch.randint(0, 12, (2, 5))
    found = readers(networks.Tower(), calls, x, "", 32, "position")
    assert found.read[7] == {"blocks.0.norm1": (7,), "blocks.0.norm2": (7,), "blocks.1.norm1": (7,),
                             "blocks.1.norm2": (7,), "norm": (7,)}


def test_what_reaches_an_output_is_seen(networks, calls):
    assert readers(networks.Perceptron(), calls, torch.randn(2, 8), "last", 4).reaches_output


def test_all_at_once_is_what_each_is_alone(networks, calls):
    for module, x in ((networks.Branches(), torch.randn(2, 8)), (networks.Tower(), torch.randint(0, 12, (2, 5))),
                      (networks.Gated(), torch.randn(2, 8)), (networks.Sequence(), torch.randint(0, 20, (2, 5)))):
        tracer = Tracer(module.eval(), calls, {"forward": [{"x": x}]})
        widths = {"a": 24, "b": 16, "c": 40, "join": 4, "side": 4, "up": 48, "down": 4, "table": 32, "norm": 32,
                  "blocks.0.down": 32, "blocks.1.norm2": 32, "rnn": 16, "last": 4}
        sources = {Place(path, "out"): width for path, width in widths.items() if tracer.called(path)}
        if isinstance(module, networks.Tower):
            sources[Place("", "out", "start")] = 32
        if isinstance(module, networks.Sequence):
            sources |= {Place("up", "out"): 24, Place("table", "out"): 16}
        for source, found in tracer.trace(sources).items():
            assert found == tracer.readers(source, sources[source])


def test_the_module_is_left_as_it_was(networks, calls):
    module, x = networks.Tower().eval(), torch.randint(0, 12, (2, 5))
    before, answer = {name: id(p) for name, p in module.named_parameters()}, module(x)
    readers(module, calls, x, "", 32, "position")
    assert {name: id(p) for name, p in module.named_parameters()} == before
    assert not any("forward" in layer.__dict__ for layer in module.modules())
    assert torch.equal(module(x), answer)


def test_a_model_that_does_not_run_is_an_error(networks, calls):
    with pytest.raises(CompressError, match=r"graph 'forward' fails on the samples, .* RuntimeError: mat1"):
        Tracer(networks.Perceptron(), calls, {"forward": [{"x": torch.randn(2, 7)}]})


class Fickle(nn.Module):
    """Runs a layer again, or fails, where a value is large."""

    def __init__(self, fails):
        super().__init__()
        self.up, self.down, self.fails = nn.Linear(4, 8), nn.Linear(8, 8), fails

    def forward(self, x):
        y = self.up(x)
        if y.abs().max() > 1:
            if self.fails:
                raise ValueError("too large")
            y = self.down(y)
        return self.down(y)


@pytest.mark.parametrize(
    ("fails", "message"), [(True, "ValueError: too large"), (False, "layer 'down' runs more often")])
def test_a_model_that_computes_otherwise_on_other_values(calls, fails, message):
    module = Fickle(fails)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.1)
    with pytest.raises(TracingError, match=message):
        readers(module, calls, torch.randn(2, 4), "up", 8)
