"""Importance by what the layers that read a unit make of it: its weights times how large it is on the samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.forward import Calls, Tensors, call
from compress.prune.groups import Group
from compress.prune.readings import by_channel, matrices_of, per_unit, reading


def activation(
    module: nn.Module, groups: Sequence[Group], calls: Calls, batches: Iterable[Tensors],
) -> list[np.ndarray]:
    """Per group, shape ``(units,)``: of each layer that reads a unit the share of its result's power that the unit is.

    Channel ``j`` adds ``W[:, j] x_j`` to the result of a layer, of mean power ``|W[:, j]|^2 E[x_j^2]``. That is Wanda's
    ``|W| |x|`` for a whole column, squared. The shares of a layer's channels add up to 1, so the layers that read a
    group count alike. One forward pass, no gradients.

    Raises:
        CompressError: if there are no samples.

    Source: Sun et al. 2023, arXiv:2306.11695 (Wanda), equation 1; columns in place of single weights as in
    An et al. 2023, arXiv:2312.11983 (FLAP).
    """
    power: dict[str, torch.Tensor] = {}
    count: dict[str, int] = {}

    def noted(path: str, value: torch.Tensor) -> None:
        own = by_channel(module.get_submodule(path), value).flatten(0, 1)
        power[path] = power.get(path, torch.zeros(())) + own.double().square().sum(0)
        count[path] = count.get(path, 0) + len(own)

    seen = False
    with reading(module, groups, noted), torch.no_grad():
        for feed in batches:
            call(module, calls, feed)
            seen = True
    if not seen:
        raise CompressError("importance 'activation' needs calibration samples, and there are none")
    scores = []
    for group in groups:
        total = np.zeros(group.units)
        for edit in group.consumers:
            if edit.path not in power:
                continue
            mean = power[edit.path] / count[edit.path]
            layer = module.get_submodule(edit.path)
            for weight, axis in matrices_of(layer, edit):
                norms = weight.detach().double().square().sum(dim=[a for a in range(weight.dim()) if a != axis])
                shares = norms * mean
                total += per_unit((shares / shares.sum().clamp_min(1e-30))[None], edit)[0]
        scores.append(total)
    return scores
