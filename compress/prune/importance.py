"""How much the model would miss each unit, by one of several measures; all compare over layers and components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from compress.errors import CompressError
from compress.prune.activation import activation
from compress.prune.bypass import bypassed
from compress.prune.config import Importance
from compress.prune.forward import Calls, Tensors
from compress.prune.gradients import fisher, taylor
from compress.prune.groups import Group
from compress.prune.magnitude import magnitude


def rank(
    measure: Importance, module: nn.Module, groups: Sequence[Group], costs: Sequence[float], calls: Calls,
    batches: Iterable[Tensors], classes: frozenset[str] = frozenset(), few: Iterable[Tensors] = (),
) -> list[np.ndarray]:
    """Per group, shape ``(units,)``: what the outputs lose with each unit, in one scale over all groups.

    ``taylor`` and ``fisher`` measure that at the outputs themselves. What ``magnitude`` and ``activation`` see in a
    layer does not compare with what they see in another: there an average unit of every group counts the same for its
    cost, so that a group loses more than others as far as its units differ more. What a residual branch is worth is
    measured, by leaving it out, whatever the ``measure``.

    Args:
        costs: per group, what one of its units costs.
        batches: read once; of ``magnitude`` not at all.
        few: of the same samples, read once where there are branches.
        classes: the outputs, as :func:`compress.prune.forward.call` names them, that are scores of classes.

    Raises:
        CompressError: if there are no samples, or a score is not finite; names the group.
    """
    widths = [group for group in groups if group.branch is None]
    branches = [group for group in groups if group.branch is not None]
    of_widths = iter(_of_widths(measure, module, widths, calls, batches, classes) if widths else [])
    of_branches = iter(bypassed(module, branches, calls, few, classes if measure == "fisher" else frozenset())
                       if branches else [])
    scores = [next(of_widths) if group.branch is None else np.array([next(of_branches)]) for group in groups]
    if measure in ("magnitude", "activation"):
        scores = relative(scores, costs, groups)
    for group, score in zip(groups, scores, strict=True):
        if not np.isfinite(score).all():
            raise CompressError(f"the importance of {group.name!r} is not finite: check the weights and the samples")
    return scores


def _of_widths(
    measure: Importance, module: nn.Module, groups: Sequence[Group], calls: Calls, batches: Iterable[Tensors],
    classes: frozenset[str],
) -> list[np.ndarray]:
    if measure == "magnitude":
        return magnitude(module, groups)
    if measure == "activation":
        return activation(module, groups, calls, batches)
    if measure == "fisher":
        return fisher(module, groups, calls, batches, classes)
    return taylor(module, groups, calls, batches)


def relative(
    scores: Sequence[np.ndarray], costs: Sequence[float], groups: Sequence[Group] = (),
) -> list[np.ndarray]:
    """Each group's scores over their mean, times what one of its units costs; of all branches as of one group."""
    branches = {number for number, group in enumerate(groups) if group.branch is not None}
    mean = float(np.mean([scores[number] for number in branches])) if branches else 0.0
    cost = float(np.mean([costs[number] for number in branches])) if branches else 0.0
    return [own / max(mean if number in branches else float(own.mean()), 1e-30)
            * (cost if number in branches else costs[number]) for number, own in enumerate(scores)]

