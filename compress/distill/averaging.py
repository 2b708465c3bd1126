"""An exponential average of the weights, which wavers less than they do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """``w ← d · w + (1 - d) · θ`` behind every step, with d rising to its value, so that the beginning is forgotten.

    Source: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780, for the rising decay, here
    ``min(decay, (1 + n) / (10 + n))`` at step n.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._weights = {name: value for name, value in weights.items() if value.is_floating_point()}
        self._decay = decay
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._weights.items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from these."""
        self.values = {name: value.to(self._weights[name].device) for name, value in values.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are behind step ``step``, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self._weights.items():
            self.values[name].lerp_(value, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """With the average in the weights' place."""
        held = {name: value.data for name, value in self._weights.items()}
        try:
            for name, value in self._weights.items():
                value.data = self.values[name]
            yield
        finally:
            for name, value in self._weights.items():
                value.data = held[name]
