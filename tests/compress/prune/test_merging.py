"""Tokens that are merged: by hand, and where they are equal without any change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import compress
from calibration import open_set
from compress.errors import CompressError
from compress.factory import build_module
from compress.ladder import torch_runner
from compress.loading import load
from compress.program import model_runner
from compress.prune import PruneConfig, load_into, prune
from compress.prune.channels import apply_channels
from compress.prune.merging import Merging, matched, merge_tokens
from compress.targets import get_target
from runtimes.backends import open_engine
from tests.compress.huggingface.folders import bundle, clip, opened, siglip, vit
from tests.compress.prune.test_huggingface import samples
from tests.compress.prune.test_vocabulary import SMALL

MERGED = PruneConfig(merge_tokens=2)


class Block(nn.Module):
    """Attention and a feed-forward layer, as of a ViT."""

    def __init__(self, width: int = 8, *, masked: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.masked = masked

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (2, -1)).transpose(1, 2)
                             for x in self.qkv(self.first(tokens)).chunk(3, -1))
        mask = torch.zeros(tokens.shape[1], tokens.shape[1]) if self.masked else None
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.out(found.transpose(1, 2).flatten(2))
        result: Tensor = tokens + self.down(functional.gelu(self.up(self.second(tokens))))
        return result


class Sees(nn.Module):
    """A class token and a picture's patches, without positions, so that patches of one colour are one token."""

    def __init__(self, *, blocks: int = 3, masked: bool = False, counts: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.start = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(*(Block(masked=masked) for _ in range(blocks)))
        self.head = nn.Linear(8, 3)
        self.counts = counts

    def forward(self, image: Tensor) -> Tensor:
        start = self.start.expand(image.shape[0], -1, -1)
        tokens = self.blocks(torch.cat([start, self.patches(image).flatten(2).transpose(1, 2)], 1))
        if self.counts:
            return tokens[:, 1:].unflatten(1, (4, 4)).sum((1, 2, 3))[:, None]
        scores: Tensor = self.head(tokens[:, 0])
        return scores


def build() -> Sees:
    return Sees()


def test_the_pairs_that_are_most_alike_go() -> None:
    """Even tokens 0, 2 and 4 look for 1, 3 or 5: token 2 is token 5, token 4 is near token 1, token 0 is like none."""
    angles = torch.tensor([[180.0, 30.0, 90.0, 60.0, 20.0, 90.0]]).deg2rad()
    alike = torch.stack([angles.cos(), angles.sin()], -1)
    gone, stay, onto = matched(alike, 2)
    assert gone.tolist() == [[1, 2]]
    assert stay.tolist() == [[0]]
    assert onto.tolist() == [[[0, 1], [0, 0], [1, 0]]]


def test_a_merged_token_is_the_mean_of_all_in_it() -> None:
    merging = Merging(r=1, prefix=1)
    tokens = torch.tensor([[[9.0], [1.0], [4.0], [7.0], [5.0]]])
    merging.keys = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 1]]])        # 1 and 2 of the patches are alike
    merging.sizes = torch.tensor([[1.0, 2, 1, 1, 1]])
    assert merging.merge(tokens).tolist() == [[[9], [7], [(2 * 1 + 4) / 3], [5]]]
    assert merging.sizes.tolist() == [[1, 1, 3, 1]]


@pytest.mark.parametrize(("r", "blocks", "left"), [(3, 3, 17 - 6), (8, 2, 17 - 8)])
def test_equal_tokens_are_merged_without_any_change(r: int, blocks: int, left: int) -> None:
    """Attention counts a merged token as often as it stands for, and so nothing moves."""
    torch.manual_seed(0)
    network = Sees(blocks=blocks).eval()
    pixels = torch.rand(2, 1, 4, 2).repeat_interleave(4, 3)       # every two patches side by side are equal
    pixels = pixels.repeat_interleave(2, 2)
    small = copy.deepcopy(network)
    merge_tokens(small, [f"blocks.{number}" for number in range(blocks)], r, 1)
    with torch.no_grad():
        torch.testing.assert_close(small(pixels), network(pixels), atol=1e-5, rtol=1e-5)
        assert small.blocks[-1].merging.sizes.shape[1] == left
        other = torch.rand(2, 1, 8, 8)
        assert not torch.allclose(small(other), network(other), atol=1e-4)
        torch.testing.assert_close(copy.deepcopy(small)(other), small(other))


def test_a_model_file_has_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Sees()
    model = compress.save(network, tmp_path / "m.pt", example={"image": np.zeros((2, 1, 8, 8), np.float32)},
                          factory="tests.compress.prune.test_merging:build")
    data = open_set([{"image": np.random.default_rng(0).random((8, 1, 8, 8), np.float32)}], model.inputs)
    result = prune(model, data, MERGED)
    (merged,) = result.merged
    assert (merged.name, merged.blocks, merged.before, merged.after) == ("blocks", 3, 17, 13)
    assert merged.sqnr_db is not None
    assert result.groups == ()
    assert result.macs_after < result.macs_before
    assert result.to_json()["merged"][0]["after"] == 13
    compress.modelfile.write_model(result.model, tmp_path / "small.pt")
    small, feed = load(tmp_path / "small.pt"), data.first(4)
    expected = model_runner(result.model)(feed)["output"]
    np.testing.assert_allclose(model_runner(small)(feed)["output"], expected, atol=1e-6)
    for module in (build_module(small, "tests.compress.prune.test_merging:build"), load_into(Sees(), small)):
        np.testing.assert_allclose(module(torch.from_numpy(feed["image"])).detach(), expected, atol=1e-6)
    with pytest.raises(CompressError, match="model 'Sees' merges tokens already: prune the one before that"):
        prune(small, data, MERGED, factory="tests.compress.prune.test_merging:build")


