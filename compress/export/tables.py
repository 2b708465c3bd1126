"""Rows looked up in an int8 table: the integers are gathered, and only what was looked up is dequantized."""

from __future__ import annotations

import onnx_ir as ir


def gather_integers(model: ir.Model) -> None:
    """``Gather(DequantizeLinear(table), ids)`` becomes the rows' integers times the rows' scales.

    A backend would else dequantize the whole table, once and for good, which is what int8 was to save.
    """
    for node in list(model.graph):
        table = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
        if table is not None and table.op_type == "DequantizeLinear" and _by_row(table) and not _axis(node, 0):
            _rewrite(model.graph, node, table)


def _by_row(dequantize: ir.Node) -> bool:
    """Whether it holds a constant table with a scale for each of its rows."""
    integers, scale = dequantize.inputs[:2]
    held = [value.const_value for value in (integers, scale) if value is not None and value.const_value is not None]
    return len(held) == 2 and _axis(dequantize, 1) == 0 and held[0].shape[0] == held[1].size


def _rewrite(graph: ir.Graph, node: ir.Node, table: ir.Node) -> None:
    integers, scale = table.inputs[:2]
    assert scale is not None
    assert scale.const_value is not None
    name = f"{scale.name}_of_rows"
    if name not in graph.initializers:
        rows = scale.const_value.numpy().reshape(-1, 1)
        held = ir.Value(name=name, const_value=ir.tensor(rows, name=name), type=scale.type)
        held.shape = ir.Shape(rows.shape)
        graph.register_initializer(held)
    places, result = node.inputs[1], node.outputs[0]
    found = ir.node("Gather", inputs=[integers, places], attributes={"axis": 0})
    scales = ir.node("Gather", inputs=[graph.initializers[name], places], attributes={"axis": 0})
    real = ir.node("Cast", inputs=[found.outputs[0]], attributes={"to": ir.DataType.FLOAT})
    product = ir.Value(name=result.name, shape=result.shape, type=result.type)
    multiply = ir.node("Mul", inputs=[real.outputs[0], scales.outputs[0]], outputs=[product])
    for made in (found, scales, real, multiply):
        made.metadata_props.update(node.metadata_props)     # they belong to the same module
        graph.insert_before(node, made)
    result.replace_all_uses_with(product, replace_graph_outputs=True)
    result.name = None
    graph.remove(node, safe=True)


def _axis(node: ir.Node, default: int) -> int:
    attribute = node.attributes.get("axis")
    return default if attribute is None else int(attribute.value)
