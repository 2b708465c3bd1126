"""Which operators of a program run in int8: the annotation that torchao's PT2E flow reads, or the reason why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAveragePerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from compress.errors import CompressError
from compress.model import Quantization, WeightOnly
from compress.program import module_path
from compress.quantize.attention import FUSED, fused, reads_an_input, role, softmax_of
from compress.quantize.grid import WeightGrid
from compress.quantize.layers import as_linear
from compress.quantize.results import quantized_behind
from compress.quantize.schemes import Integers, Scheme, get_scheme
from compress.quantize.views import SAME_VALUES
from compress.quantize.weight_only import weight_alone
from compress.recurrent import OPERATORS

WEIGHTED = {
    torch.ops.aten.linear.default: "linear",
    torch.ops.aten.conv1d.default: "conv1d",
    torch.ops.aten.conv2d.default: "conv2d",
    torch.ops.aten.conv1d.padding: "conv1d",
    torch.ops.aten.conv2d.padding: "conv2d",
}
_PRODUCTS = {
    "mm", "bmm", "matmul", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "inner", "tensordot", "einsum",
    "bilinear",
}  # fmt: skip
_FLOAT_ONLY = _PRODUCTS | {
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
}  # fmt: skip
SMALLEST_TABLE = 1 << 20    # bytes in float32
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator that multiplies: what it is, where, which tensors it reads, and why it stays float if it does.

    ``activation`` is the first it reads, ``other`` the second of a product of two; weights are not among them.
    ``results`` are tensors that are quantized for whoever reads them, each with the one whose range it gets.
    """

    node: str
    op: str
    path: str
    activation: str
    other: str = ""
    shares: bool = False            # the first is a softmax: none of it is negative, and its peaks are what counts
    float_reason: str | None = None
    results: tuple[tuple[str, str], ...] = ()
    alone: WeightGrid | None = None     # of its weight, where that alone is quantized; then there is no activation

    @property
    def called(self) -> str:
        """What messages call it: its module, or what it is where it is in none."""
        return self.path or f"({self.op})"

    @property
    def precision(self) -> str:
        """What it runs in: "int8", "int8 weights", "int4 weights" or "float"."""
        if self.float_reason is not None:
            return "float"
        return "int8" if self.alone is None else f"int{self.alone.bits} weights"

    def operands(self, scheme: Scheme) -> Iterator[tuple[int, str, Integers]]:
        """The position, the node and the integers of each activation."""
        if not self.activation:
            return
        if self.op == "lstm":
            if scheme.states is not None:
                yield 0, self.activation, scheme.states
        elif not self.other:
            yield 0, self.activation, scheme.activations
        elif scheme.products is not None:
            yield 0, self.activation, scheme.activations if self.shares else scheme.products
            yield 1, self.other, scheme.products

    def ranged(self, scheme: Scheme) -> Iterator[tuple[str, str, Integers]]:
        """The nodes that get a range, each with the node whose values it is chosen for, and with its integers."""
        for _, name, integers in self.operands(scheme):
            yield name, name, integers
        for name, like in self.results:
            yield name, like, scheme.activations


