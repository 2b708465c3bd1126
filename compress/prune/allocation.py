"""Which units go: the least important for what they cost first, over all layers, until the goals are met."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from compress.errors import CompressError
from compress.prune.costs import Costs
from compress.prune.groups import Group
from compress.prune.rounding import NEAR, Rounding

Step = tuple[float, int, int, tuple[int, ...]]
"""Score, group, position in it, units."""

Allowed = Callable[[Sequence[int]], bool]
"""Whether all of these groups, which are branches, may go."""

SHARES = {"macs": "MACs", "params": "parameters"}          # goals that are told as a share of the whole


def allocate(
    costs: Costs, importance: Sequence[np.ndarray], goals: Mapping[str, float], *, rounding: Rounding, max_share: float,
    allowed: Allowed = lambda branches: True,
) -> list[tuple[int, ...]]:
    """Units each group loses, so that of every resource in ``goals`` no more stays than it says.

    Args:
        costs: of the whole model.
        importance: per group, shape ``(units,)``, in one scale over all groups.
        goals: resource -> the most that may be left of it, in its own unit.
        rounding: what channel counts stay multiples of; heads go one at a time.
        max_share: the largest share of its units a group may lose, and the largest of all branches that may go.
        allowed: branches that may not go together are not taken.

    Raises:
        CompressError: if a goal cannot be reached; says the least that can.
    """
    waiting, behind = list[Step](), list[Step]()
    for number, (group, scores) in enumerate(zip(costs.groups, importance, strict=True)):
        per_cost = scores / max(costs.share(number, goals), 1e-30)
        worst, whole = 0.0, steps(group, scores, rounding, max_share)
        for position, units in enumerate([*whole, *smaller_steps(group, scores, rounding, max_share)]):
            worst = max(worst, float(np.mean(per_cost[list(units)])))    # the steps of a group go in order
            (waiting if position < len(whole) else behind).append((worst, number, position, units))
    removed: list[list[int]] = [[] for _ in costs.groups]
    taken: list[Step] = []
    for left in (waiting, behind):
        _take(costs, importance, goals, left, removed, taken, most_branches(costs.groups, max_share), allowed)
    if not _met(costs, goals):
        raise CompressError(_unreachable(costs, goals, rounding, max_share))
    _give_back(costs, removed, taken, goals)
    _come_near(costs, removed, taken, goals, rounding)
    return [tuple(sorted(units)) for units in removed]


def _take(
    costs: Costs, importance: Sequence[np.ndarray], goals: Mapping[str, float], waiting: list[Step],
    removed: list[list[int]], taken: list[Step], most: int, allowed: Allowed,
) -> None:
    """Of what is ``waiting`` what is missed least for its cost, until the goals are met; ``most`` branches at most."""
    heapq.heapify(waiting)
    while waiting and not _met(costs, goals):
        step = heapq.heappop(waiting)
        _, number, position, units = step
        if costs.groups[number].branch is not None:
            score = float(importance[number][0]) / max(costs.saved(number, units, goals), 1e-30)
            if score > step[0] * (1 + 1e-9):     # less is left of it than there was: it may be another's turn
                heapq.heappush(waiting, (score, number, position, units))
                continue
            gone = [other for other, own in enumerate(removed) if own and costs.groups[other].branch is not None]
            if len(gone) >= most or not allowed([*gone, number]):
                continue
        elif costs.saved(number, units, goals) <= 0:                     # its branch is gone
            continue
        costs.take(number, units)
        removed[number].extend(units)
        taken.append(step)


def most_branches(groups: Sequence[Group], max_share: float) -> int:
    """How many branches may go at most."""
    return math.floor(max_share * sum(group.branch is not None for group in groups))


def steps(group: Group, scores: np.ndarray, rounding: Rounding, max_share: float) -> list[tuple[int, ...]]:
    """The units of a group that may go, the least important first, in the steps in which they may."""
    if group.branch is not None:
        return [(0,)]
    return _steps(scores, 0, 1 if group.kind == "heads" else rounding.of(group.units), max_share)


def smaller_steps(group: Group, scores: np.ndarray, rounding: Rounding, max_share: float) -> list[tuple[int, ...]]:
    """Those behind :func:`steps` that may go where no goal is met without them."""
    if group.kind in ("heads", "blocks"):
        return []
    gone = sum(map(len, steps(group, scores, rounding, max_share)))
    found: list[tuple[int, ...]] = []
    for step in rounding.less(group.units):
        found += _steps(scores, gone + sum(map(len, found)), step, max_share)
    return found


def _steps(scores: np.ndarray, gone: int, step: int, max_share: float) -> list[tuple[int, ...]]:
    order = [int(unit) for unit in np.argsort(scores, kind="stable")]
    least = max(step, math.ceil(len(order) * (1 - max_share) / step - 1e-9) * step)
    found: list[tuple[int, ...]] = []
    while (size := (len(order) - gone) % step or step) <= len(order) - gone - least:
        found.append(tuple(order[gone:gone + size]))
        gone += size
    return found


def _met(costs: Costs, goals: Mapping[str, float]) -> bool:
    return all(costs.reached[goal] <= limit * (1 + 1e-9) for goal, limit in goals.items())


def _give_back(costs: Costs, removed: list[list[int]], taken: Sequence[Step], goals: Mapping[str, float]) -> None:
    """The last step may have saved more than was needed: put back, most important first, what still fits."""
    full: set[int] = set()                                # a group's steps are put back last first, or not at all
    for _, number, _, units in reversed(taken):
        if number in full:
            continue
        costs.give(number, units)
        if _met(costs, goals):
            del removed[number][-len(units):]
        else:
            costs.take(number, units)
            full.add(number)


def _come_near(
    costs: Costs, removed: list[list[int]], taken: Sequence[Step], goals: Mapping[str, float], rounding: Rounding,
) -> None:
    """Where whole steps overshoot all goals by far, part of the last ones is put back: in steps as large as can be."""
    for _, number, _, _ in reversed(taken):
        group, gone = costs.groups[number], removed[number]
        if group.kind in ("heads", "blocks"):
            continue
        for step in rounding.less(group.units):
            while len(gone) > step and all(costs.reached[goal] < NEAR * limit for goal, limit in goals.items()):
                costs.give(number, gone[-step:])
                if not _met(costs, goals):
                    costs.take(number, gone[-step:])
                    break
                del gone[-step:]


def _unreachable(costs: Costs, goals: Mapping[str, float], rounding: Rounding, max_share: float) -> str:
    told = []
    for goal, limit in goals.items():
        total, reached = costs.resources[goal].total, costs.reached[goal]
        if reached <= limit * (1 + 1e-9):
            continue
        if goal in SHARES:
            told.append(f"{limit / total:.0%} of the {SHARES[goal]}: the smallest share that can be reached is "
                        f"{math.ceil(1000 * reached / total) / 1000:.1%}")
        else:
            told.append(f"{limit:.3g} MB: the least that can be reached is {reached:.3g} MB of {total:.3g} MB")
    return (f"cannot prune to {', nor to '.join(told)}, with every prunable layer at its least ({rounding}, "
            f"max_share={max_share:g}): ask for more, or list less in protect")
