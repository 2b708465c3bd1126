"""What only OpenVINO has; the rest is in tests/contracts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
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
    assert [layers_of(Node("c", "FullyConnected", x, w, runtimePrecision=kind))[0].precision
            for kind in ("u4", "i4", "u8", "i8")] == ["int4", "int4", "int8", "int8"]
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


@pytest.fixture
def runner(made_bundle: Path) -> Iterator[openvino.OpenVINORunner]:
    engine = read_engine(made_bundle / "engines/main/openvino-cpu")
    opened = open_engine(engine, threads=1)
    assert isinstance(opened, openvino.OpenVINORunner)
    yield opened
    opened.close()


def feed_of(runner: openvino.OpenVINORunner, value: float) -> dict[str, np.ndarray]:
    return {spec.name: np.full(spec.sized(), value, spec.dtype) for spec in runner._engine.inputs}


def test_results_that_are_held_are_not_written_again(runner: openvino.OpenVINORunner) -> None:
    """Nor those of which a view alone is held; those that nobody holds are, two of each output at most."""
    name = runner._engine.outputs[0].name
    held = [runner.run(feed_of(runner, value))[name] for value in (1, 2, 3, 4)]
    views = [runner.run(feed_of(runner, value))[name][:1] for value in (5, 6)]
    before = [array.copy() for array in (*held, *views)]
    for value in (7, 8, 9):
        runner.run(feed_of(runner, value))
    for array, expected in zip((*held, *views), before, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert len({float(array.flat[0]) for array in before}) == len(before)
    (request,) = runner._requests
    assert [len(tensors) for tensors in request._kept] == [openvino.KEPT] * len(runner._outputs)
    places = {runner.run(feed_of(runner, value))[name].ctypes.data for value in (1, 2, 3)}
    assert len(places) == 1


def test_an_array_that_was_read_before_is_read_again(runner: openvino.OpenVINORunner) -> None:
    """What was written into it meanwhile counts, though it is not set anew; one that cannot be shared is copied."""
    name = runner._engine.outputs[0].name
    feed = feed_of(runner, 1)
    first = runner.run(feed)[name].copy()
    (request,) = runner._requests
    assert request.changed({at: feed[key] for key, at in runner._inputs.items()}) == {}
    for array in feed.values():
        array[...] = 2
    second = runner.run(feed)[name].copy()
    np.testing.assert_array_equal(second, runner.run(feed_of(runner, 2))[name])
    assert not np.array_equal(first, second)
    frozen = feed_of(runner, 1)
    views = {key: array.view() for key, array in frozen.items()}
    for view in views.values():
        view.flags.writeable = False
    np.testing.assert_array_equal(runner.run(views)[name], first)
    for array in frozen.values():
        array[...] = 2
    np.testing.assert_array_equal(runner.run(views)[name], second)


def test_after_a_failure_everything_is_set(runner: openvino.OpenVINORunner) -> None:
    name = runner._engine.outputs[0].name
    feed = feed_of(runner, 1)
    expected = runner.run(feed)[name].copy()
    wrong = {key: np.ones((2, 3, 4, 5, 6), array.dtype) for key, array in feed.items()}
    with pytest.raises(RuntimesError, match="OpenVINO cannot run this feed"):
        runner.run(wrong)
    assert runner._requests[0]._given == {}
    np.testing.assert_array_equal(runner.run(feed)[name], expected)


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


def test_engines_of_some_threads_are_not_pinned_to_the_same_cores() -> None:
    """Two towers of one thread each would run on the first core, one after the other."""
    plain: Any = SimpleNamespace(options={}, path=Path("here"))
    assert openvino._settings(plain, None) == {"PERFORMANCE_HINT": "LATENCY"}
    assert openvino._settings(plain, 1) == {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    pinned: Any = SimpleNamespace(options={"ENABLE_CPU_PINNING": "YES"}, path=Path("here"))
    assert openvino._settings(pinned, 1)["ENABLE_CPU_PINNING"] == "YES"


def test_an_answer_without_values_is_an_error(runner: openvino.OpenVINORunner) -> None:
    filled = {"y": np.ones((2, 3), np.float32)}
    assert runner._filled(filled) is filled
    with pytest.raises(RuntimesError, match="OpenVINO gives output 'y' no values: use another target's engine"):
        runner._filled({"y": np.ones((0,), np.float32)})
