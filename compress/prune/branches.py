"""Residual branches: what is computed from a stream and added to it, found in the exported programs and left out of
them.

A branch ends in a layer whose result is added to what the branch read, both of one shape. Between the two stand only
operations that keep zeros: reshaping, dropout, a factor for each channel, an activation. Without the branch the sum is
the stream, and everything that was computed for the branch alone is read by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Node

from compress.errors import CompressError
from compress.program import module_path

LAYERS = frozenset(
    "linear addmm conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d layer_norm "
    "native_layer_norm rms_norm batch_norm group_norm instance_norm".split())
ZERO_OF_ZERO = frozenset(
    "view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand slice select movedim "
    "contiguous clone alias to _to_copy dropout feature_dropout roll neg relu gelu silu tanh div split chunk unbind "
    "split_with_sizes".split())
CHANGING = frozenset({"relu", "gelu", "silu", "tanh", "div", "neg", "slice", "select", "split", "chunk", "unbind"})
PRODUCTS = frozenset({"mul", "matmul", "mm", "bmm"})
COUNTED = LAYERS | {"matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}

Last = frozenset[str]
"""The paths of the layers whose results are zero where a value is."""

Layer = Callable[[Node], "Last | None"]
"""Of the result of a layer, or a tensor of the model: which layers have to be silent for it to be zero; None: it is
not."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A residual branch, and what is of no use without it."""

    last: tuple[str, ...]                        # layers whose result is added: the branch is silent when they are
    tensors: tuple[str, ...]                     # names in the state dict that nothing else reads
    modules: tuple[str, ...]                     # paths whose operations are the branch's alone

    @property
    def name(self) -> str:
        return "+".join(self.last)


@dataclass(frozen=True, kw_only=True)
class _Sum:
    node: Node
    stream: Node
    last: Last


class Residuals:
    """The residual sums in all graphs of a model."""

    def __init__(self, module: nn.Module, programs: Mapping[str, ExportedProgram]) -> None:
        self._module, self._programs = module, programs
        self._layers = {path: layer for path, layer in module.named_modules() if path}
        self._sums = {graph: _sums(program, _Vanishing(self._layer(program))) for graph, program in programs.items()}
        self._used = {graph: _alive(program, {}) for graph, program in programs.items()}

    def branches(self) -> tuple[list[Branch], dict[str, str]]:
        """Every branch that can be left out, in the order in which they run; and by name why others cannot."""
        found, skipped = list[Branch](), dict[str, str]()
        for last in dict.fromkeys(s.last for sums in self._sums.values() for s in sums):
            name = "+".join(sorted(last))
            alive = self._alive(last)
            if any(node in alive[graph] for graph, program in self._programs.items()
                   for node in program.graph.nodes if _operator(node) in LAYERS and _path(node) in last):
                skipped[name] = "its result is read elsewhere too, not only added to what it was made of"
                continue
            if unread := self.unread([last]):
                skipped[name] = f"nothing else reads input {unread[0]!r}"
                continue
            tensors = self.unused(last)
            owners = {key.rpartition(".")[0] for key in tensors}
            recurrent = [path for path in owners if isinstance(self._layers.get(path), nn.RNNBase)]
            if recurrent:
                skipped[name] = f"it holds a recurrent layer, {recurrent[0]!r}"
                continue
            found.append(Branch(last=tuple(sorted(last)), tensors=tensors, modules=self._modules(alive)))
        return found, skipped

    def unread(self, lasts: Iterable[Iterable[str]]) -> list[str]:
        """The inputs of the model that are read by nobody when branches that end in these layers are left out."""
        alive = self._alive(frozenset(path for last in lasts for path in last))
        return [str(spec.arg.name) for graph, program in self._programs.items()
                for node, spec in _placeholders(program)
                if spec.kind is InputKind.USER_INPUT and node in self._used[graph] and node not in alive[graph]]

    def unused(self, last: Iterable[str]) -> tuple[str, ...]:
        """What of the state dict is read by nobody when branches that end in these layers are left out."""
        alive = self._alive(frozenset(last))
        read, dead = set[str](), set[str]()
        for graph, program in self._programs.items():
            for node, spec in _placeholders(program):
                if spec.target is not None and node in self._used[graph]:
                    (read if node in alive[graph] else dead).add(spec.target)
        names: dict[int, set[str]] = {}
        tensors = self._module.state_dict(keep_vars=True)
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), set()).add(name)
        found = {name for same in names.values() if same & dead and not same & read for name in same}
        owners = {name.rpartition(".")[0] for name in found}
        for owner in owners:                     # and what a layer keeps beside them: how many batches it has seen
            own = {name for name in tensors if name.rpartition(".")[0] == owner}
            if not own & read and owner in self._layers and not self._layers[owner]._modules:
                found |= own
        return tuple(name for name in tensors if name in found)

    def _alive(self, last: Last) -> dict[str, set[Node]]:
        return {graph: _alive(program, {s.node: s.stream for s in self._sums[graph] if s.last <= last})
                for graph, program in self._programs.items()}

    def _layer(self, program: ExportedProgram) -> Layer:
        tensors = {node for node, spec in _placeholders(program) if spec.kind is not InputKind.USER_INPUT}

        def layer(node: Node) -> Last | None:
            path = _path(node)
            known = node.op == "call_function" and path in self._layers and bool(tensors & {*node.all_input_nodes})
            return frozenset({path}) if known else None

        return layer

    def _modules(self, alive: Mapping[str, set[Node]]) -> tuple[str, ...]:
        """The paths of which no operation that is counted is needed any more; of those without any, none at all."""
        dead, needed = dict[str, None](), set[str]()
        counted = {_path(node) for graph in self._programs for node in self._used[graph] if _operator(node) in COUNTED}
        for graph, program in self._programs.items():
            for node in program.graph.nodes:
                path = _path(node)
                if node not in self._used[graph] or node.op != "call_function":
                    continue
                if node not in alive[graph]:
                    dead[path] = None
                elif path not in counted or _operator(node) in COUNTED:
                    needed.add(path)
        return tuple(path for path in dead if path and path not in needed)


