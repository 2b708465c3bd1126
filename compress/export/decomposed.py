"""A program as torch's ONNX exporter wants it: made of operators that it has a translation for, none of them in place.

The exporter gets there by tracing every program once more, which takes it as long as all the rest. A program that is
made of such operators already, as those that have been quantized mostly are, is given to it as one that need not be.
"""

from __future__ import annotations

import copy
import functools
import operator
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.onnx._internal.exporter import _decomp, _registration

aten = torch.ops.aten
_DROPPED = {     # checks, which the exporter removes
    aten._assert_async.msg, aten._assert_scalar.default, aten._assert_tensor_metadata.default,
    aten.sym_constrain_range_for_size.default,
}  # fmt: skip
_CASTS = {aten.to.dtype, aten.to.dtype_layout, aten.to.device}
_POOLS = {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
_TURNED = {aten.transpose.int, aten.permute.default}
_MISTRANSLATED = {aten.chunk.default}      # where it does not divide evenly; the exporter itself never leaves it


class _Decomposed(ExportedProgram):
    """A program that decomposes into itself."""

    def run_decompositions(self, *_: Any, **__: Any) -> ExportedProgram:
        return self


class _Traced(ExportedProgram):
    """A program that decomposes into one that can be run with other kernels than it was traced with."""

    def run_decompositions(self, *args: Any, **given: Any) -> ExportedProgram:
        found: ExportedProgram = super().run_decompositions(*args, **given)
        _free_views(found.graph_module)
        return found


def decomposed(program: ExportedProgram, translated: Collection[Any] = ()) -> ExportedProgram:
    """``program`` for the exporter: a copy that it traces no more where it need not.

    Args:
        program: is left as it is, which the exporter does not promise.
        translated: operators of our own that have a translation.
    """
    module = GraphModule(program.graph_module, copy.deepcopy(program.graph_module.graph))
    module.meta.update(program.graph_module.meta)
    for node, own in zip(module.graph.nodes, program.graph.nodes, strict=True):
        node.name = own.name        # the copy gives those of Python's own, such as input, a number
        _simplify(node)
    known = (_torchs() | set(translated)) - _MISTRANSLATED
    if not all(_is_known(node, known) for node in module.graph.nodes):
        traced = copy.copy(program)          # a new one would be refused for what it does in place
        traced.__class__ = _Traced
        return traced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # torch's trees warn of their own copies
        calls = copy.deepcopy(program.module_call_graph)
    return _Decomposed(
        root=module, graph=module.graph, graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict, constants=program.constants, range_constraints=program.range_constraints,
        module_call_graph=calls, example_inputs=program.example_inputs,
    )  # fmt: skip


@functools.cache
def _torchs() -> frozenset[Any]:
    """What the exporter can translate."""
    return frozenset(_decomp.get_onnx_implemented_overloads(_registration.ONNXRegistry.from_torchlib()))


def _free_views(module: GraphModule) -> None:
    """Let what is a view of something turned be a copy, in place.

    It is none where a kernel left its result in the right order, as torch's attention does on a CPU. But the exporter
    runs the program with gradients, and for a mask that is trained, as T5's is, that asks a kernel which does not.
    """
    for node in module.graph.nodes:
        if node.target is aten.view.default and node.args[0].target in _TURNED:
            node.target = aten.reshape.default
    module.recompile()


def _is_known(node: Node, known: Collection[Any]) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if node.target in _DROPPED or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return node.target in known and not (schema is not None and schema.is_mutable)


def _simplify(node: Node) -> None:
    """Write ``node`` as the operator that the exporter would make of it, where that is another one alone."""
    if node.target in _CASTS:
        # each may give its input back; the exporter knows the one that always copies
        given = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))
        dtype = node.kwargs.get("dtype", given.get("dtype"))
        node.args, node.kwargs = node.args[:1], {"dtype": node.meta["val"].dtype if dtype is None else dtype}
        node.target = aten._to_copy.default
    elif node.target in _POOLS and all(size == 1 for size in node.args[1]):  # type: ignore[union-attr]
        node.args = (node.args[0], list(range(-len(node.args[1]), 0)), True)  # type: ignore[arg-type]
        node.target = aten.mean.dim
