"""What only ONNX Runtime has; the rest is in tests/contracts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtimes import onnxruntime
from runtimes.backends import open_engine
from runtimes.engine import read_engine
from runtimes.errors import RuntimesError

NOTHING = onnxruntime.Graph(b"", b"")


def event(name: str, operator: str, dur: int, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {"name": f"{name}_kernel_time", "dur": dur, "args": {
        "op_name": operator, "node_index": name,
        "input_type_shape": [{kind: [1]} for kind in inputs], "output_type_shape": [{kind: [1]} for kind in outputs]}}


@pytest.mark.parametrize(("operator", "inputs", "outputs", "precision"), [
    ("MatMulIntegerToFloat", ["uint8", "int8", "float", "float"], ["float"], "int8"),
    ("DynamicQuantizeMatMul", ["float", "int8", "float"], ["float"], "int8"),
    ("QLinearConv", ["uint8", "float", "uint8", "int8"], ["uint8"], "int8"),
    ("MatMul", ["float", "float"], ["float"], "f32"),
    ("Gather", ["float", "int64"], ["float"], "f32"),
    ("Gather", ["int8", "int64"], ["int8"], "int8"),
    ("DequantizeLinear", ["int32", "float"], ["float"], "f32"),
    ("Cast", ["float"], ["float16"], "f16"),
    ("Odd", [], [], "unknown"),
])
def test_precision_of_a_node(operator: str, inputs: list[str], outputs: list[str], precision: str) -> None:
    (layer,) = onnxruntime._layers([event("n", operator, 5, inputs, outputs)], NOTHING)
    assert (layer.name, layer.type, layer.precision) == ("n", operator, precision)


def test_the_precision_of_packed_weights_is_what_their_node_says() -> None:
    for bits in (4, 8):
        packed = made("n", "MatMulNBits", ["x", "w", "s"], ["y"], bits=bits, K=64, N=2, block_size=32)
        (layer,) = onnxruntime._layers([event("n", "MatMulNBits", 5, ["float", "uint8", "float"], ["float"])],
                                       onnxruntime.Graph(b"", graph_of([packed])))
        assert layer.precision == f"int{bits}"


def test_the_first_run_is_not_counted() -> None:
    events = [event("a", "Add", dur, ["float"], ["float"]) for dur in (1000, 10, 20)]
    (layer,) = onnxruntime._layers(events, NOTHING)
    assert layer.time_us == 15.0


def made(name: str, operator: str, inputs: list[str], outputs: list[str], **integers: int) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, name=name, **integers)


def graph_of(nodes: list[onnx.NodeProto]) -> bytes:
    return bytes(helper.make_model(helper.make_graph(nodes, "g", [], [])).SerializeToString())


MODEL = graph_of([
    made("a::dq_x", "DequantizeLinear", ["x8", "s"], ["x"]), made("a::dq_w", "DequantizeLinear", ["w8", "s"], ["w"]),
    made("a::conv", "Conv", ["x", "w", "bias"], ["c"]), made("a::gelu", "Gelu", ["c"], ["g"]),
    made("b::gemm", "Gemm", ["x", "w", "bias"], ["m"]), made("b::relu", "Relu", ["m"], ["r"]),
])
OPTIMISED = graph_of([
    made("a::dq_x", "DequantizeLinear", ["x8", "s"], ["x"]), made("a::dq_w", "DequantizeLinear", ["w8", "s"], ["w"]),
    made("a::conv", "Conv", ["x", "w", "bias"], ["c"]), made("BiasGelu", "BiasGelu", ["c"], ["g"]),
    made("fused", "FusedGemm", ["x", "w", "bias"], ["r"], transA=1),
    made("reorder", "ReorderOutput", ["elsewhere"], ["r_nchwc"]), made("b::end", "Identity", ["r_nchwc"], ["end"]),
])


def test_layers_know_their_operators_and_why_they_are_float() -> None:
    graph = onnxruntime.Graph(MODEL, OPTIMISED)
    events = [event("a::conv", "Conv", 5, ["float", "float", "float"], ["float"]),
              event("BiasGelu", "BiasGelu", 5, ["float", "float"], ["float"]),
              event("fused", "FusedGemm", 5, ["float", "float"], ["float"])]
    events[2]["args"] |= {"input_type_shape": [{"float": [64, 2]}], "output_type_shape": [{"float": [2, 8]}]}
    conv, gelu, gemm = onnxruntime._layers(events, graph)
    assert [layer.nodes for layer in (conv, gelu, gemm)] == [("a::conv",), ("a::gelu",), ("b::relu",)]
    assert conv.seen == ("f32 operands from DequantizeLinear and DequantizeLinear, result read by BiasGelu; "
                         "an int8 Conv needs a QuantizeLinear right behind it")
    assert gelu.seen is None
    assert gemm.seen == ("f32 operands from DequantizeLinear and DequantizeLinear, result read by no node; "
                         "an int8 Gemm takes no float bias")
    assert gemm.macs == 64 * 2 * 8      # the first operand is transposed, the second packed away
    assert (gelu.macs, conv.macs) == (None, None)


def test_an_int8_convolution_is_counted_by_its_packed_weights() -> None:
    node = made("conv", "QLinearConv", ["x", "s", "z", "w", "ws", "wz", "t", "u"], ["y"], channels_last=1)
    weights = numpy_helper.from_array(np.ones((48, 32, 8), np.int8), "w")
    optimised = helper.make_model(helper.make_graph([node], "g", [], [], [weights])).SerializeToString()
    ran = event("conv", "QLinearConv", 5, [], [])       # as 1.31 writes it: of the weights only their scales are there
    ran["args"] |= {"input_type_shape": [{"uint8": [1, 127, 32]}, {"float": []}, {"uint8": []}, {"float": [48]}],
                    "output_type_shape": [{"uint8": [1, 30, 48]}]}
    (layer,) = onnxruntime._layers([ran], onnxruntime.Graph(b"", optimised))
    assert layer.macs == 30 * 48 * 32 * 8


def test_a_node_that_was_added_serves_its_neighbours() -> None:
    graph = onnxruntime.Graph(graph_of([made("b::end", "Identity", ["r"], ["end"])]), OPTIMISED)
    assert graph.nodes_of(graph.ran["reorder"]) == ("b::end",)
    assert NOTHING.nodes_of(graph.ran["a::conv"]) == ()


def test_a_convolution_in_blocks_of_channels_is_called_after_what_it_makes() -> None:
    """As ONNX Runtime 1.31 writes a Conv that the Relu behind it, whose output is ``r``, was fused into."""
    blocked = made("r_nchwc", "Conv", ["x", "reordered", "bias"], ["reorder_token_1"])
    assert onnxruntime.Graph(MODEL, graph_of([blocked])).nodes_of(onnxruntime.read_nodes(graph_of([blocked]))[0]) == (
        "b::relu",)


def test_cpu_only(made_bundle: Path) -> None:
    engine = dataclasses.replace(read_engine(made_bundle / "engines/main/onnxruntime-cpu"), device="GPU")
    with pytest.raises(RuntimesError, match="is for GPU: backend onnxruntime runs on CPU only"):
        open_engine(engine)
