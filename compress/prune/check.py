"""Remove units for a trial or for good, and prove that what is left computes what the zeroed original computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune.absent import silence, take_out
from compress.prune.branches import Branch
from compress.prune.channels import (
    RNNS,
    Place,
    Role,
    axis_of,
    cut,
    is_depthwise,
    is_norm,
    tie,
    ties,
    weight_of,
    width_of,
)
from compress.prune.forward import Calls, Tensors, call
from compress.prune.groups import Group
from compress.prune.handed import given_less, lost, made_less
from compress.prune.reshaping import let_reshape
from compress.prune.tracing import channel_axis

TOLERANCE = 1e-4                                 # of the largest output; fp32 sums in another order differ by ~1e-6

Removal: TypeAlias = Mapping[Any, tuple[Group, tuple[int, ...]]]
"""By any key, a group and the units it loses."""


class FunctionChangedError(Exception):
    """A removal that is not what it should be; says how the outputs differ."""


def remove(module: nn.Module, removal: Removal) -> dict[str, dict[str, int]]:
    """Cut the units out of ``module``, in place; returns the attributes rewritten, for the model's channel map."""
    attributes: dict[str, dict[str, int]] = {}
    tied = ties(module)
    for (path, role, tensor), channels in _channels(removal, ("in", "out")).items():
        layer = module.get_submodule(path)
        cut(layer, role, channels, tensor)
        if is_depthwise(layer) or getattr(layer, "groups", 1) != 1:
            attributes.setdefault(path, {})["groups"] = int(layer.groups)  # type: ignore[arg-type]
    tie(tied)
    for group, units in removal.values():
        let_reshape(module, group.reshaping)
        kept = group.units - len(units)
        for path, per_unit in group.attributes.items():
            for name, value in per_unit.items():
                setattr(module.get_submodule(path), name, value * kept)
                attributes.setdefault(path, {})[name] = value * kept
    take_out(module, {key for branch in _branches(removal) for key in branch.tensors})
    return attributes


def zero(module: nn.Module, removal: Removal) -> None:
    """Silence the units, in place and at full size: the function the smaller module must have.

    The weights that read them are zeroed, also those of a recurrent layer that read its own hidden units. A norm over
    a width that shrinks is told to normalise over what is left: that is what removing channels there means. Of a
    branch the result is zero.
    """
    for (path, role, tensor), channels in _channels(removal, ("in", "out")).items():
        layer = module.get_submodule(path)
        if isinstance(layer, RNNS):
            for name in layer._flat_weights_names:
                _zero_columns(layer, name, _read_columns(layer, name, role, channels), 1)
            layer._flat_weights = [layer._parameters.get(name) for name in layer._flat_weights_names]
        elif is_norm(layer) and not tensor:
            layer.__dict__["forward"] = _over_the_rest(layer, channels)
        elif role == "in":
            _zero_columns(layer, "weight", channels, axis_of(layer, role))
    silence(module, {path for branch in _branches(removal) for path in branch.last})


def _branches(removal: Removal) -> list[Branch]:
    return [group.branch for group, units in removal.values() if group.branch is not None and units]


def _zero_columns(layer: nn.Module, name: str, channels: Sequence[int], axis: int) -> None:
    if channels:
        weight = weight_of(layer, name).detach().clone()
        weight.index_fill_(axis, torch.tensor(channels, device=weight.device), 0.0)
        layer._parameters[name] = nn.Parameter(weight, requires_grad=False)


def _read_columns(layer: nn.RNNBase, name: str, role: Role, channels: Sequence[int]) -> list[int]:
    """The columns of one of a recurrent layer's weights that read ``channels`` of its input, or its hidden units."""
    weight = layer._parameters[name]
    if weight is None or weight.dim() != 2 or name.startswith("weight_hr"):
        return []
    if name.startswith("weight_ih_l0"):
        return list(channels) if role == "in" else []
    if role == "in":
        return []
    return [channel + start for start in range(0, weight.shape[1], layer.hidden_size) for channel in channels]


