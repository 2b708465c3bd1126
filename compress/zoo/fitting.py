"""How the reference models are trained: AdamW under one cosine, in batches of one shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.zoo import Progress
from compress.zoo.samples import Parts, count_of

Objective: TypeAlias = Callable[[Mapping[str, Tensor], Any], Tensor]
"""The loss of a batch from the network's outputs by name and the batch's targets, a tensor or one by output."""

Said: TypeAlias = list[tuple[int, dict[str, np.ndarray]]]
"""Of each batch, in order, the number of its samples and the outputs."""


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
    network: nn.Module, parts: Parts, loss: Objective, config: FitConfig = FitConfig(),
    progress: Progress | None = None,
) -> int:
    """Train ``network`` in place, leave it in evaluation mode, and return the number of steps.

    What asks for no gradient stays as it is. The same seed, thread count and machine give the same weights.

    Args:
        parts: what ``network.forward`` takes, by name, and the targets that ``loss`` takes.
    """
    torch.manual_seed(config.seed)
    held = [(_tensors(rows), _tensors(target)) for rows, target in parts]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.rate, weight_decay=config.decay)
    steps, done = steps_of(config, parts), 0
    network.train()
    for _ in range(config.epochs):
        for part, chosen in _shuffled([count_of(target) for _, target in parts], config.batch):
            for group in optimizer.param_groups:
                group["lr"] = config.rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            rows, target = held[part]
            feed = {name: _noisy(value[chosen], config.noise) for name, value in rows.items()}
            wanted = {name: v[chosen] for name, v in target.items()} if isinstance(target, dict) else target[chosen]
            wrong = loss(run(network, feed), wanted)
            optimizer.zero_grad()
            wrong.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if progress is not None:
                progress(done, steps, f"loss {wrong.item():.2f}")
    network.eval()
    return done


def steps_of(config: FitConfig, parts: Parts) -> int:
    return config.epochs * sum(math.ceil(count_of(target) / config.batch) for _, target in parts)


def run(network: nn.Module, feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The outputs of ``network`` by name; a lone tensor is called ``output``."""
    result = network(**feed)
    return {"output": result} if isinstance(result, Tensor) else result


def predict(network: nn.Module, parts: Parts, batch: int = 64) -> Said:
    """What ``network`` says to all samples of ``parts``."""
    said: Said = []
    with torch.no_grad():
        for rows, _ in parts:
            inputs = {name: torch.split(torch.from_numpy(array), batch) for name, array in rows.items()}
            for feed in zip(*inputs.values(), strict=True):
                found = run(network, dict(zip(inputs, feed, strict=True)))
                said.append((len(feed[0]), {name: value.numpy() for name, value in found.items()}))
    return said


def _tensors(arrays: Any) -> Any:
    if isinstance(arrays, Mapping):
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    return torch.from_numpy(arrays)


def _shuffled(sizes: list[int], batch: int) -> list[tuple[int, Tensor]]:
    """The batches of an epoch in a random order, each of rows of one part: the part's number and the rows."""
    batches = [(part, chosen) for part, size in enumerate(sizes) for chosen in torch.split(torch.randperm(size), batch)]
    return [batches[index] for index in torch.randperm(len(batches))]


def _noisy(value: Tensor, noise: float) -> Tensor:
    return value + torch.randn_like(value) * noise if noise and value.is_floating_point() else value
