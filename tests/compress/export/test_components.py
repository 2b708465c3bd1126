"""Nodes named after their components, all the way into the layers that two backends report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import calibration
from calibration import open_set
from compress.bench.layers import by_component, rows
from compress.complexity import count
from compress.export import build_engine, export_onnx
from compress.export.components import component_of_nodes, component_prefix, components_in
from compress.model import Model
from compress.quantize import quantize
from compress.saving import export_model
from compress.targets import targets
from runtimes.backends import open_engine


class Two(nn.Module):
    """Two branches and what joins them, outside of any component."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.heard = nn.Sequential(nn.Linear(32, 64), nn.GELU()), nn.Sequential(nn.Linear(16, 64))
        self.head = nn.Linear(64, 8)

    def forward(self, image: Tensor, sound: Tensor) -> Tensor:
        return self.head(torch.relu(self.seen(image) + self.heard(sound)))


EXAMPLE = {"image": np.zeros((2, 5, 32), np.float32), "sound": np.zeros((2, 5, 16), np.float32)}
MACS = {"seen": 5 * 32 * 64, "heard": 5 * 16 * 64, "head": 5 * 64 * 8}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return export_model(Two(), name="two", example=EXAMPLE, components={"vision": "seen", "an ear": "heard"})


def prefixes(path: Path) -> dict[str, str]:
    return {node.name.rpartition("::")[2]: node.name.rpartition("::")[0] for node in onnx.load(path).graph.node}


def test_names_tell_the_component(model: Model, tmp_path: Path) -> None:
    path = export_onnx(model, targets()["onnxruntime-cpu"], tmp_path / "model.onnx")
    assert set(prefixes(path).values()) == {"vision", "an_ear", "other"}
    assert prefixes(path)["node_gelu"] == "vision"
    assert prefixes(path)["node_relu"] == "other"
    again = export_onnx(model, targets()["onnxruntime-cpu"], tmp_path / "again.onnx")
    assert again.read_bytes() == path.read_bytes()


def test_what_quantizes_belongs_to_what_reads_it() -> None:
    """A value that two components read is shared; a node without a module is its reader's, or its source's."""
    def node(kind: str, name: str, sources: list[ir.Node], path: str | None) -> ir.Node:
        made = ir.node(kind, inputs=[source.outputs[0] for source in sources], name=name)
        if path is not None:
            made.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", path, "op"])
        return made

    root = node("Relu", "root", [], "a")
    q = node("QuantizeLinear", "q", [root], "a")
    dq = node("DequantizeLinear", "dq", [q], "a")
    both_q = node("QuantizeLinear", "both_q", [root], None)
    both_dq = node("DequantizeLinear", "both_dq", [both_q], None)
    first, second = node("MatMul", "first", [dq, both_dq], "b@1"), node("MatMul", "second", [both_dq], "c")
    bias = node("Sub", "bias", [second], None)
    alone = node("Shape", "alone", [], None)
    nodes = [root, q, dq, both_q, both_dq, first, second, bias, alone]
    graph = ir.Graph([], [], nodes=nodes, opset_imports={"": 20})
    found = component_of_nodes(ir.Model(graph, ir_version=10), lambda path: path.upper())
    assert {made.name: owner for made, owner in found.items()} == {
        "root": "A", "q": "B", "dq": "B", "both_q": "shared", "both_dq": "shared", "first": "B", "second": "C",
        "bias": "C", "alone": "shared"}


def test_prefixes() -> None:
    assert component_prefix("image encoder/1") == "image_encoder_1::"
    assert components_in("fused a.b::node_1/Fusion + c-d::node_2, a.b::node_3") == ("a.b", "c-d")
    assert components_in("node_1") == ()


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_layers_of_a_real_engine(model: Model, tmp_path: Path, target: str, precision: str) -> None:
    """Every multiplication is in its component, as many as the program itself has."""
    row = targets()[target]
    rng = np.random.default_rng(0)
    if precision == "int8":
        samples = {name: rng.normal(size=(4, *array.shape[1:])).astype(np.float32) for name, array in EXAMPLE.items()}
        folder = calibration.write(tmp_path / "set", samples)
        model = quantize(model, open_set(folder, model.inputs), scheme=row.scheme).model
    engine = build_engine(export_onnx(model, row, tmp_path / "m.onnx"), model, row, tmp_path / "engine")
    runner = open_engine(engine, threads=1)
    try:
        layers = rows([vars(layer) for layer in runner.layers({name: value[:1] for name, value in EXAMPLE.items()})])
    finally:
        runner.close()
    found = by_component(layers)
    assert {name: sum(part.macs.values()) for name, part in found.items() if part.macs} == {
        "vision": MACS["seen"], "an_ear": MACS["heard"], "other": MACS["head"]}
    assert sum(layer.macs or 0 for layer in layers) == count(model.graph.program, model).total.macs
    assert {key for part in found.values() for key in part.precisions} == {"int8" if precision == "int8" else "f32"}
    assert set(found) <= {"vision", "an_ear", "other", "shared"}
