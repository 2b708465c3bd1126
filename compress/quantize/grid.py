"""Weights that lie on the grid of a min-max quantizer, which finds their integers again.

A quantized model holds float weights. A method that chooses the integers itself stores ``(integer - zero) * step``; the
ends of each range keep their integers, so that the grid found from the result is the one that was chosen for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).eps      # step of weights that are all zero, as torchao has it


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """The integers of a weight, and which inputs share a step: all of an output's, or ``group`` neighbours of them.

    Symmetric ones have zero in their middle: ``low`` is ``-high``. The others have a zero point with each step, and a
    range that holds zero (Jacob et al. 2018, arXiv:1712.05877, equation 1).

    In what follows *rows* are the weights that share a step, ``(steps, inputs)``, as :meth:`rows` has them.
    """

    low: int
    high: int
    group: int | None = None

    @property
    def symmetric(self) -> bool:
        return self.low == -self.high

    @property
    def bits(self) -> int:
        return (self.high - self.low).bit_length()

    def rows(self, weight: Tensor) -> Tensor:
        """``weight`` ``(outputs, ...)`` as rows."""
        return weight.flatten(1) if self.group is None else weight.reshape(-1, self.group)

    def parameters(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The step and the zero point of each row, ``(steps, 1)`` both."""
        if self.symmetric:
            step = steps(rows, self.high)
            return step, torch.zeros_like(step)
        least, most = (rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0))
        step = ((most - least) / (self.high - self.low)).clamp(min=_SMALLEST)
        return step, (self.low - least / step).round().clamp(self.low, self.high)

    def nearest(self, rows: Tensor) -> Tensor:
        """The integers of ``rows``, as floats."""
        step, zero = self.parameters(rows)
        return ((rows / step).round() + zero).clamp(self.low, self.high)

    def ends(self, rows: Tensor) -> Tensor:
        """The integers of the weights that give their row its step, and keep theirs; NaN of all others."""
        if self.symmetric:
            return torch.where(largest(rows), nearest(rows, self.high), torch.nan)
        least, most = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
        found = torch.where((rows == least) & (rows < 0), float(self.low), torch.nan)
        return torch.where((rows == most) & (rows > 0), float(self.high), found)

    def on_grid(self, integers: Tensor, weight: Tensor) -> Tensor:
        """``integers``, of the rows of ``weight``, as weights in its shape."""
        if self.symmetric:
            return on_grid(integers, self.rows(weight), self.high).reshape(weight.shape)
        step, zero = self.parameters(self.rows(weight))
        return ((integers - zero) * step).reshape(weight.shape)


def steps(weight: Tensor, high: int) -> Tensor:
    """The step of each channel, ``(outputs, 1)``: the largest magnitude of the rows of ``weight`` over ``high``."""
    return (weight.abs().flatten(1).amax(1, keepdim=True) / high).clamp(min=_SMALLEST)


def nearest(weight: Tensor, high: int) -> Tensor:
    """The integers of ``weight`` ``(outputs, inputs)`` in ``[-high, high]``, as floats; each channel's largest is at an
    end."""
    return (weight / steps(weight, high)).round().clamp(-high, high)


def largest(weight: Tensor) -> Tensor:
    """Where the weights ``(outputs, inputs)`` are that give their channel its step, and keep their integer."""
    magnitude = weight.abs()
    return magnitude == magnitude.amax(1, keepdim=True)


def on_grid(integers: Tensor, weight: Tensor, high: int) -> Tensor:
    """``integers`` ``(outputs, inputs)`` as weights in the shape of ``weight``, whose steps they are for."""
    rows = weight.flatten(1)
    return torch.where(largest(rows), rows, integers * steps(rows, high)).reshape(weight.shape)
