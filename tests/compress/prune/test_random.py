"""Random branching networks lose units of every kind; what is left runs in torch and as ONNX, with one answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import CompressError
from compress.export import export_onnx
from compress.model import Graph
from compress.prune import PruneConfig
from compress.saving import export_model
from compress.targets import get_target
from tests.compress.prune.networks import Attention
from tests.compress.prune.pruning import prune_module

WIDTH = 32
PARTS = ("linear", "gate", "concatenation", "sum", "norm", "attention", "recurrent", "convolution")


class Part(nn.Module):
    """``(batch, length, 32)`` of one or two earlier parts to the same shape."""

    def __init__(self, kind: str, inner: int, residual: bool) -> None:
        super().__init__()
        self.kind, self.residual = kind, residual
        self.norm = nn.LayerNorm(WIDTH) if kind == "norm" else None
        if kind == "attention":
            self.attention = Attention()
        elif kind == "recurrent":
            self.rnn = nn.GRU(WIDTH, inner, batch_first=True, bidirectional=True)
            self.down = nn.Linear(2 * inner, WIDTH)
        elif kind == "convolution":
            self.up = nn.Conv1d(WIDTH, inner, 3, padding=1)
            self.scale, self.down = nn.BatchNorm1d(inner), nn.Conv1d(inner, WIDTH, 1)
        else:
            self.up = nn.Linear(2 * WIDTH if kind == "concatenation" else WIDTH, 2 * inner if kind == "gate" else inner)
            self.down = nn.Linear(inner, WIDTH)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        y = x if self.norm is None else self.norm(x)
        if self.kind == "attention":
            y = self.attention(y)
        elif self.kind == "recurrent":
            y = self.down(self.rnn(y)[0])
        elif self.kind == "convolution":
            y = self.down(self.scale(self.up(y.transpose(1, 2))).relu()).transpose(1, 2)
        elif self.kind == "gate":
            value, gate = self.up(y).chunk(2, -1)
            y = self.down(value * gate.sigmoid())
        elif self.kind == "concatenation":
            y = self.down(self.up(torch.cat([y, other], -1)).relu())
        else:
            y = self.down(torch.nn.functional.gelu(self.up(y + other if self.kind == "sum" else y)))
        return x + y if self.residual else y


class Branching(nn.Module):
    """Parts that read the last one and any earlier one, over embeddings, up to a mean and a head."""

    def __init__(self, plan: list[tuple[str, int, bool, int]]) -> None:
        super().__init__()
        self.table, self.position = nn.Embedding(20, WIDTH), nn.Parameter(torch.randn(1, 6, WIDTH))
        self.parts = nn.ModuleList(Part(kind, inner, residual) for kind, inner, residual, _ in plan)
        self.others = [other for *_, other in plan]
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.table(x) + self.position]
        for part, other in zip(self.parts, self.others, strict=True):
            values.append(part(values[-1], values[other % len(values)]))
        return self.head(values[-1].mean(1))


PLANS = st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from([16, 24, 32]), st.booleans(), st.integers(0, 5)),
                 min_size=1, max_size=4)  # fmt: skip


def pruned_at_random(plan: list[tuple[str, int, bool, int]], share: float) -> tuple[nn.Module, np.ndarray] | None:
    """The smaller network and its samples; None where the goal is out of reach."""
    torch.manual_seed(0)
    module = Branching(plan).eval()
    x = np.random.default_rng(0).integers(0, 20, (8, 6))
    work = {path: sum(p.numel() for p in layer.parameters(recurse=False)) for path, layer in module.named_modules()}
    config = PruneConfig(macs=share, round_to=4, structures=("channels", "heads", "recurrent", "width"))
    feeds = {"forward": [{"x": x}]}
    try:
        pruned = prune_module(module, {"forward": Graph()}, lambda size: [feeds], work, config)
    except CompressError as error:
        assert "smallest share" in str(error)  # noqa: PT017 - that is an answer
        return None
    assert pruned.check < 1e-4
    assert not pruned.skipped.keys() - {"head"}, pruned.skipped     # all there is can shrink
    left = dict(pruned.module.named_modules())
    for group in pruned.groups:
        assert group.kind == "heads" or group.after == group.before or group.after % 4 == 0
    for path, layer in left.items():
        if isinstance(layer, nn.Linear):
            assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
        if isinstance(layer, Attention):
            assert layer.q.out_features == layer.heads * layer.head_dim, path
    return pruned.module, x


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plan=PLANS, share=st.sampled_from([0.4, 0.6, 0.8]))
def test_shapes_are_right(plan: list[tuple[str, int, bool, int]], share: float) -> None:
    made = pruned_at_random(plan, share)
    if made is not None:
        module, x = made
        assert module(torch.from_numpy(x)).shape == (8, 3)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=PLANS, share=st.sampled_from([0.5, 0.7]))
def test_torch_and_onnx_agree(tmp_path: Path, plan: list[tuple[str, int, bool, int]], share: float) -> None:
    made = pruned_at_random(plan, share)
    if made is None:
        return
    module, x = made
    model = export_model(module, name="random", example={"x": x[:2]})
    path = export_onnx(model, get_target("onnxruntime-cpu"), tmp_path / "random.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
