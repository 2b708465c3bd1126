"""Which channels must go together: dependency groups from Torch-Pruning's graph, in units that can go alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from compress.prune.branches import Branch
from compress.prune.channels import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED, Place, Role, is_depthwise, width_of
from compress.prune.config import Structure
from compress.prune.forward import Calls, Tensors, call

OPAQUE = (nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention)
WHOLE = "#"                                      # in a place: it is no tensor, but a branch as a whole


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What one layer loses with each unit: ``index[u]`` are the channels of its ``role`` side that unit ``u`` owns.

    Of a parameter that is no layer's own weight, ``tensor`` is its name in the module at ``path``; its role is "out".
    """

    path: str
    role: Role
    index: tuple[tuple[int, ...], ...]
    tensor: str = ""

    @property
    def place(self) -> Place:
        return Place(self.path, self.role, self.tensor)

    def channels(self, units: Iterable[int]) -> list[int]:
        return sorted(channel for unit in units for channel in self.index[unit])


@dataclass(frozen=True, kw_only=True)
class Share:
    """What each unit has of an array that graphs hand to each other: ``index[u]`` are its places along ``axis``.

    ``outputs`` give the array, ``graph/position``, and ``inputs`` take it.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    axis: int
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Units that can each be removed from every layer of the group at once.

    They are hidden channels, attention heads, hidden units of a recurrent layer, or the width that a whole stream of
    layers has in common, as the residual stream of a transformer. A residual branch is a group of one unit.
    """

    name: str                                    # the first producer's module path, or the attention module's
    kind: Structure
    units: int
    edits: tuple[Edit, ...]
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # path -> attribute -> its value per unit
    branch: Branch | None = None                 # that is the group's only unit
    shares: tuple[Share, ...] = ()               # of a decoder's cache, which shrinks as well
    reshaping: tuple[str, ...] = ()              # paths of modules whose reshapes have to take what is left

    @property
    def attention(self) -> tuple[str, ...]:
        """The paths of the modules whose heads the units are."""
        return (tuple(self.attributes) or (self.name,)) if self.kind == "heads" else ()

    @property
    def sides(self) -> tuple[tuple[Place, tuple[int, ...]], ...]:
        """What it takes from, and how many channels with each unit; of a branch that is the place of all of it."""
        whole = () if self.branch is None else ((Place(self.branch.name, "out", WHOLE), (1,)),)
        return whole + tuple((edit.place, tuple(map(len, edit.index))) for edit in self.edits)

    @property
    def producers(self) -> tuple[Edit, ...]:
        return tuple(edit for edit in self.edits if edit.role == "out")

    @property
    def consumers(self) -> tuple[Edit, ...]:
        return tuple(edit for edit in self.edits if edit.role == "in")


def joined(groups: Sequence[tuple[Group, ...]]) -> tuple[Group, ...]:
    """One group, of which each unit is one of every group; of all of them the alternatives to try, in order."""
    made = []
    for number in range(max(map(len, groups))):
        parts = [alternatives[min(number, len(alternatives) - 1)] for alternatives in groups]
        made.append(replace(
            parts[0], name="+".join(part.name for part in parts), edits=tuple(e for part in parts for e in part.edits),
            attributes={path: held for part in parts for path, held in part.attributes.items()},
            shares=tuple(share for part in parts for share in part.shares)))
    return tuple(made)


def find_channel_groups(
    module: nn.Module, calls: Calls, feed: Tensors, *, claimed: Mapping[str, Role] | None = None,
    only: Iterable[str] | None = None,
) -> tuple[list[Group], dict[str, str]]:
    """Groups of hidden channels of Linear and convolution layers, and for every other such layer why it has none.

    Args:
        module: traced through autograd; left as it was.
        calls: the methods to trace, one per graph.
        feed: what each graph is run on, which reaches every branch.
        claimed: sides of layers that another rule prunes (the projections of attention).
        only: the layers that are looked at; all by default.

    Returns:
        ``(groups, skipped)``, ``skipped`` from module path to reason.
    """
    import torch_pruning as tp

    names = {layer: name for name, layer in module.named_modules()}
    claimed = claimed or {}
    wanted = None if only is None else set(only)
    roots = [(name, layer) for name, layer in module.named_modules()
             if isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) and claimed.get(name) != "out"
             and not any(isinstance(module.get_submodule(p), OPAQUE) for p in _parents(name))
             and (wanted is None or name in wanted)]
    skipped: dict[str, str] = {}
    graph = tp.DependencyGraph()
    opaque = {kind: _Opaque() for kind in OPAQUE}
    try:
        with trainable(module), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(module, dict(feed), forward_fn=lambda m, f: _differentiable(call(m, calls, f)),
                                   customized_pruners=opaque, verbose=False)
    except Exception as error:  # Torch-Pruning raises whatever its walk ran into; heads can still be pruned
        reason = f"Torch-Pruning cannot trace the model ({type(error).__name__}: {error})"
        return [], {name: reason for name, _ in roots}
    shared = _shared_layers(module)
    groups: list[Group] = []
    taken: set[tuple[str, int]] = set()          # producing channels that an earlier group owns
    for name, layer in roots:
        if "weight" not in layer._parameters:
            skipped[name] = "it computes its weight (a parametrization): it has none to cut"
            continue
        if layer not in graph.module2node:
            skipped[name] = "its output does not reach an output of the model"
            continue
        if any((name, channel) in taken for channel in range(width_of(layer, "out"))):
            continue
        pruner = graph.get_pruner_of_module(layer)
        try:
            found = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(width_of(layer, "out"))))
        except Exception as error:  # as above
            skipped[name] = f"Torch-Pruning cannot follow its channels ({type(error).__name__}: {error})"
            continue
        refusal = _refusal(graph, found, names, claimed, shared)
        group = None if refusal else _to_group(graph, found, names)
        if group is None:
            skipped[name] = refusal or "no layer reads its channels: they are an output of the model"
            continue
        owned = {(edit.path, c) for edit in group.producers for unit in edit.index for c in unit}
        if taken & owned:
            skipped[name] = "its channels overlap another group's only in part"
            continue
        taken |= owned
        groups.append(group)
    return groups, skipped


