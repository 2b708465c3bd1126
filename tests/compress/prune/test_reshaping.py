"""Heads of attention whose code takes the width of its input for that of its heads, as most ViTs' does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration import open_set
from compress.errors import CompressError
from compress.factory import build_module
from compress.loading import load
from compress.model import Input
from compress.modelfile import write_model
from compress.program import program_runner
from compress.prune import PruneConfig, load_into, prunable, prune
from compress.prune.reshaping import apply_reshaping, let_reshape, reshaping
from compress.saving import save
from tests.compress.huggingface.folders import bundle, opened


class Vision(nn.Module):
    """As in timm: one layer for queries, keys and values; the width is read off the input."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scaled = 4, scaled
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        scale = (width // self.num_heads) ** -0.5 if self.scaled else 8**-0.5
        found = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.proj(found.transpose(1, 2).reshape(batch, length, width))


class Language(nn.Module):
    """As in nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = 4, 32
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (one.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for one in (q, k, v))
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(found.transpose(1, 2).contiguous().view(b, t, c))


class Network(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.head = attention, nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x + self.attention(x)).mean(1)
        return scores


def build(*, kind: str = "vision") -> nn.Module:
    torch.manual_seed(0)
    made = {"vision": Vision, "scaled": lambda: Vision(True), "language": Language}[kind]()
    return Network(made).eval()


def features(count: int, length: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, length, 32)).astype(np.float32)


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_what_is_left_computes_what_the_whole_does_without_them(tmp_path: Path, kind: str) -> None:
    dims = {"x": Input(dims=("batch", "length"))}
    save(build(kind=kind), tmp_path / "it.pt", example={"x": features(2)}, inputs=dims, factory=build,
         factory_kwargs={"kind": kind})
    model, factory = load(tmp_path / "it.pt"), f"{__name__}:build"
    data = open_set([{"x": features(16)}], model.inputs, name="noise")
    result = prune(model, data, PruneConfig(params=0.6, structures=("heads",)), factory=factory)
    assert [(group.name, group.before, group.after) for group in result.groups] == [("attention", 4, 2)]
    assert result.model.channels["reshaping"] == ["attention"]
    write_model(result.model, tmp_path / "small.pt")
    small = load(tmp_path / "small.pt")
    whole = build(kind=kind)
    own = build_module(small, factory)
    last = "proj" if kind == "vision" else "c_proj"
    gone = ~torch.isin(whole.attention.get_submodule(last).weight[0], own.attention.get_submodule(last).weight[0])
    assert int(gone.sum()) == 16
    x = features(3, 7, 1)
    with torch.no_grad():
        whole.attention.get_submodule(last).weight[:, gone] = 0
        expected = whole(torch.from_numpy(x)).numpy()
        for module in (own, load_into(build(kind=kind), small)):
            np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(program_runner(small.graph)({"x": x})["output"], expected, rtol=1e-5, atol=1e-6)
    again = prune(small, data, PruneConfig(params=0.8, structures=("heads",)), factory=factory)
    assert [(group.before, group.after) for group in again.groups] == [(2, 1)]
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        with opened(bundle(small, tmp_path / target, target)) as session:
            np.testing.assert_allclose(session.run({"x": x})["output"], expected, rtol=1e-4, atol=1e-4)


def test_where_that_is_another_function_heads_stay(tmp_path: Path) -> None:
    """Here fewer heads make a smaller scale."""
    save(build(kind="scaled"), tmp_path / "it.pt", example={"x": features(2)}, factory=build,
         factory_kwargs={"kind": "scaled"})
    with pytest.raises(CompressError, match="attention: a trial removal changed the function"):
        prunable(load(tmp_path / "it.pt"), PruneConfig(structures=("heads",)), factory=f"{__name__}:build")


def test_only_sizes_that_do_not_hold_a_tensor_are_others() -> None:
    class Shapes(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x.view(2, 6), x.reshape((2, 3, 4)), torch.reshape(x, (2, -1)), x.view(torch.int32), x.view(2, 2, 9)]

    module = nn.Sequential(Shapes())
    let_reshape(module, ["0"])
    let_reshape(module, ["0"])                   # once is enough
    assert reshaping(module) == ["0"]
    assert type(module[0]).__mro__[2] is Shapes
    assert [tuple(found.shape) for found in module(torch.zeros(2, 6))] == [(2, 6), (2, 3, 2), (2, 6), (2, 6), (2, 2, 3)]


def test_a_channel_map_of_another_network_is_refused() -> None:
    for wrong in (["elsewhere"], 7, [7]):
        with pytest.raises(CompressError, match=r"the channel map's 'reshaping' is .*, expected a list of paths"):
            apply_reshaping(nn.Linear(2, 2), wrong)  # type: ignore[arg-type]
