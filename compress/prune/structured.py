"""Prune an ``nn.Module``: find the groups, try each, rank their units, choose, prove, cut."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from compress.errors import CompressError
from compress.prune import PruneConfig, PrunedGroup
from compress.prune.allocation import Costs, allocate
from compress.prune.channels import width_of
from compress.prune.check import prove, remove, trial
from compress.prune.forward import Calls, GraphFeeds, Tensors, call, samples_of, tensors
from compress.prune.groups import Group, find_channel_groups
from compress.prune.heads import find_head_groups
from compress.prune.importance import magnitude, taylor

CHECKED = 8                                      # samples the zeroed-channels check runs on
BATCH = 32
TRIALS = 60                                      # percent of the progress that finding groups is

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A smaller module, what it lost, what was left whole and why, and the proof."""

    module: nn.Module
    attributes: Mapping[str, Mapping[str, int]]
    groups: tuple[PrunedGroup, ...]
    removed: Mapping[str, int]
    skipped: Mapping[str, str]
    check: float


def prune_module(
    module: nn.Module, calls: Calls, batches: Callable[[int], Iterable[GraphFeeds]], macs: Mapping[str, int],
    config: PruneConfig, progress: Progress | None = None,
) -> Pruned:
    """Return a smaller copy of ``module``, which is left as it was.

    Args:
        module: every floating tensor in float32.
        calls: the methods to keep the function of, one per graph.
        batches: the most samples at once -> feeds of real samples, by graph.
        macs: module path -> MACs of the operations it runs itself.
        config: how much, and what not.
        progress: called with the percent done, 100, and what is being done.

    Raises:
        CompressError: if nothing can be pruned, the share cannot be reached, or a removal would change the function.
    """
    module = copy.deepcopy(module).eval()
    few = next((tensors(feed) for feed in batches(CHECKED)), None)
    if few is None:
        raise CompressError("pruning needs calibration samples, and there are none")
    groups, skipped = find_groups(module, calls, few, config, progress)
    costs = Costs(groups, _widths(module, groups), macs)
    if config.importance == "magnitude":
        scores = magnitude(module, groups, [costs.unit(number) for number in range(len(groups))])
    else:
        scores = taylor(module, groups, calls, _told(_first(batches, config.samples), config, progress))
    chosen = allocate(costs, scores, macs=config.macs, round_to=config.round_to, max_share=config.max_share)
    removal = {group.name: (group, units) for group, units in zip(groups, chosen, strict=True) if units}
    check = prove(module, removal, calls, few)
    before = {path: width_of(module.get_submodule(path), "out") for group in groups for path in
              (edit.path for edit in group.producers)}
    attributes = remove(module, removal)
    call(module, calls, few)
    gone = {path: width - width_of(module.get_submodule(path), "out") for path, width in before.items()}
    return Pruned(
        module=module, attributes=attributes, skipped=skipped, check=check,
        removed={path: number for path, number in gone.items() if number},
        groups=tuple(PrunedGroup(name=g.name, kind=g.kind, before=g.units, after=g.units - len(units))
                     for g, units in zip(groups, chosen, strict=True)))


def find_groups(
    module: nn.Module, calls: Calls, feed: Tensors, config: PruneConfig, progress: Progress | None = None,
) -> tuple[list[Group], dict[str, str]]:
    """Every group that a trial shows can be pruned, and module path -> reason for what cannot.

    Raises:
        CompressError: if none is left.
    """
    heads, skipped, claimed = find_head_groups(module)
    channels, reasons = find_channel_groups(module, calls, feed, claimed=claimed)
    skipped.update(reasons)
    groups: list[Group] = []
    kept = 0
    candidates = [*heads, *((group,) for group in channels)]
    for number, alternatives in enumerate(candidates):
        if progress:
            progress(TRIALS * number // len(candidates), 100, "what can be removed")
        first = alternatives[0]
        if any(_matches(path, config.keep) for path in (first.name, *(edit.path for edit in first.edits))):
            skipped[first.name] = "left whole by keep"
            kept += 1
            continue
        if first.kind == "channels" and first.units <= config.round_to:
            skipped[first.name] = f"it has {first.units} channels, no more than round_to={config.round_to}"
            continue
        found = trial(module, alternatives, calls, feed)
        if isinstance(found, str):
            skipped[first.name] = found
        else:
            groups.append(found)
    if not groups and kept:
        raise CompressError(f"keep={list(config.keep)} leaves nothing to prune: all {kept} groups match it")
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in itertools.islice(skipped.items(), 3))
        raise CompressError(f"nothing in the model can be pruned ({why or 'it has no Linear or convolution layer'})")
    return groups, skipped


def _widths(module: nn.Module, groups: Iterable[Group]) -> dict[tuple[str, str], int]:
    return {(edit.path, edit.role): width_of(module.get_submodule(edit.path), edit.role)
            for group in groups for edit in group.edits}


def _matches(path: str, globs: Iterable[str]) -> bool:
    """A glob holds a module and everything under it."""
    parts = path.split(".")
    prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(prefix, glob) for glob in globs for prefix in prefixes)


def _told(feeds: Iterator[Tensors], config: PruneConfig, progress: Progress | None) -> Iterator[Tensors]:
    """``feeds``, with progress over the samples that importance takes."""
    size = min(BATCH, config.samples)
    for number, feed in enumerate(feeds):
        if progress:
            progress(min(99, TRIALS + (100 - TRIALS) * number * size // config.samples), 100, "importance")
        yield feed


def _first(batches: Callable[[int], Iterable[GraphFeeds]], samples: int) -> Iterator[Tensors]:
    taken = 0
    for feeds in batches(min(BATCH, samples)):
        given = tensors(feeds)
        yield given
        taken += samples_of(given)
        if taken >= samples:
            return
