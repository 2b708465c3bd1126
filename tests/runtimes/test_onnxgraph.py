"""Nodes read from a model's bytes, against the onnx package's own reading."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.onnxgraph import Node, read_nodes, read_shapes


def test_nodes_of_a_model() -> None:
    nodes = [helper.make_node("Gemm", ["x", "", "w"], ["y"], name="a::gemm", transA=1, alpha=0.5),
             helper.make_node("Split", ["y"], ["p", "q"], axis=1)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [],
                              [numpy_helper.from_array(np.ones(3, np.float32), "w")])
    assert read_nodes(helper.make_model(graph).SerializeToString()) == [
        Node(name="a::gemm", op="Gemm", inputs=("x", "", "w"), outputs=("y",), integers={"transA": 1}),
        Node(name="", op="Split", inputs=("y",), outputs=("p", "q"), integers={"axis": 1})]


@pytest.mark.parametrize("shape", [(), (3,), (48, 300, 8)])
def test_shapes_of_constants(shape: tuple[int, ...]) -> None:
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.ones(shape, np.int8), "w")])
    assert read_shapes(helper.make_model(graph).SerializeToString()) == {"w": shape}


def test_sizes_that_are_packed() -> None:
    tensor = b"\x0a\x03\x30\xac\x02" + b"\x42\x01w"      # field 1: 48 and 300 in three bytes; field 8: the name
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    assert read_shapes(b"\x3a" + bytes([len(graph)]) + graph) == {"w": (48, 300)}


def test_no_model() -> None:
    assert read_nodes(b"") == []
    assert read_shapes(b"") == {}
    with pytest.raises((ValueError, IndexError)):
        read_nodes(b"\x3a\xff\x01\x02")