def without(program: ExportedProgram, absent: frozenset[str]) -> ExportedProgram:
    """``program``, in place, without the branches whose tensors, ``absent`` by name, are all zero.

    Raises:
        CompressError: if nothing reads one of its inputs any more.
    """
    gone = {node for node, spec in _placeholders(program) if spec.target in absent}

    def layer(node: Node) -> Last | None:
        own = {source for source in node.all_input_nodes if source.op == "placeholder" and source.target in targets}
        silent = node in gone or (bool(own) and own <= gone)
        return frozenset() if silent else None

    targets = {node.target for node, spec in _placeholders(program) if spec.kind is not InputKind.USER_INPUT}
    before = _alive(program, {})
    bypassed = {s.node: s.stream for s in _sums(program, _Vanishing(layer))}
    alive = _alive(program, bypassed)
    for node, stream in bypassed.items():
        for user in node.users:
            if _in_place(user) and user.args[0] is node:         # the stream is read by others too
                user.target = _of_its_own(user)
        node.replace_all_uses_with(_resolved(stream, bypassed))
    graph = program.graph_module.graph
    doomed = list[Node]()
    for node in graph.nodes:
        # what is asserted of a value is read by nobody, before or after: it goes where the value does
        lost = node in before - alive if node in before else not {*doomed}.isdisjoint(node.all_input_nodes)
        if node.op != "placeholder" and lost:
            doomed.append(node)
    for node in reversed(doomed):
        graph.erase_node(node)
    specs = []
    for node, spec in _placeholders(program):
        lost = not node.users and (node in before or spec.target in absent)
        if spec.kind is InputKind.USER_INPUT and lost:
            raise CompressError(f"nothing reads input {node.name!r} without the branches that were removed")
        if lost and (spec.target in absent or spec.target in program.constants):
            graph.erase_node(node)
        else:
            specs.append(spec)
    program.graph_signature.input_specs = specs
    held = {spec.target for spec in specs}
    for tensors in (program.state_dict, program.constants):
        for name in [name for name in tensors if name in absent or (tensors is program.constants and name not in held)]:
            del tensors[name]
    graph.lint()
    program.graph_module.recompile()
    return program


