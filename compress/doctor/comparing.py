"""Whether two runs of a model gave the same outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def differs(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], *, tolerance: float) -> tuple[str, ...]:
    """Names of the outputs that differ by more than ``tolerance`` of the largest value; two NaN are the same."""
    return tuple(name for name in a if not _same(a[name], b[name], tolerance))


def _same(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return bool(torch.equal(a, b))
    finite = a[torch.isfinite(a)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True))
