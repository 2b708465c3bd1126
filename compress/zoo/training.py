"""How the demo's network is trained: AdamW, one cosine, deformed images, several questions about each image."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor, nn

from compress.errors import CompressError
from compress.zoo import Progress, digits_questions
from compress.zoo.digits_vqa import PADDING, DigitsVQA

TURN_DEGREES, SCALE, SHEAR, SHIFT_PIXELS, NOISE = 10.0, 0.1, 0.12, 0.6, 0.03     # largest deformation of an image


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of :func:`train`."""

    epochs: float = field(default=9.0, metadata={"help": "Passes over the images."})
    seconds: float | None = field(default=None, metadata={"help": "Train for this long instead of a number of epochs."})
    batch: int = field(default=10, metadata={"help": "Images a step."})
    asked: int = field(default=6, metadata={"help": "Questions about each image of a step."})
    rate: float = field(default=8e-4, metadata={"help": "Highest learning rate."})
    decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay, of matrices only."})
    warmup: float = field(default=0.08, metadata={"help": "Share of the training over which the rate rises."})
    blind: Literal["image", "question"] | None = field(
        default=None, metadata={"help": "Train a baseline that sees a constant in place of this input."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the questions, the order and the deformations."})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "asked", "rate"):
            if getattr(self, name) <= 0:
                raise CompressError(f"training: {name} must be above 0, got {getattr(self, name)}")
        if self.seconds is not None and self.seconds <= 0:
            raise CompressError(f"training: seconds must be above 0, got {self.seconds}")
        if self.blind not in (None, "image", "question"):
            raise CompressError(f"training: blind must be 'image', 'question' or None, got {self.blind!r}")


def train(
    network: DigitsVQA, images: np.ndarray, digits: np.ndarray, config: TrainConfig = TrainConfig(),
    progress: Progress | None = None,
) -> int:
    """Train ``network`` in place, leave it in evaluation mode, and return the number of steps.

    The same seed, thread count and machine give the same weights, unless a time budget decides when to stop.

    Args:
        network: what to train. images: f32 ``(images, 1, 8, 8)``. digits: what each shows, i64 ``(images,)``.

    The image encoder is most of the work, so each step encodes an image once and asks several questions about it.
    Two linear layers guide the encoders and are thrown away afterwards, see :class:`_Guides`: learning from yes and no
    alone takes many times as long.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    guides = _Guides(network.image_encoder.norm.normalized_shape[0], network.text_encoder.embedding.embedding_dim)
    parameters = [*network.parameters(), *guides.parameters()]
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.decay},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))
    steps = steps_of(config, len(images))
    order = np.array([], np.int64)
    done, started = 0, time.monotonic()
    network.train()
    while (share := _share(done, steps, started, config.seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _schedule(share, config.warmup)
        while len(order) < config.batch:
            order = np.concatenate([order, rng.permutation(len(images))])
        chosen, order = order[: config.batch], order[config.batch :]
        loss = _loss(network, guides, images[chosen], digits[chosen], rng, config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done += 1
        if progress is not None:
            progress(done if config.seconds is None else int(share * steps), steps, f"loss {loss.item():.2f}")
    network.eval()
    return done


def steps_of(config: TrainConfig, images: int) -> int:
    """Steps of a training on ``images`` images, where no time budget ends it."""
    return max(1, int(config.epochs * images) // config.batch)


def accuracy(
    network: DigitsVQA, images: np.ndarray, questions: np.ndarray, answers: np.ndarray,
    blind: Literal["image", "question"] | None = None,
) -> float:
    """Share of right answers to ``questions`` ``(images, asked, length)`` about ``images``, as ``answers`` has them."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), 64):
            part = slice(start, start + 64)
            logits = _ask(network, torch.from_numpy(images[part]), torch.from_numpy(questions[part]), blind)
            right += int((logits.argmax(-1) == torch.from_numpy(answers[part])).sum())
    return right / answers.size


def deform(images: Tensor) -> Tensor:
    """Turn, scale, shear and shift each of ``images`` ``(images, 1, height, width)`` a little, and add noise."""
    count, size = len(images), images.shape[-1]
    turn = _uniform(count) * math.radians(TURN_DEGREES)
    across, down = 1 + _uniform(count) * SCALE, 1 + _uniform(count) * SCALE
    right, below = (_uniform(count) * SHIFT_PIXELS * 2 / size for _ in range(2))    # affine_grid spans -1..1
    rows = [turn.cos() * across, -turn.sin() + _uniform(count) * SHEAR, right, turn.sin(), turn.cos() * down, below]
    grid = F.affine_grid(torch.stack(rows, 1).reshape(count, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    return (moved + torch.randn_like(moved) * NOISE).clamp(0, 1)


def _uniform(count: int) -> Tensor:
    return torch.rand(count) * 2 - 1


class _Guides(nn.Module):
    """What the encoders should know before they meet: which digit this is, and what each digit's answer would be."""

    def __init__(self, seen: int, read: int) -> None:
        """``seen`` and ``read`` are the widths of image tokens and of words."""
        super().__init__()
        digits, answers = len(digits_questions.DIGITS), len(digits_questions.ANSWERS)
        self.digit = nn.Linear(seen, digits)
        self.answers = nn.Linear(read, digits * answers)

    def forward(self, seen: Tensor, read: Tensor, digits: Tensor, table: Tensor) -> Tensor:
        """Loss of the mean image token of ``seen`` against ``digits``, and of the ``read`` words against ``table``.

        Args:
            seen: ``(images, 64, seen)``. digits: ``(images,)``. read: ``(words, read)``. table: the answer of each
                word's question for every digit, ``(words, 10)``.
        """
        answers = self.answers(read).unflatten(-1, (table.shape[1], -1)).flatten(0, 1)
        return F.cross_entropy(self.digit(seen.mean(1)), digits) + F.cross_entropy(answers, table.flatten())


def _loss(
    network: DigitsVQA, guides: _Guides, images: np.ndarray, digits: np.ndarray, rng: np.random.Generator,
    config: TrainConfig,
) -> Tensor:
    tokens, table = digits_questions.tables()
    chosen = digits_questions.choose(digits, config.asked, rng)
    questions, answers = torch.from_numpy(tokens[chosen]), torch.from_numpy(table[chosen, digits[:, None]])
    pictures = deform(torch.from_numpy(images))
    if config.blind is not None:
        return F.cross_entropy(_ask(network, pictures, questions, config.blind).flatten(0, 1), answers.flatten())
    seen = network.image_encoder(pictures)
    words = questions.flatten(0, 1) != PADDING
    read = network.text_encoder(questions.flatten(0, 1), words)
    every = torch.from_numpy(table[chosen]).flatten(0, 1)[:, None].expand(-1, words.shape[1], -1)
    guided: Tensor = guides(seen, read[words], torch.from_numpy(digits), every[words])
    return F.cross_entropy(network.answer(seen, read, words).flatten(0, 1), answers.flatten()) + guided


def _ask(network: DigitsVQA, images: Tensor, words: Tensor, blind: str | None) -> Tensor:
    """Logits ``(images, asked, answers)``, with the input ``blind`` replaced by a constant."""
    if blind == "image":     # every question is about the same blank image, which is encoded once
        blank = network.image_encoder(torch.zeros_like(images[:1]))
        return network.ask(blank, words.flatten(0, 1)[None]).reshape(*words.shape[:2], -1)
    if blind == "question":  # one word of no meaning, asked once, is the question about everything
        asked = words.new_zeros(len(words), 1, words.shape[2])
        asked[:, :, 0] = 1
        return network.ask(network.image_encoder(images), asked).expand(-1, words.shape[1], -1)
    return network.ask(network.image_encoder(images), words)


def _share(done: int, steps: int, started: float, seconds: float | None) -> float:
    return done / steps if seconds is None else (time.monotonic() - started) / seconds


def _schedule(share: float, warmup: float) -> float:
    """Factor of the learning rate when ``share`` of the training is done: a linear rise, then a cosine to zero."""
    if share < warmup:
        return (share + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
