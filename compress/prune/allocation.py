"""Which units go: the least important per multiply-accumulate first, over all layers, until the goal is met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compress.errors import CompressError
from compress.prune.groups import Edit, Group


class Costs:
    """MACs of the model as its groups shrink: a layer's are proportional to the width of each of its sides."""

    def __init__(self, groups: Sequence[Group], widths: Mapping[tuple[str, str], int], macs: Mapping[str, int]) -> None:
        """``macs`` is module path -> its own MACs; ``widths`` is (module path, "in" or "out") -> channels."""
        self.groups, self.widths = groups, widths
        edited = {edit.path for group in groups for edit in group.edits}
        self.layers = {path: float(macs.get(path, 0)) for path in sorted(edited)}
        self.cores = [float(macs.get(group.name, 0)) if group.kind == "heads" else 0.0 for group in groups]
        self.total = float(sum(macs.values()))
        self.rest = self.total - sum(self.layers.values()) - sum(self.cores)

    def unit(self, number: int) -> float:
        """MACs one unit of group ``number`` costs while every other group is whole (its mean, if units differ)."""
        group = self.groups[number]
        shares = (self.layers[edit.path] * _size(edit) / self.widths[edit.path, edit.role] for edit in group.edits)
        return (sum(shares) + self.cores[number]) / group.units

    def estimate(self, removed: Sequence[Sequence[int]]) -> float:
        """MACs of the model once every group has lost the units given."""
        lost: dict[tuple[str, str], int] = {}
        total = self.rest
        for group, core, units in zip(self.groups, self.cores, removed, strict=True):
            total += core * (1 - len(units) / group.units)
            for edit in group.edits:
                place = edit.path, edit.role
                lost[place] = lost.get(place, 0) + sum(len(edit.index[unit]) for unit in units)
        for path, macs in self.layers.items():
            for role in ("in", "out"):
                if lost.get((path, role)):
                    macs *= 1 - lost[path, role] / self.widths[path, role]
            total += macs
        return total


def allocate(
    costs: Costs, importance: Sequence[np.ndarray], *, macs: float, round_to: int, max_share: float,
) -> list[tuple[int, ...]]:
    """Units each group loses, so that at most the share ``macs`` of the model's MACs stays.

    Args:
        importance: per group, shape ``(units,)``, in one scale over all groups.
        macs: share of the MACs to keep, in (0, 1].
        round_to: channel counts stay multiples of this; heads go one at a time.
        max_share: the largest share of its units a group may lose.

    Raises:
        CompressError: if the share cannot be reached; says the smallest that can.
    """
    blocks: list[tuple[float, int, int, tuple[int, ...]]] = []   # score, group, position, units
    for number, (group, scores) in enumerate(zip(costs.groups, importance, strict=True)):
        order = [int(unit) for unit in np.argsort(scores, kind="stable")]
        per_mac = scores / max(costs.unit(number), 1e-30)
        worst = 0.0
        for position, units in enumerate(_blocks(group, order, round_to, max_share)):
            worst = max(worst, float(np.mean(per_mac[list(units)])))     # the blocks of a group go in order
            blocks.append((worst, number, position, units))
    removed: list[list[int]] = [[] for _ in costs.groups]
    taken: list[tuple[float, int, int, tuple[int, ...]]] = []
    reached = costs.total
    for block in sorted(blocks):
        if reached <= macs * costs.total:
            break
        removed[block[1]].extend(block[3])
        taken.append(block)
        reached = costs.estimate(removed)
    if reached > macs * costs.total:
        raise CompressError(
            f"cannot prune to {macs:.0%} of the MACs: the smallest share that can be reached is "
            f"{math.ceil(1000 * reached / costs.total) / 1000:.1%}, with every prunable layer at its least "
            f"(round_to={round_to}, max_share={max_share:g}): ask for a larger share, or list less in keep")
    _give_back(costs, removed, taken, macs * costs.total)
    return [tuple(sorted(units)) for units in removed]


def _give_back(
    costs: Costs, removed: list[list[int]], taken: Sequence[tuple[float, int, int, tuple[int, ...]]], limit: float,
) -> None:
    """The last block may have saved more than was needed: put back, most important first, what still fits."""
    full: set[int] = set()                                # a group's blocks are put back last first, or not at all
    for _, number, _, units in reversed(taken):
        if number in full:
            continue
        without = [kept[:-len(units)] if n == number else kept for n, kept in enumerate(removed)]
        if costs.estimate(without) <= limit:
            removed[number] = without[number]
        else:
            full.add(number)


def _blocks(group: Group, order: Sequence[int], round_to: int, max_share: float) -> list[tuple[int, ...]]:
    step = round_to if group.kind == "channels" else 1
    least = max(step, math.ceil(group.units * (1 - max_share) / step - 1e-9) * step)
    blocks: list[tuple[int, ...]] = []
    left = group.units
    while (size := left % step or step) <= left - least:
        start = group.units - left
        blocks.append(tuple(order[start:start + size]))
        left -= size
    return blocks


def _size(edit: Edit) -> int:
    return sum(len(channels) for channels in edit.index)
