"""Both steps of pruning a bare module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn

from compress.prune import PruneConfig
from compress.prune.forward import Calls, GraphFeeds
from compress.prune.structured import Pruned, prune_to_goals, rank_module


def prune_module(
    module: nn.Module, calls: Calls, batches: Callable[[int], Iterable[GraphFeeds]], macs: Mapping[str, int],
    config: PruneConfig,
) -> Pruned:
    return prune_to_goals(rank_module(module, calls, batches, macs, config), config)
