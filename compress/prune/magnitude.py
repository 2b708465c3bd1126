"""Importance by the weights alone: the squared L2 norm of all that is cut with a unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from compress.prune.channels import is_per_channel
from compress.prune.groups import Group
from compress.prune.readings import matrices_of, per_unit


def magnitude(module: nn.Module, groups: Sequence[Group]) -> list[np.ndarray]:
    """Per group, shape ``(units,)``: the squared norm of a unit's weights on both sides of it.

    Norms count for nothing: their weights are near 1 whatever the channel is worth.
    """
    scores = []
    for group in groups:
        total = np.zeros(group.units)
        for edit in group.edits:
            layer = module.get_submodule(edit.path)
            if is_per_channel(layer) and not edit.tensor:
                continue
            for weight, axis in matrices_of(layer, edit):
                norms = weight.detach().double().square().movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1)
                total += per_unit(norms[None], edit)[0]
        scores.append(total)
    return scores