def _over_the_rest(layer: nn.Module, channels: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    smaller = copy.deepcopy(layer)
    cut(smaller, "out", channels)
    kept = torch.tensor([c for c in range(width_of(layer, "out")) if c not in set(channels)])

    def forward(x: torch.Tensor) -> torch.Tensor:
        axis = channel_axis(layer, x)
        return torch.zeros_like(x).index_copy(axis, kept, smaller(x.index_select(axis, kept)))

    return forward


@contextmanager
def restored(module: nn.Module, groups: Iterable[Group]) -> Iterator[None]:
    """Whatever happens inside to the layers of ``groups``, they are as before after."""
    groups = list(groups)
    branches = [group.branch for group in groups if group.branch is not None]
    paths = {edit.path for group in groups for edit in group.edits} | {p for g in groups for p in g.attributes}
    paths |= {path for branch in branches for path in branch.last}
    paths |= {key.rpartition(".")[0] for branch in branches for key in branch.tensors}
    before = []
    for path in sorted(paths):
        layer = module.get_submodule(path)
        held = {"_parameters": dict(layer._parameters), "_buffers": dict(layer._buffers),
                "_non_persistent_buffers_set": set(layer._non_persistent_buffers_set)}
        before.append((layer, type(layer), layer.__dict__ | held))
    try:
        yield
    finally:
        for layer, kind, state in before:
            layer.__class__ = kind
            layer.__dict__.clear()
            layer.__dict__.update(state)


def compare(module: nn.Module, removal: Removal, calls: Calls, feed: Tensors) -> float:
    """Largest absolute difference between the zeroed module's outputs and the smaller one's; ``module`` is restored.

    What graphs hand to each other is given, and compared, without what went of it.

    Raises:
        FunctionChangedError: if the smaller module cannot run, an output has another shape, or one differs by more than
            ``TOLERANCE`` of the largest output.
    """
    groups = [group for group, _ in removal.values()]
    less = lost(removal.values())
    with torch.no_grad():
        with restored(module, groups):
            zero(module, removal)
            expected = made_less(call(module, calls, feed), less)
        with restored(module, groups):
            remove(module, removal)
            try:
                found = call(module, calls, given_less(feed, less))
            except Exception as error:  # the user's forward, on sizes it was not written for
                raise FunctionChangedError(f"forward fails: {type(error).__name__}: {_first_line(error)}") from error
    return difference(expected, found)


def difference(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> float:
    worst = 0.0
    for name, value in expected.items():
        other = found.get(name)
        if other is None or other.shape != value.shape:
            raise FunctionChangedError(f"output {name} has shape {None if other is None else tuple(other.shape)} "
                                  f"instead of {tuple(value.shape)}")
        if not value.is_floating_point() or value.numel() == 0:
            continue                                      # an arg-max may flip where two scores tie
        if not torch.isfinite(value).all():
            raise CompressError(f"output {name} of the original is not finite on the calibration samples: "
                                "pruning cannot be checked on it")
        deviation = float((value - other).abs().max())
        scale = float(value.abs().max())
        if not deviation <= TOLERANCE * scale + 1e-7:
            raise FunctionChangedError(f"with the removed units zeroed, output {name} moves by {deviation:.3g} "
                                  f"(its largest value is {scale:.3g})")
        worst = max(worst, deviation)
    return worst


def trials(
    module: nn.Module, candidates: Sequence[Sequence[Group]], calls: Calls, feed: Tensors,
    told: Callable[[int], None] = lambda done: None,
) -> list[Group | str]:
    """Of each candidate the first of its alternatives that loses a third of its units and keeps its function, or why
    none does.

    The units are drawn at random: a regular choice can agree with a wrong index mapping (halves of a gated layer).
    All are tried at once, and halves of them where that fails, until each that is at fault stands alone; each loses
    another number than the one before, lest what has to be as wide agrees. ``told`` gets the number of candidates that
    are decided.
    """
    found: list[Group | str] = [""] * len(candidates)
    waiting = [list(range(len(candidates)))] if candidates else []
    done = 0
    while waiting:
        some = waiting.pop()
        if len(some) == 1:
            found[some[0]] = trial(module, candidates[some[0]], calls, feed)
            done += 1
        elif some:
            firsts = [candidates[number][0] for number in some]
            try:
                compare(module, {number: (group, _drawn(group, number))
                                 for number, group in zip(some, firsts, strict=True)}, calls, feed)
            except FunctionChangedError:
                waiting += [some[len(some) // 2:], some[:len(some) // 2]]
            else:
                for number, group in zip(some, firsts, strict=True):
                    found[number] = group
                done += len(some)
        told(done)
    return found


def trial(module: nn.Module, alternatives: Sequence[Group], calls: Calls, feed: Tensors) -> Group | str:
    """The first of ``alternatives`` that loses a third of its units and keeps its function, or why none does."""
    reason = ""
    for group in alternatives:
        if group.units < 2 and group.branch is None:
            return "it has one unit"
        try:
            compare(module, {group.name: (group, _drawn(group))}, calls, feed)
        except FunctionChangedError as error:
            reason = reason or f"a trial removal changed the function: {error}"
        else:
            return group
    return reason


def _drawn(group: Group, number: int = 0) -> tuple[int, ...]:
    """A third of the units, or more by the ``number`` of the group; two are left at least, since one fits many."""
    third = max(1, group.units // 3)
    size = third + number % max(1, group.units - third - 1)
    drawn = np.random.default_rng(0).choice(group.units, size=size, replace=False)
    return tuple(sorted(int(unit) for unit in drawn))


def prove(module: nn.Module, removal: Removal, calls: Calls, feed: Tensors) -> float:
    """:func:`compare` for the removal that is about to be made; names the group at fault.

    Raises:
        CompressError: if the smaller module is not the zeroed one.
    """
    try:
        return compare(module, removal, calls, feed)
    except FunctionChangedError as error:
        fault, reason = "the groups together", error
        for group, units in removal.values():
            try:
                compare(module, {group.name: (group, units)}, calls, feed)
            except FunctionChangedError as alone:
                fault, reason = f"{'branch' if group.branch else 'group'} {group.name!r}", alone
                break
        raise CompressError(f"pruning {fault} would change the function of the model: {reason}. Nothing was pruned; "
                            f"name it in PruneConfig.protect to leave it whole") from reason


def _channels(removal: Removal, roles: tuple[Role, ...]) -> dict[Place, list[int]]:
    """All channels each side of a layer loses, in its original numbering; several groups may share a side."""
    found: dict[Place, set[int]] = {}
    for group, units in removal.values():
        for edit in group.edits:
            if edit.role in roles:
                found.setdefault(edit.place, set()).update(edit.channels(units))
    return {place: sorted(channels) for place, channels in found.items() if channels}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