def find_operators(
    module: GraphModule, keep_float: Sequence[str] = (), scheme: Scheme | None = None,
    weights: WeightOnly | None = None,
) -> list[Operator]:  # fmt: skip
    """All operators with weights, and attention's products, in the order they run.

    Args:
        keep_float: globs over module paths.
        scheme: whose integers there are; without one it is taken to multiply whatever some scheme does.
        weights: whose weights alone are quantized.
    """
    operators: list[Operator] = []
    nodes = {node.name: node for node in module.graph.nodes}
    for node in module.graph.nodes:
        path = module_path(node)
        kept = next((glob for glob in keep_float if fnmatchcase(path, glob)), None)
        reason = f"kept float by {kept!r}" if kept is not None else _type_reason(node)
        if (written := as_linear(module, node)) is not None:
            operators.append(Operator(node=node.name, op="linear", path=path, activation=written.activation.name,
                                      float_reason=reason))  # fmt: skip
        elif (part := role(node)):
            operators.append(_product(node, part, path, reason, scheme))
        elif node.target in WEIGHTED:
            if not weights_behind(node.args[1]):
                reason = "its weight is computed at run time"
            operators.append(
                Operator(
                    node=node.name, op=WEIGHTED[node.target], path=path, activation=node.args[0].name,
                    float_reason=reason,
                )
            )  # fmt: skip
        elif node.target is torch.ops.aten.embedding.default:
            operators.append(Operator(node=node.name, op="embedding", path=path, activation="",
                                      float_reason=reason or _table_reason(module, node.args[0], scheme)))  # fmt: skip
        elif node.target is OPERATORS["lstm"]._opoverload:
            operators.append(_lstm(node, path, reason, scheme))
        elif _name(node) in _FLOAT_ONLY or (node.target == FUSED and not fused(node)):
            operators.append(Operator(node=node.name, op=_name(node), path=path, activation="",
                                      float_reason=_float_only(node)))  # fmt: skip
    if weights:
        operators = [weight_alone(one, module, nodes[one.node], weights, scheme) for one in operators]
    if all(operator.float_reason for operator in operators if operator.op != "embedding"):
        alone = "nothing that multiplies in its graph runs in int8"
        return [dataclasses.replace(operator, float_reason=operator.float_reason or alone) for operator in operators]
    whole = {operator.node for operator in operators if operator.precision == "int8"}
    behind = quantized_behind(module, whole)
    return [dataclasses.replace(operator, results=behind.get(operator.node, ())) for operator in operators]


def operators_of(module: GraphModule, quantization: Quantization) -> list[Operator]:
    """All operators of a program of a quantized model."""
    return find_operators(module, quantization.keep_float, get_scheme(quantization.scheme), quantization.weight_only)


def _float_only(node: Node) -> str:
    """Why an operator that no scheme quantizes stays float."""
    if node.target == FUSED:
        return "it drops shares at random, as in training"
    if _name(node) in _PRODUCTS and not any(weights_behind(source) for source in node.all_input_nodes):
        return "it multiplies two activations, and only weights are quantized"
    return "this release has no int8 form of it"


def _type_reason(node: Node) -> str | None:
    """Why what computes in another type than float32 stays as it is: integers are made of float32 alone."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) else value
    if not isinstance(value, Tensor) or value.dtype is torch.float32:
        return None
    return f"it computes in {str(value.dtype).removeprefix('torch.')}, and int8 is made of float32: cast it to float32"


def _table_reason(module: GraphModule, table: Node, scheme: Scheme | None) -> str | None:
    """Why a table that rows are looked up in stays float; None where int8 saves enough of it."""
    if scheme is not None and scheme.tables is None:
        return f"scheme {scheme.name!r} looks tables up in float"
    if table.op != "get_attr":
        return "its table is computed at run time"
    if attrgetter(str(table.target))(module).numel() * 4 < SMALLEST_TABLE:
        return "a look-up multiplies nothing: int8 would save memory, and a table as small as this one has little"
    return None


def _lstm(node: Node, path: str, reason: str | None, scheme: Scheme | None) -> Operator:
    """Layers of an LSTM: what the first reads gets a range, what the others read and the state are within -1 and 1."""
    value, state, weights = cast(tuple[Node, list[Node], list[Node]], node.args[:3])
    if reason is None and scheme is not None and scheme.states is None:
        reason = f"scheme {scheme.name!r} runs recurrent layers in float"
    elif reason is None and not all(_is_zero(part) for part in state):
        reason = "it begins in a state that it is given, whose range nothing bounds"
    elif reason is None and any(weight.op != "get_attr" for weight in weights):
        reason = "its weights are computed at run time"
    return Operator(node=node.name, op="lstm", path=path, activation=value.name, float_reason=reason)


def _is_zero(node: Node) -> bool:
    """Whether all of its values are zero, by how it is made."""
    if node.target in SAME_VALUES or node.target is torch.ops.aten.expand.default:
        return isinstance(node.args[0], Node) and _is_zero(node.args[0])
    if _name(node) in ("full", "full_like", "new_full"):
        return bool(node.args[1 + (_name(node) == "new_full")] == 0)
    return _name(node) in ("zeros", "zeros_like", "new_zeros")


def _product(node: Node, part: str, path: str, reason: str | None, scheme: Scheme | None) -> Operator:
    """A product of attention: of queries and keys, its scores, or of their softmax and the values."""
    if scheme is not None and scheme.products is None:
        reason = f"scheme {scheme.name!r} multiplies two activations in float"
    elif reads_an_input(node.args[1]):
        read = "keys" if part == "scores" else "values"
        reason = f"its {read} are read from an input: to quantize them in each run costs more than int8 saves"
    first, second = (str(operand) for operand in node.args)
    return Operator(
        node=node.name, op=f"attention {part}", path=path, activation=first, other=second,
        shares=softmax_of(node.args[0]) is not None, float_reason=reason,
    )  # fmt: skip


def weights_behind(node: Node) -> set[Node]:
    """The weights that ``node`` is, or is computed from; none where what it reads depends on an input of the model."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        if (current := waiting.pop()) not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    if any(source.op not in ("get_attr", "call_function") for source in seen):
        return set()
    return {source for source in seen if source.op == "get_attr"}


