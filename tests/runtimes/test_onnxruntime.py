"""What only ONNX Runtime has; the rest is in tests/contracts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from runtimes import onnxruntime
from runtimes.backends import open_engine
from runtimes.engine import read_engine
from runtimes.errors import RuntimesError


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
    (layer,) = onnxruntime._layers([event("n", operator, 5, inputs, outputs)])
    assert (layer.name, layer.type, layer.precision) == ("n", operator, precision)


def test_the_first_run_is_not_counted() -> None:
    events = [event("a", "Add", dur, ["float"], ["float"]) for dur in (1000, 10, 20)]
    (layer,) = onnxruntime._layers(events)
    assert layer.time_us == 15.0


def test_cpu_only(made_bundle: Path) -> None:
    engine = dataclasses.replace(read_engine(made_bundle / "engines/main/onnxruntime-cpu"), device="GPU")
    with pytest.raises(RuntimesError, match="is for GPU: backend onnxruntime runs on CPU only"):
        open_engine(engine)
