"""Prune an ``nn.Module``: find the groups, try each, rank their units, choose, prove, cut."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from compress.errors import CompressError
from compress.prune import PruneConfig, PrunedGroup
from compress.prune.absent import absent, is_absent, take_out
from compress.prune.allocation import allocate
from compress.prune.biases import with_biases
from compress.prune.branches import Branch, Residuals
from compress.prune.bypass import SAMPLES
from compress.prune.channels import Place, Role, width_of
from compress.prune.check import prove, remove, trial, trials
from compress.prune.costs import Costs, Resource, resources_of, widths_of
from compress.prune.forward import Calls, GraphFeeds, Tensors, call, samples_of, tensors
from compress.prune.groups import Group, find_channel_groups, joined
from compress.prune.handed import Handed, Lost, given_less, lost, share_out
from compress.prune.heads import find_head_groups
from compress.prune.importance import rank
from compress.prune.protection import is_protected
from compress.prune.reshaping import reshaping
from compress.prune.streams import find_stream_groups
from compress.prune.tracing import Readers, TracingError

CHECKED = 8                                      # samples the zeroed-channels check runs on
TRACED = 2                                       # samples that show what reads which channel
BATCH = 16                                       # samples at once: what a backward pass through a CLIP keeps fits
PROTECTED = "left whole by protect"
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
    less: Lost = field(default_factory=dict)     # of what graphs hand to each other

    @property
    def absent(self) -> dict[str, list[int]]:
        """Shapes of the tensors of branches that are gone, by name: part of the channel map."""
        return {key: list(shape) for key, shape in absent(self.module).items()}

    @property
    def reshaping(self) -> list[str]:
        """Paths of attention whose reshapes take what there is: part of the channel map."""
        return sorted(reshaping(self.module))


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A module, every group of it that can be pruned, and how much each unit of them would be missed."""

    module: nn.Module
    calls: Calls
    few: Tensors                                 # the samples that removals are checked on
    groups: tuple[Group, ...]
    scores: tuple[np.ndarray, ...]
    costs: Costs
    goals: Mapping[str, float]
    skipped: Mapping[str, str]
    residuals: Residuals = field(default_factory=lambda: Residuals(nn.Module(), {}))

    def branches(self, numbers: Iterable[int]) -> list[Branch]:
        found = (self.groups[number].branch for number in numbers)
        return [branch for branch in found if branch is not None]

    def allowed(self, numbers: Iterable[int]) -> bool:
        """Whether every input of the model is still read without these branches."""
        return not self.residuals.unread(branch.last for branch in self.branches(numbers))


def rank_module(
    module: nn.Module, calls: Calls, batches: Callable[[int], Iterable[GraphFeeds]], macs: Mapping[str, int],
    config: PruneConfig, progress: Progress | None = None, *, classes: frozenset[str] = frozenset(),
    programs: Mapping[str, ExportedProgram] | None = None, handed: Sequence[Handed] = (),
) -> Ranked:
    """Find what can be pruned in ``module``, which is left as it was, and rank it.

    Args:
        module: every floating tensor in float32.
        calls: the methods to keep the function of, one per graph.
        batches: the most samples at once -> feeds of real samples, by graph.
        macs: module path -> MACs of the operations it runs itself.
        config: how much, and what not.
        progress: called with the percent done, 100, and what is being done.
        classes: the outputs that are scores of classes, as :func:`compress.prune.forward.call` names them.
        programs: the graphs of ``module``, in which branches are found; without them none are.
        handed: what the graphs hand to each other, which may shrink.

    Raises:
        CompressError: if nothing can be pruned.
    """
    module = copy.deepcopy(module).eval()
    few = next((tensors(feed) for feed in batches(CHECKED)), None)
    if few is None:
        raise CompressError("pruning needs calibration samples, and there are none")
    pair = next(tensors(feed) for feed in batches(TRACED))
    residuals = Residuals(module, programs or {})
    groups, skipped = find_groups(module, calls, few, config, progress, traced=pair, residuals=residuals,
                                  handed=handed)
    costs = Costs(groups, widths_of(module, groups), _resources(module, groups, macs, config))
    goals = config.goals(round(costs.resources["macs"].total), round(costs.resources["params"].total))
    scores = rank(config.importance, module, groups, [costs.share(number, goals) for number in range(len(groups))],
                  calls, _told(_first(batches, config.samples), config, progress), classes,
                  few=_first(batches, min(SAMPLES, config.samples)))
    return Ranked(module=module, calls=calls, few=few, groups=tuple(groups), scores=tuple(scores), costs=costs,
                  goals=goals, skipped=skipped, residuals=residuals)


