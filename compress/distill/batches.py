"""Shuffled batches of a streamed set: as much of it in memory as fits a window, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibration import CalibrationSet
from compress.errors import CompressError

WINDOW_BYTES = 512 << 20
"""A set that is larger is shuffled window by window, so that memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of one shape: input name -> tensor, and their positions in the set, shape ``(samples,)``."""

    feed: Mapping[str, Tensor]
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's samples: rows of a group; ``group`` is its number in the window."""

    feed: Mapping[str, Tensor]
    labels: Tensor | None
    group: int
    rows: Tensor


class Batches:
    """The train set, epoch by epoch. Samples of different shapes never share a batch.

    ``per_epoch`` is the number of batches an epoch has; ``only`` the groups of a set that fits one window, which is
    read once.
    """

    def __init__(
        self, data: CalibrationSet, size: int, seed: int, *, labels: bool = False,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        """``more`` is what a feed has besides its inputs: name -> an array with one row for each sample of the set."""
        self.data = data
        self.size = size
        self.seed = seed
        self.axes = {spec.name: spec.batch_axis or 0 for spec in data.inputs}
        self.more = more or {}
        self.labels = data.targets() if labels else None
        if labels and self.labels is None:
            raise CompressError(
                f"train set {data.name!r} has no labels: write it with target=, or set label_weight to 0"
            )
        self.only: list[Group] | None = None
        self._steps: list[int] = []  # batches in each window
        for index, window in enumerate(self._windows()):
            self.only = window if index == 0 else None
            self._steps.append(sum(-(-len(group.positions) // size) for group in window))
        self.per_epoch = sum(self._steps)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, all but the first ``skip``; the same ones each time they are asked for."""
        windows = self._windows() if self.only is None else iter([self.only])
        for index, (window, steps) in enumerate(zip(windows, self._steps, strict=True)):
            for group, rows in self._order(window, number, index)[skip:]:
                yield self._batch(window, group, rows)
            skip = max(0, skip - steps)

    def rows(self, group: Group, rows: Tensor) -> dict[str, Tensor]:
        feed = {name: value.index_select(self.axes[name], rows) for name, value in group.feed.items()}
        positions = group.positions[rows.numpy()]
        return feed | {name: torch.from_numpy(array[positions]) for name, array in self.more.items()}

    def _batch(self, window: list[Group], group: int, rows: Tensor) -> Batch:
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[window[group].positions[rows.numpy()]])
        return Batch(feed=self.rows(window[group], rows), labels=labels, group=group, rows=rows)

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
                groups = self._grouped(held, position)
                position += sum(len(group.positions) for group in groups)
                held, held_bytes = [], 0
                yield groups
        if held:
            yield self._grouped(held, position)

    def _grouped(self, feeds: list[Mapping[str, np.ndarray]], position: int) -> list[Group]:
        parts: dict[tuple[tuple[int, ...], ...], list[tuple[Mapping[str, np.ndarray], np.ndarray]]] = {}
        for feed in feeds:
            name, axis = next(iter(self.axes.items()))
            count = feed[name].shape[axis]
            shape = tuple(np.delete(feed[key].shape, self.axes[key]).tolist() for key in self.axes)
            parts.setdefault(tuple(map(tuple, shape)), []).append((feed, np.arange(position, position + count)))
            position += count
        return [
            Group(
                feed={
                    name: torch.from_numpy(np.concatenate([feed[name] for feed, _ in same], axis=axis))
                    for name, axis in self.axes.items()
                },
                positions=np.concatenate([positions for _, positions in same]),
            )
            for same in parts.values()
        ]
