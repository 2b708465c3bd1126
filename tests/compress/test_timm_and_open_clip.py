"""Networks of timm and open_clip through the Python API: saved, quantized and exported like any module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calibration
import compress
from compress.model import Graph, Model
from compress.program import run_program
from compress.targets import get_target
from runtimes.backends import open_engine
from tests.compress.torchvision_stand_in import torchvision

TARGETS = ("onnxruntime-cpu", "openvino-cpu")
COUNT = 16


@pytest.fixture(scope="module")
def libraries() -> tuple[Any, Any]:
    """timm and open_clip."""
    pytest.importorskip("transformers", reason="transformers is not installed")    # asks for torchvision, when imported
    with torchvision():
        reason = "is not installed: make setup, or pip install --no-deps timm open_clip_torch ftfy wcwidth"
        timm = pytest.importorskip("timm", reason=f"timm {reason}")
        return timm, pytest.importorskip("open_clip", reason=f"open_clip {reason}")


def pictures(side: int) -> torch.Tensor:
    return torch.randn(COUNT, 3, side, side, generator=torch.Generator().manual_seed(0))


def check(model: Model, folder: Path, target: str, within: float) -> None:
    """Each graph of ``model``, in float and in int8, gives what torch gives."""
    calibration.write(folder / "data", model.example)
    row = get_target(target)
    quantized = compress.quantize(model, calibration.open_set(folder / "data", model.inputs), scheme=row.scheme).model
    for name, graph in model.graphs.items():
        feed = {spec.name: model.example[spec.name] for spec in graph.inputs}
        (expected,) = run_program(model, feed, name).values()
        assert expected.std(axis=0).max() > 0.01, f"{name} does not depend on its input"
        for which, precision, error in ((model, "fp32", 1e-4), (quantized, "int8", within)):
            engine = compress.export(which, row, folder / precision / name, graph=name)
            assert engine.precision == precision
            runner = open_engine(engine)
            (found,) = runner.run(feed).values()
            runner.close()
            np.testing.assert_allclose(found, expected, atol=error * np.abs(expected).max(), err_msg=name + precision)


def measured(network: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
    """With the batch norms' statistics of some pictures, as training leaves them."""
    with torch.no_grad():
        for _ in range(20):
            network.train()(example)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_vit_of_timm(libraries: tuple[Any, Any], tmp_path: Path, target: str) -> None:
    torch.manual_seed(0)
    network = libraries[0].create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    model = compress.save(network, tmp_path / "it.pt", example={"x": pictures(32)})
    assert {"blocks", "head"} <= model.components.keys()
    check(compress.load(tmp_path / "it.pt"), tmp_path, target, within=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_mobile_net_of_timm(libraries: tuple[Any, Any], tmp_path: Path, target: str) -> None:
    """Depthwise convolutions, squeeze and excitation, hard swish, batch norms: three stages of a MobileNetV3."""
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    torch.manual_seed(0)
    stages = [["ds_r1_k3_s2_e1_c16_se0.25_nre"], ["ir_r1_k3_s2_e4_c24_nre"], ["ir_r1_k5_s1_e3_c24_se0.25"]]
    network = MobileNetV3(
        decode_arch_def(stages), num_classes=5, stem_size=8, num_features=32,
        act_layer=torch.nn.Hardswish)
    model = compress.save(measured(network, pictures(32)), tmp_path / "it.pt", example={"x": pictures(32)})
    check(model, tmp_path, target, within=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_clip_of_open_clip(libraries: tuple[Any, Any], tmp_path: Path, target: str) -> None:
    """Its two towers are two graphs."""
    torch.manual_seed(0)
    network = libraries[1].CLIP(
        embed_dim=16, vision_cfg={"layers": 2, "width": 32, "patch_size": 8, "image_size": 32, "head_width": 8},
        text_cfg={"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2})
    texts = torch.randint(0, 64, (COUNT, 16), generator=torch.Generator().manual_seed(0))
    model = compress.save(
        network, tmp_path / "it.pt", example={"image": pictures(32), "text": texts},
        graphs={"image": Graph("encode_image", ("image",)), "text": Graph("encode_text", ("text",))})
    assert [spec.name for spec in model.inputs] == ["image", "text"]
    check(model, tmp_path, target, within=0.1)
