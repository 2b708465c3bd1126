"""Weights quantized alone: which layers have them, their integers by hand, and what recovery makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.model import Model, WeightOnly
from compress.modelfile import read_model, write_model
from compress.program import run_program
from compress.quantize import QuantizeConfig, QuantizeResult, quantize, rounding
from compress.quantize.annotate import find_operators
from compress.quantize.gptq import round_with_gptq
from compress.quantize.grid import WeightGrid
from compress.quantize.groups import GroupFakeQuantize, dequantize_groups
from compress.quantize.parts import layers_of
from compress.quantize.prepare import convert, is_quantized, prepare
from compress.quantize.rounding import learn_rounding
from compress.quantize.schemes import get_scheme
from compress.quantize.switches import Switches
from compress.recipe import to_config
from compress.saving import export_model
from compress.weights import storage
from tests.compress.quantize import networks
from tests.compress.quantize.recovered import Named, data_of, feeds, model_of, noise, sqnr
from tests.compress.quantize.test_gptq import correlated

INT4 = QuantizeConfig(int4_weights=("*",), group_size=16)


def quantized(model: Model, x: np.ndarray, config: QuantizeConfig = INT4, scheme: str = "x86-vnni") -> QuantizeResult:
    return quantize(model, data_of(model, x), scheme=scheme, config=config)


def linear(inputs: int = 32, outputs: int = 4) -> Model:
    torch.manual_seed(0)
    return model_of(Named(nn.Linear(inputs, outputs)), inputs)


def held(model: Model) -> dict[str, Tensor]:
    """What the converted program holds of the only layer's weight: integers, steps, and zeros where there are any."""
    program = convert(model).graph.program
    found = {**program.state_dict, **program.constants}
    return {name.rpartition("_")[2]: value for name, value in found.items() if name.startswith("_groups_of_")}


def test_integers_steps_and_zero_points_by_hand() -> None:
    """Of 0.1 a step: from -0.5 to 1.0 in 15 of them, zero at 5; and from zero to 1.5, where 7.5 goes to the even one.
    """
    model = linear(32, 1)
    first = [-0.5, 1.0, 0.0, 0.1, -0.1, 0.24, 0.26, -0.44, *[0.3] * 8]
    second = [0.75, 1.5, 0.3, *[0.9] * 13]
    with torch.no_grad():
        model.weights["module.weight"][0] = torch.tensor([*first, *second])
    found = held(quantized(model, noise(8, 32)).model)
    assert found["integers"].tolist() == [[0, 15, 5, 6, 4, 7, 8, 1, *[8] * 8, *[8, 15, 3], *[9] * 13]]
    np.testing.assert_allclose(found["steps"], [[0.1, 0.1]], rtol=1e-6)
    assert found["zeros"].tolist() == [[5, 0]]
    assert {name: value.dtype for name, value in found.items()} == {
        "integers": torch.int8, "steps": torch.float32, "zeros": torch.int8}


def test_symmetric_integers_for_tensorrt() -> None:
    model = linear(16, 1)
    with torch.no_grad():
        model.weights["module.weight"][0] = torch.tensor([-0.7, 0.35, 0.14, 0.16, *[0.0] * 12])
    found = held(quantized(model, noise(8, 16), scheme="tensorrt").model)
    assert found["integers"].tolist() == [[-7, 4, 1, 2, *[0] * 12]]     # 3.5 to the even one
    np.testing.assert_allclose(found["steps"], [[0.1]], rtol=1e-6)
    assert "zeros" not in found


def test_the_operator_by_hand_and_what_a_trace_takes_it_for() -> None:
    integers, steps = torch.tensor([[0, 15, 3, 4]], dtype=torch.int8), torch.tensor([[0.5, 2.0]])
    zeros = torch.tensor([[5, 3]], dtype=torch.int8)
    assert dequantize_groups(integers, steps, zeros, 2).tolist() == [[-2.5, 5.0, 0.0, 2.0]]
    assert dequantize_groups(integers, steps, None, 2).tolist() == [[0.0, 7.5, 6.0, 8.0]]
    torch.library.opcheck(dequantize_groups, (integers, steps, zeros, 2))


