"""Which channels must go together: of layers, recurrent ones among them, embeddings, parameters, and residual streams.

What reads each channel is traced (:mod:`compress.prune.tracing`); channels that meet in one column of a layer go
together. Where they pass a LayerNorm, the smaller one normalises over what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from compress.prune.absent import is_absent
from compress.prune.channels import BATCH_NORMS, RNNS, Place, axis_of, is_norm, is_per_channel, name_of, ties, width_of
from compress.prune.config import Structure
from compress.prune.forward import Calls, Tensors
from compress.prune.groups import Edit, Group
from compress.prune.tracing import BESIDE, Readers, Tracer

Node = tuple[Place, int]

MIXED = "its channels are mixed with each other before a layer reads them"
PLAIN = {"weight", "weight_ih_l0"}               # what a layer whose channels can be cut calls its weight
WIDTHS = ("width", "dim", "embed_dim", "hidden_size", "d_model", "n_embd", "hidden_dim", "embedding_size", "input_size",
          "in_features", "out_features", "num_channels")
"""What modules call the number of channels that they work on."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """``alternatives`` are of each group the forms to try, which differ in the attributes that are rewritten."""

    alternatives: list[tuple[Group, ...]]
    skipped: dict[str, str]                      # path of a layer -> why it is in no group
    mixed: tuple[str, ...]                       # layers of which it could not be told which channel is read where
    of_heads: dict[Place, Readers]               # sources that only the output layers of attention read


def find_stream_groups(module: nn.Module, calls: Calls, feed: Tensors, *, claimed: Mapping[str, str]) -> Found:
    """Groups of channels, of all layers and parameters.

    Args:
        module: left as it was.
        calls: the methods to trace, one per graph.
        feed: what each graph is run on, which reaches every branch; a sample or two are enough.
        claimed: sides of layers that the rule for attention heads has.
    """
    tracer = Tracer(module, calls, feed)
    joined, reasons, mixed, of_heads = _Joined(), dict[Place, str](), list[str](), dict[Place, Readers]()
    sources = dict(_sources(module, tracer, claimed))
    for source, readers in tracer.trace(sources).items():
        width = sources[source]
        if source.tensor and not _is_channels(module, readers, width):
            continue
        reason = _refusal(module, source, readers, claimed)
        if reason is not None:
            reasons[source] = reason
        if reason == MIXED:
            mixed.append(source.path)
        if reason is not None and not readers.reaches_output and all(
                claimed.get(path) == "in" for read in readers.read for path in read):
            of_heads[source] = readers
        for channel, read in enumerate(readers.read):
            joined.join([(source, channel), *((place_of(module, path), column)
                                              for path, columns in read.items() for column in columns)])
    for place, other in _tied(module, sources):
        for channel in range(width_of(module.get_submodule(place.path), place.role)):
            joined.join([(place, channel), (other, channel)])
    groups, skipped = _grouped(module, joined, reasons, list(sources))
    return Found(alternatives=[tuple(_variants(module, group)) for group in groups], skipped=skipped,
                 mixed=tuple(mixed), of_heads=of_heads)


def place_of(module: nn.Module, path: str) -> Place:
    """The side of the layer at ``path`` that reads: of one that works on each channel alone it is called its out."""
    layer = module.get_submodule(path.partition(BESIDE)[0])
    return Place(path, "out" if is_per_channel(layer) else "in")


def _sources(
    module: nn.Module, tracer: Tracer, claimed: Mapping[str, str],
) -> Iterator[tuple[Place, int]]:
    """What makes channels, and how many: layers that ran, and parameters that are no layer's own."""
    for path, layer in module.named_modules():
        place = Place(path, "out")
        if path in tracer.layers and tracer.called(path):
            if claimed.get(path) != "out":
                yield place, _answers(layer)
        elif path not in tracer.layers or isinstance(layer, nn.Embedding):
            kept = {name: b for name, b in layer._buffers.items() if name not in layer._non_persistent_buffers_set}
            for name, held in {**layer._parameters, **kept}.items():
                if held is not None and held.is_floating_point() and held.dim() and max(held.shape) > 1:
                    place = Place(path, "out", name)
                    if (width := width_of(layer, "out", name)) > 1:
                        yield place, width


def _answers(layer: nn.Module) -> int:
    if isinstance(layer, nn.MultiheadAttention):
        return int(layer.embed_dim)
    if not ("weight" in layer._parameters or isinstance(layer, RNNS) or is_norm(layer)):    # a parametrization has it
        return int(getattr(layer, "weight").shape[axis_of(layer, "out")])  # noqa: B009 - mypy takes it for a module
    return width_of(layer, "out")


