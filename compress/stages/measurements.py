"""The stages that measure: parity, bench, and the comparisons a user adds."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.bench import BenchConfig
from compress.described import described
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.stages.engines import Build
from compress.stages.filing import Filing, read_json, write_json
from compress.stages.models import ModelFile
from runtimes.machine import machine_facts


def measure_parity(
    filing: Filing, builds: Sequence[Build], shipped: ModelFile, quantized: Mapping[str, ModelFile]
) -> None:
    """Compare torch, ONNX and every engine that runs here on the same samples: the section ``parity``."""
    from compress.ladder import climb, ladder, samples_for

    model = shipped.load()
    validation, samples = filing.data("validation", model), samples_for(model)

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        forms = ladder(builds, model, {scheme: one.load() for scheme, one in quantized.items()})
        result = climb(forms, model, validation.take(samples), progress=filing.progress.step)
        write_json(into / "parity.json", result.to_json())
        return {}

    inputs = {"validation": validation.digest, "shipped": shipped.digest}
    inputs |= {build.name: build.engines.digest for build in builds if build.engines is not None}
    artifact = filing.stage("parity", {"samples": samples}, inputs, build)
    filing.sections["parity"] = read_json(artifact.path / "parity.json")


class _CutShortError(CompressError):
    """A device was lost or what ships failed: the record is kept for this run, and not for the next."""


def measure_speed(filing: Filing, builds: Sequence[Build], shipped: ModelFile, config: BenchConfig) -> None:
    """Latency and accuracy of every engine, each where its target is: the section ``bench``.

    ``shipped`` says how outputs become the texts that some metrics read.

    A target that is another machine is measured if its row has an address. Where one cannot be reached or goes away,
    the section holds what there is, not ``complete``, and the next run measures again; as it does where an engine that
    ships failed, which may have been for want of memory or time.
    """
    from compress.bench import Candidate
    from compress.bench.everywhere import bench_everywhere
    from compress.bench.scenarios import query_samples

    validation, metric = filing.sets["validation"], filing.recipe.metric
    candidates = [
        Candidate(name=b.name, role=b.role, engines=b.engines, target=b.target, asked=_asked(b))
        for b in builds if b.engines is not None
    ]
    away = {c.target.name: c.target.address for c in candidates if c.target.reach == "ssh"}
    for name in [name for name, address in away.items() if address is None]:
        filing.progress.say(f'{name} is not measured, because it has no address: write [target.{name}] address = '
                            '"user@host" (what you would give to ssh) into targets.toml')
    kept: dict[str, Any] = {}

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        wanted = query_samples(config.scenario, validation.inputs)
        record = bench_everywhere(
            candidates, feed=validation.first(wanted), data=validation,
            metric=get_metric(metric, described(shipped.load())), config=config, workdir=scratch / "work",
            progress=filing.progress.step,
        )  # fmt: skip
        kept.update(json.loads(json.dumps(record.to_json())))
        if not record.complete or record.failures:
            raise _CutShortError("; ".join((*record.losses, *record.failures)))
        write_json(into / "bench.json", kept)
        return {}

    inputs = {"validation": validation.digest, **{c.name: c.engines.digest for c in candidates}}
    reached = {name: address for name, address in away.items() if address is not None}
    settings = {**dataclasses.asdict(config), "metric": metric, "machine": machine_name(), "devices": reached}
    try:
        artifact = filing.stage("bench", settings, inputs, build)
    except _CutShortError:
        filing.sections["bench"] = kept
        return
    filing.sections["bench"] = read_json(artifact.path / "bench.json")


def _asked(build: Build) -> dict[str, dict[str, str]]:
    """What the graphs of an int8 build ask for, by graph."""
    from compress.bench import asked_for_int8

    assert build.engines is not None
    int8 = [graph for graph, engine in build.engines.engines.items() if engine.precision == "int8"]
    return {graph: asked_for_int8(build.onnx[graph]) for graph in int8}


def compare(filing: Filing, reference: str, shipped: ModelFile) -> None:
    """Rows the user's own function adds to the report: ``function(model, recipe, progress) -> list of baselines``."""
    from compress.factory import resolve

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        rows = resolve(reference, "comparisons")(shipped.load(), filing.recipe, filing.progress.step)
        write_json(into / "baselines.json", rows)
        return {}

    inputs = {"shipped": shipped.digest, "train": filing.data("train", shipped.load()).digest}
    artifact = filing.stage("compare", {"function": reference}, inputs, build)
    filing.sections["baselines"] = read_json(artifact.path / "baselines.json")


def machine_name() -> str:
    """What a measurement belongs to: figures of another CPU are not these."""
    facts = machine_facts()
    return f"{platform.node()}: {facts['cpu']}, {facts['cores_usable']} cores"
