"""What the processes of a candidate measured, and the row of the record it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.bench import figures, layers
from compress.bench.agent import AgentError
from compress.bench.config import Candidate
from compress.bench.record import Accuracy, BenchRow, Latency, LayerRow
from compress.metrics import Metric
from runtimes.arrays import read_arrays


class Measured:
    """What the processes of one candidate gave so far, or why the first that failed did."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.failure: str | None = None
        self.rounds: list[dict[str, Any]] = []     # results of the timing processes, in order
        self.layers: tuple[LayerRow, ...] = ()
        self.scores: np.ndarray | None = None      # shape (samples,)

    @property
    def latency(self) -> Latency:
        return figures.latency([result["latencies_ns"] for result in self.rounds])

    def add_accuracy(self, result: dict[str, Any], outputs: Path, metric: Metric, target: np.ndarray) -> None:
        self._check_digest(result)
        self.scores = metric.per_sample(read_arrays(outputs), target)
        outputs.unlink()

    def add_round(self, result: dict[str, Any]) -> None:
        self._check_digest(result)
        if not result["latencies_ns"]:
            raise AgentError("the process timed no run")
        if result["layers"] is not None:
            self.layers = layers.rows(result["layers"])
        self.rounds.append(result)

    def _check_digest(self, result: dict[str, Any]) -> None:
        expected = self.candidate.engine.digest
        if result["digest"] != expected:
            raise AgentError(f"the process ran engine {result['digest'][:12]}, not {expected[:12]}: "
                             "the files changed while they were measured")


def row_without_figures(candidate: Candidate, failure: str | None) -> BenchRow:
    """The row of an engine that cannot run here, or that failed."""
    elsewhere = "built, not run here" if candidate.engine.state == "runnable" else candidate.engine.state
    status = elsewhere if failure is None else "failed"
    return BenchRow(**_identity(candidate), status=status, reason=failure)


def row(
    one: Measured, accuracy: Accuracy | None, originals: Mapping[str, Measured], machine: str, batch: int
) -> BenchRow:
    """The row of an engine whose every process finished; ``originals`` are what its speed is compared with."""
    time = one.latency
    peaks = [result["peak_memory_bytes"] for result in one.rounds if result["peak_memory_bytes"] is not None]
    asked = one.candidate.asked
    return BenchRow(
        **_identity(one.candidate), status="measured", machine=machine, batch=batch, latency_ms=time, accuracy=accuracy,
        marks=tuple(mark for mark in (figures.unstable(time),) if mark is not None),
        load_ms=float(np.median([result["load_ms"] for result in one.rounds])),
        throughput_per_s=1000 * batch / time.mean,
        peak_memory_bytes=max(peaks, default=None),
        speedup={key: figures.speedup(other.candidate.name, other.latency, time) for key, other in originals.items()},
        precisions=layers.precisions(one.layers), layers=one.layers, components=layers.by_component(one.layers),
        unexpected=None if asked is None else layers.unexpected(asked, one.layers))


def originals(candidate: Candidate, finished: Mapping[str, Measured], baseline: str) -> dict[str, Measured]:
    """The original model's engines this one is compared with: those of its own target, and the baseline without one."""
    found = {"vs_original_fp32": finished[baseline]} if baseline in finished else {}
    for one in finished.values():
        if one.candidate.role == "original" and one.candidate.target.name == candidate.target.name:
            found[f"vs_original_{one.candidate.engine.precision}"] = one
    return {key: one for key, one in found.items() if one.candidate is not candidate}


def _identity(candidate: Candidate) -> dict[str, Any]:
    engine = candidate.engine
    return {"name": candidate.name, "role": candidate.role, "target": candidate.target.name, "backend": engine.backend,
            "precision": engine.precision, "digest": engine.digest, "state": engine.state,
            "size_bytes": sum(path.stat().st_size for path in engine.path.rglob("*") if path.is_file())}
