"""Learned projections: where a student's tensor is narrower than its teacher's, what it is compared through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

RIDGE = 1e-2        # of the first fit, as a share of the student's mean power: a batch has few samples


class Projection(nn.Module):
    """A linear map along one axis, from the student's width to the teacher's; it is trained with the student and then
    thrown away.

    Source: the regressor of Romero et al. 2015, arXiv:1412.6550 (FitNets), equation 3; along the channels of a picture
    it is their 1×1 convolution.
    """

    def __init__(self, axis: int, width: int, wanted: int) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.zeros(wanted, width))

    def forward(self, value: Tensor) -> Tensor:
        return linear(value.movedim(self.axis, -1), self.weight).movedim(-1, self.axis)

    @torch.no_grad()
    def fit(self, student: Tensor, teacher: Tensor) -> None:
        """Begin where the squared error of one batch is least, so that what is left to learn is the student's.

        Ridge regression: ``W = (XᵀX + λI)⁻¹ Xᵀ Y``, λ = :data:`RIDGE` of the mean of XᵀX's diagonal.
        """
        x, y = (value.detach().double().movedim(self.axis, -1).flatten(0, -2) for value in (student, teacher))
        power = x.T @ x
        least = torch.finfo(torch.float32).tiny
        power += (RIDGE * power.diagonal().mean() + least) * torch.eye(len(power), dtype=x.dtype, device=x.device)
        self.weight.copy_(torch.linalg.solve(power, x.T @ y).T)


def axis_between(student: Sequence[int], teacher: Sequence[int], batch: int | None) -> int | None:
    """The one axis in which two shapes differ, which a projection bridges; ``None`` where there is no such."""
    if len(student) != len(teacher):
        return None
    axes = [axis for axis, sizes in enumerate(zip(student, teacher, strict=True)) if sizes[0] != sizes[1]]
    return axes[0] if len(axes) == 1 and axes[0] != batch else None
