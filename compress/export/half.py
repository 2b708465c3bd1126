"""Write an ONNX model's types as float16, for backends that compute in the types the file says: TensorRT from 10 on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from compress.errors import CompressError

LARGEST = float(np.finfo(np.float16).max)
SCALE_ERROR = 1 / 512  # of a scale when rounded to float16: shifts the largest int8 code by a quarter of a step

# Sums of squares and exponentials leave float16's range, and a Range or a Resize counts beyond its 11 bits.
FLOAT32 = frozenset(
    "LayerNormalization RMSNormalization InstanceNormalization GroupNormalization BatchNormalization "
    "LpNormalization MeanVarianceNormalization Softmax LogSoftmax Exp Log Pow Sqrt Reciprocal Erf CumSum Range Resize "
    "ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceProd "
    "Constant ConstantOfShape RandomNormal RandomUniform EyeLike Einsum".split()
)


def to_half(model: ir.Model) -> None:
    """Change ``model`` in place: float16 everywhere but in the operators of ``FLOAT32``, which get casts around them.

    Inputs and outputs keep their types. Constants beyond float16's range (a mask's -3.4e38) become its largest value;
    a quantization whose scales float16 cannot hold to ``SCALE_ERROR`` stays in float32.

    Raises:
        CompressError: if the model has control flow, whose bodies read values of the outer graph by name.
    """
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
           for node in model.graph for attribute in node.attributes.values()):  # fmt: skip
        raise CompressError("a model with If, Loop or Scan cannot be written as fp16: ask for int8 or fp32")
    passes.ShapeInferencePass()(model)
    _Rewriter(model.graph).run()
    passes.RemoveUnusedNodesPass()(model)  # the constants that are float16 now


class _Rewriter:
    """One walk in the order of execution; ``self._cast`` holds the casts and constants made so far."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self._graph):
            floats = [value for value in (*node.inputs, *node.outputs) if value is not None and _is_float(value)]
            if not floats:
                continue
            wanted = ir.DataType.FLOAT if _stays_float32(node) else ir.DataType.FLOAT16
            for index, value in enumerate(node.inputs):
                if value is not None and _is_float(value) and value.dtype != wanted:
                    node.replace_input_with(index, self._as(value, wanted, node))
            if wanted == ir.DataType.FLOAT16:
                self._narrow(node)
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                self._widen_output(index, value)

    def _narrow(self, node: ir.Node) -> None:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = ir.DataType.FLOAT16

    def _as(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """``value`` in another float type: a constant of it, or a cast right after it is made."""
        if (value, wanted) not in self._cast:
            constant = value.const_value
            name = f"{value.name}_{wanted.name.lower()}"
            if constant is not None and value.is_initializer():
                narrowed = np.clip(constant.numpy(), -LARGEST, LARGEST).astype(np.float16)
                made = ir.Value(name=name, const_value=ir.tensor(narrowed, name=name))
                made.shape, made.type = value.shape, ir.TensorType(wanted)
                self._graph.register_initializer(made)
            else:
                cast = ir.node("Cast", [value], {"to": wanted}, name=f"{name}_cast")
                made = cast.outputs[0]
                made.name, made.shape, made.type = name, value.shape, ir.TensorType(wanted)
                self._graph.insert_before(before, cast)
            self._cast[value, wanted] = made
        return self._cast[value, wanted]

    def _widen_output(self, index: int, value: ir.Value) -> None:
        """The output keeps its name and its type; what made it gets another name."""
        name = value.name
        value.name = f"{name}_float16"
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
        widened = cast.outputs[0]
        widened.name, widened.shape, widened.type = name, value.shape, ir.TensorType(ir.DataType.FLOAT)
        self._graph.append(cast)
        self._graph.outputs[index] = widened


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _stays_float32(node: ir.Node) -> bool:
    if node.op_type in FLOAT32:
        return True
    return node.op_type in ("QuantizeLinear", "DequantizeLinear") and not _fit(node.inputs)


def _fit(inputs: Sequence[ir.Value | None]) -> bool:
    """Whether float16 holds the scales of a quantization closely enough."""
    constant = inputs[1].const_value if inputs[1] is not None else None
    if constant is None:
        return False
    scales = constant.numpy().astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16).astype(np.float64)
    return bool(np.isfinite(rounded).all() and (np.abs(rounded - scales) <= SCALE_ERROR * np.abs(scales)).all())
