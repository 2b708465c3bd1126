"""Where a run stands, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.distill.averaging import Average
from compress.distill.checkpoint import Checkpoint


@dataclass
class State:
    """``best`` is the best metric so far, ``best_weights`` what had it after epoch ``kept``.

    Attributes:
        step: batches that are done. updates: steps of the optimizer.
        improved: the last epoch that was better than all before; ``best`` may be as good a later one's.
        sums: of this epoch's batches: the loss under ``loss``, and each part of it. seconds: of this epoch.
    """

    step: int = 0
    updates: int = 0
    before: float | None = None
    best: float | None = None
    kept: int = 0
    improved: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, losses: Mapping[str, float]) -> None:
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What changes while a student trains."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None

    def write(self, checkpoint: Checkpoint, state: State) -> None:
        checkpoint.write({
            "run": vars(state), "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.values,
        })  # fmt: skip

    def resume(self, saved: Mapping[str, Any]) -> State:
        """Go back to what was written."""
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load(saved["average"])
        return State(**saved["run"])
