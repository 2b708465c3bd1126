"""Heads that have a bias outside their attention, or that layers hand on: T5's and Swin's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from calibration import CalibrationSet, open_set
from compress.export import export
from compress.model import Graph, Model
from compress.program import model_runner
from compress.prune import PruneConfig, PruneResult, load_into, prune
from compress.prune.channels import Place
from compress.prune.groups import Group
from compress.prune.structured import find_groups
from compress.quantize import quantize
from compress.saving import export_model
from compress.targets import get_target
from runtimes.backends import open_engine

HEADS = tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(6))
COLUMNS = tuple((head,) for head in range(6))


class Attention(nn.Module):
    """Six heads of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.d_head = 6, 4
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class Biased(nn.Module):
    """Two layers of attention over five places; ``kind`` says what their masks are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.head = kind, Attention(), Attention(), nn.Linear(24, 3)
        if kind == "table":                      # of the distance of two places, as in T5
            self.bias: nn.Module | nn.Parameter = nn.Embedding(9, 6)
        elif kind == "parameter":                # as in Swin: of each layer its own, by distance
            self.bias, self.other = (nn.Parameter(torch.randn(9, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.arange(5)[:, None] - torch.arange(5) + 4
        if self.kind == "table":
            first = second = self.bias(distance).permute(2, 0, 1)
        elif self.kind == "parameter":
            first, second = (held[distance].permute(2, 0, 1) for held in (self.bias, self.other))
        else:                                    # made by the first for all of its heads, as in T5's cross-attention
            first = second = x.new_zeros(1, self.a.n_heads, 5, 5)
        x = x + self.a(x, first)
        return self.head(x + self.b(x, second))


def groups_of(module: nn.Module) -> tuple[dict[str, Group], dict[str, str]]:
    calls, feed = {"forward": Graph()}, {"forward": [{"x": torch.randn(3, 5, 24)}]}
    groups, skipped = find_groups(module.eval(), calls, feed, PruneConfig(structures=("heads",)))
    return {group.name: group for group in groups}, skipped


def places(group: Group) -> dict[Place, tuple[tuple[int, ...], ...]]:
    return {edit.place: edit.index for edit in group.edits}


def heads_of(*paths: str) -> dict[Place, tuple[tuple[int, ...], ...]]:
    return {Place(f"{path}.{name}", "in" if name == "o" else "out"): HEADS for path in paths for name in "qkvo"}


def test_a_table_that_all_layers_read_ties_their_heads() -> None:
    groups, skipped = groups_of(Biased("table"))
    assert places(groups.pop("a+b")) == {**heads_of("a", "b"), Place("bias", "out"): COLUMNS}
    assert not groups
    assert "bias" not in skipped


def test_a_parameter_of_each_layer_goes_with_its_heads() -> None:
    groups, _ = groups_of(Biased("parameter"))
    assert {name: places(group) for name, group in groups.items()} == {
        "a": {**heads_of("a"), Place("", "out", "bias"): COLUMNS},
        "b": {**heads_of("b"), Place("", "out", "other"): COLUMNS}}


def test_heads_that_cannot_go_alone_go_together() -> None:
    groups, skipped = groups_of(Biased("handed"))
    assert places(groups.pop("a+b")) == heads_of("a", "b")
    assert not groups
    assert not {"a", "b"} & skipped.keys()


class Captioned(nn.Module):
    """A picture and a text, whose tower is transformers' T5."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
        self.text = transformers.T5EncoderModel(transformers.T5Config(
            vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **sizes))
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU())
        self.head = nn.Linear(64, 5)

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.text(input_ids=tokens, attention_mask=mask).last_hidden_state * mask[..., None]
        return self.head(torch.cat([self.image(image), states.sum(1) / mask.sum(1, keepdim=True)], -1))


def captioned() -> tuple[Model, CalibrationSet]:
    network = Captioned().eval()
    for parameter in network.text.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    mask = torch.ones(8, 7, dtype=torch.long)
    mask[::2, 5:] = 0
    feed = {"image": torch.randn(8, 3, 8, 8), "tokens": torch.randint(0, 60, (8, 7)), "mask": mask}
    model = export_model(network, name="captioned", example={name: value[:2] for name, value in feed.items()})
    return model, open_set([{name: value.numpy() for name, value in feed.items()}], model.inputs, name="noise")


def pruned(model: Model, data: CalibrationSet) -> PruneResult:
    structures = ("channels", "heads", "width")
    return prune(model, data, PruneConfig(params=0.5, structures=structures, round_to=4, importance="magnitude"))


def test_t5_loses_heads_channels_and_width() -> None:
    model, data = captioned()
    result = pruned(model, data)
    assert result.check < 1e-5
    layers = [f"text.encoder.block.{number}.layer.0.SelfAttention" for number in (0, 1)]
    (heads,) = (group for group in result.groups if group.kind == "heads")
    assert (heads.name, heads.before) == ("+".join(layers), 4)
    assert heads.after < 4
    assert {group.name for group in result.groups if group.kind == "width"} == {"text.encoder.embed_tokens"}
    assert result.model.weights[f"{layers[0]}.relative_attention_bias.weight"].shape == (8, heads.after)
    again, feed = load_into(Captioned(), result.model), data.first(3)
    with torch.no_grad():
        expected = again(**{name: torch.from_numpy(np.array(value)) for name, value in feed.items()})
    np.testing.assert_allclose(model_runner(result.model)(feed)["output"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
def test_engines_of_a_pruned_t5(tmp_path: Path, target: str) -> None:
    model, data = captioned()
    small = pruned(model, data).model
    feed = data.first(3)
    expected = model_runner(small)(feed)["output"]
    engine = export(small, get_target(target), tmp_path / "fp32")
    np.testing.assert_allclose(open_engine(engine).run(feed)["output"], expected, rtol=1e-4, atol=1e-5)
    int8 = quantize(small, data, scheme="x86-vnni").model
    engine = export(int8, get_target(target), tmp_path / "int8")
    np.testing.assert_allclose(open_engine(engine).run(feed)["output"], expected, atol=0.1 * np.abs(expected).max())
