"""Channels that can be scaled where they are made and scaled back where they are read, and a model with that done.

The function stays the same where all that lies between is positively homogeneous: ``f(s x) = s f(x)`` for ``s > 0``.
:func:`compress.quantize.following.find_scalable` finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.model import Model
from compress.weights import with_weights

LAYERS: Mapping[Any, int] = {        # operators with weights -> the axis of their channels
    torch.ops.aten.linear.default: -1, torch.ops.aten.conv1d.default: -2, torch.ops.aten.conv2d.default: -3,
}  # fmt: skip
NOT_SCALED = -1       # in place of a channel's number


@dataclass(kw_only=True)
class Source:
    """What makes channels: parameters whose first axis they are, and the numbers of the channels."""

    op: str                                 # of the operator: "linear", "conv2d", "layer_norm", ..
    weight: str
    biases: dict[Any, str] = field(default_factory=dict)
    first: int                              # number of its first channel
    count: int

    @property
    def channels(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass(kw_only=True)
class Reader:
    """A weight that reads channels: their numbers ``(inputs,)``, and the operators that have it.

    ``nodes`` are graph, operator, and the node whose value it reads, channels along ``axis``.
    """

    weight: str
    groups: int
    channels: Tensor
    axis: int
    nodes: list[tuple[str, str, str]] = field(default_factory=list)

    def columns(self, weight: Tensor) -> Tensor:
        """``weight`` as ``(groups, outputs, inputs, rest)``: its third axis is what is multiplied."""
        return weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An operator that cuts channels ``(n,)``, along ``axis`` of its result, at ``high``."""

    graph: str
    node: str
    axis: int
    channels: Tensor
    high: float


@dataclass(kw_only=True)
class Scalable:
    """All channels of a model that a layer or a norm makes.

    ``free`` says which can be scaled, ``rectified`` which go through ReLU or the like on their way; those of ``clips``
    can be as long as they stay below what they are cut at.
    """

    sources: Sequence[Source]
    readers: Sequence[Reader]
    clips: Sequence[Clip]
    free: Tensor
    rectified: Tensor

    def rescaled(self, model: Model, scales: Tensor) -> Model:
        """``model`` with channel ``c`` divided by ``scales[c]`` where it is made, and multiplied where it is read.

        Args:
            model: the one that this was found in.
            scales: f64 ``(channels,)``, above 0; those of channels that are not free have no effect.
        """
        scales = torch.where(self.free, scales, 1.0)
        changed: dict[str, Tensor] = {}

        def value(name: str) -> Tensor:
            return changed.get(name, model.weights[name].detach().double())

        for source in self.sources:
            for name in (source.weight, *source.biases.values()):
                given = value(name)
                changed[name] = given / scales[source.channels].reshape(-1, *[1] * (given.ndim - 1))
        for reader in self.readers:
            given = value(reader.weight)
            factors = of_inputs(reader, scales, 1.0).reshape(reader.groups, 1, -1, 1)
            changed[reader.weight] = (reader.columns(given) * factors).reshape(given.shape)
        new = {name: tensor.to(model.weights[name].dtype) for name, tensor in changed.items()}
        return with_weights(model, {n: t for n, t in new.items() if not torch.equal(t, model.weights[n])})


def of_inputs(reader: Reader, values: Tensor, otherwise: float | bool) -> Tensor:
    """What ``values`` ``(channels,)`` are for the inputs of ``reader``; ``otherwise`` where an input is not scaled."""
    picked = values[reader.channels.clamp(min=0)]
    return torch.where(reader.channels >= 0, picked, torch.full_like(picked, otherwise))


def largest(read: Iterable[tuple[Tensor, Tensor]], channels: int) -> Tensor:
    """The largest value of each channel, f64 ``(channels,)``, of numbers and the values they have; 0 without any."""
    found = np.zeros(channels)
    for numbers, values in read:
        named = numbers >= 0
        with np.errstate(invalid="ignore"):     # of NaN, which is what it then is
            np.maximum.at(found, numbers[named].numpy(), values[named].double().numpy())
    return torch.from_numpy(found)


def largest_weights(model: Model, found: Scalable) -> Tensor:
    """The largest magnitude of the weights that read each channel, f64 ``(channels,)``."""
    columns = ((reader.channels, reader.columns(model.weights[reader.weight].detach().double().abs()).amax((1, 3)))
               for reader in found.readers)  # fmt: skip
    return largest(((numbers, weights.flatten()) for numbers, weights in columns), len(found.free))
