"""How much the model would miss each unit, by one of several measures; all compare over layers and components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from compress.errors import CompressError
from compress.prune.activation import activation
from compress.prune.config import Importance
from compress.prune.forward import Calls, Tensors
from compress.prune.gradients import fisher, taylor
from compress.prune.groups import Group
from compress.prune.magnitude import magnitude


def rank(
    measure: Importance, module: nn.Module, groups: Sequence[Group], costs: Sequence[float], calls: Calls,
    batches: Iterable[Tensors], classes: frozenset[str] = frozenset(),
) -> list[np.ndarray]:
    """Per group, shape ``(units,)``: what the outputs lose with each unit, in one scale over all groups.

    ``taylor`` and ``fisher`` measure that at the outputs themselves. What ``magnitude`` and ``activation`` see in a
    layer does not compare with what they see in another: there an average unit of every group counts the same for its
    cost, so that a group loses more than others as far as its units differ more.

    Args:
        costs: per group, what one of its units costs.
        batches: read once; of ``magnitude`` not at all.
        classes: the outputs, as :func:`compress.prune.forward.call` names them, that are scores of classes.

    Raises:
        CompressError: if there are no samples, or a score is not finite; names the group.
    """
    if measure == "magnitude":
        scores = relative(magnitude(module, groups), costs, groups)
    elif measure == "activation":
        scores = relative(activation(module, groups, calls, batches), costs, groups)
    elif measure == "fisher":
        scores = fisher(module, groups, calls, batches, classes)
    else:
        scores = taylor(module, groups, calls, batches)
    for group, score in zip(groups, scores, strict=True):
        if not np.isfinite(score).all():
            raise CompressError(f"the importance of {group.name!r} is not finite: check the weights and the samples")
    return scores


def relative(
    scores: Sequence[np.ndarray], costs: Sequence[float], groups: Sequence[Group] = (),
) -> list[np.ndarray]:
    """Each group's scores over their mean, times what one of its units costs; of all branches as of one group."""
    branches = {number for number, group in enumerate(groups) if group.branch is not None}
    mean = float(np.mean([scores[number] for number in branches])) if branches else 0.0
    cost = float(np.mean([costs[number] for number in branches])) if branches else 0.0
    return [own / max(mean if number in branches else float(own.mean()), 1e-30)
            * (cost if number in branches else costs[number]) for number, own in enumerate(scores)]

