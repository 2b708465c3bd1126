"""The student as it trains: its chain as one module, with the projections that are learned beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.distill.bound import Bound
from compress.distill.pairs import Matched
from compress.distill.precision import computing
from compress.distill.projections import Projection


class Learner(nn.Module):
    """From a feed to the tensors of ``bound``, then those that were projected, in the order of the pairs."""

    def __init__(self, bound: Bound, matched: Matched, precision: str = "fp32") -> None:
        super().__init__()
        self.bound = bound
        self.graphs = bound.module
        self.projections = nn.ModuleList()
        self._projected: list[int] = []
        self._precision = precision
        for index, pair in enumerate(matched.pairs, len(bound.compared)):
            if pair.projection is not None:
                self._projected.append(index)
                self.projections.append(Projection(*pair.projection).to(bound.device))

    def forward(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        with computing(self._precision, self.bound.device):
            values = self.bound(feed)
        values = [value.float() if value.dtype == torch.bfloat16 else value for value in values]
        return [*values, *(project(values[index]) for project, index in self._projecting())]

    def fit(self, feed: Mapping[str, Tensor], answers: Sequence[Tensor]) -> None:
        """Begin the projections from one batch and its teacher's answers."""
        with torch.no_grad(), computing(self._precision, self.bound.device):
            values = self.bound(feed)
        for project, index in self._projecting():
            project.fit(values[index], answers[index])

    def _projecting(self) -> list[tuple[Projection, int]]:
        return list(zip(self.projections, self._projected, strict=True))     # type: ignore[arg-type]