def test_behind_other_pruning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from compress.zoo.digits_vqa import build

    model = compress.save(
        build(**SMALL | {"image_heads": (2, 2), "image_hidden": (32, 32)}), tmp_path / "m.pt",
        example={"image": np.random.default_rng(0).random((2, 1, 8, 8), np.float32), "question": np.ones((2, 12), int)})
    data = open_set([model.example], model.inputs)
    result = prune(model, data, PruneConfig(macs=0.8, round_to=4, merge_tokens=16))
    (merged,) = result.merged
    assert (merged.name, merged.before, merged.after) == ("image_encoder.blocks", 64, 48)
    assert result.groups
    assert result.macs_after < 0.8 * result.macs_before


@pytest.mark.parametrize(("make", "name", "tokens"), [
    (vit, "model.vit.layers", 17), (clip, "model.vision_model.encoder.layers", 17),
    (siglip, "model.vision_model.encoder.layers", 16)])
def test_folders(tmp_path: Path, make: Callable[[Path], Path], name: str, tokens: int) -> None:
    model = load(make(tmp_path / "folder"))
    (merged,) = prune(model, samples(model), MERGED).merged
    assert (merged.blocks, merged.before, merged.after) == (2, tokens, tokens - 2)
    assert merged.name.endswith(name.rpartition(".")[2])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
@pytest.mark.parametrize("make", [vit, clip])
def test_engines(tmp_path: Path, make: Callable[[Path], Path], target: str) -> None:
    model = load(make(tmp_path / "folder"))
    small, feed = prune(model, samples(model), MERGED).model, samples(model).first(2)
    with opened(bundle(small, tmp_path, target)) as session:
        for name, expected in model_runner(small)(feed).items():
            np.testing.assert_allclose(session.run(feed)[name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
def test_engines_in_int8(tmp_path: Path, target: str) -> None:
    """Merged, quantized, written, read and exported: the engine answers as the quantized program does in torch."""
    model = load(vit(tmp_path / "folder"))
    data = samples(model)
    small = prune(model, data, MERGED).model
    compress.modelfile.write_model(
        compress.quantize(small, data, scheme=get_target(target).scheme).model, tmp_path / "int8.pt")
    int8, feed = load(tmp_path / "int8.pt"), data.first(4)
    engine = compress.export(int8, get_target(target), tmp_path / "engine")
    assert engine.precision == "int8"
    exact, expected = model_runner(small)(feed)["logits"], torch_runner(int8)(feed)["logits"]
    runner = open_engine(engine)
    found = runner.run(feed)["logits"]
    runner.close()
    assert np.abs(found - expected).max() < 0.02 * np.abs(exact).max()
    assert 1e-5 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_what_cannot_be_merged_is_told(tmp_path: Path) -> None:
    def refused(network: nn.Module, match: str) -> None:
        given = "input" if isinstance(network, nn.Sequential) else "image"
        model = compress.save(network, tmp_path / "m.pt", example={given: np.zeros((2, 1, 8, 8), np.float32)})
        with pytest.raises(CompressError, match=match):
            prune(model, open_set([model.example], model.inputs), MERGED)

    refused(Sees(masked=True), r"whose tokens can be merged \(blocks: a block has no scaled_dot_product_attention of")
    refused(Sees(counts=True), r"what reads the tokens of blocks\.2 needs all of them: .* Nothing was merged")
    refused(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), r"merge_tokens=2: model 'Sequential' has no blocks of a tr")
    with pytest.raises(CompressError, match="merge_tokens=0 must be at least 1"):
        PruneConfig(merge_tokens=0)
    with pytest.raises(CompressError, match=r"the channel map merges tokens of 'other\.0', which the factory's module"):
        apply_channels(Sees(), {"merging": [{"blocks": ["other.0"], "r": 1, "prefix": 0}]}, {})
    with pytest.raises(CompressError, match=r"the channel map merges tokens of \[-1, 0\]"):
        apply_channels(Sees(), {"merging": [{"blocks": ["blocks.0"], "r": -1, "prefix": 0}]}, {})


def test_an_attention_with_a_mask_is_refused_in_the_forward_pass() -> None:
    network = Sees(masked=True)
    merge_tokens(network, ["blocks.0", "blocks.1"], 1, 1)
    with pytest.raises(CompressError, match="attention of a block has a mask of its own: its tokens cannot be merged"):
        network(torch.zeros(1, 1, 8, 8))
