"""Weights that lie on the grid of a per-channel min-max quantizer, which finds their integers again.

A quantized model holds float weights. A method that chooses the integers itself stores ``integer * step``; the largest
weight of each channel keeps its integer, so that the step found from the result is the step that was chosen for.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = torch.finfo(torch.float32).eps      # step of a channel of zeros, as torchao has it


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
