"""Features of a text (768) and of an image (2048) fused into one decision: does the text describe the image.

The features are generated, in the sizes that BERT and ResNet-50 give. Every sample has a topic in its text and one in
its image; a feature vector is its topic's direction, a style of its own along a few directions, and noise. The answer
is whether the two topics agree, which either modality alone says nothing about: a network that sees one is right half
of the time. One answer in twenty is wrong, as answers that people give are: about 95 % is the best there is.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.model import Input
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Splits
from compress.zoo.tasks import Task

SIZES = {"text": 768, "image": 2048}
TOPICS, STYLES = 6, 16
SPLIT = {"train": 3000, "calibration": 200, "validation": 800}
TOPIC, STYLE, NOISE = 8.0, 2.0, 16.0    # length along a topic, standard deviation along a style, length of the noise
WRONG = 0.05                # share of the answers

Fusion = Literal["concat", "sum", "gated"]


def build(*, fusion: Fusion = "concat", width: int = 128, hidden: int = 256) -> FusedFeatures:
    """Return the network with fresh weights.

    Args:
        fusion: ``concat``; ``sum``, of the two modalities, each with one trained weight; or ``gated``, a sum whose
            weights, one a channel, are computed from both modalities (Arevalo et al. 2017, arXiv:1702.01992).
        width: channels of each modality. hidden: of the head.

    Raises:
        CompressError: on another fusion.
    """
    fusions = {"concat": Concatenation, "sum": WeightedSum, "gated": GatedSum}
    if fusion not in fusions:
        raise CompressError(f"fusion is {fusion!r}: expected one of {', '.join(fusions)}")
    return FusedFeatures(fusions[fusion](width), width * (2 if fusion == "concat" else 1), width, hidden)


class FusedFeatures(nn.Module):
    """A layer for each modality, their fusion, and a head with a sigmoid."""

    def __init__(self, fusion: nn.Module, fused: int, width: int, hidden: int) -> None:
        super().__init__()
        self.text_encoder = nn.Sequential(nn.Linear(SIZES["text"], width), nn.ReLU())
        self.image_encoder = nn.Sequential(nn.Linear(SIZES["image"], width), nn.ReLU())
        self.fusion = fusion
        self.head = nn.Sequential(nn.Linear(fused, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Probabilities ``(batch, 1)`` of features f32 ``(batch, 768)`` and ``(batch, 2048)``."""
        fused = self.fusion(self.text_encoder(text), self.image_encoder(image))
        return torch.sigmoid(self.head(fused))


class Concatenation(nn.Module):
    """``[text, image]``."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return torch.cat([text, image], dim=1)


class WeightedSum(nn.Module):
    """``w0 · text + w1 · image``, with trained numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.weight[0] * text + self.weight[1] * image


class GatedSum(nn.Module):
    """``g · text + (1 - g) · image`` with ``g = sigmoid(W [text, image])``, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, width)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([text, image], dim=1)))
        return gate * text + (1 - gate) * image


@cache
def samples() -> Splits:
    """Features and whether their topics agree, as often as not; the same on every call."""
    rng = np.random.default_rng(0)
    directions = {name: rng.normal(size=(TOPICS + STYLES, size)) / size**0.5 for name, size in SIZES.items()}
    parts = {}
    for split, count in SPLIT.items():
        target = rng.integers(0, 2, count)
        topics = {"text": rng.integers(0, TOPICS, count)}
        other = (topics["text"] + rng.integers(1, TOPICS, count)) % TOPICS
        topics["image"] = np.where(target == 1, topics["text"], other)
        rows = {name: _features(topics[name], basis, rng) for name, basis in directions.items()}
        parts[split] = [(rows, np.where(rng.random(count) < WRONG, 1 - target, target))]
    return parts


def _features(topics: np.ndarray, basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """f32 ``(samples, size)``: of ``basis`` the topic's row, a mixture of the styles' rows, and noise in all."""
    shares = np.concatenate([np.eye(TOPICS)[topics] * TOPIC, rng.normal(size=(len(topics), STYLES)) * STYLE], axis=1)
    noise = rng.normal(size=(len(topics), basis.shape[1])) * NOISE / basis.shape[1] ** 0.5
    return np.asarray(shares @ basis + noise, np.float32)


CONCAT = Reference(
    name="features-concat", factory="compress.zoo.fused_features:build", kwargs={"fusion": "concat"}, samples=samples,
    tasks={"output": Task(loss="binary cross-entropy", labels=("no", "yes"))},
    metric="accuracy", fit=FitConfig(epochs=12, rate=1e-3, decay=0.1),
    inputs={name: Input(modality="embedding", dims=("batch",)) for name in SIZES},
    processing={
        "inputs": {name: {"kind": "tensor", "from": name} for name in SIZES},
        "outputs": {"output": {"kind": "decision", "labels": ["no", "yes"], "activation": "none"}},
    },
)  # fmt: skip
WEIGHTED_SUM = dataclasses.replace(     # prune leaves the channels that meet a parameter of no layer as they are
    CONCAT, name="features-sum", kwargs={"fusion": "sum"}, macs=0.95
)
GATED_SUM = dataclasses.replace(CONCAT, name="features-gated", kwargs={"fusion": "gated"})
