"""Networks of the transformers library lose channels, heads and width, and run on the engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from calibration import CalibrationSet, open_set
from compress.errors import CompressError
from compress.export.rtx_libraries import ensure_rtx_libraries
from compress.loading import load
from compress.model import Model
from compress.modelfile import read_model, write_model
from compress.program import model_runner, program_runner
from compress.prune import PruneConfig, load_into, prune
from compress.targets import get_target
from tests.compress.huggingface.folders import bert, bundle, clip, opened, siglip, vit
from tests.compress.huggingface.generators import reader, whisper
from tests.compress.huggingface.pairs import blip, vilt

EVERYTHING = ("channels", "heads", "recurrent", "width")
HEADS = {"bert": 2, "vit": 2, "clip": 4, "siglip": 5, "vilt": 2, "whisper": 5, "blip": 6, "reader": 6, "captioner": 6}
WIDTH = {"bert": 1, "vit": 1, "clip": 2, "siglip": 3, "vilt": 1, "whisper": 2, "blip": 1, "reader": 2, "captioner": 2}


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
        ("reader", lambda folder: reader(folder, "bert")), ("captioner", lambda folder: reader(folder, "gpt2")))),
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




@pytest.mark.parametrize(("name", "make", "blocks", "left"), [
    ("bert", bert, 4, {}), ("vit", vit, 4, {}), ("clip", clip, 8, {}),
    *(pytest.param(name, make, *rest, marks=pytest.mark.slow) for name, make, *rest in (
        ("siglip", siglip, 9, {}), ("vilt", vilt, 4, {}), ("blip", blip, 8, {"crossattention.output.dense": 2}),
        ("whisper", whisper, 6, {"encoder_attn.out_proj": 2}))),
])
def test_whole_blocks_of_every_family(
    tmp_path: Path, name: str, make: Callable[[Path], Any], blocks: int, left: dict[str, int],
) -> None:
    """``left`` are branches that alone read an input of their graph."""
    model = load(make(tmp_path / name))
    result = prune(model, samples(model), PruneConfig(params=0.75, structures=("blocks",), importance="activation"))
    found = [group for group in result.groups if group.kind == "blocks"]
    assert len(found) == blocks
    for ending, number in left.items():
        assert [reason.startswith("nothing else reads input") for path, reason in result.skipped.items()
                if path.endswith(ending)] == [True] * number
    gone = {group.name for group in found if not group.after}
    assert gone
    assert not {name.rpartition(".")[0] for name in result.model.weights} & gone
    write_model(result.model, tmp_path / "small.pt")
    small = read_model(tmp_path / "small.pt")
    again = load_into(load(tmp_path / name).module, small)  # type: ignore[arg-type]
    for graph in small.graphs.values():          # the library's class, with what is left, computes what the file does
        method = again if graph.method == "forward" else getattr(again, str(graph.method))
        given = {spec.name: small.example[spec.name] for spec in graph.inputs}
        with torch.no_grad():
            feed = {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
            values = torch.utils._pytree.tree_leaves(method(**feed))
        for (output, value), own in zip(program_runner(graph)(given).items(), values, strict=False):
            np.testing.assert_allclose(value, own.numpy(), rtol=1e-4, atol=1e-5, err_msg=output)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), [("clip", clip), ("whisper", whisper)])
def test_the_pruned_network_is_built_for_tensorrt(
    tmp_path: Path, name: str, make: Callable[[Path], Any],
) -> None:
    try:
        ensure_rtx_libraries()
    except CompressError as error:
        pytest.skip(str(error))
    model = load(make(tmp_path / name))
    config = PruneConfig(params=0.6, structures=("blocks", *EVERYTHING), round_to=4, importance="activation")
    small = prune(model, samples(model), config).model
    for graph in small.graphs:
        engine = compress.export(small, get_target("rtx"), tmp_path / graph, graph=graph, precision="fp32")
        assert engine.state == "built, not run"
        # an engine's own size tells nothing: kernels compiled for odd widths are larger than such weights
        sizes = [sum(value.numel() for value in one.graphs[graph].program.state_dict.values())
                 for one in (model, small)]  # fmt: skip
        assert sizes[1] < sizes[0]


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
