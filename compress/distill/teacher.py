"""The teacher's answers to a batch: remembered from one pass over the train set where they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compress.distill.batches import Batch, Batches, Group
from compress.distill.bound import Bound

CACHE_BYTES = 1 << 30
"""Most memory that remembered answers may take; beyond it the teacher runs at every step."""


class Teacher:
    """Answers batches with the teacher's outputs and features; ``remembers`` where no forward pass is needed for it.

    The pass that fills the memory goes through the set in order, not in the order of the steps, so that a run continued
    from a checkpoint sees the very same answers.
    """

    def __init__(self, bound: Bound, batches: Batches, *, epochs: int, progress: Callable[[str], None]) -> None:
        self._bound = bound
        self._memory: list[list[Tensor]] = []
        if epochs > 1 and batches.only is not None and self._fits(batches, batches.only):
            done, total = 0, sum(len(group.positions) for group in batches.only)
            for group in batches.only:
                answers: list[Tensor] = []
                for rows in torch.split(torch.arange(len(group.positions)), batches.size):
                    self._remember(answers, self._run(batches, group, rows), rows, len(group.positions))
                    done += len(rows)
                    progress(f"teacher's answers, {done} of {total} samples")
                self._memory.append(answers)

    @property
    def remembers(self) -> bool:
        return bool(self._memory)

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        if self._memory:
            return [
                value.index_select(axis or 0, batch.rows)
                for value, axis in zip(self._memory[batch.group], self._bound.batch_axes, strict=True)
            ]
        with torch.no_grad():
            return self._bound(batch.feed)

    def _fits(self, batches: Batches, groups: Sequence[Group]) -> bool:
        if None in self._bound.batch_axes:
            return False
        needed = 0
        for group in groups:
            answers = self._run(batches, group, torch.arange(1))
            needed += sum(value.nbytes for value in answers) * len(group.positions)
        return needed <= CACHE_BYTES

    def _run(self, batches: Batches, group: Group, rows: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return self._bound(batches.rows(group, rows))

    def _remember(self, memory: list[Tensor], answers: Sequence[Tensor], rows: Tensor, count: int) -> None:
        axes = [axis or 0 for axis in self._bound.batch_axes]
        if not memory:
            for value, axis in zip(answers, axes, strict=True):
                memory.append(value.new_empty((*value.shape[:axis], count, *value.shape[axis + 1 :])))
        for whole, value, axis in zip(memory, answers, axes, strict=True):
            whole.narrow(axis, int(rows[0]), len(rows)).copy_(value)
