"""Importance by gradients: how far the outputs, or the probabilities they stand for, would move without a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compress.errors import CompressError
from compress.prune.forward import Calls, Tensors, call, of_any_run, samples_of
from compress.prune.groups import Group, trainable
from compress.prune.readings import by_channel, per_unit, reading

SEED = 0

Loss = Callable[[str, torch.Tensor], torch.Tensor]
"""Of an output, by its name: a number whose squared gradient is the movement, on average over what it draws."""


def taylor(
    module: nn.Module, groups: Sequence[Group], calls: Calls, batches: Iterable[Tensors],
) -> list[np.ndarray]:
    """First-order estimate of how far the outputs move when a unit is removed, mean over the samples.

    Removing unit ``u`` moves the outputs by ``J_u a_u`` to first order, with ``a_u`` what its consumers read of it.
    ``E[(v . J_u a_u)^2] = |J_u a_u|^2`` for ``v ~ N(0, 1)``, so one backward pass a batch gives every unit of every
    layer in the same unit: outputs are divided by their standard deviation first. No labels are needed.

    Raises:
        CompressError: if there are no samples.

    Source: Molchanov et al. 2019, arXiv:1906.10771 (first-order Taylor); Hutchinson's estimator in the loss's place.
    """
    noise = _noise(torch.Generator().manual_seed(SEED))
    return _squared(module, groups, calls, batches, noise, "taylor")


def fisher(
    module: nn.Module, groups: Sequence[Group], calls: Calls, batches: Iterable[Tensors], classes: frozenset[str],
) -> list[np.ndarray]:
    """Fisher information of each unit: twice how far the predicted distribution moves (KL) when it is removed.

    The score is ``E[(d log p(y) / d u)^2]`` where ``u`` scales the unit, over the samples and over answers ``y`` that
    are drawn from what the model itself predicts, so that no labels are needed. Of the outputs in ``classes`` that is a
    draw from their softmax: a unit counts where the model is undecided, and not where it is sure already. Others are
    taken for the mean of a normal distribution, which is what ``taylor`` does with all.

    Raises:
        CompressError: if there are no samples.

    Source: Theis et al. 2018, arXiv:1801.05787, equation 6, of units in place of parameters; on drawn answers Kunstner
    et al. 2019, arXiv:1905.12558.
    """
    generator = torch.Generator().manual_seed(SEED)
    noise = _noise(generator)

    def loss(name: str, output: torch.Tensor) -> torch.Tensor:
        if of_any_run(name) not in classes:
            return noise(name, output)
        scores = output.reshape(-1, output.shape[-1])
        drawn = torch.multinomial(scores.detach().softmax(-1), 1, generator=generator)[:, 0]
        return functional.cross_entropy(scores, drawn, reduction="sum")

    return _squared(module, groups, calls, batches, loss, "fisher")


def _noise(generator: torch.Generator) -> Loss:
    def loss(_: str, output: torch.Tensor) -> torch.Tensor:
        spread = output.detach().std(correction=0).clamp_min(1e-12)
        return (torch.randn(output.shape, generator=generator) * output / spread).sum()

    return loss


def _squared(
    module: nn.Module, groups: Sequence[Group], calls: Calls, batches: Iterable[Tensors], loss: Loss, name: str,
) -> list[np.ndarray]:
    """Per group and unit the mean over the samples of ``(sum over all that read it of value x gradient)^2``."""
    totals = [np.zeros(group.units) for group in groups]
    read: list[tuple[str, torch.Tensor]] = []

    def noted(path: str, value: torch.Tensor) -> torch.Tensor | None:
        if not value.requires_grad:
            return None
        own = value.view_as(value)      # of layers that read one tensor each has a gradient of its own
        read.append((path, own))
        return own

    samples = 0
    with reading(module, groups, noted), trainable(module), torch.enable_grad():
        for feed in batches:
            read.clear()
            outputs = {name: o for name, o in call(module, calls, feed).items() if o.grad_fn is not None}
            total = torch.stack([loss(name, output) for name, output in outputs.items()]).sum()
            gradients = torch.autograd.grad(total, [value for _, value in read], allow_unused=True)
            moved: dict[str, list[torch.Tensor]] = {}
            for (path, value), gradient in zip(read, gradients, strict=True):
                if gradient is not None:
                    product = value.detach() * gradient
                    own = by_channel(module.get_submodule(path), product).double().sum(1)
                    moved.setdefault(path, []).append(own)
            for number, group in enumerate(groups):
                totals[number] += _movement(group, moved)
            samples += samples_of(feed)
    if not samples:
        raise CompressError(f"importance {name!r} needs calibration samples, and there are none")
    return [total / samples for total in totals]


def _movement(group: Group, moved: Mapping[str, Sequence[torch.Tensor]]) -> np.ndarray:
    """``moved[path]`` is ``(samples, channels)`` for each time a layer ran; runs with other samples stand apart."""
    by_rows: dict[int, np.ndarray] = {}
    for edit in group.consumers:
        for products in moved.get(edit.path, ()):
            units = per_unit(products, edit)
            by_rows[len(units)] = by_rows.get(len(units), 0.0) + units
    return np.asarray(sum((np.square(units).sum(0) for units in by_rows.values()), np.zeros(group.units)))
