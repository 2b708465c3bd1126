"""The loss of a batch: weighted sums over the outputs, what components hand to each other, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.distill.terms import Labels, Term, Values


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one batch, a scalar tensor with a gradient, and its unweighted parts without one."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Criterion:
    """Weighs the losses of a batch: of each part the mean of its terms, and the sum of the parts by their weights."""

    def __init__(self, terms: Sequence[Term], weights: Mapping[str, float]) -> None:
        """``weights`` has one for each part; a part without terms, or of weight 0, is left out."""
        self.terms = {part: own for part, weight in weights.items()
                      if weight and (own := [term for term in terms if term.part == part])}  # fmt: skip
        self.weights = weights

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.terms)

    def __call__(self, student: Values, teacher: Values, labels: Labels) -> Losses:
        parts = {part: self._mean(part, student, teacher, labels) for part in self.terms}
        weighed = [_times(self.weights[part], loss) for part, loss in parts.items()]
        total = torch.stack(weighed).sum() if len(weighed) > 1 else weighed[0]
        return Losses(total=total, parts={part: loss.detach() for part, loss in parts.items()})

    def _mean(self, part: str, student: Values, teacher: Values, labels: Labels) -> Tensor:
        losses = [_times(term.weight, term.loss(student, teacher, labels).double()) for term in self.terms[part]]
        return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def _times(weight: float, loss: Tensor) -> Tensor:
    """No operator where there is nothing to do: of a small model's step they are a good part, forward and backward."""
    return loss if weight == 1 else weight * loss
