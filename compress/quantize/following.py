"""Which channels of a float program can be scaled without changing what it computes, found by following them.

What lies between a channel's layer and its readers is not matched against patterns. Every channel that a layer or a
norm makes gets a number, and the numbers go through the program as its values do: a reshape reshapes them, ReLU leaves
them, attention mixes rows whose numbers are equal. Where an operator is none of these, where two numbers meet, or a
number reaches an output, the channel is not free. A weight that several operators use, of one graph or of several, is
scaled once if that suits all of them, and left alone if it does not.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from compress.model import Model
from compress.program import told_as, widened
from compress.quantize.scaling import LAYERS, NOT_SCALED, Clip, Reader, Scalable, Source
from compress.weights import storage

_aten = torch.ops.aten


def find_scalable(model: Model) -> Scalable:
    """Follow the channels of ``model``, a float one, through all of its graphs, on its example."""
    book = Book(model)
    for name, graph in model.graphs.items():
        module = graph.program.module(check_guards=False)
        book.count_reads(name, module)
        feed = [torch.from_numpy(widened(spec, np.asarray(model.example[spec.name]))) for spec in graph.inputs]
        with torch.no_grad(), told_as("the model fails on its own example"):
            Follower(module, name, book).run(*feed, enable_io_processing=False)
    return book.closed()


class Book:
    """What was found so far: sources and readers by their weight's storage, and which channels are free."""

    def __init__(self, model: Model) -> None:
        self.weights = model.weights
        self.held = {name: graph.program.state_dict.keys() for name, graph in model.graphs.items()}
        self.sources: dict[Any, Source] = {}
        self.readers: dict[Any, Reader] = {}
        self.bias_of: dict[Any, Source] = {}
        self.blocked: set[int] = set()
        self.rectified: set[int] = set()
        self.clips: list[Clip] = []
        self.reads: Counter[Any] = Counter()        # of each parameter, by operators of all graphs
        self.known: Counter[Any] = Counter()        # those of them that are understood
        self.channels = 0

    def key(self, graph: str, node: Any) -> Any:
        """Of the parameter that ``node`` is; ``None`` where it is none that can be replaced."""
        if not isinstance(node, Node) or node.op != "get_attr" or str(node.target) not in self.held[graph]:
            return None
        return storage(self.weights[str(node.target)])

    def count_reads(self, graph: str, module: GraphModule) -> None:
        for node in module.graph.nodes:
            if (key := self.key(graph, node)) is not None:
                for user in node.users:
                    self.reads[key] += [*user.args, *user.kwargs.values()].count(node) or 2     # 2: inside a list

    def block(self, labels: Any) -> None:
        for each in labels if isinstance(labels, list) else [labels]:
            if each is not None:
                self.blocked |= set(each.unique().tolist())

    def source(self, graph: str, op: str, weight: Node, bias: Any) -> Source | None:
        """The source that ``weight`` makes; ``None`` where it is no parameter."""
        key = self.key(graph, weight)
        if key is None:
            return None
        name = str(weight.target)
        if key not in self.sources:
            count = len(self.weights[name])
            self.sources[key] = Source(op=op, weight=name, first=self.channels, count=count)
            self.channels += count
        found = self.sources[key]
        if bias is not None:
            bias_key = self.key(graph, bias)
            if bias_key is None or self.bias_of.setdefault(bias_key, found) is not found:
                self.block(self.numbers(found))
                self.block(self.numbers(self.bias_of.get(bias_key, found)))
            else:
                found.biases.setdefault(bias_key, str(bias.target))
                self.known[bias_key] += 1
        return found

    def read(self, graph: str, node: Node, numbers: Tensor | None, labels: Any) -> None:
        """``node`` multiplies channels ``numbers`` ``(inputs,)``, or channels in no one order."""
        weight: Any = node.args[1]
        key = self.key(graph, weight)
        if key is None or numbers is None:
            self.block(labels)
            if key is None:
                return
        self.known[key] += 1
        groups = _groups(node)
        if numbers is None:
            numbers = torch.full((self.weights[str(weight.target)].shape[1] * groups,), NOT_SCALED)
        reader = self.readers.setdefault(
            key, Reader(weight=str(weight.target), groups=groups, channels=numbers, axis=LAYERS[node.target]))
        if not torch.equal(reader.channels, numbers):
            self.block(reader.channels)
            self.block(numbers)
        activation: Any = node.args[0]
        reader.nodes.append((graph, node.name, activation.name))

    @staticmethod
    def numbers(source: Source) -> Tensor:
        return torch.arange(source.first, source.first + source.count)

    def closed(self) -> Scalable:
        """What was found; a parameter that something else reads too is left alone."""
        for key, source in self.sources.items():
            if any(self.reads[k] != self.known[k] for k in (key, *source.biases)):
                self.block(self.numbers(source))
        for key, reader in self.readers.items():
            if self.reads[key] != self.known[key]:
                self.block(reader.channels)
        free = torch.ones(self.channels, dtype=torch.bool)
        free[[number for number in self.blocked if number >= 0]] = False
        read = torch.zeros_like(free)
        for reader in self.readers.values():
            read[reader.channels[reader.channels >= 0]] = True
        rectified = torch.zeros_like(free)
        rectified[[number for number in self.rectified if number >= 0]] = True
        return Scalable(sources=list(self.sources.values()), readers=list(self.readers.values()), clips=self.clips,
                        free=free & read, rectified=rectified)  # fmt: skip


