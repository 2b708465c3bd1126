"""What a model costs as its groups shrink: multiply-accumulates and parameters, by the width of each layer's sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from compress.prune.channels import RNNS, Place, width_of
from compress.prune.groups import WHOLE, Group

Units = Sequence[int]


@dataclass(frozen=True)
class Item:
    """Part of a cost, proportional to what is left of each of its ``places``; one named twice counts twice."""

    amount: float
    places: tuple[Place, ...]


class Held(NamedTuple):
    """What one parameter, by its id, costs."""

    parameter: int
    item: Item


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One kind of cost: ``fixed`` is what no group changes."""

    name: str                                    # "macs", "params"
    items: tuple[Item, ...]
    fixed: float = 0.0

    @property
    def total(self) -> float:
        return self.fixed + sum(item.amount for item in self.items)

    def times(self, factor: float, name: str) -> Resource:
        """The same in another unit."""
        return Resource(name=name, fixed=self.fixed * factor,
                        items=tuple(Item(item.amount * factor, item.places) for item in self.items))


class Costs:
    """Costs of the model while units are taken from its groups and put back; one estimate for each resource."""

    def __init__(
        self, groups: Sequence[Group], widths: Mapping[Place, int], resources: Iterable[Resource]
    ) -> None:
        """``widths`` is the number of channels of every place that a group edits."""
        self.groups, self.widths = groups, widths
        self.resources = {resource.name: resource for resource in resources}
        self.reached = {name: resource.total for name, resource in self.resources.items()}
        self._lost = dict.fromkeys(widths, 0)
        self._reading: dict[Place, dict[str, list[Item]]] = {}
        for name, resource in self.resources.items():
            for item in resource.items:
                for place in dict.fromkeys(item.places):
                    self._reading.setdefault(place, {}).setdefault(name, []).append(item)
        self._sizes = [group.sides for group in groups]

    def unit(self, number: int, resource: str) -> float:
        """What one unit of group ``number`` costs while every other group is whole (its mean, if units differ)."""
        shares = {place: sum(sizes) / self.widths[place] for place, sizes in self._sizes[number]}
        items = {id(item): item for place in shares for item in self._reading.get(place, {}).get(resource, [])}
        return sum(item.amount * sum(shares.get(place, 0.0) for place in item.places)
                   for item in items.values()) / self.groups[number].units

    def share(self, number: int, goals: Iterable[str]) -> float:
        """The share of the model's costs that one unit of group ``number`` is, added up over ``goals``."""
        return sum(self.unit(number, goal) / max(self.resources[goal].total, 1e-30) for goal in goals)

    def saved(self, number: int, units: Units, goals: Iterable[str]) -> float:
        """The share of the model's costs, added up over ``goals``, that goes with these ``units`` as things stand."""
        before = dict(self.reached)
        self.take(number, units)
        found = sum((before[goal] - self.reached[goal]) / max(self.resources[goal].total, 1e-30) for goal in goals)
        self.give(number, units)
        self.reached = before
        return found

    def take(self, number: int, units: Units) -> None:
        """Group ``number`` loses ``units``."""
        self._move(number, units, 1)

    def give(self, number: int, units: Units) -> None:
        """Group ``number`` gets ``units`` back."""
        self._move(number, units, -1)

    def _move(self, number: int, units: Units, sign: int) -> None:
        moved = {place: sign * sum(sizes[unit] for unit in units) for place, sizes in self._sizes[number]}
        touched = {(name, id(item)): item for place in moved
                   for name, items in self._reading.get(place, {}).items() for item in items}
        before = {key: self._left(item) for key, item in touched.items()}
        for place, lost in moved.items():
            self._lost[place] += lost
        for key, item in touched.items():
            self.reached[key[0]] += self._left(item) - before[key]

    def _left(self, item: Item) -> float:
        amount = item.amount
        for place in item.places:
            if self._lost.get(place):
                amount *= 1 - self._lost[place] / self.widths[place]
        return amount


