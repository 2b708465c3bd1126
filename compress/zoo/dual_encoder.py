"""A dual encoder of pictures and sentences, trained contrastively: retrieval both ways, and zero-shot classes.

The image tower is a small MobileNet of depthwise-separable convolutions, the text tower a transformer. Each ends in an
embedding of length 1, and a picture's is near those of the sentences that are true of it. They are two graphs, which
need nothing of each other: an app embeds its pictures or its sentences once.

Source: Radford et al. 2021, arXiv:2103.00020; Howard et al. 2017, arXiv:1704.04861.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.model import Graph, Input
from compress.zoo import Progress
from compress.zoo.coloured_digits import (
    LONGEST,
    PADDING,
    SHORTEST,
    SIZE,
    VOCABULARY,
    Scene,
    draw,
    every_single,
    tokenize,
)
from compress.zoo.composed import Composed
from compress.zoo.digits_questions import DIGITS
from compress.zoo.digits_vqa import Block
from compress.zoo.fitting import FitConfig, fit
from compress.zoo.reference import Reference
from compress.zoo.samples import Parts, Rows, Splits
from runtimes.spec import Dim

TEMPERATURE = 0.07      # that training begins with
SHARPEST = 100.0        # largest inverse temperature


def build(*, channels: int = 24, width: int = 96, heads: int = 4, blocks: int = 2, embedding: int = 64) -> DualEncoder:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution; the last has eight times as many. width, heads, blocks: of the text tower.
        embedding: what both towers end in.
    """
    return DualEncoder(ImageEncoder(channels, embedding), TextEncoder(width, heads, blocks, embedding))


class DualEncoder(nn.Module):
    """Two towers, and the temperature of their training."""

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.sharpness = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def encode_image(self, image: Tensor) -> dict[str, Tensor]:
        """Pictures f32 ``(batch, 3, 24, 24)`` in [0, 1] to ``(batch, 64)``, each of length 1."""
        return {"image_embeds": functional.normalize(self.image_encoder(image), dim=-1)}

    def encode_text(self, text: Tensor) -> dict[str, Tensor]:
        """Words i64 ``(batch, length)``, padded with zeros, to ``(batch, 64)``, each of length 1."""
        return {"text_embeds": functional.normalize(self.text_encoder(text), dim=-1)}

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """How alike each picture and each sentence of a batch are, ``(pictures, sentences)``, for training."""
        pictures, sentences = self.encode_image(image)["image_embeds"], self.encode_text(text)["text_embeds"]
        return self.sharpness.exp().clamp(max=SHARPEST) * pictures @ sentences.T


class ImageEncoder(nn.Module):
    """A convolution, four depthwise-separable ones, and a layer over what is left of the places."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
                                  nn.ReLU6())  # fmt: skip
        self.blocks = nn.Sequential(
            Separable(channels, 2 * channels, 2), Separable(2 * channels, 4 * channels, 1),
            Separable(4 * channels, 4 * channels, 2), Separable(4 * channels, 8 * channels, 2),
        )  # fmt: skip
        self.out = nn.Linear(8 * channels * 9, embedding)

    def forward(self, image: Tensor) -> Tensor:
        embedded: Tensor = self.out(self.blocks(self.stem(image)).flatten(1))
        return embedded


class Separable(nn.Sequential):
    """A convolution of each channel, and one of all channels at each place."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(given, given, 3, stride=stride, padding=1, groups=given, bias=False), nn.BatchNorm2d(given),
            nn.ReLU6(), nn.Conv2d(given, made, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU6(),
        )  # fmt: skip


