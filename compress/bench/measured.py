"""What the processes of a candidate measured so far."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from compress.bench import figures, layers
from compress.bench.agent import AgentError
from compress.bench.config import Candidate
from compress.bench.record import EmulatedParity, Latency, LayerRow
from compress.metrics import Metric, Outputs, statistics_of
from runtimes.arrays import read_batches
from runtimes.engineset import EngineSet


class Measured:
    """What the processes of one candidate gave so far, or why the first that failed did.

    ``engines`` are those that run: of what is built on the device, the built ones, None until they are.
    """

    def __init__(self, candidate: Candidate, *, emulated: bool) -> None:
        self.candidate = candidate
        waits = any(engine.state == "build on the device" for engine in candidate.engines.engines.values())
        self.engines: EngineSet | None = None if waits else candidate.engines
        self.emulated = emulated
        self.failure: str | None = None
        self.lost: str | None = None               # what became of its device
        self.rounds: list[dict[str, Any]] = []     # results of the timing processes, in order
        self.latency: Latency | None = None        # of these rounds
        self.layers: tuple[LayerRow, ...] = ()
        self.scores: np.ndarray | None = None      # the metric's statistics, samples first
        self.outputs: list[Outputs] | None = None  # by batch; under emulation alone, until they are compared
        self.parity: EmulatedParity | None = None

    def add_outputs(self, result: dict[str, Any], file: Path, metric: Metric | None, target: np.ndarray | None) -> None:
        """Score the outputs of all samples, in ``file``; under emulation also keep them, to be compared."""
        self._check_digest(result)
        outputs: list[Outputs] = [*read_batches(file)]
        file.unlink()
        if self.emulated:
            self.outputs = outputs
            self._add_layers(result)
        _refuse_nan(outputs)
        if metric is not None and target is not None:
            batches = ((len(next(iter(batch.values()))), batch) for batch in outputs)
            self.scores = statistics_of(metric, batches, target)

    def add_reference(self, result: dict[str, Any], file: Path) -> None:
        """Compare with this machine's outputs of the same engine file."""
        self._check_digest(result)
        assert self.outputs is not None
        outputs: list[Outputs] = [*read_batches(file)]
        file.unlink()
        _refuse_nan(outputs)
        self.parity = figures.emulated_parity(outputs, self.outputs)
        self.outputs = None

    def add_round(self, result: dict[str, Any]) -> None:
        self._check_digest(result)
        if not result["latencies_ns"]:
            raise AgentError("the process timed no run")
        self._add_layers(result)
        self.rounds.append(result)
        warmups = [one["warmup"]["seconds"] for one in self.rounds if one.get("warmup")]
        self.latency = figures.latency([one["latencies_ns"] for one in self.rounds], max(warmups, default=None))

    def _add_layers(self, result: dict[str, Any]) -> None:
        if result["layers"] is not None:
            self.layers = layers.rows(result["layers"])
            if self.emulated:
                self.layers = tuple(dataclasses.replace(layer, time_us=None) for layer in self.layers)

    def _check_digest(self, result: dict[str, Any]) -> None:
        expected = self.engines.digest if self.engines else ""
        if result["digest"] != expected:
            raise AgentError(f"the process ran engine {result['digest'][:12]}, not {expected[:12]}: "
                             "the files changed while they were measured")


def _refuse_nan(batches: list[Outputs]) -> None:
    """Infinity may be meant, as the score of what is masked; NaN never is, and ``argmax`` would call it an answer."""
    done = 0
    for outputs in batches:
        for name, value in outputs.items():
            if value.dtype.kind == "f" and np.isnan(value).any():
                first = done + int(np.flatnonzero(np.isnan(value).reshape(len(value), -1).any(1))[0])
                raise AgentError(f"output {name!r} is NaN for sample {first}: what this engine computes is of no use")
        done += len(next(iter(outputs.values())))
