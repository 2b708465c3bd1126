"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

FALLS: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""Name -> from the share of the steps behind the warm-up that are done to the share of the peak."""


def schedule(step: int, total: int, *, kind: str = "cosine", warmup: float = 0.05) -> float:
    """Share of the peak learning rate at ``step`` of ``total``: a linear warm-up, then down as ``kind`` says.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts, for ``cosine``.
    """
    warm = max(1, round(warmup * total)) if warmup else 0
    if step < warm:
        return (step + 1) / warm
    return FALLS[kind]((step - warm) / max(1, total - warm))