def prune_to_goals(ranked: Ranked, config: PruneConfig) -> Pruned:
    """The module without what is missed least for its cost, until no more of it is left than ``config`` says.

    Raises:
        CompressError: if a goal cannot be reached, or a removal would change the function.
    """
    chosen = allocate(ranked.costs, ranked.scores, ranked.goals, rounding=config.rounding, max_share=config.max_share,
                      allowed=ranked.allowed)
    return cut_module(ranked, chosen)


def cut_module(ranked: Ranked, chosen: Sequence[tuple[int, ...]]) -> Pruned:
    """The module without the units ``chosen`` of each group, proved to compute what is left; ``ranked`` stays whole.

    Raises:
        CompressError: if the removal would change the function.
    """
    module = copy.deepcopy(ranked.module)
    gone = ranked.branches(number for number, units in enumerate(chosen) if units)
    unused = set(ranked.residuals.unused(path for branch in gone for path in branch.last)) if gone else set()
    removal = {number: (group, units) for number, (group, units) in enumerate(zip(ranked.groups, chosen, strict=True))
               if units and not within(group, unused)}
    check = prove(module, removal, ranked.calls, ranked.few)
    before = {edit.path: width_of(module.get_submodule(edit.path), "out")
              for group in ranked.groups for edit in group.producers if not edit.tensor}
    attributes = remove(module, removal)
    take_out(module, unused)                     # what several branches share is unused once all of them are gone
    less = lost(removal.values())
    call(module, ranked.calls, given_less(ranked.few, less))
    narrower = {path: width - width_of(module.get_submodule(path), "out") for path, width in before.items()}
    return Pruned(
        module=module, attributes=attributes, skipped=ranked.skipped, check=check, less=less,
        removed={path: number for path, number in narrower.items() if number},
        groups=tuple(PrunedGroup(name=g.name, kind=g.kind, before=g.units, after=g.units - len(units))
                     for g, units in zip(ranked.groups, chosen, strict=True)))


def within(group: Group, tensors: Collection[str]) -> bool:
    """Whether all that a group cuts is among ``tensors``."""
    layers = {key.rpartition(".")[0] for key in tensors}
    return group.branch is None and all(
        f"{edit.path}.{edit.tensor}" in tensors if edit.tensor else edit.path in layers for edit in group.edits)


def find_groups(
    module: nn.Module, calls: Calls, feed: Tensors, config: PruneConfig, progress: Progress | None = None, *,
    traced: Tensors | None = None, residuals: Residuals | None = None, handed: Sequence[Handed] = (),
) -> tuple[list[Group], dict[str, str]]:
    """Every group that a trial on ``feed`` shows can be pruned, and module path -> reason for what cannot.

    ``traced`` may be fewer samples, that what is tied is found with; ``residuals`` has the branches; ``handed`` is what
    the graphs hand to each other, which shrinks with the heads in it.

    Raises:
        CompressError: if none is left.
    """
    heads, skipped, claimed = find_head_groups(module)
    heads = share_out(module, heads, calls, feed if traced is None else traced, handed)
    channels, reasons, of_heads = _channel_groups(module, calls, feed if traced is None else traced, claimed)
    heads, biases = with_biases(heads, of_heads)
    heads = [(*own, *(replace(group, reshaping=group.attention) for group in own)) for own in heads]
    taken = {place.path for place in biases}
    skipped = {**{path: reason for path, reason in reasons.items() if path not in taken}, **skipped}
    branches, reasons = _branch_groups(residuals, config)
    skipped |= reasons
    wanted: list[tuple[Group, ...]] = []
    groups: list[Group] = []
    kept = 0
    for alternatives in (*heads, *channels, *branches):
        if _is_gone(module, alternatives[0]):
            continue
        reason = _unwanted(alternatives[0], config)
        if reason is None:
            wanted.append(alternatives)
        else:
            skipped[alternatives[0].name] = reason
            kept += reason == PROTECTED

    def told(done: int) -> None:
        if progress:
            progress(TRIALS * done // len(wanted), 100, "what can be removed")

    widths = [one for one in wanted if one[0].branch is None]
    # a branch that is silent hides what is wrong with a group in it: they are not tried together
    rest = [one for one in wanted if one[0].branch is not None]
    decided = [*trials(module, widths, calls, feed, told),
               *trials(module, rest, calls, feed, lambda done: told(len(widths) + done))]
    failed = list[tuple[Group, ...]]()
    for alternatives, found in zip((*widths, *rest), decided, strict=True):
        if isinstance(found, str):
            skipped[alternatives[0].name] = found
            failed.append(alternatives)
        else:
            groups.append(found)
    for together in _in_step(failed):
        if not isinstance(found := trial(module, joined(together), calls, feed), str):
            groups.append(found)
            skipped = {path: reason for path, reason in skipped.items() if path not in {g.name for g, *_ in together}}
    modules = dict(module.named_modules())
    skipped = {path: reason for path, reason in skipped.items() if path not in modules or not is_absent(modules[path])}
    if not groups and kept:
        raise CompressError(f"protect={list(config.protect)} leaves nothing to prune: all {kept} groups match it")
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in itertools.islice(skipped.items(), 3))
        raise CompressError(f"nothing in the model can be pruned ({why or 'it has no Linear or convolution layer'})")
    return groups, skipped


