"""Benchmark: latency and accuracy of the same engine files, each measured in fresh processes, float controls beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.bench import figures
from compress.bench.agent import Agent, physical_cores, run_here
from compress.bench.config import BenchConfig, Candidate
from compress.bench.layers import asked_for_int8
from compress.bench.measured import Measured, originals, row, row_without_figures
from compress.bench.record import BenchRecord, BenchRow
from compress.bench.table import table
from compress.errors import CompressError
from compress.evaluate import groups_of, targets_of
from compress.metrics import Metric
from runtimes.arrays import write_arrays
from runtimes.engine import Engine
from runtimes.spec import Feed, TensorSpec, largest_batch

if TYPE_CHECKING:
    from calibration.dataset import CalibrationSet

__all__ = ["BenchConfig", "BenchRecord", "Candidate", "asked_for_int8", "bench", "table"]

HERE = "local"  # this machine's name in a record
ACCURACY_BATCH = 32  # samples at once where the outputs count, not the time


def bench(
    candidates: Sequence[Candidate],
    *,
    feed: Feed,
    data: CalibrationSet | None,
    metric: Metric,
    config: BenchConfig,
    baseline: str,
    workdir: Path,
    progress: Callable[[int, int, str], None] | None = None,
    agent: Agent = run_here,
) -> BenchRecord:
    """Measure every engine, one process at a time.

    First each engine's outputs on ``data``, in a process of its own; then rounds of timing, one fresh process per
    engine and round, in the order of the candidates and backwards in turn (ABBA), so that a machine which slows down
    does so for all of them. The first round also reads the precision of the layers, after its timing.

    Args:
        candidates: the engines. One that cannot run here keeps its state as status and has no figures; one that fails
            is a row with the reason, and takes no further time.
        feed: what is timed, with the batch wanted (1, unless throughput is the question).
        data: the validation set; None leaves accuracy out.
        metric: of :func:`compress.metrics.get_metric`.
        config: how long, with how many threads, and the budget of the drop.
        baseline: name of the candidate that is the original model's fp32 engine.
        workdir: a folder for the processes' files.
        progress: called before each process with the processes done, their total, and what comes.
        agent: what runs a job; on this machine by default.

    Raises:
        CompressError: if two candidates have one name, ``baseline`` is not among them, or ``data`` has no targets.
    """
    _check(candidates, baseline)
    plan, workdir = config.plan(), Path(workdir).resolve()
    target = None if data is None else targets_of(data)
    groups = None if data is None else groups_of(data)
    workdir.mkdir(parents=True, exist_ok=True)
    write_arrays(workdir / "feed.npz", {name: np.asarray(value) for name, value in feed.items()})
    settings = {**asdict(config), **asdict(plan), "threads": config.threads or physical_cores(),
                "batch": _sample_count(feed, candidates[0].engine.inputs)}
    timing = {"feed": str(workdir / "feed.npz"), "warmup_s": plan.warmup_s, "duration_s": plan.duration_s,
              "min_runs": plan.min_runs}
    measured = {one.name: Measured(one) for one in candidates if one.runs_here}
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    order: list[tuple[str, int]] = []
    schedule = list(_schedule(list(measured), plan.restarts, with_accuracy=data is not None))
    for done, (name, restart) in enumerate(schedule):
        one, folder = measured[name], workdir / str(list(measured).index(name))
        if progress:
            progress(done, len(schedule), f"{name}: " + ("accuracy" if restart is None else f"round {restart + 1}"))
        if one.failure is not None:
            continue
        job: dict[str, Any] = {"engine": str(one.candidate.engine.path.resolve()), "threads": settings["threads"],
                               "latency": None, "outputs": None, "layers": False}
        try:
            if restart is not None:
                order.append((name, restart))
                # The layers are read after the clock has stopped; once is enough.
                job.update(latency=timing, layers=restart == 0)
                result = agent(job, folder / f"round-{restart}", config.timeout_s)
                one.add_round(result)
            else:
                assert data is not None
                assert target is not None
                outputs = folder / "accuracy" / "outputs.npz"
                job.update(outputs=_outputs_job(one.candidate.engine, data, outputs))
                result = agent(job, folder / "accuracy", config.timeout_s)
                one.add_accuracy(result, outputs, metric, target)
        except CompressError as error:  # the metric's refusal of these outputs is this engine's result too
            one.failure = str(error)
            continue
        machine = machine or result["machine"]
        versions.update(result["versions"])
    if progress:
        progress(len(schedule), len(schedule), "done")
    return BenchRecord(
        metric=metric.name, config=settings, machines={HERE: machine}, versions={HERE: versions},
        baselines={HERE: baseline}, order=tuple(order),
        data=None if data is None else {"name": data.name, "digest": data.digest, "count": len(data)},
        rows=_rows(candidates, measured, baseline, metric, config.max_drop, groups, settings["batch"]))


def _rows(
    candidates: Sequence[Candidate], measured: Mapping[str, Measured], baseline: str, metric: Metric, max_drop: float,
    groups: np.ndarray | None, batch: int,
) -> tuple[BenchRow, ...]:
    finished = {name: one for name, one in measured.items() if one.failure is None}
    reference = finished[baseline].scores if baseline in finished else None
    rows = []
    for candidate in candidates:
        one = finished.get(candidate.name)
        if one is None:
            failed = measured.get(candidate.name)
            rows.append(row_without_figures(candidate, failed.failure if failed else None))
            continue
        scores = None
        if one.scores is not None:
            against = None if candidate.name == baseline else reference
            scores = figures.accuracy(metric.name, one.scores, against, max_drop, groups)
        rows.append(row(one, scores, originals(candidate, finished, baseline), HERE, batch))
    return tuple(rows)


def _check(candidates: Sequence[Candidate], baseline: str) -> None:
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise CompressError(f"two candidates have one name: {names}")
    if baseline not in names:
        raise CompressError(f"the baseline {baseline!r} is not among the candidates {names}: "
                            "add the original model's fp32 engine")


def _schedule(names: Sequence[str], restarts: int, *, with_accuracy: bool) -> Iterator[tuple[str, int | None]]:
    """Who is measured next, and in which round; None is the accuracy pass."""
    if with_accuracy:
        yield from ((name, None) for name in names)
    for restart in range(restarts):
        yield from ((name, restart) for name in (names if restart % 2 == 0 else names[::-1]))


def _outputs_job(engine: Engine, data: CalibrationSet, into: Path) -> dict[str, Any]:
    return {"shards": [str(path.resolve()) for path in data.shards], "inputs": [spec.name for spec in data.inputs],
            "batch": largest_batch(engine.inputs, ACCURACY_BATCH), "into": str(into)}


def _sample_count(feed: Feed, inputs: Sequence[TensorSpec]) -> int:
    return next((int(feed[spec.name].shape[spec.batch_axis]) for spec in inputs if spec.batch_axis is not None), 1)
