"""Bench a bundle: its engine for one target, beside the float controls that the run wrote with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from calibration import open_set
from compress.bench import BenchConfig, BenchRecord, Candidate, bench
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.targets import Target
from runtimes.bundle import read_bundle
from runtimes.engine import read_engine
from runtimes.spec import TensorSpec


def bench_bundle(
    path: Path,
    target: Target,
    *,
    data: Path | None = None,
    metric: str = "accuracy",
    controls: Path | None = None,
    config: BenchConfig = BenchConfig(),  # noqa: B008 - frozen
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchRecord:
    """Measure the engine that the bundle at ``path`` holds for ``target``, on this machine.

    Args:
        path: a bundle.
        target: whose engine; it must be one that this machine runs.
        data: the labelled set for accuracy; without one accuracy is not measured.
        metric: its metric.
        controls: the folder of the float controls; ``controls`` beside the bundle by default. Without any, the engine
            is its own baseline, and no speed-up is claimed.
        config: how to measure.
        progress: as :func:`compress.bench.bench` calls it.

    Raises:
        CompressError: if the bundle has no engine for the target, or the target is not this machine.
    """
    from compress.bundle import read_controls

    bundle = read_bundle(path)
    (graph,) = bundle.graphs.values()
    if target.name not in graph.engines:
        raise CompressError(f"{path} has no engine for target {target.name!r}: it has {', '.join(graph.engines)}")
    if target.reach != "local":
        raise CompressError(
            f"target {target.name!r} is another machine, which this release does not reach: copy the bundle there and "
            "run compress bench on it"
        )
    entry = graph.engines[target.name]
    engine = read_engine(bundle.path / entry.path, expected=bundle.engine_files(entry))
    candidates = [
        Candidate(name=f"shipped {engine.precision}, {target.name}", role="shipped", engine=engine, target=target)
    ]
    folder = controls or path.resolve().parent / "controls"
    if controls is not None or (folder / "controls.json").is_file():
        beside = [Candidate(name=name, role=role, engine=control, target=target)  # type: ignore[arg-type]
                  for name, role, where, control in read_controls(folder) if where == target.name]  # fmt: skip
        candidates = [*beside, *candidates]
    baseline = next((c.name for c in candidates if c.role == "original"), candidates[-1].name)
    samples = None if data is None else open_set(data, bundle.inputs)
    feed = samples.first(1) if samples is not None else _one(bundle.read_arrays(bundle.golden.feed), bundle.inputs)
    with tempfile.TemporaryDirectory(prefix="compress-bench-") as work:
        return bench(
            candidates, feed=feed, data=samples, metric=get_metric(metric), config=config, baseline=baseline,
            workdir=Path(work), progress=progress,
        )  # fmt: skip


def _one(feed: dict[str, np.ndarray], inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """The first sample of a feed."""
    axes = {spec.name: spec.batch_axis for spec in inputs}
    return {name: value if axes[name] is None else np.take(value, [0], axis=axes[name]) for name, value in feed.items()}
