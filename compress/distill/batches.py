"""Shuffled batches of a streamed set: as much of it in memory as fits a window, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from calibration import CalibrationSet

WINDOW_BYTES = 512 << 20
"""A set that is larger is shuffled window by window, so that memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of one shape: input name -> tensor, and their positions in the set, shape ``(samples,)``."""

    feed: Mapping[str, Tensor]
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples that are run together: ``rows`` of a group; ``place`` is the number of its window, and its own there."""

    feed: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    place: tuple[int, int]
    rows: Tensor

    def to(self, device: torch.device) -> Batch:
        """With what is computed with on ``device``."""
        return replace(self, feed={name: value.to(device) for name, value in self.feed.items()},
                       labels={name: value.to(device) for name, value in self.labels.items()})


class Batches:
    """The train set, epoch by epoch. Samples of different shapes never share a batch.

    ``per_epoch`` is the number of batches an epoch has; ``only`` the groups of a set that fits one window, which is
    read once.
    """

    def __init__(
        self, data: CalibrationSet, size: int, seed: int, *, labels: Mapping[str, np.ndarray] | None = None,
        more: Mapping[str, np.ndarray] | None = None, share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """
        Args:
            size: the largest number of samples in a batch.
            labels: output -> its labels, one row for each sample of the set.
            more: what a feed has besides its inputs: name -> an array, one row for each sample of the set.
            share: ``(which, of)`` equal shares of the set this is; the last samples are in several where it must be.
        """
        self.data = data
        self.size = size
        self.seed = seed
        self.share = share
        self.axes = {spec.name: spec.batch_axis or 0 for spec in data.inputs}
        self.more = more or {}
        self.labels = labels or {}
        self.only: list[Group] | None = None
        self._steps: list[int] = []  # batches in each window
        for index, window in enumerate(self.windows()):
            self.only = window if index == 0 else None
            self._steps.append(sum(-(-len(group.positions) // size) for group in window))
        self.per_epoch = sum(self._steps)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, all but the first ``skip``; the same ones each time they are asked for."""
        for index, (window, steps) in enumerate(zip(self.windows(), self._steps, strict=True)):
            for group, rows in self._order(window, number, index)[skip:]:
                yield self._batch(window[group], (index, group), rows)
            skip = max(0, skip - steps)

    def rows(self, group: Group, rows: Tensor) -> dict[str, Tensor]:
        feed = {name: value.index_select(self.axes[name], rows) for name, value in group.feed.items()}
        positions = group.positions[rows.numpy()]
        return feed | {name: torch.from_numpy(array[positions]) for name, array in self.more.items()}

    def windows(self) -> Iterator[list[Group]]:
        """The set in parts that fit in memory, each as its groups."""
        return self._windows() if self.only is None else iter([self.only])

    def _batch(self, group: Group, place: tuple[int, int], rows: Tensor) -> Batch:
        positions = group.positions[rows.numpy()]
        labels = {output: torch.from_numpy(array[positions]) for output, array in self.labels.items()}
        return Batch(feed=self.rows(group, rows), labels=labels, place=place, rows=rows)

    def _order(self, window: list[Group], epoch: int, index: int) -> list[tuple[int, Tensor]]:
        rng = np.random.default_rng([self.seed, epoch, index])
        batches = []
        for number, group in enumerate(window):
            shuffled = torch.from_numpy(rng.permutation(len(group.positions)))
            batches += [(number, rows) for rows in torch.split(shuffled, self.size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _windows(self) -> Iterator[list[Group]]:
        held: list[Mapping[str, np.ndarray]] = []
        position = held_bytes = 0
        for feed in self.data.batches(self.size):
            held.append(feed)
            held_bytes += sum(array.nbytes for array in feed.values())
            if held_bytes >= WINDOW_BYTES:
                yield self._grouped(held, position)
                position += sum(self._count(feed) for feed in held)
                held, held_bytes = [], 0
        if held:
            yield self._grouped(held, position)

    def _grouped(self, feeds: list[Mapping[str, np.ndarray]], position: int) -> list[Group]:
        parts: dict[tuple[tuple[int, ...], ...], list[tuple[Mapping[str, np.ndarray], np.ndarray]]] = {}
        for feed in feeds:
            count = self._count(feed)
            shape = tuple(np.delete(feed[key].shape, self.axes[key]).tolist() for key in self.axes)
            parts.setdefault(tuple(map(tuple, shape)), []).append((feed, np.arange(position, position + count)))
            position += count
        return [self._group([feed for feed, _ in same], np.concatenate([own for _, own in same]))
                for same in parts.values()]  # fmt: skip

    def _group(self, feeds: list[Mapping[str, np.ndarray]], positions: np.ndarray) -> Group:
        which, of = self.share
        mine = np.arange(which, which + of * -(-len(positions) // of), of) % len(positions)
        feed = {}
        for name, axis in self.axes.items():
            whole = np.concatenate([feed[name] for feed in feeds], axis=axis)
            feed[name] = torch.from_numpy(whole if of == 1 else whole.take(mine, axis=axis))
        return Group(feed=feed, positions=positions[mine])

    def _count(self, feed: Mapping[str, np.ndarray]) -> int:
        name, axis = next(iter(self.axes.items()))
        return int(feed[name].shape[axis])