class Follower(Interpreter):
    """Runs a graph; beside each value that channels of a source are in, their numbers, in the value's shape."""

    def __init__(self, module: GraphModule, graph: str, book: Book) -> None:
        super().__init__(module)
        self.graph_name, self.book = graph, book
        self.labels: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        given = {source: self.labels[source] for source in n.all_input_nodes if source in self.labels}
        labels = self._follow(n, value, given)
        if labels is not None:
            self.labels[n] = labels
        for last in self.user_to_last_uses.get(n, []):
            self.labels.pop(last, None)
        return value

    def _follow(self, n: Node, value: Any, given: Mapping[Node, Any]) -> Any:
        if n.target in LAYERS:
            activation, weight, bias = (*n.args, None)[:3]
            self._read(n, given.get(activation))  # type: ignore[arg-type]
            return self._made(n, value, _name(n), weight, bias, LAYERS[n.target])
        if n.target in _NORMS:
            self._block(given)
            at, bias_at, axis = _NORMS[n.target]
            weight, bias = (n.args[i] if i is not None and len(n.args) > i else None for i in (at, bias_at))
            return self._normed(n, value, weight, bias, axis)
        if not given and _name(n) == "mul":     # a norm without a mean, written out
            weight = next((a for a in n.args if isinstance(a, Node) and a.op == "get_attr"), None)
            return self._normed(n, value, weight, None, -1)
        if not given:
            return None
        labels = self._moved(n, value, given) if isinstance(value, (Tensor, tuple, list)) else {}
        if labels is None:
            self._block(given)
        return labels or None if isinstance(labels, dict) else labels

    def _read(self, n: Node, labels: Tensor | None) -> None:
        numbers = None
        if labels is not None:
            rows = labels.movedim(LAYERS[n.target], -1).reshape(-1, labels.shape[LAYERS[n.target]])
            numbers = rows[0].clone() if bool((rows == rows[0]).all()) else None
        self.book.read(self.graph_name, n, numbers, labels)

    def _normed(self, n: Node, value: Tensor, weight: Any, bias: Any, axis: int) -> Tensor | None:
        key = self.book.key(self.graph_name, weight)
        if key is None or tuple(self.env[weight].shape) != (value.shape[axis],):
            return None
        self.book.known[key] += 1
        return self._made(n, value, _name(n), weight, bias, axis)

    def _made(self, n: Node, value: Tensor, op: str, weight: Any, bias: Any, axis: int) -> Tensor | None:
        source = self.book.source(self.graph_name, op, weight, bias)
        if source is None:
            return None
        shape = [1] * value.ndim
        shape[axis] = source.count
        return self.book.numbers(source).reshape(shape).expand(value.shape)

    def _moved(self, n: Node, value: Any, given: Mapping[Node, Any]) -> Any:
        """The numbers in ``value``; ``None`` where they cannot be known or it is not homogeneous in them."""
        if n.op != "call_function":
            return None
        if n.target is operator.getitem:
            (labels,) = given.values()
            return labels[n.args[1]]
        rule = _RULES.get(_name(n).rstrip("_"))
        return None if rule is None else rule(self, n, value, given)

    def _block(self, given: Mapping[Node, Any]) -> None:
        for labels in given.values():
            self.book.block(labels)

    # --- how numbers go through an operator: each takes it, its value and the numbers of what it reads ---

    def _same(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        return given.get(_first(n)) if value.is_floating_point() else None

    def _rectify(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        labels = self._same(n, value, given)
        if labels is not None:
            self.book.rectified |= set(labels.unique().tolist())
        return labels

    def _move(self, n: Node, value: Any, given: Mapping[Node, Any]) -> Any:
        if n.args[0] not in given:      # only the shape of what has numbers is read
            return {}
        put = map_arg(n.args, lambda a: given[a].contiguous() if a in given else self.env[a])
        moved = n.target(*put, **n.kwargs)  # type: ignore[operator]
        return list(moved) if isinstance(moved, (tuple, list)) else moved

    def _join(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        parts: Any = n.args[0]
        put = [given[p] if p in given else torch.full(self.env[p].shape, NOT_SCALED) for p in parts]
        return n.target(put, *n.args[1:], **n.kwargs)  # type: ignore[operator]

    def _shape_only(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        return {}

    def _clamp(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        low, high = (*n.args[1:], None, None)[:2]
        return self._clip(n, value, given, high) if low == 0 and not n.kwargs else None

    def _hardtanh(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        low, high = (*n.args[1:], 1.0)[:2] if len(n.args) > 1 else (-1.0, 1.0)
        return self._clip(n, value, given, high) if low == 0 else None

    def _relu6(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        return self._clip(n, value, given, 6.0)

    def _clip(self, n: Node, value: Tensor, given: Mapping[Node, Any], high: Any) -> Any:
        """ReLU up to ``high``; that keeps a factor of the channels that never get there."""
        labels = self._rectify(n, value, given)
        if high is None or labels is None:
            return labels
        if not isinstance(high, int | float) or high <= 0:
            return None
        axis, numbers = _lines(labels)
        if numbers is None:
            return None
        self.book.clips.append(Clip(graph=self.graph_name, node=n.name, axis=axis, channels=numbers, high=high))
        return labels

    def _dropout(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        return None if n.args[2] else self._same(n, value, given)

    def _product(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        if len(given) > 1 or n.args[0] is n.args[1]:
            return None
        ((node, labels),) = given.items()
        if "div" in _name(n) and node is not n.args[0]:
            return None
        return labels.expand(value.shape)

    def _sum(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        terms: Any = n.args[:2]
        if any(term not in given for term in terms):
            return None
        first, second = (given[term].expand(value.shape) for term in terms)
        return first if torch.equal(first, second) else None

    def _mix(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        """A product of two matrices, of which the numbers of one are equal along the axis that is summed."""
        factors: Any = n.args[:2]
        if len(given) > 1 or factors[0] is factors[1] or min(self.env[factor].ndim for factor in factors) < 2:
            return None
        ((node, labels),) = given.items()
        return _shared(labels, -2 if node is n.args[1] else -1, value.shape)

    def _attention(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        held: Any = n.args[2]
        self._block({node: labels for node, labels in given.items() if node is not held or node in n.args[:2]})
        labels = given.get(held)
        if labels is None:
            return {}
        return _shared(labels, -2, value.shape) if labels.shape[:-2] == value.shape[:-2] else None

    def _reduce(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        labels = given.get(_first(n))
        axes, keep = n.args[1] if len(n.args) > 1 else None, bool(n.args[2]) if len(n.args) > 2 else False
        if labels is None or not axes:
            return None
        low, high = labels.amin(axes, keep), labels.amax(axes, keep)
        return low if torch.equal(low, high) else None

    def _pool(self, n: Node, value: Tensor, given: Mapping[Node, Any]) -> Any:
        """Over places, of which a channel's number is the same at each."""
        (labels,) = given.values()
        places = tuple(range(2, labels.ndim))
        low, high = labels.amin(places, True), labels.amax(places, True)
        return low.expand(value.shape) if torch.equal(low, high) else None


def _shared(labels: Tensor, axis: int, shape: torch.Size) -> Tensor | None:
    """``labels`` without what is equal along ``axis``, for a value of ``shape``; ``None`` where it is not equal."""
    first = labels.narrow(axis, 0, 1)
    return first.expand(shape) if bool((labels == first).all()) else None


def _lines(labels: Tensor) -> tuple[int, Tensor | None]:
    """The axis, from the end, that ``labels`` differ along, and what they are there; ``None`` where there is no one."""
    for axis in range(-1, -labels.ndim, -1):
        rows = labels.movedim(axis, -1).reshape(-1, labels.shape[axis])
        if rows.shape[1] > 1 and bool((rows == rows[0]).all()):
            return axis, rows[0].clone()
    return 0, None


_NORMS: dict[Any, tuple[int, int | None, int]] = {      # norm -> where its weight and bias are, its channels' axis
    _aten.layer_norm.default: (2, 3, -1), _aten.batch_norm.default: (1, 2, 1), _aten.group_norm.default: (2, 3, 1),
    _aten.rms_norm.default: (2, None, -1),
}  # fmt: skip
_Rule = Callable[[Follower, Node, Any, Mapping[Node, Any]], Any]
_RECTIFIERS: dict[str, _Rule] = {
    **dict.fromkeys(("relu", "leaky_relu"), Follower._rectify),
    **dict.fromkeys(("clamp", "clamp_min"), Follower._clamp),
    "hardtanh": Follower._hardtanh,
    "relu6": Follower._relu6,
}
_RULES: dict[str, _Rule] = {
    **_RECTIFIERS,
    **dict.fromkeys(("neg", "clone", "contiguous", "detach", "alias", "to", "_to_copy"), Follower._same),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "t", "squeeze",
                     "unsqueeze", "expand", "expand_as", "slice", "select", "narrow", "chunk", "split",
                     "split_with_sizes", "unbind", "index_select", "repeat", "movedim", "flip", "pixel_shuffle"),
                    Follower._move),
    **dict.fromkeys(("cat", "stack"), Follower._join),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like"), Follower._shape_only),
    **dict.fromkeys(("mul", "div"), Follower._product),
    **dict.fromkeys(("add", "sub"), Follower._sum),
    **dict.fromkeys(("matmul", "bmm"), Follower._mix),
    **dict.fromkeys(("mean", "sum", "amax"), Follower._reduce),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
                     "adaptive_avg_pool2d"), Follower._pool),
    "dropout": Follower._dropout,
    "scaled_dot_product_attention": Follower._attention,
}  # fmt: skip


def rectifies(node: Node) -> bool:
    """Whether it is ReLU or the like."""
    return _name(node).rstrip("_") in _RECTIFIERS


def _name(node: Node) -> str:
    """The operator's name without its namespace and overload."""
    return node.target._schema.name.rpartition("::")[2] if isinstance(node.target, torch._ops.OpOverload) else ""


def _first(node: Node) -> Any:
    return node.args[0]


def _groups(node: Node) -> int:
    return int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
