"""The precision each layer really ran in, against what the Q/DQ model asks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from compress.bench.record import LayerRow

# Layers that multiply and accumulate, as OpenVINO, ONNX Runtime and ONNX call them; "Convert" is a cast.
_ARITHMETIC = re.compile(r"MatMul|Gemm|Conv(?!ert)|FullyConnected|Attention|SDPA|LSTM|GRU|RNN", re.IGNORECASE)
_QUANTIZED_PAIR = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})  # int8 where both operands are


def precisions(layers: Sequence[LayerRow]) -> dict[str, int]:
    """Number of arithmetic layers by the precision they ran in."""
    return dict(sorted(Counter(layer.precision for layer in layers if _ARITHMETIC.search(layer.type)).items()))


def unexpected(asked: Mapping[str, str], layers: Sequence[LayerRow]) -> tuple[str, ...]:
    """The layers that run what ``asked`` wants in int8 in another precision, as "name: type in precision".

    Backends keep the name of the ONNX node in that of the layer they fuse it into, or take that of its output tensor.
    An operator found under neither name was fused beyond recognition and is not reported.
    """
    found = []
    for node, output in asked.items():
        name = re.compile(rf"(?<!\w)({re.escape(node)}|{re.escape(output)})(?!\w)")
        ran = [layer for layer in layers if _ARITHMETIC.search(layer.type) and name.search(layer.name)]
        found += [f"{node}: {layer.type} in {layer.precision}" for layer in ran if layer.precision != "int8"]
    return tuple(found)


def asked_for_int8(onnx_file: Path) -> dict[str, str]:
    """Node name -> output name of each operator of a Q/DQ model whose two operands are both dequantized int8."""
    import onnx

    graph = onnx.load(onnx_file, load_external_data=False).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {node.name: node.output[0] for node in graph.node
            if node.op_type in _QUANTIZED_PAIR and set(node.input[:2]) <= dequantized}