def _in_step(failed: Iterable[tuple[Group, ...]]) -> Iterator[list[tuple[Group, ...]]]:
    """Groups of as many units that cannot go alone, and have no side of a layer in common.

    Layers that hand a mask of all heads on lose the same ones, and code may take the width before a layer for that
    behind it.
    """
    by_units: dict[tuple[bool, int], list[tuple[Group, ...]]] = {}
    for alternatives in failed:
        first = alternatives[0]
        if first.branch is None:
            by_units.setdefault((first.kind == "heads", first.units), []).append(alternatives)
    for found in by_units.values():
        places = [edit.place for first, *_ in found for edit in first.edits]
        if len(found) > 1 and len(places) == len({*places}):
            yield found


def _branch_groups(
    residuals: Residuals | None, config: PruneConfig,
) -> tuple[list[tuple[Group, ...]], dict[str, str]]:
    if residuals is None or "blocks" not in config.structures:
        return [], {}
    branches, skipped = residuals.branches()
    return [(Group(name=branch.name, kind="blocks", units=1, edits=(), branch=branch),) for branch in branches], skipped


def _channel_groups(
    module: nn.Module, calls: Calls, feed: Tensors, claimed: Mapping[str, Role],
) -> tuple[list[tuple[Group, ...]], dict[str, str], Mapping[Place, Readers]]:
    """Groups by tracing; where that cannot tell channels apart, or the module computes otherwise each time, of
    Torch-Pruning's graph. And what only the output layers of attention read."""
    try:
        traced = find_stream_groups(module, calls, feed, claimed=claimed)
    except TracingError as error:
        groups, skipped = find_channel_groups(module, calls, feed, claimed=claimed)
        return [(group,) for group in groups], {"": str(error), **skipped}, {}
    if not traced.mixed:
        return traced.alternatives, traced.skipped, traced.of_heads
    others, _ = find_channel_groups(module, calls, feed, claimed=claimed, only=traced.mixed)
    known = {place for (group, *_) in traced.alternatives for place in _channels(group)}
    found = [(group,) for group in others if known.isdisjoint(_channels(group))]
    mended = {edit.path for (group,) in found for edit in group.producers}
    skipped = {path: reason for path, reason in traced.skipped.items() if path not in mended}
    return [*traced.alternatives, *found], skipped, traced.of_heads


def _channels(group: Group) -> Iterator[tuple[Place, int]]:
    return ((edit.place, channel) for edit in group.edits for unit in edit.index for channel in unit)


def _is_gone(module: nn.Module, group: Group) -> bool:
    """Whether a group is all of branches that were removed before."""
    return bool(group.edits) and all(is_absent(module.get_submodule(edit.path), edit.tensor) for edit in group.edits)


def _unwanted(group: Group, config: PruneConfig) -> str | None:
    """Why the settings leave a group whole."""
    paths = {group.name, *(edit.path for edit in group.edits)}
    if group.branch is not None:
        paths = {*group.branch.last, *group.branch.modules, *(key.rpartition(".")[0] for key in group.branch.tensors)}
    if any(is_protected(path, config.protect) for path in paths):
        return PROTECTED
    if group.kind not in config.structures:
        return f"{group.kind} is not among the structures that may shrink"
    step = config.rounding.of(group.units)
    if group.kind not in ("heads", "blocks") and group.units <= step:
        return f"it has {group.units} channels, no more than round_to={step}"
    return None


def _resources(
    module: nn.Module, groups: list[Group], macs: Mapping[str, int], config: PruneConfig,
) -> Iterator[Resource]:
    for resource in resources_of(module, groups, macs):
        yield resource
        if resource.name == "params" and config.size_mb is not None:
            yield resource.times(4e-6, "size_mb")


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
