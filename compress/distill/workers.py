"""Several processes that train one student, as ``torchrun`` starts them: each has a share of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

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

    def joined(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients that are means over all processes, and the first one's weights."""
        if self.count == 1:
            return module
        # A weight that no output depends on has no gradient; the buffers are the same everywhere and stay.
        return DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)


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
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Workers(rank=distributed.get_rank(), count=distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def first_of_torchrun() -> bool:
    """Whether this process is alone or ``torchrun``'s first, which writes what a command makes."""
    return int(os.environ.get("RANK", "0")) == 0
