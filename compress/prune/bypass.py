"""Importance of whole residual branches: how far the outputs really move where one of them is left out.

A first order says little of so large a change: a branch that the rest relies on may have a small gradient where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional

from compress.errors import CompressError
from compress.prune.check import restored, zero
from compress.prune.forward import Calls, Tensors, call, of_any_run, samples_of
from compress.prune.groups import Group

SAMPLES = 64                                     # a forward pass for each branch: fewer than gradients are taken of


def bypassed(
    module: nn.Module, branches: Sequence[Group], calls: Calls, batches: Iterable[Tensors],
    classes: frozenset[str] = frozenset(),
) -> list[float]:
    """Of each branch how far the outputs move without it, mean over the samples: what the gradients estimate of units.

    That is ``|y' - y|^2`` of outputs that are divided by their standard deviation, as of
    :func:`compress.prune.gradients.taylor`; of the outputs in ``classes`` twice the divergence of what is predicted
    (KL), as of :func:`compress.prune.gradients.fisher`. One forward pass a batch for each branch, which adds nothing to
    its stream in it.

    Raises:
        CompressError: if there are no samples.

    Source: Song et al. 2024, arXiv:2402.09025 (SLEB), on judging a block by what the whole network gives without it;
    Men et al. 2024, arXiv:2403.03853 (ShortGPT), on blocks that change little.
    """
    totals, samples = [0.0] * len(branches), 0
    with torch.no_grad():
        for feed in batches:
            whole = call(module, calls, feed)
            for number, group in enumerate(branches):
                with restored(module, [group]):
                    zero(module, {group.name: (group, (0,))})
                    without = call(module, calls, feed)
                totals[number] += sum(
                    _movement(output, without[name], classes=of_any_run(name) in classes)
                    for name, output in whole.items() if output.is_floating_point())
            samples += samples_of(feed)
    if not samples:
        raise CompressError("the importance of blocks needs calibration samples, and there are none")
    return [total / samples for total in totals]


def _movement(whole: torch.Tensor, without: torch.Tensor, *, classes: bool) -> float:
    """Summed over the samples."""
    if classes:
        predicted, other = (of.double().reshape(-1, of.shape[-1]).log_softmax(-1) for of in (whole, without))
        return 2 * float(functional.kl_div(other, predicted, log_target=True, reduction="sum"))
    spread = whole.std(correction=0).clamp_min(1e-12)
    return float(((without - whole) / spread).double().square().sum())
