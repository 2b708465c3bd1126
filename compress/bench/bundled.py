"""Bench a bundle: its engines for one target or several, beside the float controls that the run wrote with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration import open_set
from compress.bench.config import BenchConfig, Candidate
from compress.bench.everywhere import bench_everywhere
from compress.bench.layers import asked_of
from compress.bench.record import BenchRecord
from compress.bench.scenarios import query_feed, query_samples
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.targets import Target
from runtimes.bundle import Bundle, read_bundle
from runtimes.engine import read_engine
from runtimes.engineset import EngineSet
from runtimes.records import write_json


def bench_bundle(
    path: Path,
    targets: Sequence[Target],
    *,
    data: Path | None = None,
    metric: str = "accuracy",
    controls: Path | None = None,
    config: BenchConfig = BenchConfig(),  # noqa: B008 - frozen
    emulate: bool = False,
    output: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchRecord:
    """Measure the engines that the bundle at ``path`` holds for ``targets``, each where its target is.

    The record is written after every process, so that even a bench that is killed leaves what it had.

    Args:
        path: a bundle.
        targets: whose engines.
        data: the labelled set for accuracy; without one accuracy is not measured.
        metric: its metric.
        controls: the folder of the float controls; ``controls`` beside the bundle by default. Without any, the engine
            is its own baseline, and no speed-up is claimed.
        config: how to measure.
        emulate: run the engines of other machines in an emulated user-space on this one: accuracy, and no time.
        output: the record's file; ``bench.json`` beside the bundle by default.
        progress: as :func:`compress.bench.bench` calls it.

    Raises:
        CompressError: if the bundle has no engine for a target, a target is named twice, or has no address; if the
            controls are of another model; if ``output`` cannot be written.
    """
    bundle = read_bundle(path)
    _check(bundle, targets, emulate=emulate)
    candidates = _candidates(bundle, targets, controls, path.resolve().parent / "controls")
    samples = None if data is None else open_set(data, bundle.inputs)
    wanted = query_samples(config.scenario, bundle.inputs)
    feed: dict[str, Any] = dict(samples.first(wanted) if samples else _golden(bundle))
    output = _writable(output or path.resolve().parent / "bench.json")
    with tempfile.TemporaryDirectory(prefix="compress-bench-") as work:
        return bench_everywhere(
            candidates, feed=query_feed(feed, bundle.inputs, wanted), data=samples, metric=get_metric(metric, bundle),
            config=config, workdir=Path(work), emulate=emulate, progress=progress,
            keep=lambda record: write_json(output, record.to_json()),
        )  # fmt: skip


def _check(bundle: Bundle, targets: Sequence[Target], *, emulate: bool) -> None:
    names = [target.name for target in targets]
    if not names or len(set(names)) != len(names):
        raise CompressError(f"the targets are {', '.join(names) or 'none'}: name each that is to be measured once")
    for target in targets:
        for graph, entry in bundle.graphs.items():
            if target.name not in entry.engines:
                whose = f" of graph {graph!r}" if len(bundle.graphs) > 1 else ""
                raise CompressError(f"{bundle.path} has no engine{whose} for target {target.name!r}: it has those of "
                                    f"{', '.join(entry.engines)}, name them with --target, or bundle for this one")
        if target.reach == "ssh" and target.address is None and not emulate:
            raise CompressError(
                f'target {target.name!r} has no address: write [target.{target.name}] address = "user@host" (what you '
                "would give to ssh) into targets.toml, or give --emulate where accuracy is all you want")


def _writable(output: Path) -> Path:
    """``output``, where a file of that name can be written: told before anything is measured."""
    if output.is_dir():
        raise CompressError(f"{output} is a folder: name the record's file, such as {output / 'bench.json'}")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            return output
    except OSError as error:
        raise CompressError(f"the record cannot be written to {output} ({error.strerror or error}): "
                            "name a file in a folder that is there and may be written to with --output") from error


def _candidates(
    bundle: Bundle, targets: Sequence[Target], controls: Path | None, default: Path
) -> list[Candidate]:
    """The float controls of each target, then what ships."""
    from compress.bundlefacts import manifest_of
    from compress.controls import RECORD, read_controls

    chain = manifest_of(bundle).get("chain")
    ships = {target.name: _engines(bundle, target.name, chain) for target in targets}
    there = controls or (default / RECORD).is_file()
    digests = [engines.digest for engines in ships.values()]
    beside = read_controls(controls or default, ships=digests) if there else []
    found = []
    for target in targets:
        for one in beside:
            if one.target != target.name:
                continue
            if _signature(one.engines) != _signature(bundle):
                raise CompressError(f"the control {one.name!r} in {controls or default} has other inputs or outputs "
                                    f"than {bundle.path}: it is of another model; name this one's controls")
            found.append(Candidate(name=one.name, role=one.role, engines=one.engines, target=target))
        engines = ships[target.name]
        name = f"shipped {engines.precision}, {target.name}"
        found.append(Candidate(name=name, role="shipped", engines=engines, target=target, asked=asked_of(engines)))
    return found


def _engines(bundle: Bundle, target: str, chain: Mapping[str, Any] | None) -> EngineSet:
    """The bundle's engines for a target."""
    entries = {graph: entry.engines[target] for graph, entry in bundle.graphs.items()}
    return EngineSet(chain=chain, engines={
        graph: read_engine(bundle.path / entry.path, expected=bundle.engine_files(entry))
        for graph, entry in entries.items()
    })


def _golden(bundle: Bundle) -> dict[str, Any]:
    """The golden feeds as one of the bundle: of each graph what the caller gives it.

    Raises:
        CompressError: where the caller gives a decoder's first tokens; the golden feed of a decoder is a later step's.
    """
    wiring = bundle.wiring
    if wiring is None:
        return bundle.read_arrays(bundle.golden.feed)
    found: dict[str, Any] = {}
    for step in wiring.steps:
        if step.loop is not None and step.loop.token in step.inputs:
            raise CompressError(f"{bundle.path} holds no prompt for its {step.name}: name samples with --data")
        feed = bundle.read_arrays(bundle.graphs[step.graph].golden.feed)
        found |= {source.name: feed[name] for name, source in step.inputs.items() if source.step is None}
    return found


def _signature(one: Bundle | EngineSet) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Names and ranks of inputs and outputs; types and bounds may differ between engines of one model."""
    inputs, outputs = ({(spec.name, len(spec.shape)) for spec in specs} for specs in (one.inputs, one.outputs))
    return inputs, outputs
