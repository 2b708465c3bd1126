"""What is measured, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from compress.bench.record import Role, Scenario
from compress.errors import CompressError
from compress.targets import Target
from runtimes.engineset import EngineSet


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``restarts`` processes per engine, each timed for ``duration_s`` and for ``min_runs`` at least."""

    restarts: int
    warmup_s: float
    duration_s: float
    min_runs: int


# Six restarts are the fewest whose order statistics enclose the median with 95 %, eight with 99 %.
PRESETS: Mapping[str, Plan] = {
    "quick": Plan(restarts=8, warmup_s=0.3, duration_s=1.0, min_runs=30),
    "full": Plan(restarts=12, warmup_s=1.0, duration_s=5.0, min_runs=200),
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How to measure. What is None is the preset's."""

    preset: Literal["quick", "full"] = field(default="quick", metadata={"help": "quick (8 restarts) or full (12)"})
    scenario: Scenario = field(
        default="single_stream",
        metadata={"help": "a query is one sample, eight of them, or as many as the engine takes at once"},
    )
    restarts: int | None = field(default=None, metadata={"help": "processes per engine, instead of the preset's"})
    warmup_s: float | None = field(default=None, metadata={"help": "seconds not counted; up to ten times until steady"})
    duration_s: float | None = field(default=None, metadata={"help": "seconds timed in each process"})
    min_runs: int | None = field(default=None, metadata={"help": "fewest runs timed in each process"})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; default: the physical cores available"})
    max_drop: float = field(default=0.01, metadata={"help": "accuracy budget, in the metric's own unit"})
    peaks: bool = field(default=True, metadata={"help": "measure the machine's peak rates, once, for the roofline"})
    timeout_s: float = field(default=900.0, metadata={"help": "seconds after which a measuring process is ended"})

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise CompressError(f"unknown preset {self.preset!r}, expected one of {list(PRESETS)}")
        if self.scenario not in get_args(Scenario):
            raise CompressError(f"unknown scenario {self.scenario!r}, expected one of {list(get_args(Scenario))}")
        for name in ("restarts", "min_runs", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise CompressError(f"{name} must be at least 1, got {value}")
        for name in ("warmup_s", "duration_s", "max_drop"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise CompressError(f"{name} must be finite and not negative, got {value}")
        if not 0 < self.timeout_s < math.inf:
            raise CompressError(f"timeout_s must be finite and positive, got {self.timeout_s}")
        if (needed := self.plan().warmup_s + self.plan().duration_s) >= self.timeout_s:
            raise CompressError(f"timeout_s must be more than the {needed:g} s of warm-up and timing, "
                                f"got {self.timeout_s:g}: no process could end in time")

    def plan(self) -> Plan:
        """The preset with what is given instead."""
        preset = asdict(PRESETS[self.preset])
        given = {name: getattr(self, name) for name in preset}
        return Plan(**{**preset, **{name: value for name, value in given.items() if value is not None}})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model on a target, to be measured: the engines of its graphs.

    ``asked`` is what its graphs want in int8, of each from :func:`asked_for_int8`; one that is missing is not known.
    """

    name: str
    role: Role
    engines: EngineSet
    target: Target
    asked: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def runs_here(self) -> bool:
        """Whether figures taken on this machine are this target's: a board's engine may run here, and tell nothing."""
        return self.engines.state == "runnable" and self.target.reach == "local"
