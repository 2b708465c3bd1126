"""What a reference model of several graphs brings in place of tasks: dual encoders, and encoders with a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import nn

from calibration.targets import Targets
from compress.metrics import Outputs
from compress.model import Graph, Model
from compress.program import model_runner
from compress.zoo import Progress
from compress.zoo.fitting import FitConfig, Said
from compress.zoo.samples import Parts, Rows, count_of

Train: TypeAlias = Callable[[nn.Module, Parts, FitConfig, Progress | None], int]
"""Trains a network in place, as :func:`compress.zoo.fitting.fit` does, on a data set's inputs and targets."""


@dataclass(frozen=True, kw_only=True)
class Composed:
    """How a model of several graphs is saved, trained and judged.

    Attributes:
        graphs, chain: of :func:`compress.save`.
        train: what its loss is, and how a generator is shown the right words.
        scores: metrics that are told beside the recipe's -> the split that they are of.
        loss: of the recipe's distillation.
        given: what the graphs take beside the inputs of the data, for the example of :func:`compress.save`.
        constant: from the targets of training and a count, outputs that are always the same.
    """

    graphs: Mapping[str, Graph]
    train: Train
    scores: Mapping[str, str]
    loss: Literal["kl", "mse"]
    chain: Mapping[str, Any] | None = None
    given: Rows = field(default_factory=dict)
    constant: Callable[[Targets, int], Outputs] | None = None


def said_by(model: Model, parts: Parts, batch: int = 64) -> Said:
    """What ``model`` answers to all samples of ``parts``, its graphs run as its chain has it."""
    run = model_runner(model)
    said: Said = []
    for rows, target in parts:
        for start in range(0, count_of(target), batch):
            feed = {name: np.ascontiguousarray(array[start : start + batch]) for name, array in rows.items()}
            said.append((len(next(iter(feed.values()))), run(feed)))
    return said