def _is_channels(module: nn.Module, readers: Readers, width: int) -> bool:
    """Whether a parameter holds one value a channel: no more columns read each than there are for one."""
    if readers.mixed or not any(readers.read):
        return False
    widest: dict[str, int] = {}
    for read in readers.read:
        for path, columns in read.items():
            widest[path] = max(widest.get(path, 0), len(columns))
    return all(columns * width <= _columns(module, path) for path, columns in widest.items())


def _columns(module: nn.Module, path: str) -> float:
    """How many a layer reads; of one whose size is tied to them it does not matter, since that is told later."""
    layer = module.get_submodule(path.partition(BESIDE)[0])
    if BESIDE in path or isinstance(layer, nn.MultiheadAttention) or not (layer._parameters.keys() & PLAIN):
        return math.inf
    return width_of(layer, place_of(module, path).role)


def _refusal(
    module: nn.Module, source: Place, readers: Readers, claimed: Mapping[str, str],
) -> str | None:
    layer = module.get_submodule(source.path)
    if isinstance(layer, nn.MultiheadAttention):
        return "nn.MultiheadAttention ties its width to its input's"
    if isinstance(layer, RNNS) and layer.proj_size:
        return "its states are projected (proj_size): their width is not that of its hidden units"
    if readers.reaches_output:
        return "its channels reach an output of the model"
    if readers.mixed:
        return MIXED
    for path in sorted({path for read in readers.read for path in read}):
        reader = module.get_submodule(path.partition(BESIDE)[0])
        kind = type(reader).__name__
        if isinstance(reader, nn.MultiheadAttention) or BESIDE in path:
            return f"its channels pass through {path.partition(BESIDE)[0]!r} ({kind}), whose size is tied to them"
        if not ("weight" in reader._parameters or isinstance(reader, (*RNNS, *BATCH_NORMS)) or is_norm(reader)
                or is_absent(reader)):
            return f"layer {path!r} computes its weight (a parametrization): it has none to cut"
        if getattr(reader, "groups", 1) != 1 and not is_per_channel(reader):
            return f"its channels pass through the grouped convolution {path!r}"
        if claimed.get(path) == place_of(module, path).role:
            return f"its channels meet those of attention heads in {path!r}"
    if not ("weight" in layer._parameters or source.tensor or isinstance(layer, RNNS) or is_norm(layer)
            or is_absent(layer)):
        return "it computes its weight (a parametrization): it has none to cut"
    if getattr(layer, "groups", 1) != 1 and not is_per_channel(layer):
        return "it is a grouped convolution"
    return None


class _Joined:
    """Channels of layers, and what each has to go with: a union-find."""

    def __init__(self) -> None:
        self._above: dict[Node, Node] = {}

    def find(self, node: Node) -> Node:
        root = node
        while self._above.setdefault(root, root) != root:
            root = self._above[root]
        while self._above[node] != root:
            node, self._above[node] = self._above[node], root
        return root

    def join(self, nodes: list[Node]) -> None:
        first = self.find(nodes[0])
        for node in nodes[1:]:
            self._above[self.find(node)] = first

    def units(self) -> list[dict[Place, tuple[int, ...]]]:
        """The channels that go together, by place; in the order in which they were first seen."""
        found: dict[Node, dict[Place, list[int]]] = {}
        for node in self._above:
            found.setdefault(self.find(node), {}).setdefault(node[0], []).append(node[1])
        return [{place: tuple(sorted(channels)) for place, channels in unit.items()} for unit in found.values()]


def _grouped(
    module: nn.Module, joined: _Joined, reasons: Mapping[Place, str], sources: list[Place],
) -> tuple[list[Group], dict[str, str]]:
    """Units with the same places are a group, named for the first of its sources whose name no other has; and why the
    others are none."""
    by_places: dict[frozenset[Place], list[dict[Place, tuple[int, ...]]]] = {}
    for unit in joined.units():
        by_places.setdefault(frozenset(unit), []).append(unit)
    order = {source: number for number, source in enumerate(sources)}
    groups, skipped = list[Group](), dict[str, str]()
    for places, units in by_places.items():
        made = sorted((place for place in places if place in order), key=order.__getitem__)
        if all(is_per_channel(module.get_submodule(place.path)) and not place.tensor for place in made):
            continue                             # nothing makes the channels but an input of the model
        reason = next((reasons[place] for place in made if place in reasons), None)
        if reason is None and not any(place.role == "in" for place in places):
            reason = "no layer reads its channels: they are an output of the model"
        if reason is None and len(units) < 2:
            reason = MIXED
        edits = tuple(Edit(path=place.path, role=place.role, tensor=place.tensor,
                           index=tuple(unit[place] for unit in units)) for place in _ordered(places, order))
        reason = reason or _torn(module, edits)
        if reason is not None:
            # a norm has no channels of its own: that it is left whole needs no telling
            skipped.update({place.path: reason for place in made if not is_per_channel(module.get_submodule(place.path))
                            and not place.tensor})
            continue
        makers = [place for place in made if place.tensor or not is_per_channel(module.get_submodule(place.path))]
        names = [name for name in map(_named, makers) if name not in {group.name for group in groups}]
        name = names[0] if names else f"{_named(makers[0])}, {len(groups)}"
        groups.append(Group(name=name, kind=_kind(module, places), units=len(units), edits=edits))
    return groups, skipped


