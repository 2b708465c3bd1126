"""Which weights of an ONNX file are 2:4 sparse, along the inputs of each operator."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.export.sparsity import in_pattern, sparse_weights

ROWS = np.array([[1, 0, 0, 2, 3, 0, 4, 0]] * 4, np.float32)          # 4 outputs, 8 inputs: two of every four


def file(operator: str, weight: np.ndarray, *, turn: bool = False, **attributes: int) -> bytes:
    """One operator with a constant weight, behind a Transpose where asked."""
    nodes = [helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0])] if turn else []
    nodes.append(helper.make_node(operator, ["x", "v" if turn else "w"], ["y"], **attributes))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "one", [value("x", TensorProto.FLOAT, None)],
                              [value("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(weight, "w")])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())


def test_in_pattern() -> None:
    assert in_pattern(ROWS, 1)
    assert not in_pattern(ROWS, 0)                           # whole columns of ones are four neighbours
    assert in_pattern(np.zeros((4, 4)), 0)


@pytest.mark.parametrize(("data", "expected"), [
    (file("MatMul", ROWS.T.copy()), (1, 1)),
    (file("MatMul", ROWS), (0, 1)),                          # its four inputs are the rows, which are alike
    (file("MatMul", ROWS, turn=True), (1, 1)),
    (file("Gemm", ROWS, transB=1), (1, 1)),
    (file("Gemm", ROWS.T.copy()), (1, 1)),
    (file("Conv", np.repeat(ROWS[:, :, None], 3, axis=2)), (1, 1)),
    (file("Conv", np.ones((4, 8, 3), np.float32)), (0, 1)),
    (file("Conv", np.ones((8, 4, 3), np.float32), group=2), (0, 0)),   # in groups
    (file("MatMul", np.zeros((6, 4), np.float32)), (0, 0)),            # no whole fours
    (file("Mul", ROWS), (0, 0)),
])
def test_the_inputs_of_each_operator(data: bytes, expected: tuple[int, int]) -> None:
    assert sparse_weights(data) == expected