def check_globs(operators: Sequence[Operator], option: str, globs: Sequence[str]) -> None:
    """Refuse a glob of ``option`` that matches none of ``operators``, those of all graphs: it is a mistyped one."""
    for glob in globs:
        if not any(fnmatchcase(operator.path, glob) for operator in operators):
            raise CompressError(f"{option} {glob!r} matches no module with weights: they are "
                                f"{', '.join(dict.fromkeys(operator.path for operator in operators))}")  # fmt: skip


def _name(node: Node) -> str:
    """The operator's name without its namespace: ``lstm`` for torch's own, and for the one of compress.recurrent."""
    return node.target._schema.name.rpartition("::")[2] if isinstance(node.target, torch._ops.OpOverload) else ""


class SchemeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates each int8 operator with the scheme's grids: fixed ranges for activations, min-max for weights."""

    def __init__(
        self, scheme: Scheme, ranges: Mapping[str, tuple[float, float]], operators: Sequence[Operator]
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.ranges = ranges
        self.operators = {operator.node: operator for operator in operators}

    def annotate(self, model: GraphModule) -> GraphModule:
        results = {name for operator in self.operators.values() for name, _ in operator.results}
        for node in model.graph.nodes:
            if node.name in results:
                behind = _fixed(self.scheme.activations, *self.ranges[node.name])
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=behind, _annotated=True)
            operator = self.operators.get(node.name)
            if operator is not None:
                specs = {node.args[position]: _fixed(grid, *self.ranges[name])
                         for position, name, grid in operator.operands(self.scheme)}
                if operator.op == "embedding":
                    specs[node.args[0]] = _per_channel(self.scheme.tables or self.scheme.weights)
                elif operator.alone is not None:
                    if operator.alone.group is None:    # torchao has no groups: they are put in behind it
                        held = Integers(dtype="int8", low=operator.alone.low, high=operator.alone.high, symmetric=True)
                        specs[node.args[1]] = _per_channel(held)
                elif not operator.other and operator.op != "lstm":     # backends quantize its weights, all gates alike
                    specs[node.args[1]] = _per_channel(self.scheme.weights)
                annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
                annotation.input_qspec_map = specs
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to add: an operator this class annotates is one every target runs."""


def _fixed(grid: Integers, low: float, high: float) -> FixedQParamsQuantizationSpec:
    scale, zero_point = grid.scale_and_zero_point(low, high)
    return FixedQParamsQuantizationSpec(
        dtype=_DTYPES[grid.dtype],
        scale=scale,
        zero_point=zero_point,
        quant_min=grid.low,
        quant_max=grid.high,
        qscheme=torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine,
    )


def _per_channel(grid: Integers) -> QuantizationSpec:
    # An averaging constant of 1 makes the observer follow a weight that trains, instead of remembering its past.
    observer: Callable[..., object] = MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0, ch_axis=0)
    return QuantizationSpec(
        dtype=_DTYPES[grid.dtype],
        quant_min=grid.low,
        quant_max=grid.high,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=observer),
    )


def sources(module: GraphModule, operators: Sequence[Operator]) -> list[Node]:
    """The nodes that ranges are chosen for: what the int8 ``operators`` read, and what is quantized behind them."""
    wanted = {name for operator in operators for name in (operator.activation, operator.other)}
    wanted |= {like for operator in operators for _, like in operator.results}
    return [node for node in module.graph.nodes if node.name in wanted]