def _named(place: Place) -> str:
    return ".".join(part for part in (place.path, place.tensor) if part)


def _ordered(places: Iterable[Place], order: Mapping[Place, int]) -> list[Place]:
    return sorted(places, key=lambda place: (order.get(place, len(order)), place))


def _kind(module: nn.Module, places: Iterable[Place]) -> Structure:
    """A stream is what several layers add to and a norm reads, or what begins as an embedding or a parameter.

    A parameter beside what one layer gives (of PReLU, InstanceNorm, a scale) makes no stream of it.
    """
    made = [(place, module.get_submodule(place.path)) for place in places if place.role == "out"]
    if any(isinstance(layer, RNNS) for _, layer in made):
        return "recurrent"
    makers = [place for place, layer in made if place.tensor or not is_per_channel(layer)]
    stream = len(makers) > 1 and any(is_norm(layer) for _, layer in made)
    if stream or all(place.tensor for place in makers) or any(isinstance(layer, nn.Embedding) for _, layer in made):
        return "width"
    return "channels"


def _tied(module: nn.Module, sources: Iterable[Place]) -> Iterator[tuple[Place, Place]]:
    """An embedding's table that is a Linear layer's weight as well: its columns are what that layer reads."""
    paths = {id(layer): path for path, layer in module.named_modules()}
    known = set(sources)
    for held in ties(module):
        tables = [Place(paths[id(layer)], "out") for layer, name in held
                  if isinstance(layer, nn.Embedding) and name == "weight"]
        readers = [Place(paths[id(layer)], "in") for layer, name in held
                   if isinstance(layer, nn.Linear) and name == "weight"]
        for table in tables:
            if table in known:
                yield from ((table, other) for other in (*readers, *tables) if other != table)


def _torn(module: nn.Module, edits: Iterable[Edit]) -> str | None:
    """Why the group would tear a weight that several layers hold as one: it has to lose the same in each."""
    layers = {edit.path: module.get_submodule(edit.path) for edit in edits}
    lost = {(edit.path, name_of(layers[edit.path], edit.tensor)): (
        axis_of(layers[edit.path], edit.role, edit.tensor), edit.index) for edit in edits}
    paths = {id(layer): path for path, layer in module.named_modules()}
    for held in ties(module):
        found = [lost.get((paths[id(layer)], name)) for layer, name in held]
        if any(found) and any(one != found[0] for one in found):
            name = next(paths[id(layer)] for layer, name in held if (paths[id(layer)], name) in lost)
            return f"the weight of {name!r} is another layer's too"
    return None


def _variants(module: nn.Module, group: Group) -> Iterator[Group]:
    """The group with the tensors alone, and with the numbers in which modules repeat its width.

    Channels that a GroupNorm takes together are one unit, or several such groups are: it has fewer groups then.
    """
    attributes: dict[str, dict[str, int]] = {}
    for edit in group.edits:
        layer = module.get_submodule(edit.path)
        if isinstance(layer, nn.GroupNorm) and layer.num_groups % group.units == 0:
            attributes[edit.path] = {"num_groups": layer.num_groups // group.units}
    group = replace(group, attributes={path: dict(held) for path, held in attributes.items()})
    yield group
    known = len(attributes)
    for edit in group.edits:
        width = sum(map(len, edit.index))
        if width != width_of(module.get_submodule(edit.path), edit.role, edit.tensor) or width % group.units:
            continue
        parts = edit.path.split(".")
        for end in range(len(parts)):
            path = ".".join(parts[:end])
            owner = module.get_submodule(path) if path else module
            for name in WIDTHS:
                if type(owner.__dict__.get(name)) is int and owner.__dict__[name] == width:
                    attributes.setdefault(path, {})[name] = width // group.units
    if len(attributes) > known:
        yield replace(group, attributes=attributes)