def resources_of(module: nn.Module, groups: Sequence[Group], macs: Mapping[str, int]) -> list[Resource]:
    """The multiply-accumulates and the parameters of ``module``, as far as ``groups`` change them.

    Args:
        macs: module path -> MACs of the operations it runs itself; those of attention are its heads'.
    """
    widths = widths_of(module, groups)
    work: dict[str, list[Item]] = {}             # module path -> items
    held: list[Held] = []
    counted: set[int] = set()
    for path in sorted({place.path for place in widths if place.tensor != WHOLE}):
        layer = module.get_submodule(path)
        sides = [place for place in (Place(path, "in"), Place(path, "out")) if place in widths]
        tensors = {name: p for name, p in layer._parameters.items() if p is not None}
        if isinstance(layer, RNNS):
            parts = {name: _recurrent(path, name, widths) for name in tensors}
            matrices = sum(p.numel() for p in tensors.values() if p.dim() == 2)
            work[path] = [Item(macs.get(path, 0) * p.numel() / matrices, parts[n]) for n, p in tensors.items()
                          if p.dim() == 2]
        else:
            parts = {name: _tensor(path, name, p.dim(), sides, widths) for name, p in tensors.items()}
            own = [place for place in sides if not place.tensor]
            if own:
                work[path] = [Item(float(macs.get(path, 0)), tuple(own))]
        for name, parameter in tensors.items():
            if id(parameter) not in counted and parts[name]:
                counted.add(id(parameter))
                held.append(Held(id(parameter), Item(float(parameter.numel()), parts[name])))
    for group in groups:
        for path in group.attention:
            if macs.get(path) and path not in work:
                work[path] = [Item(float(macs[path]), (group.consumers[0].place,))]
    _of_branches(module, groups, macs, work, held)
    whole = {id(p): p.numel() for p in module.parameters()}
    return [
        Resource(name="macs", items=tuple(item for items in work.values() for item in items),
                 fixed=float(sum(macs.values()) - sum(macs.get(path, 0) for path in work))),
        Resource(name="params", items=tuple(one.item for one in held),
                 fixed=float(sum(whole.values()) - sum(one.item.amount for one in held))),
    ]


def _of_branches(
    module: nn.Module, groups: Iterable[Group], macs: Mapping[str, int], work: dict[str, list[Item]], held: list[Held],
) -> None:
    """What is a branch's alone goes with it, whatever is left of it."""
    keys = {key: id(parameter) for key, parameter in module.named_parameters(remove_duplicate=False)}
    sizes = {id(parameter): parameter.numel() for parameter in module.parameters()}
    for group in groups:
        if group.branch is None:
            continue
        ((whole, _),) = group.sides
        for path in group.branch.modules:
            items = work.get(path) or ([Item(float(macs[path]), ())] if macs.get(path) else [])
            work[path] = [Item(item.amount, (*item.places, whole)) for item in items]
        own = {keys[key] for key in group.branch.tensors if key in keys}
        known = {one.parameter for one in held}
        held += [Held(parameter, Item(float(sizes[parameter]), ())) for parameter in sorted(own - known)]
        held[:] = [Held(id_, Item(item.amount, (*item.places, whole))) if id_ in own else Held(id_, item)
                   for id_, item in held]


def widths_of(module: nn.Module, groups: Iterable[Group]) -> dict[Place, int]:
    return {place: 1 if place.tensor == WHOLE else width_of(module.get_submodule(place.path), place.role, place.tensor)
            for group in groups for place, _ in group.sides}


def _tensor(path: str, name: str, axes: int, sides: Sequence[Place], widths: Mapping[Place, int]) -> tuple[Place, ...]:
    own = Place(path, "out", name)
    if own in widths:
        return (own,)
    return tuple(sides) if axes > 1 else tuple(place for place in sides if place.role == "out")


def _recurrent(path: str, name: str, widths: Mapping[Place, int]) -> tuple[Place, ...]:
    """``weight_hh`` has its hidden units on both sides, and so has ``weight_ih`` from the second layer on."""
    out, enter = Place(path, "out"), Place(path, "in")
    second = () if name.startswith("bias") else (enter if name.startswith("weight_ih_l0") else out,)
    return tuple(place for place in (out, *second) if place in widths)