def _refusal(
    graph: Any, found: Any, names: Mapping[Any, str], claimed: Mapping[str, Role], shared: set[str],
) -> str | None:
    """Why a dependency group is not pruned, or None: only what keeps the function when the channels are zero stays."""
    for item in found:
        layer = item.dep.target.module
        kind = type(layer).__name__
        name = names.get(layer, "")
        if isinstance(layer, nn.Parameter):
            return "its channels are mixed with a bare parameter of the module"
        if kind == "_OutputOp":
            return "its channels reach an output of the model"
        side: Role = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        if claimed.get(name) == side:
            return f"its channels are those of the attention heads at {name!r}"
        if name in shared:
            return f"the weight of {name!r} is another layer's too"
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS)):
            if getattr(layer, "groups", 1) != 1 and not is_depthwise(layer):
                return f"its channels pass through the grouped convolution {name!r}"
            if "weight" not in layer._parameters:
                return f"layer {name!r} computes its weight (a parametrization): it has none to cut"
            continue
        if name or not kind.startswith("_"):
            return f"its channels pass through {name!r} ({kind}), whose size is tied to them"
    return None


def _to_group(graph: Any, found: Any, names: Mapping[Any, str]) -> Group | None:
    """Units from Torch-Pruning's (index, root index) pairs: channels that share a root, or a place, are one unit."""
    places: dict[tuple[str, Role, int], set[int]] = {}
    for item in found:
        layer = item.dep.target.module
        if layer not in names or not isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS)):
            continue
        out = graph.is_out_channel_pruning_fn(item.dep.handler) or isinstance(layer, BATCH_NORMS) or is_depthwise(layer)
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            places.setdefault((names[layer], "out" if out else "in", int(index)), set()).add(int(root))
    unit_of: dict[int, int] = {}                 # union-find over root channels

    def find(root: int) -> int:
        while unit_of.setdefault(root, root) != root:
            root = unit_of[root]
        return root

    for roots in places.values():
        first, *rest = sorted(roots)
        for other in rest:
            low, high = sorted((find(first), find(other)))
            unit_of[high] = low
        find(first)
    order = {root: unit for unit, root in enumerate(sorted({find(root) for root in unit_of}))}
    edits: dict[tuple[str, Role], list[list[int]]] = {}
    for (path, role, index), roots in places.items():
        edits.setdefault((path, role), [[] for _ in order])[order[find(min(roots))]].append(index)
    made = tuple(Edit(path=path, role=role, index=tuple(tuple(sorted(unit)) for unit in index))
                 for (path, role), index in edits.items())
    if not any(edit.role == "in" for edit in made):
        return None
    name = next(edit.path for edit in made if edit.role == "out")
    return _with_gates(Group(name=name, kind="channels", units=len(order), edits=made))


def _with_gates(group: Group) -> Group:
    """Torch-Pruning follows one half of a gated layer (``a, b = up(x).chunk(2)``): pair each gate with its channel.

    Units that no layer reads cannot go alone. Where they are as many as the others they are taken for the gates, in
    order; the trial tells whether that is right.
    """
    read = [unit for unit in range(group.units) if any(edit.index[unit] for edit in group.consumers)]
    unread = [unit for unit in range(group.units) if unit not in set(read)]
    if len(unread) != len(read):
        return group
    pairs = list(zip(read, unread, strict=True))
    edits = tuple(replace(edit, index=tuple(tuple(sorted(edit.index[a] + edit.index[b])) for a, b in pairs))
                  for edit in group.edits)
    return replace(group, units=len(read), edits=edits)


class _Opaque:
    """Stands in for a layer that Torch-Pruning would cut wrongly: it has no prunable channels, only a place."""

    pruning_dim = -1

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        raise NotImplementedError

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        raise NotImplementedError

    def get_out_channels(self, layer: nn.Module) -> int:
        width = int(getattr(layer, "hidden_size", getattr(layer, "embed_dim", 1)))
        return width * (2 if getattr(layer, "bidirectional", False) else 1)

    def get_in_channels(self, layer: nn.Module) -> int:
        return int(getattr(layer, "input_size", getattr(layer, "embed_dim", 1)))


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _shared_layers(module: nn.Module) -> set[str]:
    """Paths of modules whose weight is also another module's: cutting one would cut both, or tear them apart."""
    owners: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    by_module: dict[int, set[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        by_module.setdefault(id(layer), set()).add(name)
    same = {name: next(iter(sorted(names))) for names in by_module.values() for name in names}
    return {name for names in owners.values() if len({same[n] for n in names}) > 1 for name in names}


def _differentiable(outputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [output for output in outputs.values() if output.grad_fn is not None]


@contextmanager
def trainable(module: nn.Module) -> Iterator[None]:
    """Autograd is the tracer: every floating parameter asks for a gradient inside, and as before after."""
    before = [(p, p.requires_grad) for p in module.parameters() if p.is_floating_point()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)