class Mixed(nn.Module):
    """What of a decoder can have its weights quantized alone, and what cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(5000, 64), nn.Conv1d(64, 64, 1)
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))
        self.wide, self.odd, self.head = nn.Linear(64, 96), nn.Linear(96, 40), nn.Linear(40, 8)

    def forward(self, words: Tensor) -> Tensor:
        x = self.conv(self.table(words).transpose(1, 2)).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(self.odd(torch.relu(self.wide(x))))


def mixed() -> tuple[Model, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    feed = {"words": np.random.default_rng(0).integers(0, 5000, (6, 7))}
    return export_model(Mixed().eval(), name="mixed", example=feed), feed


def told(config: QuantizeConfig) -> dict[str, tuple[str, str | None]]:
    model, feed = mixed()
    result = quantize(model, open_set([feed], model.inputs), scheme="x86-vnni", config=config)
    return {f"{o['path']} {o['op']}".strip(): (o["precision"], o["reason"]) for o in result.operators}


def test_linear_layers_alone_have_them_and_the_rest_of_their_modules_stays_float() -> None:
    found = told(QuantizeConfig(int4_weights=("*",), int8_weights=("query",), keep_float=("key",), group_size=128))
    why = "'*' asks for its weights alone in int4, and {}"
    assert found == {
        "table embedding": ("int8", None),
        "conv conv1d": ("float", why.format("no backend runs that but for linear layers")),
        "query linear": ("int4 weights", None), "key linear": ("float", "kept float by 'key'"),
        "value linear": ("int4 weights", None),
        "attention scores": ("float", why.format("it has none")),
        "attention values": ("float", why.format("it has none")),
        "wide linear": ("int4 weights", None), "odd linear": ("int4 weights", None),
        "head linear": ("int8 weights", None),      # 40 inputs: no group of 16 or more divides them
    }  # fmt: skip


def test_other_modules_are_quantized_as_without() -> None:
    found = told(QuantizeConfig(int4_weights=("wide",), int8_weights=("odd", "wide")))
    assert {name: precision for name, (precision, _) in found.items() if precision != "int8"} == {
        "wide linear": "int4 weights", "odd linear": "int8 weights"}


def test_a_group_is_the_largest_that_divides_the_inputs() -> None:
    module = mixed()[0].graph.program.module(check_guards=False)
    for size, expected in ((128, {64, 32}), (32, {32}), (16, {16})):
        found = find_operators(module, (), get_scheme("x86-vnni"), WeightOnly(int4=("*",), group=size))
        assert {o.alone.group for o in found if o.alone is not None and o.alone.bits == 4} == expected


def test_what_is_mistyped_is_refused() -> None:
    with pytest.raises(CompressError, match=r"int4_weights 'modul' matches no module with weights: they are module"):
        quantized(linear(), noise(8, 32), QuantizeConfig(int4_weights=("modul",)))
    with pytest.raises(CompressError, match=r"int8_weights 'x' matches no module with weights"):
        quantized(linear(), noise(8, 32), QuantizeConfig(int8_weights=("x",)))
    with pytest.raises(CompressError, match=r"group_size is 48: expected one of 16, 32, 64, 128, 256"):
        QuantizeConfig(group_size=48)


def test_nothing_is_collected_where_nothing_is_read_in_integers() -> None:
    result = quantized(linear(), noise(8, 32))
    assert result.model.quantization is not None
    assert result.model.quantization.ranges == {"forward": {}}
    assert result.coverage["tensors"] == []
    assert (result.to_json()["int8"], result.to_json()["weights"], result.to_json()["float"]) == (0, 1, 0)
    assert is_quantized(result.model, "forward")
    assert not is_quantized(linear(), "forward")


def test_int8_weights_alone_are_those_of_int8_and_the_activation_stays_float() -> None:
    model, x = linear(), noise(8, 32)
    found = convert(quantized(model, x, QuantizeConfig(int8_weights=("*",))).model)
    weight = model.weights["module.weight"].detach().numpy()
    step = np.abs(weight).max(1, keepdims=True) / 127
    expected = x @ (np.round(weight / step) * step).T + model.weights["module.bias"].detach().numpy()
    np.testing.assert_allclose(run_program(found, {"x": x})["output"], expected, atol=1e-5)


@pytest.mark.parametrize("scheme", ["x86-vnni", "x86", "arm64", "tensorrt"])
def test_the_prepared_and_the_converted_program_agree(scheme: str) -> None:
    model, x = linear(), noise(8, 32)
    found = quantized(model, x, scheme=scheme).model
    prepared = prepare(found, "forward")(x=torch.from_numpy(x))
    np.testing.assert_allclose(run_program(convert(found), {"x": x})["output"], prepared[0].detach(), atol=1e-6)
    assert 15 < sqnr(model, x, found) < 30      # of 15 or 16 levels


def test_smaller_groups_come_nearer_and_zero_points_help() -> None:
    model, x = linear(256, 64), noise(64, 256)
    found = {size: sqnr(model, x, quantized(model, x, QuantizeConfig(int4_weights=("*",), group_size=size)).model)
             for size in (16, 64, 256)}  # fmt: skip
    assert found[16] > found[64] > found[256]
    symmetric = quantized(model, x, QuantizeConfig(int4_weights=("*",)), scheme="tensorrt").model
    assert found[64] > sqnr(model, x, symmetric)


def test_a_fake_quantizer_trains_through_and_can_be_switched_off() -> None:
    quantizer = GroupFakeQuantize(WeightGrid(low=0, high=15, group=16))
    weight = torch.from_numpy(noise(3, 32)).requires_grad_()
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    np.testing.assert_array_equal(weight.grad, np.ones((3, 32)))
    assert not torch.equal(quantizer(weight), weight)
    quantizer.disable_fake_quant()
    assert torch.equal(quantizer(weight), weight)
    with pytest.raises(NotImplementedError, match=r"ask WeightGrid\.parameters"):
        quantizer.calculate_qparams()


def test_layers_are_switched_to_the_bit_what_keep_float_gives() -> None:
    model, feed = mixed()
    config = QuantizeConfig(int4_weights=("wide", "odd", "query"))
    found = quantize(model, open_set([feed], model.inputs), scheme="x86-vnni", config=config).model
    switches = Switches(found, layers_of(found))
    assert found.quantization is not None
    for floats in (("wide",), ("wide", "odd", "head")):
        switches.only([path for path in switches.paths if path not in floats])
        kept = dataclasses.replace(found, quantization=dataclasses.replace(found.quantization, keep_float=floats))
        expected = prepare(kept, "forward")(words=torch.from_numpy(feed["words"]))[0].detach()
        np.testing.assert_array_equal(switches.outputs_of(feed)["output"], expected)


@pytest.mark.parametrize("scheme", ["x86-vnni", "tensorrt"])
def test_gptq_comes_nearer_and_its_integers_survive(scheme: str) -> None:
    torch.manual_seed(0)
    model, x = model_of(Named(nn.Linear(48, 16)), 48), correlated(48, 64)
    plain = quantized(model, x, scheme=scheme).model
    found, count = round_with_gptq(plain, feeds(plain, x))
    assert count == 1
    assert sqnr(model, x, found) > sqnr(model, x, plain) + 2
    before, after = held(plain), held(found)
    np.testing.assert_allclose(after["steps"], before["steps"], rtol=1e-6)
    assert 0.02 < float((after["integers"] != before["integers"]).float().mean()) < 0.9
    again = dequantize_groups(after["integers"], after["steps"], after.get("zeros"), 16)
    np.testing.assert_allclose(again, found.weights["module.weight"].detach(), atol=1e-6)
    asked = quantized(model, x, dataclasses.replace(INT4, rounding="gptq"), scheme).model
    assert torch.equal(asked.weights["module.weight"], found.weights["module.weight"])


def test_learned_rounding_comes_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "ITERATIONS", 200)
    torch.manual_seed(0)
    model, x = model_of(Named(nn.Linear(48, 16)), 48), correlated(48, 64)
    plain = quantized(model, x).model
    found, count = learn_rounding(plain, feeds(plain, x))
    assert count == 1
    assert sqnr(model, x, found) > sqnr(model, x, plain) + 1
    change = held(found)["integers"].int() - held(plain)["integers"].int()
    assert set(change.unique().tolist()) == {-1, 0, 1}


def test_a_table_that_is_a_weight_as_well_stays_one() -> None:
    model = export_model(networks.Tied().eval(), name="tied", example={"tokens": np.zeros((2, 3), np.int64)})
    result = quantize(model, open_set([{"tokens": np.arange(6).reshape(2, 3)}], model.inputs), scheme="x86-vnni",
                      config=QuantizeConfig(int8_weights=("words",)))  # fmt: skip
    assert [(o["op"], o["precision"]) for o in result.operators] == [("embedding", "float"), ("linear", "int8 weights")]
    assert storage(result.model.weights["table.weight"]) == storage(result.model.weights["words.weight"])


def test_the_model_file_keeps_it_and_old_ones_are_read(tmp_path: Path) -> None:
    model, x = linear(), noise(8, 32)
    found = quantized(model, x).model
    write_model(found, tmp_path / "model.pt")
    again = read_model(tmp_path / "model.pt")
    assert again.quantization == found.quantization
    assert again.quantization is not None
    assert again.quantization.weight_only == WeightOnly(int4=("*",), group=16)
    np.testing.assert_array_equal(run_program(convert(again), {"x": x})["output"],
                                  run_program(convert(found), {"x": x})["output"])  # fmt: skip


def test_a_recipe_has_the_settings() -> None:
    found = to_config(QuantizeConfig, {"int4_weights": ["decoder.*"], "group_size": 32}, "recipe.yaml")
    assert found == QuantizeConfig(int4_weights=("decoder.*",), group_size=32)
