"""How the reference models are trained: AdamW, one cosine, the loss that their outputs ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, cross_entropy

from compress.errors import CompressError
from compress.zoo import Progress

Rows: TypeAlias = Mapping[str, np.ndarray]
"""Input name -> array with a leading sample axis."""

Loss = Literal["cross-entropy", "binary cross-entropy"]
"""Of class scores ``(batch, classes)``, or of probabilities ``(batch, 1)``, which a sigmoid made."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of :func:`fit`."""

    epochs: int = 20
    batch: int = 32
    rate: float = 1e-3              # highest learning rate; a cosine takes it to zero
    decay: float = 0.05             # AdamW's weight decay
    noise: float = 0.0              # standard deviation of what is added to inputs of floats
    seed: int = 0                   # of the order of the samples and the noise

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "rate"):
            if getattr(self, name) <= 0:
                raise CompressError(f"training: {name} must be above 0, got {getattr(self, name)}")


def fit(
    network: nn.Module, rows: Rows, target: np.ndarray, loss: Loss, config: FitConfig = FitConfig(),
    progress: Progress | None = None,
) -> int:
    """Train ``network`` in place, leave it in evaluation mode, and return the number of steps.

    The same seed, thread count and machine give the same weights.

    Args:
        rows: what ``network.forward`` takes, by name. target: classes, or 0 and 1, i64 ``(samples,)``.
    """
    torch.manual_seed(config.seed)
    inputs = {name: torch.from_numpy(array) for name, array in rows.items()}
    labels = torch.from_numpy(target)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.decay)
    steps, done = steps_of(config, len(target)), 0
    network.train()
    for _ in range(config.epochs):
        for chosen in torch.split(torch.randperm(len(labels)), config.batch):
            for group in optimizer.param_groups:
                group["lr"] = config.rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            feed = {name: _noisy(value[chosen], config.noise) for name, value in inputs.items()}
            wrong = loss_of(network(**feed), labels[chosen], loss)
            optimizer.zero_grad()
            wrong.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if progress is not None:
                progress(done, steps, f"loss {wrong.item():.2f}")
    network.eval()
    return done


def steps_of(config: FitConfig, samples: int) -> int:
    return config.epochs * math.ceil(samples / config.batch)


def loss_of(output: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """The mean ``loss`` of a batch; see :data:`Loss`."""
    if loss == "cross-entropy":
        return cross_entropy(output, labels)
    return binary_cross_entropy(output[:, 0], labels.to(output.dtype))


def predict(network: nn.Module, rows: Rows, batch: int = 64) -> np.ndarray:
    """What ``network`` says to all ``rows``, in order."""
    inputs = {name: torch.split(torch.from_numpy(array), batch) for name, array in rows.items()}
    with torch.no_grad():
        parts = [network(**dict(zip(inputs, feed, strict=True))) for feed in zip(*inputs.values(), strict=True)]
    return np.asarray(torch.cat(parts).numpy())


def _noisy(value: Tensor, noise: float) -> Tensor:
    return value + torch.randn_like(value) * noise if noise and value.is_floating_point() else value
