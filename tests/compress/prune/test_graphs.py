"""Pruning models of several graphs: what they share shrinks once, each keeps its function and its method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.complexity import count, count_model
from compress.factory import build_module
from compress.loading import load
from compress.model import Graph
from compress.modelfile import write_model
from compress.program import model_runner
from compress.prune import PruneConfig, prune
from compress.saving import export_model, save


class Towers(nn.Module):
    """Two towers with a hidden layer each, and one projection for both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 16))
        self.text = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16))
        self.project = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.project(self.image(image))

    def encode_text(self, words: Tensor) -> Tensor:
        return self.project(self.text(words))


GRAPHS = {"image": Graph("encode_image", ("image",)), "text": Graph("encode_text", ("words",))}


def build() -> nn.Module:
    torch.manual_seed(0)
    return Towers()


def feed(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(number, 12)).astype(np.float32),
            "words": rng.normal(size=(number, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("towers") / "model.pt"
    save(build(), path, example=feed(2), graphs=GRAPHS, factory=build)
    return load(path)


def test_macs_are_of_all_graphs_and_a_shared_parameter_is_counted_once(saved):
    cost = count_model(saved)
    assert cost.total.macs == (12 + 16) * 64 + (8 + 16) * 64 + 2 * (16 + 16) * 64
    assert cost.total.params == sum(parameter.numel() for parameter in build().parameters())
    assert cost.components["project"].macs == 2 * (16 + 16) * 64
    assert cost.components["project"].params == 2 * 16 * 64 + 64 + 16
    assert count(saved.graphs["image"].program, saved).total.macs == (12 + 16) * 64 + (16 + 16) * 64


def test_prune_shrinks_the_towers_and_what_they_share(saved, tmp_path):
    data = open_set([feed(64)], saved.inputs, name="noise")
    result = prune(saved, data, PruneConfig(macs=0.6, samples=64), factory=f"{__name__}:build")
    assert result.macs_after <= 0.6 * result.macs_before
    # what the two towers hand to the layer they share is one group
    assert {group.name for group in result.groups} == {"image.0", "image.2", "text.0", "project.0"}
    assert result.removed.get("image.2") == result.removed.get("text.2")
    assert len(result.removed) >= 2
    assert {name: graph.method for name, graph in result.model.graphs.items()} == {
        "image": "encode_image", "text": "encode_text"}
    write_model(result.model, tmp_path / "pruned.pt")
    pruned = load(tmp_path / "pruned.pt")
    module = build_module(pruned, f"{__name__}:build")
    given = {name: torch.from_numpy(value) for name, value in feed(5, 1).items()}
    with torch.no_grad():
        image, text = module.encode_image(given["image"]), module.encode_text(given["words"])
    found = model_runner(pruned)(feed(5, 1))
    np.testing.assert_allclose(found["image.output"], image.numpy(), atol=1e-6)
    np.testing.assert_allclose(found["text.output"], text.numpy(), atol=1e-6)
    zeroed = _zeroed(result, module)
    np.testing.assert_allclose(found["image.output"], zeroed.encode_image(given["image"]).detach(), atol=1e-5)
    np.testing.assert_allclose(found["text.output"], zeroed.encode_text(given["words"]).detach(), atol=1e-5)


def _zeroed(result, module):
    """The original with the hidden units that are gone from ``module`` put out of the next layer's sight."""
    whole = build()
    pairs = (("image.0", "image.2"), ("text.0", "text.2"), ("image.2", "project.0"), ("project.0", "project.2"))
    for first, second in pairs:
        kept = module.get_submodule(first).bias.detach()
        lost = ~torch.isin(whole.get_submodule(first).bias.detach(), kept)
        assert int(lost.sum()) == result.removed.get(first, 0)
        with torch.no_grad():
            whole.get_submodule(second).weight[:, lost] = 0
    return whole


def test_one_graph_that_is_not_forward_is_pruned_as_the_method_it_is():
    """Towers has no forward() of its own."""
    example = {"image": feed(2)["image"]}
    model = export_model(build(), name="towers", example=example, graphs={"image": GRAPHS["image"]})
    data = open_set([{"image": feed(64)["image"]}], model.inputs, name="noise")
    result = prune(model, data, PruneConfig(macs=0.7, importance="magnitude"))
    assert set(result.removed) <= {"image.0", "project.0"}
    assert result.removed
