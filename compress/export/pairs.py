"""Quantizations that cost a backend more than they save: those it cannot make part of the operator before them.

An int8 program quantizes what its convolutions give, without which ONNX Runtime has no int8 kernel of one. OpenVINO and
TensorRT have, whatever is behind it; to them a quantization that nothing but float operators read is work of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_KEEPING = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "MaxPool"}    # by their first input
_CLIPPING = {"Relu", "Clip"}
_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_MULTIPLYING = {"Conv", "MatMul", "Gemm"}


def drop_pairs(model: ModelProto) -> None:
    """Leave out each pair of QuantizeLinear and DequantizeLinear that is not worth it.

    One behind another of the same grid, with nothing in between that changes a value. One of a convolution's result
    that only float operators read; of two such that are added, one stays: the sum is made as part of the convolution
    whose result is not quantized, from the integers of the other. The answers become those of fewer roundings.
    """
    graph = _Graph(model)
    for quantize in graph.quantizations():
        if graph.repeats(quantize):
            graph.leave_out(quantize)
            graph = _Graph(model)
    for quantize in reversed(graph.quantizations()):
        if graph.behind_convolution(quantize) and not graph.is_used(quantize):
            graph.leave_out(quantize)
            graph = _Graph(model)
    drop_unread(model)


def drop_unread(model: ModelProto) -> None:
    """Leave out the constants that nothing reads any more."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for tensor in list(model.graph.initializer):
        if tensor.name not in read:
            model.graph.initializer.remove(tensor)


def is_signed(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has signed integers, as those that an int8 LSTM reads."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.op_type in _PAIR else None
    return zero is not None and zero.data_type == zero.INT8


class _Graph:
    """The nodes of a model by what they write and read."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.writer = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}

    def quantizations(self) -> list[NodeProto]:
        """Those of activations, in the order they run, whose integers are dequantized and nothing else."""
        return [
            node for node in self.model.graph.node
            if node.op_type == "QuantizeLinear" and node.input[0] not in self.constants
            and node.output[0] not in self.outputs
            and all(reader.op_type == "DequantizeLinear" and reader.output[0] not in self.outputs
                    for reader in self.readers.get(node.output[0], []))
        ]  # fmt: skip

    def repeats(self, quantize: NodeProto) -> bool:
        """Whether what it reads is on its grid already."""
        return self._on_grid(quantize.input[0], self._grid(quantize))

    def _on_grid(self, name: str, grid: tuple[bytes, ...]) -> bool:
        node = self.writer.get(name)
        if node is None:
            return False
        if node.op_type == "DequantizeLinear":
            return self._grid(node) == grid
        if node.op_type == "Concat":
            return all(self._on_grid(each, grid) for each in node.input)
        return node.op_type in _KEEPING and self._on_grid(node.input[0], grid)

    def _grid(self, node: NodeProto) -> tuple[bytes, ...]:
        """Its scale and zero point, which the model holds."""
        return tuple(self.constants[name].SerializeToString(deterministic=True).replace(name.encode(), b"")
                     if name in self.constants else name.encode() for name in node.input[1:])  # fmt: skip

    def behind_convolution(self, quantize: NodeProto) -> bool:
        return self._of_convolution(quantize.input[0])

    def _of_convolution(self, name: str) -> bool:
        node = self.writer.get(name)
        while node is not None and node.op_type in _CLIPPING:
            node = self.writer.get(node.input[0])
        return node is not None and node.op_type == "Conv"

    def is_used(self, quantize: NodeProto) -> bool:
        """Whether an int8 operator reads it, or a sum of which nothing else is quantized."""
        readers = list(self._readers_of(quantize))
        kinds = {reader.op_type for reader, _ in readers}
        if kinds & _MULTIPLYING or ("LSTM" in kinds and is_signed(quantize, self.constants)):
            return True
        sums = [(reader, read) for reader, read in readers if reader.op_type == "Add"]
        return any(self._is_quantized_alone(reader, read) for reader, read in sums)

    def _readers_of(self, quantize: NodeProto) -> Iterator[tuple[NodeProto, str]]:
        """What reads the dequantized values, and by which name, also after what keeps them."""
        waiting = [node.output[0] for node in self.readers.get(quantize.output[0], [])]
        while waiting:
            name = waiting.pop()
            for reader in self.readers.get(name, []):
                yield reader, name
                if reader.op_type in (*_KEEPING, "Concat"):
                    waiting.append(reader.output[0])

    def _is_quantized_alone(self, add: NodeProto, read: str) -> bool:
        """Whether a convolution's result is added as it is to what is ``read``."""
        return any(self._of_convolution(name) for name in add.input if name != read)

    def leave_out(self, quantize: NodeProto) -> None:
        """Let what read the dequantized values read those before."""
        pairs = self.readers.get(quantize.output[0], [])
        for dequantize in pairs:
            for reader in self.readers.get(dequantize.output[0], []):
                for place, name in enumerate(reader.input):
                    if name == dequantize.output[0]:
                        reader.input[place] = quantize.input[0]
        for node in (quantize, *pairs):
            self.model.graph.node.remove(node)
