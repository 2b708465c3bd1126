"""One round of a search: the models that the recipe's stages make, and what their engines take and answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.bench import BenchConfig
from compress.bench.record import BenchRow, Role
from compress.described import described
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.quantize.sensitivity import SensitivityConfig
from compress.stages.engines import build_one, row_of
from compress.stages.filing import Filing, read_json, write_json
from compress.stages.measurements import machine_name
from compress.stages.models import ModelFile, transform
from compress.targets import Target
from runtimes.engine import Precision

TIMING = BenchConfig(restarts=3, peaks=False)           # of a round; what is kept is benched as the recipe says
PARTS = SensitivityConfig(by=("component", "modality"), samples=128)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The models of a round: ``shipped`` in float, and by scheme what quantize and the stages behind it made of it."""

    shipped: ModelFile
    quantized: Mapping[str, ModelFile]


def make(
    filing: Filing, original: ModelFile, began: ModelFile, speedup: float, targets: Sequence[Target]
) -> Made:
    """Prune ``began`` until it is ``speedup`` times as fast on the first of ``targets``; do the recipe's other stages.

    With a ``speedup`` of 1 it is quantized as it is. A vocabulary goes once, in the first round.
    """
    shipped = began
    for stage in filing.recipe.on_float if speedup > 1 else ():
        if stage.name == "prune":
            place = stage.config.target or targets[0].name
            once = {} if began == original else {"vocabulary": None, "corpus": None}
            stage = dataclasses.replace(
                stage, config=dataclasses.replace(stage.config, speedup=speedup, target=place, **once))
        shipped = transform(filing, stage, shipped, original)
    quantized: dict[str, ModelFile] = {}
    for scheme in dict.fromkeys(target.scheme for target in targets) if filing.recipe.on_int8 else ():
        quantized[scheme] = shipped
        for stage in filing.recipe.on_int8:
            quantized[scheme] = transform(filing, stage, quantized[scheme], original, scheme)
    return Made(shipped=shipped, quantized=quantized)


def measure(filing: Filing, original: ModelFile, made: Made, targets: Sequence[Target]) -> dict[str, Any]:
    """What the engines of a round take and answer, in all and by component, beside the original's in fp32.

    ``measured`` is by target and precision, ``fp32`` that of the float model; ``parts`` by scheme what each component
    and modality alone loses in int8.

    Raises:
        CompressError: if an engine that would ship cannot be built, or does not run.
    """
    from compress.bench import Candidate
    from compress.bench.everywhere import bench_everywhere

    validation, metric = filing.data("validation", original.load()), filing.recipe.metric
    config = dataclasses.replace(TIMING, max_drop=filing.recipe.max_drop)
    like, candidates = original.load(), []
    for target in targets:
        wanted: list[tuple[Role, ModelFile, Precision]] = [("original", original, "fp32")]
        if made.shipped != original:
            wanted.append(("control", made.shipped, "fp32"))
        if target.scheme in made.quantized:
            wanted.append(("shipped", made.quantized[target.scheme], "int8"))
        for role, model, precision in wanted:
            built = build_one(filing, f"{role} {precision}, {target.name}", role, target, model, precision, like)
            if built.engines is None:
                raise CompressError(f"{built.name} cannot be built: {built.error}")
            candidates.append(Candidate(name=built.name, role=role, engines=built.engines, target=target))

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        record = bench_everywhere(
            candidates, feed=validation.first(1), data=validation, metric=get_metric(metric, described(like)),
            config=config, workdir=scratch / "work", progress=filing.progress.step)
        for row in record.rows:
            if row.status != "measured":
                raise CompressError(f"{row.name} was not measured: {row.reason or row.status}")
        write_json(into / "measured.json", {
            target.name: {row.precision: _figures(row) for row in record.rows if row.target == target.name}
            for target in targets})          # of the two in fp32 the later, which is the round's
        return {}

    inputs = {"validation": validation.digest, **{one.name: one.engines.digest for one in candidates}}
    settings = {**dataclasses.asdict(config), "metric": metric, "targets": {t.name: row_of(t) for t in targets},
                "machine": machine_name()}
    measured = read_json(filing.stage("measure", settings, inputs, build).path / "measured.json")
    return {
        **_sizes(made.shipped), "measured": measured,
        "parts": {scheme: _parts(filing, model, scheme) for scheme, model in made.quantized.items()},
    }


def _figures(row: BenchRow) -> dict[str, Any]:
    assert row.latency_ms is not None
    assert row.accuracy is not None
    times = {name: one.time_us for name, one in row.components.items() if one.time_us is not None}
    profile = sum(times.values()) or 1.0        # of one run, which others may have disturbed: told as shares of p50
    gain, drop = row.speedup.get("vs_original_fp32"), row.accuracy.drop      # neither of the original itself
    return {
        "latency_ms": row.latency_ms.p50, "score": row.accuracy.value,
        "speedup": gain.ratio if gain else 1.0, "interval": list(gain.interval) if gain else [1.0, 1.0],
        "drop": {"points": drop.points if drop else 0.0, "interval": list(drop.interval) if drop else [0.0, 0.0]},
        "size_bytes": row.size_bytes,
        "components_us": {name: 1e3 * row.latency_ms.p50 * time / profile for name, time in times.items()},
    }


def _sizes(shipped: ModelFile) -> dict[str, Any]:
    """MACs and parameters, in all and of each component with the modalities that reach it."""
    from compress.complexity import count_model
    from compress.quantize.parts import layers_of, parts_of

    model = shipped.load()
    found = count_model(model)
    reached = {part.name: part.modality for part in parts_of(layers_of(model), "component")}
    return {
        "macs": found.total.macs, "params": found.total.params,
        "components": {name: {"macs": cost.macs, "params": cost.params, "modality": reached.get(name, "nothing")}
                       for name, cost in found.components.items()},
    }


def _parts(filing: Filing, model: ModelFile, scheme: str) -> list[dict[str, Any]]:
    from compress.quantize.sensitivity import sensitivity

    validation, metric = filing.sets["validation"], filing.recipe.metric

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        found = sensitivity(
            model.load(), validation, metric=get_metric(metric, described(model.load())), config=PARTS,
            scratch=scratch, progress=filing.progress.step)
        if not found.complete:
            raise KeyboardInterrupt     # what was found is kept for the next run
        write_json(into / "parts.json", found.to_json()["parts"])
        return {}

    settings = {**dataclasses.asdict(PARTS), "metric": metric}
    inputs = {"model": model.digest, "validation": validation.digest}
    artifact = filing.stage("parts", settings, inputs, build, scheme=scheme)
    parts: list[dict[str, Any]] = read_json(artifact.path / "parts.json")
    return parts
