"""Attention taken apart is the same function, and its two products run in int8 where that pays."""

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from calibration import open_set
from compress import Dim, Input
from compress.export import export
from compress.model import Model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.annotate import find_operators
from compress.quantize.attention import fused
from compress.quantize.fold import fold
from compress.quantize.prepare import convert
from compress.quantize.schemes import get_scheme
from compress.saving import export_model
from compress.targets import get_target

BATCH, LENGTH = Dim("batch", 1, 2, 8), Dim("length", 2, 6, 16)


class Heads(nn.Module):
    """Attention of four heads over ``x``, in the way that ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.read = nn.Linear(32, 96)
        self.packed = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        if self.kind == "packed":
            return self.packed(x, x, x, key_padding_mask=~seen)[0]
        query, key, value = self.read(x).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = seen[:, None, None, :]
        options = {
            "plain": {}, "scaled": {"scale": 0.2}, "causal": {"is_causal": True}, "mask": {"attn_mask": mask},
            "added mask": {"attn_mask": torch.where(mask, 0.0, -1e4)},
        }[self.kind]  # fmt: skip
        found = scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).flatten(2)
        return found if self.kind == "mask" else found + 0 * mask[:, 0, 0, :, None]


KINDS = ("plain", "scaled", "causal", "mask", "added mask", "packed")


def arrays(seed: int, length: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    seen = rng.random((2, length)) > 0.3
    seen[:, 0] = True
    return {"x": rng.normal(size=(2, length, 32)).astype(np.float32), "seen": seen}


def model_of(network: nn.Module) -> Model:
    torch.manual_seed(0)
    inputs = {name: Input(modality="sensor", dims=(BATCH, LENGTH)) for name in ("x", "seen")}
    return export_model(network.eval(), name="heads", example=arrays(0), inputs=inputs)


def quantized(model: Model, **config: object) -> Model:
    data = open_set([arrays(seed) for seed in range(16)], model.inputs)
    return quantize(model, data, scheme="x86-vnni", config=QuantizeConfig(**config)).model


@pytest.mark.parametrize("kind", KINDS)
def test_taken_apart_it_is_the_same_function_at_any_length(kind: str) -> None:
    model = model_of(Heads(kind))
    folded = fold(model)
    assert not any(fused(node) for node in folded.graph.program.graph.nodes)
    operators = find_operators(folded.graph.program.module(check_guards=False))
    assert [o.op for o in operators if o.op != "linear"] == ["attention scores", "attention values"]
    for length in (2, 6, 11):
        feed = arrays(1, length)
        np.testing.assert_allclose(
            run_program(folded, feed)["output"], run_program(model, feed)["output"], atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_in_int8_it_is_nearly_the_same(kind: str) -> None:
    model = model_of(Heads(kind))
    int8 = convert(quantized(model))
    nodes = int8.graph.program.graph.nodes
    products = [node for node in nodes if str(node.target).startswith(("aten.matmul", "aten.bmm"))]
    assert len(products) == 2
    assert all("dequantize" in str(read.target) for node in products for read in node.args)
    expected = run_program(model, arrays(99))["output"]
    error = np.abs(run_program(int8, arrays(99))["output"] - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.06


def test_shares_are_unsigned_keep_their_peaks_and_the_rest_has_no_zero_point() -> None:
    model = quantized(model_of(Heads("plain")), ranges="percentile", percentile=60.0)
    (scores, values) = (o for o in find_operators(model.graph.program.module(check_guards=False)) if o.other)
    ranges = model.quantization.ranges["forward"]
    assert ranges[values.activation][0] == 0
    assert ranges[values.activation][1] > 0.3               # the largest share, not the 60th percentile
    spec = {name: integers for o in (scores, values) for _, name, integers in o.operands(get_scheme("x86-vnni"))}
    assert spec[values.activation].scale_and_zero_point(*ranges[values.activation])[1] == 0
    assert all(spec[name].symmetric for name in (scores.activation, scores.other, values.other))


def test_openvino_runs_both_products_in_int8(tmp_path) -> None:
    engine = export(quantized(model_of(Heads("plain"))), get_target("openvino-cpu"), tmp_path / "engine")
    compiled = openvino.Core().compile_model(engine.path / engine.entry, "CPU", dict(engine.options))
    kinds = [(str(info["layerType"].value), str(info["runtimePrecision"].value))
             for info in (op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops())
             if str(info["layerType"].value) in ("Subgraph", "MatMul")]  # fmt: skip
    assert kinds
    assert {precision for _, precision in kinds} <= {"i8", "u8"}


def test_other_schemes_multiply_activations_in_float() -> None:
    model = model_of(Heads("plain"))
    data = open_set([arrays(seed) for seed in range(4)], model.inputs)
    result = quantize(model, data, scheme="tensorrt")
    assert [o["reason"] for o in result.operators] == [
        None, *["scheme 'tensorrt' multiplies two activations in float"] * 2]  # fmt: skip


class Cached(nn.Module):
    """Queries of ``x`` on keys that are given."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 8)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        return torch.softmax(self.read(x) @ keys.transpose(1, 2), -1) @ torch.cat([keys, self.read(x)], 1)[:, :3]


