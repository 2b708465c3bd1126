"""A graph module as the exported program that tracing it would give, without tracing it.

What was made of a traced program by putting nodes between others knows all its sizes already, but for those nodes'. A
trace runs every operator again to find them, which takes as long as writing the ONNX does.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves


def lifted(module: GraphModule, program: ExportedProgram) -> ExportedProgram:
    """``module``, made of ``program`` without changing its inputs and outputs, as a program with its dynamic sizes.

    Every node whose value ``program`` does not tell is run on the sizes of what it reads.
    """
    fake = next(node.meta["val"].fake_mode for node in program.graph.nodes
                if isinstance(node.meta.get("val"), Tensor))  # fmt: skip
    kinds = {spec.target: (spec.kind, spec.persistent) for spec in program.graph_signature.input_specs if spec.target}
    graph, inputs = Graph(), []
    known: dict[Node, Node] = {}
    held: dict[str, Node] = {}
    state: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name not in held:
            value = attrgetter(name)(module)
            parameter = isinstance(value, nn.Parameter)
            kind, persistent = kinds.get(
                name, (InputKind.PARAMETER, None) if parameter else (InputKind.BUFFER, True))
            held[name] = graph.placeholder(_PREFIXES[kind] + name.replace(".", "_"))
            held[name].meta["val"] = fake.from_tensor(value, static_shapes=True)
            inputs.append(InputSpec(kind, TensorArgument(name=held[name].name), name, persistent))
            (constants if kind is InputKind.CONSTANT_TENSOR or persistent is False else state)[name] = value
        known[node] = held[name]
    for node in module.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        copy = known[node] = graph.node_copy(node, lambda source: known[source])
        if node.op == "placeholder":
            inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(name=copy.name), None))
        elif "val" not in node.meta:
            copy.name = graph._graph_namespace.create_name(_name(copy), None)
            with fake:
                copy.meta["val"] = _value(copy)
    outputs = [known[node] for node in tree_leaves(module.graph.output_node().args[0])]
    graph.output(tuple(outputs))
    signature = ExportGraphSignature(
        inputs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in outputs])
    return ExportedProgram(
        root=GraphModule(nn.Module(), graph), graph=graph, graph_signature=signature, state_dict=state,
        range_constraints=program.range_constraints, module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs, constants=constants, verifiers=program.verifiers,
    )  # fmt: skip


_PREFIXES = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_", InputKind.CONSTANT_TENSOR: "c_"}


def _value(node: Node) -> Any:
    """Of a node whose inputs' values are known; what is quantized is in an order of its own."""
    arguments: Any
    arguments, keywords = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    if _name(node) == "quantize_per_tensor":
        return arguments[0].new_empty(arguments[0].shape, dtype=arguments[-1])
    if _name(node) in ("dequantize_per_tensor", "dequantize_per_channel"):
        return arguments[0].new_empty(arguments[0].shape, dtype=torch.float32)
    return node.target(*arguments, **keywords)  # type: ignore[operator]


def _name(node: Node) -> str:
    """The operator's name without its namespace."""
    return node.target._schema.name.rpartition("::")[2] if isinstance(node.target, torch._ops.OpOverload) else node.name
