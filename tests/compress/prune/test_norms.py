"""Norms over channels on any axis, of torch and of one's own: what ConvNeXt is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from calibration import open_set
from compress.export import export
from compress.model import Model
from compress.program import model_runner
from compress.prune import PruneConfig, load_into, prune
from compress.prune.channels import cut, is_norm, name_of, vectors
from compress.prune.tracing import channel_axis
from compress.quantize import quantize
from compress.saving import export_model
from compress.targets import get_target
from runtimes.backends import open_engine

ALL = ("channels", "heads", "recurrent", "blocks", "width")


class LayerNorm2d(nn.LayerNorm):
    """Turns the channels to the end and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Written out over the channels behind the batch, as in the paper's own code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class ShapedNorm(nn.Module):
    """Keeps the width as a number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-6)


class GRN(nn.Module):
    """Woo et al. 2023, arXiv:2301.00808, algorithm 1: channels compete with each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, width))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        power = x.norm(p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * power / (power.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class Block(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module], grn: bool) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), norm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.grn = GRN(4 * width) if grn else nn.Identity()
        self.gamma = nn.Parameter(torch.rand(1, 1, 1, width) + 0.2 if grn else torch.rand(width, 1, 1) + 0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(self.grn(functional.gelu(self.up(y))))
        if self.gamma.dim() == 4:                            # as in the paper's code, or as in torchvision's
            return x + (self.gamma * y).permute(0, 3, 1, 2)
        return x + self.gamma * y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Two stages of 16 and 32 channels; the first on 16 x 16 places, so that three axes are as wide as its norms."""

    def __init__(
        self, first: Callable[[int], nn.Module] = LayerNorm2d, last: Callable[[int], nn.Module] = nn.LayerNorm,
        grn: bool = False,
    ) -> None:
        super().__init__()
        self.stem, self.one = nn.Sequential(nn.Conv2d(3, 16, 2, 2), first(16)), Block(16, last, grn)
        self.between, self.two = nn.Sequential(first(16), nn.Conv2d(16, 32, 4, 4)), Block(32, last, grn)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.two(self.between(self.one(self.stem(image))))
        return self.head(self.norm(x.mean((2, 3))))


def pruned(module: nn.Module, params: float = 0.5) -> tuple[Model, dict[str, tuple[str, int, int]], dict[str, str]]:
    images = torch.randn(8, 3, 32, 32)
    model = export_model(module.eval(), name="convnext", example={"image": images[:2]})
    data = open_set([{"image": images.numpy()}], model.inputs, name="noise")
    config = PruneConfig(params=params, structures=ALL[:3] + ALL[4:], importance="magnitude", round_to=4, max_share=0.6)
    result = prune(model, data, config)
    assert result.check < 1e-5
    return result.model, {g.name: (g.kind, g.before, g.after) for g in result.groups}, dict(result.skipped)


KINDS = [(LayerNorm2d, nn.LayerNorm, False), (ChannelNorm, ShapedNorm, True)]


@pytest.mark.parametrize(("first", "last", "grn"), KINDS)
def test_a_convnext_loses_channels_and_width(
    first: Callable[[int], nn.Module], last: Callable[[int], nn.Module], grn: bool,
) -> None:
    module = ConvNeXt(first, last, grn)
    model, groups, skipped = pruned(copy.deepcopy(module))
    assert {name: before for name, (_, before, _) in groups.items()} == {
        "stem.0": 16, "one.up": 64, "between.1": 32, "two.up": 128}
    assert {name: kind for name, (kind, *_) in groups.items()} == {
        "stem.0": "width", "one.up": "channels", "between.1": "width", "two.up": "channels"}
    assert sum(after < before for _, before, after in groups.values()) == 4
    assert skipped == {"head": "its channels reach an output of the model"}
    left = {name: after for name, (*_, after) in groups.items()}
    width, wider = left["stem.0"], left["one.up"]
    shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
    assert shapes["stem.1.weight"] == shapes["one.norm.bias"] == (width,)
    assert shapes["one.gamma"] == ((1, 1, 1, width) if grn else (width, 1, 1))
    assert shapes["one.depthwise.weight"] == (width, 1, 3, 3)
    assert (shapes["one.up.weight"], shapes["one.down.weight"]) == ((wider, width), (width, wider))
    if grn:
        assert shapes["one.grn.gamma"] == shapes["one.grn.beta"] == (1, 1, 1, wider)
    # the class itself, as it was built, takes what is left
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = load_into(module, model)(image)
    np.testing.assert_allclose(model_runner(model)({"image": image.numpy()})["output"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_transformers_own_convnext(version: int) -> None:
    """Its norms are one class that works on either axis; the second version's response norm has a weight of 4 axes."""
    sizes: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 2, "num_stages": 2}
    made = (transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes)) if version == 1 else
            transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config(**sizes)))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made

        def forward(self, image: Tensor) -> Tensor:
            return self.net(pixel_values=image).logits

    for parameter in made.parameters():
        if parameter.numel() == max(parameter.shape):
            nn.init.uniform_(parameter, 0.2, 1.2)
    model, groups, _ = pruned(Classifier(), 0.3)
    assert sorted(kind for kind, *_ in groups.values()) == ["channels"] * 2 + ["width"] * 2
    assert all(after < before for _, before, after in groups.values())
    width = groups[f"net.convnext{'v2' * (version - 1)}.embeddings.patch_embeddings"][2]
    (norm,) = (value for name, value in model.weights.items() if name.endswith("embeddings.layernorm.weight"))
    assert norm.shape == (width,)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last", "grn"), KINDS)