def test_keys_that_are_an_input_stay_float() -> None:
    example = {"x": np.ones((2, 1, 8), np.float32), "keys": np.ones((2, 3, 8), np.float32)}
    model = export_model(Cached().eval(), name="cached", example=example)
    operators = find_operators(model.graph.program.module(check_guards=False))
    assert [(o.op, str(o.float_reason).partition(":")[0]) for o in operators if o.other] == [
        ("attention scores", "its keys are read from an input"),
        ("attention values", "its values are read from an input"),
    ]  # fmt: skip


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = Heads("plain")

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return self.attend(x, seen)


def test_a_glob_keeps_attention_alone_in_float() -> None:
    model = quantized(model_of(Around()), keep_float=("attend",))
    operators = find_operators(model.graph.program.module(check_guards=False), ("attend",))
    assert [(o.op, o.path, o.float_reason) for o in operators] == [
        ("linear", "attend.read", None), ("attention scores", "attend", "kept float by 'attend'"),
        ("attention values", "attend", "kept float by 'attend'"),
    ]  # fmt: skip


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_keys_that_heads_share_are_each_ones_own(shared: int) -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 8 * shared), nn.Linear(32, 8 * shared)

        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            query, key, value = (read(x).unflatten(2, (-1, 8)).transpose(1, 2)
                                 for read in (self.query, self.key, self.value))  # fmt: skip
            found = scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :], enable_gqa=True)
            return found.transpose(1, 2).flatten(2)

    model = model_of(Grouped())
    folded = fold(model)
    operators = find_operators(folded.graph.program.module(check_guards=False))
    assert [(o.op, o.float_reason) for o in operators if o.op != "linear"] == [
        ("attention scores", None), ("attention values", None)]  # fmt: skip
    for length in (2, 6, 11):
        feed = arrays(1, length)
        np.testing.assert_allclose(
            run_program(folded, feed)["output"], run_program(model, feed)["output"], atol=1e-5)  # fmt: skip
    expected = run_program(model, arrays(99))["output"]
    error = np.abs(run_program(convert(quantized(model)), arrays(99))["output"] - expected).max()
    assert 0 < error < 0.06 * np.abs(expected).max()


def test_shared_keys_that_are_an_input_stay_float() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor, keys: Tensor) -> Tensor:
            return scaled_dot_product_attention(x.unflatten(2, (4, 2)).transpose(1, 2), keys, keys, enable_gqa=True)

    example = {"x": np.ones((2, 3, 8), np.float32), "keys": np.ones((2, 2, 5, 2), np.float32)}
    folded = fold(export_model(Given().eval(), name="given", example=example))
    operators = find_operators(folded.graph.program.module(check_guards=False))
    assert [str(o.float_reason).partition(":")[0] for o in operators] == [
        "its keys are read from an input", "its values are read from an input"]  # fmt: skip

