"""What is examined: the module as the user has it, and as much of a traced model as could be made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.doctor.places import Place
from compress.doctor.watching import Seen, watch
from compress.errors import CompressError
from compress.model import Model
from compress.program import named_outputs, told_as
from compress.targets import Target
from runtimes.spec import Dim, Feed, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the model was not traced as asked; ``dims`` are the dynamic dimensions that its code fixes."""

    what: str
    place: Place
    kind: str = ""                               # the class of torch's error
    dims: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Patient:
    """``module`` runs the example; ``model`` is its trace, None where there is none, perhaps with fewer dynamic sizes.

    ``module`` is None for a model that was read as a program. ``samples`` are the example and whatever data was given.
    """

    name: str
    example: Feed
    targets: tuple[Target, ...]
    work: Path                                   # a temporary folder
    module: nn.Module | None = None
    model: Model | None = None
    refusals: tuple[Refusal, ...] = ()
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    samples: Sequence[Feed] = ()
    training: tuple[str, ...] = ()               # module paths that were in training mode
    factory: str | None = None
    written: dict[tuple[str, int], Path | str] = field(default_factory=dict)   # of compress.doctor.exported

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Every input once; of an untraced model what its example shows."""
        if self.model is None:
            return tuple(TensorSpec(name=name, dtype=value.dtype.name, shape=value.shape, batch_axis=0)
                         for name, value in self.example.items())  # fmt: skip
        return tuple({spec.name: spec for graph in self.model.graphs.values() for spec in graph.inputs}.values())

    def run(self, feed: Feed) -> dict[str, torch.Tensor]:
        """The outputs of every graph, in evaluation mode; :class:`CompressError` where the model fails on it."""
        if self.model is None:
            assert self.module is not None
            with evaluated(self.module):
                return named_outputs(self.module, feed)
        found: dict[str, torch.Tensor] = {}
        for name, graph in self.model.graphs.items():
            values = {spec.name: torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in graph.inputs}
            with torch.no_grad(), told_as("the model fails on a feed"):
                results = self._programs[name](**values)
            prefix = "" if len(self.model.graphs) == 1 else f"{name}."  # two towers may name their outputs alike
            found |= {prefix + spec.name: value for spec, value in zip(graph.outputs, results, strict=True)}
        return found

    @cached_property
    def _programs(self) -> dict[str, nn.Module]:
        graphs = {} if self.model is None else self.model.graphs
        return {name: graph.program.module(check_guards=False) for name, graph in graphs.items()}

    @cached_property
    def outputs(self) -> dict[str, torch.Tensor] | None:
        """Of the example; None where the model fails on it, which is a finding of its own."""
        try:
            return self.run(self.example)
        except CompressError:
            return None

    @cached_property
    def seen(self) -> tuple[Seen, ...]:
        """Every value inside every graph on the samples, if the model could be traced."""
        if self.model is None:
            return ()
        return tuple(s for graph in self.model.graphs.values() for s in watch(graph, self.samples))

    def targets_where(self, **fields: object) -> tuple[str, ...]:
        """Names of the targets with these values."""
        return tuple(t.name for t in self.targets if all(getattr(t, key) == value for key, value in fields.items()))


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; after, every module is in the mode it was in."""
    before = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in before:
            child.training = mode


def varied(value: np.ndarray, seed: int, like: np.ndarray | None = None) -> np.ndarray:
    """Other values of the same kind, every one of them changed: of the spread, or within the integers, of ``like``.

    That is ``value`` itself where nothing is given.
    """
    rng = np.random.default_rng(seed)
    like = value if like is None else like
    if value.dtype.kind == "b":
        return ~value
    if value.dtype.kind in "iu":
        low, high = min(0, int(like.min(initial=0))), max(1, int(like.max(initial=0)))
        step = rng.integers(1, high - low + 1, size=value.shape)
        return np.asarray((value - low + step) % (high - low + 1) + low, dtype=value.dtype)
    spread = float(np.std(like)) or 1.0
    return np.asarray(value + rng.normal(scale=spread, size=value.shape), dtype=value.dtype)


def batch_of(spec: TensorSpec, most: int) -> int:
    """How many samples the input takes at once: ``most`` where that is dynamic, 1 where it has no batch axis."""
    if spec.batch_axis is None:
        return 1
    size = spec.shape[spec.batch_axis]
    return min(most, size.max) if isinstance(size, Dim) else size


def shortened(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(name or "the model itself" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


