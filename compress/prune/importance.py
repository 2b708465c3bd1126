"""How much the model would miss each unit: by the size of its weights, or by how far its outputs would move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.channels import BATCH_NORMS, axis_of, weight_of
from compress.prune.forward import Calls, Tensors, call, samples_of
from compress.prune.groups import Edit, Group, trainable

SEED = 0


def magnitude(module: nn.Module, groups: Sequence[Group], unit_macs: Sequence[float]) -> list[np.ndarray]:
    """Squared L2 norm of each unit's weights, over its group's mean, times the MACs it costs.

    The norms of different layers do not compare; dividing by the mean makes an average unit of every group count the
    same per MAC, so equal layers shrink equally. Each array has shape ``(units,)``.
    """
    scores = []
    for group, macs in zip(groups, unit_macs, strict=True):
        total = np.zeros(group.units)
        for edit in group.edits:
            layer = module.get_submodule(edit.path)
            if isinstance(layer, BATCH_NORMS):
                continue
            weight = weight_of(layer).detach().double()
            axis = axis_of(layer, edit.role)
            norms = weight.square().sum(dim=[a for a in range(weight.dim()) if a != axis])
            total += _per_unit(norms[None], edit)[0]
        scores.append(total / max(float(total.mean()), 1e-30) * macs)
    return scores


def taylor(
    module: nn.Module, groups: Sequence[Group], calls: Calls, batches: Iterable[Tensors],
) -> list[np.ndarray]:
    """First-order estimate of how far the outputs move when a unit is removed, mean over the samples.

    Removing unit ``u`` moves the outputs by ``J_u a_u`` to first order, with ``a_u`` what its consumers read of it.
    ``E[(v . J_u a_u)^2] = |J_u a_u|^2`` for ``v ~ N(0, 1)``, so one backward pass a batch gives every unit of every
    layer in the same unit: outputs are divided by their standard deviation first. No labels are needed.

    Source: Molchanov et al. 2019, arXiv:1906.10771 (first-order Taylor); Hutchinson's estimator in the loss's place.
    """
    totals = [np.zeros(group.units) for group in groups]
    generator = torch.Generator().manual_seed(SEED)
    read: dict[str, list[torch.Tensor]] = {}
    hooks = [module.get_submodule(path).register_forward_pre_hook(_reader(read, path))
             for path in sorted({edit.path for group in groups for edit in group.consumers})]
    samples = 0
    try:
        with trainable(module), torch.enable_grad():
            for feed in batches:
                read.clear()
                outputs = [o for o in call(module, calls, feed).values() if o.grad_fn is not None]
                loss = torch.zeros(())
                for output in outputs:
                    spread = output.detach().std(correction=0).clamp_min(1e-12)
                    loss = loss + (torch.randn(output.shape, generator=generator) * output / spread).sum()
                places = [(path, tensor) for path, seen in read.items() for tensor in seen]
                gradients = torch.autograd.grad(loss, [tensor for _, tensor in places], allow_unused=True)
                for (path, tensor), gradient in zip(places, gradients, strict=True):
                    if gradient is not None:
                        _accumulate(totals, groups, path, module.get_submodule(path), tensor, gradient)
                samples += samples_of(feed)
    finally:
        for hook in hooks:
            hook.remove()
    if not samples:
        raise CompressError("importance 'taylor' needs calibration samples, and there are none")
    scores = [total / samples for total in totals]
    for group, score in zip(groups, scores, strict=True):
        if not np.isfinite(score).all():
            raise CompressError(f"the importance of {group.name!r} is not finite: check the weights and the samples")
    return scores


def _accumulate(
    totals: list[np.ndarray], groups: Sequence[Group], path: str, layer: nn.Module,
    value: torch.Tensor, gradient: torch.Tensor,
) -> None:
    product = (value.detach() * gradient).double()
    if product.dim() == 1:
        product = product[None]
    axis = product.dim() - 1 if isinstance(layer, nn.Linear) else 1
    per_channel = product.movedim(axis, -1).flatten(1, -2).sum(1) if product.dim() > 2 else product
    for total, group in zip(totals, groups, strict=True):
        for edit in group.consumers:
            if edit.path == path:
                total += np.square(_per_unit(per_channel, edit)).sum(0)


def _per_unit(per_channel: torch.Tensor, edit: Edit) -> np.ndarray:
    """``(samples, channels)`` -> ``(samples, units)``: the sum over the channels each unit owns."""
    unit = [u for u, channels in enumerate(edit.index) for _ in channels]
    channels = [channel for owned in edit.index for channel in owned]
    summed = torch.zeros(per_channel.shape[0], len(edit.index), dtype=per_channel.dtype)
    summed.index_add_(1, torch.tensor(unit), per_channel[:, channels])
    return np.asarray(summed.numpy())


def _reader(read: dict[str, list[torch.Tensor]], path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and inputs[0].requires_grad:
            read.setdefault(path, []).append(inputs[0])
    return hook