def test_engines_of_a_pruned_convnext(
    tmp_path: Path, first: Callable[[int], nn.Module], last: Callable[[int], nn.Module], grn: bool,
) -> None:
    model, *_ = pruned(ConvNeXt(first, last, grn))
    feed = {"image": np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)}
    whole = quantize(model, open_set([feed], model.inputs, name="noise"), scheme="x86-vnni").model
    expected = model_runner(model)(feed)["output"]
    for target in ("openvino-cpu", "onnxruntime-cpu"):
        for name, one, atol in (("fp32", model, 1e-5), ("int8", whole, 0.05 * np.abs(expected).max())):
            engine = export(one, get_target(target), tmp_path / target / name)
            np.testing.assert_allclose(open_engine(engine).run(feed)["output"], expected, rtol=1e-4, atol=atol)


def test_a_smaller_global_response_norm_is_that_of_what_is_left() -> None:
    """By hand: the power of a channel over the mean power of the two that stay."""
    norm = GRN(3)
    x = torch.tensor([3.0, 100.0, 4.0]).reshape(1, 1, 1, 3)
    gamma, beta = norm.gamma[0, 0, 0].detach(), norm.beta[0, 0, 0].detach()
    cut(norm, "out", [1])
    expected = torch.stack([gamma[0] * 3 * 3 / 3.5 + beta[0] + 3, gamma[2] * 4 * 4 / 3.5 + beta[2] + 4])
    torch.testing.assert_close(norm(x[..., [0, 2]])[0, 0, 0], expected)


@pytest.mark.parametrize(("norm", "shape", "axis"), [
    (nn.LayerNorm(4), (2, 4, 4, 4), 3), (LayerNorm2d(4), (2, 4, 4, 4), 1), (ChannelNorm(4), (4, 4, 4, 4), 1),
    (LayerNorm2d(4), (4, 4, 5, 6), 1), (nn.RMSNorm(4), (4, 4), 1), (ShapedNorm(4), (4, 4, 4), 2),
    (GRN(4), (1, 4, 4, 4), 3),
])
def test_the_axis_of_a_norm(norm: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    """Where its width is that of several axes, it is asked."""
    assert channel_axis(norm, torch.zeros(shape)) == axis


def test_what_counts_as_a_norm() -> None:
    class Scaled(nn.Module):             # no norm by its name
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4))

    class MatrixNorm(nn.Module):         # not one value a channel
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))

    class UnevenNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))

    for norm in (nn.LayerNorm(4), nn.RMSNorm(4), LayerNorm2d(4), ChannelNorm(4), GRN(4)):
        assert is_norm(norm)
    for other in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), Scaled(),
                  MatrixNorm(), UnevenNorm(), nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm((4, 4))):
        assert not is_norm(other)
    assert (name_of(GRN(4)), list(vectors(GRN(4)))) == ("gamma", ["gamma", "beta"])
