"""The rows of a record from what was measured of each candidate on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress.bench import figures, layers
from compress.bench.config import BenchConfig, Candidate
from compress.bench.machines import Machine
from compress.bench.marks import conditions, marks
from compress.bench.measured import Measured
from compress.bench.record import BenchRow
from compress.metrics import Metric


def rows_of(
    candidates: Sequence[Candidate], measured: Mapping[str, Measured], *, machine: Machine, baseline: str,
    metric: Metric, config: BenchConfig, groups: np.ndarray | None, has_data: bool,
) -> tuple[BenchRow, ...]:
    """One row for each candidate, those that do not run on ``machine`` among them.

    Args:
        candidates: in the order of the rows.
        measured: by name, what ran or was to run.
        machine: where.
        baseline: the candidate that scores are compared with, and speeds where a target has no original of its own.
        metric: of the scores.
        config: how it was measured.
        groups: of the samples, as :func:`compress.evaluate.groups_of` gives them.
        has_data: whether a row needs scores to be whole.
    """
    good = {name: one for name, one in measured.items() if one.failure is None}
    reference = good[baseline].scores if baseline in good and _compares(good[baseline]) else None
    made = []
    for candidate in candidates:
        one = measured.get(candidate.name)
        if one is None or one.failure is not None:
            made.append(without_figures(candidate, machine.name if one else None, one.failure if one else None))
            continue
        scores = None
        if one.scores is not None:
            against = None if candidate.name == baseline else reference
            scores = figures.accuracy(metric, one.scores, against, config.max_drop, groups)
        whole = _is_whole(one, config.plan().restarts, has_data)
        status = "emulated" if machine.emulated else "measured"
        made.append(BenchRow(
            **_identity(candidate, one), machine=machine.name, scenario=config.scenario, accuracy=scores,
            status="device lost" if one.lost else status if whole else "partial", reason=one.lost,
            emulated_parity=one.parity, **_speed(one, originals(candidate, good, baseline)), **_layers(one)))
    return tuple(made)


def without_figures(candidate: Candidate, machine: str | None, failure: str | None) -> BenchRow:
    """The row of an engine that does not run here, or that failed."""
    elsewhere = "built, not run here" if candidate.engines.state == "runnable" else candidate.engines.state
    status = elsewhere if failure is None else "failed"
    return BenchRow(**_identity(candidate, None), machine=machine, status=status, reason=failure)


def originals(candidate: Candidate, good: Mapping[str, Measured], baseline: str) -> dict[str, Measured]:
    """The original model's engines this one is compared with: those of its own target, and the baseline without one.

    Where nothing of the original was measured the baseline is an engine that ships, with which nothing is compared.
    """
    first = good.get(baseline)
    found = {f"vs_original_{first.candidate.engines.precision}": first} if first and _compares(first) else {}
    for one in good.values():
        if one.candidate.role == "original" and one.candidate.target.name == candidate.target.name:
            found[f"vs_original_{one.candidate.engines.precision}"] = one
    return {key: one for key, one in found.items() if one.candidate is not candidate}


def _compares(baseline: Measured) -> bool:
    return baseline.candidate.role not in ("shipped", "control")


def _is_whole(one: Measured, restarts: int, has_data: bool) -> bool:
    if one.emulated:
        return one.parity is not None
    return len(one.rounds) == restarts and (one.scores is not None or not has_data)


def _speed(one: Measured, originals: Mapping[str, Measured]) -> dict[str, Any]:
    time = one.latency
    if time is None:
        return {}
    samples, gpu = one.rounds[0]["samples_per_query"], "GPU" in one.candidate.engines.device
    peaks = [result["peak_memory_bytes"] for result in one.rounds if result["peak_memory_bytes"] is not None]
    found = conditions(one.rounds, gpu=gpu)
    return {
        "batch": samples, "latency_ms": time, "marks": marks(time, one.rounds, found, gpu=gpu), "telemetry": found,
        "load_ms": float(np.median([result["load_ms"] for result in one.rounds])),
        "throughput_per_s": 1000 * samples / time.mean, "peak_memory_bytes": max(peaks, default=None),
        "generation": figures.generation([result.get("generation") for result in one.rounds]),
        "speedup": {key: figures.speedup(other.candidate.name, other.latency, time)
                    for key, other in originals.items() if other.latency is not None},
    }


def _layers(one: Measured) -> dict[str, Any]:
    asked = one.candidate.asked
    return {
        "precisions": layers.precisions(one.layers), "layers": one.layers,
        "components": layers.by_component(one.layers),
        "unexpected": layers.unexpected(asked, one.layers) if asked and one.layers else None,
    }


def _identity(candidate: Candidate, one: Measured | None) -> dict[str, Any]:
    engines = candidate.engines
    ran = one.engines if one and one.engines else engines
    return {"name": candidate.name, "role": candidate.role, "target": candidate.target.name, "backend": engines.backend,
            "precision": engines.precision, "digest": ran.digest, "state": engines.state,
            "graphs": {graph: engine.digest for graph, engine in ran.engines.items()},
            "size_bytes": engines.size_bytes}
