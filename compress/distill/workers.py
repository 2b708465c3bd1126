"""Several processes that train one student, as ``torchrun`` starts them: each has a share of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")
PATIENCE = timedelta(hours=12)      # of the others, while the first scores


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among all; alone without ``torchrun``."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that scores, tells of its progress and writes files."""
        return self.rank == 0

    def told(self, value: T) -> T:
        """``value`` as the first process has it."""
        if self.count == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means over all processes."""
        if self.count == 1:
            return list(values)
        held = torch.tensor(list(values), dtype=torch.float64)
        distributed.all_reduce(held)
        return [float(value) for value in held / self.count]

    def same(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all processes the first one's values."""
        for value in parameters if self.count > 1 else ():
            distributed.broadcast(value.data, src=0)

    def join(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make gradients the means over all processes; weights that nothing depends on have none, in all of them.

        All at once, behind the backward passes that a step adds up. torch's DistributedDataParallel, which sends them
        while it computes, fails on such weights, or warns that it looks for them.
        """
        gradients = [value.grad for value in parameters if value.grad is not None] if self.count > 1 else []
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        means = torch.split(flat / self.count, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def workers() -> Iterator[Workers]:
    """The processes that the environment names, joined while inside.

    Source: torch's ``torchrun``, which sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    """
    if distributed.is_initialized():        # the caller's own
        yield Workers(rank=distributed.get_rank(), count=distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers()
        return
    by_device = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(by_device, timeout=PATIENCE)
    try:
        yield Workers(rank=distributed.get_rank(), count=distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def first_of_torchrun() -> bool:
    """Whether this process is alone or ``torchrun``'s first, which writes what a command makes."""
    return int(os.environ.get("RANK", "0")) == 0