class _Vanishing:
    """Which layers have to be silent for a value to be zero."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._known: dict[Node, Last | None] = {}

    def __call__(self, node: object) -> Last | None:
        if not isinstance(node, Node):
            return None
        if node not in self._known:
            self._known[node] = self._of(node)
        return self._known[node]

    def _of(self, node: Node) -> Last | None:
        operator = _operator(node)
        if node.op == "placeholder" or operator in LAYERS:
            return self._layer(node)
        if operator in ZERO_OF_ZERO or operator == "getitem":
            return self(node.args[0])
        if operator in PRODUCTS:
            return next((last for last in map(self, node.args[:2]) if last is not None), None)
        if operator in ("add", "sub"):
            return _joined([self(argument) for argument in node.args[:2]])
        if operator in ("cat", "stack") and isinstance(node.args[0], list | tuple):
            return _joined([self(argument) for argument in node.args[0]])
        return None


def _joined(lasts: Sequence[Last | None]) -> Last | None:
    known = [last for last in lasts if last is not None]
    return frozenset[str]().union(*known) if len(known) == len(lasts) else None


def _sums(program: ExportedProgram, vanishing: Callable[[Node], Last | None]) -> list[_Sum]:
    """Additions of two values of one shape, of which one vanishes when some layers are silent: the other is left."""
    found = []
    for node in program.graph.nodes:
        if _operator(node) != "add" or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
            continue
        a, b = node.args
        if not isinstance(a, Node) or not isinstance(b, Node) or not _kind(a) == _kind(b) == _kind(node):
            continue
        for stream, result in ((a, b), (b, a)):
            if result is a and len(a.users) > 1 and _in_place(node):
                continue                         # who reads it later is to find the sum in its place
            last = vanishing(result)
            if last is not None and (not last or _unviewed(stream) in _behind(result)):
                found.append(_Sum(node=node, stream=stream, last=last))
                break
    return found


def _kind(node: Node) -> tuple[str, ...]:
    value = node.meta.get("val")
    return (str(value.dtype), *map(str, value.shape)) if isinstance(value, torch.Tensor) else (node.name,)


def _behind(node: Node) -> set[Node]:
    """All that ``node`` is made of."""
    found, waiting = set[Node](), list(node.all_input_nodes)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return found


def _alive(program: ExportedProgram, bypassed: Mapping[Node, Node]) -> set[Node]:
    """What the outputs are made of, where each of these sums is the stream alone."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    found, waiting = set[Node](), [output]
    while waiting:
        one = _resolved(waiting.pop(), bypassed)
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return found


def _resolved(node: Node, bypassed: Mapping[Node, Node]) -> Node:
    while node in bypassed:
        node = bypassed[node]
    return node


def _unviewed(node: Node) -> Node:
    while _operator(node) in ZERO_OF_ZERO - CHANGING and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _placeholders(program: ExportedProgram) -> list[tuple[Node, InputSpec]]:
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return list(zip(nodes, program.graph_signature.input_specs, strict=True))


def _operator(node: Node) -> str:
    """``linear`` of ``aten.linear.default``; what works in place is called as what does not."""
    if node.op != "call_function":
        return ""
    parts = str(node.target).split(".")
    name = parts[1] if len(parts) > 1 and parts[0] == "aten" else getattr(node.target, "__name__", parts[0])
    return str(name).rstrip("_")


def _in_place(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("aten.") and str(
        node.target).split(".")[1].endswith("_")


def _of_its_own(node: Node) -> Callable[..., object]:
    """The operator that gives what this one writes over its first argument."""
    _, name, overload = str(node.target).split(".")
    made: Callable[..., object] = getattr(getattr(torch.ops.aten, name.rstrip("_")), overload)
    return made


def _path(node: Node) -> str:
    return re.sub(r"@\d+", "", module_path(node))         # a module called twice is "path@1" the second time
