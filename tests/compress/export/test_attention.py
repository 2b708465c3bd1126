"""Attention of any number of axes in ONNX Runtime is torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

from compress.export import export_onnx
from compress.model import Dim, Input
from compress.saving import export_model
from compress.targets import targets

KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "no heads": lambda x, seen: attend(x, 2 * x, x + 1),
    "no heads, mask": lambda x, seen: attend(x, 2 * x, x + 1, attn_mask=seen[:, None, :]),
    "no heads, causal": lambda x, seen: attend(x, 2 * x, x + 1, is_causal=True, scale=0.3),
    "no batch": lambda x, seen: attend(x[0], 2 * x[0], x[0] + 1, attn_mask=seen[:1]) + x,
    "heads first": lambda x, seen: attend(*(x[0].unflatten(1, (heads, -1)).transpose(0, 1) for heads in (4, 4, 4))) + (
        0 * x.sum()),
    "shared heads": lambda x, seen: attend(*(x[0, :, : 2 * heads].unflatten(1, (heads, 2)).transpose(0, 1)
                                             for heads in (4, 2, 2)), enable_gqa=True) + 0 * x.sum(),
    "heads": lambda x, seen: attend(*[x[:, None]] * 3, attn_mask=seen[:, None, None, :]),
}  # fmt: skip


class Turned(nn.Module):
    """As in T5: with a mask that is trained torch asks another kernel, whose result is no view once it is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q = x.clone().mul_(2).unflatten(2, (2, -1)).transpose(1, 2)          # in place: the program is traced once more
        mask = self.bias[:, None, None] + torch.where(seen, 0.0, -1e4)[:, None, None, :]
        return attend(q, 2 * q, q + 1, attn_mask=mask).transpose(1, 2).contiguous().reshape(*x.shape)


class Attends(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return KINDS[self.kind](x, seen) + 0 * seen.sum()


def arrays(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    seen = rng.random((batch, length)) > 0.4
    seen[:, 0] = True
    return {"x": rng.normal(size=(batch, length, 8)).astype(np.float32), "seen": seen}


@pytest.mark.parametrize("network", [*map(Attends, KINDS), Turned()], ids=[*KINDS, "turned back"])
def test_attention_of_any_number_of_axes(tmp_path: Path, network: nn.Module) -> None:
    network, dims = network.eval(), (Dim("batch", 1, 2, 8), Dim("length", 2, 6, 16))
    model = export_model(network, name="attends", example=arrays(2, 6),
                         inputs={name: Input(dims=dims) for name in ("x", "seen")})  # fmt: skip
    session = onnxruntime.InferenceSession(export_onnx(model, targets()["onnxruntime-cpu"], tmp_path / "m.onnx"))
    for sizes in ((2, 6), (3, 11)):
        feed = arrays(*sizes)
        expected = network(**{name: torch.from_numpy(value) for name, value in feed.items()}).detach().numpy()
        (found,) = session.run(None, feed)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)
