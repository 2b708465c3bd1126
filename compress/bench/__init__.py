"""Benchmark: latency and accuracy of the same engine files, each measured in fresh processes, float controls beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.bench.agent import run_here
from compress.bench.config import BenchConfig, Candidate
from compress.bench.layers import asked_for_int8
from compress.bench.machines import HERE, Machine, this_machine
from compress.bench.measured import Measured
from compress.bench.record import BenchRecord
from compress.bench.roofline import add_rooflines
from compress.bench.rows import rows_of
from compress.bench.scenarios import query_feed, query_samples
from compress.bench.table import table
from compress.errors import CompressError
from compress.evaluate import groups_of, targets_of
from compress.metrics import Metric
from runtimes.arrays import write_arrays
from runtimes.spec import Feed, largest_batch

if TYPE_CHECKING:
    import numpy as np

    from calibration.dataset import CalibrationSet

__all__ = ["BenchConfig", "BenchRecord", "Candidate", "Machine", "asked_for_int8", "bench", "table"]

ACCURACY_BATCH = 32  # samples at once where the outputs count, not the time


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One process: ``reference`` are the outputs of an emulated engine's file on this machine."""

    name: str
    kind: Literal["build", "outputs", "reference", "round"]
    restart: int = 0

    def __str__(self) -> str:
        said = {"build": "build", "outputs": "accuracy", "reference": "outputs here"}
        return f"{self.name}: {said.get(self.kind) or f'round {self.restart + 1}'}"


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What every process of one machine shares. ``timing`` and ``outputs`` are parts of its jobs."""

    machine: Machine
    folder: Path
    threads: int
    timeout_s: float
    timing: Mapping[str, Any]
    outputs: Mapping[str, Any]
    metric: Metric | None
    target: np.ndarray | None


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
    machine: Machine | None = None,
    keep: Callable[[BenchRecord], None] | None = None,
) -> BenchRecord:
    """Measure every engine on one machine, one process at a time.

    First each engine's outputs on ``data``, in a process of its own; then rounds of timing, one fresh process per
    engine and round, in the order of the candidates and backwards in turn (ABBA), so that a machine which slows down
    does so for all of them. The first round also reads the precision of the layers, after its timing. Then come the
    machine's peak rates, where they are not known yet. Under emulation nothing is timed: the outputs are compared with
    those of the same engine file on this machine.

    Args:
        candidates: the engines. One that cannot run there keeps its state as status and has no figures; one that fails
            is a row with the reason, and takes no further time.
        feed: samples to make the scenario's query of; for the single stream it is the query, as it is.
        data: the validation set; None leaves accuracy out.
        metric: of :func:`compress.metrics.get_metric`.
        config: the scenario, how long, with how many threads, and the budget of the drop.
        baseline: name of the candidate that is the original model's fp32 engine.
        workdir: a folder for the processes' files.
        progress: called before each process with the processes done, their total, and what comes.
        machine: where they run; this one by default. If it is lost, what was measured is kept and labelled.
        keep: called after each process with the record so far.

    Raises:
        CompressError: if two candidates have one name, ``baseline`` is not among them, or ``data`` has no targets.
    """
    _check(candidates, baseline)
    machine = machine or this_machine()
    target = None if data is None else targets_of(data, metric.output)
    groups = None if data is None else groups_of(data)
    work, samples = _prepare(candidates, feed, data, metric, config, machine, Path(workdir).resolve(), target)
    settings = {**dataclasses.asdict(config), **dataclasses.asdict(config.plan()), "threads": work.threads,
                "batch": samples}
    measured = {one.name: Measured(one, emulated=machine.emulated)
                for one in candidates if one.runs_here or machine.name != HERE}
    facts: dict[str, Any] = {}
    versions: dict[str, str] = {}
    order: list[tuple[str, int]] = []

    def record(*, complete: bool) -> BenchRecord:
        return BenchRecord(
            metric=metric.name, config=settings, machines={machine.name: facts}, versions={machine.name: versions},
            baselines={machine.name: baseline}, order=tuple(order), complete=complete,
            data=None if data is None else described(data),
            rows=rows_of(candidates, measured, machine=machine, baseline=baseline, metric=metric, config=config,
                         groups=groups, has_data=data is not None))

    steps = list(_steps(list(measured.values()), machine, config.plan().restarts, has_data=data is not None))
    for done, step in enumerate(steps):
        one = measured[step.name]
        if progress:
            progress(done, len(steps), str(step))
        if one.failure is not None:
            continue
        if step.kind == "round":
            order.append((step.name, step.restart))
        try:
            result = _run(step, one, work, work.folder / str(list(measured).index(step.name)))
        except machine.lost as error:
            _lose(measured, steps[done:], str(error))
            break
        except CompressError as error:  # the metric's refusal of these outputs is this engine's result too
            one.failure = str(error)
        else:
            if result is not None and step.kind != "reference":
                emulated = {"emulated": True} if machine.emulated else {}
                facts = facts or {**result["machine"], "threads": work.threads, **emulated}
                versions.update(result["versions"])
        if keep:
            keep(record(complete=done + 1 == len(steps)))
    if progress:
        progress(len(steps), len(steps), "done")
    if any(one.lost for one in measured.values()):
        return record(complete=False)
    return add_rooflines(record(complete=True), candidates, machine) if config.peaks else record(complete=True)


def described(data: CalibrationSet) -> dict[str, Any]:
    """What a record says of the validation set."""
    return {"name": data.name, "digest": data.digest, "count": len(data)}


def _check(candidates: Sequence[Candidate], baseline: str) -> None:
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise CompressError(f"two candidates have one name: {names}")
    if baseline not in names:
        raise CompressError(f"the baseline {baseline!r} is not among the candidates {names}: "
                            "add the original model's fp32 engine")


def _prepare(
    candidates: Sequence[Candidate], feed: Feed, data: CalibrationSet | None, metric: Metric, config: BenchConfig,
    machine: Machine, folder: Path, target: np.ndarray | None,
) -> tuple[_Work, int]:
    """What the jobs share, and the number of samples of a query, which is one for all engines."""
    inputs, plan = candidates[0].engines.inputs, config.plan()
    samples = min(query_samples(config.scenario, one.engines.inputs) for one in candidates)
    if config.scenario == "single_stream":
        axes = {spec.name: spec.batch_axis for spec in inputs}
        samples = next((value.shape[axis] for name, value in feed.items() if (axis := axes[name]) is not None), 1)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "feed.npz", query_feed(feed, inputs, samples))
    shards = [folder / "feed.npz"] if data is None else [path.resolve() for path in data.shards]
    names = [spec.name for spec in (inputs if data is None else data.inputs)]
    return _Work(
        machine=machine, folder=folder, threads=config.threads or machine.threads, timeout_s=config.timeout_s,
        timing={"feed": str(folder / "feed.npz"), "warmup_s": plan.warmup_s, "duration_s": plan.duration_s,
                "min_runs": plan.min_runs, "scenario": config.scenario, "samples_per_query": samples},
        outputs={"shards": [str(path) for path in shards], "inputs": names},
        metric=None if data is None else metric, target=target), samples


def _steps(ones: Sequence[Measured], machine: Machine, restarts: int, *, has_data: bool) -> Iterator[_Step]:
    """What is run, in order."""
    for one in ones:
        if one.engines is None:
            yield _Step(name=one.candidate.name, kind="build")
    names = [one.candidate.name for one in ones]
    if machine.emulated:
        for name in names:
            yield _Step(name=name, kind="outputs")
            yield _Step(name=name, kind="reference")
        return
    if has_data:
        yield from (_Step(name=name, kind="outputs") for name in names)
    for restart in range(restarts):
        ordered = names if restart % 2 == 0 else names[::-1]
        yield from (_Step(name=name, kind="round", restart=restart) for name in ordered)


def _run(step: _Step, one: Measured, work: _Work, folder: Path) -> dict[str, Any] | None:
    """One process and what becomes of its result."""
    machine = work.machine
    if step.kind == "build":
        if machine.build is None:
            raise CompressError(f"the engine is built on its device, and {machine.name} is not one")
        given = one.candidate.engines
        built = {graph: machine.build(engine, folder / "build" / graph) if engine.state == "build on the device"
                 else engine for graph, engine in given.engines.items()}
        one.engines = dataclasses.replace(given, engines=built)
        return None
    assert one.engines is not None
    job: dict[str, Any] = {**one.engines.job(), "threads": work.threads, "latency": None, "outputs": None,
                           "layers": False}
    if step.kind == "round":
        # The layers are read after the clock has stopped; once is enough.
        job.update(latency=dict(work.timing), layers=step.restart == 0)
        result = machine.agent(job, folder / f"round-{step.restart}", work.timeout_s)
        one.add_round(result)
        return result
    place = folder / ("accuracy" if step.kind == "outputs" else "here")
    into = place / "outputs.npz"
    batch = largest_batch(one.engines.inputs, ACCURACY_BATCH)
    job.update(outputs={**work.outputs, "batch": batch, "into": str(into)})
    if step.kind == "reference":
        result = run_here(job, place, work.timeout_s)
        one.add_reference(result, into)
        return result
    job.update(layers=machine.emulated)
    result = machine.agent(job, place, work.timeout_s)
    one.add_outputs(result, into, work.metric, work.target)
    return result


def _lose(measured: Mapping[str, Measured], left: Sequence[_Step], reason: str) -> None:
    """Label every engine that had still something to run."""
    for name in {step.name for step in left}:
        if measured[name].failure is None:
            measured[name].lost = reason