class TextEncoder(nn.Module):
    """Embeddings with learned positions, transformer blocks blind to the padding, the mean over the words, a layer."""

    def __init__(self, width: int, heads: int, blocks: int, embedding: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(VOCABULARY), width)
        self.position = nn.Parameter(torch.randn(1, LONGEST, width) * 0.1)
        self.blocks = nn.ModuleList(Block(width, heads, width // heads, 2 * width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, embedding)

    def forward(self, text: Tensor) -> Tensor:
        words = text != PADDING
        read: Tensor = self.table(text) + self.position[:, : text.shape[1]]
        for block in self.blocks:
            read = block(read, mask=words[:, None, None, :])
        weight = words.to(read.dtype)[:, :, None]
        embedded: Tensor = self.out((self.norm(read) * weight).sum(1) / weight.sum(1))
        return embedded


def contrast(outputs: Mapping[str, Tensor], shown: Tensor) -> Tensor:
    """Symmetric InfoNCE of a batch's similarities ``(batch, batch)``: each picture finds its sentence, and back.

    Args:
        shown: number of what each pair shows ``(batch,)``; pairs that show the same are right for each other.
    """
    similar = outputs["output"]
    right = (shown[:, None] == shown).to(similar.dtype)
    right = right / right.sum(1, keepdim=True)
    return (functional.cross_entropy(similar, right) + functional.cross_entropy(similar.T, right)) / 2


def train(network: nn.Module, parts: Parts, config: FitConfig, progress: Progress | None = None) -> int:
    """Train ``network`` in place with :func:`contrast`, and return the number of steps.

    Convolutions are trained channels last, where a processor takes half as long for those of single channels.
    """
    _laid_out(network, torch.channels_last)
    steps = fit(network, parts, contrast, config, progress)
    _laid_out(network, torch.contiguous_format)
    return steps


def _laid_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


@cache
def samples() -> Splits:
    """Pictures of one digit, each with one of its sentences; the target is the number of what is shown.

    ``validation`` shows all 450 scenes, ``zero-shot`` them again: there the target is the digit, and the sentences are
    the prompts of its class, 45 each.
    """
    rng = np.random.default_rng(0)
    scenes = every_single()
    shown = {"train": np.tile(np.arange(len(scenes)), EACH), "calibration": rng.permutation(len(scenes))[:200],
             "validation": np.arange(len(scenes)), "zero-shot": np.arange(len(scenes))}  # fmt: skip
    found = {name: _pairs([scenes[number] for number in numbers], name.replace("zero-shot", "validation"), rng)
             for name, numbers in shown.items()}  # fmt: skip
    targets = {**shown, "zero-shot": np.array([DIGITS.index(scene.items[0][1]) for scene in scenes])}
    return {name: [(rows, targets[name])] for name, rows in found.items()}


EACH = 10       # pictures of each scene to train on


def _pairs(scenes: list[Scene], split: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    said = [tokenize(scene.sentences[rng.integers(2)]) for scene in scenes]
    return {"image": draw(scenes, split, rng).images, "text": np.array(said, np.int64)}


def colours_unseen(rows: Rows) -> Rows:
    """Grey pictures."""
    image = rows["image"]
    return {**rows, "image": np.broadcast_to(image.mean(axis=1, keepdims=True), image.shape).copy()}


def digits_unread(rows: Rows) -> Rows:
    """Sentences in which every digit is a zero."""
    first = VOCABULARY.index(DIGITS[0])
    return {**rows, "text": np.minimum(rows["text"], first)}


DUAL_ENCODER = Reference(
    name="dual-encoder", factory="compress.zoo.dual_encoder:build", samples=samples, metric="recall@1",
    composed=Composed(
        graphs={"image": Graph("encode_image", ("image",)), "text": Graph("encode_text", ("text",))}, train=train,
        scores={"text-recall@1": "validation", "recall@5": "validation", "zero-shot-accuracy": "zero-shot"}, loss="mse",
    ),
    fit=FitConfig(epochs=15, batch=64, rate=2e-3), macs=0.7,
    blinded={"colours unseen": colours_unseen, "digits unread": digits_unread},
    inputs={"image": Input(modality="image", dims=("batch",)),
            "text": Input(modality="text", dims=("batch", Dim("length", SHORTEST, 6, LONGEST)))},
    processing={
        "inputs": {
            "image": {"kind": "image", "from": "image", "steps": [
                {"op": "resize", "size": [SIZE, SIZE], "resample": "box"}, {"op": "rescale", "scale": 1 / 255}]},
            "text": {"kind": "text", "from": "text", "pad_id": PADDING, "vocabulary": {"words": list(VOCABULARY)}},
        },
        "outputs": {"similarity": {"kind": "similarity", "of": ["image_embeds", "text_embeds"]}},
    },
)  # fmt: skip
