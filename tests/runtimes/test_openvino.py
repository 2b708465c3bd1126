"""What only OpenVINO has; the rest is in tests/contracts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes import openvino
from runtimes.backends import Layer, open_engine
from runtimes.engine import read_engine
from runtimes.errors import RuntimesError
from runtimes.machine import machine_facts


class Node:
    """An operation of a runtime model, as far as layers are read from it."""

    def __init__(self, name: str, kind: str, *sources: Node, shape: tuple[int, ...] = (), **info: str) -> None:
        self.name, self.sources, self.shape, self.readers = name, sources, shape, list[Node]()
        self.info = {"layerType": kind, "runtimePrecision": "f32", "execTimeMcs": "not_executed", **info}
        for source in sources:
            source.readers.append(self)

    def get_friendly_name(self) -> str:
        return self.name

    def get_rt_info(self) -> dict[str, str]:
        return self.info

    def input_values(self) -> list[Any]:
        return [source.output(0) for source in self.sources]

    def outputs(self) -> list[Any]:
        return [self.output(0)]

    def output(self, index: int) -> Any:
        shape = SimpleNamespace(is_static=bool(self.shape), to_shape=lambda: self.shape)
        return SimpleNamespace(
            get_node=lambda: self, get_index=lambda: index, get_partial_shape=lambda: shape,
            get_target_inputs=lambda: [SimpleNamespace(get_node=lambda r=r: r) for r in self.readers])


def layers_of(*nodes: Node, products: dict[str, int] | None = None) -> list[Layer]:
    model = SimpleNamespace(get_ordered_ops=lambda: nodes)
    times = openvino._times(model)
    return openvino._layers(model, {name: time / 2 for name, time in times.items()}, products or {})


def test_layers_of_a_runtime_model() -> None:
    x, w = Node("x", "Input", outputPrecisions="u8"), Node("w", "Const", runtimePrecision="i8", shape=(8, 4))
    turned = Node("turned", "Transpose", w, runtimePrecision="i8", execTimeMcs="40", outputPrecisions="i8")
    x.shape = (2, 3, 4)
    product = Node("a::product", "FullyConnected", x, turned, runtimePrecision="u8", execTimeMcs="200",
                   shape=(2, 3, 8), primitiveType="brgemm_avx512_I8", originalLayersNames="a::product,a::gelu")
    tiny = Node("tiny", "Reshape", product, runtimePrecision="bf16")
    y = Node("y", "Output", tiny)
    assert openvino._times(SimpleNamespace(get_ordered_ops=lambda: [x, w, turned, product, tiny, y])) == {
        "x": 0, "w": 0, "turned": 40, "a::product": 200, "tiny": 0, "y": 0}
    assert layers_of(x, w, turned, product, tiny, y) == [
        Layer(name="a::product", type="FullyConnected", precision="int8", time_us=100.0,
              nodes=("a::product", "a::gelu"), macs=2 * 3 * 4 * 8, seen="kernel brgemm_avx512_I8, operands u8 and i8"),
        Layer(name="tiny", type="Reshape", precision="bf16", time_us=0.0, nodes=("a::product", "a::gelu"))]


def test_attention_in_one_kernel_is_arithmetic() -> None:
    x = Node("x", "Input")
    kernel = Node("attention", "Subgraph", x, originalLayersNames="turn,scores,softmax,mixed", execTimeMcs="30")
    other = Node("pointwise", "Subgraph", x, originalLayersNames="add,mul")
    (attention, pointwise) = layers_of(x, kernel, other, products={"scores": 100, "mixed": 20, "elsewhere": 7})
    assert (attention.type, attention.macs, attention.seen) == ("Subgraph of MatMul", 120, "kernel not named")
    assert (pointwise.type, pointwise.macs, pointwise.seen) == ("Subgraph", None, None)


def test_the_first_run_is_not_counted() -> None:
    assert openvino.PROFILED_RUNS == 10
    assert openvino._steady(first=1000, mean=190) == pytest.approx(109)     # (11 * 190 - 1000) / 10
    assert openvino._steady(first=100, mean=9) == 0.0                       # rounded down by OpenVINO


@pytest.mark.parametrize(("hint", "flag", "precision"), [("bf16", "avx512_bf16", "bf16"), ("f32", None, "f32")])
def test_precision_follows_the_options(hint: str, flag: str | None, precision: str, made_bundle: Path) -> None:
    if flag and flag not in machine_facts()["flags"]:
        pytest.skip(f"this CPU has no {flag}")
    engine = read_engine(made_bundle / "engines/main/openvino-cpu")
    runner = open_engine(dataclasses.replace(engine, options={"INFERENCE_PRECISION_HINT": hint}), threads=1)
    found = [layer.precision for layer in runner.layers() if layer.type == "FullyConnected"]
    runner.close()
    assert found == [precision]


def test_option_with_a_wrong_value(made_bundle: Path) -> None:
    engine = read_engine(made_bundle / "engines/main/openvino-cpu")
    with pytest.raises(RuntimesError, match=r"OpenVINO cannot open it on CPU.*Wrong value nonsense"):
        open_engine(dataclasses.replace(engine, options={"INFERENCE_PRECISION_HINT": "nonsense"}))


def test_device_that_is_not_here(made_bundle: Path) -> None:
    engine = dataclasses.replace(read_engine(made_bundle / "engines/main/openvino-cpu"), device="NPU")
    with pytest.raises(RuntimesError, match="OpenVINO cannot open it on NPU"):
        open_engine(engine)


def test_not_an_ir(made_bundle: Path) -> None:
    engine = dataclasses.replace(read_engine(made_bundle / "engines/main/openvino-cpu"), entry="model.bin")
    with pytest.raises(RuntimesError, match=r"model\.bin is not an OpenVINO IR"):
        open_engine(engine)
