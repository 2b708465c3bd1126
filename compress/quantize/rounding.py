"""Learned rounding: whether each weight goes up or down is learned, so that a block gives what it gives in float.

A block is a residual one where there is one (:mod:`compress.quantize.blocks`), else a single layer.

Source: Nagel et al. 2020 (AdaRound), arXiv:2004.10568, equations 21-25; by blocks: Li et al. 2021 (BRECQ),
arXiv:2102.05426.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.model import Model
from compress.quantize.blocks import residual_blocks
from compress.quantize.lockstep import Layer, Lockstep, Part
from compress.weights import with_weights
from runtimes.spec import Feed

ITERATIONS = 300            # for each block
RATE = 3e-2                 # of Adam
REGULARIZER = 1.0           # weight of what drives every choice to up or down, the block's error at the start being 1
SHARPNESS = (20.0, 2.0)     # the exponent of the regularizer, first and last
FREE = 0.2                  # share of the iterations without it
STRETCH = 1.1, -0.1         # the sigmoid's ends, beyond 1 and 0, so that both are reached
HELD_OUT = 4                # every fourth feed says whether what was learned on the others is kept
POSITIONS = 256             # outputs of each channel that an iteration compares at least, where there are as many


def learn_rounding(
    model: Model, feeds: Mapping[str, Sequence[Feed]], progress: Callable[[int, int], None] | None = None
) -> tuple[Model, int]:
    """``model`` with the weights of its int8 layers on their grids, and how many layers it was learned for.

    Blocks are done in the order they run; each reads what those before it give in int8, already rounded. The rounding
    that is learned is kept where the block errs less with it than rounded to nearest, on every fourth of ``feeds``,
    which it was not learned on. A weight that several operators read stays as it is, and is rounded to nearest.

    Args:
        model: a quantized one.
        feeds: graph -> what it is run on.
        progress: called after each block with the layers of its graph that are done, and all.
    """
    rounded: dict[str, Tensor] = {}
    for graph, own in feeds.items():
        lockstep = Lockstep(model, graph, own)
        blocks = residual_blocks(lockstep.int8.nodes, lockstep.layers)
        done = 0
        for part in lockstep.parts(blocks):
            layers = [lockstep.layers[node.name] for node in part.nodes if node.name in lockstep.layers]
            if not layers:
                continue
            choices = {layer.fake: _Choice(model.weights[layer.weight].detach(), layer) for layer in layers}
            if learn(part, choices):
                for layer in layers:
                    lockstep.values[layer.fake] = rounded[layer.weight] = choices[layer.fake].hard()
            done += len(layers)
            if progress is not None:
                progress(done, len(lockstep.layers))
    return with_weights(model, rounded), len(rounded)


class _Choice(nn.Module):
    """Up or down for each weight of a layer: ``floor(w / s) + h(v)``, with ``h`` a sigmoid stretched and clipped."""

    def __init__(self, weight: Tensor, layer: Layer) -> None:
        super().__init__()
        rows = layer.grid.rows(weight)
        self.weight, self.grid = weight, layer.grid
        self.step, self.zero = layer.grid.parameters(rows)
        self.floor, self.ends = (rows / self.step).floor(), layer.grid.ends(rows)
        up, down = STRETCH
        share = (rows / self.step - self.floor).clamp(1e-4, 1 - 1e-4)
        self.choice = nn.Parameter(torch.logit((share - down) / (up - down)))

    def share(self) -> Tensor:
        """How far up each weight goes, in [0, 1]."""
        up, down = STRETCH
        return (torch.sigmoid(self.choice) * (up - down) + down).clamp(0, 1)

    def soft(self) -> Tensor:
        """The weights, between the grid's points."""
        return ((self._bounded(self.share()) - self.zero) * self.step).reshape(self.weight.shape)

    def hard(self) -> Tensor:
        """The weights on the grid."""
        with torch.no_grad():
            return self.grid.on_grid(self._bounded(self.share() >= 0.5), self.weight)

    def _bounded(self, up: Tensor) -> Tensor:
        integers = (self.floor + self.zero + up).clamp(self.grid.low, self.grid.high)
        return torch.where(self.ends.isnan(), integers, self.ends)

    def undecided(self, sharpness: float) -> Tensor:
        """Equation 24, as a mean: 0 where every weight is up or down, at most 1."""
        return (1 - (2 * self.share() - 1).abs() ** sharpness).mean()


def learn(part: Part, choices: Mapping[str, _Choice]) -> bool:
    """Train ``choices`` to give the part's wanted result; whether what they choose is better than nearest.

    Where the part errs by nothing there is nothing to learn.
    """
    feeds = range(len(part.wanted))
    held = [feed for feed in feeds if feed % HELD_OUT == HELD_OUT - 1] or list(feeds)
    seen = [feed for feed in feeds if feed not in held] or list(feeds)
    nearest_error = _error(part, {}, seen)
    if not nearest_error > 0:
        return False
    batches = _batches(part, seen)
    optimizer = torch.optim.Adam([choice.choice for choice in choices.values()], lr=RATE)
    order = torch.Generator().manual_seed(0)
    free = int(FREE * ITERATIONS)
    for iteration in range(ITERATIONS):
        if not iteration % len(batches):
            turn = torch.randperm(len(batches), generator=order).tolist()
        batch = batches[turn[iteration % len(batches)]]
        soft = {name: choice.soft() for name, choice in choices.items()}
        loss = torch.stack([_squared(part, feed, soft) for feed in batch]).sum() / _outputs(part, batch) / nearest_error
        if iteration >= free:
            done = (iteration - free) / max(ITERATIONS - free - 1, 1)
            sharpness = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * done
            loss = loss + REGULARIZER * sum(choice.undecided(sharpness) for choice in choices.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _error(part, {name: choice.hard() for name, choice in choices.items()}, held) < _error(part, {}, held)


def _batches(part: Part, feeds: Sequence[int]) -> list[list[int]]:
    """``feeds``, as many together as have enough outputs to compare."""
    batches: list[list[int]] = [[]]
    positions = 0
    for feed in feeds:
        if positions >= POSITIONS:
            batches.append([])
            positions = 0
        batches[-1].append(feed)
        positions += part.wanted[feed].numel() // max(part.wanted[feed].shape[-1], 1)
    return batches


def _squared(part: Part, feed: int, changed: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = part.run(feed, changed) - part.wanted[feed]
    return (found**2).sum()


def _outputs(part: Part, feeds: Sequence[int]) -> int:
    return max(sum(int(part.wanted[feed].numel()) for feed in feeds), 1)


def _error(part: Part, changed: Mapping[str, Tensor], feeds: Sequence[int]) -> float:
    """The mean squared error of a part."""
    with torch.no_grad():
        return sum(float(_squared(part, feed, changed)) for feed in feeds) / _outputs(part, feeds)
