"""Networks of the transformers library lose channels, heads and width, and run on the engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibration import CalibrationSet, open_set
from compress.loading import load
from compress.model import Model
from compress.program import model_runner, program_runner
from compress.prune import PruneConfig, load_into, prune
from tests.compress.huggingface.folders import bert, bundle, clip, opened, siglip, vit
from tests.compress.huggingface.generators import reader, whisper
from tests.compress.huggingface.pairs import blip, vilt

EVERYTHING = ("channels", "heads", "recurrent", "width")
HEADS = {"bert": 2, "vit": 2, "clip": 4, "siglip": 4, "vilt": 2, "whisper": 1, "reader": 2}
WIDTH = {"bert": 1, "vit": 1, "clip": 2, "siglip": 1, "vilt": 1, "whisper": 2, "blip": 1, "reader": 2}


def samples(model: Model, count: int = 12) -> CalibrationSet:
    """The example over and over, its floats with noise."""
    generator = np.random.default_rng(0)
    feed = {}
    for spec in model.inputs:
        value = model.example[spec.name]
        value = np.concatenate([value] * -(-count // len(value)))[:count]
        noise = 0.1 * generator.standard_normal(value.shape)
        feed[spec.name] = value + noise.astype(value.dtype) if value.dtype.kind == "f" else value
    return open_set([feed], model.inputs, name="noisy examples")


@pytest.mark.parametrize(("name", "make"), [
    ("bert", bert), ("vit", vit), ("clip", clip),
    *(pytest.param(name, make, marks=pytest.mark.slow) for name, make in (
        ("siglip", siglip), ("vilt", vilt), ("whisper", whisper), ("blip", blip),
        ("reader", lambda folder: reader(folder, "bert")))),
])
def test_every_family(tmp_path: Path, name: str, make: Callable[[Path], Any]) -> None:
    model = load(make(tmp_path / name))
    result = prune(model, samples(model), PruneConfig(params=0.8, structures=EVERYTHING, round_to=4, max_share=0.6))
    groups = [group.kind for group in result.groups]
    assert (groups.count("heads"), groups.count("width")) == (HEADS.get(name, 0), WIDTH.get(name, 0))
    assert result.check < 1e-4
    before, after = (sum(p.numel() for p in m.module.parameters()) for m in (model, result.model) if m.module)
    assert after <= 0.8 * before
    assert [spec.describe() for spec in result.model.inputs] == [spec.describe() for spec in model.inputs]
    # the library's own class, built from the configuration of the whole network, takes the smaller weights
    again = load_into(load(tmp_path / name).module, result.model)  # type: ignore[arg-type]
    for graph in result.model.graphs.values():
        assert graph.method is not None
        method = again if graph.method == "forward" else getattr(again, graph.method)
        feed = {spec.name: torch.from_numpy(np.array(result.model.example[spec.name])) for spec in graph.inputs}
        with torch.no_grad():
            theirs = torch.utils._pytree.tree_leaves(method(**feed))
        ours = program_runner(graph)({spec.name: result.model.example[spec.name] for spec in graph.inputs})
        for spec, value in zip(graph.outputs, theirs, strict=False):
            np.testing.assert_allclose(ours[spec.name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=spec.name)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
@pytest.mark.parametrize(("name", "make"), [("clip", clip), ("whisper", whisper)])
def test_engines_of_the_pruned_network(
    tmp_path: Path, name: str, make: Callable[[Path], Any], target: str,
) -> None:
    model = load(make(tmp_path / name))
    config = PruneConfig(params=0.8, structures=EVERYTHING, round_to=4, max_share=0.6, importance="activation")
    small = dataclasses.replace(prune(model, samples(model), config).model, processing=None)
    feed = samples(model).first(2)
    with opened(bundle(small, tmp_path, target)) as session:        # which compares its golden feeds with torch's
        for graph, expected in model_runner(small)(feed).items():
            np.testing.assert_allclose(session.run(feed)[graph], expected, rtol=1e-3, atol=1e-4)
